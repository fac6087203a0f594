"""IEMOCAP as its release has it: Session1 to Session5, each with ``dialog`` and ``sentences``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .house import IEMOCAP_LABELS, InputError
from .listing import Clip, Listing, Utterance, read_text, shown

SESSIONS = (1, 2, 3, 4, 5)
SIX = {"hap": 0, "sad": 1, "neu": 2, "ang": 3, "exc": 4, "fru": 5}
# Four classes are the first four of six (COGMEN, GraphSmile), or with excited counted as happy (SUPERB, EmoBox).
CLASSES = {
    "6": SIX,
    "4": {k: v for k, v in SIX.items() if v < 4},
    "4-excited": {"hap": 0, "exc": 0, "sad": 1, "neu": 2, "ang": 3},
}
EVALUATION = re.compile(r"\[\s*(\d+\.?\d*)\s*-\s*(\d+\.?\d*)\s*\]\s+(Ses\w+)\s+(\w+)\s+\[", re.ASCII)
ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")  # Windows' dashes, quotes and dots, which Latin-1 takes for controls
TRANSCRIPT = re.compile(r"(Ses\w+)\s*(?:\[[\d.\s-]*\])?\s*:\s*(.*)", re.ASCII)


def read_iemocap(
    root: Path, classes: str = "6", keep_unlabelled: bool = False, sessions: Sequence[int] = SESSIONS
) -> Listing:
    """The utterances of ``IEMOCAP_full_release``: sessions 1 to 4 train, session 5 tests.

    Labels and times are those of ``dialog/EmoEvaluation``, texts those of ``dialog/transcriptions``, sounds the files
    of ``sentences/wav``, pictures a half of ``dialog/avi/DivX``: the actor whom the recording is named after is on the
    left (``Ses01F_…``: the woman).

    Args:
        root: The folder that has Session1.
        classes: ``6``, ``4`` or ``4-excited``; see `CLASSES`.
        keep_unlabelled: Keep utterances of no such class, as context without a label.
        sessions: Those that must be there.

    Raises:
        InputError: If a session, or a part of one that nothing can be done without, is not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; name IEMOCAP_full_release")
    absent = [k for k in sessions if not (root / f"Session{k}" / "dialog" / "EmoEvaluation").is_dir()]
    if absent:
        have = ",".join(str(k) for k in sessions if k not in absent)
        cure = f", or extract what is there with --sessions {have}" if have else ""
        raise InputError(
            f"{root}: Session{absent[0]}/dialog/EmoEvaluation: no such folder; copy the whole release{cure}"
        )
    numbers = CLASSES[classes]
    names = IEMOCAP_LABELS if classes == "6" else IEMOCAP_LABELS[:4]
    listing = Listing(str(root), [], {}, names, {"kind": "iemocap", "name": root.name, "classes": classes})
    for k in sessions:
        session = root / f"Session{k}"
        # Copies made on a Mac have a ``._`` file beside each.
        evaluations = sorted(p for p in (session / "dialog" / "EmoEvaluation").glob("Ses*.txt") if p.is_file())
        if not evaluations:
            raise InputError(f"{session / 'dialog' / 'EmoEvaluation'}: no Ses*.txt; copy the whole release")
        for path in evaluations:
            listing.splits[path.stem] = "test" if k == 5 else "train"
            listing.utterances += _dialogue(root, session, path, numbers, keep_unlabelled, listing)
    labelled = sum(u.label is not None for u in listing.utterances)
    rest = len(listing.utterances) - labelled
    what = "kept as context without a label" if keep_unlabelled else "left out; --keep-unlabelled keeps them as context"
    listing.notes.append(
        f"{root}: {labelled} of {len(listing.utterances)} utterances are of the {len(names)} classes "
        f"{', '.join(names)}; {rest} are of none, and {what}"
    )
    return listing


def _dialogue(
    root: Path, session: Path, path: Path, numbers: dict[str, int], keep_unlabelled: bool, listing: Listing
) -> list[Utterance]:
    """The utterances of a dialogue in the order they were said."""
    dialogue = path.stem
    texts = _texts(session / "dialog" / "transcriptions" / path.name, root, listing)
    video = session / "dialog" / "avi" / "DivX" / f"{dialogue}.avi"
    turns = []
    evaluated = read_text(path, listing.files, path.relative_to(root).as_posix(), ENCODINGS)
    for line in evaluated.splitlines():
        if not (match := EVALUATION.match(line)):
            continue  # a rater's line, or the heading
        start, end, name, emotion = match.groups()
        if not name.startswith(f"{dialogue}_"):
            listing.notes.append(f"{path}: {shown(name)} is of another dialogue, and left out")
            continue
        speaker = name[len(dialogue) + 1 : len(dialogue) + 2]
        label = numbers.get(emotion)
        audio = session / "sentences" / "wav" / dialogue / f"{name}.wav"
        side = "left" if speaker == dialogue[5:6] else "right"
        utterance = Utterance(
            dialogue,
            name,
            speaker,
            texts.get(name, ""),
            Clip(str(audio), expected=float(end) - float(start)),
            Clip(str(video), float(start), float(end), side),
            label,
            kept=label is not None or keep_unlabelled,
            absent={} if name in texts else {"text": "not in the transcription"},
        )
        turns.append((float(start), utterance))
    if not turns:
        raise InputError(
            f"{path}: no line such as '[6.2901 - 8.2357] {dialogue}_F000 neu [2.5, 2.5, 2.5]'; get it again"
        )
    names = [u.name for _, u in turns]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: utterance {shown(twice)} is there twice; get the file again")
    return [u for _, u in sorted(turns, key=lambda turn: turn[0])]


def _texts(path: Path, root: Path, listing: Listing) -> dict[str, str]:
    """What was said by utterance; lines that name none, such as ``M: [BREATHING]``, are counted in a note."""
    if not path.is_file():
        listing.notes.append(f"{path}: no such file; this dialogue has no text")
        return {}
    text = read_text(path, listing.files, path.relative_to(root).as_posix(), ENCODINGS)
    found: dict[str, str] = {}
    other = []
    for number, line in enumerate(text.splitlines(), 1):
        if match := TRANSCRIPT.match(line.strip()):
            found.setdefault(match.group(1), match.group(2).strip())
        elif line.strip():
            other.append(number)
    if other:
        listing.notes.append(f"{path}: line {other[0]}: names no utterance; {len(other)} such lines are left out")
    return found
