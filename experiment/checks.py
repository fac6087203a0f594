"""What would stop a run later, found before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloader import Corpus, Standardiser, hold_out_validation
from experiment.flags import Command
from experiment.run_directory import read_config
from experiment.settings import Settings
from experiment.trained import build_network, fusion_weights, load_weights, shape_of
from files import InputError


def check_shape(corpus: Corpus, shape: Mapping[str, Any], directory: Path) -> None:
    """Refuse data that the network of a run cannot read.

    Raises:
        InputError: If modalities, their widths or the classes differ; it says which.
    """
    if corpus.dims != shape["dims"]:
        raise InputError(
            f"{corpus.name}: features {corpus.dims}, but the run {directory} was trained on {shape['dims']}; give a "
            "file of the same shape, or --modalities"
        )
    names = list(corpus.label_names)
    if len(names) != len(shape["label_names"]):
        raise InputError(
            f"{corpus.name}: {len(names)} classes, but the run {directory} was trained on "
            f"{len(shape['label_names'])}; give a file of the same shape"
        )
    if other := [f"{a!r} (the run has {b!r})" for a, b in zip(names, shape["label_names"], strict=True) if a != b]:
        raise InputError(
            f"{corpus.name}: other classes than those of the run {directory}: {', '.join(other):.300}; name them alike "
            "with --label-names if they are the same"
        )


def check_export(settings: Settings, corpus: Corpus, path: str) -> None:
    """Refuse to export fused features where there are none, or to where nothing can be.

    Raises:
        InputError: If a run with these settings has no stage 1, or the file's folder is not there.
    """
    if len(corpus.dims) < 2 or not (settings.fusion.epochs or settings.fusion.trained_run):
        raise InputError("--export-fused: stage 1 was left out, so no features are fused; use two modalities or more")
    if not Path(path).resolve().parent.is_dir():
        raise InputError(f"--export-fused {path}: cannot be written; there is no such folder, make it")


def check_before_writing(command: Command, parts: Sequence[Corpus]) -> None:
    """Find what would stop a run later, while the run directory, and one to be replaced, are untouched.

    Raises:
        InputError: If validation, a modality, the earlier run's stage 1 or the export cannot be had.
    """
    settings, corpus = command.settings, parts[0]
    for part in parts:
        held_out = hold_out_validation(part, settings.data.valid, settings.run.seed)
        if settings.data.missing == "mask":
            Standardiser.fit(held_out.split("train"))
    for name in settings.augmentation.drop_modality or ():
        if name not in corpus.dims:
            raise InputError(f"{corpus.name}: --drop-modality: no {name} features; there are {', '.join(corpus.dims)}")
    trained_run = settings.fusion.trained_run
    for flag, needed in (("--features", settings.data.features), ("--use-trained-GAN", trained_run)):
        if command.overwrite and command.out and needed:
            path = Path(needed).resolve()
            if Path(command.out).resolve() in (path, *path.parents):
                raise InputError(f"{flag} {needed}: --overwrite would delete it; give another --out")
    if trained_run and len(corpus.dims) > 1:
        network = build_network(shape_of(corpus), settings.fusion, settings.classifier)
        load_weights(network.fusion, fusion_weights(Path(trained_run)))
        seen = set(read_config(Path(trained_run))["splits"].get("train", ()))
        for part in parts:
            held_out = hold_out_validation(part, settings.data.valid, settings.run.seed).splits
            if leaked := [i for split in ("valid", "test") for i in held_out.get(split, ()) if i in seen]:
                raise InputError(
                    f"--use-trained-GAN {trained_run}: was trained on {len(leaked)} of this run's held-out dialogues, "
                    f"such as {leaked[0]!r:.80}; use a run of the same splits"
                )
    if command.export_fused:
        check_export(settings, corpus, command.export_fused)
