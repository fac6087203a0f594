"""Any corpus, listed in a CSV file: dialogue, utterance, speaker, start, end, text, audio, video, label, split."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from .house import IEMOCAP_LABELS, MELD_LABELS, Checks, InputError
from .listing import SPLITS, Clip, Listing, Utterance, read_text, seconds_of, shown

REQUIRED = ("dialogue", "utterance", "speaker")
COLUMNS = (*REQUIRED, "start", "end", "text", "audio", "video", "label", "split")
LONGEST_ID = 500  # characters, as of every feature file


def read_manifest(path: Path, label_names: Sequence[str] = ()) -> Listing:
    """The utterances that a CSV file lists.

    Its first line names the columns. Times are seconds or ``HH:MM:SS.mmm`` within the audio and video files, whose
    paths are relative to the manifest. An utterance without audio has the video's sound. Turns keep their order in the
    file.

    Args:
        path: The manifest, UTF-8.
        label_names: The classes; as `_names` has them, unless given.

    Raises:
        InputError: One line with file, line, field and cure, for the first thing that is wrong.
    """
    path = Path(path)
    listing = Listing(str(path), [], {}, tuple(label_names), {"kind": "manifest", "name": path.name})
    rows = list(_rows(path, listing))
    labels = {row["label"] for _, row in rows if row["label"]}
    if not label_names:
        listing.label_names = _names(labels)
    Checks(str(path), 0).sound_names("label", listing.label_names)  # or nobody could read the file that is made
    numbers = {name: k for k, name in enumerate(listing.label_names)}
    by_dialogue: dict[str, list[Utterance]] = {}
    seen: dict[tuple[str, str], int] = {}
    for line, row in rows:
        problem = _problem(row, numbers)
        if problem:
            raise InputError(f"{path}: line {line}: {problem}")
        key = row["dialogue"], row["utterance"]
        if key in seen:
            raise InputError(
                f"{path}: line {line}: utterance: {shown(key[1])} of dialogue {shown(key[0])} is also in line "
                f"{seen[key]}; name each once"
            )
        seen[key] = line
        split = SPLITS[row["split"].lower()]
        known = listing.splits.get(row["dialogue"], "")
        listing.splits[row["dialogue"]] = split or known
        if known and split and known != split:
            raise InputError(
                f"{path}: line {line}: split: dialogue {shown(row['dialogue'])} is also in split "
                f"{known}; keep a dialogue in one split only"
            )
        by_dialogue.setdefault(row["dialogue"], []).append(_utterance(path.parent, row, numbers))
    listing.utterances = [u for turns in by_dialogue.values() for u in turns]
    return listing


def _rows(path: Path, listing: Listing) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields of each row, every column there and stripped."""
    text = read_text(path, listing.files, path.name)
    if "\0" in text:
        raise InputError(f"{path}: null characters in it, so no CSV text; save it as UTF-8 CSV")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        lacking = [name for name in REQUIRED if name not in names]
        if lacking:
            raise InputError(
                f"{path}: line 1: no column {', '.join(lacking)}; the first line names the columns, which may be "
                f"{','.join(COLUMNS)}"
            )
        if twice := [name for name in COLUMNS if names.count(name) > 1]:
            raise InputError(f"{path}: line 1: column {twice[0]} is there twice; keep one")
        if unknown := [name for name in names if name not in COLUMNS]:
            listing.notes.append(f"{path}: columns not known, and left out: {', '.join(map(shown, unknown[:10]))}")
        reader.fieldnames = names
        empty = True
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{path}: line {reader.line_num}: {'more' if None in row else 'fewer'} fields than the first line "
                    "names; quote a text that has commas"
                )
            empty = False
            yield reader.line_num, {name: (row.get(name) or "").strip() for name in COLUMNS}
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: no CSV ({error}); mend its quotes") from None
    if empty:
        raise InputError(f"{path}: no utterance under the first line; list one a line")


def _names(labels: set[str]) -> tuple[str, ...]:
    """The classes of a file that names these labels: the known set they are of, in its order, else sorted."""
    for known in (IEMOCAP_LABELS, MELD_LABELS):
        if labels and labels <= set(known):
            return known
    return tuple(sorted(labels))


def _problem(row: dict[str, str], numbers: dict[str, int]) -> str:
    """What is wrong with a row, with its cure; the empty string where nothing is."""
    for name in REQUIRED:
        if not row[name]:
            return f"{name}: empty; give every utterance one"
        if len(row[name]) > LONGEST_ID:
            return f"{name}: more than {LONGEST_ID} characters; give a shorter name"
    times = {}
    for name in ("start", "end"):
        times[name] = seconds_of(row[name]) if row[name] else None
        if row[name] and times[name] is None:
            return f"{name}: {shown(row[name])} is no time; give seconds, or HH:MM:SS.mmm"
    if times["end"] is not None and times["end"] < (times["start"] or 0):
        return f"end: {row['end']} is before the start; swap them"
    if row["label"] and row["label"] not in numbers:
        return f"label: {shown(row['label'])} is no class; the classes are {', '.join(map(shown, numbers))}"
    if row["split"].lower() not in SPLITS:
        return f"split: {shown(row['split'])} is none of train, valid, test; choose one, or leave it empty"
    return ""


def _utterance(folder: Path, row: dict[str, str], numbers: dict[str, int]) -> Utterance:
    start, end = seconds_of(row["start"]) or 0.0, seconds_of(row["end"])
    audio = row["audio"] or row["video"]
    return Utterance(
        row["dialogue"],
        row["utterance"],
        row["speaker"],
        row["text"],
        Clip(str(folder / audio), start, end) if audio else None,
        Clip(str(folder / row["video"]), start, end) if row["video"] else None,
        numbers[row["label"]] if row["label"] else None,
    )
