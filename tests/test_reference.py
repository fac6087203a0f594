"""The reference's method as a benchmark: whom an update moves, what padding does, and what is extrapolated."""

import json

import numpy as np
import pytest
import reference
import torch
from small import copied, moved, same, small_corpus, write
from torch import nn

from dataloader import collate
from experiment.run import Run
from experiment.settings import Settings

CPU = Settings().replace(run__device="cpu")


@pytest.fixture(scope="module")
def corpus():
    return small_corpus(train=4)


@pytest.fixture(scope="module")
def dialogues(corpus):
    return sorted(corpus.dialogues.values(), key=len)


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    monkeypatch.setattr(reference, "LAYERS", 2)


def build(corpus, padding=False):
    torch.manual_seed(0)
    return reference.Reference(corpus, padding)


@torch.no_grad()
def test_padding_changes_nothing_unless_the_defect_is_asked_for(corpus, dialogues):
    for padding in (False, True):
        network = build(corpus, padding).eval()
        alone, beside = network(collate(dialogues[:1])), network(collate([dialogues[0], dialogues[-1]]))
        assert torch.allclose(alone[0], beside[0, : alone.shape[1]], atol=1e-5) != padding


def test_an_update_moves_the_generator_and_the_discriminator_of_the_pair_alone(corpus, dialogues):
    network = build(corpus)
    discriminators = nn.ModuleDict({k: reference.Discriminator(d) for k, d in corpus.dims.items()})
    both = nn.ModuleDict({"G": network, "D": discriminators})
    each = {x: torch.optim.SGD(x.parameters(), 0.1) for x in [*network.generators.values(), *discriminators.values()]}
    before = copied(both)
    losses = reference.adversarial_update(
        network, discriminators, each, collate(dialogues[:2]), ("text", "visual"), "here"
    )
    prefixes = {".".join(name.split(".")[: 3 if name.startswith("G") else 2]) for name in moved(before, copied(both))}
    assert prefixes == {"G.generators.text", "D.visual"}
    assert losses == pytest.approx([np.log(2)] * 2, abs=0.2)  # before anything is learnt nobody can tell


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", tensorboard=False)


def stage_1(corpus, bounds, run):
    """Stage 1 on the training dialogues."""
    discriminators = nn.ModuleDict({k: reference.Discriminator(d) for k, d in corpus.dims.items()})
    reference.stage_1(build(corpus), discriminators, corpus.split("train"), bounds, CPU, run)


def test_every_ordered_pair_has_its_update_in_every_batch(corpus, run, monkeypatch):
    pairs = []
    monkeypatch.setattr(reference, "adversarial_update", lambda *args: pairs.append(args[4]) or (0.0, 0.0))
    stage_1(corpus, reference.Bounds(stage_1=1), run)
    assert len(pairs) == len(set(pairs)) == 6


def test_the_epoch_is_the_last_one_or_with_the_defect_that_of_the_lowest_loss_on_test(corpus, tmp_path, monkeypatch):
    said = iter([0.9, 0.6, 0.2])
    right = np.eye(corpus.num_classes)

    def evaluate(network, dialogues):
        labels = np.array([0, 1])
        sure = next(said)
        return labels, np.stack([right[0] * sure + (1 - sure) / 6, right[0 if sure > 0.5 else 1] * 0.1 + 0.15])

    monkeypatch.setattr(reference, "evaluate", evaluate)
    data = {split: corpus.split(split) for split in corpus.splits}
    for epochs, on_test_loss, f1 in ((3, True, 100 / 3), (1, False, 100)):
        run = Run(tmp_path / str(epochs), tensorboard=False)
        reference.stage_2(build(corpus), data, reference.Bounds(stage_2=epochs), CPU, on_test_loss, run)
        assert reference.weighted_f1(run.history["classifier"]) == pytest.approx(f1)
        said = iter([0.2])


def test_a_job_cut_short_is_extrapolated_and_says_so():
    cut = reference.Result(50.0, 7, {"stage 1": [9.0, 2.0, 2.0], "stage 2": [1.0]})
    assert cut.cut_short and cut.whole() == 150 * 2 + 160
    text = reference.report([(60.0, 5, 46.0)], [cut])
    assert "10 times faster to a report, +10.00 points" in text and "460 (extrapolated)" in text
    whole = reference.Result(50.0, 7, {"stage 1": [], "stage 2": [1.0] * 160})
    assert not whole.cut_short and whole.whole() == 160
    assert "extrapolated" not in reference.report([(60.0, 5, 46.0)], [whole])


def test_an_epoch_cut_short_counts_in_proportion(corpus, run, monkeypatch):
    monkeypatch.setattr(reference, "BATCH_SIZE", 1)
    monkeypatch.setattr(reference, "adversarial_update", lambda *args: (0.0, 0.0))
    ticks = iter(range(100))
    monkeypatch.setattr(reference, "clock", lambda: next(ticks))
    bounds = reference.Bounds(stage_1=2, batches=1)
    stage_1(corpus, bounds, run)
    assert [row["seconds"] for row in run.history["adversarial"]] == [4, 4]
    assert reference.Result(50.0, 7, {"stage 1": [4.0] * 150, "stage 2": [1.0] * 160}, 1).cut_short


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The script's exit status, on a small file."""
    features = write(small_corpus(train=4), tmp_path / "f.pkl")
    monkeypatch.setattr(reference, "run_default", lambda corpus, settings: (60.0, 5, 10.0))
    return lambda *argv: reference.main(["--features", str(features), "--device", "cpu", *argv])


def test_both_are_run_on_the_same_corpus_and_shown(command, tmp_path, capsys):
    job = ["--out", str(tmp_path / "job"), "--epochs", "1", "--batches", "9"]
    assert command(*job, "--defects", "padding,min-max,test-loss") == 0
    said = capsys.readouterr().out
    assert "1 of 150" in said and "1 of 160" in said and "cut short" in said
    assert command(*job) == 2  # without the defects
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "job.json: of other data, defects, bounds, device or clock" in error
    for other in ("--cpu-seconds", "--modalities=text,visual"):
        assert command(*job, "--defects", "padding,min-max,test-loss", other) == 2
        assert "device or clock; choose another --out" in capsys.readouterr().err
    kept = tmp_path / "job" / "seed0" / "job.json"
    asked = json.loads(kept.read_text())
    kept.write_text(json.dumps({name: asked[name] for name in asked.keys() - {"clock", "device"}}))  # of an older one
    assert command(*job, "--defects", "padding,min-max,test-loss") == 0


def test_a_job_that_is_stopped_goes_on_to_the_same_weights_and_is_then_finished(command, tmp_path, monkeypatch, capsys):
    def job(name):
        return command("--out", str(tmp_path / name), "--epochs", "2")

    log, last, weights, stops = Run.log, reference.evaluate, {}, [("adversarial", 1), ("classifier", 1)]

    def log_then_stop(run, at, row):
        log(run, at, row)
        run.stop_requested = (at, row["epoch"]) in stops

    monkeypatch.setattr(
        reference, "evaluate", lambda network, d: weights.update(now=copied(network)) or last(network, d)
    )
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_then_stop)
        for number in (1, 2):
            assert job("stopped") == 130
            assert f"Stopped at epoch 2 of stage {number}. The same command goes on." in capsys.readouterr().err
    assert job("stopped") == 0
    gone_on = weights.pop("now")
    assert job("whole") == 0
    assert same(gone_on, weights.pop("now"))
    assert job("whole") == 0 and not weights  # nothing is trained again
    assert not list((tmp_path / "whole").rglob("*.pt"))


def test_a_constant_feature_is_scaled_to_nothing_and_others_to_their_range(corpus):
    dialogue = corpus.split("train")[0]
    dialogue.features["text"][:, 0] = 3
    scaled = reference.scaled_within(dialogue).features["text"]
    assert (scaled[:, 0] == 0).all() and scaled[:, 1].min() == 0 and scaled[:, 1].max() == 1


def test_an_unknown_defect_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        reference.main(["--demo", "--defects", "padding,what"])
    assert stop.value.code == 2 and "'what'" in capsys.readouterr().err
