"""MELD as its archive unpacks: a CSV file and a folder of clips for each of train, dev and test."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from .house import MELD_LABELS, InputError
from .listing import Clip, Listing, Utterance, read_text, seconds_of, shown

SPLITS = {
    "train": ("train_sent_emo.csv", "train_splits", "train"),
    "dev": ("dev_sent_emo.csv", "dev_splits_complete", "valid"),
    "test": ("test_sent_emo.csv", "output_repeated_splits_test", "test"),
}
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID", "StartTime", "EndTime")
# The CSV files hold bytes of Windows' code page as if they were Unicode: quotes and dashes that do not print.
MOJIBAKE = {k: bytes([k]).decode("cp1252", "ignore") for k in range(0x80, 0xA0)}


def read_meld(root: Path) -> Listing:
    """The utterances of ``MELD.Raw``.

    Each has a clip of its own, which is its sound and its picture. A clip that is not there, cannot be decoded, or is
    more than twice or less than half as long as the CSV file says (and by 2 s at least) is missing.

    Args:
        root: The folder, its archives unpacked in it: the CSV files and folders of clips may lie deeper.

    Raises:
        InputError: If a CSV file is not there or no such file, or no folder of clips is there.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; name MELD.Raw")
    listing = Listing(str(root), [], {}, MELD_LABELS, {"kind": "meld", "name": root.name})
    places = {}
    for split, (table, clips, _) in SPLITS.items():
        found = next(iter(sorted(root.glob(table)) or sorted(root.glob(f"*/{table}"))), None)
        if found is None:
            raise InputError(f"{root}: no {table}; unpack the archives in it, or copy the CSV file there")
        folders = [*sorted(root.glob(clips)), *sorted(root.glob(f"*/{clips}"))]
        folder = next((path for path in folders if path.is_dir()), None)
        if folder is None:
            listing.notes.append(f"{root}: no folder {clips}; {split} has no sound and no pictures")
        places[split] = found, folder
    if not any(folder for _, folder in places.values()):
        raise InputError(f"{root}: no folder {SPLITS['train'][1]}; unpack the archives of clips in it")
    for split, (table, folder) in places.items():
        listing.utterances += _split(root, split, table, folder, listing)
    return listing


def _split(root: Path, split: str, path: Path, folder: Path | None, listing: Listing) -> list[Utterance]:
    text = read_text(path, listing.files, path.relative_to(root).as_posix(), ("utf-8-sig", "cp1252", "latin-1"))
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if lacking := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise InputError(f"{path}: line 1: no column {', '.join(lacking)}; get the file again")
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: no CSV ({error}); get the file again") from None
    there = {clip.name for clip in folder.iterdir()} if folder else set()
    turns: dict[str, dict[int, Utterance]] = {}
    for line, row in rows:
        try:
            dialogue, number = int(row["Dialogue_ID"]), int(row["Utterance_ID"])
        except (TypeError, ValueError):
            raise InputError(
                f"{path}: line {line}: Dialogue_ID or Utterance_ID: no number; get the file again"
            ) from None
        emotion = (row["Emotion"] or "").strip().lower()
        if emotion not in MELD_LABELS:
            raise InputError(
                f"{path}: line {line}: Emotion: {shown(emotion)} is no class; the classes are {', '.join(MELD_LABELS)}"
            )
        members = turns.setdefault(f"{split}_dia{dialogue}", {})
        if number in members:
            raise InputError(
                f"{path}: line {line}: Utterance_ID: {number} of dialogue {dialogue} is there twice; keep one"
            )
        start, end = seconds_of(row["StartTime"] or ""), seconds_of(row["EndTime"] or "")
        expected = end - start if start is not None and end is not None and end > start else None
        name = f"dia{dialogue}_utt{number}.mp4"
        clip = Clip(str(folder / name), expected=expected) if name in there else None
        members[number] = Utterance(
            f"{split}_dia{dialogue}",
            f"{split}_dia{dialogue}_utt{number}",
            (row["Speaker"] or "").strip().translate(MOJIBAKE) or "speaker",
            (row["Utterance"] or "").strip().translate(MOJIBAKE),
            clip,
            clip,
            MELD_LABELS.index(emotion),
            absent={}
            if clip
            else dict.fromkeys(("acoustic", "visual"), "no such clip" if folder else "no folder of clips"),
        )
    if not turns:
        raise InputError(f"{path}: no utterance under the first line; get the file again")
    listing.splits |= dict.fromkeys(turns, SPLITS[split][2])
    return [members[k] for members in turns.values() for k in sorted(members)]
