"""The designs of stage 1 that benchmarks/designs.py compares: each is what its name says, and nothing of it stays."""

import design  # of benchmarks/
import designs
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small import BARE, DIMS, small_corpus, write
from torch import nn

import model
from experiment import fusion_quality, jobs
from experiment.run import Run
from experiment.settings import Settings
from experiment.trained import best_weights, build_network, fusion_weights

QUICK = ["--GAN-epochs", "1", "--epochs", "1", "--fused-channels", "16", "--batch-size", "6"]
SHAPE = {"dims": DIMS, "label_names": ["sad", "happy"], "num_speakers": 2}


def made(name):
    """A design's fusion, and its generator of text."""
    settings = Settings().replace(fusion__channels=64)
    with design.DESIGNS[name]():
        fusion = build_network(SHAPE, settings.fusion, settings.classifier).fusion
        return fusion, fusion.generators["text"], dict(fusion.WEIGHTS), fusion_quality.SHARED_CHANNELS


def test_designs_change_what_they_say_and_leave_the_method_as_it_was():
    before = made("as it is")
    assert made("no game")[2] == {**before[2], "adversarial": 0.0}
    assert made("no InfoNCE")[2] == {**before[2], "contrastive": 0.0}
    fusion, generator, _, seen = made("32 shared channels")
    assert generator.head.out_features == seen == 32 and fusion.translators["text"].in_features == 32
    assert made("128 wide")[1].embed.out_features == 128
    assert len(made("one feed-forward layer")[1].layers) == len(before[1].layers) - 1
    for name, learns in (("as it is", False), ("shared channels go on learning", True)):
        generator = made(name)[1]
        generator.rest()
        assert generator.head.weight.requires_grad is learns
    after = made("as it is")
    assert after[2:] == before[2:] == (model.AdversarialFusion.WEIGHTS, model.SHARED_CHANNELS)
    assert isinstance(after[1].layers, nn.Sequential) and model.GENERATORS["feed-forward"] is type(after[1])


@pytest.mark.parametrize(
    ("name", "width", "moves"),
    [("as it is", 8, False), ("32 shared channels", 32, False), ("shared channels go on learning", 8, True)],
)
def test_stage_2_goes_through_and_moves_the_shared_channels_of_that_design_alone(tmp_path, name, width, moves):
    path = write(small_corpus(train=2, test=1), tmp_path / "small.pkl")
    flags = ["--GAN-epochs", "1", "--epochs", "1", "--fused-channels", "64", *BARE, "--out", str(tmp_path / "run")]
    assert design.main([name, "--features", str(path), *flags]) == 0
    key = "generators.text.head.weight"
    before = load_file(fusion_weights(tmp_path / "run"))[key]
    after = load_file(best_weights(tmp_path / "run"))[f"fusion.{key}"]
    assert len(before) == width and torch.equal(before, after) is not moves


def in_turn(work, at_once, cluster, directory):
    """Do jobs as `experiment.jobs.do_all`, in this process."""
    return {name: jobs.command(*job.arguments) for name, job in work.items()}


def test_the_table_goes_on_where_it_was_stopped_and_compares_with_no_stage_1(tmp_path, capsys, monkeypatch):
    done = []
    monkeypatch.setattr(designs, "do_all", lambda work, *how: done.extend(work) or in_turn(work, *how))
    path = write(small_corpus(train=6, test=3), tmp_path / "small.pkl")
    run = ["--features", str(path), "--device", "cpu", "--out", str(tmp_path / "out"), "--folds", "2"]
    assert designs.main([*run, "--designs", "none", "--seeds", "0", "--", *QUICK]) == 0
    assert designs.main([*run, "--designs", "none,no game", "--seeds", "0,1", "--", *QUICK]) == 0
    assert done == ["none, seed 0", "none, seed 1", "no game, seed 0", "no game, seed 1"]
    table = pd.read_csv(tmp_path / "out" / "designs.csv").set_index("design")
    assert table["seeds"].to_dict() == {"none": 2, "no game": 2}
    discriminators = table.loc["no game", "discriminators in 45–75 %"]
    assert discriminators.split(" of ")[1].startswith("24 ")  # 6 pairs, 2 folds, 2 seeds
    assert "[" in table.loc["no game", "less none [95 % interval]"] and table["weighted F1"].str.contains("±").all()
    assert pd.isna(table.loc["none", "retrieval"])


def test_runs_of_other_flags_or_data_are_not_taken_for_these(tmp_path, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(designs, "do_all", lambda work, *how: done.extend(work) or {name: {} for name in work})
    one, other = (write(small_corpus(train=n, test=1), tmp_path / f"{n}.pkl") for n in (2, 3))
    run = ["--device", "cpu", "--out", str(tmp_path / "out"), "--designs", "none", "--seeds", "0"]
    assert designs.main([*run, "--features", str(one), "--", *QUICK]) == 0
    for changed in (
        ["--features", str(one)],
        ["--features", str(one), "--folds", "2", "--", *QUICK],
        ["--features", str(other), "--", *QUICK],
    ):
        assert designs.main([*run, *changed]) == 2
        assert "runs of another job are there" in capsys.readouterr().err
    assert designs.main([*run, "--features", str(one), "--", *QUICK]) == 0 and len(done) == 2


def test_a_run_that_was_stopped_counts_once_it_has_gone_on(tmp_path, monkeypatch, capsys):
    path = write(small_corpus(train=6, test=3), tmp_path / "small.pkl")
    run = ["--features", str(path), "--device", "cpu", "--out", str(tmp_path / "out"), "--designs", "none"]
    run += ["--seeds", "0", "--", *QUICK, "--epochs", "2"]
    log = Run.log

    def log_then_stop(run, stage, row):
        log(run, stage, row)
        run.stop_requested = row["epoch"] == 1

    monkeypatch.setattr(designs, "do_all", in_turn)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_then_stop)
        assert designs.main(run) == 130
    assert "Interrupted; the same command goes on." in capsys.readouterr().err
    assert not (tmp_path / "out" / "designs.csv").exists()
    assert designs.main(run) == 0
    assert pd.read_csv(tmp_path / "out" / "designs.csv")["seeds"].tolist() == [1]


def test_bad_input_is_a_line(tmp_path, capsys):
    assert designs.main(["--demo", "--designs", "none,\x1b[31mlarge", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no such design; choose among as it is, none" in error and "\x1b" not in error
    with pytest.raises(SystemExit):
        designs.main(["--designs", "none"])
    assert "no/such.pkl" in jobs.command("benchmarks/design.py", ["no game", "--features", "no/such.pkl"])["failed"]
    assert "invalid choice: 'larger'" in jobs.command("benchmarks/design.py", ["larger", "--demo"])["failed"]
