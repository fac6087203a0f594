"""Reading: a feature file of any known layout into one `Corpus`, told apart by content.

A layout is one small function from what the file holds to `Parts`, the fields by name; `Checks` looks at them all in
the same way. Files are recognised by their content, never by their name, since they circulate renamed.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataloader import Corpus
from feature_files import folders, pickles
from feature_files.checks import MELD_LABELS, MELD_SENTIMENTS, Checks, Parts
from feature_files.container import is_container, open_container
from feature_files.sources import Source, first_bytes, is_file, is_folder
from files import InputError

LARGEST_NAMES = 2**20  # bytes of a file of class names


def read(
    path: str | Path,
    text_layers: str = "mean",
    target: str = "emotion",
    missing: str = "refuse",
    label_names: str | Sequence[str] | None = None,
    verify: bool = True,
    **options: Any,
) -> Corpus:
    """A feature file of any known layout, or the folder of one that is several files.

    Args:
        path: The file or folder.
        text_layers: Where there are several layers of text: their ``mean``, ``concat``, or the number of one, from 1.
        target: ``emotion``, or ``sentiment`` where the file has such labels.
        missing: ``refuse`` features that are not there, or ``mask`` them: their rows are NaN in the corpus.
        label_names: The classes from 0 up, as names or as one string with commas; without, those of ``FILE.labels.txt``
            or ``FILE.labels.json`` where there is such a file, else those the layout is known to have.
        verify: Of a file of ours, read every value and compare the checksums. Without, its word is taken, and features
            that are not used are never read from the disk.
        options: ``lenient``, ``faults`` and ``needs`` of `Checks`.

    Raises:
        InputError: If the file is not there, is of no known layout, or contradicts itself.
    """
    source = Source(Path(path))
    return checked(source, identify(source, missing, verify), text_layers, target, missing, label_names, **options)


def checked(
    source: Source,
    parts: Parts,
    text_layers: str = "mean",
    target: str = "emotion",
    missing: str = "refuse",
    label_names: str | Sequence[str] | None = None,
    **options: Any,
) -> Corpus:
    """The corpus of the fields that were found, with the choices that `read` takes."""
    for name, value, choices in (
        ("target", target, ("emotion", "sentiment")),
        ("missing", missing, ("refuse", "mask")),
    ):
        if value not in choices:
            raise InputError(f"{source.path}: --{name}: {value!r:.20} is neither {' nor '.join(choices)}; choose one")
    if target == "sentiment":
        if parts.sentiment is None:
            raise InputError(f"{source.path}: --target: the file has no sentiment labels; train on emotion")
        names = MELD_SENTIMENTS if parts.label_names == MELD_LABELS else ()
        parts = replace(parts, labels=parts.sentiment, label_names=names)
    if label_names is None and target == "emotion":
        label_names = _names_beside(source.given)
    elif isinstance(label_names, str):
        label_names = [name.strip() for name in label_names.split(",")]
    checks = Checks(str(source.path), source.size, text_layers, missing, given_names=label_names, **options)
    return checks.corpus(parts, source.sha256)


def _names_beside(path: Path) -> list[str] | None:
    """The names of classes in a file beside a feature file, if there is one: one a line, or a list in JSON."""
    for ending in (".labels.txt", ".labels.json"):
        beside = path.with_name(path.name + ending) if path.name else path / ending
        if not is_file(beside):
            continue
        try:
            text = first_bytes(beside, LARGEST_NAMES, LARGEST_NAMES).decode("utf-8-sig")
            names = (
                json.loads(text) if ending.endswith("json") else [line.strip() for line in text.strip().splitlines()]
            )
        except InputError:
            raise
        except (ValueError, RecursionError):
            raise InputError(f"{beside}: not names of classes as text; give one a line, or a list in JSON") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{beside}: no list of names; give one name a class, from class 0 up")
        return names
    return None


def provenance(path: str | Path) -> dict[str, Any]:
    """Where a file of ours says that it came from; empty of other layouts, and where it says nothing.

    Raises:
        InputError: If the file is not there, or is a damaged one of ours.
    """
    source = Source(Path(path))
    return ours(source, False).provenance if not is_folder(source.path) and is_container(source.path) else {}


def identify(source: Source, missing: str = "refuse", verify: bool = True, unlabelled: bool = False) -> Parts:
    """The fields of a file or folder, by the shape of its content.

    Args:
        source: The file or folder.
        missing: As `read` takes it.
        verify: As `read` takes it.
        unlabelled: Whether labels may be absent.

    Raises:
        InputError: If it is of no known layout.
    """
    path = source.path
    if is_folder(path):
        return folders.identify_folder(source, missing, unlabelled)
    if is_container(path):
        return ours(source, verify, unlabelled)
    if path.name.endswith(".json.feature"):
        source.path = path.parent
        return folders.dag_erc(source, unlabelled)
    if zipfile.is_zipfile(path):
        source.path = path.parent
        return folders.merbench(source, path, missing, unlabelled)
    content = source.unpickled(path)
    if isinstance(content, tuple | list) and len(content) == 6:
        source.path = path.parent
        return folders.gcnet(source, content, missing)
    return pickles.identify_pickle(str(path), content)


def ours(source: Source, verify: bool = True, unlabelled: bool = False) -> Parts:
    """``gan-ffn``: what `write_container` wrote."""
    parts, size, digest = open_container(source.path, verify, unlabelled)
    source.add(source.path, size, digest)
    return parts
