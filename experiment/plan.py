"""Several runs as one: a flat list of seeds and folds, trained one after the other and summarised."""

from __future__ import annotations

import dataclasses
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import parallel
import utils
from dataloader import Corpus, cross_validation
from experiment.console import say
from experiment.corpus import load_corpus
from experiment.jobs import Job, do_all
from experiment.look import leave_a_look
from experiment.predictions import class_names, predictions_of, read_predictions
from experiment.run_directory import check_same_run, drop_states, locked, read_report, states, write_json
from experiment.settings import Settings, from_json
from files import InputError, InterruptedRunError, TrainingError, WriteError, read_text

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """One run of the plan.

    Attributes:
        name: Of its directory under that of the plan, such as ``seed0/foldSes01``; empty if it is the only one.
        settings: Its settings.
        corpus: Its data, the fold's held-out dialogues being the test split.
    """

    name: str
    settings: Settings
    corpus: Corpus


def plan(
    settings: Settings, corpus: Corpus, seeds: Sequence[int] | None, folds: str | int | None, folds_over: str
) -> list[PlannedRun]:
    """Every seed and, of each, every fold; or the one run there is."""
    parts = cross_validation(corpus, folds, folds_over) if folds else {"": corpus}
    return [
        PlannedRun(
            "/".join(filter(None, [f"seed{seed}" if seeds else "", f"fold{fold}" if folds else ""])),
            settings.replace(run__seed=seed, data__fold=(folds, folds_over, fold) if folds else settings.data.fold),
            part,
        )
        for seed in (seeds or [settings.run.seed])
        for fold, part in parts.items()
    ]


def train_plan(
    runs: Sequence[PlannedRun],
    directory: Path,
    train: Callable[[Settings, Corpus, Path], Figures],
    at_once: int = 1,
    cluster: str | None = None,
) -> Figures:
    """Train every run that is not finished, and summarise folds and seeds.

    Args:
        runs: The plan.
        directory: Its directory, which the caller holds.
        train: Trains one run and returns what its ``report.json`` holds.
        at_once: How many runs at a time, each in a process of its own where there are several.
        cluster: Address of a Dask scheduler that takes them instead.

    Returns:
        The figures of the only run, or the means of several; with ``interrupted`` where the plan was stopped.

    Raises:
        InputError, TrainingError, WriteError: If a run fails; of several at a time, after the others.
    """
    finished: dict[str, Figures] = {}
    if runs[0].name and (at_once > 1 or cluster):
        return train_at_once(runs, directory, train, at_once, cluster)
    for run in runs:
        if not run.name:
            return train_or_read(run, directory, train)
        say(", ".join(part[0].upper() + part[1:] for part in spoken(run.name)))
        figures = train_in_plan(run, directory / run.name, train)
        if "interrupted" in figures:
            summarise_tree(directory, finished)
            return figures
        finished[run.name] = figures
    return summarise_tree(directory, finished)


def train_at_once(
    runs: Sequence[PlannedRun],
    directory: Path,
    train: Callable[[Settings, Corpus, Path], Figures],
    at_once: int,
    cluster: str | None,
) -> Figures:
    """`train_plan`, several runs at a time, each by the function ``run_seed`` of the script that `train` is of."""
    if at_once > len(runs):
        say(f"--jobs {at_once}: there are {len(runs)} runs, so {len(runs)} at a time")
        at_once = len(runs)
    script = Path(sys.modules[train.__module__].__file__).stem  # it may be running as __main__
    arguments = {run.name: (script, dataclasses.asdict(run.settings), run.name, run.corpus.sha256) for run in runs}
    work = {
        name: Job(__name__, "train_elsewhere", (*each, str(directory / name)), directory / name)
        for name, each in arguments.items()
    }
    results = do_all(work, at_once, cluster, directory)
    failed = {name: result for name, result in results.items() if "failed" in result}
    stopped = [name for name in work if "interrupted" in results[name]]
    finished = {name: results[name] for name in work if name not in failed and name not in stopped}
    means = summarise_tree(directory, finished)
    if stopped:
        return {**means, "interrupted": f"{stopped[0]}, {results[stopped[0]]['interrupted']}"}
    if failed:
        reasons = "; ".join(f"{name}: {result['failed']}" for name, result in failed.items())
        kind = InputError if all(result.get("input") for result in failed.values()) else TrainingError
        kind = WriteError if any(result.get("unwritten") for result in failed.values()) else kind
        others = ", the others are finished" if finished else ""
        raise kind(f"{len(failed)} of {len(runs)} runs failed{others}: {reasons:.1500}")
    return means


def train_elsewhere(script: str, settings: Mapping[str, Any], name: str, sha256: str, directory: str) -> Figures:
    """A run of a plan, in a process that has its own data.

    Args:
        script: The module that has the method; it is above this room, so it goes by its name.
        settings: Of the run.
        name: Of the run.
        sha256: Of the data it is meant for.
        directory: Of the run.

    Raises:
        InputError: If the data are others here.
    """
    one = from_json(settings, name)
    utils.choose_determinism(one.run.deterministic)
    corpus = load_corpus(one)
    if corpus.sha256 != sha256:
        raise InputError(
            f"{corpus.name}: other data on {platform.node()} than where the runs were begun; copy the file"
        )
    return train_in_plan(PlannedRun(name, one, corpus), Path(directory), import_module(script).run_seed)


def train_in_plan(run: PlannedRun, directory: Path, train: Callable[[Settings, Corpus, Path], Figures]) -> Figures:
    """The figures of a run that is one of several, in its own directory."""
    with locked(directory):
        check_same_run(directory, run.settings, run.corpus)
        return train_or_read(run, directory, train)


def train_or_read(run: PlannedRun, directory: Path, train: Callable[[Settings, Corpus, Path], Figures]) -> Figures:
    """The figures of a run, trained unless it is finished already."""
    figures = parallel.from_first(
        lambda: read_report(directory) if (directory / "report.json").exists() else {"interrupted": None}
    )
    if "interrupted" in figures:
        trained = train(run.settings, run.corpus, directory)
        figures = parallel.from_first(lambda: trained)
    else:
        say(finished_text(directory, figures))
        if states(directory) and not parallel.follows():  # killed between the report and the end
            leave_a_look(directory, run.settings.run)
    if "interrupted" not in figures and not parallel.follows():
        drop_states(directory)
    return figures


def finished_text(directory: Path, figures: Figures) -> str:
    """What a finished run printed, or its figures where that file is gone."""
    try:
        return read_text(directory / "report.txt")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        told = ", ".join(f"{name} {figures['test'][name]:.2f}" for name in utils.METRICS)
        return f"{directory / 'report.txt'}: cannot be read ({reason}); report.json has on test: {told}"


def spoken(name: str) -> list[str]:
    """``seed 0`` and ``fold Ses01`` of ``seed0/foldSes01``."""
    return [f"{part[:4]} {part[4:]}" for part in name.split("/")]


def out_of_fold(
    settings: Settings, corpus: Corpus, directory: Path, train: Callable[[Settings, Corpus, Path], Figures]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training dialogues under networks that had not seen them: the same training, once for each fold of them.

    Args:
        settings: Of the run; ``run.calibrate`` says how many folds.
        corpus: With the run's splits.
        directory: Of the run, for the folds' until its report is written: a kill finds them whole.
        train: Trains one run.

    Returns:
        Labels ``[N]`` and probabilities ``[N, C]`` of each fold.

    Raises:
        InputError: If the training dialogues cannot be so divided.
        InterruptedRunError: If a training is stopped.
    """
    one = settings.replace(run__calibrate=None, run__pictures=False, run__tensorboard=False)
    found, folder = [], directory / "calibration"
    for fold, part in calibration_folds(settings, corpus).items():
        say(f"To calibrate, fold {fold}")
        (folder / fold).mkdir(parents=True, exist_ok=True)
        figures = train_or_read(PlannedRun(fold, one, part), folder / fold, train)
        if "interrupted" in figures:
            raise InterruptedRunError(f"calibration, fold {fold}: {figures['interrupted']}")
        if not parallel.follows():
            test = read_predictions(folder / fold)
            found.append((test["label"].to_numpy(), test.filter(regex="^p_").to_numpy()))
    return found


def calibration_folds(settings: Settings, corpus: Corpus) -> dict[str, Corpus]:
    """The folds of the training dialogues that ``--calibrate`` asks for.

    Raises:
        InputError: If the training dialogues cannot be so divided.
    """
    try:
        return cross_validation(corpus, settings.run.calibrate, over="train")
    except InputError as error:
        raise InputError(str(error).replace("--folds", "--calibrate")) from None


def summarise_tree(directory: Path, finished: Mapping[str, Figures]) -> Figures:
    """Summarise the folds of each seed, then the seeds; or the only kind there is. Returns the overall means."""
    groups: dict[str, dict[str, Figures]] = {}
    for name, figures in finished.items():
        above, _, last = name.rpartition("/")
        groups.setdefault(above, {})[last] = figures
    if "" in groups:
        return summarise(directory, groups[""])
    means = {}
    for above, each in groups.items():
        say(f"{spoken(above)[0].capitalize()}:")
        means[above] = summarise(directory / above, each)
    return summarise(directory, means) if means else {}


def summarise(directory: Path, figures: Mapping[str, Figures]) -> dict[str, Any]:
    """Write and print mean, standard deviation (n - 1; none of a single run), interval and each run's figures.

    Args:
        directory: Where ``summary.json`` goes.
        figures: Name of the run, ``seed0`` or ``foldSes01``, to its report or to the means over its folds.

    Returns:
        The means of ``test`` and ``valid``, each class's F1 on test among them.
    """
    kind = next(iter(figures))[:4]
    figures = {name[4:]: each for name, each in figures.items()}
    table = {
        split: pd.DataFrame([each[split] for each in figures.values()], columns=list(utils.METRICS)).astype(float)
        for split in ("test", "valid")
        if all(each.get(split) for each in figures.values())
    }
    means: dict[str, Any] = {split: frame.mean().to_dict() for split, frame in table.items()}
    statistics = {"standard_deviation": utils.deviation, "interval_95": utils.interval}
    summary = {f"{kind}s": {name: dict(each) for name, each in figures.items()}, "mean": means} | {
        name: {split: {c: statistic(frame[c]) for c in frame} for split, frame in table.items()}
        for name, statistic in statistics.items()
    }
    classes = class_table(figures)
    if classes is not None:
        summary["per_class_f1"] = {
            name: {"mean": float(column.mean()), "standard_deviation": utils.deviation(column)}
            for name, column in classes.items()
        }
    chosen = [each["chosen_on_test"]["weighted_f1"] for each in figures.values() if each.get("chosen_on_test")]
    if len(chosen) == len(figures):
        spread = utils.deviation(pd.Series(chosen))
        summary["chosen_on_test"] = {"weighted_f1": float(np.mean(chosen)), "standard_deviation": spread}
    said = predictions_of(directory, kind, list(figures))
    extra = {}
    if said is not None:
        name = "pooled" if kind == "fold" else "ensemble"
        extra[name] = utils.score(said["label"].to_numpy(), said.filter(regex="^p_").to_numpy(), class_names(said))
        summary |= extra
    write_json(directory / "summary.json", summary)
    say(summary_text(kind, table["test"], classes, chosen if len(chosen) == len(figures) else [], extra))
    carried = {"per_class": {name: {"f1": float(column.mean())} for name, column in (classes or {}).items()}}
    means = {**means, "test": {**means["test"], **(carried if classes else {})}}
    if len(chosen) == len(figures):
        means["chosen_on_test"] = {"weighted_f1": float(np.mean(chosen))}
    return means


def class_table(figures: Mapping[str, Figures]) -> dict[str, pd.Series] | None:
    """F1 on test of each class, in percent, by name: a value a run. None where a run does not say, or of others."""
    each = [run["test"].get("per_class") for run in figures.values()]
    if not all(each) or any(one.keys() != each[0].keys() for one in each):
        return None
    return {name: pd.Series([float(classes[name]["f1"]) for classes in each]) for name in each[0]}


def summary_text(
    kind: str,
    test: pd.DataFrame,
    classes: Mapping[str, pd.Series] | None,
    chosen: Sequence[float],
    extra: Mapping[str, Figures],
) -> str:
    """What is printed of several runs.

    Args:
        kind: ``seed`` or ``fold``.
        test: A row a run, a column a figure.
        classes: F1 of each class, a value a run.
        chosen: Weighted F1 of each run as chosen on test, where that was asked for.
        extra: The scores of ``ensemble`` or ``pooled`` predictions, if there are any.
    """
    count = len(test)
    lines = [f"{count} {kind}{'s' * (count > 1)}, test split, mean ± standard deviation, 95 % interval:"]
    named = {**dict(test.items()), **{f"F1 {name}": column for name, column in (classes or {}).items()}}
    width = max(12, *map(len, named))
    for name, column in named.items():
        each = ", ".join(f"{value:.2f}" for value in column)
        spread, interval = utils.deviation(column), utils.interval(column)
        most = math.inf if name == "loss" else 100.0  # of few runs Student's t reaches beyond what a score can be
        known = f"{spread:.2f}, {max(0, interval[0]):.2f} to {min(most, interval[1]):.2f}" if interval else "–"
        lines.append(f"  {name:<{width}} {column.mean():6.2f} ± {known}   ({each})")
    if chosen:
        lines.append(
            f"Chosen on test, as much of the field reports: weighted F1 {np.mean(chosen):.2f} in the mean. "
            "The figures above are the honest ones."
        )
    if "ensemble" in extra and count > 1:
        scores = extra["ensemble"]
        lines.append(
            f"All {count} networks as one, their probabilities averaged (an ensemble, not a single network): "
            f"weighted F1 {scores['weighted_f1']:.2f}, macro F1 {scores['macro_f1']:.2f}, "
            f"accuracy {scores['accuracy']:.2f}"
        )
    if "pooled" in extra:
        scores = extra["pooled"]
        lines.append(
            f"Pooled over the {sum(scores['support'])} utterances of all folds: weighted F1 "
            f"{scores['weighted_f1']:.2f}, macro F1 {scores['macro_f1']:.2f}, accuracy {scores['accuracy']:.2f}"
        )
        lines.append(f"{np.array(scores['confusion_matrix'])}")
    return "\n".join(lines)
