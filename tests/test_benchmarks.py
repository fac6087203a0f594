"""What the benchmarks compute beside training: paired comparisons, and the synthetic corpus's ceiling."""

import argparse
import itertools
import re

import accuracy
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from small import small_corpus

from experiment.comparison import gain, read_run
from experiment.flags import parse_args
from experiment.run_directory import write_config, write_csv
from files import InputError
from synthetic import SHARES, ceiling, posterior, synthetic_corpus, transition


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


def test_ctrl_c_leaves_the_runs_that_are_finished_and_the_same_command_goes_on(monkeypatch, tmp_path, capsys):
    trained, stop = [], True

    def run_seed(name, flags, seed, *_):
        if stop and (name, seed) == ("no-graph", 1):
            raise KeyboardInterrupt
        trained.append((name, seed))
        return 60.0 + seed ** (1 + (name == "full")), 10.0

    monkeypatch.setattr(accuracy, "run_seed", run_seed)
    argv = ["--demo", "--folds", "2", "--seeds", "0,1", "--rows", "no-graph", "--out", str(tmp_path)]
    assert accuracy.main(argv) == 130
    assert pd.read_csv(tmp_path / "accuracy.csv")["seeds"].tolist() == [2, 1]
    assert (tmp_path / "accuracy.md").read_text() in capsys.readouterr().out
    with (tmp_path / "runs.jsonl").open("a") as stream:
        stream.write('{"row": "no-gr')  # a process that was killed
    stop = False
    argv[argv.index("0,1")] = "0,1,2"
    assert accuracy.main(argv) == 0
    assert trained == [("full", 0), ("full", 1), ("no-graph", 0), ("full", 2), ("no-graph", 1), ("no-graph", 2)]
    assert pd.read_csv(tmp_path / "accuracy.csv")["seeds"].tolist() == [3, 3]
    assert accuracy.main([*argv, "--", "--epochs", "3"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "full, seed 0: was trained with flags" in said and "--epochs 3" in said


def test_a_run_that_fails_stops_no_other_and_the_same_command_tries_it_again(monkeypatch, tmp_path, capsys):
    well = False

    def run_seed(name, flags, seed, *_):
        if not well and (name, seed) == ("full", 1):
            raise InputError("full: out of memory")
        return 60.0 + seed, 10.0

    monkeypatch.setattr(accuracy, "run_seed", run_seed)
    argv = ["--demo", "--folds", "2", "--seeds", "0,1,2", "--rows", "no-graph", "--out", str(tmp_path)]
    assert accuracy.main(argv) == 1
    said = "error: 1 of 6 runs failed, the others are finished: full, seed 1: full: out of memory\n"
    assert capsys.readouterr().err.startswith(said)
    assert pd.read_csv(tmp_path / "accuracy.csv")["seeds"].tolist() == [2, 2]
    well = True
    assert accuracy.main(argv) == 0
    assert pd.read_csv(tmp_path / "accuracy.csv")["seeds"].tolist() == [3, 3]


def test_a_row_has_its_interval_over_dialogues_and_the_sign_in_every_session(tmp_path, capsys, monkeypatch):
    def run_seed(name, flags, seed, settings, own):
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
        return (60.0 + seed if name == "no-graph" else 90.0 - seed), 1.0

    monkeypatch.setattr(accuracy, "run_seed", run_seed)
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
