"""What a run needs around the method: scores and report, the run directory, checkpoints, curves and pictures."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from scipy import stats
from sklearn.manifold import TSNE
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, precision_recall_fscore_support
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar
from torch import Tensor

from dataloader import Dialogue
from files import InputError, InterruptedRunError, WriteError, is_leftover, replacing

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of a backend that needs no screen

# Scores --------------------------------------------------------------------------------------------------------------


def score(labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """The figures of one split, F1 and accuracy in percent.

    Args:
        labels: Classes, int ``[N]``.
        probabilities: Of each class, ``[N, C]``.
        label_names: C names.

    Returns:
        ``weighted_f1``, ``macro_f1``, ``accuracy``, ``loss`` (mean cross entropy in nats), ``per_class`` (by name),
        ``confusion_matrix`` (rows are labels, columns are predictions) and ``support`` (utterances a class).
        Macro F1 is the mean over the classes that occur in labels or predictions, as scikit-learn's.
    """
    predicted = probabilities.argmax(1)
    classes = np.arange(len(label_names))
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    occurs = np.isin(classes, np.concatenate([labels, predicted]))
    return {
        "weighted_f1": float(100 * np.average(f1, weights=support)),
        "macro_f1": float(100 * f1[occurs].mean()),
        "accuracy": float(100 * accuracy_score(labels, predicted)),
        "loss": float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)).mean()),
        "per_class": {
            name: {
                "precision": float(100 * precision[i]),
                "recall": float(100 * recall[i]),
                "f1": float(100 * f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(label_names)
        },
        "confusion_matrix": confusion_matrix(labels, predicted, labels=classes).tolist(),
        "support": support.tolist(),
    }


def deviation(values: pd.Series) -> float | None:
    """Standard deviation (n - 1); None of a single value."""
    return float(values.std()) if len(values) > 1 else None


def interval(values: pd.Series) -> list[float] | None:
    """The 95 % confidence interval of the mean, by Student's t; None of a single value."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return [float(values.mean() - half), float(values.mean() + half)]


def report_text(labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> str:
    """The report the field prints: loss and weighted F1, scikit-learn's report with 4 digits, confusion matrix."""
    figures = score(labels, probabilities, label_names)
    predicted = probabilities.argmax(1)
    table = classification_report(
        labels, predicted, labels=range(len(label_names)), target_names=label_names, digits=4, zero_division=0
    )
    matrix = np.array(figures["confusion_matrix"])
    return f"Test performance..\nLoss {figures['loss']:.4f} F1-score {figures['weighted_f1']:.2f}\n{table}\n{matrix}\n"


def prediction_table(
    splits: Mapping[str, Sequence[Dialogue]], probabilities: Mapping[str, np.ndarray], label_names: Sequence[str]
) -> pd.DataFrame:
    """One row an utterance: split, dialogue, utterance, speaker, label, predicted, a probability a class.

    Args:
        splits: Split to dialogues.
        probabilities: Split to probabilities ``[N, C]``, the utterances in the order of the dialogues.
        label_names: C names.
    """
    frames = []
    for split, dialogues in splits.items():
        frame = pd.DataFrame(
            {
                "split": split,
                "dialogue": np.repeat([d.id for d in dialogues], [len(d) for d in dialogues]),
                "utterance": [u for d in dialogues for u in d.utterances],
                "speaker": [s for d in dialogues for s in d.speakers],
                "label": np.concatenate([d.labels for d in dialogues]),
                "predicted": probabilities[split].argmax(1),
            }
        )
        frame[[f"p_{name}" for name in label_names]] = probabilities[split]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


LOCK = ".lock"  # in a run directory, while a process works on it

# The run directory ---------------------------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; a number that is not finite is refused rather than written as ``NaN``."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON that a run wrote.

    Raises:
        InputError: If it is not there or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name the directory of a run") from None
    except ValueError:
        raise InputError(f"{path}: not valid JSON; the run directory is damaged") from None


def write_csv(path: Path, rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> None:
    """Write a table, whole or not at all. Text that a spreadsheet would take for a formula gets a ``'`` before it."""
    table = pd.DataFrame(rows)
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            table[name] = [f"'{x}" if str(x).startswith(("=", "+", "-", "@", "\t", "\r")) else x for x in table[name]]
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors.

    Raises:
        InputError: If the file is not there or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error}); the run has not come so far, or is damaged") from None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory and let no other process work on it meanwhile; the lock of a process that died is void.

    Raises:
        InputError: If another process does, or the directory cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        raise InputError(f"{directory}: another process is at work there; wait, or choose another directory") from None
    except OSError as error:
        raise InputError(f"--out {directory}: cannot be made ({error.strerror}); choose another directory") from None
    try:
        yield
    finally:
        with suppress(OSError):
            (directory / LOCK).unlink(missing_ok=True)  # before the release, or it might be that of the next process
        lock.release()


def sweep(directory: Path) -> None:
    """Delete what a killed process left half-written in a run directory."""
    for folder in (directory, directory / "checkpoints"):
        for path in folder.glob(".*.tmp"):
            if is_leftover(path):
                path.unlink(missing_ok=True)


def unused(directory: Path) -> bool:
    """Whether nothing is in a directory, but for a lock and for what a killed process left half-written."""
    return all(path.name == LOCK or is_leftover(path) for path in directory.iterdir())


def empty(directory: Path) -> None:
    """Delete a run; ``config.json``, which says that it is one, goes last."""
    for path in sorted(directory.iterdir(), key=lambda path: path.name == "config.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def drop_states(directory: Path) -> None:
    """Delete what a finished run no longer needs, the states to resume from: five times its weights, twice."""
    for path in (directory / "checkpoints").glob("*.pt"):
        with suppress(OSError):  # the run is whole all the same
            path.unlink()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has no memory left."""
    said = any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    return said or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def choose_determinism(always: bool) -> None:
    """Whether torch may use only operations that give the same bits every time; those of the CPU here all do."""
    if always:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it first multiplies
        torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = always
    torch.use_deterministic_algorithms(always)


class Run:
    """The directory of one run: what it writes while it trains, and all it needs to go on after a stop.

    Everything written can be written again from the newest checkpoint and the data, to the same bits. So a run that is
    killed between any two writes, or in one, goes on from the checkpoint and ends as if it had not been.

    Attributes:
        directory: Where everything goes.
        checkpoints: The folder in it for weights and states.
        history: Stage to one row an epoch.
        best: The weights to report on, as of that history.
        stop_requested: Whether Ctrl-C or SIGTERM has asked for a stop after the step.
    """

    CURVES: Mapping[str, str] = {"adversarial": "GAN_loss.csv", "classifier": "history.csv"}

    def __init__(self, directory: Path, *, tensorboard: bool, checkpoint_every: int = 1):
        self.directory = directory
        self.history: dict[str, list[dict[str, float]]] = {stage: [] for stage in self.CURVES}
        self.stop_requested = False
        self.checkpoints = directory / "checkpoints"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {directory}: cannot be written ({error.strerror}); choose another") from None
        sweep(directory)
        self.best: dict[str, Tensor] = {}
        self._tensorboard = tensorboard
        self._events: EventsWriter | None = None
        self._checkpoint_every = checkpoint_every
        self._unwritten: dict[str, Any] | None = None

    def seconds(self, stage: str) -> float:
        """The time a stage took, over all sittings."""
        return sum(row["seconds"] for row in self.history[stage])

    @property
    def last(self) -> Path:
        """The newest checkpoint: state of the stage under way, of random numbers and of the curves.

        A file that torch reads, with its SHA-256 in 32 bytes after it.
        """
        return self.checkpoints / "last.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before that, should the newest be damaged."""
        return self.checkpoints / "previous.pt"

    def stop_here(self, where: str) -> None:
        """Stop if that was asked for.

        Args:
            where: Stage, epoch and step just done.

        Raises:
            InterruptedRunError: If so; it says where.
        """
        if self.stop_requested:
            raise InterruptedRunError(where)

    def keep(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights for the ones to report on."""
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        save_tensors(self.checkpoints / "best.safetensors", self.best)

    def log(self, stage: str, row: dict[str, float]) -> None:
        """Add an epoch's figures to the curves: the stage's CSV file and TensorBoard."""
        self.history[stage].append(row)
        write_csv(self.directory / self.CURVES[stage], self.history[stage])
        self._to_tensorboard({stage: [row]})

    def _to_tensorboard(self, new: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Add rows, or all of the history where this process has added none yet."""
        if not self._tensorboard or not any(self.history.values()):
            return
        folder = self.directory / "tensorboard"
        try:
            if self._events is None:
                # After a stop the curves are written anew from the history, so that no epoch is there twice.
                folder.mkdir(exist_ok=True)
                for old in folder.glob("events.*"):
                    old.unlink()
                self._events, new = EventsWriter(str(folder / "events")), self.history
            for stage, rows in new.items():
                for row in rows:
                    for name, value in row.items():
                        if name != "epoch":
                            summary = scalar(f"{stage}/{name}", value)
                            event = Event(wall_time=time.time(), step=int(row["epoch"]), summary=summary)
                            self._events.write_event(event)
            self._events.flush()
        except OSError as error:
            raise WriteError(
                f"{folder}: cannot be written ({error.strerror}); check the folder and its free space"
            ) from None

    def save(self, stage: str, epoch: int, parts: Mapping[str, Any]) -> None:
        """Checkpoint after an epoch: on the disk every so many epochs, until then in memory for `flush`.

        Args:
            stage: The stage under way.
            epoch: How many of its epochs are done.
            parts: Name to what has a ``state_dict`` or, of generators of random numbers, a ``get_state``.
        """
        kind, keys, *rest = np.random.get_state()
        state = {
            "stage": stage,
            "epoch": epoch,
            "parts": {n: p.state_dict() if hasattr(p, "state_dict") else p.get_state() for n, p in parts.items()},
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
                "python": random.getstate(),
                "numpy": (kind, keys.tolist(), *rest),
            },
            "history": self.history,
            "best": self.best,
        }
        self._unwritten = state
        if epoch % self._checkpoint_every == 0:
            self.flush()
        else:  # training goes on in the very tensors
            self._unwritten = copy.deepcopy(state)

    def flush(self) -> None:
        """Write the newest checkpoint, if it is in memory only; the one that was newest stays beside it."""
        if self._unwritten is None:
            return
        buffer = io.BytesIO()
        torch.save(self._unwritten, buffer)
        digest = hashlib.sha256(buffer.getbuffer()).digest()
        buffer.seek(0, io.SEEK_END)
        buffer.write(digest)
        with replacing(self.last) as temporary:
            temporary.write_bytes(buffer.getbuffer())
            if self.last.exists():
                self.last.replace(self.previous)
        self._unwritten = None

    def restore(self, stage: str, parts: Mapping[str, Any]) -> int:
        """Take a stage up where the newest checkpoint left it.

        Args:
            stage: The stage about to begin.
            parts: The same as were saved; they are brought to the state they had.

        Returns:
            How many epochs of the stage are done; 0 where the checkpoint is of another stage, or there is none.

        Raises:
            InputError: If there are checkpoints and none is good, or it is of another network.
        """
        state = self._saved
        if not state or state["stage"] != stage:
            return 0
        try:
            for name, part in parts.items():
                (part.load_state_dict if hasattr(part, "load_state_dict") else part.set_state)(state["parts"][name])
            torch.set_rng_state(state["random"]["cpu"])
            if state["random"]["cuda"]:
                torch.cuda.set_rng_state_all(state["random"]["cuda"])
            random.setstate(state["random"]["python"])
            np.random.set_state(state["random"]["numpy"])
            self.history = {stage: list(state["history"][stage]) for stage in self.CURVES}
            if state["best"]:
                self.keep(state["best"])
            # What is on the disk may be of a later epoch than the checkpoint.
            for each, rows in self.history.items():
                if rows:
                    write_csv(self.directory / self.CURVES[each], rows)
                else:
                    (self.directory / self.CURVES[each]).unlink(missing_ok=True)
            return int(state["epoch"])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.last}: not a checkpoint of this network ({type(error).__name__}); begin anew with --overwrite"
            ) from None

    def reached(self, stage: str) -> bool:
        """Whether the newest checkpoint is of this stage."""
        return bool(self._saved) and self._saved["stage"] == stage

    @cached_property
    def _saved(self) -> dict[str, Any] | None:
        """The newest good checkpoint as it was when the run was taken up; one that is damaged is dropped."""
        damaged = []
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                content = path.read_bytes()
                if hashlib.sha256(content[:-32]).digest() != content[-32:]:
                    raise ValueError("checksum")
                state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
                if not {"stage", "epoch", "parts", "random", "history", "best"} <= state.keys():
                    raise ValueError("content")
            except Exception:  # torch raises many types on a damaged file
                damaged.append(path)
                continue
            if damaged:
                print(f"{self.last}: damaged; going on from {path.name}, the one before", file=sys.stderr)
            if path == self.previous:
                path.replace(self.last)  # or the next checkpoint would push this good one out for the damaged one
            return state
        if damaged:
            raise InputError(f"{damaged[0]}: the checkpoint is damaged; begin anew with --overwrite")
        return None

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Let Ctrl-C, or SIGTERM from a scheduler, ask for a stop after the step; a second Ctrl-C stops at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True

        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        except Exception:
            self.flush()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Bring the checkpoint and the curves up to the last epoch."""
        self.flush()
        self._to_tensorboard({})
        if self._events is not None:
            self._events.close()
            self._events = None


# Pictures ------------------------------------------------------------------------------------------------------------


def _save_figure(figure: plt.Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def plot_adversarial_losses(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """The losses of generators and discriminators by epoch, one panel each; the game is even at ln 2."""
    curves = pd.DataFrame(history).set_index("epoch")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, layout="constrained")
    for axis, kind, title in zip(axes, ("G", "D"), ("Generators", "Discriminators"), strict=True):
        for column in curves.filter(like=f"_{kind}_loss"):
            axis.plot(curves.index, curves[column], marker=".", label=column.split("_")[0])
        axis.axhline(np.log(2), color="0.6", linestyle=":", label="even game (ln 2)")
        axis.set(title=title, xlabel="epoch", ylabel="adversarial loss (nats)")
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
    size = 2.5 + 0.8 * len(label_names)
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, f"{shares[row, column]:.0%}\n{count}", ha="center", va="center", color=shade)
    ticks = range(len(label_names))
    axis.set_xticks(ticks, label_names, rotation=45, ha="right")
    axis.set_yticks(ticks, label_names)
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
    figure, axis = plt.subplots(figsize=(2.5 + 0.6 * max(5, len(values)), 4), layout="constrained")
    axis.plot(values.index, values, "o", label=f"one {kind}")
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
        for i, name in enumerate(names):
            axis.scatter(*points[groups == i, :2].T, s=8, alpha=0.7, label=name)
        axis.set(title=f"Fused features {title}", xticks=[], yticks=[])
        axis.legend(markerscale=2)
    _save_figure(figure, path)
