"""Runs side by side: scores, intervals over dialogues, differences, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

import compare
from experiment.comparison import (
    DRAWS,
    Predictions,
    confusions,
    draws,
    gain,
    interval,
    latex,
    mcnemar,
    measures,
    read_run,
    read_table,
    scores_of,
)
from experiment.run_directory import write_csv

NAMES = ("happy", "sad", "angry")

FEATURES = {"file": "small.pkl", "sha256": "0"}
CORPUS = {"dims": {"text": 4}, "label_names": ["happy", "sad", "angry"], "num_speakers": 2}


def table(seed=0, right=0.6, dialogues=12, sessions=2):
    """The utterances of some dialogues, and predictions that are right so often."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "dialogue": f"Ses0{d % sessions + 1}_d{d:02d}",
            "utterance": f"d{d}_{t}",
            "turn": t + 1,
            "speaker": "FM"[t % 2],
        }
        for d in range(dialogues)
        for t in range(5 + d % 4)
    ]
    frame = pd.DataFrame(rows)
    frame["label"] = rng.integers(0, 3, len(frame))
    rng = np.random.default_rng(seed + 1)
    guess = rng.integers(0, 3, len(frame))
    frame["predicted"] = np.where(rng.random(len(frame)) < right, frame["label"], guess)
    for k, name in enumerate(NAMES):
        frame[f"p_{name}"] = np.where(frame["predicted"] == k, 0.8, 0.1)
    frame.insert(0, "split", "test")
    return frame


def write_run(directory, *tables):
    """The directory of a run, or of several seeds."""

    def one(path, frame, plan=None):
        path.mkdir(parents=True, exist_ok=True)
        config = {"format": "gan-ffn-run-1", "settings": {}, "features": FEATURES, "corpus": CORPUS, "splits": {}}
        (path / "config.json").write_text(json.dumps(config | ({"plan": plan} if plan else {})))
        if frame is not None:
            frame.to_csv(path / "predictions.csv", index=False)

    if len(tables) == 1:
        one(directory, tables[0])
    else:
        one(directory, None, {"seeds": list(range(len(tables))), "folds": None})
        for k, frame in enumerate(tables):
            one(directory / f"seed{k}", frame)
    return directory


def predictions(frame):
    return Predictions("run", frame, frame["predicted"].to_numpy()[None], frame["predicted"].to_numpy(), NAMES)


def test_scores_are_those_of_scikit_learn():
    frame = table()
    found = measures(confusions(predictions(frame)).sum(1), NAMES)
    labels, said = frame["label"], frame["predicted"]
    assert found["weighted F1"][0] == pytest.approx(100 * f1_score(labels, said, average="weighted"))
    assert found["macro F1"][0] == pytest.approx(100 * f1_score(labels, said, average="macro"))
    assert found["accuracy"][0] == pytest.approx(100 * accuracy_score(labels, said))
    assert found["F1 sad"][0] == pytest.approx(100 * f1_score(labels, said, labels=[1], average=None)[0])


def test_the_bootstrap_is_the_slow_one_and_keeps_sessions():
    frame = table()
    ids = list(dict.fromkeys(frame["dialogue"]))
    weights = draws(ids, 200)
    for session in ("Ses01", "Ses02"):
        inside = [i.startswith(session) for i in ids]
        assert (weights[:, inside].sum(1) == sum(inside)).all()
    fast = scores_of(confusions(predictions(frame)), weights, NAMES)["weighted F1"]
    for row, value in zip(weights[:5], fast[:5], strict=True):
        drawn = pd.concat([frame[frame["dialogue"] == i] for i, n in zip(ids, row, strict=True) for _ in range(int(n))])
        assert value == pytest.approx(100 * f1_score(drawn["label"], drawn["predicted"], average="weighted"))


def test_mcnemar_is_the_exact_test():
    labels = np.zeros(12, int)
    one, other = labels.copy(), labels.copy()
    one[:2], other[2:10] = 1, 1
    assert mcnemar(one, other, labels)[:2] == (8, 2)
    assert mcnemar(one, other, labels)[2] == pytest.approx(stats.binomtest(2, 10).pvalue)
    assert mcnemar(one, one, labels)[2] == 1


def test_a_small_p_value_is_written_as_it_is(tmp_path, capsys):
    runs = [write_run(tmp_path / "bad", table(0, 0)), write_run(tmp_path / "good", table(1, 1))]
    assert compare.main([*map(str, runs), "--draws", "100", "--out", str(tmp_path / "out")]) == 0
    p = pd.read_csv(tmp_path / "out" / "mcnemar.csv")["p"].item()
    assert 0 < p < 5e-7 and f"p = {p:.2g} " in capsys.readouterr().out


def test_dialogues_without_a_label_are_not_drawn(tmp_path, capsys):
    frame = table(dialogues=8)
    hidden = frame["dialogue"].isin([f"Ses0{d % 2 + 1}_d{d:02d}" for d in range(2, 8)])  # one of each session is left
    run = write_run(tmp_path / "run", frame.assign(label=frame["label"].astype(object).mask(hidden, "")))
    assert compare.main([str(run), "--draws", "200", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{(~hidden).sum()} test utterances of 2 dialogues;")
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert (scores["low"] == scores["value"]).all() and (scores["high"] == scores["value"]).all()
    assert gain(read_run(run), read_run(run)).difference == 0


def test_a_gain_is_one_only_where_the_interval_excludes_0(tmp_path):
    weak, strong = table(0, 0.3), table(1, 0.95)
    less, more, like = (
        read_run(write_run(tmp_path / n, *t))
        for n, t in (("a", (weak, table(5, 0.3))), ("b", (strong,)), ("c", (table(12, 0.3),)))
    )
    found = gain(more, less)
    assert found.verdict == "gain" and found.low > 0
    assert found.sessions.keys() == {"Ses01", "Ses02"} and min(found.sessions.values()) > 0
    assert gain(less, more).verdict == "loss" and gain(like, less).verdict == "none"
    assert gain(less, less).difference == 0


def test_the_script_prints_and_writes(tmp_path, capsys):
    runs = [write_run(tmp_path / "first", table(0), table(2)), write_run(tmp_path / "second", table(1, 0.9))]
    theirs = table(3)[["utterance", "predicted"]].sample(frac=1, random_state=0)
    theirs["predicted"] = np.array(NAMES)[theirs["predicted"]]
    theirs.to_csv(tmp_path / "llm.csv", index=False)
    flags = [*map(str, runs), "--predictions", str(tmp_path / "llm.csv"), "--out", str(tmp_path / "out")]
    assert compare.main([*flags, "--draws", "500"]) == 0
    said = capsys.readouterr().out
    assert "second - first" in said and "llm.csv - first" in said and "Ses01 F" in said
    assert "McNemar's exact test of the means of seeds' probabilities, second and first" in said
    names = {"scores.csv", "differences.csv", "mcnemar.csv", "groups.csv", "comparison.md", "comparison.tex"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    text = (tmp_path / "out" / "comparison.tex").read_text()
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 3 and "|" not in text
    groups = pd.read_csv(tmp_path / "out" / "groups.csv")
    assert set(groups["by"]) == {"session", "speaker"} and "95 % interval of weighted F1 by 500 draws" in said
    assert ((groups["low"] <= groups["weighted F1"]) & (groups["weighted F1"] <= groups["high"])).all()
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert (scores["low"] <= scores["value"]).all() and (scores["value"] <= scores["high"]).all()
    one = scores[(scores["run"] == "first") & (scores["measure"] == "accuracy")]["value"].item()
    means = [100 * (t["label"] == t["predicted"]).mean() for t in (table(0), table(2))]
    assert one == pytest.approx(np.mean(means), abs=1e-5)


def test_folds_of_which_some_are_still_to_come_are_refused(tmp_path, capsys):
    frame, run = table(), tmp_path / "run"
    write_run(run, frame[:0])
    config = json.loads((run / "config.json").read_text())
    config |= {"plan": {"seeds": None, "folds": 2}, "splits": {"train": sorted(set(frame["dialogue"]))}}
    (run / "config.json").write_text(json.dumps(config))
    first = frame["dialogue"].str.startswith("Ses01")
    write_run(run / "fold1of2", frame[first])
    assert compare.main([str(run)]) == 2
    assert f"6 of 12 dialogues were tested so far; finish it with --resume {run}" in capsys.readouterr().err
    write_run(run / "fold2of2", frame[~first])
    assert compare.main([str(run), "--draws", "100"]) == 0


def test_latex_escapes_what_it_must():
    assert r"a\_b \& 50\% \textbackslash{}x" in latex(pd.DataFrame({"c": [r"a_b & 50% \x"]}))


def test_runs_on_different_utterances_are_refused_naming_the_first(tmp_path, capsys):
    first = write_run(tmp_path / "first", table())
    for change, says in (
        (lambda t: t.drop(index=3), "second: not tested on utterance 'd0_3' of dialogue 'Ses01_d00'"),
        (lambda t: t.assign(label=(t["label"] + (t.index == 4)) % 3), "'d0_4' has another label"),
        (lambda t: t.rename(columns={"p_sad": "p_glad"}), "its classes are happy, glad, angry"),
        (lambda t: t.drop(columns="speaker"), "no column speaker"),
        (lambda t: t.assign(split="train"), "no test utterances"),
        (lambda t: t.drop(columns="split"), "no table of predictions"),
    ):
        second = write_run(tmp_path / "second", change(table(1)))
        assert compare.main([str(first), str(second)]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t.rename(columns={"predicted": "answer"}), "no column predicted"),
        (lambda t: t.drop(index=2), "utterance 'd0_2' of first is not there (1 of"),
        (lambda t: pd.concat([t, t[:1]]), "'d0_0' is there twice"),
        (lambda t: t.assign(predicted="joy\x1b[31m"), "is no class; there are happy, sad, angry"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(tmp_path, capsys, change, says):
    first = write_run(tmp_path / "first", table())
    change(table()[["utterance", "predicted"]]).to_csv(tmp_path / "llm.csv", index=False)
    assert compare.main([str(first), "--predictions", str(tmp_path / "llm.csv")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "\x1b" not in error


@pytest.mark.parametrize("seeds", [5, True, ["/../x"], [{}], [10**400], "01"])
def test_seeds_that_are_no_numbers_are_one_line(tmp_path, capsys, seeds):
    run = write_run(tmp_path / "run", table(), table(1))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"plan": {"seeds": seeds}}))
    assert compare.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert "plan: seeds: " in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t.assign(label=99), "no table of predictions"),
        (lambda t: t.assign(predicted="x"), "no table of predictions"),
        (lambda t: t.assign(predicted=3), "no table of predictions"),
        (lambda t: t.assign(p_sad=np.inf), "no table of predictions"),
        (lambda t: t.rename(columns={"p_sad": "p_\x1b"}), "other classes than another"),
    ],
)
def test_a_seed_whose_predictions_cannot_be_is_one_line(tmp_path, capsys, change, says):
    run = write_run(tmp_path / "run", table(), change(table(1)))
    assert compare.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_tables_are_not_written_over_the_predictions_that_are_compared(tmp_path, capsys):
    run = write_run(tmp_path / "run", table())
    (tmp_path / "out").mkdir()
    theirs = tmp_path / "out" / "scores.csv"
    table().to_csv(theirs, index=False)
    before = theirs.read_bytes()
    assert compare.main([str(run), "--predictions", str(theirs), "--out", str(theirs.parent)]) == 2
    assert "would be lost" in capsys.readouterr().err
    assert theirs.read_bytes() == before and list(theirs.parent.iterdir()) == [theirs]


@pytest.mark.parametrize("flags, says", [(["no/run"], "cannot be read"), ([], "required"), (["a", "--draws", "1"], "")])
def test_wrong_flags_are_one_line(capsys, flags, says):
    try:
        status = compare.main(flags)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and says in error and error.count("\n") == 1


def test_the_interval_holds_what_it_should():
    assert interval(np.arange(1001) / 10) == (2.5, 97.5) and DRAWS == 10_000


def test_predictions_that_have_no_end_are_not_read(tmp_path, capsys):
    write_run(tmp_path / "run", table(dialogues=3))
    (tmp_path / "run" / "predictions.csv").unlink()
    (tmp_path / "run" / "predictions.csv").symlink_to("/dev/zero")
    assert compare.main([str(tmp_path / "run")]) == 2
    assert "predictions.csv: a folder, a pipe or a device" in capsys.readouterr().err


def test_ids_are_text_whatever_they_look_like(tmp_path):
    """Speakers 07 and 7 are two, dialogue 008 is no number, and one that begins with - keeps no guard."""
    frame = table(dialogues=3)
    names = dict(zip(dict.fromkeys(frame["dialogue"]), ["-3g5yACwYnA", "008", "8"], strict=True))
    frame["dialogue"], frame["speaker"] = frame["dialogue"].map(names), frame["speaker"].map({"F": "07", "M": "7"})
    write_run(tmp_path / "run", frame)
    write_csv(tmp_path / "run" / "predictions.csv", frame)
    found = read_run(tmp_path / "run").table
    assert (found[["dialogue", "speaker"]] == frame[["dialogue", "speaker"]]).all(axis=None)


@pytest.mark.parametrize("columns", [["utterance", "predicted"], ["dialogue", "utterance", "predicted"]])
def test_a_table_of_ours_is_read_whatever_its_ids_begin_with(tmp_path, columns):
    frame = table(dialogues=3)
    frame[["dialogue", "utterance"]] = "-" + frame[["dialogue", "utterance"]]
    run = read_run(write_run(tmp_path / "run", frame))
    write_csv(tmp_path / "ours.csv", frame[columns])
    assert "'-d0_0" in (tmp_path / "ours.csv").read_text()
    assert (read_table(tmp_path / "ours.csv", run).together == run.together).all()


def test_classes_that_pandas_has_made_floats_are_read_and_names_come_before_numbers(tmp_path):
    run = predictions(table(dialogues=3))
    run.table.assign(predicted=run.table["predicted"].astype(float)).to_csv(tmp_path / "floats.csv", index=False)
    assert (read_table(tmp_path / "floats.csv", run).together == run.together).all()
    named = Predictions("run", run.table, run.members, run.together, ("1", "2", "0"))
    names = run.table["predicted"].map(lambda k: named.label_names[k])
    run.table.assign(predicted=names).to_csv(tmp_path / "names.csv", index=False)
    assert (read_table(tmp_path / "names.csv", named).together == run.together).all()


def test_a_run_that_was_interrupted_is_compared_and_said(tmp_path, capsys):
    runs = [write_run(tmp_path / name, table(seed)) for seed, name in enumerate("ab")]
    (runs[1] / "checkpoints").mkdir()
    (runs[1] / "checkpoints" / "last.pt").touch()
    assert compare.main([*map(str, runs)]) == 0
    note = capsys.readouterr().err
    assert note.startswith(f"note: {runs[1]}: not finished") and note.count("\n") == 1


def test_a_page_of_one_run_is_refused_before_anything_is_written(tmp_path, capsys):
    run, out = write_run(tmp_path / "run", table()), tmp_path / "out"
    assert compare.main([str(run), "--out", str(out), "--html", str(tmp_path / "page.html")]) == 2
    assert "--html: one run is not several" in capsys.readouterr().err and not out.exists()


def test_of_many_speakers_some_are_printed_and_all_are_written(tmp_path, capsys):
    frame = table()
    frame["speaker"] = [f"speaker {k}" for k in range(len(frame))]
    run = write_run(tmp_path / "run", frame)
    assert compare.main([str(run), "--draws", "100", "--out", str(tmp_path / "out")]) == 0
    printed, written = capsys.readouterr().out, pd.read_csv(tmp_path / "out" / "groups.csv")
    assert len(written) > len(frame) > 60 and (len(written) <= compare.GROUPS or "more rows" in printed)
