"""Our own container, the layout ``gan-ffn``, which is opened rather than read.

A container is a safetensors file: one tensor a modality ``[N, d]`` and the ``labels`` ``[N]``, where N utterances of
all dialogues follow one another, and in its metadata a JSON of everything that is no number. safetensors is a header
and raw bytes, so opening maps the tensors into memory and reads none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dataloader import MODALITIES, Corpus
from feature_files.checks import Parts
from feature_files.sources import first_bytes, sha256_of
from files import InputError, printable

FORMAT = "gan-ffn-features-1"
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64, "U8": np.uint8}
BRACKETS = 1000  # of the smallest JSON
LONGEST_PROVENANCE = 100_000  # characters
# What of an encoder decides its features, of all that a file's provenance says of it.
ENCODER_KEYS = ("model", "revision", "layers", "context", "pooling", "face", "pictures_a_second", "most_pictures")
COLUMNS = ("speakers", "sentences", "utterances")


def write_container(corpus: Corpus, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a corpus as our container, with nothing lost.

    Args:
        corpus: What to write.
        path: The file, replaced whole or not at all.
        provenance: Where it came from, kept in the file for whoever asks.

    Raises:
        InputError: If the file cannot be written.
    """
    from feature_files.stream import stream_container

    dialogues = list(corpus.dialogues.values())
    about = {
        "dialogues": [(d.id, len(d)) for d in dialogues],
        **{name: [x for d in dialogues for x in getattr(d, name)] for name in COLUMNS},
        "splits": corpus.splits,
        "label_names": corpus.label_names,
    }
    labels = np.concatenate([d.labels for d in dialogues]).astype(np.int64)
    features = {m: (width, [d.features[m] for d in dialogues]) for m, width in corpus.dims.items()}
    finite = all(np.isfinite(d.features[m]).all() for m in corpus.dims for d in dialogues)
    stream_container(path, about, labels, features, finite=finite, provenance=provenance)


def is_container(path: Path) -> bool:
    """Whether a file begins as safetensors does: the length of its header, and the header's opening brace."""
    start = first_bytes(path, 9)
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") < path.stat().st_size


def open_container(path: Path, verify: bool = True, unlabelled: bool = False) -> tuple[Parts, int, str]:
    """The fields of a container, its size, and its checksum.

    The checksum is that of the header, which holds that of every tensor, so that these need not be read; of a file
    that lacks them, its own. Features are views of the file, copied on writing.

    Args:
        path: The file.
        verify: Read the tensors, compare their checksums, and leave it to `Checks` to look at every value. Without, the
            file's word is taken that they are finite.
        unlabelled: Whether it need not have labels, names of classes and splits.

    Raises:
        InputError: If the file is no container, or damaged.
    """

    def bad(field: str, problem: str) -> InputError:
        return InputError(f"{path}: {printable(field, 60)}: {problem}; write the file anew with 'convert'")

    try:
        with safe_open(path, framework="numpy") as opened:  # checks that the tensors fill the file
            metadata = opened.metadata() or {}
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            entries = {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise bad("header", f"a damaged safetensors file ({ascii(str(error))[1:-1]:.100})") from None
    try:
        about = json.loads(metadata["corpus"]) if plain(metadata["corpus"]) else None
        lengths = dict(about["dialogues"])
        if unlabelled:
            about = {"splits": {}, "label_names": []} | about
        splits, names = dict(about["splits"]), about["label_names"]
        columns = {name: about[name] for name in COLUMNS}
        fit = all(type(n) is int and 1 <= n <= len(metadata["corpus"]) for n in lengths.values())
        ends = list(accumulate(lengths.values())) if fit else []
        sums = dict(about.get("sha256") or {})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError):
        raise bad("corpus", "no metadata of a corpus, or not all of it") from None
    if metadata.get("format") != FORMAT:
        raise bad("format", f"{str(metadata.get('format'))!r:.40} where {FORMAT!r} belongs")
    if not ends or len(lengths) != len(about["dialogues"]):
        raise bad("dialogues", "none, an id twice or a length that is no number from 1 up")
    total = ends[-1]
    if not isinstance(names, list) or not (names or unlabelled) or not all(isinstance(name, str) for name in names):
        raise bad("label_names", "no names of classes")
    if not all(isinstance(x, list) and len(x) == total for x in columns.values()):
        raise bad("speakers, sentences or utterances", f"not one for each of {total} utterances")

    with path.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
    start, tensors = 8 + len(header), {}
    for name, (kind, shape) in entries.items():  # in the order of the file, which they fill
        if kind not in DTYPES or shape[:1] != (total,) or len(shape) != (1 if name == "labels" else 2):
            raise bad(name, f"a tensor of {kind} {list(shape)} for {total} utterances")
        dtype = np.dtype(DTYPES[kind])
        try:  # it looks at the file's size: pages behind its end would kill us with SIGBUS when they are read
            mapped = np.memmap(path, dtype, "c", start, shape) if np.prod(shape) else np.zeros(shape, dtype)
        except (OSError, ValueError):
            raise bad(name, "the file became shorter while it was opened") from None
        start += mapped.nbytes
        tensors[name] = np.asarray(mapped)
        if verify and name in sums and hashlib.sha256(tensors[name]).hexdigest() != sums[name]:
            raise bad(name, "its checksum is not the one written down")
    if "labels" not in tensors and not unlabelled:
        raise InputError(f"{path}: labels: no such tensor; add one to train on, or use the file with predict.py")

    bounds = list(zip(lengths, [0, *ends[:-1]], ends, strict=True))
    by_dialogue = {name: {i: x[a:b] for i, a, b in bounds} for name, x in (tensors | columns).items()}
    parts = Parts(
        layout="gan-ffn",
        labels=by_dialogue.get("labels"),
        speakers=by_dialogue["speakers"],
        features={m: by_dialogue[m] for m in MODALITIES if m in tensors},
        splits=splits,
        sentences=by_dialogue["sentences"],
        utterances=by_dialogue["utterances"],
        label_names=tuple(names),
        finite=not verify and about.get("finite") is True and entries.keys() <= sums.keys(),
        provenance=_provenance(about.get("provenance")),
    )
    digest = hashlib.sha256(header).hexdigest() if entries.keys() <= sums.keys() else sha256_of(path)
    return parts, path.stat().st_size, digest


def other_encoder(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first of `ENCODER_KEYS` by which the encoders of two provenances differ; None where their features fit."""
    named = str(now.get("revision")).startswith("as ")  # the package has it: one for all its sets of features
    keys = (*ENCODER_KEYS, "encoder") if named else ENCODER_KEYS
    return next((key for key in keys if before.get(key) != now.get(key)), None)


def plain(text: str) -> bool:
    """Whether a JSON has no more brackets than one of its length needs, each of which becomes an object of its own."""
    return text.count("[") + text.count("{") <= BRACKETS + len(text) // 4


def _provenance(value: Any) -> dict[str, Any]:
    """What a file says of where it came from, if that may be shown; of a part, its media as one checksum."""
    from feature_files.stream import media_digest

    try:
        shard = value.get("shard")
        if isinstance(shard, dict) and isinstance(shard.get("media"), dict):
            value = value | {"shard": shard | {"media": media_digest(shard["media"])}}
        fit = len(json.dumps(value)) <= LONGEST_PROVENANCE
    except (AttributeError, ValueError, RecursionError):
        fit = False
    return value if fit else {}
