"""Feature files: every layout the field publishes, read into one `Corpus`, and written again.

A layout is one small function from what the file holds to `Parts`, the fields by name; `_corpus` checks them all the
same way. Files are recognised by their content, never by their name, since they circulate renamed.

Shapes use n utterances of a dialogue and d features.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

import safe_pickle
from dataloader import IEMOCAP_LABELS, MODALITIES, Corpus, Dialogue, InputError, session_of

MELD_LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SENTIMENT_LABELS = ("negative", "positive")
MOST_CLASSES = 7  # of any set known; a larger label with gaps beneath it is a mistake, not a class
LONGEST_ID = 500  # characters
UNFOLDED = 2**30  # bytes of features that any file may unfold to; a larger file, 16 times its size


@dataclass(frozen=True)
class Parts:
    """The fields a layout's function found, by name and not yet checked.

    Attributes:
        layout: Its number in the list of layouts of ``IEMOCAP_features/README.md``.
        labels: Dialogue id to n classes. Its keys are the dialogues.
        speakers: Dialogue id to n speakers: names, numbers, or one-hot rows.
        features: Modality to dialogue id to n rows.
        sentences: Dialogue id to n transcripts.
        splits: Split to dialogue ids.
        utterances: Dialogue id to n utterance ids, where the file names them.
        label_names: The classes, where the layout is known to be of one set.
    """

    layout: int
    labels: Any
    speakers: Any
    features: dict[str, Any]
    sentences: Any
    splits: dict[str, Any]
    utterances: Any = None
    label_names: tuple[str, ...] = ()


def read(path: str | Path) -> Corpus:
    """A feature file of any known layout.

    Args:
        path: The file.

    Raises:
        InputError: If the file is not there, is of no known layout, or contradicts itself.
    """
    path = Path(path)
    data = _bytes_of(path)
    return _corpus(str(path), _identify(str(path), safe_pickle.loads(data, path)), data)


def _bytes_of(path: Path) -> bytes:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the name, or put the feature file there")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise InputError(f"{path}: {kind}, not a feature file; name the file inside it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not data:
        raise InputError(f"{path}: the file is empty; get it again")
    if data.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git-LFS pointer, not the data itself; fetch the data with 'git lfs pull'")
    if data.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise InputError(f"{path}: a web page saved under the data's name; download the raw file")
    return data


# Layouts -------------------------------------------------------------------------------------------------------------


def _identify(file: str, content: Any) -> Parts:
    """The fields of an unpickled file, by the shape of its content."""
    if not isinstance(content, tuple | list):
        raise InputError(f"{file}: holds a {type(content).__name__}, and no known layout is one; see {_README}")
    if len(content) == 9:
        return nine_tuple(content)
    raise InputError(f"{file}: a {type(content).__name__} of {len(content)} items is no known layout; see {_README}")


_README = "IEMOCAP_features/README.md for those that are"


def nine_tuple(items: Sequence[Any]) -> Parts:
    """Layouts 1, 2 and 4: ids, speakers, labels, text, audio, visual, sentences, train, test. Audio before visual."""
    ids, speakers, labels, text, audio, visual, sentences, train, test = items
    features = {"text": text, "visual": visual, "acoustic": audio}
    layout = {(100, 512, 100): 1, (100, 342, 1582): 4}.get(tuple(map(_width, features.values())), 2)
    return Parts(layout, labels, speakers, features, sentences, {"train": train, "test": test}, ids)


def _width(table: Any) -> int | None:
    """The width of a modality's first row, None where there is none to see; only to tell layouts apart."""
    with contextlib.suppress(Exception):
        return len(next(iter(table.values()))[0])
    return None


# Checks, the same for every layout ------------------------------------------------------------------------------------


def _fault(file: str, field: str, problem: str, cure: str, dialogue: str | None = None) -> NoReturn:
    where = f"{field}: dialogue {dialogue!r:.80}" if dialogue is not None else field
    raise InputError(f"{file}: {where}: {problem}; {cure}")


def _corpus(file: str, parts: Parts, data: bytes) -> Corpus:
    """The corpus of these fields, once each of them is as long, as wide and as finite as it must be."""
    limit = max(UNFOLDED, 16 * len(data))
    table = _table(file, "labels", parts.labels)
    if sum(len(_items(row) or ()) for row in table.values()) > limit // 64:
        _fault(file, "labels", "more utterances than a file of this size can hold", "get the file again")
    labels = {i: _labels(file, i, row) for i, row in table.items()}
    lengths = {i: len(row) for i, row in labels.items()}
    speakers = _column(file, "speakers", parts.speakers, lengths, _speaker)
    sentences = _column(file, "sentences", parts.sentences, lengths, _text)
    utterances = _utterances(file, parts.utterances, lengths)
    given = {m: t for m, t in parts.features.items() if t is not None and not (isinstance(t, Mapping) and not t)}
    features = {m: _features(file, m, given[m], lengths, limit) for m in MODALITIES if m in given}
    features = {m: table for m, table in features.items() if table}
    if not features:
        _fault(file, "features", "no modality has any", "give one modality at least")
    dialogues = {
        i: Dialogue(i, {m: features[m][i] for m in features}, labels[i], speakers[i], sentences[i], utterances[i])
        for i in labels
    }
    names = parts.label_names or _label_names(file, labels, {m: _width(features.get(m)) for m in MODALITIES})
    for i, row in labels.items():
        if row.max() >= len(names):
            _fault(file, "labels", f"label {row.max()} is outside 0..{len(names) - 1}", "correct the labels", i)
    return Corpus(file, dialogues, _splits(file, parts.splits, labels), names, hashlib.sha256(data).hexdigest())


def _table(file: str, field: str, value: Any) -> dict[str, Any]:
    """A dictionary by dialogue, its ids made strings."""
    if not isinstance(value, Mapping):
        _fault(file, field, f"a {type(value).__name__} where a dictionary by dialogue belongs", "check the layout")
    table = {_id(key): row for key, row in value.items()}
    if max(map(len, table), default=0) > LONGEST_ID:
        _fault(file, field, f"a dialogue id of more than {LONGEST_ID} characters", "check the layout")
    if len(table) != len(value):
        _fault(file, field, "two dialogue ids read the same, such as 1 and '1'", "rename one")
    if not table:
        _fault(file, field, "no dialogues", "get a file that has some")
    return table


def _id(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _items(value: Any) -> list | None:
    """The items of a list, tuple or array; None of anything else."""
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return list(value)
    return None


_NUMBER = int | float | np.integer | np.floating | np.bool_


def _labels(file: str, dialogue: str, row: Any) -> np.ndarray:
    values = _items(row)
    if values is None:
        _fault(file, "labels", f"a {type(row).__name__} where a list of classes belongs", "give one each", dialogue)
    if not values:
        _fault(file, "labels", "an empty dialogue", "remove it or give its utterances", dialogue)
    for value in values:
        number = isinstance(value, _NUMBER)
        if not number or not 0 <= value < 2**31 or value != int(value):
            shown = f"{value!r:.40}" if number or isinstance(value, str) else f"a {type(value).__name__}"
            _fault(file, "labels", f"label {shown} is no whole number from 0 up", "number the classes", dialogue)
    return np.array([int(value) for value in values], dtype=np.int64)


def _column(file: str, field: str, value: Any, lengths: dict[str, int], convert: Any) -> dict[str, tuple[str, ...]]:
    """A field of one string an utterance, as long as the labels in each dialogue."""
    table = _table(file, field, value)
    column = {}
    for i, n in lengths.items():
        row = _items(table.get(i))
        if row is None:
            kind = f"a {type(table[i]).__name__} where a list belongs" if i in table else "none given"
            _fault(file, field, kind, "give one for each utterance", i)
        if len(row) != n:
            _fault(file, field, f"{len(row)} for {n} labels", "give one for each utterance", i)
        try:
            column[i] = tuple(convert(item) for item in row)
        except ValueError as error:
            _fault(file, field, str(error), "give one for each utterance", i)
    return column


def _text(item: Any) -> str:
    if isinstance(item, bytes):
        return item.decode("latin1")
    if isinstance(item, str | _NUMBER):
        return str(item)
    raise ValueError(f"a {type(item).__name__} where a string belongs")


def _speaker(item: Any) -> str:
    """A speaker's name; of a one-hot row, the place of its 1."""
    if not isinstance(item, list | tuple | np.ndarray):
        return _text(item)
    if not all(isinstance(x, _NUMBER) for x in _items(item) or [None]) or sum(x != 0 for x in item) > 1:
        raise ValueError("a row that is not one-hot where a speaker belongs")
    return next((f"speaker {k}" for k, x in enumerate(item) if x), "speaker other")


def _utterances(file: str, value: Any, lengths: dict[str, int]) -> dict[str, tuple[str, ...]]:
    """Utterance ids; where the file gives none, the dialogue's id and a number."""
    made = {i: tuple(f"{i}_{k}" for k in range(n)) for i, n in lengths.items()}
    if not isinstance(value, Mapping):
        return made
    table = {_id(key): row for key, row in value.items()}
    given = {i: n for i, n in lengths.items() if _items(table.get(i)) is not None}
    return made | (_column(file, "ids", {i: table[i] for i in given}, given, _text) if given else {})


def _features(file: str, modality: str, value: Any, lengths: dict[str, int], limit: int) -> dict[str, np.ndarray]:
    """A modality's arrays, float32 ``[n, d]`` by dialogue; empty where every one is of width 0."""
    table = _table(file, modality, value)
    arrays: dict[str, np.ndarray] = {}
    for i, n in lengths.items():
        if i not in table:
            _fault(file, modality, "no features", "give it this modality or leave the modality out everywhere", i)
        try:
            arrays[i] = _matrix(table[i], limit)
        except ValueError as error:
            _fault(file, modality, str(error), "give one row of numbers an utterance", i)
        if len(arrays[i]) != n:
            _fault(file, modality, f"{len(arrays[i])} rows for {n} labels", "give one row for each utterance", i)
        limit -= arrays[i].nbytes
    width = Counter(a.shape[1] for a in arrays.values()).most_common(1)[0][0]
    bad = {i: count for i, a in arrays.items() if (count := np.count_nonzero(~np.isfinite(a)))}
    for i, array in arrays.items():
        if array.shape[1] != width:
            _fault(file, modality, f"rows of width {array.shape[1]}, elsewhere {width}", "make rows of one width", i)
        if i in bad:
            everywhere = f"{sum(bad.values())} in {len(bad)} dialogues of the file"
            problem = f"{bad[i]} values are NaN or infinite ({everywhere})"
            _fault(file, modality, problem, "repair the features or remove the dialogue", i)
    return arrays if width else {}


def _matrix(value: Any, limit: int) -> np.ndarray:
    """Rows as a float32 array ``[n, d]`` of its own.

    Raises:
        ValueError: If they are no rows of numbers of one width, or take more than `limit` bytes.
    """
    rows = None
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim == 2:
        shape = value.shape
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind == "O"):
        rows = _items(value) or []
        shape = (len(rows), len(_items(rows[0]) or ()) if rows else 0)
    elif isinstance(value, np.ndarray):
        raise ValueError(f"an array of {value.dtype} of shape {list(value.shape)} where rows of numbers belong")
    else:
        raise ValueError(f"a {type(value).__name__} where rows of numbers belong")
    if 4 * shape[0] * shape[1] > limit:
        raise ValueError("more features than a file of this size can hold")
    if rows is not None:
        value = [_row(row, k, shape[1]) for k, row in enumerate(rows)]
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is reported as that
        return np.array(value, dtype=np.float32).reshape(shape)


def _row(row: Any, k: int, width: int) -> np.ndarray:
    items = _items(row)
    if items is None or (isinstance(row, np.ndarray) and row.ndim != 1):
        raise ValueError(f"row {k} is a {type(row).__name__} where a row of numbers belongs")
    if len(items) != width:
        raise ValueError(f"rows of unequal width: row 0 has {width} values, row {k} has {len(items)}")
    if not isinstance(row, np.ndarray) or row.dtype.kind not in "biuf":
        if not all(isinstance(x, _NUMBER) for x in items):
            raise ValueError(f"row {k} holds other than numbers")
        try:
            row = np.array(items, dtype=np.float64)
        except OverflowError:
            raise ValueError(f"row {k} holds a number too large") from None
    return row


def _label_names(file: str, labels: Mapping[str, np.ndarray], widths: Mapping[str, int | None]) -> tuple[str, ...]:
    """Names of the classes: those of the set the dialogue ids show, else ``class 0`` and on."""
    used = {int(k) for row in labels.values() for k in np.unique(row)}
    if all(session_of(i) for i in labels):
        return IEMOCAP_LABELS
    if used <= {0, 1} and all(_YOUTUBE_ID.fullmatch(i) for i in labels):
        return SENTIMENT_LABELS
    largest = max(used)
    if largest >= MOST_CLASSES and len(used) <= largest:
        unused = min(set(range(largest)) - used)
        i = next(i for i, row in labels.items() if largest in row)
        problem = f"label {largest} is outside 0..C-1: class {unused} beneath it is never used"
        _fault(file, "labels", problem, "number the classes from 0 without gaps", i)
    return tuple(f"class {k}" for k in range(largest + 1))


# Binary sets over YouTube videos (CMU-MOSI and its kin) all number negative 0 and positive 1. An id is 11 of base 64;
# a capital and a small letter in each keep ``dialogue_01`` out.
_YOUTUBE_ID = re.compile(r"(?=.*[a-z])(?=.*[A-Z])[\w-]{11}", re.ASCII)


def _natural(dialogue: Any) -> tuple[int, str]:
    """A key that sorts numbers as numbers, and before names."""
    return (int(dialogue), "") if isinstance(dialogue, int | np.integer) else (2**63, _id(dialogue))


def _splits(file: str, splits: Mapping[str, Any], dialogues: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Dialogue ids by split: lists in their order, sets sorted, since their order is another in each process."""
    read: dict[str, tuple[str, ...]] = {}
    seen: dict[str, str] = {}
    for split, value in splits.items():
        members = sorted(value, key=_natural) if isinstance(value, set | frozenset) else _items(value)
        if members is None:
            _fault(file, split, f"a {type(value).__name__} where a list of dialogue ids belongs", "check the layout")
        for i in members:
            if not isinstance(i, str | bytes | int | np.integer) or (isinstance(i, int) and abs(i) > 2**60):
                _fault(file, split, f"a {type(i).__name__} where a dialogue id belongs", "list ids of the labels")
        read[split] = tuple(_id(i) for i in members)
        for i, times in Counter(read[split]).items():
            if i not in dialogues:
                _fault(file, split, "no such dialogue in the file", "add it or remove it from the split", i)
            if times > 1:
                _fault(file, split, f"listed {times} times", "list it once", i)
            if i in seen:
                _fault(file, split, f"also in split {seen[i]}", "keep a dialogue in one split only", i)
        seen |= dict.fromkeys(read[split], split)
    for split in ("train", "test"):
        if not read.get(split):
            _fault(file, split, "no dialogues", f"list the dialogues to {split} on")
    return read


# Writing --------------------------------------------------------------------------------------------------------------


class _OldPathPickler(pickle._Pickler):
    """A pickler that names NumPy's array function as NumPy 1 does, which NumPy 2 reads as well."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, type(np.array): save_global}


def write_nine_tuple(corpus: Corpus, path: str | Path) -> None:
    """Write a corpus as the 9-tuple that the field's own loaders read.

    The layout has no third split: a ``valid`` split is written into train, after it. Modalities the corpus lacks are
    arrays ``[n, 0]``. Names of classes are lost.

    Args:
        corpus: What to write.
        path: The file, replaced whole or not at all.

    Raises:
        InputError: If the file cannot be written.
    """
    dialogues = corpus.dialogues.values()

    def features(modality: str) -> dict[str, np.ndarray]:
        empty = {d.id: np.zeros((len(d), 0), np.float32) for d in dialogues}
        return empty | {d.id: np.asarray(d.features[modality], np.float32) for d in dialogues if modality in d.features}

    content = (
        {d.id: list(d.utterances) for d in dialogues},
        {d.id: list(d.speakers) for d in dialogues},
        {d.id: np.asarray(d.labels).tolist() for d in dialogues},
        features("text"),
        features("acoustic"),
        features("visual"),
        {d.id: list(d.sentences) for d in dialogues},
        [*corpus.splits["train"], *corpus.splits.get("valid", ())],
        list(corpus.splits["test"]),
    )
    with replacing(path) as temporary, temporary.open("wb") as stream:
        _OldPathPickler(stream, protocol=3).dump(content)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside a file, for the body to write; the file is then replaced whole, or not at all.

    Raises:
        InputError: If the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); check the folder and its free space") from None
    finally:
        temporary.unlink(missing_ok=True)
