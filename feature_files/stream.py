"""Writing a container that is larger than memory, and joining the parts that several machines wrote.

Shapes use N utterances of all dialogues and d features.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import safe_open

from dataloader import MODALITIES
from feature_files.checks import Parts
from feature_files.container import COLUMNS, FORMAT, open_container
from files import InputError, replacing

BLOCK = 2**12  # utterances that are copied at a time when parts are joined
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def stream_container(
    path: str | Path,
    about: Mapping[str, Any],
    labels: np.ndarray,
    features: Mapping[str, tuple[int, Iterable[np.ndarray]]],
    *,
    finite: bool,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a container block by block, the same bytes every time.

    The header, whose length is known beforehand, is written twice: the second time with the tensors' checksums. It is
    not left to the safetensors library, which wants all tensors at once and orders metadata by chance.

    Args:
        path: The file, replaced whole or not at all.
        about: ``dialogues`` (pairs of id and length), ``speakers``, ``sentences``, ``utterances``, ``splits`` and
            ``label_names``, as the layout has them.
        labels: Classes ``[N]``, int64.
        features: Modality to its width d and its rows, in blocks ``[k, d]`` that make ``[N, d]`` in all.
        finite: Whether no value is NaN or infinite.
        provenance: Where it came from, kept in the file for whoever asks.

    Raises:
        WriteError: If the file cannot be written.
        ValueError: If the rows are not as many, as wide or as finite as was said.
    """
    count = len(labels)
    present = [m for m in MODALITIES if m in features]
    tensors = {"labels": ("I64", (count,), [labels.astype("<i8")])}
    tensors |= {m: ("F32", (count, features[m][0]), features[m][1]) for m in sorted(present)}

    def header(sums: Mapping[str, str]) -> bytes:
        text = {
            "dialogues": [list(pair) for pair in about["dialogues"]],
            **{name: list(about[name]) for name in COLUMNS},
            "splits": {name: list(ids) for name, ids in about["splits"].items()},
            "label_names": list(about["label_names"]),
            "finite": finite,
            "sha256": {name: sums.get(name, "0" * 64) for name in (*present, "labels")},
            "provenance": dict(provenance or {}),
        }
        corpus = _HALF_PAIR.sub("\ufffd", json.dumps(text, ensure_ascii=False))  # names of files may be no text
        entries: dict[str, Any] = {"__metadata__": {"corpus": corpus, "format": FORMAT}}
        end = 0
        for name, (kind, shape, _) in tensors.items():
            begin, end = end, end + int(np.prod(shape)) * (8 if kind == "I64" else 4)
            entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
        data = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        data += b" " * (-len(data) % 8)  # tensors begin at a multiple of 8
        return len(data).to_bytes(8, "little") + data

    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(header({}))
        sums = {name: _write(stream, name, shape, blocks, finite) for name, (_, shape, blocks) in tensors.items()}
        stream.seek(0)
        stream.write(header(sums))


def _write(stream: BinaryIO, name: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray], finite: bool) -> str:
    """Write a tensor, and return its SHA-256."""
    digest, rows = hashlib.sha256(), 0
    for block in blocks:
        data = np.ascontiguousarray(block, block.dtype if name == "labels" else "<f4")
        if data.shape[1:] != shape[1:] or (finite and not np.isfinite(data).all()):
            raise ValueError(f"{name}: a block {list(data.shape)} for {list(shape)}, or a value that is no number")
        digest.update(data)
        stream.write(data)
        rows += len(data)
    if rows != shape[0]:
        raise ValueError(f"{name}: {rows} rows for {shape[0]} utterances")
    return digest.hexdigest()


def merge(paths: Sequence[Path], out: str | Path) -> int:
    """Join the parts of one corpus that ``extract_features.py --shard`` wrote, in the order of their numbers.

    Args:
        paths: All of them, in any order.
        out: The file, replaced whole or not at all.

    Returns:
        How many utterances it has.

    Raises:
        InputError: If a part is missing, is there twice, or is of another corpus or other settings.
        WriteError: If the file cannot be written.
    """
    parts: dict[int, tuple[Path, Parts]] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"{path}: no such file; name the parts that --shard wrote")
        opened = open_container(path, verify=True)[0]
        shard = opened.provenance.get("shard")
        numbers = [shard.get(key) for key in ("index", "of")] if isinstance(shard, Mapping) else [None]
        fit = all(type(k) is int for k in numbers) and 1 <= numbers[0] <= numbers[1]
        if not fit or not _counts(shard.get("lacking", {})):
            raise InputError(f"{path}: provenance: no part that --shard wrote; use 'join' for whole files")
        common = {k: v for k, v in opened.provenance.items() if k != "shard"}
        common |= {"of": shard["of"], "listing": shard.get("listing"), "label_names": opened.label_names}
        if first is None:
            first = path, common
        elif common != first[1]:
            field = next(k for k in {**common, **first[1]} if common.get(k) != first[1].get(k))
            raise InputError(f"{path}: provenance: {field} is another than in {first[0]}; extract both by one command")
        if shard["index"] in parts:
            raise InputError(
                f"{path}: part {shard['index']} is also in {parts[shard['index']][0]}; name each part once"
            )
        parts[shard["index"]] = path, opened
    if first is None:
        raise InputError("merge: no parts; name the files that --shard wrote")
    if holes := list(islice((k for k in range(1, first[1]["of"] + 1) if k not in parts), 20)):
        raise InputError(f"{first[0]}: parts {', '.join(map(str, holes))} of {first[1]['of']} are missing; name all")

    members = [parts[k][1] for k in sorted(parts)]
    seen: dict[str, Path] = {}
    for path, opened in parts.values():
        for i in opened.labels:
            if i in seen:
                raise InputError(f"{path}: dialogue {i!r:.80} is also in {seen[i]}; extract the parts by one command")
            seen[i] = path
    widths = {
        m: max((next(iter(part.features[m].values())).shape[1] for part in members if m in part.features), default=0)
        for m in MODALITIES
    }
    about = {
        "dialogues": [(i, len(row)) for part in members for i, row in part.labels.items()],
        **{name: [x for part in members for row in getattr(part, name).values() for x in row] for name in COLUMNS},
        "splits": {
            name: [i for part in members for i in part.splits.get(name, ())]
            for name in ("train", "valid", "test")
            if any(part.splits.get(name) for part in members)
        },
        "label_names": members[0].label_names,
    }
    present = [m for m in MODALITIES if widths[m]]
    whole = all(
        _width(part, m) == widths[m] and all(np.isfinite(rows).all() for rows in part.features[m].values())
        for part in members
        for m in present
    )
    labels = np.concatenate([row for part in members for row in part.labels.values()])
    features = {m: (widths[m], _blocks(members, m, widths[m])) for m in present}
    provenance = {k: v for k, v in members[0].provenance.items() if k != "shard"}
    shards = [part.provenance["shard"] for part in members]
    provenance["media"] = media_digest({k: v for path, _ in parts.values() for k, v in _media(path).items()})
    provenance["lacking"] = {}
    for shard in shards:
        for modality, reasons in shard.get("lacking", {}).items():
            counts = provenance["lacking"].setdefault(modality, {})
            for reason, count in reasons.items():
                counts[reason] = counts.get(reason, 0) + count
    stream_container(out, about, labels, features, finite=whole, provenance=provenance)
    return len(labels)


def _counts(lacking: Any) -> bool:
    """Whether this is modality to reason to how many utterances lack it."""
    return isinstance(lacking, Mapping) and all(
        isinstance(reasons, Mapping) and all(type(count) is int for count in reasons.values())
        for reasons in lacking.values()
    )


def media_digest(files: Mapping[str, str]) -> dict[str, Any]:
    """How many files there are, and one checksum for all: that of their sorted list as ``sha256sum`` prints it.

    Args:
        files: Name to SHA-256.
    """
    lines = (f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return {
        "files": len(files),
        "sha256": hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest(),
    }


def _media(path: Path) -> dict[str, str]:
    """Each media file of a part, which has been opened, with its SHA-256."""
    with safe_open(path, framework="numpy") as opened:
        media = json.loads(opened.metadata()["corpus"])["provenance"]["shard"].get("media")
    return media if isinstance(media, dict) else {}


def _width(part: Parts, modality: str) -> int:
    return next(iter(part.features[modality].values())).shape[1] if modality in part.features else 0


def _blocks(parts: Iterable[Parts], modality: str, width: int) -> Iterator[np.ndarray]:
    """The rows of a modality over all parts; of NaN where a part has none."""
    for part in parts:
        for i, row in part.labels.items():
            if _width(part, modality) == width:
                yield part.features[modality][i]
            else:
                yield np.full((len(row), width), np.nan, np.float32)
