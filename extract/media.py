"""Decoding of sound and pictures, by libsndfile and by the FFmpeg that PyAV's wheels bring.

Runs in workers, for media files are not to be trusted: whatever is wrong with one raises `UnreadableError`, and
what takes the decoder down takes down a worker. Nothing heavy is imported here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .faces import track

RATE = 16_000  # samples a second that every acoustic encoder here is made for
SILENT = 10 ** (-80 / 20)  # of full scale: peaks below are no speech, nor the noise of a microphone
CLIPPED = 0.01  # share of the samples at full scale from which on speech is distorted
LARGEST = 40_000_000  # pixels of a picture: 8K video has 33 million
LONGEST = 6 * 3600  # seconds of sound that are decoded for one utterance
DECODING = 2  # goes up where the same file gives other samples or pictures, so that what is cached is made again
LARGEST_SIDE = 512  # pixels: encoders see 224 to 384


class UnreadableError(Exception):
    """A clip cannot be decoded. The message says why, in words that need no file name."""


def sound(
    path: str, start: float = 0.0, end: float | None = None, expected: float | None = None
) -> tuple[np.ndarray, list[str]]:
    """The sound of a clip: one channel, float32 ``[n]`` at `RATE`, and what is odd about it.

    Channels are averaged. A video's first sound track is taken.

    Args:
        path: The file.
        start: Where the clip begins, in seconds.
        end: Where it ends; None for the file's end.
        expected: How long the file should be, in seconds; None where nobody says.

    Raises:
        UnreadableError: If there is no such sound.
    """
    _check(path, start, end)
    samples, rate, beyond = _by_soundfile(path, start, end, expected) or _by_av(path, start, end, expected)
    if not len(samples):
        raise UnreadableError("no sound in that time")
    odd = ["ends after the recording"] if beyond else []
    peak = np.abs(samples)
    if not np.isfinite(peak).all():
        raise UnreadableError("samples that are no numbers")
    if peak.max() < SILENT:
        odd.append("silent")
    elif np.mean(peak >= 0.999 * max(1.0, float(peak.max()))) > CLIPPED:
        odd.append("clipped")
    return _resampled(samples, rate), odd


def begin_of_sound(path: str) -> float:
    """When the sound that `sound` gives of a whole file begins, in seconds after the file's beginning."""
    import soundfile

    try:
        soundfile.info(os.fsencode(path))
    except (soundfile.SoundFileError, OSError):
        with _opened(path) as file:
            stream = file.streams.audio[0]
            return max(0.0, float((stream.start_time or 0) * stream.time_base) - _origin(file))
    return 0.0


def _check(path: str, start: float, end: float | None) -> None:
    if not Path(path).is_file():
        raise UnreadableError("no such file")
    if end is not None and end <= start:
        raise UnreadableError("no length: it ends where it starts")
    if end is not None and end - start > LONGEST:
        raise UnreadableError(f"longer than {LONGEST // 3600} hours")


def _check_length(length: float, start: float, expected: float | None) -> None:
    """That a file of this many seconds has the clip, and is the one that was listed."""
    if start >= length > 0:
        raise UnreadableError(f"starts at {start:.2f} s, and the recording ends at {length:.2f} s")
    if expected and abs(length - expected) > 2 and not expected / 2 < length < expected * 2:
        raise UnreadableError(f"misaligned: the clip lasts {length:.1f} s where {expected:.1f} s belong")


def _by_soundfile(
    path: str, start: float, end: float | None, expected: float | None
) -> tuple[np.ndarray, int, bool] | None:
    """Samples ``[n]``, their rate, and whether the clip ends after the file; None of a file that libsndfile refuses."""
    import soundfile

    try:
        opened = soundfile.SoundFile(os.fsencode(path))  # as text it refuses names that are not UTF-8
    except (soundfile.SoundFileError, OSError):
        return None
    with opened as file:
        rate, frames = file.samplerate, len(file)
        _check_length(frames / rate, start, expected)
        first = round(start * rate)
        last = frames if end is None else round(end * rate)
        if min(last, frames) - first > LONGEST * rate:
            raise UnreadableError(f"longer than {LONGEST // 3600} hours")
        try:
            file.seek(first)
            samples = file.read(max(1, min(last, frames) - first), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise UnreadableError(f"damaged ({error})") from None
    return samples.mean(1), rate, last > frames + rate // 2


def _by_av(path: str, start: float, end: float | None, expected: float | None) -> tuple[np.ndarray, int, bool]:
    import av

    pieces: list[np.ndarray] = []
    with _opened(path) as file:
        if not file.streams.audio:
            raise UnreadableError("no sound track")
        stream = file.streams.audio[0]
        length = _length(file, stream)
        _check_length(length, start, expected)
        resampler = av.AudioResampler("fltp", rate=RATE)  # its own mono would add channels up: two are 3 dB louder
        # Seeking lands on a packet before the time; what was said earlier is cut off again by the frames' own times.
        clock = None
        for frame in _decoded(file, stream, start):
            if clock is None:
                clock = (frame.time or 0.0) - _origin(file)
            if end is not None and clock + sum(map(len, pieces)) / RATE >= end:
                break
            pieces += [out.to_ndarray().mean(0) for out in resampler.resample(frame)]
            if sum(map(len, pieces)) > (LONGEST + 60) * RATE:
                raise UnreadableError(f"longer than {LONGEST // 3600} hours")
        pieces += [out.to_ndarray().mean(0) for out in resampler.resample(None)] if pieces else []
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    first = max(0, round((start - (clock or 0.0)) * RATE))
    last = len(samples) if end is None else max(0, round((end - (clock or 0.0)) * RATE))
    if first >= len(samples) > 0:
        raise UnreadableError(f"starts at {start:.2f} s, after the recording's end")
    return samples[first:last].astype(np.float32), RATE, last > len(samples) + RATE // 2


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == RATE:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, RATE)
    return resample_poly(samples, RATE // common, rate // common).astype(np.float32)


def frames(
    path: str,
    start: float = 0.0,
    end: float | None = None,
    side: str = "",
    expected: float | None = None,
    *,
    rate: float = 2.0,
    most: int = 32,
    face: str = "largest",
) -> tuple[list[np.ndarray], list[str]]:
    """Pictures of a clip, each uint8 ``[h, w, 3]`` in red, green and blue, and what is odd about it.

    Sampled at equal distances, whatever the video's own frame rate does: for each moment the picture that a viewer
    would see.

    Args:
        path: The file.
        start: Where the clip begins, in seconds.
        end: Where it ends; None for the file's end.
        side: ``left`` or ``right`` to cut that half out, before anything looks at it.
        expected: How long the file should be, in seconds; None where nobody says.
        rate: Pictures a second.
        most: The most pictures; a longer clip has them further apart.
        face: ``largest``, to cut the largest face out, followed through the clip; or ``none``, for whole pictures.

    Raises:
        UnreadableError: If there are no such pictures, or no face in any of them.
    """
    _check(path, start, end)
    with _opened(path) as file:
        # The picture on an album is a stream of video too.
        streams = [s for s in file.streams.video if not s.disposition & type(s.disposition).attached_pic]
        if not streams:
            raise UnreadableError("no video stream")
        stream = streams[0]
        if stream.codec_context.width * stream.codec_context.height > LARGEST:
            raise UnreadableError(f"pictures of more than {LARGEST // 10**6} million pixels")
        length = _length(file, stream)
        _check_length(length, start, expected)
        stop = min(end if end is not None else math.inf, length or math.inf)
        if not math.isfinite(stop):
            raise UnreadableError("a video that does not say how long it is; give the end")
        count = max(1, min(most, round((stop - start) * rate)))
        moments = [start + (k + 0.5) * (stop - start) / count for k in range(count)]
        pictures = list(_at(file, stream, moments, side))
    if not pictures:
        raise UnreadableError("no picture in that time")
    odd = ["ends after the recording"] if end is not None and length and end > length + 0.5 else []
    if face == "none":
        return [_smaller(picture) for picture in pictures], odd
    cut = track(pictures)
    if not cut:
        raise UnreadableError(f"no face in {len(pictures)} pictures")
    return [_smaller(picture) for picture in cut], odd


def _at(file: Any, stream: Any, moments: list[float], side: str) -> Iterator[np.ndarray]:
    """The picture that is seen at each of these moments, which rise."""
    shown, left = None, list(moments)
    for frame in _decoded(file, stream, moments[0]):
        time = (frame.time or 0.0) - _origin(file)
        # The picture before this one was seen until now; the first one also stands for what lies before it.
        while left and (left[0] < time or shown is None):
            if shown is None and left[0] >= time:
                break
            yield _half(_upright(shown or frame), side)
            left.pop(0)
        shown = frame
        if not left:
            return
    for _ in left if shown is not None else ():
        yield _half(_upright(shown), side)


def _upright(frame: Any) -> np.ndarray:
    """A picture as players show it: telephones write it lying, and beside it by how much to turn it."""
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _half(picture: np.ndarray, side: str) -> np.ndarray:
    middle = picture.shape[1] // 2
    return {"left": picture[:, :middle], "right": picture[:, middle:]}.get(side, picture)


def _smaller(picture: np.ndarray) -> np.ndarray:
    if max(picture.shape[:2]) <= LARGEST_SIDE:
        return np.ascontiguousarray(picture)
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image)


# What both share ------------------------------------------------------------------------------------------------------


def _opened(path: str) -> Any:
    import av

    try:
        return av.open(path, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UnreadableError(f"damaged, or no media file ({_reason(error)})") from None


def _decoded(file: Any, stream: Any, start: float) -> Iterator[Any]:
    """The frames of a stream from a time on, or from a little before it; of a damaged file, those before the damage."""
    import av

    got = False
    try:
        if start > 0:
            file.seek(int((start + _origin(file)) / stream.time_base), stream=stream, backward=True)
        for frame in file.decode(stream):
            got = True
            yield frame
    except (av.error.FFmpegError, ValueError) as error:
        if not got:
            raise UnreadableError(f"damaged ({_reason(error)})") from None


def _origin(file: Any) -> float:
    """The time that the file calls its beginning, in seconds: that of its first stream, whichever it is."""
    return (file.start_time or 0) / 1e6


def _length(file: Any, stream: Any) -> float:
    """When a stream ends, in seconds after the file's beginning; 0 where the file does not say."""
    if stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - _origin(file)
    return file.duration / 1e6 if file.duration else 0.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def seconds(path: str) -> float:
    """How long a file is, in seconds; 0 where it does not say.

    Raises:
        UnreadableError: If it is no media file.
    """
    _check(path, 0.0, None)
    with _opened(path) as file:
        return max([0.0, *(_length(file, stream) for stream in (*file.streams.audio, *file.streams.video))])
