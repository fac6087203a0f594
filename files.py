"""The ground floor: the errors that a user sees as one line, and files that are written whole or not at all.

The standard library alone, so that whoever needs an error imports nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """A mistake in what the user gave us. The message names the file or flag, the field and the cure."""


class WriteError(InputError):
    """A file cannot be written, for want of space or of the right to."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which stage, epoch and step, and what is kept."""


class InterruptedRunError(Exception):
    """The user or the scheduler asked the run to stop, and the step under way is done."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside a file, for the body to write; the file is then replaced whole, or not at all.

    Both the file and its place in the folder are on the disk when this returns, so that no power cut undoes it.

    Raises:
        WriteError: If the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot do this to a folder
                os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        reason = error.strerror or error
        raise WriteError(f"{path}: cannot be written ({reason}); check the folder and its free space") from None
    finally:
        with contextlib.suppress(OSError):  # of a folder that can no longer be written
            temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file is what a process that was killed inside `replacing` left."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None


# What a name may be made of, and what not: control characters move the cursor, ring the bell or end a line, those of
# direction reorder what is read, half a surrogate pair is no text at all. The joiners that scripts need may stay.
_UNSAFE = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"


def is_printable(text: str) -> bool:
    """Whether a text can be shown as it is: no control character, no change of direction, no half surrogate pair."""
    return text.isprintable() or all(c in _JOINERS or unicodedata.category(c) not in _UNSAFE for c in text)


def printable(text: str, limit: int | None = 200) -> str:
    r"""A text made safe to show anywhere: in a terminal, a report, a picture, a page.

    What is not `is_printable` is written as Python writes it (``\x1b``, ``\u202e``), so it is still told apart. A page
    must escape its ``<`` and ``&`` besides, and a picture its ``$``, which are printable.

    Args:
        text: Anything at all.
        limit: The most characters of the result, an ellipsis included; None for all.
    """
    cut = text if limit is None else text[: limit + 1]
    if not is_printable(cut):
        cut = "".join(c if is_printable(c) else ascii(c)[1:-1] for c in cut)
    return cut if limit is None or len(cut) <= limit else cut[: max(0, limit - 1)] + "…"
