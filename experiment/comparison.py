"""Predictions side by side: scores of the same utterances under several runs, with intervals over dialogues.

The bootstrap draws dialogues, since utterances of one are not independent of each other, within sessions, since the
speakers are others in each; all runs are scored on the same draws, so that their differences are paired. Shapes use D
dialogues, C classes, S members of a run (its seeds), R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dataloader import IGNORE_LABEL, session_of
from experiment.predictions import class_names, read_predictions
from experiment.run_directory import FINISH, read_config, unfinished_notes, unguarded
from experiment.settings import check_seeds
from files import InputError, check_regular, complain, printable

DRAWS = 10_000
GROUP_DRAWS = 1_000  # at most, for each of perhaps hundreds of speakers
LEVEL = 95  # of the intervals, percent
UTTERANCE = ("dialogue", "utterance", "speaker", "label", "sentence")
MEASURES = ("weighted F1", "macro F1", "accuracy")


@dataclass(frozen=True)
class Predictions:
    """What a run, or somebody else's table, says of the test utterances.

    Attributes:
        name: For the tables.
        table: A row an utterance: ``dialogue``, ``utterance``, ``speaker``, ``label`` (a number), maybe ``sentence``.
        members: Predicted classes ``[S, N]``: a row for each seed.
        together: The classes the members predict together, by the mean of their probabilities, ``[N]``.
        label_names: C names.
    """

    name: str
    table: pd.DataFrame
    members: np.ndarray
    together: np.ndarray
    label_names: tuple[str, ...]


# Reading --------------------------------------------------------------------------------------------------------------


def read_run(directory: Path) -> Predictions:
    """The test predictions of a run, of the seeds in a directory, or of folds, whose test splits are put together.

    Raises:
        InputError: If a run is not finished, or its members were tested on different utterances.
    """
    return of_tables(member_tables(directory), directory.name or str(directory), str(directory))


def of_tables(tables: Sequence[pd.DataFrame], name: str, where: str) -> Predictions:
    """The predictions of several networks as those of one run.

    Args:
        tables: Of `member_tables`, one or more.
        name: For the tables that are made of it.
        where: For messages.

    Raises:
        InputError: If one lacks a column, or they are of different utterances.
    """
    first = tables[0]
    for table in tables:
        missing = {"dialogue", "utterance", "speaker", "label", "predicted"} - set(table)
        if missing or not class_names(table):
            raise InputError(f"{where}: predictions.csv: no column {min(missing, default='p_...')}; score it again")
        if class_names(table) != class_names(first):
            raise InputError(f"{where}: predictions.csv: one has other classes than another; score it again")
        same_utterances(first, table, where, where)
    columns = [f"p_{name}" for name in class_names(first)]
    probabilities = np.mean([table[columns].to_numpy() for table in tables], 0)
    members = np.stack([table["predicted"].to_numpy(int) for table in tables])
    kept = first[[name for name in UTTERANCE if name in first]]
    together = members[0] if len(tables) == 1 else probabilities.argmax(1)
    return Predictions(printable(name, 60), kept, members, together, tuple(class_names(first)))


def member_tables(directory: Path) -> list[pd.DataFrame]:
    """The test predictions of each seed, or of the one run; those of folds one after the other."""
    config = read_config(directory)
    plan = config.get("plan") or {}
    if not isinstance(plan, Mapping):
        raise InputError(f"{directory / 'config.json'}: plan: no seeds and folds; the run directory is damaged")
    try:
        seeds = [directory / f"seed{seed}" for seed in check_seeds(plan["seeds"])] if plan.get("seeds") else [directory]
    except ValueError as error:
        raise InputError(f"{directory / 'config.json'}: plan: seeds: {error}; the run directory is damaged") from None
    over = plan.get("folds_over", "all")
    dealt = sum(len(ids) for split, ids in config["splits"].items() if over in ("all", split))
    tables = []
    for one in seeds:
        folds = sorted(one.glob("fold*")) if plan.get("folds") else [one]
        if not folds:
            raise InputError(f"{one}: no folds yet; {FINISH} {directory}")
        parts = [read_predictions(fold) for fold in folds]
        for note in unfinished_notes(folds, "predictions"):
            complain(f"note: {note}")
        if empty := [fold for fold, part in zip(folds, parts, strict=True) if part.empty]:
            raise InputError(f"{empty[0]}: predictions.csv: no test utterances; name a finished run")
        table = pd.concat(parts, ignore_index=True)
        if plan.get("folds") and (tested := table["dialogue"].nunique()) < dealt:
            raise InputError(f"{one}: folds: {tested} of {dealt} dialogues were tested so far; {FINISH} {directory}")
        key = [name for name in ("dialogue", "turn") if name in table]
        tables.append(table.sort_values(key, kind="stable", ignore_index=True) if "turn" in key else table)
    return tables


def read_table(path: Path, reference: Predictions) -> Predictions:
    """Somebody else's predictions: a CSV with the columns ``utterance`` and ``predicted``, and maybe ``dialogue``.

    Args:
        path: The file.
        reference: A run, whose utterances they must be and whose labels count.

    Raises:
        InputError: If utterances or columns are missing, an utterance is there twice, or a class is unknown.
    """
    check_regular(path)
    try:
        given = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a CSV file of predictions") from None
    except (ValueError, pd.errors.ParserError):
        raise InputError(f"{path}: not CSV in UTF-8; give the columns utterance and predicted") from None
    given.columns = [str(name).strip().lower() for name in given.columns]
    for column in ("utterance", "predicted"):
        if column not in given:
            there = printable(", ".join(map(str, given.columns)), 200)
            raise InputError(f"{path}: no column {column}; there are {there}; name it in the first line")
    if "split" in given:
        given = given[given["split"] == "test"].copy()
    key = ["dialogue", "utterance"] if "dialogue" in given else ["utterance"]
    given[key] = given[key].map(unguarded)  # where it is a table of ours
    wanted = reference.table[key].astype(str)
    rows = pd.MultiIndex.from_frame(wanted) if len(key) > 1 else pd.Index(wanted["utterance"])
    index = pd.MultiIndex.from_frame(given[key]) if len(key) > 1 else pd.Index(given["utterance"])
    if rows.has_duplicates:
        raise InputError(f"{path}: utterance ids are not unique in {reference.name}; add a column dialogue")
    if index.has_duplicates:
        twice = index[index.duplicated()][0]
        raise InputError(f"{path}: utterance {shown(twice)} is there twice; give each one line")
    places = index.get_indexer(rows)
    if (places < 0).any():
        raise InputError(
            f"{path}: utterance {shown(rows[int(np.argmax(places < 0))])} of {reference.name} is not there "
            f"({int((places < 0).sum())} of {len(rows)} are not); give a prediction for each"
        )
    numbers = {name.casefold(): k for k, name in enumerate(reference.label_names)}
    numbers = {str(k): k for k in range(len(reference.label_names))} | numbers
    predicted = given["predicted"].str.strip().str.replace(r"^(\d+)\.0+$", r"\1", regex=True)  # as pandas writes floats
    classes = np.array([numbers.get(value.casefold(), -1) for value in predicted])[places]
    if (classes < 0).any():
        at = int(np.argmax(classes < 0))
        value = given["predicted"].iloc[places[at]]
        raise InputError(
            f"{path}: predicted: {printable(value, 40)!r} of utterance {shown(rows[at])} is no class; there are "
            f"{', '.join(reference.label_names)}, or their numbers from 0"
        )
    return Predictions(printable(path.name, 60), reference.table, classes[None], classes, reference.label_names)


def shown(key: Any) -> str:
    """An utterance's name for a message."""
    return repr(printable(" ".join(key) if isinstance(key, tuple) else str(key), 80))


def same_utterances(one: pd.DataFrame, other: pd.DataFrame, name: str, other_name: str) -> None:
    """Refuse what was tested on different utterances.

    Raises:
        InputError: If so; it names the first.
    """
    keys = [list(zip(table["dialogue"], table["utterance"], strict=True)) for table in (one, other)]
    cure = "compare runs of one test split"
    for mine, theirs, here, there in ((keys[0], keys[1], name, other_name), (keys[1], keys[0], other_name, name)):
        known = set(theirs)
        if strange := next((key for key in mine if key not in known), None):
            utterance, dialogue = printable(str(strange[1]), 80), printable(str(strange[0]), 80)
            raise InputError(
                f"{there}: not tested on utterance {utterance!r} of dialogue {dialogue!r}, as {here} was; {cure}"
            )
    if keys[0] != keys[1]:
        raise InputError(f"{other_name}: its utterances are those of {name} in another order; score it again")
    labels = one["label"].to_numpy() != other["label"].to_numpy()
    if labels.any():
        at = printable(str(one["utterance"].iloc[int(labels.argmax())]), 80)
        raise InputError(f"{other_name}: utterance {at!r} has another label than in {name}; {cure}")


def aligned(runs: Sequence[Predictions]) -> list[Predictions]:
    """The runs with their utterances in the order of the first; those without a label are left out.

    Raises:
        InputError: If they were tested on different utterances or classes; it names the first.
    """
    first, found = runs[0], [runs[0]]
    order = {key: k for k, key in enumerate(zip(first.table["dialogue"], first.table["utterance"], strict=True))}
    for run in runs[1:]:
        if run.label_names != first.label_names:
            a, b = ", ".join(run.label_names), ", ".join(first.label_names)
            raise InputError(printable(f"{run.name}: its classes are {a}, those of {first.name} {b}", 400))
        keys = zip(run.table["dialogue"], run.table["utterance"], strict=True)
        places = [order.get(key, len(order)) for key in keys]
        by = np.argsort(places, kind="stable")
        table = run.table.iloc[by].reset_index(drop=True)
        same_utterances(first.table, table, first.name, run.name)
        found.append(Predictions(run.name, table, run.members[:, by], run.together[by], run.label_names))
    known = (first.table["label"] != IGNORE_LABEL).to_numpy()
    return found if known.all() else [part(run, known) for run in found]


def part(run: Predictions, chosen: np.ndarray) -> Predictions:
    """A run on some of its utterances, bool ``[N]``."""
    table = run.table[chosen].reset_index(drop=True)
    return Predictions(run.name, table, run.members[:, chosen], run.together[chosen], run.label_names)


# Scores ---------------------------------------------------------------------------------------------------------------


def confusions(run: Predictions) -> np.ndarray:
    """Confusion matrices of each dialogue, ``[S, D, C, C]``, rows labels; dialogues in the order of their first turn.

    Utterances without a label are left out.
    """
    labels = run.table["label"].to_numpy(int)
    codes, names = pd.factorize(run.table["dialogue"])
    classes, known = len(run.label_names), labels != IGNORE_LABEL
    counts = np.zeros((len(run.members), len(names), classes, classes))
    for matrix, predicted in zip(counts, run.members, strict=True):
        np.add.at(matrix, (codes[known], labels[known], predicted[known]), 1)
    return counts


def measures(matrices: np.ndarray, label_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores of confusion matrices ``[..., C, C]``, in percent, each ``[...]``: `MEASURES`, and the F1 of each class.

    A class that occurs neither in labels nor in predictions is left out of macro F1, as scikit-learn leaves it out.
    """
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    support, said = matrices.sum(-1), matrices.sum(-2)
    f1 = 200 * right / np.maximum(support + said, 1)
    total = np.maximum(support.sum(-1), 1)
    scores = {
        "weighted F1": (f1 * support).sum(-1) / total,
        "macro F1": f1.sum(-1) / np.maximum(((support + said) > 0).sum(-1), 1),
        "accuracy": 100 * right.sum(-1) / total,
    }
    return scores | {f"F1 {name}": f1[..., k] for k, name in enumerate(label_names)}


def draws(dialogues: Sequence[str], count: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each dialogue is in each bootstrap draw, ``[R, D]``: drawn with replacement within its session.

    Args:
        dialogues: Their ids; without sessions in them all are of one.
        count: How many draws.
        seed: Decides them.
    """
    rng = np.random.default_rng(seed)
    sessions = np.array([session_of(str(i)) for i in dialogues])
    counts = np.zeros((count, len(dialogues)))
    for session in sorted(set(sessions)):
        members = np.flatnonzero(sessions == session)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=count)
    return counts


def scores_of(matrices: np.ndarray, weights: np.ndarray, label_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores in each draw, the mean over the members, each ``[R]``.

    Args:
        matrices: ``[S, D, C, C]``.
        weights: How often each dialogue counts, ``[R, D]``.
        label_names: C names.
    """
    members, dialogues, classes, _ = matrices.shape
    drawn = np.einsum("rd,sdk->srk", weights, matrices.reshape(members, dialogues, -1), optimize=True)
    return {
        name: each.mean(0) for name, each in measures(drawn.reshape(members, -1, classes, classes), label_names).items()
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval of bootstrap draws."""
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(one: np.ndarray, other: np.ndarray, labels: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test of two classifiers on the same utterances (McNemar 1947).

    It takes utterances for independent, which those of a dialogue are not: read it beside the interval.

    Args:
        one: Classes, ``[N]``.
        other: Classes, ``[N]``.
        labels: ``[N]``.

    Returns:
        How many the first alone has right, how many the second alone, and the two-sided p-value.
    """
    known = labels != IGNORE_LABEL
    first, second = (one == labels)[known], (other == labels)[known]
    only_one, only_other = int((first & ~second).sum()), int((second & ~first).sum())
    total = only_one + only_other
    return only_one, only_other, float(stats.binomtest(only_one, total).pvalue) if total else 1.0


@dataclass(frozen=True)
class Gain:
    """What one run scores above another, in points of weighted F1.

    Attributes:
        difference: Of the means over seeds.
        low: End of its interval over dialogues.
        high: The other end.
        sessions: The difference in each session; empty where ids name fewer than two.
    """

    difference: float
    low: float
    high: float
    sessions: Mapping[str, float]

    @property
    def verdict(self) -> str:
        """``gain`` or ``loss`` where the interval excludes 0, else ``none``."""
        return "gain" if self.low > 0 else "loss" if self.high < 0 else "none"


def gain(run: Predictions, over: Predictions, count: int = DRAWS) -> Gain:
    """What a run scores above another on the same test utterances, with a paired bootstrap over dialogues in sessions.

    Args:
        run: Of `read_run`.
        over: Of `read_run`; its order of utterances is taken.
        count: Draws.

    Raises:
        InputError: If they were tested on different utterances.
    """
    over, run = aligned([over, run])
    dialogues = list(dict.fromkeys(over.table["dialogue"]))
    matrices = [confusions(each) for each in (run, over)]

    def difference(weights: np.ndarray) -> np.ndarray:
        mine, theirs = (scores_of(each, weights, run.label_names)["weighted F1"] for each in matrices)
        return mine - theirs

    low, high = interval(difference(draws(dialogues, count)))
    named = np.array([session_of(str(i)) for i in dialogues])
    sessions = sorted(set(named)) if len(set(named)) > 1 else []
    return Gain(
        float(difference(np.ones((1, len(dialogues))))[0]),
        low,
        high,
        {name: float(difference((named == name)[None].astype(float))[0]) for name in sessions},
    )


# The tables -----------------------------------------------------------------------------------------------------------


def compare(runs: Sequence[Predictions], count: int = DRAWS, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Runs side by side, the first being what the others are compared with.

    Args:
        runs: Two or more, or one to see its intervals.
        count: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        ``scores``: a row for each run and measure, with ``value``, ``low`` and ``high``. ``differences``: the same of
        each other run less the first. ``mcnemar``: a row each other run. ``groups``: as `groups` gives them.

    Raises:
        InputError: If they were tested on different utterances.
    """
    runs = aligned(runs)
    names = distinct_names(runs)
    dialogues = list(dict.fromkeys(runs[0].table["dialogue"]))
    weights, once = draws(dialogues, count, seed), np.ones((1, len(dialogues)))
    labels = runs[0].table["label"].to_numpy(int)
    if not (labels != IGNORE_LABEL).any():
        raise InputError(f"{runs[0].name}: no test utterance has a label; compare runs that were tested on some")
    values, drawn = [], []
    for run in runs:
        matrices = confusions(run)
        values.append({name: float(x[0]) for name, x in scores_of(matrices, once, run.label_names).items()})
        drawn.append(scores_of(matrices, weights, run.label_names))

    def row(run: str, measure: str, value: float, draws: np.ndarray) -> dict[str, Any]:
        low, high = interval(draws)
        return {"run": run, "measure": measure, "value": value, "low": low, "high": high}

    scores = [
        row(name, measure, values[k][measure], drawn[k][measure])
        for k, name in enumerate(names)
        for measure in values[k]
    ]
    differences = [
        {"over": names[0]} | row(name, m, values[k][m] - values[0][m], drawn[k][m] - drawn[0][m])
        for k, name in enumerate(names)
        if k
        for m in values[k]
    ]
    tests = []
    for name, run in list(zip(names, runs, strict=True))[1:]:
        mine, theirs, p = mcnemar(run.together, runs[0].together, labels)
        tests.append({"run": name, "over": names[0], "right alone": mine, "other right alone": theirs, "p": p})
    return {
        "scores": pd.DataFrame(scores),
        "differences": pd.DataFrame(differences, columns=["run", "over", "measure", "value", "low", "high"]),
        "mcnemar": pd.DataFrame(tests, columns=["run", "over", "right alone", "other right alone", "p"]),
        "groups": groups(runs, names, min(count, GROUP_DRAWS), seed),
    }


def groups(runs: Sequence[Predictions], names: Sequence[str], count: int = GROUP_DRAWS, seed: int = 0) -> pd.DataFrame:
    """Scores of each run by speaker and by session, the mean over its members; weighted F1 with its interval.

    Args:
        runs: Aligned.
        names: Theirs.
        count: Draws of the bootstrap over the group's dialogues.
        seed: Of the draws.

    Returns:
        ``by``, ``group``, ``run``, ``utterances``, `MEASURES`, and the interval of weighted F1, ``low`` and ``high``,
        NaN of a single dialogue.
    """
    table = runs[0].table
    speakers = table["speaker"].astype(str)
    sessions = table["dialogue"].map(lambda i: session_of(str(i)))
    if (sessions != "").all():  # a name means one person in a session, and another in the next
        speakers = sessions + " " + speakers
    rows = []
    for by, column in (("session", sessions), ("speaker", speakers)):
        for group in sorted(set(column) - {""}):
            inside = (column == group).to_numpy()
            weights = draws(list(dict.fromkeys(table["dialogue"][inside])), count, seed)
            for name, run in zip(names, runs, strict=True):
                matrices = confusions(part(run, inside))
                scores = measures(matrices.sum(1), run.label_names)
                found = {m: float(scores[m].mean()) for m in MEASURES}
                drawn = scores_of(matrices, weights, run.label_names)["weighted F1"]
                low, high = interval(drawn) if weights.shape[1] > 1 else (np.nan, np.nan)
                about = {"by": by, "group": group, "run": name, "utterances": int(matrices[0].sum())}
                rows.append({**about, **found, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["by", "group", "run", "utterances", *MEASURES, "low", "high"])


def distinct_names(runs: Sequence[Predictions]) -> list[str]:
    """The runs' names, with a number behind those that occur before."""
    found: list[str] = []
    for name in (run.name for run in runs):
        k, one = 2, name
        while one in found:
            one, k = f"{name} ({k})", k + 1
        found.append(one)
    return found


def score_table(tables: Mapping[str, pd.DataFrame], mark: Callable[[str], str] = lambda text: text) -> pd.DataFrame:
    """Runs as rows, measures as columns, each cell a value and its interval.

    Args:
        tables: Of `compare`.
        mark: What marks a difference whose interval excludes 0.
    """
    scores = tables["scores"].assign(kind="score")
    rows: dict[str, dict[str, str]] = {}
    for _, line in scores.iterrows():
        cell = f"{line['value']:.2f} [{line['low']:.2f}, {line['high']:.2f}]"
        rows.setdefault(line["run"], {})[line["measure"]] = cell
    for _, line in tables["differences"].iterrows():
        cell = f"{line['value']:+.2f} [{line['low']:+.2f}, {line['high']:+.2f}]"
        clear = line["low"] > 0 or line["high"] < 0
        rows.setdefault(f"{line['run']} - {line['over']}", {})[line["measure"]] = mark(cell) if clear else cell
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run").reset_index()


def markdown(table: pd.DataFrame) -> str:
    """A table for a README."""
    rows = [
        list(map(str, table.columns)),
        ["---"] * table.shape[1],
        *[list(map(_cell, row)) for row in table.to_numpy()],
    ]
    return "\n".join("| " + " | ".join(x.replace("|", "\\|") for x in row) + " |" for row in rows) + "\n"


def latex(table: pd.DataFrame) -> str:
    """A table for a paper, with the rules of the package booktabs."""
    columns = table.shape[1]
    lines = [r"\begin{tabular}{l" + "r" * (columns - 1) + "}", r"\toprule"]
    body = [[_escape(str(name)) for name in table.columns]]
    body += [[_escape(_cell(x)) for x in row] for row in table.to_numpy()]
    lines += [" & ".join(body[0]) + r" \\", r"\midrule", *(" & ".join(row) + r" \\" for row in body[1:])]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _cell(value: Any) -> str:
    if isinstance(value, float) and np.isnan(value):
        return "–"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and 0 < abs(value) < 0.01
        else (f"{value:.2f}" if isinstance(value, float) else str(value))
    )


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)
