"""Whether features were fused: what no label is needed to see, on dialogues that stage 1 has not seen."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dataloader import Dialogue
from experiment.fused import extract_fused
from experiment.run import Run
from experiment.settings import FusionSettings
from experiment.trained import fusion_weights, load_weights
from model import SHARED_CHANNELS, AdversarialFusion

MOST = 6_000  # utterances, evenly spaced, that a probe learns from and that are looked at: IEMOCAP has about as many
SIMILARITIES = 2**22  # of a long dialogue that are held at once


def fusion_quality(
    fusion: AdversarialFusion, train: Sequence[Dialogue], held_out: Sequence[Dialogue], *, nonlinear: bool = False
) -> dict[str, Any]:
    """What discriminators, a probe and retrieval make of fused features. Only utterances with all modalities count.

    Args:
        fusion: After stage 1.
        train: Standardised dialogues that stage 1 has learnt from.
        held_out: Standardised dialogues that it has not.
        nonlinear: Whether to train a probe with hidden layers, too, on the shared channels.

    Returns:
        In percent: ``discriminator_accuracy``, by pair ``text>acoustic`` of generator and discriminator, how often D_k
        finds the utterance's s_k more like modality k than s_m, 50 where it cannot tell; ``modality_probe``, how often
        a linear classifier tells the modality of fused features; ``retrieval`` and ``retrieval_shared``, by pair, how
        often an utterance's f_m, or its shared channels, are nearest by cosine to its own f_k among those of the
        dialogue; and the ``chance`` of each. Nothing where no utterance of either side has all modalities.
    """
    train, held_out = thinned(train), thinned(held_out)
    (learnt, _), (seen, known) = (whole_rows(extract_fused(fusion, dialogues)) for dialogues in (train, held_out))
    if not all(len(f) for side in (learnt, seen) for f in side.values()):
        return {}
    dialogue = np.repeat(np.arange(len(held_out)), [len(d) for d in held_out])[known]
    shared = [{m: f[:, :SHARED_CHANNELS] for m, f in each.items()} for each in (learnt, seen)]
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    quality: dict[str, Any] = {
        "discriminator_accuracy": discriminator_accuracy(fusion, shared[1]),
        "modality_probe": probe(linear, learnt, seen),
        "retrieval": {f"{m}>{k}": retrieval(seen[m], seen[k], dialogue) for m, k in fusion.pairs},
        "retrieval_shared": {f"{m}>{k}": retrieval(shared[1][m], shared[1][k], dialogue) for m, k in fusion.pairs},
        "chance": {"modality_probe": 100 / len(seen), "retrieval": 100 * len(np.unique(dialogue)) / len(dialogue)},
    }
    if nonlinear:
        layers = make_pipeline(StandardScaler(), MLPClassifier((64, 64), max_iter=50, random_state=0))
        quality["modality_probe_nonlinear_shared"] = probe(layers, *shared)
    return quality


def thinned(dialogues: Sequence[Dialogue]) -> Sequence[Dialogue]:
    """Every so many of the dialogues, so that about `MOST` utterances are left."""
    return dialogues[:: max(1, round(sum(map(len, dialogues)) / MOST))]


def quality_of_run(
    fusion: AdversarialFusion, settings: FusionSettings, run: Run, data: Mapping[str, Sequence[Dialogue]]
) -> dict[str, Any] | None:
    """The quality of what stage 1 came to in a run, on the validation or else the test split.

    Args:
        fusion: Of the same shape; it is left as it is.
        settings: Of stage 1.
        run: Which has finished it.
        data: Split to standardised dialogues.

    Returns:
        As `fusion_quality`, and the ``split``; None where there was no stage 1, or there is nothing to report.
    """
    if len(fusion.generators) < 2 or not settings.takes_place or not run.history["classifier"]:
        return None
    stage_1 = copy.deepcopy(fusion)
    load_weights(stage_1, fusion_weights(run.directory))
    split = "valid" if "valid" in data else "test"
    quality = fusion_quality(stage_1, data["train"], data[split])
    return {"split": split, **quality} if quality else None


def whole_rows(fused: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The utterances that have every modality, and which of all they are."""
    whole = ~np.isnan(np.concatenate(list(fused.values()), 1)).any(1)
    return {m: f[whole] for m, f in fused.items()}, whole


@torch.no_grad()
def discriminator_accuracy(fusion: AdversarialFusion, shared: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How often D_k ranks an utterance's own s_k above its s_m, ties counting half, in percent, by pair."""
    device = next(fusion.parameters()).device
    found = {}
    for m, k in fusion.pairs:
        own, other = (fusion.discriminators[k](torch.from_numpy(shared[i]).to(device)).cpu() for i in (k, m))
        found[f"{m}>{k}"] = 100 * ((own > other).double() + 0.5 * (own == other)).mean().item()
    return found


def probe(classifier: Any, learnt: Mapping[str, np.ndarray], seen: Mapping[str, np.ndarray]) -> float:
    """How often a classifier tells the modality of the rows ``seen``, having learnt from others, in percent."""
    chosen = {m: f[np.linspace(0, len(f) - 1, min(MOST, len(f))).astype(int)] for m, f in learnt.items()}
    truth = [np.repeat(np.arange(len(each)), [len(f) for f in each.values()]) for each in (chosen, seen)]
    classifier.fit(np.concatenate(list(chosen.values())), truth[0])
    return 100 * float(classifier.score(np.concatenate(list(seen.values())), truth[1]))


def retrieval(query: np.ndarray, found: np.ndarray, dialogue: np.ndarray) -> float:
    """How often a row's own partner is the nearest by cosine among those of its dialogue, in percent.

    Args:
        query: Rows ``[N, d]``.
        found: Their partners ``[N, d]``.
        dialogue: Which dialogue each is of ``[N]``.
    """
    hits = 0
    query, found = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-9) for x in (query, found))
    for i in np.unique(dialogue):
        rows = np.flatnonzero(dialogue == i)
        for start in range(0, len(rows), step := max(1, SIMILARITIES // len(rows))):
            asked = np.arange(start, min(start + step, len(rows)))
            hits += int((np.argmax(query[rows[asked]] @ found[rows].T, axis=1) == asked).sum())
    return 100 * hits / len(query)
