"""From a listing to a feature file: what is not in the cache is computed, then the file is written from the cache.

Rows lie on the disk only, so memory holds the listing and one batch, whatever the corpus's size. Batches are cut from
what is missing, sorted by length; each is kept as one transaction, in order. A process that was killed therefore leaves
whole batches, and what is then missing is cut into the same ones: padding and rounding repeat, and so does the file,
bit for bit.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import media
from .cache import Cache, key_of
from .encoders import Settings, encoders, settings_dict, settings_of
from .house import (
    IGNORE_LABEL,
    MODALITIES,
    Corpus,
    InputError,
    media_digest,
    other_encoder,
    printable,
    read,
    stream_container,
    write_nine_tuple,
)
from .listing import Clip, Listing, Utterance, shown
from .models import Encoder
from .workers import Workers

BLOCK = 256  # utterances whose rows are in memory while the file is written
# A batch is as many as --batch-size says, but no more than this in all, each counted as long as the longest:
# characters of text, seconds of sound, pictures.
ROOM = {"text": 65_536.0, "acoustic": 240.0, "visual": 512.0}
LONG_TEXT = 350  # words: more than the 256 to 512 tokens that encoders read
PICKLES = (".pkl", ".pickle", ".p")
LINES = 100  # utterances that are named one by one for each reason of lacking a modality


class StoppedError(Exception):
    """The user wants to stop; what is computed is kept."""


@dataclass
class Summary:
    """What an extraction did.

    Attributes:
        utterances: How many are in the file.
        rows: Modality to how many have it.
        computed: Modality to how many of those were not in the cache.
        media: Modality to the seconds of clips that were decoded for these.
        seconds: Modality to how long that took.
        lacking: Modality to reason to how many lack it.
        odd: Modality to what is odd to how many have it all the same.
        lines: Utterances that lack a modality, a line each.
    """

    utterances: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    media: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    lacking: dict[str, dict[str, int]] = field(default_factory=dict)
    odd: dict[str, dict[str, int]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The summary for people."""
        lines = [f"{'modality':<10}{'utterances':>12}{'new':>9}{'seconds':>10}{'of media':>10}{'real time':>11}"]
        for m in self.rows:
            took, length = self.seconds.get(m, 0.0), self.media.get(m, 0.0)
            factor = f"{took / length:.3f}" if length else "–"
            lines.append(
                f"{m:<10}{self.rows[m]:>12}{self.computed.get(m, 0):>9}{took:>10.1f}"
                f"{f'{length:.1f}' if length else '–':>10}{factor:>11}"
            )
        for title, table in (("lack", self.lacking), ("have", self.odd)):
            for m, reasons in table.items():
                for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
                    lines.append(f"{count} of {self.utterances} utterances {title} {m}: {reason}")
        return "\n".join(lines)


@dataclass
class Task:
    """A row that a modality needs: its key, its size in the unit of `ROOM`, and what to encode."""

    key: bytes
    size: float
    what: Any  # turns of a text, or a Clip


def run(
    listing: Listing,
    settings: Settings,
    out: Path,
    *,
    cache: Path,
    device: str = "cpu",
    workers: int = 2,
    batch_size: int = 32,
    shard: tuple[int, int] | None = None,
    retry: bool = False,
    opened: Mapping[str, Encoder] | None = None,
    say: Callable[[str], None] | None = None,
) -> Summary:
    """Extract the features of a listing and write the feature file.

    Args:
        listing: What to encode.
        settings: By which encoders.
        out: The file: a container, or the 9-tuple where it ends in ``.pkl``. Replaced whole or not at all.
        cache: The file that keeps rows between commands.
        device: Where encoders compute.
        workers: Processes that decode.
        batch_size: The most utterances that are encoded at once.
        shard: Write part k of n only, counted from 1.
        retry: Try again what could not be decoded before.
        opened: Encoders to use in place of those that the settings name.
        say: Takes each line for the user; the terminal's standard error, unless given.

    Returns:
        What was done.

    Raises:
        InputError: One line that says what is wrong and what helps.
        WriteError: If the file or the cache cannot be written.
        StoppedError: After Ctrl-C; the same call goes on from there.
    """
    out, say = Path(out), say or _to_stderr
    if not out.parent.is_dir():
        raise InputError(f"--out: {out.parent}: no such folder; make it first")
    kept = _shard([u for u in listing.utterances if u.kept], shard)
    if out.suffix.lower() in PICKLES:
        _fits_nine_tuple(out, kept, shard)
    turns = _turns(listing.utterances, settings.text_context)
    for line in listing.notes:
        say(line)
    if opened is None:
        settings = _needed(settings, listing, say)
    with Cache(cache) as rows:
        chosen = dict(opened) if opened is not None else encoders(settings, device, rows.sha256)
        if retry:
            rows.forget_failures()
        for modality, encoder in chosen.items():
            faces = f"; faces: {encoder.about['detector']}" if "detector" in encoder.about else ""
            say(f"{modality}: {encoder.about['encoder']}, licence: {encoder.about['licence']}{faces}")
        summary, tables, sums = Summary(len(kept)), {}, {}
        with Workers(workers) as pool, _Stop() as stop:
            for modality, encoder in chosen.items():
                keys, tasks = _tasks(modality, encoder, kept, turns, rows, sums)
                tables[modality] = keys
                _compute(modality, encoder, tasks, rows, pool, batch_size, summary, stop)
        widths = {m: w for m in tables if (w := _survey(m, tables[m], kept, rows, summary))}
        for line in summary.lines:
            say(line)
        if not widths:
            raise InputError(f"{listing.name}: no utterance has any modality; see the lines above")
        provenance = _provenance(listing, settings, chosen, summary, sums, shard)
        about = {
            "dialogues": list(Counter(u.dialogue for u in kept).items()),
            "speakers": [u.speaker for u in kept],
            "sentences": [u.text for u in kept],
            "utterances": [u.name for u in kept],
            "splits": _splits(listing, kept),
            "label_names": listing.label_names or ("unknown",),
        }
        labels = np.array([IGNORE_LABEL if u.label is None else u.label for u in kept], np.int64)
        blocks = {m: (width, _blocks(tables[m], rows, width)) for m, width in widths.items()}
        whole = not any(summary.lacking.get(m) for m in widths)
        if out.suffix.lower() in PICKLES:
            _nine_tuple(out, about, labels, blocks, whole)
        else:
            stream_container(out, about, labels, blocks, finite=whole, provenance=provenance)
    return summary


def for_run(
    provenance: Mapping[str, Any],
    listing: Listing,
    out: Path,
    *,
    cache: Path,
    device: str = "cpu",
    models: Mapping[str, str] | None = None,
    dims: Mapping[str, int] | None = None,
    **options: Any,
) -> Corpus:
    """The features of new recordings, by the very encoders of the file that a run was trained on.

    Args:
        provenance: Of that file, as its run's ``config.json`` keeps it.
        listing: The recordings; read with the run's classes as ``label_names`` where they have labels.
        out: The feature file to write, a container.
        cache: The file that keeps rows between commands.
        device: Where encoders compute.
        models: Modality to another ``KIND:NAME_OR_FOLDER`` of the same weights, where a folder has moved.
        dims: Modality to width, as the run has them: one that the recordings lack becomes rows of NaN.
        options: Others of `run`.

    Returns:
        The corpus, its features mapped from ``out``; an utterance without label has `IGNORE_LABEL`, one without a
        modality a row of NaN. It need not have splits.

    Raises:
        InputError: If an encoder is not the one of the run, or anything that `run` refuses.
    """
    settings = replace(settings_of(provenance), **dict(models or {}))
    settings = _needed(settings, listing, options.get("say") or _to_stderr)
    with Cache(cache) as rows:
        chosen = encoders(settings, device, rows.sha256)
    before = dict(provenance.get("encoders") or {})
    for modality, encoder in chosen.items():
        then = before.get(modality, {})
        if key := other_encoder(then, encoder.about):
            raise InputError(
                f"--{modality}: {key} is {shown(encoder.about.get(key))}, and was {shown(then.get(key))} for the run; "
                "name the encoder that the run was trained with"
            )
    run(listing, settings, out, cache=cache, device=device, opened=chosen, **options)
    corpus = read(out, missing="mask", needs=())
    lost = {m: width for m, width in (dims or {}).items() if m not in corpus.dims}
    rows_of = {
        i: replace(d, features={**d.features, **{m: np.full((len(d), w), np.nan, np.float32) for m, w in lost.items()}})
        for i, d in corpus.dialogues.items()
    }
    return replace(corpus, dialogues=rows_of)


# What there is to do --------------------------------------------------------------------------------------------------


def _to_stderr(line: str) -> None:
    tqdm.write(printable(line, None), file=sys.stderr)


def _needed(settings: Settings, listing: Listing, say: Callable[[str], None]) -> Settings:
    """Settings without encoders that nothing is there for, so that these need not be had."""
    there = {
        "text": any(u.text for u in listing.utterances),
        "visual": any(u.video for u in listing.utterances),
        "acoustic": any(u.audio for u in listing.utterances),
    }
    for modality in MODALITIES:
        if not there[modality] and getattr(settings, modality) != "none":
            say(f"{modality}: left out, for the source names none")
            settings = replace(settings, **{modality: "none"})
    if not any(there.values()):
        raise InputError(f"{listing.name}: no utterance has a text, a sound or a picture; name some")
    return settings


def _shard(kept: list[Utterance], shard: tuple[int, int] | None) -> list[Utterance]:
    """The utterances of part k of n: as many dialogues in each, one after another."""
    ids = list(dict.fromkeys(u.dialogue for u in kept))
    if not ids:
        raise InputError("no utterance is left to encode; see which labels the source has, or add --keep-unlabelled")
    if shard is None:
        return kept
    k, n = shard
    if n > len(ids):
        raise InputError(f"--shard {k}/{n}: there are only {len(ids)} dialogues; give fewer parts")
    members = set(np.array_split(np.array(ids, dtype=object), n)[k - 1])
    return [u for u in kept if u.dialogue in members]


def _turns(utterances: Sequence[Utterance], context: int) -> dict[tuple[str, str], tuple[str, ...]]:
    """What a text encoder reads of each utterance that has a text: turns before it, and itself."""
    turns: dict[tuple[str, str], tuple[str, ...]] = {}
    before: dict[str, list[str]] = {}
    for u in utterances:
        spoken = f"{u.speaker}: {u.text}" if context else u.text
        said = before.setdefault(u.dialogue, [])
        if u.text.strip():
            turns[u.dialogue, u.name] = (*said[max(0, len(said) - context) :], spoken)
            said.append(spoken)
    return turns


def _tasks(
    modality: str,
    encoder: Encoder,
    kept: Sequence[Utterance],
    turns: Mapping[tuple[str, str], tuple[str, ...]],
    rows: Cache,
    sums: dict[str, str],
) -> tuple[list[bytes | str], list[Task]]:
    """For each utterance the key of its row, or why it has none; and what to encode, each once."""
    settings = key_of(modality, dict(encoder.about), *(() if modality == "text" else (media.DECODING,))).hex()
    keys: list[bytes | str] = []
    tasks: dict[bytes, Task] = {}
    quiet = modality == "text" or not sys.stderr.isatty()
    for u in tqdm(kept, desc=f"{modality}: checksums", unit=" utterances", leave=False, delay=2, disable=quiet):
        try:
            what, content, size = _source(modality, encoder, u, turns, rows, sums)
        except media.UnreadableError as error:
            keys.append(str(error))
            continue
        key = key_of(settings, content)
        keys.append(key)
        tasks.setdefault(key, Task(key, size, what))
    return keys, list(tasks.values())


def _source(
    modality: str,
    encoder: Encoder,
    u: Utterance,
    turns: Mapping[tuple[str, str], tuple[str, ...]],
    rows: Cache,
    sums: dict[str, str],
) -> tuple[Any, Any, float]:
    """What an utterance has to encode, what tells it from others whatever its files are called, and its size.

    Raises:
        UnreadableError: If it has nothing.
    """
    if modality in u.absent:
        raise media.UnreadableError(u.absent[modality])
    if modality == "text":
        if (said := turns.get((u.dialogue, u.name))) is None:
            raise media.UnreadableError("no text")
        return said, said, float(sum(map(len, said)))
    clip = u.audio if modality == "acoustic" else u.video
    if clip is None:
        raise media.UnreadableError(f"no {'sound' if modality == 'acoustic' else 'video'} is named")
    if clip.path not in sums:
        sums[clip.path] = rows.sha256(clip.path)
    if not sums[clip.path]:
        raise media.UnreadableError("the file cannot be read" if os.path.lexists(clip.path) else "no such file")
    size = _size(clip)
    if modality == "visual":
        size = min(size * encoder.sampling.get("rate", 1.0), encoder.sampling.get("most", math.inf))
    return clip, (sums[clip.path], *clip[1:]), size


def _size(clip: Clip) -> float:
    """About how many seconds a clip lasts, without a look into it."""
    if clip.end is not None:
        return max(0.0, clip.end - clip.start)
    return clip.expected or Path(clip.path).stat().st_size / (2 * media.RATE)


def batches(tasks: Sequence[Task], batch_size: int, room: float) -> Iterator[list[Task]]:
    """Tasks in batches of about one length, the shortest first."""
    batch: list[Task] = []
    for task in sorted(tasks, key=lambda t: (t.size, t.key)):
        if batch and (len(batch) == batch_size or task.size * (len(batch) + 1) > room):
            yield batch
            batch = []
        batch.append(task)
    if batch:
        yield batch


# Computing ------------------------------------------------------------------------------------------------------------


class _Stop:
    """Ctrl-C asks to stop after the batch; a second one stops at once."""

    asked = False

    def __enter__(self) -> _Stop:
        def ask(*_: Any) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, self.before)
            print("\nstopping after this batch; Ctrl-C again to stop at once", file=sys.stderr)

        try:
            self.before = signal.signal(signal.SIGINT, ask)
        except ValueError:  # not the main thread
            self.before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


def _compute(
    modality: str,
    encoder: Encoder,
    tasks: Sequence[Task],
    rows: Cache,
    pool: Workers,
    batch_size: int,
    summary: Summary,
    stop: _Stop,
) -> None:
    """Encode what the cache lacks."""
    known = rows.known([task.key for task in tasks])
    missing = [task for task in tasks if task.key not in known]
    summary.computed[modality] = len(missing)
    if not missing:
        return
    encode = encoder.load()
    started = time.perf_counter()
    plan = list(batches(missing, batch_size, ROOM[modality]))
    decoded = _decoded(modality, encoder, plan, pool)
    pause = 0.2 if sys.stderr.isatty() else 30.0  # seconds between two looks of the bar: a log keeps every one
    options = {"unit": " utterances", "smoothing": 0.05, "mininterval": pause, "maxinterval": pause}
    with tqdm(total=len(tasks), initial=len(known), desc=modality, **options) as bar:
        for batch in plan:
            rows.put(_encoded(modality, encoder, encode, [next(decoded) for _ in batch]))
            bar.update(len(batch))
            if stop.asked:
                raise StoppedError(f"{modality}: {bar.n} of {bar.total} rows are kept; the same command goes on")
    summary.seconds[modality] = time.perf_counter() - started
    if modality != "text":
        summary.media[modality] = sum(_size(task.what) for task in missing)


def _decoded(
    modality: str, encoder: Encoder, plan: Sequence[Sequence[Task]], pool: Workers
) -> Iterator[tuple[Task, Any]]:
    """Each task with what its encoder takes and what is odd about it, or with the `UnreadableError` instead."""
    tasks = (task for batch in plan for task in batch)
    if modality == "text":
        return ((task, (task.what, _odd_text(task.what[-1]))) for task in tasks)
    function = media.sound if modality == "acoustic" else media.frames
    fields = Clip._fields if modality == "visual" else [name for name in Clip._fields if name != "side"]
    calls = ((task, {name: getattr(task.what, name) for name in fields} | dict(encoder.sampling)) for task in tasks)
    return pool.map(function, calls)


def _odd_text(text: str) -> list[str]:
    long = text.count(" ") >= LONG_TEXT
    return [f"more than {LONG_TEXT} words, of which the encoder reads those it can"] if long else []


def _encoded(
    modality: str, encoder: Encoder, encode: Callable, batch: Sequence[tuple[Task, Any]]
) -> dict[bytes, tuple[np.ndarray | None, str]]:
    """The rows of a batch by key, each with its note."""
    results: dict[bytes, tuple[np.ndarray | None, str]] = {
        task.key: (None, str(got)) for task, got in batch if isinstance(got, media.UnreadableError)
    }
    whole = [(task, *got) for task, got in batch if task.key not in results]
    if not whole:
        return results
    try:
        encoded = np.asarray(encode([content for _, content, _ in whole]), np.float32)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise InputError(
            f"--{modality}: a batch of {len(whole)} does not fit into memory; lower --batch-size"
        ) from None
    if encoded.ndim != 2 or len(encoded) != len(whole):
        raise InputError(
            f"--{modality}: the encoder gave {list(encoded.shape)} for a batch of {len(whole)}; use another"
        )
    for (task, _, odd), row in zip(whole, encoded, strict=True):
        if np.isfinite(row).all():
            results[task.key] = row, "; ".join(odd)
        else:
            results[task.key] = None, f"too short or too quiet for {encoder.about['encoder']}"
    return results


# Writing --------------------------------------------------------------------------------------------------------------


def _survey(
    modality: str, keys: Sequence[bytes | str], kept: Sequence[Utterance], rows: Cache, summary: Summary
) -> int:
    """The width of a modality's rows, 0 where there are none; what is missing goes into the summary."""
    known = rows.known(list({key for key in keys if isinstance(key, bytes)}))
    lacking, odd, widths = Counter(), Counter(), Counter()
    for u, key in zip(kept, keys, strict=True):
        width, note = known.get(key, (0, "not encoded")) if isinstance(key, bytes) else (0, key)
        if width:
            widths[width] += 1
            odd.update(note.split("; ") if note else ())
            continue
        reason = re.sub(r"\d+\.\d+", "…", note)  # times and lengths differ from one to the next
        lacking[reason] += 1
        if lacking[reason] <= LINES:
            summary.lines.append(f"{modality}: {shown(u.dialogue)} {shown(u.name)}: {note}")
        elif lacking[reason] == LINES + 1:
            summary.lines.append(f"{modality}: and others: {reason}")
    if not widths:
        # One line for all, not one for each.
        summary.lines = [line for line in summary.lines if not line.startswith(f"{modality}: ")]
        for note, count in lacking.items():
            summary.lines.append(f"{modality}: none of {count} utterances has it: {note}")
    if len(widths) > 1:
        raise InputError(f"{rows.path}: {modality}: rows of widths {sorted(widths)}; delete this cache")
    summary.rows[modality] = sum(widths.values())
    if lacking:
        summary.lacking[modality] = dict(lacking)
    if odd:
        summary.odd[modality] = dict(odd)
    return next(iter(widths), 0)


def _blocks(keys: Sequence[bytes | str], rows: Cache, width: int) -> Iterator[np.ndarray]:
    """The rows of a modality, ``[k, width]`` at a time; of NaN where there is none."""
    for start in range(0, len(keys), BLOCK):
        part = keys[start : start + BLOCK]
        found = rows.get(list({key for key in part if isinstance(key, bytes)}))
        block = np.full((len(part), width), np.nan, np.float32)
        for k, key in enumerate(part):
            if key in found:
                block[k] = found[key]
        yield block


def _splits(listing: Listing, kept: Sequence[Utterance]) -> dict[str, list[str]]:
    here = {u.dialogue for u in kept}
    return {name: members for name, ids in listing.split_ids().items() if (members := [i for i in ids if i in here])}


def _provenance(
    listing: Listing,
    settings: Settings,
    chosen: Mapping[str, Encoder],
    summary: Summary,
    sums: Mapping[str, str],
    shard: tuple[int, int] | None,
) -> dict[str, Any]:
    """Where a file comes from: the same for every command that makes it, so without times and machines."""
    root = Path(listing.name) if Path(listing.name).is_dir() else Path(listing.name).parent
    files = {os.path.relpath(path, root): digest for path, digest in sums.items() if digest}
    provenance: dict[str, Any] = {
        "made_by": "extract_features.py",
        "source": {**listing.about, "files": listing.files},
        "settings": settings_dict(settings),
        "encoders": {m: dict(encoder.about) for m, encoder in chosen.items()},
    }
    if shard is None:
        return provenance | {"media": media_digest(files), "lacking": summary.lacking}
    part = {"index": shard[0], "of": shard[1], "listing": listing.sha256(), "media": files, "lacking": summary.lacking}
    return provenance | {"shard": part}


def _fits_nine_tuple(out: Path, kept: Sequence[Utterance], shard: tuple[int, int] | None) -> None:
    """That the field's layout has a place for all there is, before hours are spent on it."""
    if shard is not None:
        raise InputError(f"{out}: parts are containers; name them .safetensors, and convert what 'merge' writes")
    if any(u.label is None for u in kept):
        raise InputError(f"{out}: the 9-tuple has no place for utterances without a label; write a .safetensors")


def _nine_tuple(
    out: Path,
    about: Mapping[str, Any],
    labels: np.ndarray,
    blocks: Mapping[str, tuple[int, Iterator[np.ndarray]]],
    whole: bool,
) -> None:
    """Write the field's layout, by way of a container; it is a pickle of everything, so memory holds it all."""
    between = out.with_name(f".{out.name}.safetensors.{os.getpid()}.tmp")
    try:
        stream_container(between, about, labels, blocks, finite=whole)
        write_nine_tuple(read(between, missing="mask", needs=()), out)
    finally:
        between.unlink(missing_ok=True)
