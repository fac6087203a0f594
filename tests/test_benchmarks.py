"""What the benchmarks compute beside training: paired comparisons, and the synthetic corpus's ceiling."""

import itertools

import accuracy
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiment.flags import parse_args
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


def test_ctrl_c_leaves_the_table_of_the_rows_that_are_finished(monkeypatch, tmp_path, capsys):
    def run_row(name, *_):
        if name == "no-graph":
            raise KeyboardInterrupt
        return {0: 60.0, 1: 62.0}, 10.0

    monkeypatch.setattr(accuracy, "run_row", run_row)
    argv = ["--demo", "--folds", "2", "--seeds", "0,1", "--rows", "no-stage-1,no-graph", "--out", str(tmp_path)]
    assert accuracy.main(argv) == 130
    assert pd.read_csv(tmp_path / "accuracy.csv")["row"].tolist() == ["full", "no-stage-1"]
    assert (tmp_path / "accuracy.md").read_text() in capsys.readouterr().out


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
