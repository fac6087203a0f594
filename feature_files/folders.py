"""Layouts that are a folder, or a file that belongs to the folder it is in.

Shapes use n utterances of a dialogue and d features.
"""

from __future__ import annotations

import bisect
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataloader import IEMOCAP_LABELS, session_of
from feature_files import safe_pickle
from feature_files.checks import ID, LONGEST_ID, MELD_LABELS, NUMBER, README, Parts, id_of, is_row, items_of
from feature_files.container import plain
from feature_files.pickles import identify_pickle
from feature_files.sources import LARGEST_UTTERANCE, Source, is_file, is_folder, listing
from files import InputError

UNPACKED = 32  # bytes that a byte of a .npz may unpack to; labels by utterance take 10
UNPACKED_BASE = 2**20  # the same for the smallest file
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
DAG_ERC_SPLITS = ("train", "dev", "test")  # how the names of its files begin
# The layouts that M3NET takes audio and visual from.
_TRIMODAL = ("iemocap-9", "nine-tuple", "mmgcn-iemocap", "mmgcn-meld")


def identify_folder(source: Source, missing: str, unlabelled: bool = False) -> Parts:
    """The fields of a folder, by the names in it; `reading.identify` says what the arguments are.

    Raises:
        InputError: If it is of no known layout.
    """
    names = {p.name.lower(): p for p in listing(source.path) if is_file(p)}
    if any(name.endswith(".json.feature") for name in names):
        return dag_erc(source, unlabelled)
    if {"speakers.pkl", "textfeatures.pkl"} <= names.keys():
        return multiemo(source, names)
    files = [p for name, p in names.items() if name.endswith((".pkl", ".pickle", ".p", ".npz"))]
    if len(files) == 1:
        if zipfile.is_zipfile(files[0]):
            return merbench(source, files[0], missing, unlabelled)
        content = source.unpickled(files[0])
        if isinstance(content, tuple | list) and len(content) == 6:
            return gcnet(source, content, missing)
        return identify_pickle(str(files[0]), content)
    if len(files) == 2 and not any(map(zipfile.is_zipfile, files)):
        return m3net(source, files, unlabelled)
    raise InputError(f"{source.path}: a directory of no known layout; name the feature file inside it, or see {README}")


def m3net(source: Source, files: Sequence[Path], unlabelled: bool = False) -> Parts:
    """``m3net``: an MMGCN file, for audio and visual, beside one of COSMIC, for text and splits, by dialogue id."""
    both = [identify_pickle(str(path), source.unpickled(path)) for path in files]
    text = next((parts for parts in both if parts.layout == "cosmic"), None)
    rest = next((parts for parts in both if parts.layout in _TRIMODAL), None)
    if text is None or rest is None:
        raise InputError(f"{source.path}: two files that are not COSMIC's and MMGCN's; name one, or use 'join'")
    if not unlabelled:
        _fit(source, text, rest)
    features = {m: table for m, table in rest.features.items() if m != "text"} | {"text": text.features["text"]}
    return replace(
        rest, layout="m3net", labels=text.labels, features=features, splits=text.splits, sentiment=text.sentiment
    )


def _fit(source: Source, *both: Parts) -> None:
    """Refuse two files whose labels are not the same."""
    for parts in both:
        if not isinstance(parts.labels, Mapping):
            kind = type(parts.labels).__name__
            raise InputError(f"{source.path}: labels: a {kind} where a dictionary by dialogue belongs; see the layout")
    labels, others = ({id_of(i): _whole_numbers(row) for i, row in parts.labels.items()} for parts in both)
    for i, row in others.items():
        if i in labels and row != labels[i]:
            raise InputError(f"{source.path}: labels: dialogue {i!r:.80}: the two files differ; get a pair that fits")


def _whole_numbers(row: Any) -> list[int]:
    """A dialogue's labels, to be compared; empty where they are none, which `Checks` will say."""
    values = items_of(row) if is_row(row) and not (isinstance(row, np.ndarray) and row.ndim > 1) else []
    return [int(x) for x in values] if all(isinstance(x, NUMBER) and abs(x) < 2**31 for x in values) else []


def multiemo(source: Source, names: Mapping[str, Path]) -> Parts:
    """``multiemo``: ``Speakers.pkl``, of another layout, has ids, labels and splits; a file beside it each modality."""
    parts = identify_pickle(str(names["speakers.pkl"]), source.unpickled(names["speakers.pkl"]))
    files = {"text": "textfeatures.pkl", "visual": "visualfeatures.pkl", "acoustic": "audiofeatures.pkl"}
    features = {m: source.unpickled(names[name]) for m, name in files.items() if name in names}
    return replace(parts, layout="multiemo", features=features)


def gcnet(source: Source, items: Sequence[Any], missing: str) -> Parts:
    """``gcnet``: ids, labels, speakers, sentences, train, test; features in a folder a kind, a file an utterance."""
    ids, labels, speakers, sentences, train, test = items
    if not isinstance(ids, Mapping):
        raise InputError(
            f"{source.path}: a list of 6 items that does not start with ids is no known layout; see {README}"
        )
    ids = {id_of(i): _utterances(source, id_of(i), row) for i, row in ids.items()}
    return Parts(
        "gcnet", labels, speakers, _folders(source, ids, missing), {"train": train, "test": test}, sentences, ids
    )


def _utterances(source: Source, dialogue: str, row: Any) -> list[str]:
    """The names of a dialogue's utterances, each of which is the beginning of a file's name."""
    if isinstance(row, np.ndarray) and row.ndim > 1:
        row = None
    names = [id_of(u) if isinstance(u, ID) else "" for u in items_of(row) or ()]
    if not names or not all(0 < len(name) <= LONGEST_ID for name in names):
        raise InputError(f"{source.path}: ids: dialogue {dialogue!r:.80}: no list of names; give each utterance one")
    return names


def merbench(source: Source, path: Path, missing: str, unlabelled: bool = False) -> Parts:
    """``merbench``: a ``.npz`` with ``whole_corpus``, utterance to ``emo`` and ``val``; features as ``gcnet`` has them.

    It names neither dialogues nor splits. An IEMOCAP utterance's id begins with its dialogue's and has its speaker in
    the last part; its last session is the test split, as MERBench's own last fold has it. Without labels, ids need name
    no session.
    """
    corpus = _npz_member(source, path, "whole_corpus")
    labels: dict[str, list] = {}
    ids: dict[str, list[str]] = {}
    for utterance, fields in corpus.items():
        if (
            not isinstance(utterance, str)
            or len(utterance) > LONGEST_ID
            or not (unlabelled or (isinstance(fields, Mapping) and "emo" in fields))
        ):
            raise InputError(f"{path}: whole_corpus: {utterance!r:.80} has no 'emo'; give each utterance its label")
        dialogue = utterance.rpartition("_")[0] or utterance
        ids.setdefault(dialogue, []).append(utterance)
        labels.setdefault(dialogue, []).append(fields.get("emo") if isinstance(fields, Mapping) else None)
    speakers = {i: [u.rpartition("_")[2][:1] for u in row] for i, row in ids.items()}
    last = max(map(session_of, ids), default="")
    if not last and not unlabelled:
        raise InputError(f"{path}: whole_corpus: ids of no IEMOCAP session, so no test split; convert it to a 9-tuple")
    splits = {"train": [i for i in ids if session_of(i) != last], "test": [i for i in ids if session_of(i) == last]}
    splits = splits if last else {}
    return Parts("merbench", labels, speakers, _folders(source, ids, missing), splits, None, ids)


def _npz_member(source: Source, path: Path, name: str) -> Mapping[str, Any]:
    """A dictionary that NumPy saved as an array of one object."""
    data = source.bytes_of(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(f"{name}.npy") as stream:
            if archive.getinfo(f"{name}.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(f"{path}: {name}: packed as NumPy never does; save it with np.savez_compressed")
            limit = UNPACKED_BASE + UNPACKED * len(data)
            member = stream.read(limit + 1)
            if len(member) > limit:
                raise InputError(f"{path}: {name}: unpacks to more than a file of this size needs; get it again")
    except InputError:
        raise
    except Exception:  # random bytes raise nearly every type
        raise InputError(f"{path}: no whole .npz with {name!r} in it, so of no known layout; see {README}") from None
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
        if not all(0 <= n <= len(data) for n in shape) or len(shape) > safe_pickle.MOST_DIMENSIONS:
            raise ValueError(f"an array of shape {shape}")  # a dimension of 0 makes all others free
        body = data[stream.tell() :]
        if not dtype.hasobject:
            array = np.frombuffer(body, dtype, math.prod(shape)).reshape(shape, order="F" if fortran else "C")
            return safe_pickle.sound(array)
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
    root = source.path / "features" if is_folder(source.path / "features") else source.path
    found: dict[str, Path] = {}
    for folder in filter(is_folder, listing(root)):
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
    names = [p.name for p in listing(folder)]
    pooled: dict[str, np.ndarray | None] = {}  # a name may be there many times
    for utterance in dict.fromkeys(u for utterances in ids.values() for u in utterances):
        pooled[utterance] = _pooled(source, folder, names, utterance)
    rows = {i: [pooled[u] for u in utterances] for i, utterances in ids.items()}
    width = next((len(row) for rows_ in rows.values() for row in rows_ if row is not None), 0)
    absent = None if missing == "mask" else np.zeros(width, np.float32)
    return {i: [absent if row is None else row for row in rows_] for i, rows_ in rows.items()}


def _pooled(source: Source, folder: Path, names: Sequence[str], utterance: str) -> np.ndarray | None:
    """The mean over time and files of an utterance's features, ``[d]``; None where it has none."""
    k = bisect.bisect_left(names, utterance)  # names sort behind their prefix
    beyond = len(utterance) if utterance[-1:].isdigit() else None
    while beyond and k < len(names) and names[k].startswith(utterance) and names[k][beyond:][:1].isdigit():
        k += 1  # a digit more is another number: dia0_utt10.npy is not of dia0_utt1
    if not utterance or k == len(names) or not names[k].startswith(utterance):
        return None
    path = folder / names[k]
    files = [p for p in listing(path) if p.suffix == ".npy"] if is_folder(path) else [path]
    arrays = []
    for file in files:
        array = _npy(source.bytes_of(file, LARGEST_UTTERANCE), file)
        if array.dtype.kind not in "biuf" or not array.ndim:
            raise InputError(f"{file}: utterance {utterance!r:.80}: no array of numbers; save one row a frame")
        arrays.append(array.reshape(math.prod(array.shape[:-1]), array.shape[-1]))
    if len({a.shape[1] for a in arrays}) > 1:
        raise InputError(f"{path}: utterance {utterance!r:.80}: files of unequal width; save rows of one width")
    frames = np.concatenate(arrays) if arrays else np.zeros((0, 0))
    with np.errstate(all="ignore"):  # what is not finite is reported as that
        return frames.mean(0, dtype=np.float64) if len(frames) else None


def dag_erc(source: Source, unlabelled: bool = False) -> Parts:
    """``dag-erc``: ``{train,dev,test}_data_roberta.json.feature``, dialogues of text, speaker, label and cls, by name.

    Utterances without a label are left out, as IEMOCAP's other files leave them out; so are dialogues of no other.
    Where labels may be absent all are kept, and one file of any name will do.
    Classes are in the order of the known set they are of, else in that of ``label_vocab.pkl``, else sorted.
    """
    fields: dict[str, dict] = {name: {} for name in ("label", "speaker", "text", "cls")}
    splits: dict[str, list[str]] = {}
    for split, path in _split_files(source, unlabelled):
        members = splits.setdefault("valid" if split == "dev" else split, [])
        for k, dialogue in enumerate(_json(source, path)):
            if not isinstance(dialogue, list) or not all(isinstance(u, dict) for u in dialogue):
                raise InputError(f"{path}: dialogue {k}: no list of utterances; give one of objects")
            if kept := [u for u in dialogue if unlabelled or isinstance(u.get("label"), str)]:
                members.append(f"{split or 'dialogue'}_{k}")
                for name, table in fields.items():
                    table[members[-1]] = [u.get(name) for u in kept]
    splits.pop("", None)
    names = _class_names(source, {name for row in fields["label"].values() for name in row if isinstance(name, str)})
    numbers = {name: k for k, aliases in enumerate(names) for name in aliases}
    labels = {
        i: [numbers[name] if isinstance(name, str) else None for name in row] for i, row in fields["label"].items()
    }
    label_names = tuple(aliases[0] for aliases in names)
    return Parts(
        "dag-erc", labels, fields["speaker"], {"text": fields["cls"]}, splits, fields["text"], None, label_names
    )


def _split_files(source: Source, unlabelled: bool) -> list[tuple[str, Path]]:
    """Split to its file; where labels may be absent, those that are there, or the one file that is none of these."""
    first = {split: next(iter(sorted(source.path.glob(f"{split}*.json.feature"))), None) for split in DAG_ERC_SPLITS}
    if not unlabelled:
        return [(split, path or source.path / f"{split}.json.feature") for split, path in first.items()]
    given = source.given
    if is_file(given) and not given.name.startswith(DAG_ERC_SPLITS):
        return [("", given)]
    found = [(split, path) for split, path in first.items() if path]
    return found or [("", path) for path in sorted(source.path.glob("*.json.feature"))[:1]]


def _json(source: Source, path: Path) -> list:
    try:
        text = source.bytes_of(path).decode("utf-8-sig")
        content = json.loads(text) if plain(text) else None
    except InputError:
        raise
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
    order = source.unpickled(vocabulary) if is_file(vocabulary) else {}
    order = order.get("itos") if isinstance(order, Mapping) else None
    order = [name for name in items_of(order) or () if isinstance(name, str)]
    return [(name,) for name in dict.fromkeys([name for name in order if name in used] + sorted(used))]
