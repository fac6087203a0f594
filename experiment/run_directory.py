"""The directory of a run: its files, its lock, and its ``config.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import parallel
import utils
from dataloader import MOST_SPEAKERS, Corpus
from experiment.settings import RUN_FORMAT, Modalities, Settings, differences, from_json, read_json, read_run
from files import InputError, complain, is_leftover, printable, read_text, replacing

LOCK = ".lock"  # in a run directory, while a process works on it
LOG = "log.txt"  # in a run directory, what a run said that had no terminal
FINDER = ".DS_Store"  # in every folder that was looked at in a Mac's Finder
REPLACED = ".replaced"  # in a run directory, what --overwrite is about to delete
# All that a run writes, so that --overwrite knows a run from another folder: a file that a run gets is named here.
PICTURES = (
    *("GAN_loss", "fusion_losses", "training_curves", "confusion_matrix", "per_class_f1", "reliability_diagram"),
    *("emotion_timeline", "fused_features", "last_layer", "spread"),
)
RUN_FILES = (
    r"config\.json|log\.txt|report\.(txt|json|html)|summary\.json|predictions\.csv|GAN_loss\.csv|history\.csv",
    rf"({'|'.join(PICTURES)})\.(png|pdf|svg)",
    r"checkpoints/[a-z]+\.(pt|safetensors)|tensorboard/(mean[a-z_]*/)?events\.[^/]+",
    r"tensorboard/(projector_config\.pbtxt|00000/[a-z_]+/(metadata|tensors)\.tsv)",
)
RUN_FOLDERS = r"checkpoints|tensorboard(/mean[a-z_]*|/00000(/[a-z_]+)?)?"
RUNS_WITHIN = r"calibration|seed\d+|fold[A-Za-z0-9]+"
HEADER = 1000  # bytes that a file of weights may have for each tensor besides the tensor
PROJECT = Path(__file__).resolve().parent.parent


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; a number that is not finite is refused rather than written as ``NaN``."""
    if parallel.follows():
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: pd.DataFrame | Sequence[Mapping[str, Any]], digits: int | None = None) -> None:
    r"""Write a table, whole or not at all.

    Text that a spreadsheet would take for a formula gets a ``'`` before it. Control characters, line breaks and halves
    of surrogate pairs are escaped (``\r``), so that a row is a line.

    Args:
        path: The file.
        rows: The table.
        digits: Significant digits of numbers that are not whole; all they have unless given.
    """
    if parallel.follows():
        return
    table = pd.DataFrame(rows)
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            table[name] = [one_line(x) if isinstance(x, str) else x for x in table[name]]
    table.columns = [one_line(str(name)) for name in table.columns]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        table.to_csv(stream, index=False, float_format=f"%.{digits}g" if digits else None)


NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


FORMULA = ("=", "+", "-", "@", "\t", "\r")


def one_line(text: str) -> str:
    """Text for a cell of a table."""
    guarded = f"'{text}" if text.startswith(FORMULA) else text
    return NOT_IN_A_LINE.sub(lambda c: ascii(c.group())[1:-1], guarded)


def unguarded(text: str) -> str:
    """A cell of a table without the ``'`` that keeps a spreadsheet from taking it for a formula."""
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors, whole or not at all."""
    if parallel.follows():
        return
    with replacing(path) as temporary:
        temporary.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def load_tensors(path: Path, like: Iterable[Tensor], other: str) -> dict[str, Tensor]:
    """Read named tensors.

    Args:
        path: The file.
        like: Tensors as large as those it should have, of which no more than the size is looked at.
        other: What to say of a file that is too large to be of these: it is not read.

    Raises:
        InputError: If the file is not there, damaged, or larger than these tensors can make it.
    """
    try:
        if path.is_file() and path.stat().st_size > 2**20 + sum(HEADER + x.nbytes for x in like):
            raise InputError(other)
        if path.exists() and not path.is_file():
            raise OSError("a folder or a device, not a file")
        return load(path.read_bytes())
    except InputError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        reason = printable(" ".join(str(error).split()))
        raise InputError(f"{path}: cannot be read ({reason}); the run has not come so far, or is damaged") from None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory and let no other process work on it meanwhile; the lock of a process that died is void.

    Raises:
        InputError: If another process does, or the directory cannot be made, or has a lock that is none of ours.
    """
    if parallel.follows():
        yield
        return
    try:
        lock_file = directory / LOCK
        if os.path.lexists(lock_file) and not is_lock(lock_file):
            raise InputError(f"{lock_file}: none of a run; choose another --out")
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK, timeout=0.1)  # without flock, the first try does away with a dead one
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flock not supported")
            lock.acquire()
    except Timeout:
        raise InputError(f"{directory}: another process is at work there; wait, or choose another directory") from None
    except OSError as error:
        raise InputError(f"--out {directory}: cannot be made ({error.strerror}); choose another directory") from None
    try:
        yield
    finally:
        with suppress(OSError):
            settle(directory)
        with suppress(OSError):
            (directory / LOCK).unlink(missing_ok=True)  # before the release, or it might be that of the next process
        lock.release()


def is_lock(path: Path) -> bool:
    """Whether a file is a lock: empty or, of a file system without locks, with the process that has it."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 1000:
        return False
    return re.fullmatch(rb"(\d+\n\S+\n(\d+\n)?)?", path.read_bytes()) is not None


def sweep(directory: Path) -> None:
    """Delete what a killed process left half-written in a run directory."""
    for folder in (directory, directory / "checkpoints"):
        for path in folder.glob(".*.tmp"):
            if is_leftover(path):
                path.unlink(missing_ok=True)


def unused(directory: Path) -> bool:
    """Whether nothing is in a directory, but for a lock, a log and what the Finder or a killed process left."""
    return all(path.name in (LOCK, LOG, FINDER) or is_leftover(path) for path in directory.iterdir())


def check_replaceable(directory: Path) -> None:
    """Make sure that what ``--overwrite`` would delete is a run and nothing else.

    A run is known by its content: the mark in ``config.json``, and no file, folder or link that a run does not have.

    Raises:
        InputError: If it is something else; it names what is in the way.
    """
    refused = f"--out {directory}: --overwrite replaces only runs, and"
    if directory.is_symlink():
        raise InputError(f"{refused} this is a link; name the folder itself")
    if os.path.normpath(directory) != str(directory):  # what it goes through would be moved aside with the rest
        raise InputError(f"{refused} this goes through another folder; name it without '..'")
    at, home = directory.resolve(), Path("~").expanduser().resolve()
    if at in (*Path.cwd().resolve().parents, Path.cwd().resolve(), *home.parents, home) or (at / ".git").exists():
        raise InputError(f"{refused} this is a folder of other things; choose another")
    if not marked(directory):
        raise InputError(f"{refused} this is none: it has no config.json of one; choose another, or delete it yourself")
    if stray := next(foreign(directory), None):
        raise InputError(f"{refused} {stray} is none of a run's; move it elsewhere, or choose another --out")


def foreign(directory: Path) -> Iterator[Path]:
    """What is in a run's directory that no run writes, links included; links are not followed."""
    for folder, names, files in os.walk(directory):
        here = Path(folder)
        parts = here.relative_to(directory).parts
        inside = [part for part in parts if not re.fullmatch(RUNS_WITHIN, part)]
        for name in names:
            known = re.fullmatch(RUN_FOLDERS, "/".join([*inside, name]))
            if (here / name).is_symlink() or not (known or (not inside and re.fullmatch(RUNS_WITHIN, name))):
                yield here / name
        for name in files:
            path = here / name
            known = any(re.fullmatch(pattern, "/".join([*inside, name])) for pattern in RUN_FILES)
            if path.is_symlink() or not path.is_file() or not (known or name in (LOCK, FINDER) or is_leftover(path)):
                yield path


def links(directory: Path) -> Iterator[Path]:
    """Links in a directory, which a run's has none of; they are not followed."""
    for folder, names, files in os.walk(directory):
        yield from (path for name in [*names, *files] if (path := Path(folder, name)).is_symlink())


def set_aside(directory: Path) -> None:
    """Make room for another run in a run's directory; `settle` deletes what was there, or brings it back."""
    aside = directory / REPLACED
    aside.mkdir(exist_ok=True)
    # config.json goes first and, if it is to be, comes back last: it says whose the directory is.
    for path in sorted(directory.iterdir(), key=lambda path: path.name != "config.json"):
        if path.name not in (LOCK, REPLACED):
            path.rename(aside / path.name)


def settle(directory: Path) -> None:
    """Delete what a run has replaced, if that run has begun with its ``config.json``; else bring it back."""
    aside = directory / REPLACED
    if aside.is_symlink() or not aside.is_dir():
        return
    if marked(directory):
        shutil.rmtree(aside)
    elif marked(aside):
        for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(directory / path.name)
        aside.rmdir()


def marked(directory: Path) -> bool:
    """Whether a directory has a ``config.json`` of a run."""
    path = directory / "config.json"
    try:
        config = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return False
    return not path.is_symlink() and isinstance(config, dict) and config.get("format") == RUN_FORMAT


def run_of(path: Path) -> Path | None:
    """The run's directory in which a file of this name would be one of the run's own; None if there is none."""
    path = path.parent.resolve() / path.name
    for directory in path.parents:
        inside = path.relative_to(directory).as_posix()
        if any(re.fullmatch(pattern, inside) for pattern in RUN_FILES) and marked(directory):
            return directory
    return None


def states(directory: Path) -> list[Path]:
    """The states to resume from; a run that has come to its end has none."""
    return list((directory / "checkpoints").glob("*.pt"))


FINISH = "finish it with --resume"


def unfinished_notes(runs: Iterable[Path], what: str) -> list[str]:
    """A line for each run that has not come to its end, and is used all the same.

    Args:
        runs: Their directories.
        what: Of theirs is used.
    """
    said = f"not finished; these are its {what} so far; {FINISH}"
    return [printable(f"{run}: {said}", None) for run in runs if states(run)]


def drop_states(directory: Path) -> None:
    """Delete what a finished run no longer needs: calibration's folds, and states, five times its weights, twice."""
    shutil.rmtree(directory / "calibration", ignore_errors=True)  # the run is whole all the same
    for path in states(directory):
        with suppress(OSError):
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
    if parallel.follows():
        return
    begun = read_config(directory) if (directory / "config.json").exists() else {}
    path = directory / "config.json"
    write_json(
        path,
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
    settle(directory)


def read_config(directory: Path) -> dict[str, Any]:
    """What `write_config` said of a run.

    Raises:
        InputError: If the directory is no run's, or that of an older version.
    """
    path = directory / "config.json"
    config = read_run(path)
    from_json(config["settings"], str(path))
    if problem := ill_formed(config):
        raise InputError(f"{path}: {problem}; the run directory is damaged")
    return config


def ill_formed(config: Mapping[str, Any]) -> str | None:
    """What is of the wrong type, or out of any range, in the ``config.json`` of a run; None if nothing is."""

    def number(value: Any, most: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most

    def texts(value: Any, most: int) -> bool:
        return isinstance(value, list) and all(isinstance(x, str) and len(x) <= most for x in value)

    features, corpus, splits = config["features"], config["corpus"], config["splits"]
    if not isinstance(features, dict) or not texts([features.get("file"), features.get("sha256")], 10_000):
        return "features: no name and checksum of a file"
    dims = corpus.get("dims") if isinstance(corpus, dict) else None
    try:
        Modalities().check(list(dims))
    except (TypeError, ValueError):
        return "corpus: dims: no widths of modalities"
    if not dims or not isinstance(dims, dict) or not all(number(d, MOST_WIDTH) for d in dims.values()):
        return f"corpus: dims: widths are whole numbers from 1 to {MOST_WIDTH:,}"
    names = corpus.get("label_names")
    if not texts(names, LONGEST_CLASS) or not 0 < len(names) <= MOST_CLASSES or len(set(names)) != len(names):
        return f"corpus: label_names: no list of 1 to {MOST_CLASSES} names"
    if not number(corpus.get("num_speakers"), MOST_SPEAKERS):
        return f"corpus: num_speakers: no number from 1 to {MOST_SPEAKERS}"
    if not isinstance(splits, dict) or not splits.keys() <= {"train", "valid", "test"}:
        return "splits: no lists of dialogues by train, valid and test"
    listed = [i for ids in splits.values() if isinstance(ids, list) for i in ids]
    if not all(texts(ids, 10_000_000) for ids in splits.values()) or len(set(listed)) != len(listed):
        return "splits: no lists of dialogues, each once"
    versions, commit = config.get("versions", {}), config.get("git_commit")
    if not isinstance(versions, dict) or not texts([*versions.values()], 100) or not texts([commit or ""], 100):
        return "versions: no texts"
    if not isinstance(config.get("plan") or {}, dict):
        return "plan: no seeds and folds of a run"
    return None


def splits_of(config: Mapping[str, Any], corpus: Corpus, directory: Path) -> dict[str, tuple[str, ...]]:
    """The splits that a run had, of the corpus it was trained on.

    Raises:
        InputError: If they name a dialogue that there is not, or none to test on.
    """
    splits = {split: tuple(ids) for split, ids in config["splits"].items()}
    unknown = next((i for ids in splits.values() for i in ids if i not in corpus.dialogues), None)
    if unknown is not None or not splits.get("test"):
        problem = "no test dialogues" if unknown is None else f"no dialogue {unknown!r:.80} in {corpus.name}"
        raise InputError(f"{directory / 'config.json'}: splits: {problem}; the run directory is damaged")
    return splits


MOST_WIDTH = 10_000_000  # of a modality
MOST_CLASSES = 10_000
LONGEST_CLASS = 1000  # characters of the name of a class


def read_report(directory: Path) -> dict[str, Any]:
    """What ``report.json`` says of a finished run, or of one that was interrupted.

    Raises:
        InputError: If it is not there, or has no figures.
    """
    path = directory / "report.json"
    report = read_json(path)
    damaged = f"{path}: %s; delete it, and --resume goes on from the last checkpoint"
    if not isinstance(report, dict):
        raise InputError(damaged % "no report of a run")
    for split in ("test", "valid"):
        figures = report.get(split)
        if figures is None and (split == "valid" or "interrupted" in report):
            continue
        for name in utils.METRICS:
            value = figures.get(name) if isinstance(figures, dict) else None
            if not _is_number(value):
                raise InputError(damaged % f"{split}: no number for {name}")
        if not _is_table(figures.get("per_class", {}), "f1"):
            raise InputError(damaged % f"{split}: per_class: no number for the F1 of each class")
    if report.get("chosen_on_test") and not _is_table({"test": report["chosen_on_test"]}, "weighted_f1"):
        raise InputError(damaged % "chosen_on_test: no number for weighted_f1")
    return report


def _is_table(value: Any, figure: str) -> bool:
    """Whether a value is a dictionary of names, each with a dictionary that has a number for a figure."""
    return (
        isinstance(value, dict)
        and len(value) <= MOST_CLASSES
        and all(len(name) <= LONGEST_CLASS and isinstance(row, dict) for name, row in value.items())
        and all(_is_number(row.get(figure)) for row in value.values())
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def check_same_run(directory: Path, settings: Settings, corpus: Corpus) -> None:
    """Make sure that what is in a directory was begun with these settings on these data.

    Raises:
        InputError: If it is another run's.
    """
    if parallel.follows() or unused(directory):
        return
    config = read_config(directory)
    path = directory / "config.json"
    other = differences(from_json(config["settings"], str(path)), settings)
    if other:
        raise InputError(
            f"{path}: a run with another {', '.join(other)}; move {directory} away, or choose another --out"
        )
    if config["features"]["sha256"] != corpus.sha256:
        raise InputError(f"{path}: a run on other data; move {directory} away, or choose another --out")


def versions() -> dict[str, str]:
    """What a run's bits depend on besides data and settings; the number of threads orders its sums."""
    return {**_code_and_packages(), "threads": str(torch.get_num_threads())}


@cache
def _code_and_packages() -> dict[str, str]:
    files = sorted([*PROJECT.glob("*.py"), *PROJECT.glob("experiment/*.py"), *PROJECT.glob("feature_files/*.py")])
    return {
        "code": hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12],
        "python": platform.python_version(),
        "torch": torch.__version__,
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
    if parallel.follows():
        return
    if resume and not (directory / "config.json").exists():  # nothing has begun, or runs of it one by one
        known = rf"{re.escape(LOCK)}|{re.escape(LOG)}|{re.escape(FINDER)}|{RUNS_WITHIN}"
        for path in directory.iterdir():
            if path.is_symlink() or not (is_leftover(path) or re.fullmatch(known, path.name)):
                raise InputError(f"{path}: none of a run's, and {directory} has no config.json; choose another --out")
    elif resume:
        begun = read_config(directory)
        trained_on = begun["features"]["sha256"]
        if trained_on != corpus.sha256:
            raise InputError(
                f"{corpus.name}: not the data that {directory} was trained on (SHA-256 {corpus.sha256[:12]}…, then "
                f"{trained_on[:12]}…); give the file it was begun with"
            )
        then, now = begun.get("versions", {}), versions()
        if other := [f"{name} {then.get(name)} (now {now[name]})" for name in now if then.get(name) != now[name]]:
            complain(f"warning: {directory} was begun with {', '.join(other)}; the bits may differ")
        if link := next(links(directory), None):
            raise InputError(f"{link}: a link, and a run's directory has none; put what it names in its place")
    else:
        try:
            settle(directory)  # a killed process may have left this undone
            if not unused(directory):
                if not overwrite:
                    raise InputError(
                        f"--out {directory}: exists; choose another, or add --overwrite or --resume {directory}"
                    )
                check_replaceable(directory)
                set_aside(directory)
        except OSError as error:
            raise InputError(f"--out {directory}: cannot be replaced ({error.strerror}); choose another") from None
    sweep(directory)
