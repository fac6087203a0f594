"""What is to be encoded: utterances in the order they were said, and where their sound and picture are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .house import InputError

SPLITS = {"train": "train", "valid": "valid", "dev": "valid", "test": "test", "": ""}


class Clip(NamedTuple):
    """A piece of a sound or video file.

    Attributes:
        path: The file.
        start: Where it begins, in seconds.
        end: Where it ends, in seconds; None for the file's end.
        side: ``left`` or ``right`` half of the picture, or the empty string for all of it.
        expected: How long the whole file should be, in seconds; None where nobody says. A file that is much shorter or
            longer is of another utterance.
    """

    path: str
    start: float = 0.0
    end: float | None = None
    side: str = ""
    expected: float | None = None


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance.

    Attributes:
        dialogue: Its dialogue's id.
        name: Its own.
        speaker: Who speaks.
        text: What was said; empty where nobody wrote it down.
        audio: Its sound; None where there is none.
        video: Its picture; None where there is none.
        label: Its class; None where nobody gave one.
        kept: Whether it goes into the file; if not, it is context for others.
        absent: Modality to why it lacks it, as far as the reader knows.
    """

    dialogue: str
    name: str
    speaker: str
    text: str = ""
    audio: Clip | None = None
    video: Clip | None = None
    label: int | None = None
    kept: bool = True
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Listing:
    """A corpus before its features.

    Attributes:
        name: Where it is, for messages.
        utterances: Dialogues after one another, each in the order of its turns.
        splits: Dialogue id to ``train``, ``valid``, ``test`` or the empty string.
        label_names: One name a class.
        about: What the file's provenance says of the source.
        notes: Lines for the user: what was left out, and why.
        files: Name of each file of the listing itself (not of media) to its SHA-256.
    """

    name: str
    utterances: list[Utterance]
    splits: dict[str, str]
    label_names: tuple[str, ...]
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def split_ids(self) -> dict[str, list[str]]:
        """Split to dialogue ids, for those splits that have any."""
        kept = dict.fromkeys(u.dialogue for u in self.utterances if u.kept)
        ids = {split: [i for i in kept if self.splits.get(i) == split] for split in ("train", "valid", "test")}
        return {split: members for split, members in ids.items() if members}

    def sha256(self) -> str:
        """A checksum of what is listed, whatever the media hold."""
        digest = hashlib.sha256(repr((self.label_names, sorted(self.splits.items()))).encode())
        for u in self.utterances:
            digest.update(repr((u.dialogue, u.name, u.speaker, u.text, u.label, u.kept)).encode())
        return digest.hexdigest()


def shown(value: Any, most: int = 80) -> str:
    """Text of a file as a terminal may show it: quoted, cut, and with control characters escaped."""
    return repr(f"{value!s:.{most}}")


def read_text(path: Path, files: dict[str, str], name: str, encodings: tuple[str, ...] = ("utf-8-sig",)) -> str:
    """A text file, its checksum put down under a name.

    Args:
        path: The file.
        files: Where to put the checksum down.
        name: Under which name.
        encodings: Those to try, in this order.

    Raises:
        InputError: If it cannot be read, is empty, or is in none of these encodings.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); check it") from None
    if not data.strip():
        raise InputError(f"{path}: the file is empty; get it again")
    files[name] = hashlib.sha256(data).hexdigest()  # of these bytes: a pipe has none the second time
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            where = error.start
    line = data[:where].count(b"\n") + 1
    raise InputError(f"{path}: line {line}: not {encodings[0].removesuffix('-sig').upper()} text; save it as that")


def seconds_of(value: str) -> float | None:
    """Seconds from ``12.5``, ``1:02.5``, ``00:01:02,500`` or ``HH:MM:SS.mmm``; None where it is no time."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:[.,]\d*)?)", value.strip(), re.ASCII)
    if not match or len(value) > 40:
        return None
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds.replace(",", "."))
