"""What every feature file must satisfy, whatever its layout: from the fields it holds to a `Corpus`.

Shapes use n utterances of a dialogue and d features.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataloader import IEMOCAP_LABELS, IGNORE_LABEL, MODALITIES, Corpus, Dialogue, any_label, session_of
from files import InputError, is_printable, printable

# The layouts that are read, by name, and their numbers in the table of ``IEMOCAP_features/README.md``.
LAYOUTS = {
    "iemocap-9": 1,
    "nine-tuple": 2,
    "meld-9": 3,
    "mmgcn-iemocap": 4,
    "mmgcn-meld": 5,
    "cosmic": 6,
    "m3net": 7,
    "sdt": 8,
    "multiemo": 9,
    "cogmen": 10,
    "gcnet": 11,
    "merbench": 12,
    "dag-erc": 13,
    "gan-ffn": 14,
}
README = "IEMOCAP_features/README.md for those that are"  # how a message on an unknown layout ends

MELD_LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
MELD_SENTIMENTS = ("neutral", "positive", "negative")
SENTIMENT_LABELS = ("negative", "positive")
MOST_CLASSES = 7  # of any set known; a larger label with gaps beneath it is a mistake, not a class
LONGEST_ID = 500  # characters of the name of a dialogue, an utterance or a speaker
LONGEST_CLASS = 100  # characters of the name of a class
MOST_CLASSES_AT_ALL = 1000
LONGEST_ONE_HOT = 1000  # speakers that a row may tell apart
UNFOLDED = 2**26  # bytes of features that any file may unfold to; a larger file, 16 times its size
UNFOLDED_TEXT = 2**20  # the same for characters of names and sentences
MOST_FAULTS = 100  # that are listed of a broken file
# Binary sets over YouTube videos (CMU-MOSI and its kin) all number negative 0 and positive 1. An id is 11 of base 64;
# a capital and a small letter in each keep ``dialogue_01`` out.
YOUTUBE_ID = re.compile(r"(?=.*[a-z])(?=.*[A-Z])[\w-]{11}", re.ASCII)
NUMBER = int | float | np.integer | np.floating | np.bool_
ID = str | bytes | int | np.integer


@dataclass(frozen=True)
class Parts:
    """The fields a layout's function found, by name and not yet checked.

    Attributes:
        layout: Its name, one of `LAYOUTS`.
        labels: Dialogue id to n classes. Its keys are the dialogues.
        speakers: Dialogue id to n speakers: names, numbers, or one-hot rows. None where the layout has none.
        features: Modality to dialogue id to n rows; a list of such tables where there are several layers of text.
        splits: Split to dialogue ids.
        sentences: Dialogue id to n transcripts. None where the layout has none.
        utterances: Dialogue id to n utterance ids, where the file names them.
        label_names: The classes, where the layout is known to be of one set.
        sentiment: Labels of the other target, where there are any; 0 neutral, 1 positive, 2 negative.
        finite: Whether the features are known to be without NaN and infinity, so that they need not be read to see.
        provenance: What the file says of where it came from.
    """

    layout: str
    labels: Any
    speakers: Any
    features: dict[str, Any]
    splits: dict[str, Any]
    sentences: Any = None
    utterances: Any = None
    label_names: tuple[str, ...] = ()
    sentiment: Any = None
    finite: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Checks:
    """The checks of one file.

    Args:
        file: Its name, for messages.
        size: Its bytes, which bound what it may unfold to.
        text_layers: ``mean``, ``concat``, or the number of one layer from 1, where there are several layers of text.
        missing: ``refuse`` or ``mask``: whether an utterance may lack a modality, and shall then have a row of NaN.
        needs: Splits that must have a dialogue.
        unlabelled: Whether an utterance may be without a label, as in a file of ours it always may.
        lenient: Leave out what is wrong and note it in `faults`, rather than raise; to look at a broken file.
        given_names: The classes as the user names them; None for those the layout is known to have.
    """

    file: str
    size: int
    text_layers: str = "mean"
    missing: str = "refuse"
    lenient: bool = False
    faults: list[str] = field(default_factory=list)
    given_names: Sequence[str] | None = None
    needs: Sequence[str] = ("train", "test")
    unlabelled: bool = False

    def __post_init__(self) -> None:
        self.room = max(UNFOLDED, 16 * self.size)
        self.text_room = max(UNFOLDED_TEXT, 16 * self.size)

    def error(self, field: str, problem: str, cure: str, dialogue: str | None = None) -> InputError:
        """The one line for a fault."""
        where = f"{field}: dialogue {dialogue!r:.80}" if dialogue is not None else field
        return InputError(f"{self.file}: {where}: {problem}; {cure}")

    def fault(self, *args: Any, **kwargs: Any) -> None:
        """Raise a fault, or note it where the file is only looked at."""
        error = self.error(*args, **kwargs)
        if not self.lenient:
            raise error
        self.note(error)

    def note(self, error: InputError) -> None:
        """Note a fault of a file that is only looked at."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(str(error))
        elif len(self.faults) == MOST_FAULTS:
            self.faults.append(f"{self.file}: more faults, which are not listed; mend these first")

    def corpus(self, parts: Parts, sha256: str) -> Corpus:
        """The corpus of these fields, once each of them is as long, as wide and as finite as it must be.

        Raises:
            InputError: One line with file, field, dialogue and cure, for the first thing that is wrong.
        """
        self.unlabelled |= parts.layout == "gan-ffn"
        labels = self.table("labels", parts.labels)
        if sum(map(length_of, labels.values())) > self.size + 1000:
            raise self.error("labels", "more utterances than a file of this size can hold", "get the file again")
        columns = {
            name: self.table(name, value) if value is not None else None
            for name, value in (("speakers", parts.speakers), ("sentences", parts.sentences))
        }
        named = isinstance(parts.utterances, Mapping)
        columns["ids"] = self.table("ids", parts.utterances) if named and parts.utterances else {}
        features = self.features(parts.features, labels)
        dialogues: dict[str, Dialogue] = {}
        for i in labels:
            try:
                dialogues[i] = self.dialogue(i, labels[i], columns, features)
            except InputError as error:
                if not self.lenient:
                    raise
                self.note(error)
        if not dialogues:
            raise self.error("labels", "no whole dialogue", "see its other faults")
        if not parts.finite:
            self.finite(dialogues)
        names = self.class_names(parts.label_names, {i: d.labels for i, d in dialogues.items()}, features)
        for i, dialogue in dialogues.items():
            if (worst := dialogue.labels.max()) >= len(names):
                self.fault("labels", f"label {worst} is outside 0..{len(names) - 1}", "correct the labels", i)
        splits = self.splits(parts.splits, dialogues, set(labels))
        return Corpus(self.file, dialogues, splits, names, sha256, parts.provenance)

    def table(self, field: str, value: Any) -> dict[str, Any]:
        """A dictionary by dialogue, its ids made strings."""
        if not isinstance(value, Mapping):
            raise self.error(
                field, f"a {type(value).__name__} where a dictionary by dialogue belongs", "see the layout"
            )
        odd = next((key for key in value if not isinstance(key, ID)), None)
        if odd is not None:
            raise self.error(field, f"a {type(odd).__name__} where a dialogue id belongs", "see the layout")
        table = {id_of(key): row for key, row in value.items()}
        if max(map(len, table), default=0) > LONGEST_ID:
            raise self.error(field, f"a dialogue id of more than {LONGEST_ID} characters", "see the layout")
        table = {printable(key, None): row for key, row in table.items()}
        if len(table) != len(value):
            raise self.error(field, "two dialogue ids read the same, such as 1 and '1'", "rename one")
        if not table:
            raise self.error(field, "no dialogues", "get a file that has some")
        return table

    def dialogue(self, i: str, row: Any, columns: Mapping[str, Any], features: Mapping[str, Any]) -> Dialogue:
        """One dialogue, with every field as long as its labels."""
        labels = self.labels(i, row)
        n = len(labels)
        speakers = ("speaker",) * n if columns["speakers"] is None else self.column("speakers", i, n, columns, _speaker)
        sentences = ("",) * n if columns["sentences"] is None else self.column("sentences", i, n, columns, _sentence)
        if is_row(columns["ids"].get(i)):
            utterances = self.column("ids", i, n, columns, _text)
        else:
            self.charge_text("ids", i, n * len(i))
            utterances = tuple(f"{i}_{k}" for k in range(n))
        arrays = {m: self.matrix(m, i, layers, width, n) for m, (layers, width) in features.items()}
        return Dialogue(i, arrays, labels, speakers, sentences, utterances)

    def labels(self, i: str, row: Any) -> np.ndarray:
        """The classes of a dialogue, int64 ``[n]``."""
        values = items_of(row) if not isinstance(row, np.ndarray) or row.ndim == 1 else None
        if values is None:
            raise self.error("labels", f"a {type(row).__name__} where a list of classes belongs", "give one each", i)
        if not values:
            raise self.error("labels", "an empty dialogue", "remove it or give its utterances", i)
        if (
            isinstance(row, np.ndarray)
            and row.ndim == 1
            and row.dtype.kind in "iu"
            and (row.min() >= 0 or (self.unlabelled and row[row != IGNORE_LABEL].min(initial=0) == 0))
            and row.max() < 2**31
        ):
            return row.astype(np.int64)
        for value in values:
            number = isinstance(value, NUMBER)
            if not number or not 0 <= value < 2**31 or value != int(value):
                plain = isinstance(value, str) or (number and not abs(value) >= 1e18)  # NaN as well
                shown = f"{value!r:.40}" if plain else f"a {'number so large' if number else type(value).__name__}"
                raise self.error("labels", f"label {shown} is no whole number from 0 up", "number the classes", i)
        return np.array(values, dtype=np.int64)

    def column(self, field: str, i: str, n: int, columns: Mapping[str, Any], convert: Callable) -> tuple[str, ...]:
        """A field of one string an utterance."""
        row = columns[field].get(i)
        cure = "give one for each utterance"
        if not is_row(row):
            there = i in columns[field]
            raise self.error(field, f"a {type(row).__name__} where a list belongs" if there else "none given", cure, i)
        if len(row) != n:  # before the items are looked at, which may be without end
            raise self.error(field, f"{len(row)} for {n} labels", cure, i)
        items = items_of(row)
        try:
            texts = items if set(map(type, items)) == {str} else list(map(convert, items))
        except ValueError as error:
            raise self.error(field, str(error), cure, i) from None
        self.charge_text(field, i, sum(map(len, texts)))
        if convert is _sentence:
            return tuple(map(_sentence, texts))
        if max(map(len, texts)) > LONGEST_ID:
            raise self.error(field, f"a name of more than {LONGEST_ID} characters", "give it a shorter one", i)
        return tuple(texts) if "".join(texts).isprintable() else tuple(printable(text, None) for text in texts)

    def charge_text(self, field: str, i: str, characters: int) -> None:
        """Count what a field holds, which a file may repeat for next to nothing."""
        self.text_room -= characters
        if self.text_room < 0:
            raise self.error(field, "more text than a file of this size can hold", "get the file again", i)

    def features(self, tables: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, tuple[list[dict], int]]:
        """The modalities that have any features: their layers, tables by dialogue, and the width most rows have."""
        found = {}
        for modality in MODALITIES:
            layers = tables.get(modality)
            layers = layers if isinstance(layers, list) else [layers]
            layers = [t for t in layers if t is not None and not (isinstance(t, dict) and not t)]
            layers = [self.table(modality, table) for table in layers]
            if modality == "text":
                layers = self.choose_layers(layers)
            width = Counter(w for t in layers[:1] for i in labels if (w := width_of(t.get(i)))).most_common(1)
            if width:
                found[modality] = (layers, width[0][0])
            elif any(width_of(row) is None and i in labels for t in layers for i, row in t.items()):
                found[modality] = (layers, 0)  # rows that are no rows: `matrix` says which
        if not found:
            raise self.error("features", "no modality has any", "give one modality at least")
        return found

    def choose_layers(self, layers: list[dict]) -> list[dict]:
        """Of several layers of text, the ones asked for."""
        if self.text_layers in ("mean", "concat"):
            return layers
        if self.text_layers not in [str(k + 1) for k in range(max(1, len(layers)))]:
            choices = ", ".join(["mean", "concat", *(str(k + 1) for k in range(len(layers)))])
            raise InputError(f"{self.file}: --text-layers: there is no {self.text_layers!r:.20}; choose from {choices}")
        return layers[int(self.text_layers) - 1 :][:1]

    def matrix(self, modality: str, i: str, layers: Sequence[dict], width: int, n: int) -> np.ndarray:
        """A dialogue's features of a modality, float32 ``[n, d]``; its layers side by side or averaged."""
        arrays = [self.rows(modality, i, table, width, n) for table in layers]
        if len(arrays) == 1:
            return arrays[0]
        return np.concatenate(arrays, 1) if self.text_layers == "concat" else np.mean(arrays, 0, dtype=np.float32)

    def rows(self, modality: str, i: str, table: Mapping[str, Any], width: int, n: int) -> np.ndarray:
        """A dialogue's rows in one table, float32 ``[n, d]``; of NaN where it has none and may lack them."""
        masked = self.missing == "mask"
        if table.get(i) is None or (masked and width_of(table[i]) == 0):
            if masked:
                self.room -= 4 * n * width
                if self.room < 0:
                    raise self.error(modality, "more features than a file of this size can hold", "get it again", i)
                return np.full((n, width), np.nan, np.float32)
            raise self.error(modality, "no features", "give it this modality, or add --missing mask", i)
        try:
            array = _matrix(table[i], self.room, width if masked else None)
        except ValueError as error:
            raise self.error(modality, str(error), "give one row of numbers an utterance", i) from None
        if len(array) != n:
            raise self.error(modality, f"{len(array)} rows for {n} labels", "give one row for each utterance", i)
        if array.shape[1] != width:
            cure = "make rows of one width"
            raise self.error(modality, f"rows of width {array.shape[1]}, elsewhere {width}", cure, i)
        self.room -= array.nbytes
        return array

    def finite(self, dialogues: Mapping[str, Dialogue]) -> None:
        """No value is NaN or infinite, but for whole rows of NaN where modalities may be missing."""
        for modality in next(iter(dialogues.values())).features:
            bad, damaged = {}, False
            for i, dialogue in dialogues.items():
                wrong = ~np.isfinite(dialogue.features[modality])
                inside = wrong & ~np.isnan(dialogue.features[modality]).all(1, keepdims=True)
                damaged |= bool(inside.any())
                if count := np.count_nonzero(inside if self.missing == "mask" else wrong):
                    bad[i] = count
            if bad:
                i, count = next(iter(bad.items()))
                problem = (
                    f"{count} values are NaN or infinite ({sum(bad.values())} in {len(bad)} dialogues of the file)"
                )
                cure = "repair them or remove the dialogue" if damaged else "repair them or add --missing mask"
                self.fault(modality, problem, cure, i)

    def class_names(
        self, known: tuple[str, ...], labels: Mapping[str, np.ndarray], features: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """The names of the classes: the user's where there are any, else the layout's, else what the file shows."""
        if self.given_names is None:
            return self.sound_names("label_names", known) if known else self.label_names(labels, features)
        names = tuple(self.given_names)
        used = max(int(row.max()) for row in labels.values()) + 1
        if used > 0 and len(names) != used and len(names) != len(known or self.label_names(labels, features)):
            raise self.error("--label-names", f"{len(names)} names for {used} classes", "give one name a class")
        return self.sound_names("--label-names", names)

    def sound_names(self, field: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """Names of classes that can be shown, in reports and pictures too."""
        if len(names) > MOST_CLASSES_AT_ALL:
            raise self.error(field, f"{len(names)} classes, more than {MOST_CLASSES_AT_ALL}", "are these emotions?")
        if len(set(names)) != len(names):
            raise self.error(field, "two classes of one name", "give each class its own")
        for k, name in enumerate(names):
            if not is_printable(name) or not name.strip():
                raise self.error(field, f"class {k} has a name that cannot be shown ({name!a:.60})", "rename it")
            if len(name) > LONGEST_CLASS:
                raise self.error(field, f"class {k} has a name of {len(name)} characters", "give it a shorter one")
        return names

    def label_names(self, labels: Mapping[str, np.ndarray], features: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the classes: those of the set the dialogue ids show, else ``class 0`` and on."""
        used = {int(k) for row in labels.values() for k in np.unique(row) if k != IGNORE_LABEL} or {0}
        if all(session_of(i) for i in labels):
            # The six-class set without one excited or frustrated utterance in a thousand would be a miracle.
            graphsmile = [features[m][1] if m in features else 0 for m in MODALITIES] == [1024, 512, 100]
            four = max(used) < 4 and (graphsmile or sum(map(len, labels.values())) >= 1000)
            return IEMOCAP_LABELS[:4] if four else IEMOCAP_LABELS
        if used <= {0, 1} and all(YOUTUBE_ID.fullmatch(i) for i in labels):
            return SENTIMENT_LABELS
        largest = max(used)
        if largest >= MOST_CLASSES and len(used) <= largest:
            unused = next(k for k in range(largest) if k not in used)
            i = next(i for i, row in labels.items() if largest in row)
            problem = f"label {largest} is outside 0..C-1: class {unused} beneath it is never used"
            raise self.error("labels", problem, "number the classes from 0 without gaps", i)
        if largest >= MOST_CLASSES_AT_ALL:
            problem = f"{largest + 1} classes, more than {MOST_CLASSES_AT_ALL}"
            raise self.error("labels", problem, "are these the numbers of emotions?")
        return tuple(f"class {k}" for k in range(largest + 1))

    def splits(
        self, splits: Mapping[str, Any], dialogues: Mapping[str, Any], all_ids: set
    ) -> dict[str, tuple[str, ...]]:
        """Dialogue ids by split: lists in their order, sets sorted, since their order is another in each process."""
        read: dict[str, tuple[str, ...]] = {}
        seen: dict[str, str] = {}
        for split, value in splits.items():
            if split not in ("train", "valid", "test"):
                raise self.error(f"split {split!a:.60}", "neither train, valid nor test", "name it as one of these")
            if isinstance(value, np.ndarray) and value.ndim != 1:
                raise self.error(split, "an array where a list of dialogue ids belongs", "list ids of the labels")
            members = sorted(value, key=_natural) if isinstance(value, set | frozenset) else items_of(value)
            odd = [i for i in members or () if not isinstance(i, ID)]
            if members is None or odd:
                what = type(odd[0] if odd else value).__name__
                raise self.error(split, f"a {what} where dialogue ids belong", "list ids of the labels")
            if any(isinstance(i, int) and abs(i) >= 2**60 for i in members):
                raise self.error(split, "a number too large to be a dialogue id", "list ids of the labels")
            members = [printable(id_of(i), None) for i in members]
            for i, times in Counter(members).items():
                if i not in all_ids:
                    self.fault(split, "no such dialogue in the file", "add it or remove it from the split", i)
                if times > 1:
                    self.fault(split, f"listed {times} times", "list it once", i)
                if i in seen:
                    self.fault(split, f"also in split {seen[i]}", "keep a dialogue in one split only", i)
            read[split] = tuple(dict.fromkeys(i for i in members if i in dialogues))
            seen |= dict.fromkeys(read[split], split)
        for split in self.needs:
            if not read.get(split):
                self.fault(split, "no dialogues", f"list the dialogues to {split} on")
            elif not any_label(dialogues[i] for i in read[split]):
                self.fault(split, "no utterance with a label", f"label some of the dialogues to {split} on")
        return {split: ids for split, ids in read.items() if ids or split in self.needs}


def id_of(value: Any) -> str:
    """A dialogue's name as a string."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def is_row(value: Any) -> bool:
    """Whether something is a list, a tuple or an array of items."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def length_of(value: Any) -> int:
    """How many items a list, tuple or array has; 0 of anything else."""
    return len(value) if is_row(value) else 0


def items_of(value: Any) -> list | None:
    """The items of a list, tuple or array; None of anything else."""
    if isinstance(value, np.ndarray):
        if value.ndim > 1 and not value.size:
            return [()] * len(value)  # as many empty arrays would be a hundred bytes each
        return value.tolist() if value.ndim == 1 and value.dtype.kind in "biuf" else list(value) if value.ndim else None
    return list(value) if isinstance(value, list | tuple) else None


def width_of(rows: Any) -> int | None:
    """The width of the first row; None where there is no row of numbers to see."""
    if isinstance(rows, np.ndarray) and rows.ndim == 2:
        return rows.shape[1]
    if (
        isinstance(rows, list | tuple | np.ndarray)
        and np.ndim(rows if isinstance(rows, np.ndarray) else [0])
        and len(rows)
    ):
        first = next((row for row in rows if row is not None), None)
        if isinstance(first, list | tuple) or (isinstance(first, np.ndarray) and first.ndim == 1):
            return len(first)
    return None


def _natural(dialogue: Any) -> tuple[int, str]:
    """A key that sorts numbers as numbers, and before names."""
    return (int(dialogue), "") if isinstance(dialogue, int | np.integer) else (2**63, id_of(dialogue))


def _sentence(item: Any) -> str:
    """A transcript, which may hold any character but those that no file of text can."""
    text = _text(item)
    return text if text.isprintable() else _NO_TEXT.sub("\ufffd", text)


_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def _text(item: Any) -> str:
    if isinstance(item, str):
        return str(item)
    if isinstance(item, bytes):
        return item.decode("latin1")
    if isinstance(item, NUMBER):
        return str(item)
    raise ValueError(f"a {type(item).__name__} where a string belongs")


def _speaker(item: Any) -> str:
    """A speaker's name; of a one-hot row, the place of its 1."""
    if not isinstance(item, list | tuple | np.ndarray):
        return _text(item)
    if not 0 < length_of(item) <= LONGEST_ONE_HOT or (isinstance(item, np.ndarray) and item.ndim != 1):
        raise ValueError("a row that is not one-hot where a speaker belongs")
    if not all(isinstance(x, NUMBER) for x in items_of(item)) or sum(x != 0 for x in item) > 1:
        raise ValueError("a row that is not one-hot where a speaker belongs")
    return next((f"speaker {k}" for k, x in enumerate(item) if x), "speaker other")


def _matrix(value: Any, limit: int, missing_width: int | None) -> np.ndarray:
    """Rows as a writeable float32 array ``[n, d]``.

    Args:
        value: An array, or a list of rows.
        limit: The bytes it may take.
        missing_width: How wide a row that is None or empty shall become, of NaN; None where none may be.

    Raises:
        ValueError: If they are no rows of numbers of one width, or too many.
    """
    rows = None
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim == 2:
        shape = value.shape
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind == "O"):
        rows = items_of(value) or []
        if missing_width is not None:
            lost = np.full(missing_width, np.nan)
            rows = [lost if row is None or (is_row(row) and not len(row)) else row for row in rows]
        shape = (len(rows), length_of(rows[0]) if rows else 0)
    elif isinstance(value, np.ndarray):
        raise ValueError(f"an array of {value.dtype} of shape {list(value.shape)} where rows of numbers belong")
    else:
        raise ValueError(f"a {type(value).__name__} where rows of numbers belong")
    if 4 * shape[0] * shape[1] > limit:
        raise ValueError("more features than a file of this size can hold")
    with np.errstate(all="ignore"):  # what is too large for float32 becomes infinite, and is reported as that
        if rows is None:
            return np.require(value, np.float32, "W")
        array = np.empty(shape, np.float32)
        for k, row in enumerate(rows):
            array[k] = _row(row, k, shape[1])
        return array


def _row(row: Any, k: int, width: int) -> np.ndarray:
    if not isinstance(row, list | tuple) and (not isinstance(row, np.ndarray) or row.ndim != 1):
        raise ValueError(f"row {k} is a {type(row).__name__} where a row of numbers belongs")
    if len(row) != width:
        raise ValueError(f"rows of unequal width: row 0 has {width} values, row {k} has {len(row)}")
    if not isinstance(row, np.ndarray) or row.dtype.kind not in "biuf":
        items = items_of(row)
        if not all(issubclass(kind, NUMBER) for kind in set(map(type, items))):
            raise ValueError(f"row {k} holds other than numbers")
        try:
            row = np.array(items, dtype=np.float64)
        except OverflowError:
            raise ValueError(f"row {k} holds a number too large") from None
    return row
