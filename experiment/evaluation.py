"""What a trained network says of dialogues, and the report on it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import parallel
import utils
from dataloader import IGNORE_LABEL, Dialogue, batches
from experiment import calibration
from experiment.calibration import Calibration
from experiment.console import say
from experiment.run import Run
from experiment.run_directory import write_csv, write_json
from experiment.trained import best_weights, load_weights
from files import InputError, printable, replacing
from model import GANFFN

BATCH_SIZE = 16  # dialogues at once where nothing is learnt


@torch.no_grad()
def evaluate(network: torch.nn.Module, dialogues: Sequence[Dialogue]) -> tuple[np.ndarray, np.ndarray]:
    """Labels ``[N]`` and probabilities ``[N, C]`` of the real utterances, in the order of the dialogues.

    Nothing random is touched, so that training goes on as if nobody had looked.
    """
    network.eval()
    device = next(network.parameters()).device
    labels, probabilities = [], []
    for batch in batches(dialogues, BATCH_SIZE):
        batch = batch.to(device)
        labels.append(batch.labels[batch.mask])
        probabilities.append(network(batch)[batch.mask].cpu().double().softmax(-1))
    return torch.cat(labels).cpu().numpy(), torch.cat(probabilities).numpy()


def check_answers(probabilities: np.ndarray, dialogues: Sequence[Dialogue]) -> None:
    """Refuse probabilities ``[N, C]`` that are no numbers, of the utterances in the order of the dialogues.

    Raises:
        InputError: If there are any: features are so far from those of training that numbers overflow.
    """
    if (lost := ~np.isfinite(probabilities).all(1)).any():
        owner = np.repeat(np.arange(len(dialogues)), [len(d) for d in dialogues])[lost.argmax()]
        raise InputError(
            printable(
                f"dialogue {dialogues[owner].id!r:.80}: features so far from those of the training dialogues that "
                "nothing comes of them; make them by the run's own encoder",
                None,
            )
        )


def best_epoch(history: Sequence[Mapping[str, float]], split: str = "valid") -> int:
    """The first epoch of the best weighted F1 on a split; the last epoch where that was not scored."""
    figure = f"{split}_weighted_f1"
    return int(max(history, key=lambda row: row[figure])["epoch"] if figure in history[-1] else history[-1]["epoch"])


def report(
    network: GANFFN,
    data: Mapping[str, Sequence[Dialogue]],
    label_names: Sequence[str],
    run: Run,
    *,
    best_on_test: bool,
    interrupted: str | None,
    fusion: Mapping[str, Any] | None = None,
    out_of_fold: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> dict[str, Any]:
    """Score the chosen weights, write the run's files and print the report. The test split is scored here only.

    Args:
        network: Takes the weights that `run` has kept.
        data: Split to standardised dialogues.
        label_names: Names of the classes.
        run: The run's directory and history.
        best_on_test: Whether to show also what looking at the test split would have chosen.
        interrupted: Where the run was stopped, if it was.
        fusion: How well stage 1 has fused, if it was trained.
        out_of_fold: Labels and probabilities of training dialogues under networks that had not seen them, a pair a
            fold, to fit the temperature on; without, it is fitted on the validation split, if there is one.

    Returns:
        What ``report.json`` holds; ``interrupted`` alone where stage 2 has finished no epoch.
    """
    started = time.perf_counter()
    history = run.history["classifier"]
    run.close()
    if not history:
        return {"interrupted": interrupted}
    chosen = best_epoch(history)
    load_weights(network, best_weights(run.directory))
    temperature = fit_calibration(network, data, out_of_fold)
    calibration.save(run.directory, temperature)
    heading = f"Interrupted at {interrupted}; this is epoch {chosen}.\n" if interrupted else ""
    scores, text = assess(network, data, label_names, run.directory, temperature, heading=heading)
    on_test = {}
    if best_on_test:
        best = next(row for row in history if row["epoch"] == best_epoch(history, "test"))
        on_test = {"chosen_on_test": {"epoch": best["epoch"], "weighted_f1": best["test_weighted_f1"]}}
        text += (
            f"Chosen on test, as much of the field reports: F1-score {best['test_weighted_f1']:.2f}, epoch "
            f"{best['epoch']:.0f}. The report above is the honest one.\n"
        )
    seconds = {**{stage: run.seconds(stage) for stage in run.history}, "checkpoints": run.saving}
    figures = {
        **scores,
        **on_test,
        **({"fusion": dict(fusion)} if fusion else {}),
        "best_epoch": chosen,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": {**seconds, "total": sum(seconds.values()) + time.perf_counter() - started},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **({"interrupted": interrupted} if interrupted else {}),
    }
    write_json(run.directory / "report.json", figures)
    say(text)
    return figures


def fit_calibration(
    network: GANFFN,
    data: Mapping[str, Sequence[Dialogue]],
    out_of_fold: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> Calibration | None:
    """The temperature of a network, fitted on dialogues it has not learnt from; None where there are none."""
    if out_of_fold:
        labels, probabilities = (np.concatenate(parts) for parts in zip(*out_of_fold, strict=True))
        source, dialogues = "out of fold", len(data["train"])
    elif "valid" in data:
        labels, probabilities = evaluate(network, data["valid"])
        source, dialogues = "valid", len(data["valid"])
    else:
        return None
    known = int((labels != IGNORE_LABEL).sum())
    fitted = calibration.fit_temperature(labels, probabilities)
    return Calibration(fitted, source, dialogues, known) if known else None


def assess(
    network: GANFFN,
    data: Mapping[str, Sequence[Dialogue]],
    label_names: Sequence[str],
    directory: Path | None,
    temperature: Calibration | None = None,
    *,
    heading: str = "",
) -> tuple[dict[str, Any], str]:
    """Score a network, in whatever mode, on standardised dialogues; the rest as `assess_predictions` has it."""
    predictions = {split: evaluate(network, dialogues) for split, dialogues in data.items()}
    for split, (_, probabilities) in predictions.items():
        check_answers(probabilities, data[split])
    calibrated = {split: temperature(p) for split, (_, p) in predictions.items()} if temperature else None
    scores, text = assess_predictions(
        predictions, calibrated, data, label_names, directory, temperature, heading=heading
    )
    return scores, text


def assess_predictions(
    predictions: Mapping[str, tuple[np.ndarray, np.ndarray]],
    calibrated: Mapping[str, np.ndarray] | None,
    data: Mapping[str, Sequence[Dialogue]],
    label_names: Sequence[str],
    directory: Path | None,
    temperature: Calibration | None = None,
    *,
    heading: str = "",
) -> tuple[dict[str, Any], str]:
    """Score what one or several networks said and, where a directory is given, write it there.

    Args:
        predictions: Split to labels ``[N]`` and the networks' own probabilities ``[N, C]``.
        calibrated: Split to calibrated probabilities; None where there are none.
        data: Split to dialogues.
        label_names: Names of the classes.
        directory: Where files go.
        temperature: Of the network, if it is one.
        heading: What comes before the report.

    Returns:
        The scores of ``test`` and ``valid``, None of a validation split that there is not, ``calibration`` on test,
        and the report's text.
    """
    scores = {
        split: utils.score(*predictions[split], label_names) if split in predictions else None
        for split in ("test", "valid")
    }
    after = calibrated["test"] if calibrated else None
    scores["calibration"] = calibration.figures(*predictions["test"], after, temperature)
    text = heading + utils.report_text(*predictions["test"], label_names)
    if directory and not parallel.follows():
        with replacing(directory / "report.txt") as temporary:
            temporary.write_text(text, encoding="utf-8")
        probabilities = calibrated or {split: probability for split, (_, probability) in predictions.items()}
        write_predictions(directory / "predictions.csv", prediction_table(data, probabilities, label_names))
    return scores, text


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Write a table of predictions, its probabilities with 6 decimals."""
    numbers = [name for name in table if name == "confidence" or str(name).startswith("p_")]
    write_csv(path, table.round(dict.fromkeys(numbers, 6)))


def prediction_table(
    splits: Mapping[str, Sequence[Dialogue]], probabilities: Mapping[str, np.ndarray], label_names: Sequence[str]
) -> pd.DataFrame:
    """One row an utterance: its split, then what `utterance_table` says of it.

    Args:
        splits: Split to dialogues.
        probabilities: Split to probabilities ``[N, C]``, the utterances in the order of the dialogues.
        label_names: C names.
    """
    frames = []
    for split, dialogues in splits.items():
        frame = utterance_table(dialogues, probabilities[split], label_names)
        frame.insert(0, "split", split)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def utterance_table(
    dialogues: Sequence[Dialogue], probabilities: np.ndarray | None, label_names: Sequence[str]
) -> pd.DataFrame:
    """One row an utterance.

    Args:
        dialogues: Whose utterances.
        probabilities: ``[N, C]`` in their order, or None for the utterances alone.
        label_names: C names.

    Returns:
        ``dialogue``, ``utterance``, ``turn`` (from 1), ``speaker``, ``sentence``; where there is any label ``label``
        (number) and ``label_name``, empty where there is none; with probabilities ``predicted`` (number), ``emotion``
        (name), ``confidence``, ``correct`` where there is a label, and ``p_NAME`` for each class.
    """
    table = {
        "dialogue": np.repeat([d.id for d in dialogues], [len(d) for d in dialogues]),
        "utterance": [u for d in dialogues for u in d.utterances],
        "turn": np.concatenate([np.arange(1, len(d) + 1) for d in dialogues]),
        "speaker": [s for d in dialogues for s in d.speakers],
        "sentence": [s for d in dialogues for s in d.sentences],
    }
    labels = np.concatenate([d.labels for d in dialogues])
    known, names = labels != IGNORE_LABEL, np.array(label_names, dtype=object)
    if known.any():
        column = pd.Series(labels)
        table["label"] = column if known.all() else column.astype("Int64").mask(~known)
        table["label_name"] = np.where(known, names[labels.clip(min=0)], "")
    if probabilities is None:
        return pd.DataFrame(table)
    predicted = probabilities.argmax(1)
    table |= {"predicted": predicted, "emotion": names[predicted], "confidence": probabilities.max(1)}
    if known.any():
        right = pd.Series(predicted == labels)
        table["correct"] = right if known.all() else right.astype("boolean").mask(~known)
    return pd.DataFrame(table | {f"p_{name}": probabilities[:, k] for k, name in enumerate(label_names)})
