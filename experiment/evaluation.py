"""What a trained network says of dialogues, and the report on it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import utils
from dataloader import IGNORE_LABEL, Corpus, Dialogue, Standardiser, batches
from experiment.console import say
from experiment.run import Run
from experiment.run_directory import write_csv, write_json
from experiment.trained import best_weights, load_weights
from files import replacing
from model import GANFFN, AdversarialFusion

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


@torch.no_grad()
def extract_fused(fusion: AdversarialFusion, dialogues: Sequence[Dialogue]) -> dict[str, np.ndarray]:
    """Fused features of each modality, ``[N, d]``, over the real utterances in the order of the dialogues.

    Rows are NaN where the modality is missing.
    """
    fusion.eval()
    device = next(fusion.parameters()).device
    fused: dict[str, list[Tensor]] = {m: [] for m in fusion.generators}
    for batch in batches(dialogues, BATCH_SIZE):
        batch = batch.to(device)
        for modality, features in fusion(batch).items():
            features = features.masked_fill(~batch.has(modality).unsqueeze(-1), torch.nan)
            fused[modality].append(features[batch.mask].cpu())
    return {m: torch.cat(parts).numpy() for m, parts in fused.items()}


def fused_corpus(fusion: AdversarialFusion, standardise: Standardiser, corpus: Corpus) -> Corpus:
    """A corpus with the fused features of every utterance in the places of the raw ones.

    They are the features of stage 1, which looks at no label.
    """
    dialogues = list(corpus.dialogues.values())
    fused = extract_fused(fusion, [standardise(d) for d in dialogues])
    ends = np.cumsum([len(d) for d in dialogues])[:-1]
    parts = {m: np.split(x, ends) for m, x in fused.items()}
    features = {d.id: replace(d, features={m: parts[m][i] for m in parts}) for i, d in enumerate(dialogues)}
    return replace(corpus, dialogues=features)


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
    pictures: bool,
    interrupted: str | None,
) -> dict[str, Any]:
    """Score the chosen weights, write the run's files and print the report. The test split is scored here only.

    Args:
        network: Takes the weights that `run` has kept.
        data: Split to standardised dialogues.
        label_names: Names of the classes.
        run: The run's directory and history.
        best_on_test: Whether to show also what looking at the test split would have chosen.
        pictures: Whether to draw them.
        interrupted: Where the run was stopped, if it was.

    Returns:
        What ``report.json`` holds; ``interrupted`` alone where stage 2 has finished no epoch.
    """
    started = time.perf_counter()
    history = run.history["classifier"]
    if pictures:
        draw_curves(run, network.fusion.even_losses)
    run.close()
    if not history:
        return {"interrupted": interrupted}
    chosen = best_epoch(history)
    load_weights(network, best_weights(run.directory))
    heading = f"Interrupted at {interrupted}; this is epoch {chosen}.\n" if interrupted else ""
    scores, text = assess(network, data, label_names, run.directory, heading=heading, pictures=pictures)
    on_test = {}
    if best_on_test:
        best = next(row for row in history if row["epoch"] == best_epoch(history, "test"))
        on_test = {"chosen_on_test": {"epoch": best["epoch"], "weighted_f1": best["test_weighted_f1"]}}
        text += (
            f"Chosen on test, as much of the field reports: F1-score {best['test_weighted_f1']:.2f}, epoch "
            f"{best['epoch']:.0f}. The report above is the honest one.\n"
        )
    seconds = {stage: run.seconds(stage) for stage in run.history}
    figures = {
        **scores,
        **on_test,
        "best_epoch": chosen,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": {**seconds, "total": sum(seconds.values()) + time.perf_counter() - started},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **({"interrupted": interrupted} if interrupted else {}),
    }
    write_json(run.directory / "report.json", figures)
    say(text)
    return figures


def assess(
    network: GANFFN,
    data: Mapping[str, Sequence[Dialogue]],
    label_names: Sequence[str],
    directory: Path | None,
    *,
    heading: str = "",
    pictures: bool = True,
) -> tuple[dict[str, Any], str]:
    """Score a network and, where a directory is given, write the report, predictions and pictures there.

    Returns:
        The scores of ``test`` and ``valid``, None of a validation split that there is not, and the report's text.
    """
    predictions = {split: evaluate(network, dialogues) for split, dialogues in data.items()}
    scores = {
        split: utils.score(*predictions[split], label_names) if split in predictions else None
        for split in ("test", "valid")
    }
    text = heading + utils.report_text(*predictions["test"], label_names)
    if directory:
        with replacing(directory / "report.txt") as temporary:
            temporary.write_text(text, encoding="utf-8")
        probabilities = {split: probability for split, (_, probability) in predictions.items()}
        write_csv(directory / "predictions.csv", prediction_table(data, probabilities, label_names))
    if directory and pictures:
        from experiment import plots  # matplotlib takes a second to import

        matrix = scores["test"]["confusion_matrix"]
        plots.plot_confusion_matrix(matrix, label_names, directory / "confusion_matrix.png")
        fused, labels = extract_fused(network.fusion, data["test"]), predictions["test"][0]
        plots.plot_fused_features(fused, labels, label_names, directory / "fused_features.png")
    return scores, text


def draw_curves(run: Run, even: tuple[float, float]) -> None:
    """Draw the losses of stage 1, with those of an even game, and loss and F1 of stage 2, of the epochs there are."""
    from experiment import plots  # matplotlib takes a second to import

    adversarial, classifier = run.history["adversarial"], run.history["classifier"]
    if adversarial:
        plots.plot_adversarial_losses(adversarial, even, run.directory / "GAN_loss.png")
    if classifier:
        plots.plot_training_curves(classifier, best_epoch(classifier), run.directory / "training_curves.png")


def _labels(dialogues: Sequence[Dialogue]) -> pd.Series:
    """The labels ``[N]`` for a table: empty cells where there is none."""
    labels = pd.Series(np.concatenate([d.labels for d in dialogues]))
    return labels.astype("Int64").mask(labels == IGNORE_LABEL) if (labels == IGNORE_LABEL).any() else labels


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
                "label": _labels(dialogues),
                "predicted": probabilities[split].argmax(1),
            }
        )
        frame[[f"p_{name}" for name in label_names]] = probabilities[split]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
