"""The network of a run: built from its settings, and read back from its directory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataloader import Corpus, Standardiser
from experiment.run_directory import load_tensors, read_config
from experiment.settings import ClassifierSettings, FusionSettings, Settings, read_json
from files import InputError
from model import GANFFN, GENERATORS, AdversarialFusion, GraphEmotionClassifier


def shape_of(corpus: Corpus) -> dict[str, Any]:
    """What of a corpus decides the network's shape."""
    return {"dims": corpus.dims, "label_names": list(corpus.label_names), "num_speakers": corpus.num_speakers}


def build_network(shape: Mapping[str, Any], fusion: FusionSettings, classifier: ClassifierSettings) -> GANFFN:
    """The network for a corpus: its widths, classes and speakers come from the data."""
    causal, generator = classifier.causal, GENERATORS[fusion.generator]
    window_future = 0 if causal else classifier.window_future
    return GANFFN(
        AdversarialFusion(
            shape["dims"],
            fusion.channels,
            fusion.dropout,
            generator=partial(generator, causal=True) if causal else generator,
            relativistic=fusion.loss == "relativistic",
            context=bool(classifier.window_past or window_future),
        ),
        GraphEmotionClassifier(
            fusion.channels,
            len(shape["label_names"]),
            shape["num_speakers"],
            window_past=classifier.window_past,
            window_future=window_future,
            layers=classifier.graph_layers,
            attention=classifier.attention,
            dropout=fusion.dropout,
            causal=causal,
        ),
        classifier.speaker_layers,
        fusion.dropout,
        causal,
    )


def fusion_weights(directory: Path) -> Path:
    """Where a run keeps what stage 1 came to."""
    return directory / "checkpoints" / "fusion.safetensors"


def best_weights(directory: Path) -> Path:
    """Where a run keeps the weights that are reported on."""
    return directory / "checkpoints" / "best.safetensors"


def standardiser_file(directory: Path) -> Path:
    """Where a run keeps its standardisation."""
    return directory / "checkpoints" / "standardiser.safetensors"


def load_standardiser(directory: Path) -> Standardiser:
    """The standardisation a run learnt on its training dialogues.

    Raises:
        InputError: If it is not there, or cannot be one of the widths that the run's ``config.json`` names.
    """
    path, dims = standardiser_file(directory), read_config(directory)["corpus"]["dims"]
    other = f"{path}: not of features {dims}, as config.json has them; the run directory is damaged"
    tensors = load_tensors(path, [torch.empty(2 * sum(dims.values()), dtype=torch.float64, device="meta")], other)
    wanted = {f"{m}.{name}": (width,) for m, width in dims.items() for name in ("mean", "scale")}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != wanted:
        raise InputError(other)
    if any(x.dtype != torch.float64 or not x.isfinite().all() for x in tensors.values()) or any(
        (tensors[f"{m}.scale"] <= 0).any() for m in dims
    ):
        raise InputError(f"{path}: no means and scales of features; the run directory is damaged")
    return Standardiser.from_tensors(tensors)


def made_by(directory: Path) -> str | None:
    """The commit that a run was made by, where its ``config.json`` says so."""
    try:
        return re.match(r"[0-9a-f]{7,40}", read_json(directory / "config.json")["git_commit"])[0]
    except (InputError, LookupError, TypeError):
        return None


def load_weights(module: nn.Module, path: Path, assign: bool = False) -> None:
    """Load what a run saved.

    Args:
        module: Takes it.
        path: The file.
        assign: Whether its tensors become those of the module, rather than being copied into them.

    Raises:
        InputError: If the file is not there, is damaged, or is of a network of another shape.
    """
    other = f"{path}: weights of another network; use the modalities, feature widths and flags of the run they are from"
    if commit := made_by(path.parent.parent):
        other += f", and its version: commit {commit}"
    tensors = load_tensors(path, module.state_dict().values(), other)
    if not all(x.isfinite().all() for x in tensors.values()):
        raise InputError(f"{path}: weights that are infinite or NaN; the file is damaged")
    kinds = {name: x.dtype for name, x in module.state_dict().items()}
    if any(x.dtype != kinds.get(name, x.dtype) for name, x in tensors.items()):
        raise InputError(other)
    try:
        module.load_state_dict(tensors, assign=assign)
    except RuntimeError:
        raise InputError(other) from None


def source_of_stage_1(fusion: FusionSettings, directory: Path) -> Path:
    """The run that stage 1 is taken from: the earlier one until all of it is in this one, which then goes on alone."""
    own = ("last.pt", "previous.pt") if fusion.more_epochs else (fusion_weights(directory).name,)
    there = any((directory / "checkpoints" / name).exists() for name in own)
    return directory if there else Path(fusion.trained_run)


def standardisation(settings: Settings, corpus: Corpus, directory: Path) -> Standardiser:
    """That of the training dialogues, or of the earlier run whose generators have learnt to read by it.

    Args:
        settings: Of the run.
        corpus: Its data.
        directory: Its directory.
    """
    if settings.fusion.trained_run and len(corpus.dims) > 1:
        return load_standardiser(source_of_stage_1(settings.fusion, directory))
    return Standardiser.fit(corpus.split("train"))
