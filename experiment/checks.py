"""What would stop a run later, found before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import parallel
from dataloader import IGNORE_LABEL, Corpus, Standardiser, any_label, hold_out_validation
from experiment.flags import Command, flag_of
from experiment.plan import PlannedRun, calibration_folds
from experiment.run_directory import check_replaceable, marked, read_config, run_of
from experiment.settings import FREE_ON_RESUME, Settings, flat, from_json
from experiment.trained import (
    build_network,
    fusion_weights,
    load_standardiser,
    load_weights,
    shape_of,
    source_of_stage_1,
)
from files import InputError, lies_in


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
        InputError: If a run with these settings has no stage 1, the file's folder is not there, or its layout has no
            place for what the corpus holds.
    """
    if len(corpus.dims) < 2 or not settings.fusion.takes_place:
        raise InputError("--export-fused: stage 1 was left out, so no features are fused; use two modalities or more")
    if Path(path).suffix != ".safetensors" and any((d.labels == IGNORE_LABEL).any() for d in corpus.dialogues.values()):
        raise InputError(
            f"--export-fused {path}: the 9-tuple has no place for utterances without a label; name it .safetensors"
        )
    folder = Path(path).parent
    if not os.path.isdir(folder):  # noqa: PTH112 - a Path raises where a name is too long
        raise InputError(f"--export-fused {path}: cannot be written; there is no such folder, make it")
    if len(os.fsencode(Path(path).name)) > LONGEST_NAME or not os.access(folder, os.W_OK):
        raise InputError(f"--export-fused {path}: cannot be written there, or under so long a name; choose another")
    if Path(path).exists() and not Path(path).is_file():
        raise InputError(f"--export-fused {path}: a folder or a device; give the name of a file")
    beside = [] if Path(path).suffix == ".safetensors" else [f"{path}.json"]  # how they were made
    for written in (path, *beside):
        check_apart("--export-fused", written, settings)
        if run := run_of(Path(written)):
            raise InputError(f"--export-fused {path}: is a file of the run in {run}; give another name")


LONGEST_NAME = 230  # bytes; a file system's 255, less what it is called while it is written


def check_apart(flag: str, path: str, settings: Settings) -> None:
    """Refuse to write over what is read, whatever name or link it goes by.

    Raises:
        InputError: If the output is an input, or lies in a folder that is one.
    """
    out = Path(path)
    there = os.path.exists
    for name, needed in (("--features", settings.data.features), ("--use-trained-GAN", settings.fusion.trained_run)):
        if not needed or not there(needed):
            continue
        # A symbolic link to the input would only be replaced itself, but who names it means what is behind it.
        if (there(out) and out.samefile(needed)) or any(
            parent.samefile(needed) for parent in out.resolve().parents if Path(needed).is_dir()
        ):
            raise InputError(f"{flag} {path}: would be written over {name} {needed}; give another name")


def memory() -> int:
    """Bytes of memory that this process may have, as far as the system says; 2^63 where it says nothing."""
    bounds = [2**63]
    with suppress(ValueError, OSError, AttributeError):
        bounds.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for control_group in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(ValueError, OSError):
            bounds.append(int(Path(control_group).read_text()))
    with suppress(ImportError):  # Windows has no such limits
        import resource

        bounds += [limit for limit in resource.getrlimit(resource.RLIMIT_AS)[:1] if limit > 0]
    return min(bounds)


def bytes_of_network(settings: Settings, shape: Mapping[str, Any], copies: int) -> int:
    """What so many copies of a network's weights take, without making one."""
    cpu, device = torch.get_rng_state(), torch.device("meta")
    with device:
        network = build_network(shape, settings.fusion, settings.classifier)
    torch.set_rng_state(cpu)
    return 4 * copies * sum(p.numel() for p in (*network.parameters(), *network.buffers()))


def check_memory(settings: Settings, shape: Mapping[str, Any], *, training: bool = True) -> None:
    """Refuse a network that the machine has no memory for, before the system kills what asks for it.

    Raises:
        InputError: If its weights alone do not fit, or in training the six copies of them: gradients, two moments of
            the optimizer, the average and the best, besides themselves.
    """
    copies = 6 if training else 1
    needed, there = bytes_of_network(settings, shape, copies), memory()
    if needed > there:
        raise InputError(
            f"--fused-channels {settings.fusion.channels}, {settings.classifier.graph_layers} graph layers, "
            f"{shape['num_speakers']} speakers: {needed // (4 * copies):,} parameters take {needed / 1e9:,.0f} GB and "
            f"the machine has {there / 1e9:,.0f}; lower --fused-channels, --graph-layers or --speaker-layers"
        )


PROCESS = 450 * 10**6  # bytes that Python, torch and the rest take in each process, measured with --jobs 2 on the CPU


def check_jobs(jobs: int, settings: Settings, corpus: Corpus) -> None:
    """Refuse more runs at a time than the machine has memory for.

    Raises:
        InputError: If packages, data and the copies of the weights alone do not fit so often; it says how often.
    """
    if jobs < 2:
        return
    data = sum(x.nbytes for dialogue in corpus.dialogues.values() for x in dialogue.features.values())
    each, there = PROCESS + 2 * data + bytes_of_network(settings, shape_of(corpus), 6), memory()
    if jobs * each > there:
        raise InputError(
            f"--jobs {jobs}: so many runs take at least {jobs * each / 1e9:,.0f} GB and the machine has "
            f"{there / 1e9:,.0f}; at most --jobs {max(1, there // each)}"
        )


def check_alike(command: Command, corpus: Corpus) -> None:
    """Refuse processes of one run that are about to do different things.

    Raises:
        InputError: If flags or data differ between them, or each were to start processes of its own.
    """
    if parallel.size() > 1 and command.together:
        raise InputError(f"torchrun: leave out{command.together}: one run takes all processes already")
    settings = {flag_of(name): value for name, value in flat(command.settings).items() if name not in FREE_ON_RESUME}
    plan = {"--seeds": command.seeds, "--folds": command.folds, "--folds-over": command.folds_over}
    parallel.agree({**settings, **plan, "data with SHA-256": corpus.sha256[:12], "torch": torch.__version__})


def check_before_writing(command: Command, runs: Sequence[PlannedRun]) -> None:
    """Find what would stop a run later, while the run directory, and one to be replaced, are untouched.

    Raises:
        InputError: If `check_training` has one, or the directory cannot be replaced, or the export cannot be.
    """
    settings, corpus = command.settings, runs[0].corpus
    if command.overwrite and command.out and not command.resume and marked(Path(command.out)):
        check_replaceable(Path(command.out))
    trained_run = settings.fusion.trained_run
    for flag, needed in (("--features", settings.data.features), ("--use-trained-GAN", trained_run)):
        if command.overwrite and command.out and needed:
            path, out = Path(needed), Path(command.out)
            with suppress(OSError):  # whoever reads or writes it says so
                if path.exists() and out.exists() and (out.samefile(path) or lies_in(path, out)):
                    raise InputError(f"{flag} {needed}: --overwrite would delete it; give another --out")
    check_jobs(min(command.jobs, len(runs)), settings, corpus)
    if command.resume and trained_run:
        runs = without_earlier_run(command.resume, runs)
    check_training(runs, begun=bool(command.resume))
    if command.export_fused:
        check_export(settings, corpus, command.export_fused)


def without_earlier_run(resume: str, runs: Sequence[PlannedRun]) -> Sequence[PlannedRun]:
    """The runs to go on with, as ones that use no earlier run if none of them needs it any more.

    Raises:
        InputError: If one does, and it is not there.
    """
    earlier = Path(runs[0].settings.fusion.trained_run)
    places = [Path(resume) / run.name for run in runs]
    if all((p / "report.json").exists() or source_of_stage_1(runs[0].settings.fusion, p) == p for p in places):
        return [replace(run, settings=run.settings.replace(fusion__trained_run=None)) for run in runs]
    if not earlier.exists():
        raise InputError(
            f"--resume {resume}: stage 1 comes from {earlier} (--use-trained-GAN), which is not there; put it back "
            "there, or begin anew with another --use-trained-GAN and --overwrite"
        )
    return runs


def check_training(runs: Sequence[PlannedRun], *, begun: bool = False) -> None:
    """Find what would stop one of several runs, or make its scores worth nothing.

    Args:
        runs: Whose settings and data differ in nothing but the seed and the fold.
        begun: Whether they are gone on with: a flag that does nothing can be left out no more.

    Raises:
        InputError: If there is no memory for the network, or validation, folds to calibrate on, labels, a modality or
            an earlier run's stage 1 cannot be, or one modality leaves a flag nothing to do.
    """
    settings, corpus = runs[0].settings, runs[0].corpus
    check_memory(settings, shape_of(corpus))
    trained_run = Path(settings.fusion.trained_run) if settings.fusion.trained_run and len(corpus.dims) > 1 else None
    seen = set()
    if trained_run:
        network = build_network(shape_of(corpus), settings.fusion, settings.classifier)
        load_weights(network.fusion, fusion_weights(trained_run))
        load_standardiser(trained_run)
        before = from_json(read_config(trained_run)["settings"], str(trained_run))
        if before.classifier.causal != settings.classifier.causal:
            how = "with" if before.classifier.causal else "without"
            raise InputError(
                f"--use-trained-GAN {trained_run}: was trained {how} --causal, and a speaker's mean is another then; "
                "use a run that was trained as this one is"
            )
        seen = learnt_from(trained_run)
    for run in runs:
        valid, seed = run.settings.data.valid, run.settings.run.seed
        held_out = hold_out_validation(run.corpus, valid, seed)
        check_part(settings, held_out)
        for fold in calibration_folds(settings, held_out).values() if settings.run.calibrate else ():
            check_part(settings, hold_out_validation(fold, valid, seed), "--calibrate: ")
        if leaked := [i for split in ("valid", "test") for i in held_out.splits.get(split, ()) if i in seen]:
            raise InputError(
                f"--use-trained-GAN {trained_run}: was trained on {len(leaked)} of this run's held-out dialogues, "
                f"such as {leaked[0]!r:.80}; use a run of the same splits"
            )
    for name in settings.augmentation.drop_modality or ():
        if name not in corpus.dims:
            raise InputError(f"{corpus.name}: --drop-modality: no {name} features; there are {', '.join(corpus.dims)}")
    for name in ("classifier.unimodal_loss", "augmentation.drop_modality"):
        if len(corpus.dims) == 1 and flat(settings)[name] and not begun:  # it would do nothing
            raise InputError(f"{corpus.name}: {flag_of(name)} is for several modalities, here is one; leave it out")


def check_part(settings: Settings, part: Corpus, flag: str = "") -> None:
    """Refuse splits that nothing can be learnt from, or scored on.

    Args:
        settings: Of the run.
        part: With its validation split.
        flag: What asked for these splits, for messages.

    Raises:
        InputError: If no utterance of a split has a label, or none to train on has a modality.
    """
    for split in part.splits:
        if not any_label(part.split(split)):
            raise InputError(
                f"{part.name}: {flag}{split}: no utterance of dialogue {part.splits[split][0]!r:.80}, or of "
                "others there, has a label; label some, or divide the dialogues otherwise"
            )
    if settings.data.missing == "mask":
        Standardiser.fit(part.split("train"))


def learnt_from(directory: Path) -> set[str]:
    """The dialogues that a run's stage 1 has learnt from, those of the earlier runs it went on with among them."""
    seen: set[str] = set()
    runs: set[Path] = set()
    while directory not in runs:
        runs.add(directory)
        try:
            config = read_config(directory)
            seen |= set(config["splits"].get("train", ()))
            directory = Path(from_json(config["settings"], str(directory)).fusion.trained_run or directory)
        except InputError:
            if len(runs) == 1:
                raise  # an earlier one may be gone
    return seen
