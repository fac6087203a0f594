"""Run directories: what --overwrite may delete, where outputs may go, and those of a stranger or with damage."""

import hashlib
import io
import json
import multiprocessing
import os
import stat
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from run_content import QUICK, content, copy, edit, features_in, main, small_corpus
from safetensors.torch import load_file, save, save_file

from experiment import run_directory
from experiment.run import Run
from experiment.settings import Settings
from feature_files import write_nine_tuple
from files import InputError, WriteError, printable, replacing, spare

BRIEF = [*QUICK, "--epochs", "1", "--GAN-epochs", "0"]  # where all that counts is that it trains


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return features_in(tmp_path_factory.mktemp("features"), dims={"text": 8, "acoustic": 5})


@pytest.fixture(scope="module")
def made(features, tmp_path_factory):
    """A finished run, a stopped one and one of two seeds, to be copied.

    Two modalities and one layer of each kind: a checkpoint of half as many tensors, which many tests read.
    """
    folder = tmp_path_factory.mktemp("runs")
    flags = [*QUICK, "--speaker-layers", "1", "--graph-layers", "1"]
    assert main("--features", features, "--out", folder / "finished", *flags) == 0
    save, stop = Run.save, KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patch:

        def stopping(run, stage, epoch, parts):
            save(run, stage, epoch, parts)
            if stage == "classifier":
                raise stop

        patch.setattr(Run, "save", stopping)
        assert main("--features", features, "--out", folder / "stopped", *flags) == 130
    assert main("--features", features, "--out", folder / "seeds", *flags, "--seeds", "0,1") == 0
    return folder


@pytest.fixture
def run_copy(made, tmp_path):
    return lambda name: copy(made / name, tmp_path / name)


@pytest.fixture
def refused(capsys):
    """Run the script: one line, exit status 2; the line."""

    def refused(*argv):
        capsys.readouterr()
        assert main(*argv) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and "Traceback" not in line
        return line

    return refused


# --overwrite ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", ["{}", '{"model_type": "bert"}', '{"settings": {}, "flags": {}}', "[]", "not JSON", '{"format": 1}']
)
def test_overwrite_leaves_folders_that_are_no_runs(features, tmp_path, refused, config):
    other = tmp_path / "model"
    (other / "weights").mkdir(parents=True)
    (other / "config.json").write_text(config)
    (other / "weights" / "big.bin").write_bytes(b"1")
    (other / ".replaced").mkdir()
    (other / ".replaced" / "theirs").write_text("1")
    before = content(other)
    assert "--overwrite replaces only runs" in refused("--features", features, "--out", other, "--overwrite", *QUICK)
    assert content(other) == before


@pytest.mark.parametrize("stray", ["notes.txt", "thesis.pdf", "checkpoints/mine.bin", "seed7/x", "data/x", "link"])
def test_overwrite_leaves_a_run_that_holds_something_else(features, run_copy, refused, stray):
    directory = run_copy("finished")
    (directory / stray).parent.mkdir(exist_ok=True)
    if stray == "link":
        (directory / stray).symlink_to(features)
    else:
        (directory / stray).write_text("mine")
    before = content(directory)
    line = refused("--features", features, "--out", directory, "--overwrite", *QUICK)
    assert stray.split("/")[0] in line and "is none of a run's" in line
    assert content(directory) == before


@pytest.mark.parametrize("where", ["working directory", "repository", "home", "link"])
def test_overwrite_refuses_places_of_other_things(features, run_copy, refused, tmp_path, monkeypatch, where):
    directory = out = run_copy("finished")
    if where == "working directory":
        monkeypatch.chdir(directory / "checkpoints")
        out = ".."
    elif where == "repository":
        (directory / ".git").mkdir()
    elif where == "home":
        monkeypatch.setenv("HOME", str(directory))
        out = "~"
    else:
        out = tmp_path / "link"
        out.symlink_to(directory)
    before = content(directory)
    assert "--overwrite replaces only runs" in refused("--features", features, "--out", out, "--overwrite", *QUICK)
    assert content(directory) == before


def test_overwrite_keeps_the_old_run_until_the_new_one_has_begun(features, run_copy, monkeypatch):
    directory = run_copy("finished")
    before = content(directory)
    again = ["--features", features, "--out", directory, "--overwrite", *BRIEF, "--seed", "5"]
    with monkeypatch.context() as patch:  # a fault between setting aside and beginning
        patch.setattr("train_IEMOCAP.write_config", lambda *_: (_ for _ in ()).throw(InputError("fault")))
        assert main(*again) == 2
    assert content(directory) == before
    run_directory.set_aside(directory)  # a kill there
    assert main(*again) == 0
    assert not (directory / ".replaced").exists()
    assert content(directory)["config.json"] != before["config.json"]


def test_a_kill_while_replacing_loses_nothing(features, run_copy, refused):
    directory = run_copy("finished")
    before = content(directory)
    run_directory.set_aside(directory)
    assert "exists" in refused("--features", features, "--out", directory, *QUICK)
    assert content(directory) == before


def test_a_run_holds_only_files_that_are_known_as_a_runs(strange):
    """Who adds a file to a run names it in RUN_FILES, or --overwrite will not know the run."""
    assert (strange.directory / "seed0" / "fused_features.png").exists()  # pictures are among them
    assert list(run_directory.foreign(strange.directory)) == []


def test_a_lock_file_of_something_else_is_left(features, tmp_path, refused):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".lock").write_text("theirs")
    assert "none of a run" in refused("--features", features, "--out", tmp_path / "x", *QUICK)
    assert (tmp_path / "x" / ".lock").read_text() == "theirs"


# Outputs over inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["same", "relative", "symbolic link", "hard link"])
def test_fused_features_are_not_written_over_the_features(features, tmp_path, refused, monkeypatch, name):
    mine = tmp_path / "a.pkl"
    mine.write_bytes(features.read_bytes())
    monkeypatch.chdir(tmp_path)
    out = {"same": mine, "relative": "../" + tmp_path.name + "/./a.pkl"}.get(name, tmp_path / "b.pkl")
    if "link" in name:
        (out.symlink_to if "symbolic" in name else out.hardlink_to)(mine)
    line = refused("--features", "a.pkl", "--out", tmp_path / "run", *QUICK, "--export-fused", out)
    assert "would be written over --features" in line
    assert mine.read_bytes() == features.read_bytes() and not (tmp_path / "run").exists()


def test_evaluate_does_not_export_over_its_features(features, run_copy, refused):
    directory, before = run_copy("finished"), features.read_bytes()
    assert "written over" in refused("--evaluate", directory, "--export-fused", features)
    assert features.read_bytes() == before
    for name in ("config.json", "config", "checkpoints/best.safetensors"):  # config.json would be written beside config
        assert "is a file of the run" in refused("--evaluate", directory, "--export-fused", directory / name)


def test_fused_features_do_not_go_into_a_folder_of_features(features, tmp_path):
    from experiment.checks import check_export

    settings = Settings().replace(data__features=str(tmp_path))
    (tmp_path / "deep").mkdir()
    for out in (tmp_path / "x.pkl", tmp_path / "deep" / "x.pkl"):
        with pytest.raises(InputError, match="written over"):
            check_export(settings, small_corpus(), str(out))


@pytest.mark.parametrize("out", ["a pipe", "a folder", "no/such/x.pkl", "x" * 245 + ".pkl", "9" * 5000])
def test_an_export_that_cannot_be_is_refused_before_training(features, tmp_path, refused, out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    os.mkfifo(tmp_path / "a pipe")  # not a device of the machine, which a fault would cost it
    refused("--features", features, "--out", tmp_path / "run", *QUICK, "--export-fused", out)
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "a pipe").is_fifo()


def test_a_device_or_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # not a device of the machine, which a fault would cost it
    with pytest.raises(WriteError), replacing(tmp_path / "pipe") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_laid_for_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / f".x.json.{os.getpid()}.tmp").symlink_to(tmp_path / "victim")
    with replacing(tmp_path / "x.json") as temporary:
        temporary.write_text("ours")
    assert (tmp_path / "victim").read_text() == "theirs" and (tmp_path / "x.json").read_text() == "ours"


# A stranger's or damaged run ------------------------------------------------------------------------------------------


def test_links_in_a_stopped_run_are_refused(run_copy, refused, tmp_path):
    for name in ("checkpoints", "tensorboard"):
        directory = run_copy("stopped")
        victim = tmp_path / f"victims of {name}"
        victim.mkdir()
        for one in ("events.1", "last.pt", ".x.1.tmp"):
            (victim / one).write_text("theirs")
        if (directory / name).exists():
            (directory / name).rename(tmp_path / f"was {name}")
        (directory / name).symlink_to(victim)
        before = content(victim)
        assert "a link" in refused("--resume", directory)
        assert content(victim) == before
        directory.rename(tmp_path / f"done with {name}")


def test_a_seed_of_a_plan_that_is_a_link_is_refused(made, run_copy, refused):
    directory, victim = run_copy("seeds"), run_copy("finished")
    (directory / "seed1").rename(directory.parent / "aside")
    (directory / "seed1").symlink_to(victim)
    before = content(victim)
    assert "a link" in refused("--resume", directory)
    assert content(victim) == before


@pytest.mark.parametrize(
    "seeds", [["/../../x"], ["0/../../x"], [0.5], [True], ["0"], [-1], [0, 0], "01", {"0": 1}, [[]]]
)
def test_seeds_of_config_json_are_numbers(run_copy, refused, tmp_path, seeds):
    directory = run_copy("seeds")
    edit(directory, lambda config: config["plan"].update(seeds=seeds))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert "plan" in refused("--resume", directory)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_what_config_json_says_of_an_export_is_not_carried_out(run_copy, tmp_path, capsys):
    directory = run_copy("stopped")
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    edit(directory, {"export_fused": str(victim), "plan": {"export_fused": str(victim)}})
    assert main("--resume", directory) == 0
    assert victim.read_text() == "theirs"


def test_a_config_that_names_no_features_is_said_in_a_line(run_copy, refused):
    directory = run_copy("finished")
    edit(directory, lambda config: config["settings"].update(data={}))
    assert "config.json: data.features: names no file; say which with --features" in refused("--evaluate", directory)


@pytest.mark.parametrize("how", ["other seed", "other epochs", "other data", "no config"])
def test_a_seed_that_another_command_filled_is_not_counted(made, run_copy, refused, tmp_path, how):
    directory = run_copy("seeds")
    seed = directory / "seed1"
    if how == "other seed":
        edit(seed, lambda config: config["settings"]["run"].update(seed=7))
    elif how == "other epochs":
        edit(seed, lambda config: config["settings"]["classifier"].update(epochs=1))
    elif how == "other data":
        edit(seed, lambda config: config["features"].update(sha256="0" * 64))
    else:
        (seed / "config.json").unlink()
    line = refused("--resume", directory)
    assert "seed1" in line and ("another" in line or "other data" in line or "cannot be read" in line)


def test_what_a_run_may_change_when_it_goes_on_does_not_count(run_copy, capsys):
    directory = run_copy("seeds")
    edit(directory / "seed1", lambda config: config["settings"]["run"].update(checkpoint_every=3, pictures=True))
    assert main("--resume", directory) == 0


def test_a_finished_seed_without_its_text_still_counts(run_copy, capsys):
    directory = run_copy("seeds")
    (directory / "seed0" / "report.txt").unlink()
    assert main("--resume", directory) == 0
    assert "report.json has on test: weighted_f1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "report",
    [
        *("[]", "{}", '{"test": 3}', '"x"', "1", "{", "[" * 100_000, '{"test": []}'),
        '{"test": {"weighted_f1": NaN, "macro_f1": 1, "accuracy": 1, "loss": 1}}',
        '{"test": {"weighted_f1": "high", "macro_f1": 1, "accuracy": 1, "loss": 1}}',
        '{"test": {"weighted_f1": 1e999, "macro_f1": true, "accuracy": 1, "loss": 1}, "valid": 1}',
    ],
)
def test_reports_with_no_figures_are_said_in_a_line(run_copy, refused, report):
    directory = run_copy("seeds")
    (directory / "seed1" / "report.json").write_text(report)
    assert "report.json" in refused("--resume", directory)


@pytest.mark.parametrize(
    "change",
    [
        *({"per_class": x} for x in (3, [1], {"x": 1}, {"happy": {"f1": "x"}}, {"happy": {}}, {"x" * 1001: {"f1": 1}})),
        *({"chosen_on_test": x} for x in (3, {"weighted_f1": "x"})),
    ],
    ids=range(8),
)
def test_figures_of_a_report_that_are_none_are_said_in_a_line(run_copy, refused, change):
    path = run_copy("seeds") / "seed1" / "report.json"
    report = json.loads(path.read_text())
    (report["test"] if "per_class" in change else report).update(change)
    path.write_text(json.dumps(report))
    assert next(iter(change)) in refused("--resume", path.parent.parent)


MISREAD = {
    "no dialogue": lambda t: t.drop(columns="dialogue"),
    "no utterance": lambda t: t.drop(columns="utterance"),
    "no rows": lambda t: t.iloc[:0],
    "no labels": lambda t: t.assign(label=np.nan),
    "a class there is not": lambda t: t.assign(label=99),
    "no probabilities": lambda t: t[[c for c in t if not c.startswith("p_")]],
    "one class": lambda t: t.drop(columns=[c for c in t if c.startswith("p_")][1:]),
}


@pytest.mark.parametrize("what", MISREAD)
def test_seeds_whose_predictions_are_no_table_are_summarised_without_an_ensemble(run_copy, what):
    directory = run_copy("seeds")
    for seed in ("seed0", "seed1"):
        path = directory / seed / "predictions.csv"
        MISREAD[what](pd.read_csv(path)).to_csv(path, index=False)
    assert main("--resume", directory) == 0
    summary = json.loads((directory / "summary.json").read_text())
    assert "mean" in summary and "ensemble" not in summary


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "endless"])
def test_a_config_that_is_no_file_is_refused(run_copy, refused, kind):
    directory = run_copy("finished")
    path = directory / "config.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as stream:
            stream.truncate(10**12)
    for flag in ("--resume", "--evaluate", "--config"):
        refused(flag, path if flag == "--config" else directory, *(["--demo"] if flag == "--config" else []))


def test_splits_of_config_json_must_be_of_the_data(run_copy, refused):
    directory = run_copy("finished")
    edit(directory, lambda config: config["splits"].update(test=["Ses99"]))
    assert "no dialogue 'Ses99'" in refused("--evaluate", directory)
    edit(directory, lambda config: config["splits"].update(test=[]))
    assert "no test dialogues" in refused("--evaluate", directory)


def test_a_fold_that_there_is_not_is_refused(run_copy, refused):
    directory = run_copy("finished")
    edit(directory, lambda config: config["settings"]["data"].update(fold=[2, "all", "9of2"]))
    assert "no fold 9of2" in refused("--evaluate", directory)


# Checkpoints and weights ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state(made):
    """The content of the stopped run's checkpoint, not to be changed."""
    content = (made / "stopped" / "checkpoints" / "last.pt").read_bytes()
    return torch.load(io.BytesIO(content[:-32]), weights_only=True)


def write_checkpoint(path, state):
    """Write a checkpoint as a stranger would: with a checksum that is right."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())


def set_in(*keys):
    """A function that gives the same content but for the value at those keys."""
    key, *more, value = keys

    def changed(content):
        content = content.copy()
        content[key] = set_in(*more, value)(content[key]) if more else value
        return content

    return changed


CHECKPOINTS = [
    set_in("epoch", -1),
    set_in("epoch", 10**6),
    set_in("epoch", 1.5),
    set_in("epoch", "1"),
    set_in("stage", "other"),
    set_in("stage", ["classifier"]),
    set_in("history", []),
    set_in("history", "classifier", [1]),
    set_in("history", "classifier", [{}]),
    set_in("history", "classifier", 0, "seconds", "x"),
    set_in("history", "classifier", 0, "train_loss", float("nan")),
    set_in("history", "adversarial", None),
    set_in("parts", {}),
    set_in("parts", "network", {}),
    set_in("parts", "optimizer", "param_groups", 0, "lr", "x"),
    set_in("parts", "optimizer", "param_groups", 0, "betas", (0.9,)),
    set_in("parts", "optimizer", "param_groups", []),
    set_in("parts", "optimizer", "state", 0, "exp_avg", torch.zeros(3, 3)),
    set_in("parts", "optimizer", "state", 0, {}),
    set_in("parts", "optimizer", "state", "x", {}),
    set_in("parts", "schedule", "total_steps", "x"),
    set_in("parts", "schedule", "total_steps", 1),
    set_in("parts", "schedule", "step", 3),
    set_in("parts", "shuffle", torch.zeros(3)),
    set_in("random", "cpu", torch.zeros(5, dtype=torch.uint8)),
    set_in("random", "python", (3, (2**70,) * 625, None)),
    set_in("random", "numpy", ("MT19937", [1, 2], 1, 0, 0.0)),
    set_in("random", "cuda", 5),
    set_in("best", {"x": torch.zeros(1)}),
    set_in("best", "x", 5),
    set_in("best", 5),
]


@pytest.mark.parametrize("change", CHECKPOINTS, ids=range(len(CHECKPOINTS)))
def test_a_checkpoint_of_a_stranger_is_refused_in_a_line(run_copy, refused, state, change):
    directory = run_copy("stopped")
    (directory / "checkpoints" / "previous.pt").unlink(missing_ok=True)
    write_checkpoint(directory / "checkpoints" / "last.pt", change(state))
    refused("--resume", directory)


def test_a_checkpoint_that_is_written_as_it_was_goes_on(run_copy, state):
    """Or the ones above might be refused for how they are written."""
    directory = run_copy("stopped")
    (directory / "checkpoints" / "previous.pt").unlink(missing_ok=True)
    write_checkpoint(directory / "checkpoints" / "last.pt", state)
    assert main("--resume", directory) == 0


def test_a_compressed_checkpoint_is_not_unpacked(run_copy, refused):
    import zipfile

    directory = run_copy("stopped")
    (directory / "checkpoints" / "previous.pt").unlink(missing_ok=True)
    last, packed = directory / "checkpoints" / "last.pt", io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(last.read_bytes()[:-32])) as old, zipfile.ZipFile(packed, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member), zipfile.ZIP_DEFLATED)
    last.write_bytes(packed.getvalue() + hashlib.sha256(packed.getvalue()).digest())
    assert "damaged" in refused("--resume", directory)


@pytest.mark.parametrize("name", ["best", "fusion", "standardiser", "last"])
def test_a_file_larger_than_its_network_is_not_read(features, run_copy, refused, tmp_path, monkeypatch, name):
    directory = run_copy("stopped" if name == "last" else "finished")
    (directory / "checkpoints" / "previous.pt").unlink(missing_ok=True)
    path = directory / "checkpoints" / (f"{name}.safetensors" if name != "last" else "last.pt")
    with path.open("wb") as stream:
        stream.truncate(3 * 10**8)
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda one: pytest.fail("read") if one == path else read(one))
    if name == "last":
        assert "damaged" in refused("--resume", directory)
    elif name == "fusion":
        line = refused("--features", features, "--out", tmp_path / "new", *QUICK, "--use-trained-GAN", directory)
        assert "another network" in line
    else:
        assert path.name in refused("--evaluate", directory)


def header(text):
    return len(text).to_bytes(8, "little") + text


WEIGHTS = {
    "of another shape": lambda t: save({name: torch.zeros(3) for name in t}),
    "of other names": lambda t: save({f"{name}x": x for name, x in t.items()}),
    "none": lambda t: save({}),
    "infinite": lambda t: save({name: x * torch.inf for name, x in t.items()}),
    "empty": lambda t: b"",
    "huge header": lambda t: (2**62).to_bytes(8, "little"),
    "header of 100 MB": lambda t: header(b" " * 100_000_001),
    "header that nests": lambda t: header(b"[" * 100_000),
    "tensor beyond the file": lambda t: header(b'{"x":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,9]}}'),
    "shape that overflows": lambda t: header(
        b'{"x":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}'
    ),
    "integers": lambda t: save({name: torch.zeros(x.shape, dtype=torch.int8) for name, x in t.items()}),
    "complex": lambda t: save({name: torch.zeros(x.shape, dtype=torch.complex64) for name, x in t.items()}),
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", ["best", "standardiser", "fusion"])
def test_weights_of_a_stranger_end_in_a_line(run_copy, tmp_path, capsys, kind, name):
    directory = run_copy("finished")
    path = directory / "checkpoints" / f"{name}.safetensors"
    path.write_bytes(WEIGHTS[kind](load_file(path)))
    export = ["--export-fused", tmp_path / "fused.pkl"] if name == "fusion" else []
    status = main("--evaluate", directory, *export)
    line = capsys.readouterr().err
    assert status == 2 and line.count("\n") == 1 and path.name in line


@pytest.mark.parametrize("change", [("scale", 0.0), ("scale", np.nan), ("mean", np.inf), ("scale", -1.0)])
def test_a_standardiser_that_cannot_be_is_refused(run_copy, refused, change):
    directory = run_copy("finished")
    path = directory / "checkpoints" / "standardiser.safetensors"
    tensors = load_file(path)
    tensors[f"text.{change[0]}"][0] = change[1]
    save_file(tensors, path)
    assert "no means and scales" in refused("--evaluate", directory)


def test_weights_have_the_mode_that_umask_gives_and_a_kill_leaves_only_what_is_swept(made, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()

    def work():
        os.umask(0o027)
        run_directory.save_tensors(folder / "whole.safetensors", {"x": torch.zeros(3)})
        os.fsync = lambda _: os.kill(os.getpid(), 9)
        run_directory.save_tensors(folder / "killed.safetensors", {"x": torch.zeros(1000)})

    done = multiprocessing.get_context("fork").Process(target=work)
    done.start()
    done.join()
    assert done.exitcode == -9
    assert stat.S_IMODE((folder / "whole.safetensors").stat().st_mode) == 0o640
    assert len(list(folder.iterdir())) == 2  # the whole one, and what the kill left
    run_directory.sweep(tmp_path)
    assert [p.name for p in folder.iterdir()] == ["whole.safetensors"]


# Text from files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "\x07", "\u202e", "\ud800", "\u2028", "\x00", "\x9b1m", "\u2066"])
def test_text_is_made_safe_to_show(text):
    shown = printable(f"x{text}y", 40)
    assert shown.isprintable() and shown.startswith("x") and shown.endswith("y")
    shown.encode()


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """A run with all that a run leaves, of data whose names are to do harm; its directory, corpus and what it said."""
    names = ("\x1b[2J\x1b]0;x\x07", "a\rb\nLoss 0.0", "\u202ercs", r"$\frac{1}{$", "$a$", "z" * 500)
    corpus = small_corpus()
    ids = dict(zip(corpus.dialogues, ["a\r=1+1", "b\n=1", "\x1b[31m"], strict=False))
    corpus = replace(
        corpus,
        label_names=names,
        dialogues={ids.get(i, i): replace(d, id=ids.get(i, i)) for i, d in corpus.dialogues.items()},
        splits={split: tuple(ids.get(i, i) for i in each) for split, each in corpus.splits.items()},
    )
    directory, out, err = tmp_path_factory.mktemp("strange") / "run", io.StringIO(), io.StringIO()
    flags = ["--epochs", "1", "--GAN-epochs", "1", "--fused-channels", "16", "--device", "cpu", "--valid", "0.2"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("train_IEMOCAP.load_corpus", lambda *_, **__: corpus)
        assert main("--features", "x.pkl", "--out", directory, *flags, "--seeds", "0") == 0
    return SimpleNamespace(directory=directory, corpus=corpus, out=out.getvalue(), err=err.getvalue())


def test_names_are_safe_in_terminal_report_and_table(strange):
    run = strange.directory / "seed0"
    assert "a\\rb" in strange.out
    for text in (strange.out, strange.err, (run / "report.txt").read_text()):
        assert printable(text.replace("\n", " "), None) == text.replace("\n", " ")
        assert "\nLoss 0.0\n" not in text
    lines = (run / "predictions.csv").read_bytes().splitlines()
    assert len(lines) == 1 + sum(map(len, strange.corpus.dialogues.values()))
    assert not any(cell.startswith(b"=") for line in lines for cell in line.split(b","))
    assert "a\\r=1+1" in set(pd.read_csv(run / "predictions.csv")["dialogue"])


def test_a_run_in_a_folder_named_with_a_tilde_stays_there(features, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    assert main("--features", features, "--out", "~/run", *BRIEF) == 0
    assert main("--features", features, "--out", "./~/run", *BRIEF) == 0
    for run in (home / "run", tmp_path / "~" / "run"):
        assert (run / "history.csv").exists() and (run / "config.json").exists()
    assert [p.name for p in home.iterdir()] == ["run"]


# Many classes and speakers --------------------------------------------------------------------------------------------


def crowd(speakers):
    corpus = small_corpus()
    dialogues = {
        i: replace(d, speakers=tuple(f"s{k % speakers}" for k in range(len(d)))) for i, d in corpus.dialogues.items()
    }
    return replace(corpus, dialogues=dialogues)


def test_speakers_beyond_the_sixteenth_count_as_one(tmp_path, capsys):
    from experiment.trained import build_network, shape_of

    corpus = crowd(60)
    first = next(iter(corpus.dialogues.values()))
    long = replace(
        first,
        features={m: np.resize(x, (90, x.shape[1])) for m, x in first.features.items()},
        labels=np.resize(first.labels, 90),
        speakers=tuple(f"s{k % 60}" for k in range(90)),
        sentences=("",) * 90,
        utterances=tuple(f"u{k}" for k in range(90)),
    )
    corpus = replace(corpus, dialogues={**corpus.dialogues, long.id: long})
    assert corpus.most_speakers == 60 and corpus.num_speakers == 16
    assert long.speaker_index.tolist()[:60] == [*range(15), *[15] * 45]
    settings = Settings()
    network = build_network(shape_of(corpus), settings.fusion, settings.classifier)
    assert sum(p.numel() for p in network.parameters()) * 4 < 300e6  # 3.8 GB for 60
    write_nine_tuple(corpus, tmp_path / "x.pkl")
    assert main("--features", tmp_path / "x.pkl", "--out", tmp_path / "run", *BRIEF) == 0
    assert "up to 60 speakers in a dialogue: those from the 16th on count as one" in capsys.readouterr().out


@pytest.mark.parametrize("speakers", [2, 9, 16])
def test_as_many_speakers_as_corpora_have_are_told_apart(speakers):
    corpus = crowd(speakers)
    longest = max(corpus.dialogues.values(), key=len)
    count = min(speakers, len(longest))
    assert set(longest.speaker_index) == set(range(count)) and corpus.num_speakers == count


def test_a_network_that_no_machine_holds_is_refused_before_it_is_built(features, tmp_path, refused):
    huge = ["--fused-channels", "16384", "--graph-layers", "100"]
    line = refused("--features", features, "--out", tmp_path / "run", "--device", "cpu", *huge)
    assert "parameters take" in line and "--fused-channels" in line
    assert not (tmp_path / "run").exists()


def test_windows_longer_than_any_dialogue_cost_nothing_and_change_nothing():
    from model import dialogue_edges

    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, 20:] = False
    speakers = torch.arange(60).view(2, 30) % 3
    for one, two in zip(
        dialogue_edges(mask, speakers, 29, 29, 3), dialogue_edges(mask, speakers, 10**10, 10**10, 3), strict=True
    ):
        assert torch.equal(one, two)


def test_config_json_of_a_run_is_what_is_written(made):
    config = json.loads((made / "finished" / "config.json").read_text())
    assert run_directory.ill_formed(config) is None and "export_fused" not in json.dumps(config)


def test_what_a_macs_finder_leaves_is_in_nobodys_way(run_copy, tmp_path):
    directory = run_copy("finished")
    for folder in (tmp_path / "new", directory, directory / "checkpoints"):
        folder.mkdir(exist_ok=True)
        (folder / ".DS_Store").write_bytes(b"Bud1")
    assert run_directory.unused(tmp_path / "new")
    run_directory.check_replaceable(directory)


def test_a_folder_that_is_named_in_another_case_is_the_same_folder(tmp_path, monkeypatch):
    """On a Mac; a link stands for the other name here, and is not looked through."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").touch()
    (tmp_path / "DATA").symlink_to("data")
    monkeypatch.setattr(Path, "resolve", Path.absolute)
    with pytest.raises(InputError, match="would be lost"):
        spare([tmp_path / "data"], tmp_path / "DATA" / "x")
    spare([tmp_path / "other"], tmp_path / "DATA" / "x")
