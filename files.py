"""The ground floor: the errors that a user sees as one line, and files that are written whole or not at all.

The standard library alone, so that whoever needs an error imports nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
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
