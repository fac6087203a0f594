"""Several runs as one: a flat list of seeds and folds, trained one after the other and summarised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import utils
from dataloader import Corpus, cross_validation
from experiment.console import say
from experiment.run_directory import drop_states, locked, read_json, write_json
from experiment.settings import Settings

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
    runs: Sequence[PlannedRun], directory: Path, train: Callable[[Settings, Corpus, Path], Figures]
) -> Figures:
    """Train every run that is not finished, and summarise folds and seeds.

    Args:
        runs: The plan.
        directory: Its directory, which the caller holds.
        train: Trains one run and returns what its ``report.json`` holds.

    Returns:
        The figures of the only run, or the means of several; with ``interrupted`` where the plan was stopped.
    """
    finished: dict[str, Figures] = {}
    for run in runs:
        if not run.name:
            return train_or_read(run, directory, train)
        say(", ".join(part[0].upper() + part[1:] for part in spoken(run.name)))
        with locked(directory / run.name):
            figures = train_or_read(run, directory / run.name, train)
        if "interrupted" in figures:
            summarise_tree(directory, finished)
            return figures
        finished[run.name] = figures
    return summarise_tree(directory, finished)


def train_or_read(run: PlannedRun, directory: Path, train: Callable[[Settings, Corpus, Path], Figures]) -> Figures:
    """The figures of a run, trained unless it is finished already."""
    path = directory / "report.json"
    figures = read_json(path) if path.exists() else {"interrupted": None}
    if "interrupted" in figures:
        figures = train(run.settings, run.corpus, directory)
    else:
        say((directory / "report.txt").read_text(encoding="utf-8"))
    if "interrupted" not in figures:
        drop_states(directory)
    return figures


def spoken(name: str) -> list[str]:
    """``seed 0`` and ``fold Ses01`` of ``seed0/foldSes01``."""
    return [f"{part[:4]} {part[4:]}" for part in name.split("/")]


def summarise_tree(directory: Path, finished: Mapping[str, Figures]) -> Figures:
    """Summarise the folds of each seed, then the seeds; or the only kind there is. Returns the overall means."""
    groups: dict[str, dict[str, Figures]] = {}
    for name, figures in finished.items():
        above, _, last = name.rpartition("/")
        groups.setdefault(above, {})[last] = figures
    if "" in groups:
        return summarise(directory, groups[""])
    means = {above: summarise(directory / above, each) for above, each in groups.items()}
    return summarise(directory, means) if means else {}


def summarise(directory: Path, figures: Mapping[str, Figures]) -> dict[str, dict[str, float]]:
    """Write, draw and print mean, standard deviation (n - 1; none of a single run), interval and each run's figures.

    Args:
        directory: Where ``summary.json`` and ``spread.png`` go.
        figures: Name of the run, ``seed0`` or ``foldSes01``, to its report or to the means over its folds.

    Returns:
        The means of ``test`` and ``valid``.
    """
    from experiment import plots  # matplotlib takes a second to import

    kind = next(iter(figures))[:4]
    figures = {name[4:]: each for name, each in figures.items()}
    table = {
        split: pd.DataFrame([each[split] for each in figures.values()], columns=list(utils.METRICS)).astype(float)
        for split in ("test", "valid")
        if all(each.get(split) for each in figures.values())
    }
    means = {split: frame.mean().to_dict() for split, frame in table.items()}
    statistics = {"standard_deviation": utils.deviation, "interval_95": utils.interval}
    summary = {f"{kind}s": {name: dict(each) for name, each in figures.items()}, "mean": means} | {
        name: {split: {c: statistic(frame[c]) for c in frame} for split, frame in table.items()}
        for name, statistic in statistics.items()
    }
    write_json(directory / "summary.json", summary)
    plots.plot_spread(dict(zip(figures, table["test"]["weighted_f1"], strict=True)), kind, directory / "spread.png")
    lines = [f"{len(figures)} {kind}{'s' * (len(figures) > 1)}, test split, mean ± standard deviation, 95 % interval:"]
    for name, column in table["test"].items():
        each = ", ".join(f"{value:.2f}" for value in column)
        spread, interval = utils.deviation(column), utils.interval(column)
        known = f"{spread:.2f}, {interval[0]:.2f} to {interval[1]:.2f}" if interval else "–"
        lines.append(f"  {name:<12} {column.mean():6.2f} ± {known}   ({each})")
    say("\n".join(lines))
    return means
