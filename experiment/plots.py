"""The pictures of a run, for papers and talks: each a function that returns a figure, all in one style."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler

from experiment import calibration
from experiment.insight import Insight, Map, over_folds, resample
from experiment.palette import COLOURS, colour, marker, number, plain
from files import replacing
from utils import interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of a backend that needs no screen
from matplotlib.ticker import MaxNLocator

STYLE = Path(__file__).parent / "paper.mplstyle"
COLUMN, PAGE = 3.5, 7.2  # widths in inches: of a column, of a page
SHAPES = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "plus": "P",
    "cross": "X",
    "pentagon": "p",
    "bar": "_",
    "down": "v",
}
NAMED = 40  # classes at most that are named in a legend or on an axis
WRITTEN = 12  # classes at most whose counts are written into the confusion matrix
TURNS = 120  # turns at most of the dialogue that is drawn


@contextmanager
def style() -> Iterator[None]:
    """The style, for figures made and saved inside, whatever style the process has otherwise."""
    cycle = cycler(color=COLOURS) + cycler(marker=[SHAPES[marker(i)] for i in range(len(COLOURS))])
    with plt.style.context(["default", STYLE, {"axes.prop_cycle": cycle}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")  # a writing that the font lacks is drawn as boxes
        yield


def name_of(text: object, most: int = 24) -> str:
    """A name as it is drawn; one that begins with ``_`` would be left out of legends."""
    shown = plain(text, most) or " "
    return f" {shown}" if shown.startswith("_") else shown


def save(figure: plt.Figure, path: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write a figure in each format, whole or not at all, and close it."""
    written = []
    try:
        for form in formats:
            with replacing(path.with_suffix(f".{form}")) as temporary:
                if form == "png":
                    figure.canvas.print_png(temporary)  # the same pixels as `savefig`, which draws everything twice
                else:
                    figure.savefig(temporary, format=form, metadata={"CreationDate" if form == "pdf" else "Date": None})
            written.append(path.with_suffix(f".{form}"))
    finally:
        plt.close(figure)
    return written


def _legend(axis: plt.Axes, **where: Any) -> None:
    """A legend beside or below the data, never on them."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(**({"loc": "upper center", "bbox_to_anchor": (0.5, -0.24), "ncols": 3} | where))


def _by_epoch(axis: plt.Axes, rows: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Lines by epoch, whole numbers across, few enough markers to be told apart."""
    every = max(1, len(rows) // 10)
    for place, (column, name) in enumerate((c, n) for c, n in columns.items() if c in rows):
        i = number(name, place)
        look = {"color": colour(i), "marker": SHAPES[marker(i)], "markevery": every}
        axis.plot(rows.index, rows[column], label=name_of(name), **look)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(rows) == 1:
        axis.set_xlim(rows.index[0] - 1, rows.index[0] + 1)
    axis.set_xlabel("epoch")


def adversarial_losses(history: Sequence[Mapping[str, float]], even: tuple[float, float]) -> plt.Figure:
    """Losses of generators and discriminators by epoch, one panel each, with what they are where neither side wins.

    Args:
        history: A row an epoch.
        even: The loss of a generator and of a discriminator that cannot tell, in nats.
    """
    curves = pd.DataFrame(history).set_index("epoch")
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.8), sharex=True)
    for axis, kind, title, level in zip(axes, "GD", ("Generators", "Discriminators"), even, strict=True):
        _by_epoch(axis, curves, {c: c.split("_")[0] for c in curves if c.endswith(f"_{kind}_loss")})
        axis.axhline(level, color="0.4", linestyle=":", marker="", label=f"neither side wins ({level:.2f})")
        axis.set(title=title, ylabel="adversarial loss (nats)")
        _legend(axis, ncols=2)
    return figure


def fusion_losses(history: Sequence[Mapping[str, float]]) -> plt.Figure | None:
    """Every loss of the generators but the adversarial one, by epoch, one panel each; None where there is no other."""
    curves = pd.DataFrame(history).set_index("epoch")
    modalities = [c.removesuffix("_G_loss") for c in curves if c.endswith("_G_loss")]
    terms = [c.partition("_") for c in curves if "_G_" not in c and "_D_" not in c]
    kinds = dict.fromkeys(kind for modality, _, kind in terms if modality in modalities)
    if not kinds:
        return None
    rows = -(-len(kinds) // 2)
    figure, axes = plt.subplots(rows, min(2, len(kinds)), figsize=(PAGE, 2.8 * rows), squeeze=False)
    for axis in axes.flat[len(kinds) :]:
        axis.set_axis_off()
    for axis, kind in zip(axes.flat, kinds, strict=False):
        _by_epoch(axis, curves, {c: c.partition("_")[0] for c in curves if c.partition("_")[2] == kind})
        axis.set(title=name_of(kind.replace("_", " ").capitalize()), ylabel="loss")
        _legend(axis)
    return figure


def training_curves(history: Sequence[Mapping[str, float]], best_epoch: int) -> plt.Figure:
    """Loss and weighted F1 by epoch of training and of what else was scored, the kept epoch marked."""
    curves = pd.DataFrame(history).set_index("epoch")
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.8))
    for axis, kind, label in zip(axes, ("loss", "weighted_f1"), ("loss (nats)", "weighted F1 (%)"), strict=True):
        names = {"train": "train (labels smoothed)" if kind == "loss" else "train", "valid": "valid", "test": "test"}
        _by_epoch(axis, curves, {f"{split}_{kind}": name for split, name in names.items()})
        axis.axvline(best_epoch, color="0.4", linestyle=":", marker="", label=f"kept: epoch {best_epoch}")
        axis.set_ylabel(label)
        _legend(axis, ncols=2)
    if not {"valid_loss", "test_loss"} & set(curves):
        figure.suptitle("Training dialogues only: nothing held out is watched", fontsize=8)
    return figure


def confusion_matrix(matrix: Sequence[Sequence[int]], label_names: Sequence[str]) -> plt.Figure:
    """Shares of each true class by predicted class, with the counts written in where there is room."""
    counts = np.array(matrix)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    size = min(PAGE - 1, 1.4 + 0.5 * len(label_names))
    figure, axis = plt.subplots(figsize=(size + 1, size))
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(label_names) <= WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            shade = "white" if shares[row, column] > 0.5 else "black"
            said = f"{shares[row, column]:.0%}\n{count}"
            axis.text(column, row, said, ha="center", va="center", color=shade, fontsize=7)
    step = max(1, -(-len(label_names) // NAMED))
    at = range(0, len(label_names), step)
    axis.set_xticks(at, [name_of(label_names[i]) for i in at], rotation=90 if step > 1 else 45, ha="right")
    axis.set_yticks(at, [name_of(label_names[i]) for i in at])
    axis.set(xlabel="predicted", ylabel="true")
    axis.grid(False)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


def per_class_f1(
    names: Sequence[str], f1: Sequence[float], low: Sequence[float], high: Sequence[float], about: str
) -> plt.Figure:
    """F1 of each class with error bars.

    Args:
        names: Of the classes.
        f1: In percent.
        low: Lower ends of the bars.
        high: Upper ends.
        about: What the bars are.
    """
    figure, axis = plt.subplots(figsize=(COLUMN if len(names) <= 8 else PAGE, 2.6))
    x, f1 = np.arange(len(names)), np.asarray(f1, dtype=float)
    errors = np.clip([f1 - np.asarray(low), np.asarray(high) - f1], 0, None)
    axis.bar(x, f1, color=[colour(i) for i in x], edgecolor="0.2", linewidth=0.5)
    axis.errorbar(x, f1, yerr=errors, fmt="none", ecolor="0.1", elinewidth=0.9, capsize=2)
    step = max(1, -(-len(names) // NAMED))
    axis.set_xticks(x[::step], [name_of(n) for n in names[::step]], rotation=90 if step > 1 else 30, ha="right")
    axis.set(ylabel="F1 (%)", ylim=(0, 100))
    axis.set_title(about, fontsize=7)
    return figure


def reliability_diagram(labels: np.ndarray, probabilities: np.ndarray) -> plt.Figure:
    """How often the answer is right by how sure it is, and how many utterances are so sure.

    Args:
        labels: Classes, ``[N]``.
        probabilities: ``[N, C]``.
    """
    bins = pd.DataFrame(calibration.reliability(labels, probabilities)).query("utterances > 0")
    error = 100 * calibration.expected_calibration_error(labels, probabilities)
    figure, (axis, below) = plt.subplots(2, 1, figsize=(COLUMN, 3.6), sharex=True, height_ratios=(4, 1))
    axis.plot([0, 100], [0, 100], color="0.5", linestyle=":", marker="")
    axis.plot(100 * bins["confidence"], 100 * bins["accuracy"], clip_on=False)  # a point may lie on the edge
    axis.set(ylabel="right (%)", xlim=(0, 100), ylim=(0, 100), title=f"Expected calibration error {error:.1f} %")
    below.bar(100 * bins["confidence"], bins["utterances"], width=5, color="0.6")
    below.set(xlabel="confidence (%)", ylabel="utterances")
    return figure


def feature_map(one: Map, title: str) -> plt.Figure:
    """A map, one panel for each kind of groups of which there are several."""
    kinds = [kind for kind, (group, _) in one.groups.items() if kind == "emotion" or len(np.unique(group)) > 1]
    figure, axes = plt.subplots(1, len(kinds), figsize=(PAGE if len(kinds) > 1 else COLUMN + 1, 3.4), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        group, names = one.groups[kind]
        for i in np.unique(group):
            label = name_of(names[i]) if i < NAMED else None
            points = one.points[group == i]
            axis.scatter(
                *points.T, s=9, alpha=0.75, color=colour(i), marker=SHAPES[marker(i)], linewidths=0.4, label=label
            )
        axis.set(title=f"{title} by {kind}", xticks=[], yticks=[])
        axis.grid(False)
        _legend(axis, bbox_to_anchor=(0.5, -0.02), markerscale=1.6)
    figure.supxlabel(textwrap.fill(one.about, 60 * len(kinds)), fontsize=5.5, color="0.35")
    return figure


def emotion_timeline(seen: Insight) -> plt.Figure:
    """Emotions over a dialogue, true and predicted: the longest of at most `TURNS` turns, or the first turns of one."""
    lengths = seen.table.groupby("dialogue", sort=False).size()
    fitting = lengths[lengths <= TURNS]
    name = fitting.idxmax() if len(fitting) else lengths.idxmin()
    part = seen.table[seen.table["dialogue"] == name].iloc[:TURNS]
    label, predicted = part["label"].to_numpy(), part["predicted"].to_numpy()
    classes = np.unique([label, predicted])
    rank, turns = {c: i for i, c in enumerate(classes)}, np.arange(1, len(part) + 1)
    figure, axis = plt.subplots(figsize=(PAGE, min(6, 1.2 + 0.28 * len(classes))))
    frame = {"marker": "s", "facecolors": "none", "edgecolors": "0.25", "linewidths": 0.8}
    axis.scatter(turns, [rank[c] for c in label], s=34, label="true", **frame)
    for c in np.unique(predicted):
        at = predicted == c
        axis.scatter(turns[at], np.full(at.sum(), rank[c]), s=11, color=colour(c), marker=SHAPES[marker(c)])
    axis.scatter([], [], s=11, color="0.4", label="predicted")
    wrong = turns[label != predicted]
    axis.scatter(wrong, np.full(len(wrong), -1), s=10, marker="x", color="0.2", linewidths=0.7, label="wrong")
    axis.set_yticks(range(len(classes)), [name_of(seen.label_names[c]) for c in classes])
    axis.set(xlabel="turn", xlim=(0, len(part) + 1), ylim=(-1.8, len(classes) - 0.3))
    axis.set_title(f"{plain(name)}: emotions over the dialogue")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axis, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1)
    return figure


def spread(weighted_f1: Mapping[str, float], kind: str) -> plt.Figure:
    """Weighted F1 of every run, with their mean and, of several seeds or else folds, its 95 % interval over these.

    Args:
        weighted_f1: Name of the run, without its kind, to its weighted F1 in percent.
        kind: ``seed``, those of folds among them, or ``fold``.
    """
    values = pd.Series(weighted_f1)
    means = over_folds(values)
    one = f"one {kind}" if len(means) == len(values) else f"one fold of a {kind}"
    figure, axis = plt.subplots(figsize=(min(PAGE, 2 + 0.3 * max(5, len(means))), 2.8))
    axis.plot([name_of(n.partition("/")[0], 12) for n in values.index], values, "o", label=one)
    axis.axhline(means.mean(), color="0.3", marker="", label=f"mean {means.mean():.2f}")
    if span := interval(means):
        axis.axhspan(*span, color="0.85", label=f"95 % interval of the mean, {span[0]:.2f} to {span[1]:.2f}")
    axis.set(xlabel=kind, ylabel="weighted F1 on test (%)")
    axis.margins(0.15, 0.3)
    _legend(axis, ncols=1)  # beside each other they are wider than few seeds
    return figure


def pictures(seen: Insight) -> dict[str, Callable[[], plt.Figure | None]]:
    """Name of every picture that this run has to what makes it."""
    made: dict[str, Callable[[], plt.Figure | None]] = {}
    adversarial, classifier = seen.histories.get("adversarial"), seen.histories.get("classifier")
    if adversarial:
        made["GAN_loss"] = lambda: adversarial_losses(adversarial, seen.even)
        made["fusion_losses"] = lambda: fusion_losses(adversarial)
    if classifier:
        kept = seen.report.get("best_epoch", classifier[-1]["epoch"])
        made["training_curves"] = lambda: training_curves(classifier, int(kept))
    if matrix := seen.scores.get("confusion_matrix"):
        made["confusion_matrix"] = lambda: confusion_matrix(matrix, seen.label_names)
        made["per_class_f1"] = lambda: _classes(seen)
    if seen.members:
        kind = next(iter(seen.members))[:4]
        values = {n.replace(kind, "", 1): r["test"]["weighted_f1"] for n, r in seen.members.items()}
        made["spread"] = lambda: spread(values, kind)
    if len(seen.table):
        labels = seen.table["label"].to_numpy()
        made["reliability_diagram"] = lambda: reliability_diagram(labels, seen.probabilities)
        made["emotion_timeline"] = lambda: emotion_timeline(seen)
    # Last, since they may have to be waited for.
    for name in seen.maps:
        made[name] = lambda name=name: _map(seen, name)
    return made


def _map(seen: Insight, name: str) -> plt.Figure | None:
    """The picture of a map, if there is one."""
    found = seen.map(name)
    return feature_map(found, name.replace("_", " ").capitalize()) if found else None


def _classes(seen: Insight) -> plt.Figure:
    """F1 of each class: of several seeds, or else folds, mean ± standard deviation; of one a bootstrap's interval."""
    per_class = seen.scores["per_class"]
    f1 = [row["f1"] for row in per_class.values()]
    runs = {m: {n: r["test"]["per_class"][n]["f1"] for n in per_class} for m, r in seen.members.items()}
    means = over_folds(pd.DataFrame.from_dict(runs, orient="index", dtype=float))
    if len(means) > 1:
        f1, half = means.mean(), means.std()
        about = f"mean of {len(means)} {next(iter(runs))[:4]}s ± standard deviation"
        return per_class_f1(list(per_class), f1, f1 - half, f1 + half, about)
    if not len(seen.table) or seen.table["dialogue"].nunique() < 2:
        return per_class_f1(list(per_class), f1, f1, f1, "no interval: too few dialogues")
    labels, predicted = (seen.table[c].to_numpy() for c in ("label", "predicted"))
    drawn = resample(seen.table["dialogue"], labels, predicted, len(seen.label_names)).f1
    return per_class_f1(list(per_class), f1, *np.percentile(drawn, [2.5, 97.5], axis=0), "95 % interval over dialogues")


def draw(seen: Insight, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw every picture a run has; one that fails is a line among the problems. Returns what was written."""
    written = []
    with style():
        for name, make in pictures(seen).items():

            def one(name: str = name, make: Callable[[], plt.Figure | None] = make) -> list[Path]:
                figure = make()
                return save(figure, seen.directory / name, formats) if figure else []

            written += seen.attempt(f"picture {name}", one) or []
    seen.drawn += written
    return written
