"""The directory of a run: its files, its lock, and its ``config.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch_geometric import __version__ as pyg_version

from dataloader import Corpus
from experiment.settings import RUN_FORMAT, Settings, read_run
from files import InputError, is_leftover, replacing

LOCK = ".lock"  # in a run directory, while a process works on it
PROJECT = Path(__file__).resolve().parent.parent


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; a number that is not finite is refused rather than written as ``NaN``."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


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


# What a run stands on -------------------------------------------------------------------------------------------------


def write_config(directory: Path, settings: Settings, corpus: Corpus, plan: Mapping[str, Any] | None = None) -> None:
    """Write ``config.json``, before all else. A run that goes on keeps the versions it was begun with.

    Args:
        directory: Of the run, or of several.
        settings: As used.
        corpus: With the splits as used.
        plan: Of several runs, the seeds and folds.
    """
    begun = read_config(directory) if (directory / "config.json").exists() else {}
    write_json(
        directory / "config.json",
        {
            "format": RUN_FORMAT,
            "settings": dataclasses.asdict(settings),
            **({"plan": dict(plan)} if plan else {}),
            "seed": settings.run.seed,
            "device": settings.run.device,
            "versions": begun.get("versions", versions()),
            "git_commit": begun.get("git_commit", git_commit()),
            "features": {
                "file": corpus.name,
                "sha256": corpus.sha256,
                **({"provenance": dict(corpus.provenance)} if corpus.provenance else {}),
            },
            "corpus": {
                "dims": corpus.dims,
                "label_names": list(corpus.label_names),
                "num_speakers": corpus.num_speakers,
            },
            "splits": {split: list(ids) for split, ids in corpus.splits.items()},
        },
    )


def read_config(directory: Path) -> dict[str, Any]:
    """What `write_config` said of a run.

    Raises:
        InputError: If the directory is no run's, or that of an older version.
    """
    return read_run(directory / "config.json")


@cache
def versions() -> dict[str, str]:
    """What a run's bits depend on besides data and settings."""
    files = sorted([*PROJECT.glob("*.py"), *PROJECT.glob("experiment/*.py"), *PROJECT.glob("feature_files/*.py")])
    return {
        "code": hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": pyg_version,
        "numpy": np.__version__,
    }


@cache
def git_commit() -> str | None:
    """The commit that is checked out, with ``+`` behind it if files differ from it; None where there is no Git."""
    if not (PROJECT / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(PROJECT), *words], capture_output=True, text=True, timeout=10, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def prepare_directory(directory: Path, corpus: Corpus, *, resume: bool, overwrite: bool) -> None:
    """Make sure that the run directory is empty or that of the run to resume.

    Raises:
        InputError: If it is neither.
    """
    if resume:
        begun = read_config(directory)
        trained_on = begun["features"]["sha256"]
        if trained_on != corpus.sha256:
            raise InputError(
                f"{corpus.name}: not the data that {directory} was trained on (SHA-256 {corpus.sha256[:12]}…, then "
                f"{trained_on[:12]}…); give the file it was begun with"
            )
        then, now = begun.get("versions", {}), versions()
        if other := [f"{name} {then.get(name)} (now {now[name]})" for name in now if then.get(name) != now[name]]:
            print(f"warning: {directory} was begun with {', '.join(other)}; the bits may differ", file=sys.stderr)
    elif not unused(directory):
        if not overwrite:
            raise InputError(f"--out {directory}: exists; choose another, or add --overwrite or --resume {directory}")
        if not (directory / "config.json").exists():
            raise InputError(f"--out {directory}: --overwrite replaces only runs, and this is none; choose another")
        empty(directory)
    sweep(directory)
