"""One's own recording with its transcript: SRT, WebVTT or TextGrid, or what a speech recogniser hears."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .house import InputError
from .listing import Clip, Listing, Utterance, read_text, shown
from .models import need

if TYPE_CHECKING:
    from .recogniser import Segments

ENDINGS = (".srt", ".vtt", ".TextGrid", ".textgrid")
SOUND = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff")  # no pictures in these
NAMED = re.compile(r"\s*(?:\[([^\]\n]{1,60})\]:?|([^\W\d_][^:\n]{0,59}):)\s+(.*)", re.DOTALL)  # [Name] text, Name: text
LINE_END = re.compile(r"\r\n|\r|\n")
TIMES = re.compile(r"\s*(?:\d+:)?\d{1,2}:\d{1,2}\.\d{1,3}\s*-->")  # of WebVTT, as its library takes them
TAG = re.compile(r"<[^>]*>")
VOICE = re.compile(r"<v(?:\.[^\s>]+)?\s+([^>]*)>")  # <v Name>, <v.loud Name>


class Turn(NamedTuple):
    """A line of a transcript: who from when to when (in seconds) said what; no speaker where it names none."""

    speaker: str
    start: float
    end: float
    text: str


def read_recording(
    path: Path,
    speakers: int | None = None,
    transcript: Path | None = None,
    label_names: Sequence[str] = (),
    transcribe: Callable[[Path], tuple[Segments, dict[str, Any]]] | None = None,
) -> Listing:
    """A recording as one dialogue of one utterance a line of its transcript.

    Args:
        path: A sound or video file.
        speakers: How many there are, to be checked; nobody guesses who speaks.
        transcript: An ``.srt``, ``.vtt`` or ``.TextGrid`` file; the one of the recording's name, unless given.
        label_names: The classes, none of which is given here.
        transcribe: What hears the recording in place of a transcript, such as `recogniser.recognise`; all of it is then
            said by one speaker, since recognisers tell none apart.

    Raises:
        InputError: If either file is not there, or the transcript has no times or does not say who speaks.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a sound or video file")
    listing = Listing(str(path), [], {path.stem: ""}, tuple(label_names), {"kind": "recording", "name": path.name})
    if transcribe is not None:
        if speakers not in (None, 1):
            raise InputError(
                f"{path}: --speakers {speakers}: a recogniser does not tell who speaks; give a transcript that does, "
                "or --speakers 1"
            )
        segments, listing.about["transcript"] = transcribe(path)
        if not segments:
            raise InputError(f"{path}: nothing is said in it, as far as --transcribe hears; give a transcript")
        return _listed(listing, path, [Turn("speaker", *segment) for segment in segments])
    if transcript is None:
        beside = [path.with_suffix(ending) for ending in ENDINGS]
        transcript = next((one for one in beside if one.is_file()), None)
        if transcript is None:
            raise InputError(
                f"{path}: no transcript beside it; write one as {beside[0].name}, .vtt or .TextGrid, name it by "
                "--transcript, or have it written by --transcribe transformers:WHISPER_MODEL"
            )
    read = {".srt": _srt, ".vtt": _webvtt, ".textgrid": _textgrid}.get(transcript.suffix.lower())
    if read is None:
        raise InputError(f"{transcript}: no transcript of a known kind; give .srt, .vtt or .TextGrid")
    turns = sorted(read(transcript, listing.files), key=lambda turn: (turn.start, turn.end))
    if not turns:
        raise InputError(f"{transcript}: no line with a text; transcribe the recording")
    names = list(dict.fromkeys(turn.speaker for turn in turns if turn.speaker))
    if not names and speakers == 1:
        names = ["speaker"]
        turns = [turn._replace(speaker="speaker") for turn in turns]
    if nameless := next((turn for turn in turns if not turn.speaker), None):
        cure = "write 'Name: text' (in WebVTT <v Name>), or give --speakers 1"
        if speakers == 1:  # what others have before a colon may be no name
            cure = f"others do, such as {shown(names[0])}; let all lines name one, or none"
        raise InputError(f"{transcript}: the line at {nameless.start:.2f} s names no speaker; {cure}")
    if speakers is not None and len(names) != speakers:
        raise InputError(
            f"{transcript}: {len(names)} speakers ({', '.join(map(shown, names[:10]))}), and --speakers says "
            f"{speakers}; correct one of them"
        )
    return _listed(listing, path, turns)


def _listed(listing: Listing, path: Path, turns: Sequence[Turn]) -> Listing:
    """The listing with an utterance a turn."""
    for k, turn in enumerate(turns):
        clip = Clip(str(path), turn.start, turn.end)
        pictures = None if path.suffix.lower() in SOUND else clip
        listing.utterances.append(Utterance(path.stem, f"{path.stem}_{k:04d}", turn.speaker, turn.text, clip, pictures))
    return listing


def _srt(path: Path, files: dict[str, str]) -> list[Turn]:
    library = need("--recording", "srt")
    text = read_text(path, files, path.name).replace("\r\n", "\n")
    timeless: int | None = None
    try:
        lines = list(library.parse(text))
    except (library.SRTParseError, library.TimestampParseError, ValueError) as error:
        timeless = getattr(error, "expected_start", 0) or 0
    else:
        # The library takes a block without times for more of the one before it.
        if joined := next((x.content for x in lines if "\n\n" in x.content), None):
            timeless = text.index(joined) + joined.index("\n\n") + 2
    if timeless is not None:
        raise InputError(
            f"{path}: line {text[:timeless].count(chr(10)) + 1}: no times such as 00:00:01,000 --> 00:00:02,500 before "
            "a text; give every line its times"
        )
    texts = ((x, TAG.sub("", x.content)) for x in lines)
    return _named(path, [Turn("", x.start.total_seconds(), x.end.total_seconds(), y) for x, y in texts if y.strip()])


def _webvtt(path: Path, files: dict[str, str]) -> list[Turn]:
    library = need("--recording", "webvtt", "webvtt-py")
    text = read_text(path, files, path.name)
    try:
        captions = library.from_string(text).captions
    except Exception as error:  # the library raises its own kinds, and ValueError
        raise InputError(f"{path}: no WebVTT ({shown(error)}); give every line its times") from None
    # The library passes over a block without times, or with others, as WebVTT has it.
    blocks = [
        list(lines) for there, lines in groupby(enumerate(LINE_END.split(text), 1), lambda x: x[1] != "") if there
    ]
    for block in blocks[1:]:
        number, first = block[0]
        timed = any(TIMES.match(line) for _, line in block[:2])  # a name of its own may stand before
        if not timed and first.strip() and not first.startswith(("NOTE", "STYLE", "REGION")):
            raise InputError(
                f"{path}: line {number}: no times such as 00:01.000 --> 00:02.500 before a text; give every line its "
                "times"
            )
    turns = []
    for caption in captions:
        said = TAG.sub("", caption.raw_text)
        if not said.strip():
            continue
        start, end = (caption.start_in_seconds + _milli(caption.start), caption.end_in_seconds + _milli(caption.end))
        voices = list(dict.fromkeys(name.strip() for name in VOICE.findall(caption.raw_text)))
        if len(voices) > 1:
            raise _several(path, start, *voices[:2])
        turns.append(Turn(html.unescape("".join(voices)), start, end, html.unescape(said)))
    return _named(path, turns)


def _milli(time: str) -> float:
    """The thousandths that webvtt's seconds leave out."""
    return int(time.rpartition(".")[2]) / 1000


def _textgrid(path: Path, files: dict[str, str]) -> list[Turn]:
    """Interval tiers, each of the speaker it is named after."""
    library = need("--recording", "praatio.textgrid", "praatio")
    read_text(path, files, path.name, ("utf-8-sig", "utf-16", "latin-1"))
    try:
        grid = library.openTextgrid(str(path), includeEmptyIntervals=False, duplicateNamesMode="rename")
    except Exception as error:  # the library raises what Python raises at a file cut short
        raise InputError(f"{path}: no TextGrid ({type(error).__name__}); save it anew from Praat") from None
    turns = []
    for name in grid.tierNames:
        tier = grid.getTier(name)
        if isinstance(tier, library.IntervalTier):
            said = ((start, end, " ".join(text.split())) for start, end, text in tier.entries)
            turns += [Turn(name.strip(), start, end, text) for start, end, text in said if text]
    return turns


def _named(path: Path, turns: Sequence[Turn]) -> list[Turn]:
    """Lines, with the speaker that some name before their text.

    Raises:
        InputError: If one goes on with what another speaker says.
    """
    named = []
    for turn in turns:
        match = None if turn.speaker else NAMED.match(turn.text)
        named.append(turn._replace(speaker=_name(match), text=match.group(3)) if match else turn)
    names = {turn.speaker for turn in named}
    for turn in named:
        for match in filter(None, map(NAMED.match, turn.text.split("\n")[1:] if turn.speaker else ())):
            if _name(match) in names - {turn.speaker}:
                raise _several(path, turn.start, turn.speaker, _name(match))
    return [turn._replace(text=" ".join(turn.text.split())) for turn in named]


def _name(match: re.Match) -> str:
    return (match.group(1) or match.group(2)).strip()


def _several(path: Path, start: float, *names: str) -> InputError:
    both = " and ".join(map(shown, names))
    return InputError(f"{path}: the line at {start:.2f} s has two speakers, {both}; give each a line with its times")
