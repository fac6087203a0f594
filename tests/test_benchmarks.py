"""What the benchmarks compute beside training: paired comparisons, and the synthetic corpus's ceiling."""

import argparse
import itertools
import json
import re

import accuracy
import baselines
import designs
import fusion
import numpy as np
import pandas as pd
import pytest
import reference
import scale
from scipy import stats
from small import corpus, features, ran, small_corpus

from experiment import jobs
from experiment.comparison import gain, read_run
from experiment.flags import parse_args
from experiment.run_directory import write_config, write_csv
from synthetic import SHARES, ceiling, posterior, synthetic_corpus, transition

__all__ = ["corpus", "features"]  # fixtures


def test_a_row_is_compared_with_full_over_the_same_seeds():
    full, other = {0: 60.0, 1: 62.0, 2: 61.0}, {2: 60.5, 0: 59.0, 1: 60.0}
    frame = accuracy.table({"full": (full, 10.0), "no-graph": (other, 8.0)}, accuracy.ROWS).set_index("row")
    assert frame.loc["no-graph", "difference"] == pytest.approx(-3.5 / 3, abs=0.01)
    expected = stats.ttest_rel([60.0, 62.0, 61.0], [59.0, 60.0, 60.5]).pvalue
    assert frame.loc["no-graph", "p"] == pytest.approx(expected, rel=0.05)
    assert frame.loc["no-graph", "flags"] == "--window-past 0 --window-future 0"
    assert np.isnan(frame.loc["full", "p"])


def test_every_row_is_made_of_flags_that_the_script_has():
    for flags in accuracy.rows_for(["text", "visual", "acoustic"]).values():
        parse_args(["--demo", *flags.split()])


@pytest.fixture
def training(monkeypatch):
    """Does the jobs of `accuracy` in place of other processes; says which, and takes what some of them come to."""
    done, other = [], {}

    def do_all(jobs, at_once, cluster, directory):
        results = {}
        for name, job in jobs.items():
            row, seed = job.directory.parent.name, int(job.directory.name.removeprefix("seed"))
            results[name] = other.get((row, seed), {})
            if not results[name]:
                done.append((row, seed))
                job.directory.mkdir(parents=True, exist_ok=True)
                f1 = 60.0 + seed ** (1 + (row == "full"))
                (job.directory / "summary.json").write_text(json.dumps({"mean": {"test": {"weighted_f1": f1}}}))
        return results

    monkeypatch.setattr(accuracy, "do_all", do_all)
    return done, other


def test_ctrl_c_leaves_the_runs_that_are_finished_and_the_same_command_goes_on(training, tmp_path, capsys):
    trained, other = training
    other["no-graph", 1] = {"interrupted": "a step"}
    argv = ["--demo", "--folds", "2", "--seeds", "0,1", "--rows", "no-graph", "--out", str(tmp_path)]
    assert accuracy.main(argv) == 130
    assert pd.read_csv(tmp_path / "accuracy.csv")["seeds"].tolist() == [2, 1]
    assert (tmp_path / "accuracy.md").read_text() in capsys.readouterr().out
    with (tmp_path / "runs.jsonl").open("a") as stream:
        stream.write('{"row": "no-gr')  # a process that was killed
    other.clear()
    argv[argv.index("0,1")] = "0,1,2"
    assert accuracy.main(argv) == 0
    assert trained == [("full", 0), ("full", 1), ("no-graph", 0), ("full", 2), ("no-graph", 1), ("no-graph", 2)]
    assert pd.read_csv(tmp_path / "accuracy.csv")["seeds"].tolist() == [3, 3]
    assert accuracy.main([*argv, "--", "--epochs", "3"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "full, seed 0: was trained with flags" in said and "--epochs 3" in said


def test_a_run_that_was_stopped_does_not_go_on_for_other_flags(training, tmp_path, capsys):
    trained, other = training
    other["full", 0] = {"interrupted": "a step"}
    argv = ["--demo", "--folds", "2", "--seeds", "0", "--rows", "full", "--out", str(tmp_path)]
    assert accuracy.main([*argv, "--", "--epochs", "3"]) == 130
    other.clear()
    assert accuracy.main(argv) == 2 and not trained
    assert "runs of another job are there" in capsys.readouterr().err
    assert accuracy.main([*argv, "--", "--epochs", "3"]) == 0 and trained == [("full", 0)]


def test_a_run_that_fails_stops_no_other_and_the_same_command_tries_it_again(training, tmp_path, capsys):
    _, other = training
    other["full", 1] = {"failed": "out of memory"}
    argv = ["--demo", "--folds", "2", "--seeds", "0,1,2", "--rows", "no-graph", "--out", str(tmp_path)]
    assert accuracy.main(argv) == 1
    said = "error: 1 of 6 runs failed, the others are finished: full, seed 1: out of memory\n"
    assert capsys.readouterr().err.startswith(said)
    assert pd.read_csv(tmp_path / "accuracy.csv")["seeds"].tolist() == [2, 2]
    other.clear()
    assert accuracy.main(argv) == 0
    assert pd.read_csv(tmp_path / "accuracy.csv")["seeds"].tolist() == [3, 3]


def test_the_baseline_is_trained_with_the_flags_that_all_rows_share(tmp_path):
    settings, own = accuracy.common.parse(accuracy.build_parser(), ["--demo", "--out", str(tmp_path)])
    own.shared = ["--valid", "0.1", "--GAN-epochs", "3", "--no-tensorboard", "--l2=5", "--no-session-logit-adjustment"]
    _, flags = accuracy.job("gru", "", 0, settings, own).arguments
    assert flags[-4:] == ("--valid", "0.1", "--l2=5", "--no-session-logit-adjustment")
    assert "--GAN-epochs" not in flags and "--no-tensorboard" not in flags
    baselines.build_parser().parse_args(flags)


def test_rows_are_trained_side_by_side_by_the_scripts_themselves(features, tmp_path, capfd):
    argv = ["--features", features, "--device", "cpu", "--seeds", "0", "--jobs", "2", "--out", tmp_path / "a"]
    argv += ["--rows", "no-graph", "--", "--epochs", "1", "--GAN-epochs", "1", "--no-tensorboard"]
    assert accuracy.main([str(a) for a in argv]) == 0
    lines = map(json.loads, (tmp_path / "a" / "runs.jsonl").read_text().splitlines())
    scores = {line["row"]: line["weighted_f1"] for line in lines}
    assert scores.keys() == {"full", "no-graph"}
    config = json.loads((tmp_path / "a" / "no-graph" / "seed0" / "config.json").read_text())
    assert config["settings"]["classifier"]["window_past"] == 0
    report = json.loads((tmp_path / "a" / "full" / "seed0" / "report.json").read_text())
    assert scores["full"] == report["test"]["weighted_f1"]
    assert "no-graph, seed 0: done" in capfd.readouterr().out


def test_a_command_that_is_refused_says_why(tmp_path, capsys):
    refused = jobs.command("train_IEMOCAP.py", ["--features", str(tmp_path / "none.pkl"), "--out", str(tmp_path / "a")])
    assert refused["input"] and "none.pkl" in refused["failed"]
    assert "no network 'none'" in jobs.command("benchmarks/baselines.py", ["--networks", "none"])["failed"]
    assert "none.pkl" in capsys.readouterr().err  # which goes into the log


def test_a_row_has_its_interval_over_dialogues_and_the_sign_in_every_session(tmp_path, capsys, monkeypatch):
    def train(name, seed, settings, own):
        rng = np.random.default_rng(seed)
        sessions = []
        for session in ("Ses01", "Ses02"):
            ids = np.repeat([f"{session}_{k}" for k in range(6)], 20)
            labels = np.arange(120) % 2
            wrong = rng.random(120) < (0.4 if name == "no-graph" else 0.1)
            said = np.where(wrong, 1 - labels, labels)
            table = {"split": "test", "dialogue": ids, "utterance": [f"{i}_{k}" for k, i in enumerate(ids)]}
            table |= {"turn": np.tile(np.arange(1, 21), 6), "speaker": "F", "label": labels, "predicted": said}
            sessions.append(pd.DataFrame(table | {"p_no": 1.0 - said, "p_yes": 1.0 * said}))
        directory = accuracy.seed_directory(own, name, seed)
        directory.mkdir(parents=True)
        write_config(directory, settings, small_corpus())
        write_csv(directory / "predictions.csv", pd.concat(sessions))
        f1 = 60.0 + seed if name == "no-graph" else 90.0 - seed
        report = {"test": {"weighted_f1": f1}, "seconds": {"total": 1.0}}
        (directory / "report.json").write_text(json.dumps(report))

    def do_all(work, *_):
        own, settings = argparse.Namespace(out=tmp_path), parse_args(["--demo"]).settings
        for name in work:
            row, seed = name.split(", seed ")
            train(row, int(seed), settings, own)
        return {name: {} for name in work}

    monkeypatch.setattr(accuracy, "do_all", do_all)
    argv = ["--demo", "--seeds", "0,1", "--rows", "no-graph", "--out", str(tmp_path)]
    monkeypatch.setattr(accuracy, "ceiling", lambda corpus: {"context": 1.0, "utterance": 1.0})
    assert accuracy.main(argv) == 0
    full, row = pd.read_csv(tmp_path / "accuracy.csv").to_dict("records")
    assert row["low"] < row["over dialogues"] < row["high"] < 0
    assert row["gain"] == "loss" and pd.isna(full["gain"])
    assert re.fullmatch(r"Ses01 -\d+\.\d, Ses02 -\d+\.\d", row["by session"])
    directories = [accuracy.seed_directory(argparse.Namespace(out=tmp_path), name, 0) for name in ("no-graph", "full")]
    alone = gain(*map(read_run, directories))
    assert alone.high < 0 and f"[{row['low']:.2f}, {row['high']:.2f}]" in capsys.readouterr().out


def test_class_shares_are_those_the_synthetic_emotions_settle_at():
    chances = transition()
    assert chances.sum(-1) == pytest.approx(1)
    pairs = np.outer(SHARES, SHARES)
    assert np.einsum("ab,abn->n", pairs, chances) == pytest.approx(SHARES)


def test_the_posterior_is_that_of_all_possible_histories():
    rng, speakers = np.random.default_rng(0), np.array([0, 1, 1, 0])
    evidence, chances = rng.random((4, 6)) ** 8, transition()
    weight = np.zeros((4, 6))
    for first in itertools.product(range(6), repeat=2):
        for labels in itertools.product(range(6), repeat=4):
            last, chance = list(first), SHARES[first[0]] * SHARES[first[1]]
            for t, (speaker, label) in enumerate(zip(speakers, labels, strict=True)):
                chance *= chances[last[speaker], last[1 - speaker], label] * evidence[t, label]
                last[speaker] = label
            for t, label in enumerate(labels):
                weight[t, label] += chance
    assert posterior(evidence, speakers).tolist() == weight.argmax(1).tolist()


def test_context_tells_more_than_an_utterance_and_less_than_all():
    corpus = synthetic_corpus(seed=3, train=1, test=30, dims={"text": 8, "visual": 8, "acoustic": 8})
    best = ceiling(corpus, seed=3)
    assert best["utterance"] + 5 < best["context"] < 95


@pytest.mark.parametrize("script", [accuracy, baselines, designs, fusion, reference, scale])
def test_a_folder_that_cannot_be_made_is_a_line_before_anything_is_trained(script, features, tmp_path, capsys):
    (tmp_path / "file").touch()
    argv = ["--out", tmp_path / "file", *([] if script is scale else ["--features", features])]
    status, _, said = ran(script.main, argv, capsys)
    assert (
        status == 2
        and said == f"error: --out {tmp_path / 'file'}: cannot be made (File exists); choose another directory\n"
    )


def test_a_row_of_one_modality_does_without_what_is_for_several(tmp_path):
    settings, own = accuracy.common.parse(accuracy.build_parser(), ["--demo", "--out", str(tmp_path)])
    own.shared, rows = ["--unimodal-loss", "0.5"], accuracy.rows_for(["text", "visual", "acoustic"])
    for name, weight in {"full": 0.5, "text+visual": 0.5, "text": 0}.items():
        _, flags = accuracy.job(name, rows[name], 0, settings, own).arguments
        assert parse_args(flags).settings.classifier.unimodal_loss == weight
