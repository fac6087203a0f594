"""Runs that others build on: resumed on other machines, scored on other data, their stage 1 taken over."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from safetensors.torch import load_file, save_file
from small import SHORT, corpus, features, moved, same, small_corpus, train, weights, write

import train_IEMOCAP
from dataloader import Standardiser
from experiment.run import Run
from experiment.settings import FusionSettings
from experiment.trained import load_standardiser, source_of_stage_1
from feature_files import read

__all__ = ["corpus", "features"]  # fixtures


@pytest.fixture(scope="module")
def finished(features, tmp_path_factory):
    """A finished run, to look at but not to change."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    return train(directory, "--features", features, *SHORT, "--valid", "0.2")


def resplit(corpus, train=(), test=(), name=lambda i: i):
    """The corpus with other splits, and other names of its dialogues."""
    dialogues = {name(i): replace(corpus.dialogues[i], id=name(i)) for i in [*train, *test]}
    splits = {"train": tuple(map(name, train)), "test": tuple(map(name, test))}
    return replace(corpus, dialogues=dialogues, splits=splits)


def refusal(capsys, *argv):
    capsys.readouterr()
    assert train_IEMOCAP.main([str(a) for a in argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


# Resume on another machine --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(features, tmp_path_factory):
    """The same run stopped in stage 2, to be copied."""
    save = Run.save

    def save_then_stop(run, stage, epoch, parts):
        save(run, stage, epoch, parts)
        run.stop_requested = (stage, epoch) == ("classifier", 1)

    directory = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", save_then_stop)
        return train(directory, "--features", features, *SHORT, "--valid", "0.2", status=130)


@pytest.mark.parametrize("gpus, said", [(2, "2 GPUs"), (0, None)])
def test_a_run_goes_on_where_there_are_other_gpus(gpus, said, stopped, finished, tmp_path, capsys):
    run = shutil.copytree(stopped, tmp_path / "run")
    last = run / "checkpoints" / "last.pt"
    state = torch.load(io.BytesIO(last.read_bytes()[:-32]), weights_only=True)
    state["random"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * gpus
    buffer = io.BytesIO()
    torch.save(state, buffer)
    last.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    capsys.readouterr()
    assert train_IEMOCAP.main(["--resume", str(run)]) == 0
    error = capsys.readouterr().err
    if said:
        assert error.count("\n") == 1 and f"begun with {said}, goes on with none; the bits may differ" in error
    else:
        assert not error
    assert same(weights(run), weights(finished))


# Stage 1 of an earlier run --------------------------------------------------------------------------------------------


def test_stage_1_that_has_seen_held_out_dialogues_is_refused(corpus, finished, tmp_path, capsys):
    seen, unseen = (corpus.splits[split] for split in ("train", "test"))
    path = write(resplit(corpus, train=[*seen[2:], *unseen], test=seen[:2]), tmp_path / "swapped.pkl")
    trained_on = json.loads((finished / "config.json").read_text())["splits"]["train"]
    leaked = [i for i in seen[:2] if i in trained_on]
    out = tmp_path / "run"
    error = refusal(capsys, "--features", path, "--out", out, *SHORT, "--use-trained-GAN", finished)
    assert f"was trained on {len(leaked)} of this run's held-out dialogues, such as '{leaked[0]}'" in error
    assert leaked and not out.exists()


def test_stage_1_of_a_run_that_heard_whole_dialogues_is_no_causal_one(features, finished, tmp_path, capsys):
    run = ["--features", features, "--out", tmp_path / "run", *SHORT, "--use-trained-GAN", finished, "--causal"]
    assert "was trained without --causal" in refusal(capsys, *run)
    assert not (tmp_path / "run").exists()


HELD_OUT = {
    "folds": ["--folds", "2"],
    "validation": ["--valid", "0.5", "--seed", "3"],
    "validation of another seed": ["--valid", "0.2", "--seeds", "0,3"],
}


@pytest.mark.parametrize("flags", HELD_OUT.values(), ids=HELD_OUT)
def test_stage_1_that_has_seen_a_fold_or_validation_is_refused(flags, features, finished, tmp_path, capsys):
    run = ["--features", features, "--out", tmp_path / "run", *SHORT, "--use-trained-GAN", finished, *flags]
    assert "held-out dialogues" in refusal(capsys, *run)
    assert not (tmp_path / "run").exists()


def test_stage_1_that_has_seen_them_in_the_run_before_is_refused_too(corpus, finished, tmp_path, capsys):
    """A run of other dialogues that took its stage 1 hands on what that has learnt from."""
    seen, unseen = (corpus.splits[split] for split in ("train", "test"))
    between = write(resplit(corpus, train=unseen[:1], test=unseen[1:]), tmp_path / "between.pkl")
    later = train(tmp_path / "later", "--features", between, *SHORT, "--use-trained-GAN", finished)
    path = write(resplit(corpus, train=unseen, test=seen), tmp_path / "swapped.pkl")
    run = ["--features", path, "--out", tmp_path / "run", *SHORT, "--use-trained-GAN", later]
    assert "of this run's held-out dialogues" in refusal(capsys, *run)


def test_stage_1_of_an_earlier_run_brings_its_standardisation(corpus, finished, tmp_path):
    learnt_on = json.loads((finished / "config.json").read_text())["splits"]["train"]
    path = write(resplit(corpus, train=learnt_on[:4], test=corpus.splits["test"]), tmp_path / "fewer.pkl")
    run = train(tmp_path / "run", "--features", path, *SHORT, "--use-trained-GAN", finished)
    taken, theirs = load_standardiser(run), load_standardiser(finished)
    own = Standardiser.fit(read(path).split("train"))
    for m in corpus.dims:
        assert np.array_equal(taken.mean[m], theirs.mean[m]) and np.array_equal(taken.scale[m], theirs.scale[m])
        assert not np.allclose(own.mean[m], theirs.mean[m])
    assert same(weights(run, "fusion"), weights(finished, "fusion"))
    again = train(tmp_path / "again", "--evaluate", run, "--no-pictures")
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    further = ["--features", path, *SHORT, "--use-trained-GAN", finished, "--continue-train-GAN-step", "1"]
    assert moved(weights(train(tmp_path / "further", *further), "fusion"), weights(finished, "fusion"))


# Scored again ---------------------------------------------------------------------------------------------------------


def scored(directory):
    table = pd.read_csv(directory / "predictions.csv")
    return table[table["split"] == "test"].reset_index(drop=True)


def test_a_file_with_a_test_split_alone_is_scored(corpus, finished, tmp_path):
    path = write(resplit(corpus, test=corpus.splits["test"]), tmp_path / "test.pkl")
    out = train(tmp_path / "out", "--evaluate", finished, "--features", path, "--no-pictures")
    assert scored(out).equals(scored(finished))
    assert set(pd.read_csv(out / "predictions.csv")["split"]) == {"test"}
    first, again = (json.loads((d / "report.json").read_text()) for d in (finished, out))
    assert again["test"] == first["test"] and again["valid"] is None


def test_training_dialogues_in_another_file_are_scored_with_a_warning(corpus, finished, tmp_path, capsys, monkeypatch):
    # What is in a picture does not matter here, and to draw it takes most of the time.
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda canvas, where: where.write_bytes(b"drawn"))
    known = json.loads((finished / "config.json").read_text())["splits"]["train"]
    path = write(resplit(corpus, test=[*known[:2], *corpus.splits["test"]]), tmp_path / "other.pkl")
    capsys.readouterr()
    out = train(tmp_path / "out", "--evaluate", finished, "--features", path)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "2 test dialogues" in error and "these scores are too good" in error
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "other.pkl" in page  # it names the data, and lacks nothing


def test_dialogues_of_other_names_are_scored_by_a_run_with_validation(corpus, finished, tmp_path, capsys):
    """None of them is in the run's splits; a file whose ids are not IEMOCAP's numbers its classes only."""
    renamed = resplit(corpus, corpus.splits["train"], corpus.splits["test"], name="other {}".format)
    path = write(renamed, tmp_path / "renamed.pkl")
    other = ["--evaluate", finished, "--features", path, "--no-pictures"]
    assert "'class 0' (the run has 'happy')" in refusal(capsys, *other)
    out = train(tmp_path / "out", *other, "--label-names", ",".join(corpus.label_names))
    there, here = scored(finished), scored(out)
    assert (here["dialogue"] == "other " + there["dialogue"]).all()
    assert here.drop(columns="dialogue").equals(there.drop(columns="dialogue"))
    assert set(pd.read_csv(out / "predictions.csv")["split"]) == {"train", "test"}


def test_other_classes_are_named_and_another_number_of_them_is_said(features, finished, tmp_path, capsys):
    names = "happy,sad,neutral,angry,excited,frustrated".replace("sad", "sorry").replace("angry", "cross")
    error = refusal(capsys, "--evaluate", finished, "--features", features, "--label-names", names)
    assert "'sorry' (the run has 'sad'), 'cross' (the run has 'angry')" in error and "--label-names" in error
    assert "'happy'" not in error
    fewer = small_corpus()
    dialogues = {i: replace(d, labels=d.labels % 4) for i, d in fewer.dialogues.items()}
    path = write(replace(fewer, dialogues=dialogues, label_names=tuple("abcd")), tmp_path / "four.pkl")
    error = refusal(capsys, "--evaluate", finished, "--features", path, "--label-names", "a,b,c,d")
    assert "4 classes, but the run" in error and "was trained on 6" in error


def test_a_run_that_says_its_classes_scores_a_file_that_numbers_them(features, tmp_path):
    names = "a,b,c,d,e,f"
    run = train(tmp_path / "run", "--features", features, *SHORT, "--label-names", names)
    out = train(tmp_path / "out", "--evaluate", run, "--no-pictures")
    assert list(json.loads((out / "report.json").read_text())["test"]["per_class"]) == names.split(",")


def test_weights_of_another_version_name_the_commit_they_are_of(finished, tmp_path, capsys):
    older = tmp_path / "older"
    shutil.copytree(finished, older)
    config = json.loads((older / "config.json").read_text())
    (older / "config.json").write_text(json.dumps({**config, "git_commit": "0123456789abcdef"}))
    kept = older / "checkpoints" / "best.safetensors"
    save_file({f"earlier.{name}": x for name, x in load_file(kept).items()}, kept)
    assert "and its version: commit 0123456789abcdef" in refusal(capsys, "--evaluate", older)


# An earlier run that is gone ------------------------------------------------------------------------------------------


def as_if_stage_1_were_of_another(directory, to, **fusion):
    """A copy of a run, unfinished, that had its stage 1 from a run which has been deleted since."""
    shutil.copytree(directory, to)
    (to / "report.json").unlink(missing_ok=True)
    config = json.loads((to / "config.json").read_text())
    config["settings"]["fusion"] |= {"trained_run": "gone", **fusion}
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_a_run_that_has_its_stage_1_goes_on_without_the_earlier_run(finished, stopped, tmp_path):
    taken = as_if_stage_1_were_of_another(finished, tmp_path / "taken")  # no checkpoint of stage 2 yet
    assert train_IEMOCAP.main(["--resume", str(taken)]) == 0
    assert same(weights(taken), weights(finished))
    further = FusionSettings(trained_run="gone", more_epochs=2)  # a state to go on from has all of it
    assert source_of_stage_1(further, stopped) == stopped and source_of_stage_1(further, taken) == Path("gone")


def test_a_run_that_needs_the_earlier_run_says_so(finished, stopped, tmp_path, capsys):
    taken = as_if_stage_1_were_of_another(finished, tmp_path / "taken")
    (taken / "checkpoints" / "fusion.safetensors").unlink()
    further = as_if_stage_1_were_of_another(stopped, tmp_path / "further", more_epochs=2)
    for path in further.glob("checkpoints/*.pt"):
        path.unlink()
    for run in (taken, further):
        assert "stage 1 comes from gone (--use-trained-GAN), which is not there" in refusal(capsys, "--resume", run)
