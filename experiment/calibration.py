"""Whether probabilities can be believed: temperature scaling, and figures of calibration.

A network's logits are divided by one number, its temperature, fitted on dialogues that it has not learnt from
(arXiv 1706.04599, section 4.2). It changes no prediction. Shapes use N utterances and C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

import utils
from dataloader import IGNORE_LABEL
from experiment.run_directory import read_config, write_json
from files import InputError

BINS = 15  # of the expected calibration error, as in arXiv 1706.04599
RANGE = (0.05, 20.0)  # of temperatures; one at its end says that the held-out labels are next to noise, or too few


@dataclass(frozen=True)
class Calibration:
    """The temperature of a network.

    Attributes:
        temperature: Logits are divided by it; above 1 where the network was too sure.
        fitted_on: ``valid``, or ``out of fold``: training dialogues under networks that had not seen them.
        dialogues: How many it was fitted on.
        utterances: How many labelled utterances these have.
    """

    temperature: float
    fitted_on: str
    dialogues: int
    utterances: int

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities ``[N, C]`` of the network's own."""
        return temper(probabilities, self.temperature)


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """What probabilities ``[N, C]`` are once their logits are divided by a temperature."""
    logits = np.log(np.clip(probabilities, 1e-300, None)) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature under which the labels ``[N]`` are likeliest; of no labels 1."""
    labels, probabilities = utils.labelled(labels, probabilities)
    if not len(labels):
        return 1.0
    # The negative log-likelihood is convex in 1 / temperature, and unimodal in its logarithm.
    found = minimize_scalar(
        lambda x: utils.loss(labels, temper(probabilities, float(np.exp(x)))), bounds=np.log(RANGE), method="bounded"
    )
    return float(np.exp(found.x))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """How far confidence is from accuracy in the mean, between 0 and 1.

    Utterances are put in bins of equal width by their highest probability; the distance between the bin's mean
    confidence and its accuracy is averaged with the bins' shares as weights (arXiv 1706.04599, equation 3).

    Args:
        labels: Classes, ``[N]``.
        probabilities: ``[N, C]``.
        bins: How many.
    """
    table = reliability(labels, probabilities, bins)
    share = table["utterances"] / max(1, table["utterances"].sum())
    return float((share * np.abs(table["confidence"] - table["accuracy"])).sum())


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """What a reliability diagram shows, by bin: ``confidence``, ``accuracy`` (0 to 1) and ``utterances``, each [bins].

    Args:
        labels: Classes, ``[N]``.
        probabilities: ``[N, C]``.
        bins: How many, of equal width, each with its upper edge.
    """
    labels, probabilities = utils.labelled(labels, probabilities)
    confidence = probabilities.max(1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    right = np.bincount(place, probabilities.argmax(1) == labels, minlength=bins)
    total = np.bincount(place, confidence, minlength=bins)
    some = np.maximum(count, 1)
    return {"confidence": total / some, "accuracy": right / some, "utterances": count}


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean squared distance to the label's one-hot row, summed over classes: 0 to 2 (Brier 1950)."""
    wanted = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - wanted) ** 2).sum(1).mean())


def figures(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray | None = None, calibration: Calibration | None = None
) -> dict[str, Any]:
    """What ``report.json`` says of calibration on one split.

    Args:
        labels: Classes, ``[N]``; some of them known.
        before: The networks' own probabilities, ``[N, C]``.
        after: The calibrated ones, if there are any.
        calibration: The temperature, if it is one.

    Returns:
        The fields of `Calibration`, None each where there is none, and ``before`` and ``after`` (None) with
        ``expected_calibration_error`` (0 to 1), ``brier_score`` and ``negative_log_likelihood`` (nats).
    """
    known = labels != IGNORE_LABEL

    def of(p: np.ndarray) -> dict[str, float]:
        return {
            "expected_calibration_error": expected_calibration_error(labels[known], p[known]),
            "brier_score": brier_score(labels[known], p[known]),
            "negative_log_likelihood": float(utils.loss(labels[known], p[known])),
        }

    about = asdict(calibration) if calibration else dict.fromkeys(Calibration.__dataclass_fields__)
    return {**about, "before": of(before), "after": None if after is None else of(after)}


def save(directory: Path, calibration: Calibration | None) -> None:
    """Keep a temperature in a run's ``config.json``, or say there that there is none."""
    config = read_config(directory)
    write_json(
        directory / "config.json", {**config, "calibration": None if calibration is None else asdict(calibration)}
    )


def of_run(config: Mapping[str, Any], where: Path) -> Calibration | None:
    """The temperature that a run's ``config.json`` holds, if any.

    Args:
        config: Its content.
        where: The file, for messages.

    Raises:
        InputError: If what is there is no temperature.
    """
    about = config.get("calibration")
    if about is None:
        return None
    try:
        calibration = Calibration(**about)
        if not RANGE[0] / 2 <= calibration.temperature <= 2 * RANGE[1]:
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{where}: calibration: no temperature; the run directory is damaged, or edited") from None
    return calibration
