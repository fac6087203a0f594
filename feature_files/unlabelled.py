"""Reading for use rather than for training: labels and splits may be absent, in part or altogether."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataloader import IGNORE_LABEL, Corpus
from feature_files.checks import MELD_LABELS, MELD_SENTIMENTS, NUMBER, Checks, Parts, id_of, items_of
from feature_files.reading import _names_beside, checked, identify
from feature_files.sources import Source

NO_CLASS = 2**31  # stands for a label that can be none


def read_unlabelled(
    path: str | Path,
    label_names: Sequence[str],
    *,
    text_layers: str = "mean",
    target: str = "emotion",
    missing: str = "refuse",
    trust_names: bool = False,
) -> tuple[Corpus, str | None]:
    """A feature file of any known layout, all of its dialogues, with whatever labels it has.

    A label that is None, NaN or below 0 is none, and so are those of a dialogue that is not in the table of labels, or
    of a file without one. Labels of other classes are left out altogether.

    Args:
        path: The file or folder.
        label_names: The classes that are asked for.
        text_layers: As `feature_files.read` takes it.
        target: As `feature_files.read` takes it.
        missing: As `feature_files.read` takes it.
        trust_names: Whether the file's class numbers are known to be those of these names.

    Returns:
        The corpus, with `IGNORE_LABEL` where there is no label, and why labels were left out, if they were.

    Raises:
        InputError: If the file is of no known layout, or contradicts itself in what is no label and no split.
    """
    source = Source(Path(path))
    parts = identify(source, missing, unlabelled=True)
    if target == "sentiment":
        names = MELD_SENTIMENTS if parts.label_names == MELD_LABELS else ()
        parts = replace(parts, labels=parts.sentiment, label_names=names)
    known = tuple(_names_beside(source.given) or () if target == "emotion" else ()) or parts.label_names
    labels = _labels(parts)
    largest = max((int(row.max(initial=IGNORE_LABEL)) for row in labels.values()), default=-1)
    classes = tuple(label_names)
    splits = {name: ids for name, ids in parts.splits.items() if ids is not None}
    placeholder = {i: np.zeros(len(row), np.int64) for i, row in labels.items()}
    checks = Checks(str(source.path), source.size, text_layers, missing, needs=())
    corpus = checks.corpus(
        replace(parts, labels=placeholder, splits=splits, label_names=classes), source.sha256
    )  # the labels are looked at below
    if not known and not trust_names and (seen := _labelled(labels)):
        known = checks.label_names(seen, {m: ([], d) for m, d in corpus.dims.items()})
        known = () if known[0] == "class 0" else known[: len(classes)]
    problem = None
    if known and known != classes and largest >= 0:
        problem = f"its classes are {', '.join(known):.200}, not {', '.join(classes):.200}"
    elif largest >= len(classes):
        problem = f"there is a label {largest}, and the classes are 0 to {len(classes) - 1}"
    rows = {i: np.full_like(row, IGNORE_LABEL) if problem else row for i, row in labels.items()}
    dialogues = {i: replace(d, labels=row) for (i, d), row in zip(corpus.dialogues.items(), rows.values(), strict=True)}
    return replace(corpus, dialogues=dialogues), problem


def read_whole(path: str | Path, target: str = "emotion", missing: str = "refuse", **choices: Any) -> Corpus:
    """A feature file of any known layout with all of its dialogues, and `IGNORE_LABEL` where there is no label.

    Args:
        path: The file or folder.
        target: As `feature_files.read` takes it.
        missing: As `feature_files.read` takes it.
        choices: ``text_layers`` and ``label_names``, as `feature_files.read` takes them.

    Raises:
        InputError: If the file is of no known layout, or contradicts itself.
    """
    source = Source(Path(path))
    parts = identify(source, missing, unlabelled=True)
    if parts.sentiment is not None:
        parts = replace(parts, sentiment=_labels(replace(parts, labels=parts.sentiment), as_given=True))
    splits = {name: ids for name, ids in parts.splits.items() if ids is not None}
    parts = replace(parts, labels=_labels(parts, as_given=True), splits=splits)
    return checked(source, parts, target=target, missing=missing, **choices, needs=(), unlabelled=True)


def _labels(parts: Parts, *, as_given: bool = False) -> dict[str, Any]:
    """The labels of every dialogue that any field knows, `IGNORE_LABEL` where there is none.

    Args:
        parts: Of the file.
        as_given: Whether labels that can be none stay, alone of their dialogue's, for the line that refuses them.
    """
    tables = [parts.labels, parts.speakers, parts.sentences]
    for layers in parts.features.values():
        tables += layers if isinstance(layers, list) else [layers]
    tables = [{id_of(i): row for i, row in table.items()} for table in tables if isinstance(table, Mapping)]
    labels = {}
    for i in dict.fromkeys(i for table in tables for i in table):
        rows = [table[i] for table in tables if table.get(i) is not None]
        given = isinstance(parts.labels, Mapping) and bool(tables) and i in tables[0] and tables[0][i] is not None
        values = items_of(rows[0]) if rows else None
        if values is None and rows and not given:
            values = next((items for row in rows if (items := items_of(row)) is not None), None)
        if values:
            row = [_label(value) for value in values] if given else [IGNORE_LABEL] * len(values)
            wrong = [value for value, label in zip(values, row, strict=True) if label == NO_CLASS] if as_given else []
            labels[i] = wrong or np.array(row, np.int64)
        else:
            labels[i] = np.empty(0, np.int64)  # an empty dialogue, which is refused with its name
    return labels


def _label(value: Any) -> int:
    """A class; `IGNORE_LABEL` of what stands for none; of anything else a number that no class has."""
    if value is None or (isinstance(value, NUMBER) and (value != value or value < 0)):
        return IGNORE_LABEL
    return int(value) if isinstance(value, NUMBER) and value == int(min(value, NO_CLASS)) else NO_CLASS


def _labelled(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The dialogues that have labels, with these alone."""
    some = {i: row[row != IGNORE_LABEL] for i, row in labels.items()}
    return {i: row for i, row in some.items() if len(row)}
