"""Small things of a run: seeding, the device, scores, statistics over runs, and the text of the report."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import parallel
from dataloader import IGNORE_LABEL
from files import InputError, TrainingError, printable

# Scores --------------------------------------------------------------------------------------------------------------


def weighted_f1(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """F1 of each class, averaged by how many utterances the class has, in percent; 0 of no utterance."""
    if not len(labels):
        return 0.0
    return 100 * f1_score(labels, probabilities.argmax(1), average="weighted", zero_division=0)


def macro_f1(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean F1 of the classes that occur in labels or predictions, in percent."""
    return 100 * f1_score(labels, probabilities.argmax(1), average="macro", zero_division=0)


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of utterances whose most probable class is their label, in percent."""
    return 100 * accuracy_score(labels, probabilities.argmax(1))


def loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean cross entropy, in nats."""
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)).mean()


def labelled(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels ``[N]`` and probabilities ``[N, C]`` of the utterances with a label, of which alone scores are made."""
    known = labels != IGNORE_LABEL
    return labels[known], probabilities[known]


# What is computed of labels ``[N]`` and probabilities ``[N, C]``, reported, and summarised over seeds. A function more
# here is one more figure in ``report.json``, ``summary.json`` and what is printed of several runs.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "weighted_f1": weighted_f1,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
    "loss": loss,
}


def score(labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """The figures of one split, F1 and accuracy in percent.

    Args:
        labels: Classes, int ``[N]``; an utterance of `IGNORE_LABEL` is passed over.
        probabilities: Of each class, ``[N, C]``.
        label_names: C names.

    Returns:
        Every one of `METRICS`, ``per_class`` (by name), ``confusion_matrix`` (rows are labels, columns are
        predictions) and ``support`` (utterances a class).
    """
    labels, probabilities = labelled(labels, probabilities)
    predicted = probabilities.argmax(1)
    classes = np.arange(len(label_names))
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    return {
        **{name: float(metric(labels, probabilities)) for name, metric in METRICS.items()},
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


def per_class_f1(labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> dict[str, float]:
    """F1 of each class by name, in percent."""
    classes = range(len(label_names))
    f1 = f1_score(labels, probabilities.argmax(1), labels=classes, average=None, zero_division=0)
    return {name: 100 * float(x) for name, x in zip(label_names, f1, strict=True)}


def deviation(values: pd.Series) -> float | None:
    """Standard deviation (n - 1); None of a single value."""
    return float(values.std()) if len(values) > 1 else None


def interval(values: pd.Series) -> list[float] | None:
    """The 95 % confidence interval of the mean, by Student's t; None of a single value.

    Of two or three it is wide, and may reach beyond what a score can be: a mean of so few is hardly known.
    """
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return [float(values.mean() - half), float(values.mean() + half)]


def report_text(labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> str:
    """The report the field prints: loss and weighted F1, scikit-learn's report with 4 digits, confusion matrix."""
    labels, probabilities = labelled(labels, probabilities)
    figures = score(labels, probabilities, label_names)
    predicted = probabilities.argmax(1)
    names = [printable(name, 40) for name in label_names]
    table = classification_report(
        labels, predicted, labels=range(len(label_names)), target_names=names, digits=4, zero_division=0
    )
    matrix = np.array(figures["confusion_matrix"])
    return f"Test performance..\nLoss {figures['loss']:.4f} F1-score {figures['weighted_f1']:.2f}\n{table}\n{matrix}\n"


# The machine ---------------------------------------------------------------------------------------------------------


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has no memory left."""
    said = any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    return said or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def give_memory_back() -> None:
    """Let the operating system have what lies free between things in use: batches of many lengths leave such holes."""
    with suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


def choose_determinism(always: bool) -> None:
    """Whether torch may use only operations that give the same bits every time; those of the CPU here all do."""
    if always:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it first multiplies
        torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = always
    if always != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler, which takes seconds
        torch.use_deterministic_algorithms(always)


def choose_device(name: str) -> str:
    """The device to run on: the one that is named, or for ``auto`` cuda where it is, else the CPU.

    Raises:
        InputError: If it is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not to be had here ({reason}); try --device cpu") from None
    return name


# Training -------------------------------------------------------------------------------------------------------------


def stream(seed: int, name: str) -> int:
    """The seed of one of the things that are random in a run, so that no two of them share their numbers.

    Args:
        seed: The run's.
        name: What is random, such as ``weights``.
    """
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` in one pass over the weights, which does not import torch's compiler: that takes two seconds.

    The compiler is imported to be told what it is not to compile. Here nothing is compiled, so the methods are marked
    as it would mark them, and a step is the same without the hint for it.
    """

    for _method in vars(torch.optim.Optimizer).values():
        if hasattr(_method, "__wrapped__"):
            vars(_method.__wrapped__).setdefault("__dynamo_disable", _method.__wrapped__)
    del _method
    step = torch.no_grad()(getattr(torch.optim.Adam.step, "__wrapped__", torch.optim.Adam.step))

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, **settings: Any):
        super().__init__(parameters, lr=lr, fused=True, **settings)


class AveragedWeights(AveragedModel):
    """An exponential moving average of a module's weights, each time one of them is updated.

    Corrected for its first steps as Adam's moments are (arXiv 1412.6980, section 3): after t steps the weights of step
    i count ``decay ** (t - i)``, and all together 1, so that the first ones are not taken for many.

    Args:
        module: What is averaged.
        decay: How much of the average a step keeps, between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float):
        super().__init__(module)
        self.decay = decay
        self._learnt: list[Sequence[Tensor]] = []

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights after a step in, but for those at rest; torch's own takes several times as long.

        Always of the same model, and what rests at the first step rests until the last: looking it up takes as long as
        the rest.
        """
        if not self._learnt:
            pairs = zip(self.module.parameters(), model.parameters(), strict=True)
            self._learnt = list(zip(*((mine, its) for mine, its in pairs if its.requires_grad), strict=True))
        share = (1 - self.decay) / (1 - self.decay ** (int(self.n_averaged) + 1))
        torch._foreach_lerp_(*self._learnt, share)
        for averaged, current in zip(self.module.buffers(), model.buffers(), strict=True):
            averaged.copy_(current)
        self.n_averaged += 1


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients that weights hold."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def finite(value: Tensor, where: str, name: str = "loss") -> Tensor:
    """The loss, or whatever figure is named, itself.

    Raises:
        TrainingError: If it is not finite.
    """
    if not torch.isfinite(value):
        raise TrainingError(
            f"{where}: the {name} is {value.item()}; the last checkpoint is kept; lower the learning rate"
        )
    return value


def means_of_steps(
    losses: Sequence[Mapping[str, Tensor]], norms: Sequence[Mapping[str, Tensor]], where: str
) -> dict[str, float]:
    """What the steps of an epoch came to on average, by name: losses, those of all processes, and norms of gradients.

    To be called once an epoch, since a device waits whenever a number is read from it. Losses are detached.

    Raises:
        TrainingError: If one is not finite; it names the first step.
    """
    steps = [loss | norm for loss, norm in zip(losses, norms, strict=True)]
    figures = torch.stack([torch.stack(list(step.values())) for step in steps]).cpu().double()
    for number, row in enumerate(figures, 1):
        for name, value in zip(steps[0], row, strict=True):
            finite(value, f"{where}, step {number}", "norm of the gradients" if name in norms[0] else "loss")
    means = dict(zip(steps[0], figures.mean(0).tolist(), strict=True))
    return means | parallel.summed({name: means[name] for name in losses[0]})


def finite_weights(module: nn.Module, where: str) -> None:
    """Check what an epoch came to, before it is kept.

    Raises:
        TrainingError: If a weight is not finite.
    """
    if not nn.utils.get_total_norm(module.parameters(), math.inf).isfinite():  # the largest weight
        raise TrainingError(
            f"{where}: weights became infinite or NaN; the last checkpoint is kept; lower the learning rate"
        )
