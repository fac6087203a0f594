"""Fused features for other networks to use: of all utterances, as arrays, as a corpus and as a feature file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import feature_files
import parallel
from dataloader import Batch, Corpus, Dialogue, Standardiser, batches
from experiment.console import say
from experiment.evaluation import BATCH_SIZE
from experiment.run_directory import read_config, write_json
from experiment.settings import Settings
from experiment.trained import best_weights, build_network, fusion_weights, load_standardiser, load_weights
from model import GANFFN, SHARED_CHANNELS, AdversarialFusion

FUSED = {
    1: f"of GAN-FFN's stage 1, no label was used: the first {SHARED_CHANNELS} channels are shared by the "
    "modalities, then come the modality's own features, standardised, the same less the speaker's mean in the "
    "dialogue, and zeros up to the width of the widest modality",
    2: "of GAN-FFN's stage 2, labels of the training dialogues were used: each modality's, as its speaker encoder has "
    "them in the dialogue; choose nothing by scores on dialogues of the training split, which are too good",
}


@torch.no_grad()
def extract_fused(
    network: AdversarialFusion | GANFFN,
    dialogues: Sequence[Dialogue],
    fuse: Callable[[Batch], Mapping[str, Tensor]] | None = None,
) -> dict[str, np.ndarray]:
    """Fused features of each modality, ``[N, d]``, over the real utterances in the order of the dialogues.

    Rows are NaN where the modality is missing.

    Args:
        network: Trained.
        dialogues: Standardised.
        fuse: The network's method that makes them; `AdversarialFusion.normalised` unless it is given.
    """
    network.eval()
    device, fuse = next(network.parameters()).device, fuse or network.normalised
    fused: dict[str, list[Tensor]] = defaultdict(list)
    for batch in batches(dialogues, BATCH_SIZE):
        batch = batch.to(device)
        for modality, features in fuse(batch).items():
            features = features.masked_fill(~batch.has(modality).unsqueeze(-1), torch.nan)
            fused[modality].append(features[batch.mask].cpu())
    return {m: torch.cat(parts).numpy() for m, parts in fused.items()}


def by_dialogue(fused: Mapping[str, np.ndarray], dialogues: Sequence[Dialogue]) -> list[dict[str, np.ndarray]]:
    """What `extract_fused` has made, for each of its dialogues."""
    ends = np.cumsum([len(d) for d in dialogues])[:-1]
    parts = zip(*(np.split(x, ends) for x in fused.values()), strict=True)
    return [dict(zip(fused, part, strict=True)) for part in parts]


def with_shared(fusion: AdversarialFusion, dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """Standardised dialogues with the shared channels of their fused features, for generators that rest."""
    fused = extract_fused(
        fusion, dialogues, lambda batch: {m: f[..., :SHARED_CHANNELS] for m, f in fusion(batch).items()}
    )
    return [replace(d, shared=own) for d, own in zip(dialogues, by_dialogue(fused, dialogues), strict=True)]


def fused_corpus(
    network: AdversarialFusion | GANFFN,
    fuse: Callable[[Batch], Mapping[str, Tensor]],
    standardise: Standardiser,
    corpus: Corpus,
) -> Corpus:
    """A corpus with the fused features of every utterance in the places of the raw ones; see `extract_fused`."""
    dialogues = list(corpus.dialogues.values())
    fused = extract_fused(network, [standardise(d) for d in dialogues], fuse)
    made = zip(dialogues, by_dialogue(fused, dialogues), strict=True)
    return replace(corpus, dialogues={d.id: replace(d, features=own) for d, own in made})


def export_fused(directory: Path, corpus: Corpus, settings: Settings, path: str, stage: int) -> None:
    """Write the fused features of every utterance in the places of the raw ones, and how they were made.

    Whether there are any and the file can be written is for `experiment.checks.check_export`, before the run. Of
    several processes the first writes.
    """
    if parallel.follows():
        return
    config = read_config(directory)
    network = build_network(config["corpus"], settings.fusion, settings.classifier).to(settings.run.device)
    if stage == 1:
        load_weights(network.fusion, fusion_weights(directory))
        fuse = network.fusion.export
    else:
        load_weights(network, best_weights(directory))
        fuse = network.encoded
    made = {"fused_features": FUSED[stage], **{name: config.get(name) for name in ("seed", "git_commit", "features")}}
    made |= {"settings": config["settings"]["fusion"], "splits": {s: len(ids) for s, ids in config["splits"].items()}}
    fused = fused_corpus(network, fuse, load_standardiser(directory), corpus)
    if Path(path).suffix == ".safetensors":
        feature_files.write_container(fused, path, made)
    else:  # the layout has no place for it, and its readers want nine items
        feature_files.write_nine_tuple(fused, path)
        write_json(Path(f"{path}.json"), made)
    say(f"Fused features of {len(corpus.dialogues)} dialogues written to {path}: {FUSED[stage].partition(':')[0]}.")
