"""Bad input gets one line and exit status 2, and nothing is written; odd but legal input trains.

Everything goes through `train_IEMOCAP.main`, as on the command line.
"""

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small import BARE

import train_IEMOCAP
import utils
from experiment import flags
from experiment.run import Run
from feature_files import write_nine_tuple
from synthetic import synthetic_corpus

IDS, SPEAKERS, LABELS, TEXT, ACOUSTIC, VISUAL, SENTENCES, TRAIN, TEST = range(9)  # their order on disk
DIMS = {"text": 8, "visual": 6, "acoustic": 5}
FIRST, SECOND = "Ses01_synthetic00", "Ses02_synthetic00"  # of the training dialogues
BRIEF = ["--epochs", "1", "--GAN-epochs", "1", "--no-cuda"]


@pytest.fixture(scope="module")
def nine_pickled(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "nine.pkl"
    write_nine_tuple(synthetic_corpus(train=8, test=2, mean_length=9, dims=DIMS), path)
    return path.read_bytes()


@pytest.fixture
def nine(nine_pickled):
    """The nine fields of a sound file, free to be spoilt."""
    return list(pickle.loads(nine_pickled))


@pytest.fixture
def sound(save, nine):
    return save(tuple(nine))


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """Run the script in a folder of its own; its exit status, and what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*argv):
        try:
            status = train_IEMOCAP.main([str(a) for a in argv])
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return command


@pytest.fixture
def refused(command, tmp_path):
    """Run the script, which must refuse in one line and leave every file as it was; that line."""

    def content():
        return {p: p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}

    def refused(*argv):
        before = content()
        status, error = command(*argv)
        assert status == 2
        assert error.count("\n") == 1 and error.endswith("\n") and "error: " in error, error
        assert content() == before
        return error

    return refused


def change(field, edit, dialogue=FIRST):
    """An edit of one field of one dialogue."""

    def spoil(nine):
        nine[field][dialogue] = edit(nine[field][dialogue])

    return spoil


def at(value, *places):
    """An edit that puts a value into places of an array or list."""

    def edit(row):
        for place in places:
            row[place] = value
        return row

    return edit


def shorter(row):
    return row[:-1]


def empty(nine):
    for field in (IDS, SPEAKERS, LABELS, TEXT, ACOUSTIC, VISUAL, SENTENCES):
        nine[field][FIRST] = nine[field][FIRST][:0]


def keep_train(count):
    def spoil(nine):
        nine[TRAIN] = nine[TRAIN][:count]

    return spoil


# Bad feature files ----------------------------------------------------------------------------------------------------

FILES = {
    "not a pickle": (b"valence,arousal\n0.5,0.1\n", ["not a pickle", "get this one again"]),
    "no bytes": (b"", ["the file is empty", "get it again"]),
    "a Git-LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 134217728\n",
        ["a Git-LFS pointer", "git lfs pull"],
    ),
    "a web page": (b"<!DOCTYPE html>\n<html></html>", ["a web page", "download the raw file"]),
}


@pytest.mark.parametrize("content, words", FILES.values(), ids=FILES)
def test_refuses_a_file_that_is_no_features(refused, save, content, words):
    path = save(content)
    line = refused("--features", path, "--valid", "0.1", "--out", "run")
    assert f"error: {path}: " in line and all(word in line for word in words)


def test_refuses_a_file_that_is_not_there(refused, tmp_path):
    line = refused("--features", tmp_path / "none.pkl", "--out", "run")
    assert f"error: {tmp_path / 'none.pkl'}: no such file; check the name" in line


def test_refuses_a_file_name_that_no_file_can_have(refused):
    assert f"error: {'x' * 300}: " in refused("--features", "x" * 300, "--out", "run")


def test_refuses_a_folder_without_features(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    assert f"error: {tmp_path / 'folder'}: " in refused("--features", tmp_path / "folder", "--out", "run")


def test_refuses_a_file_that_breaks_off(refused, save, nine_pickled):
    line = refused("--features", save(nine_pickled[: len(nine_pickled) // 2]), "--out", "run")
    assert "damaged" in line and "get the file again" in line


def test_refuses_to_run_code_and_names_the_class_it_wanted(refused, save, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    line = refused("--features", save(Hostile()), "--out", "run")  # and `refused` sees that no folder was made
    assert "refused: " in line and f"{os.mkdir.__module__}.mkdir" in line


FIELDS = {
    "a tuple of another length": (lambda nine: nine.pop(), ["a tuple of 8 items is no known layout", "README"]),
    "text of another length": (change(TEXT, shorter), ["text:", FIRST, "rows for", "one row for each"]),
    "acoustic of another length": (change(ACOUSTIC, shorter), ["acoustic:", FIRST, "rows for", "one row for each"]),
    "visual of another length": (change(VISUAL, shorter), ["visual:", FIRST, "rows for", "one row for each"]),
    "speakers of another length": (change(SPEAKERS, shorter), ["speakers:", FIRST, "labels; give one for each"]),
    "labels of another length": (change(LABELS, shorter), [FIRST, "labels; give one for each"]),
    "a width of its own": (
        change(TEXT, lambda x: x[:, :-1], SECOND),
        ["text:", SECOND, "rows of width 7, elsewhere 8", "one width"],
    ),
    "NaN": (
        change(TEXT, at(np.nan, (0, 1), (2, 3))),
        ["text:", FIRST, "2 values are NaN or infinite (2 in 1 dialogues", "repair them"],
    ),
    "infinity": (
        change(VISUAL, at(-np.inf, (0, 1)), SECOND),
        ["visual:", SECOND, "1 values are NaN or infinite", "repair them"],
    ),
    "a label above the classes": (
        change(LABELS, at(6, 0)),
        ["labels:", FIRST, "label 6 is outside 0..5", "correct the labels"],
    ),
    "a label below zero": (change(LABELS, at(-1, 0)), ["labels:", FIRST, "label -1", "number the classes"]),
    "a label between": (change(LABELS, at(0.5, 0)), ["labels:", FIRST, "label 0.5", "number the classes"]),
    "an empty dialogue": (empty, ["labels:", FIRST, "an empty dialogue", "remove it"]),
    "an unknown dialogue": (lambda nine: nine[TRAIN].append("Ses09"), ["train:", "'Ses09'", "no such dialogue", "add"]),
    "train in test": (lambda nine: nine[TEST].append(FIRST), ["test:", FIRST, "also in split train", "one split only"]),
    "no training dialogues": (keep_train(0), ["train:", "no dialogues", "list the dialogues to train on"]),
    "no test dialogues": (lambda nine: nine[TEST].clear(), ["test:", "no dialogues", "list the dialogues to test on"]),
    "too few for validation": (keep_train(1), ["'train'", "1 dialogues are too few", "give more", "--valid"]),
    "no modality": (
        lambda nine: nine.__setitem__(slice(TEXT, SENTENCES), [{}, {}, {}]),
        ["features:", "no modality has any", "give one"],
    ),
}


@pytest.mark.parametrize("spoil, words", FIELDS.values(), ids=FIELDS)
def test_refuses_a_field_that_is_wrong(refused, save, nine, spoil, words):
    spoil(nine)
    path = save(tuple(nine))
    line = refused("--features", path, "--valid", "0.1", "--out", "run")
    assert f"error: {path}: " in line and all(word in line for word in words)


def test_refuses_a_modality_that_the_file_lacks(refused, save, nine):
    nine[VISUAL] = {i: x[:, :0] for i, x in nine[VISUAL].items()}
    line = refused("--features", save(tuple(nine)), "--modalities", "text,visual", "--out", "run")
    assert "features.pkl: --modalities: no features of modality 'visual'; there are text, acoustic" in line


# Bad flags ------------------------------------------------------------------------------------------------------------

FLAGS = {
    "--lr -1": "--lr: -1 is out of range; give a number above 0",
    "--lr 0": "--lr: 0 is out of range",
    "--lr nan": "--lr: nan is out of range",
    "--lr inf": "--lr: inf is out of range",
    "--lr fast": "--lr: 'fast' is no float",
    "--GAN-lr -1": "--GAN-lr: -1 is out of range",
    "--l2 -0.1": "--l2: -0.1 is out of range; give a number at least 0",
    "--dropout 1.5": "--dropout: 1.5 is out of range; give a number at least 0 and at most 0.99",
    "--epochs 0": "--epochs: 0 is out of range; give a number at least 1",
    "--epochs 1.5": "--epochs: '1.5' is no int",
    "--GAN-epochs -1": "--GAN-epochs: -1 is out of range",
    "--batch-size 0": "--batch-size: 0 is out of range",
    "--valid 1": "--valid: 1 is out of range",
    "--window-past -1": "--window-past: -1 is out of range",
    "--window-future -1": "--window-future: -1 is out of range",
    "--causal --window-future 3": "--causal has no future window: leave out --window-future",
    "--seed -1": "--seed: -1 is out of range",
    "--seeds 0,0": "--seeds: '0,0' names a seed twice",
    "--seeds 0,1 --seed 2": "--seed and --seeds exclude each other",
    "--resume other": "--resume other: the run stays where it is: leave out --out run",
    "--resume --overwrite": "--resume goes on with a run as it was begun: leave out --overwrite",
    "--resume --evaluate other": "--resume goes on with a run as it was begun: leave out --evaluate",
    "--folds-over train": "--folds-over train goes with --folds; add it",
    "--modalities text,smell": "--modalities: unknown modality 'smell'; choose among text, visual, acoustic",
    "--modalities text,text": "--modalities: text,text names one of them twice",
    "--demo": "--features and --demo exclude each other; give one",
    "--device toaster": "--device: 'toaster' is not auto, cpu, cuda, cuda:1 or mps",
    "--device cuda:99": "--device cuda:99: not to be had here (",
    "--continue-train-GAN-step 1": "--continue-train-GAN-step needs --use-trained-GAN RUN",
    "--GAN-loss reference --GAN-weight 0": "with --GAN-weight 0 it learns nothing",
    "--use-trained-GAN none": "none/checkpoints/fusion.safetensors: cannot be read",
    "--resume none --out none": "none/config.json: cannot be read",
    "--export-fused fused.pkl --modalities text": "--export-fused: stage 1 was left out",
    "--export-fused none/fused.pkl": "none/fused.pkl: cannot be written",
    "--export-stage 2": "name its FILE too",
    "--text-layers 9": "--text-layers: there is no '9'",
    "--target mood": "--target: invalid choice: 'mood'",
    "--frobnicate": "unrecognized arguments: --frobnicate",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_refuses_flags(refused, sound, flags):
    assert FLAGS[flags] in refused("--features", sound, "--out", "run", *BRIEF[:-1], *flags.split())


@pytest.mark.parametrize("name, value", [("WORLD_SIZE", "two"), ("RANK", None), ("MASTER_ADDR", None)])
def test_half_of_what_torchrun_sets_is_refused(refused, sound, monkeypatch, name, value):
    numbers = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"}
    for each, set_to in {**numbers, "MASTER_ADDR": "127.0.0.1", name: value}.items():
        monkeypatch.setenv(each, set_to) if set_to else monkeypatch.delenv(each, raising=False)
    assert f"torchrun: {name} is" in refused("--features", sound, "--out", "run", *BRIEF[:-1])


def test_without_features_says_where_to_get_some(command, tmp_path):
    status, error = command("--out", "run")
    assert status == 2 and "Traceback" not in error
    assert all(word in error for word in ("no feature file", "IEMOCAP_features/", "--features", "--download", "--demo"))
    assert not any(tmp_path.iterdir())


# The output directory -------------------------------------------------------------------------------------------------


@pytest.fixture
def earlier_run(tmp_path):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "config.json").write_text("{}")
    return tmp_path / "earlier"


def test_keeps_an_earlier_run(refused, sound, earlier_run):
    line = refused("--features", sound, "--out", earlier_run)
    assert f"--out {earlier_run}: exists; choose another, or add --overwrite or --resume" in line


def test_overwrite_keeps_a_directory_that_is_no_run(refused, sound, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    line = refused("--features", sound, "--out", tmp_path / "thesis", "--overwrite")
    assert (
        "thesis: --overwrite replaces only runs, and this is none: it has no config.json of one; choose another" in line
    )


@pytest.mark.parametrize("wrong", ["--features none.pkl", "--modalities smell", "--use-trained-GAN none"])
def test_overwrite_keeps_the_earlier_run_when_the_new_one_cannot_begin(refused, sound, earlier_run, wrong):
    refused("--features", sound, "--out", earlier_run, "--overwrite", *wrong.split())


def test_refuses_to_evaluate_what_is_no_run_or_with_flags_of_its_own(refused):
    assert "none/config.json: cannot be read" in refused("--evaluate", "none")
    assert "leave out --lr" in refused("--evaluate", "none", "--lr", "0.1")


def test_refuses_the_directory_of_another_program(refused, tmp_path):
    (tmp_path / "other").mkdir()
    for content in ("[]", "{}", '{"format": "another"}'):
        (tmp_path / "other" / "config.json").write_text(content)
        assert "not of a run" in refused("--evaluate", "other")
        assert "not of a run" in refused("--resume", "other")


OUTS = {"a file": "file", "below a file": "file/run", "deep below a file": "file/a/run", "too long a name": "x" * 300}


@pytest.mark.parametrize("more", [[], ["--seeds", "0,1"]], ids=["one seed", "seeds"])
@pytest.mark.parametrize("out", OUTS.values(), ids=OUTS)
def test_refuses_an_output_directory_that_cannot_be_made(refused, sound, tmp_path, out, more):
    (tmp_path / "file").write_text("in the way")
    assert f"--out {out}: " in refused("--features", sound, "--out", out, *more)


# Legal, if odd --------------------------------------------------------------------------------------------------------


def constant_columns(nine):
    for x in nine[TEXT].values():
        x[:, :3] = 7.5
    nine[ACOUSTIC] = {i: np.full_like(x, -2) for i, x in nine[ACOUSTIC].items()}


def one_utterance(nine):
    for field in range(TRAIN):
        nine[field] = {i: row[:1] for i, row in nine[field].items()}


def one_test_utterance(nine):
    one_utterance(nine)
    nine[TEST] = nine[TEST][:1]


def one_speaker(nine):
    nine[SPEAKERS] = {i: ["F"] * len(row) for i, row in nine[SPEAKERS].items()}


def class_missing_from_train(nine):
    for i in nine[TRAIN]:
        nine[LABELS][i] = [label or 1 for label in nine[LABELS][i]]
    for i in nine[TEST]:
        nine[LABELS][i][0] = 0


def no_visual(nine):
    nine[VISUAL] = {i: x[:, :0] for i, x in nine[VISUAL].items()}


# Each alone; and because pictures take longer than training, those that can be of one file are drawn together.
ALONE = [constant_columns, one_utterance, one_speaker, class_missing_from_train, no_visual]
LEGAL = {
    **{each.__name__: (each,) for each in ALONE},
    "one_test_utterance, drawn": (one_test_utterance,),
    "others, drawn": (constant_columns, one_speaker, class_missing_from_train, no_visual),
}


@pytest.mark.parametrize("kind", LEGAL)
def test_trains_on_what_is_odd_but_legal(command, save, nine, tmp_path, kind):
    for oddity in LEGAL[kind]:
        oddity(nine)
    drawn = "drawn" in kind
    flags = ["--class-weight", "--no-tensorboard", *([] if drawn else ["--no-pictures"]), *BRIEF]
    assert command("--features", save(tuple(nine)), "--out", "run", *flags) == (0, "")
    assert (tmp_path / "run" / "report.html").exists() == drawn

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    labels = np.concatenate([nine[LABELS][i] for i in nine[TEST]])
    assert report["test"]["support"] == np.bincount(labels, minlength=6).tolist()
    assert np.isfinite(report["test"]["loss"])

    table = pd.read_csv(tmp_path / "run" / "predictions.csv")
    assert sorted(table.utterance) == sorted(u for i in nine[TRAIN] + nine[TEST] for u in nine[IDS][i])
    assert np.allclose(table.filter(like="p_").sum(axis=1), 1)

    corpus = json.loads((tmp_path / "run" / "config.json").read_text())["corpus"]
    assert corpus["dims"] == {m: d for m, d in DIMS.items() if m != "visual" or no_visual not in LEGAL[kind]}
    assert corpus["num_speakers"] == (1 if {one_utterance, one_test_utterance, one_speaker} & {*LEGAL[kind]} else 2)


# A loss that is not finite --------------------------------------------------------------------------------------------

TWO = ["--epochs=2", "--GAN-epochs=2", "--batch-size=4", "--fused-channels=16", *BARE]


@pytest.mark.parametrize("stage, number, part", [("adversarial", 1, "fusion"), ("classifier", 2, "network")])
def test_stops_at_a_loss_that_is_not_finite_and_can_go_on(command, sound, tmp_path, monkeypatch, stage, number, part):
    save = Run.save

    def save_and_spoil(run, stage_, epoch, parts):
        save(run, stage_, epoch, parts)
        if (stage_, epoch) == (stage, 1):
            for weight in parts[part].parameters():
                weight.data.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_and_spoil)
        status, error = command("--features", sound, "--out", "run", *TWO)
    assert status == 1 and error.count("\n") == 1
    assert f"epoch 2 of stage {number}, step 1: the loss is nan; the last checkpoint is kept" in error
    assert not (tmp_path / "run" / "report.json").exists()
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert (kept["stage"], kept["epoch"]) == (stage, 1)
    assert command("--resume", "run") == (0, "")  # the checkpoint is a good one


@pytest.mark.parametrize(
    "size, epochs", [(4, 2), (16, 1)], ids=["two steps in each of two epochs", "one step in the only epoch"]
)
@pytest.mark.parametrize("setting, number", [("fusion__lr", 1), ("classifier__lr", 2)])
def test_stops_when_the_learning_rate_is_absurd(command, sound, tmp_path, monkeypatch, setting, number, size, epochs):
    def parse_args(argv):  # no flag takes such a rate
        parsed = flags.parse_args(argv)
        return replace(parsed, settings=parsed.settings.replace(**{setting: 1e30}))

    monkeypatch.setattr(train_IEMOCAP, "parse_args", parse_args)
    more = ["--batch-size", size, "--epochs", epochs]
    status, error = command("--features", sound, "--out", "run", *TWO, *more)
    assert status == 1 and error.count("\n") == 1
    assert f"epoch 1 of stage {number}, step " in error
    assert not (tmp_path / "run" / "report.json").exists()
    checkpoints = tmp_path / "run" / "checkpoints"
    assert not (checkpoints / "best.safetensors").exists()
    assert (checkpoints / "last.pt").exists() == (number == 2)  # nothing is good before the first epoch of stage 1
    if number == 2:
        kept = torch.load(checkpoints / "last.pt", weights_only=True)
        assert (kept["stage"], kept["epoch"]) == ("adversarial", 2)


@pytest.mark.parametrize(
    "good, number, kept", [(3, 1, ("adversarial", 1)), (5, 2, ("classifier", 1))], ids=["stage 1", "stage 2"]
)
def test_keeps_the_last_good_checkpoint_when_the_last_step_of_an_epoch_is_the_bad_one(
    command, sound, tmp_path, monkeypatch, good, number, kept
):
    update, updates = utils.AdamW.step, 0  # one step an epoch: four updates in stage 1, two in stage 2

    def update_and_spoil(optimizer, *args, **kwargs):
        nonlocal updates
        update(optimizer, *args, **kwargs)
        updates += 1
        if updates > good:
            optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    monkeypatch.setattr(utils.AdamW, "step", update_and_spoil)
    status, error = command("--features", sound, "--out", "run", *TWO, "--batch-size", 16)
    assert status == 1 and error.count("\n") == 1 and f"epoch 2 of stage {number}, step 1" in error
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert (last["stage"], last["epoch"]) == kept
