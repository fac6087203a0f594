"""Feature files: every layout the field publishes, read into one `Corpus`, and written again.

A layout is one small function from what the file holds to `Parts`, the fields by name; `Checks` looks at them all in
the same way. Files are recognised by their content, never by their name, since they circulate renamed. Pickles pass
`safe_pickle`, so that none can run code.

    python feature_files.py inspect FILE [--json] [--plot PNG]
    python feature_files.py convert IN OUT
    python feature_files.py join TEXT_FILE AV_FILE OUT
    python feature_files.py merge PARTS... OUT
    python feature_files.py download NAME

Shapes use n utterances of a dialogue and d features.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import download
import feature_inspect
import feature_stream
import safe_pickle
from dataloader import IEMOCAP_LABELS, Corpus, Dialogue, session_of
from feature_checks import Checks, Parts, id_of, items_of, width_of
from feature_writing import is_container, open_container, write_container, write_nine_tuple
from files import InputError

__all__ = ["join", "main", "read", "write_container", "write_nine_tuple"]

MELD_LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
MELD_SENTIMENTS = ("neutral", "positive", "negative")
README = "IEMOCAP_features/README.md for those that are"
UNPACKED = 2**30  # bytes that a member of a .npz may unpack to


def read(
    path: str | Path, text_layers: str = "mean", target: str = "emotion", missing: str = "refuse", **options: Any
) -> Corpus:
    """A feature file of any known layout, or the folder of one that is several files.

    Args:
        path: The file or folder.
        text_layers: Where there are several layers of text: their ``mean``, ``concat``, or the number of one, from 1.
        target: ``emotion``, or ``sentiment`` where the file has such labels.
        missing: ``refuse`` features that are not there, or ``mask`` them: their rows are NaN in the corpus.
        options: ``lenient``, ``faults`` and ``required`` of `Checks`.

    Raises:
        InputError: If the file is not there, is of no known layout, or contradicts itself.
    """
    source = Source(Path(path))
    return _checked(source, identify(source, missing), text_layers, target, missing, **options)


def _checked(
    source: Source,
    parts: Parts,
    text_layers: str = "mean",
    target: str = "emotion",
    missing: str = "refuse",
    **options: Any,
) -> Corpus:
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
    return Checks(str(source.path), source.size, text_layers, missing, **options).corpus(parts, source.sha256)


class Source:
    """A feature file, or the files of a folder, with what was read of them for the checksum.

    Args:
        path: The file or folder.

    Raises:
        InputError: If it is not there.
    """

    def __init__(self, path: Path):
        try:
            path.stat()
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the name, or put the feature file there") from None
        except (OSError, ValueError) as error:  # a name too long, or with a null character
            raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); check the name") from None
        self.path = path
        self.size = 0
        self._digests: dict[str, str] = {}

    def bytes_of(self, path: Path) -> bytes:
        """A whole file.

        Raises:
            InputError: If it cannot be read, or is known not to be the data itself.
        """
        data = _bytes_of(path)
        self.size += len(data)
        self._digests[str(path.relative_to(self.path) if path != self.path else path)] = hashlib.sha256(
            data
        ).hexdigest()
        return data

    def unpickled(self, path: Path) -> Any:
        """What a pickle holds, no code run."""
        return safe_pickle.loads(self.bytes_of(path), path)

    @property
    def sha256(self) -> str:
        """The file's checksum; of a folder, that of the sorted list of its files' as ``sha256sum`` prints it."""
        if len(self._digests) == 1 and self.path.is_file():
            return next(iter(self._digests.values()))
        lines = (f"{digest}  {name}\n" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _bytes_of(path: Path) -> bytes:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the name, or put the feature file there")
    if not path.is_file():
        raise InputError(f"{path}: {'a directory' if path.is_dir() else 'no regular file'}; name a feature file")
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


# Recognising a layout -------------------------------------------------------------------------------------------------


def identify(source: Source, missing: str = "refuse") -> Parts:
    """The fields of a file or folder, by the shape of its content.

    Raises:
        InputError: If it is of no known layout.
    """
    path = source.path
    if path.is_dir():
        return _identify_folder(source, missing)
    if path.is_file() and is_container(path):
        return ours(source)
    if path.name.endswith(".json.feature") and path.parent.is_dir():
        source.path = path.parent
        return dag_erc(source)
    if path.is_file() and zipfile.is_zipfile(path):
        source.path = path.parent
        return merbench(source, path, missing)
    content = source.unpickled(path)
    if isinstance(content, tuple | list) and len(content) == 6:
        source.path = path.parent
        return gcnet(source, content, missing)
    return _identify_pickle(str(path), content)


def _identify_pickle(file: str, content: Any) -> Parts:
    if isinstance(content, Mapping) and {"train", "test"} <= set(content):
        return samples(file, content)
    kind = type(content).__name__
    if not isinstance(content, tuple | list):
        raise InputError(f"{file}: holds a {kind}, and no known layout is one; see {README}")
    is_table = [isinstance(item, Mapping) for item in content]
    for length, layout, tables, others in (
        (9, meld_raw, (0, 1, 2, 3, 4, 5, 8), (6, 7)),
        (9, nine_tuple, range(7), (7, 8)),
        (10, meld_trimodal, range(7), (7, 8)),
        (10, cosmic_iemocap, range(7), (7, 8, 9)),
        (11, cosmic_meld, range(8), (8, 9, 10)),
        (12, layered_iemocap, range(10), (10, 11)),
        (13, layered_meld, range(10), (10, 11)),
        (14, graphsmile_meld, range(11), (11, 12)),
        (7, text_only, range(5), (5, 6)),
    ):
        if len(content) != length or any(is_table[k] for k in others):
            continue
        if layout is meld_trimodal and _is_rows(content[2]):
            continue  # where these have labels, the other layout of ten has the first text layer
        if sum(is_table[k] for k in tables) >= len(tables) // 2:
            return layout(content)
    raise InputError(f"{file}: a {kind} of {len(content)} items is no known layout; see {README}")


def _is_rows(table: Any) -> bool:
    return isinstance(table, Mapping) and any(width_of(row) is not None for row in table.values())


# Layouts that are one pickle ------------------------------------------------------------------------------------------


def nine_tuple(items: Sequence[Any]) -> Parts:
    """1, 2, 4, and 8 with four classes: ids, speakers, labels, text, audio, visual, sentences, train, test.

    Audio comes before visual on disk.
    """
    ids, speakers, labels, text, audio, visual, sentences, train, test = items
    features = {"text": text, "visual": visual, "acoustic": audio}
    layout = {(100, 512, 100): 1, (100, 342, 1582): 4, (1024, 512, 100): 8}.get(_widths(features), 2)
    return Parts(layout, labels, speakers, features, {"train": train, "test": test}, sentences, ids)


def text_only(items: Sequence[Any]) -> Parts:
    """2 without audio and visual: ids, speakers, labels, text, sentences, train, test."""
    ids, speakers, labels, text, sentences, train, test = items
    return Parts(2, labels, speakers, {"text": text}, {"train": train, "test": test}, sentences, ids)


def meld_raw(items: Sequence[Any]) -> Parts:
    """3: ids, speakers, emotions, text, audio, sentences, train, test, sentiments. Nine items as well, no visual."""
    ids, speakers, labels, text, audio, sentences, train, test, sentiment = items
    features = {"text": text, "acoustic": audio}
    splits = {"train": train, "test": test}
    return Parts(3, labels, speakers, features, splits, sentences, ids, MELD_LABELS, sentiment)


def meld_trimodal(items: Sequence[Any]) -> Parts:
    """5: ids, speakers, labels, text, audio, visual, sentences, train, test, one more."""
    ids, speakers, labels, text, audio, visual, sentences, train, test, extra = items
    features = {"text": text, "visual": visual, "acoustic": audio}
    splits = {"train": train, "test": test}
    return Parts(5, labels, speakers, features, splits, sentences, ids, MELD_LABELS, _labels_like(labels, extra))


def cosmic_iemocap(items: Sequence[Any]) -> Parts:
    """6: speakers, labels, four text layers (the last of the network first), sentences, train, test, valid."""
    speakers, labels, *layers, sentences, train, test, valid = items
    splits = {"train": train, "valid": valid, "test": test}
    return Parts(6, labels, speakers, {"text": layers}, splits, sentences)


def cosmic_meld(items: Sequence[Any]) -> Parts:
    """6 for MELD: speakers, emotions, sentiments, four text layers, sentences, train, test, valid."""
    speakers, labels, sentiment, *layers, sentences, train, test, valid = items
    splits = {"train": train, "valid": valid, "test": test}
    return Parts(6, labels, speakers, {"text": layers}, splits, sentences, label_names=MELD_LABELS, sentiment=sentiment)


def layered_iemocap(items: Sequence[Any]) -> Parts:
    """8: ids, speakers, labels, four text layers, audio, visual, sentences, train, test."""
    ids, speakers, labels, *layers, audio, visual, sentences, train, test = items
    features = {"text": layers, "visual": visual, "acoustic": audio}
    return Parts(8, labels, speakers, features, {"train": train, "test": test}, sentences, ids)


def layered_meld(items: Sequence[Any]) -> Parts:
    """8 as SDT has MELD: the same twelve, then one more."""
    parts = layered_iemocap(items[:12])
    return replace(parts, label_names=MELD_LABELS, sentiment=_labels_like(parts.labels, items[12]))


def graphsmile_meld(items: Sequence[Any]) -> Parts:
    """8 as GraphSmile has MELD: the same twelve with the sentiments fourth, then one more."""
    return replace(layered_iemocap([*items[:3], *items[4:13]]), label_names=MELD_LABELS, sentiment=items[3])


def samples(file: str, content: Mapping[str, Any]) -> Parts:
    """10: train, dev and test, each a list of samples: objects or dictionaries with a dialogue's fields."""
    tables: dict[str, dict] = {name: {} for name in ("labels", "speakers", "text", "audio", "visual", "sentence")}
    splits: dict[str, list] = {}
    for split in ("train", "dev", "test"):
        members = splits["valid" if split == "dev" else split] = []
        for sample in content.get(split) or ():
            fields = sample.fields if isinstance(sample, safe_pickle.Sample) else sample
            if not isinstance(fields, Mapping) or not isinstance(fields.get("vid"), str | int | np.integer):
                raise InputError(f"{file}: {split}: a sample has no 'vid'; give each sample its dialogue's id")
            vid = id_of(fields["vid"])
            if vid in tables["labels"]:
                raise InputError(f"{file}: {split}: dialogue {vid!r:.80}: two samples of it; give each dialogue one")
            members.append(vid)
            for name, table in tables.items():
                # Objects say ``speaker`` and ``label``, dictionaries ``speakers`` and ``labels``.
                table[vid] = fields.get(name, fields.get(name.removesuffix("s")))
    features = {"text": tables["text"], "visual": tables["visual"], "acoustic": tables["audio"]}
    features = {m: t for m, t in features.items() if any(row is not None for row in t.values())}
    return Parts(10, tables["labels"], tables["speakers"], features, splits, tables["sentence"])


def ours(source: Source) -> Parts:
    """14: what `write_container` wrote."""
    parts, source.size, digest = open_container(source.path)
    source._digests[str(source.path)] = digest
    return parts


def _widths(features: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The width of each modality's first row, to tell layouts apart."""
    tables = (t if isinstance(t, Mapping) else {} for t in features.values())
    return tuple(next(map(width_of, table.values()), None) for table in tables)


def _labels_like(labels: Any, extra: Any) -> Any:
    """The unnamed last item of some MELD files, where it is a second set of labels for the same dialogues."""
    same = isinstance(extra, Mapping) and isinstance(labels, Mapping) and extra.keys() == labels.keys()
    return extra if same and not _is_rows(extra) else None


# Layouts that are a folder --------------------------------------------------------------------------------------------

# Which modality a folder or file of features is of, by the networks that the field names them after.
_MODALITY = {
    "acoustic": re.compile(
        r"audio|acoustic|wav|hubert|vggish|mfcc|opensmile|gemaps|compare|panns|whisper|speech", re.I
    ),
    "visual": re.compile(
        r"visual|video|face|manet|resnet|clip|vit|ferplus|emonet|densenet|openface|dino|senet|mae|xception|eva", re.I
    ),
    "text": re.compile(r"text|bert|glove|gpt|llama|lm|t5|bloom|baichuan|sentence|xlnet|opt|electra|word", re.I),
}


def _identify_folder(source: Source, missing: str) -> Parts:
    names = {p.name.lower(): p for p in sorted(source.path.iterdir()) if p.is_file()}
    if any(name.endswith(".json.feature") for name in names):
        return dag_erc(source)
    if {"speakers.pkl", "textfeatures.pkl"} <= names.keys():
        return multiemo(source, names)
    files = [p for name, p in names.items() if name.endswith((".pkl", ".pickle", ".p", ".npz"))]
    if len(files) == 1:
        if zipfile.is_zipfile(files[0]):
            return merbench(source, files[0], missing)
        content = source.unpickled(files[0])
        if isinstance(content, tuple | list) and len(content) == 6:
            return gcnet(source, content, missing)
        return _identify_pickle(str(files[0]), content)
    if len(files) == 2 and not any(map(zipfile.is_zipfile, files)):
        return m3net(source, files)
    raise InputError(f"{source.path}: a directory of no known layout; name the feature file inside it, or see {README}")


def m3net(source: Source, files: Sequence[Path]) -> Parts:
    """7: a file of layout 4 or 5, for audio and visual, beside one of layout 6, for text and splits, by dialogue id."""
    both = [_identify_pickle(str(path), source.unpickled(path)) for path in files]
    text = next((parts for parts in both if parts.layout == 6), None)
    rest = next((parts for parts in both if parts.layout in (1, 2, 4, 5)), None)
    if text is None or rest is None:
        raise InputError(f"{source.path}: two files that are not layout 6 and layout 4 or 5; name one, or use 'join'")
    labels = {id_of(i): items_of(row) for i, row in text.labels.items()}
    for i, row in rest.labels.items():
        if id_of(i) in labels and items_of(row) != labels[id_of(i)]:
            raise InputError(
                f"{source.path}: labels: dialogue {id_of(i)!r:.80}: the two files differ; get a pair that fits"
            )
    features = {m: table for m, table in rest.features.items() if m != "text"} | {"text": text.features["text"]}
    return replace(rest, layout=7, labels=text.labels, features=features, splits=text.splits, sentiment=text.sentiment)


def multiemo(source: Source, names: Mapping[str, Path]) -> Parts:
    """9: ``Speakers.pkl`` is 2 or 5, for ids, labels and splits; text, audio and visual are files beside it."""
    parts = _identify_pickle(str(names["speakers.pkl"]), source.unpickled(names["speakers.pkl"]))
    files = {"text": "textfeatures.pkl", "visual": "visualfeatures.pkl", "acoustic": "audiofeatures.pkl"}
    features = {m: source.unpickled(names[name]) for m, name in files.items() if name in names}
    return replace(parts, layout=9, features=features)


def gcnet(source: Source, items: Sequence[Any], missing: str) -> Parts:
    """11: ids, labels, speakers, sentences, train, test; features in one folder a kind, one file an utterance."""
    ids, labels, speakers, sentences, train, test = items
    if not isinstance(ids, Mapping):
        raise InputError(
            f"{source.path}: a list of 6 items that does not start with ids is no known layout; see {README}"
        )
    ids = {id_of(i): [id_of(u) for u in items_of(row) or ()] for i, row in ids.items()}
    return Parts(11, labels, speakers, _folders(source, ids, missing), {"train": train, "test": test}, sentences, ids)


def merbench(source: Source, path: Path, missing: str) -> Parts:
    """12: a ``.npz`` with ``whole_corpus``, utterance to ``emo`` and ``val``; features as in 11.

    It names neither dialogues nor splits. An IEMOCAP utterance's id begins with its dialogue's and has its speaker in
    the last part; its last session is the test split, as MERBench's own last fold has it.
    """
    corpus = _npz_member(source, path, "whole_corpus")
    labels: dict[str, list] = {}
    ids: dict[str, list[str]] = {}
    for utterance, fields in corpus.items():
        if not isinstance(utterance, str) or not isinstance(fields, Mapping) or "emo" not in fields:
            raise InputError(f"{path}: whole_corpus: {utterance!r:.80} has no 'emo'; give each utterance its label")
        dialogue = utterance.rpartition("_")[0] or utterance
        ids.setdefault(dialogue, []).append(utterance)
        labels.setdefault(dialogue, []).append(fields["emo"])
    speakers = {i: [u.rpartition("_")[2][:1] for u in row] for i, row in ids.items()}
    last = max(map(session_of, ids), default="")
    if not last:
        raise InputError(f"{path}: whole_corpus: ids of no IEMOCAP session, so no test split; convert it to a 9-tuple")
    splits = {"train": [i for i in ids if session_of(i) != last], "test": [i for i in ids if session_of(i) == last]}
    return Parts(12, labels, speakers, _folders(source, ids, missing), splits, None, ids)


def _npz_member(source: Source, path: Path, name: str) -> Mapping[str, Any]:
    """A dictionary that NumPy saved as an array of one object."""
    data = source.bytes_of(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(f"{name}.npy") as stream:
            member = stream.read(UNPACKED)
    except Exception:  # random bytes raise nearly every type
        raise InputError(f"{path}: no whole .npz with {name!r} in it, so of no known layout; see {README}") from None
    source.size += len(member)
    value = _npy(member, path)
    value = value.item() if value.shape == () else None
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: {name}: no dictionary by utterance; see {README}")
    return value


def _npy(data: bytes, path: Path) -> np.ndarray:
    """The array in a ``.npy``; an array of objects passes the gate that pickles pass.

    Raises:
        InputError: If it is no array, is shorter than it says, or would run code.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        body = data[stream.tell() :]
        if not dtype.hasobject:
            return np.frombuffer(body, dtype, int(np.prod(shape))).reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # a header is Python source, and can be wrong in any way
        reason = ascii(f"{type(error).__name__}: {error}")[1:-1]
        raise InputError(f"{path}: not a NumPy array, or a damaged one ({reason:.100}); get it again") from None
    value = safe_pickle.loads(body, path)
    if not isinstance(value, np.ndarray):
        raise InputError(f"{path}: an array of objects that holds none; get it again")
    return value


def _folders(source: Source, ids: Mapping[str, list[str]], missing: str) -> dict[str, Any]:
    """Features from ``<feature>/<utterance>*.npy`` or ``<feature>/<utterance>/*.npy``, averaged over time.

    An utterance without a file is zeros, as GCNet has it, or missing.
    """
    root = source.path / "features" if (source.path / "features").is_dir() else source.path
    found: dict[str, Path] = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        modality = next((m for m, pattern in _MODALITY.items() if pattern.search(folder.name)), None)
        if modality is None:
            continue
        if modality in found:
            both = f"{found[modality].name!r} and {folder.name!r}"
            raise InputError(f"{root}: {both} are both {modality} features; keep one of them in the folder")
        found[modality] = folder
    if not found:
        raise InputError(f"{root}: no folder of features; name them text, audio and visual, or after their networks")
    return {modality: _folder(source, folder, ids, missing) for modality, folder in found.items()}


def _folder(source: Source, folder: Path, ids: Mapping[str, list[str]], missing: str) -> dict[str, list]:
    names = sorted(p.name for p in folder.iterdir())
    rows = {i: [_pooled(source, folder, names, u) for u in utterances] for i, utterances in ids.items()}
    width = next((len(row) for rows_ in rows.values() for row in rows_ if row is not None), 0)
    absent = None if missing == "mask" else np.zeros(width, np.float32)
    return {i: [absent if row is None else row for row in rows_] for i, rows_ in rows.items()}


def _pooled(source: Source, folder: Path, names: Sequence[str], utterance: str) -> np.ndarray | None:
    """The mean over time and files of an utterance's features, ``[d]``; None where it has none."""
    k = bisect.bisect_left(names, utterance)  # names sort behind their prefix
    if not utterance or k == len(names) or not names[k].startswith(utterance):
        return None
    path = folder / names[k]
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    arrays = []
    for file in files:
        array = _npy(source.bytes_of(file), file)
        if array.dtype.kind not in "biuf" or not array.ndim:
            raise InputError(f"{file}: utterance {utterance!r:.80}: no array of numbers; save one row a frame")
        arrays.append(array.reshape(-1, array.shape[-1]))
    if len({a.shape[1] for a in arrays}) > 1:
        raise InputError(f"{path}: utterance {utterance!r:.80}: files of unequal width; save rows of one width")
    frames = np.concatenate(arrays) if arrays else np.zeros((0, 0))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is reported as that
        return frames.mean(0, dtype=np.float64) if len(frames) else None


def dag_erc(source: Source) -> Parts:
    """13: ``{train,dev,test}_data_roberta.json.feature``, dialogues of text, speaker, label and cls, by name.

    Utterances without a label are left out, as IEMOCAP's other files leave them out; so are dialogues of no other.
    Classes are in the order of the known set they are of, else in that of ``label_vocab.pkl``, else sorted.
    """
    fields: dict[str, dict] = {name: {} for name in ("label", "speaker", "text", "cls")}
    splits: dict[str, list[str]] = {}
    for split in ("train", "dev", "test"):
        path = next(iter(sorted(source.path.glob(f"{split}*.json.feature"))), source.path / f"{split}.json.feature")
        members = splits["valid" if split == "dev" else split] = []
        for k, dialogue in enumerate(_json(source, path)):
            if not isinstance(dialogue, list) or not all(isinstance(u, dict) for u in dialogue):
                raise InputError(f"{path}: dialogue {k}: no list of utterances; give one of objects")
            if labelled := [u for u in dialogue if isinstance(u.get("label"), str)]:
                members.append(f"{split}_{k}")
                for name, table in fields.items():
                    table[members[-1]] = [u.get(name) for u in labelled]
    names = _class_names(source, {name for row in fields["label"].values() for name in row})
    numbers = {name: k for k, aliases in enumerate(names) for name in aliases}
    labels = {i: [numbers[name] for name in row] for i, row in fields["label"].items()}
    label_names = tuple(aliases[0] for aliases in names)
    return Parts(13, labels, fields["speaker"], {"text": fields["cls"]}, splits, fields["text"], None, label_names)


def _json(source: Source, path: Path) -> list:
    try:
        content = json.loads(source.bytes_of(path))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON, or a damaged one; get the file again") from None
    if not isinstance(content, list):
        raise InputError(f"{path}: a {type(content).__name__} where a list of dialogues belongs; see {README}")
    return content


def _class_names(source: Source, used: set[str]) -> list[tuple[str, ...]]:
    """The names of each class, the first of them the usual one."""
    for known in ([(name, name[:3]) for name in IEMOCAP_LABELS], [(name,) for name in MELD_LABELS]):
        if used <= {name for aliases in known for name in aliases}:
            return known
    vocabulary = source.path / "label_vocab.pkl"
    order = source.unpickled(vocabulary) if vocabulary.is_file() else {}
    order = order.get("itos") if isinstance(order, Mapping) else None
    order = [name for name in items_of(order) or () if isinstance(name, str)]
    return [(name,) for name in dict.fromkeys([name for name in order if name in used] + sorted(used))]


# Joining, and the command line ----------------------------------------------------------------------------------------


def join(text: Corpus, other: Corpus, name: str) -> Corpus:
    """The text of one corpus with the visual and acoustic features of another, by utterance id or by dialogue id.

    Args:
        text: Has the text, sentences and class names.
        other: Has the other modalities of the same utterances, in any order; of the same order where either file
            names no utterances.
        name: Of the result, for messages.

    Raises:
        InputError: If an utterance of either has no match, or labels or splits differ.
    """
    for corpus, wanted in ((text, {"text"}), (other, {"visual", "acoustic"})):
        if not wanted & set(corpus.dims):
            raise InputError(f"{corpus.name}: no {' or '.join(sorted(wanted))} features to join; name another file")
    place = {u: (d, k) for d in other.dialogues.values() for k, u in enumerate(d.utterances)}
    dialogues, used = {}, 0
    for i, dialogue in text.dialogues.items():
        twin = other.dialogues.get(i)
        if all(u in place for u in dialogue.utterances):
            found = [place[u] for u in dialogue.utterances]
        elif twin and len(twin) == len(dialogue) and (_unnamed(twin) or _unnamed(dialogue)):
            found = [(twin, k) for k in range(len(twin))]
        else:
            lost = next(u for u in dialogue.utterances if u not in place)
            raise InputError(
                f"{other.name}: dialogue {i!r:.80}: no utterance {lost!r:.80}; join files of the same utterances"
            )
        if [int(d.labels[k]) for d, k in found] != dialogue.labels.tolist():
            raise InputError(
                f"{other.name}: labels: dialogue {i!r:.80}: not those of {text.name}; join files of one set"
            )
        used += len(found)
        features = {m: np.stack([d.features[m][k] for d, k in found]) for m in other.dims if m != "text"}
        dialogues[i] = replace(dialogue, features=features | {"text": dialogue.features["text"]})
    if used != len(place):
        raise InputError(
            f"{text.name}: {len(place) - used} utterances of {other.name} are not in it; join files that match"
        )
    halves = [({*c.splits["train"], *c.splits.get("valid", ())}, {*c.splits["test"]}) for c in (text, other)]
    if halves[0] != halves[1]:
        raise InputError(f"{text.name}: train and test: not those of {other.name}; join files of the same splits")
    splits = text.splits if "valid" in text.splits else other.splits
    sha256 = hashlib.sha256(f"{text.sha256}{other.sha256}".encode()).hexdigest()
    return replace(text, name=name, dialogues=dialogues, splits=splits, sha256=sha256)


def _unnamed(dialogue: Dialogue) -> bool:
    """Whether the utterances have only the names that `Checks.dialogue` makes."""
    return dialogue.utterances == tuple(f"{dialogue.id}_{k}" for k in range(len(dialogue)))


def inspect(path: str | Path, plot: str | Path | None = None) -> dict[str, Any]:
    """What a feature file is, with everything that is suspicious about it; a broken one as far as it can be read.

    Args:
        path: The file or folder.
        plot: Where to draw a picture of it, if anywhere.

    Raises:
        InputError: If too little of it can be read to say what it is.
    """
    source, faults = Source(Path(path)), []
    parts = identify(source)
    corpus = _checked(source, parts, lenient=True, faults=faults)
    sums = download.checksums(Path(path)) if Path(path).is_file() else {"sha256": source.sha256, "git_blob": ""}
    known = (e["name"] for e in download.known_files() if sums["git_blob"] and download.is_known_as(sums, e))
    report = {"file": str(path), "layout": parts.layout} | feature_inspect.describe(corpus) | sums
    report |= {"known_as": next(known, ""), "warnings": faults + report["warnings"], "provenance": parts.provenance}
    if plot:
        try:
            feature_inspect.plot(corpus, Path(plot))
        except (OSError, ValueError) as error:
            raise InputError(f"{plot}: cannot be drawn ({error!s:.100}); give a writable name such as a.png") from None
    return report


def _write(corpus: Corpus, path: Path, provenance: Mapping[str, Any]) -> None:
    if path.suffix in (".pkl", ".pickle", ".p"):
        write_nine_tuple(corpus, path)
    else:
        write_container(corpus, path, provenance)


def build_parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    parser = argparse.ArgumentParser(description="Look at, convert, join and fetch feature files.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("inspect", help="print what a file is and what is suspicious about it")
    one.add_argument("file", type=Path, help="a feature file, or the folder of one that is several files")
    one.add_argument("--json", action="store_true", help="for machines")
    one.add_argument("--plot", type=Path, metavar="PNG", help="draw class shares, lengths and a map of each modality")

    one = commands.add_parser("convert", help="write a file as our container, or as a 9-tuple where OUT is a .pkl")
    one.add_argument("file", type=Path, metavar="IN", help="a feature file of any known layout")
    one.add_argument("out", type=Path, metavar="OUT", help="NAME.safetensors, or NAME.pkl for the 9-tuple")

    two = commands.add_parser("join", help="join the text of one file with the other modalities of another")
    two.add_argument("text_file", type=Path, help="has the text")
    two.add_argument("av_file", type=Path, help="has visual, acoustic, or both, of the same utterances")
    two.add_argument("out", type=Path, metavar="OUT", help="as for convert")

    many = commands.add_parser("merge", help="join the parts that extract_features.py --shard wrote")
    many.add_argument("parts", type=Path, nargs="+", metavar="PARTS", help="all of them, in any order")
    many.add_argument("out", type=Path, metavar="OUT", help="NAME.safetensors")

    for command in (one, two):
        command.add_argument("--text-layers", default="mean", help="mean (default), concat, or a layer's number from 1")
        command.add_argument("--target", default="emotion", help="emotion (default) or sentiment")
        command.add_argument("--missing", default="refuse", help="refuse (default) or mask what a modality lacks")

    get = commands.add_parser("download", help="fetch a known public file and verify it")
    get.add_argument("name", help="one of: " + ", ".join(entry["name"] for entry in download.known_files()))
    get.add_argument(
        "--to", type=Path, default=Path(__file__).with_name("IEMOCAP_features"), help="folder to put it in"
    )
    get.add_argument("--known", type=Path, default=download.KNOWN_FILES, help="list of known files (default: ours)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it went well, 2 after one line that says what is wrong."""
    args = build_parser().parse_args(argv)
    try:
        if args.command == "inspect":
            report = inspect(args.file, args.plot)
            print(json.dumps(report, indent=2) if args.json else feature_inspect.as_text(report))
        elif args.command == "download":
            print(download.download(args.name, args.to, args.known))
        elif args.command == "merge":
            feature_stream.merge(args.parts, args.out)
            print(args.out)
        else:
            choices = {"text_layers": args.text_layers, "target": args.target, "missing": args.missing}
            files = [args.file] if args.command == "convert" else [args.text_file, args.av_file]
            corpora = [read(file, **choices) for file in files]
            corpus = corpora[0] if len(corpora) == 1 else join(*corpora, str(args.out))
            origin = [{"file": file.name, "sha256": c.sha256} for file, c in zip(files, corpora, strict=True)]
            before = corpora[0].provenance if len(corpora) == 1 else {}
            _write(corpus, args.out, {**before, "from": origin, **choices})
            print(args.out)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
