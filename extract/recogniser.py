"""A speech recogniser, for a recording without a transcript: what is said, and from when to when, but not by whom."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cache import key_of
from .house import InputError, replacing, sha256_of
from .listing import shown
from .media import RATE, UnreadableError, begin_of_sound, sound
from .models import installed, loading, locate, need, quiet, versions
from .workers import Workers

FLAG = "--transcribe"
Segments = list[tuple[float, float, str]]  # from when to when, in seconds, and what is said


def recognise(path: Path, spec: str, device: str, cache: Path) -> tuple[Segments, dict[str, Any]]:
    """What a Whisper model hears in a recording.

    Args:
        path: A sound or video file.
        spec: ``transformers:NAME_OR_FOLDER``.
        device: Where to compute.
        cache: The folder that keeps what was heard, by content and model.

    Returns:
        Segments with a text, in order, and what the provenance says of the recogniser.

    Raises:
        InputError: If it is no recogniser, is not installed or not there, or the recording cannot be read.
    """
    kind, _, name = spec.partition(":")
    if kind != "transformers" or not name:
        raise InputError(f"{FLAG}: {shown(spec)} is no recogniser; give transformers:NAME_OR_FOLDER of a Whisper model")
    installed(FLAG, "transformers")
    model = locate(FLAG, name, "config.json", sha256_of)
    packages = versions("transformers", "torch", "soundfile", "av")
    about = {"recogniser": spec, "revision": model.revision, "licence": model.licence, "packages": packages}
    kept = cache / f"transcript-{key_of(sha256_of(path), about).hex()[:32]}.json"
    try:
        return [(start, end, text) for start, end, text in json.loads(kept.read_text("utf-8"))], about
    except (OSError, ValueError, TypeError):  # not heard yet, or a damaged file, which is made anew
        segments = _heard(path, name, model, device)
    cache.mkdir(parents=True, exist_ok=True)
    with replacing(kept) as temporary:
        temporary.write_text(json.dumps(segments), encoding="utf-8")
    return segments, about


def recogniser_of(
    spec: str | None, device: str, cache: Path
) -> Callable[[Path], tuple[Segments, dict[str, Any]]] | None:
    """What `recordings.read_recording` takes as ``transcribe``, of the flags; None where nothing shall be heard."""
    return (lambda path: recognise(path, spec, device, cache)) if spec else None


def _heard(path: Path, name: str, model: Any, device: str) -> Segments:
    import torch

    library = need(FLAG, "transformers")
    quiet()
    config = loading(FLAG, name, lambda: library.AutoConfig.from_pretrained(model.source, revision=model.commit))
    if config.model_type != "whisper":
        raise InputError(f"{FLAG}: {shown(name)}: hears no sentences with their times; name a Whisper model")
    print(f"transcript: {shown(name)}, licence: {model.licence}", file=sys.stderr)
    hear = loading(
        FLAG,
        name,
        lambda: library.pipeline(
            "automatic-speech-recognition",
            model=model.source,
            revision=model.commit,
            device=device,
            dtype=torch.float32,
        ),
    )
    with Workers(1) as pool:  # media files are not to be trusted
        (_, decoded), (_, late) = (next(pool.map(f, [(None, {"path": str(path)})])) for f in (sound, begin_of_sound))
    for result in (decoded, late):
        if isinstance(result, UnreadableError):
            raise InputError(f"{path}: {result}; give a recording with sound, or a transcript")
    samples, _ = decoded
    length = len(samples) / RATE
    chunks = hear({"raw": samples, "sampling_rate": RATE}, return_timestamps=True)["chunks"]
    segments = []
    for chunk in chunks:
        start, end = chunk["timestamp"]
        start = min(start or 0.0, length)
        end = min(length if end is None else end, length)  # Whisper does not say when what is cut off would end
        if chunk["text"].strip() and end > start:
            segments.append((round(late + start, 2), round(late + end, 2), " ".join(chunk["text"].split())))
    return segments
