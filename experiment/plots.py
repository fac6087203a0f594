"""The pictures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from sklearn.manifold import TSNE

from files import printable, replacing
from utils import interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of a backend that needs no screen

LARGEST = 18.0  # inches of a picture that grows with what it shows
MOST_NAMED = 40  # classes, seeds or folds whose names fit on an axis
MOST_WRITTEN = 20  # classes whose counts are written into the matrix, or which have a place in a legend


def drawn(text: str, limit: int = 30) -> str:
    """Text as matplotlib may draw it: safe to show, and with no ``$`` that it would take for the start of TeX."""
    return printable(text, limit).replace("$", r"\$")


def _name_some(axis: plt.Axes, which: str, names: Sequence[str], **how: Any) -> None:
    """Name the places 0, 1, … of an axis, evenly spaced ones where there are more than fit."""
    places = range(0, len(names), -(-len(names) // MOST_NAMED))
    getattr(axis, f"set_{which}ticks")(places, [drawn(names[i]) for i in places], **how)


def _save_figure(figure: plt.Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def plot_adversarial_losses(history: Sequence[Mapping[str, float]], even: tuple[float, float], path: Path) -> None:
    """The losses of stage 1 by epoch, one panel each, the adversarial ones with what they are where neither side wins.

    Args:
        history: A row an epoch, its losses named ``text_G_loss``, ``text_D_loss``, and the others as in
            ``text_matching``.
        even: The loss of a generator and of a discriminator that cannot tell, in nats.
        path: Where the picture goes.
    """
    curves = pd.DataFrame(history).set_index("epoch").drop(columns="seconds", errors="ignore")
    panels: dict[str, list[str]] = {"G_loss": [], "D_loss": []}
    for column in curves:
        panels.setdefault(column.partition("_")[2], []).append(column)
    titles = {"G_loss": ("Generators", even[0]), "D_loss": ("Discriminators", even[1])}
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), sharex=True, layout="constrained")
    for axis, (kind, columns) in zip(axes, panels.items(), strict=True):
        for column in columns:
            axis.plot(curves.index, curves[column], marker=".", label=column.partition("_")[0])
        if kind in titles:
            title, level = titles[kind]
            axis.axhline(level, color="0.6", linestyle=":", label=f"neither side wins ({level:.2f})")
            axis.set(title=title, xlabel="epoch", ylabel="adversarial loss (nats)")
        else:
            axis.set(title=f"Generators: {kind.replace('_', ' ')}", xlabel="epoch", ylabel=f"{kind} loss")
        axis.legend()
    _save_figure(figure, path)


def plot_training_curves(history: Sequence[Mapping[str, float]], best_epoch: int, path: Path) -> None:
    """Loss and weighted F1 of training and, where it was scored, validation by epoch, the kept epoch marked."""
    curves = pd.DataFrame(history).set_index("epoch")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, figure_name, label in zip(axes, ("loss", "weighted_f1"), ("loss (nats)", "weighted F1 (%)"), strict=True):
        for split in ("train", "valid"):
            if f"{split}_{figure_name}" in curves:
                smoothed = " (labels smoothed)" if (split, figure_name) == ("train", "loss") else ""
                axis.plot(curves.index, curves[f"{split}_{figure_name}"], marker=".", label=split + smoothed)
        axis.axvline(best_epoch, color="0.6", linestyle=":", label=f"kept: epoch {best_epoch}")
        axis.set(xlabel="epoch", ylabel=label)
        axis.legend()
    _save_figure(figure, path)


def plot_confusion_matrix(matrix: Sequence[Sequence[int]], label_names: Sequence[str], path: Path) -> None:
    """Shares of each true class by predicted class, with the counts written in."""
    counts = np.array(matrix)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    size = min(2.5 + 0.8 * len(label_names), LARGEST)
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts if len(counts) <= MOST_WRITTEN else counts[:0]):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, f"{shares[row, column]:.0%}\n{count}", ha="center", va="center", color=shade)
    _name_some(axis, "x", label_names, rotation=45, ha="right")
    _name_some(axis, "y", label_names)
    axis.set(xlabel="predicted", ylabel="true", title="Test utterances")
    figure.colorbar(image, label="share of the true class")
    _save_figure(figure, path)


def plot_spread(weighted_f1: Mapping[str, float], kind: str, path: Path) -> None:
    """Weighted F1 of every run of one kind, with their mean and, of several, its 95 % interval.

    Args:
        weighted_f1: Name of the run to its weighted F1 in percent.
        kind: ``seed`` or ``fold``.
        path: Where the picture goes.
    """
    values = pd.Series(weighted_f1)
    figure, axis = plt.subplots(figsize=(min(2.5 + 0.6 * max(5, len(values)), LARGEST), 4), layout="constrained")
    axis.plot(range(len(values)), values, "o", label=f"one {kind}")
    _name_some(axis, "x", [str(name) for name in values.index])
    axis.axhline(values.mean(), color="0.3", label=f"mean {values.mean():.2f}")
    if span := interval(values):
        axis.axhspan(*span, color="0.85", label=f"95 % interval of the mean, {span[0]:.2f} to {span[1]:.2f}")
    axis.set(xlabel=kind, ylabel="weighted F1 on test (%)")
    axis.margins(0.15, 0.3)
    axis.legend()
    _save_figure(figure, path)


def plot_fused_features(
    fused: Mapping[str, np.ndarray], labels: np.ndarray, label_names: Sequence[str], path: Path, most: int = 500
) -> None:
    """A 2-D map (t-SNE) of fused features, coloured by emotion and by modality.

    Args:
        fused: Modality to fused features ``[N, d]``; rows of NaN are not drawn.
        labels: Classes ``[N]``.
        label_names: Names of the classes.
        path: Where the picture goes.
        most: No more utterances than these are drawn, evenly spaced.
    """
    chosen = np.linspace(0, len(labels) - 1, min(most, len(labels))).astype(int)
    points = np.concatenate([f[chosen] for f in fused.values()])
    there = ~np.isnan(points).any(1)
    points = points[there]
    if len(points) > 3:
        perplexity = min(30, (len(points) - 1) / 3)
        points = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(points)
    emotion = np.tile(labels[chosen], len(fused))[there]
    modality = np.repeat(np.arange(len(fused)), len(chosen))[there]
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    for axis, groups, names, title in (
        (axes[0], emotion, label_names, "by emotion"),
        (axes[1], modality, tuple(fused), "by modality"),
    ):
        shown = np.unique(groups) if len(names) > MOST_WRITTEN else range(len(names))
        for i in shown:
            axis.scatter(*points[groups == i, :2].T, s=8, alpha=0.7, label=drawn(names[i]))
        axis.set(title=f"Fused features {title}", xticks=[], yticks=[])
        if len(names) <= MOST_WRITTEN:
            axis.legend(markerscale=2)
    _save_figure(figure, path)


def plot_reliability(curves: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """How often utterances of a confidence are right, and how many there are of it.

    Args:
        curves: Name of the probabilities to ``confidence``, ``accuracy`` and ``utterances`` by bin.
        path: Where the picture goes.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(5, 6), sharex=True, layout="constrained", height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="as often as said")
    for name, curve in curves.items():
        some = curve["utterances"] > 0
        above.plot(curve["confidence"][some], curve["accuracy"][some], marker="o", label=name)
        below.step(np.arange(len(some)) / len(some), curve["utterances"], where="post", label=name)
    above.set(ylabel="share that is right", title="Reliability, test utterances", xlim=(0, 1), ylim=(0, 1))
    above.legend()
    below.set(xlabel="confidence: the highest probability", ylabel="utterances")
    _save_figure(figure, path)
