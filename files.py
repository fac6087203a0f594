"""The ground floor: errors that a user sees as one line, files written whole or not at all, text that is safe to show.

The standard library alone, so that whoever needs an error imports nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


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
        WriteError: If the file cannot be written, or the name is that of a folder or a device.
    """
    path = Path(path)
    if not path.name or "\0" in path.name:
        raise WriteError(f"{str(path)!r}: no name of a file; give one such as out.pkl")
    with contextlib.suppress(OSError):  # what cannot be looked at cannot be written either, and says so below
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "a device, not a file"
            raise WriteError(f"{path}: {what}; give the name of a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # it might be a link to what is not ours
        yield temporary
        with temporary.open("rb") as stream:
            to_disk(stream.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot do this to a folder
                to_disk(folder)
        finally:
            os.close(folder)
    except OSError as error:
        reason = error.strerror or error
        raise WriteError(f"{path}: cannot be written ({reason}); check the folder and its free space") from None
    finally:
        with contextlib.suppress(OSError):  # of a folder that can no longer be written
            temporary.unlink(missing_ok=True)


def to_disk(number: int) -> None:
    """Have what was written to an open file or folder on the disk."""
    os.fsync(number)
    with contextlib.suppress(ImportError, OSError):  # macOS alone has it: its fsync leaves all in the drive's cache
        from fcntl import F_FULLFSYNC, fcntl

        fcntl(number, F_FULLFSYNC)


def spare(inputs: Iterable[Path], out: Path) -> None:
    """Refuse to write over what is to be read.

    Raises:
        InputError: If the output is an input, or a file that lies in a folder that is one.
    """
    for path in inputs:
        try:
            lost = out.exists() and path.exists() and (out.samefile(path) or lies_in(out, path))
        except (OSError, ValueError):  # one cannot be looked at: whoever reads or writes it says so
            continue
        if lost:
            raise InputError(f"{out}: is read for this, and would be lost; give another name to write to")


def lies_in(path: Path, folder: Path) -> bool:
    """Whether what is there lies in a folder, by whatever name: on a Mac ``Runs`` and ``runs`` are the same."""
    return folder.is_dir() and any(parent.samefile(folder) for parent in path.resolve().parents)


def is_leftover(path: Path) -> bool:
    """Whether a file is what a process that was killed inside `replacing` left."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None


def check_regular(path: Path) -> None:
    """Refuse what has no end, or blocks whoever reads it: a device, a pipe, a folder.

    Raises:
        InputError: If the path is there and no file.
    """
    with contextlib.suppress(OSError):  # what cannot be looked at cannot be read either: the reader says why
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: a folder, a pipe or a device; name a file")


def read_text(path: Path, most: int = 100_000_000) -> str:
    """The text of a small file, UTF-8.

    Args:
        path: Of a file; devices and pipes have no end and are refused.
        most: Bytes it may have; that a run of a million dialogues has in its ``config.json``.

    Raises:
        OSError: If it cannot be read, or is no file.
        ValueError: If it is larger, or not UTF-8.
    """
    if not path.is_file():
        path.stat()  # says so if there is nothing
        raise OSError(errno.EINVAL, "a folder or a device, not a file")
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes")
    return content.decode()


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


def open_streams() -> None:
    """Make the standard streams fit to be written to.

    One that was closed (``>&-``) becomes the null device, or the next file to be opened would take its number and
    whatever is printed. Characters that the terminal lacks are escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str = "") -> None:
    """Print, as the last thing that a command does.

    A reader that has closed the pipe has read enough, and is no error.

    Raises:
        WriteError: If it cannot be printed, for want of space.
    """
    try:
        print(text, flush=True) if text else sys.stdout.flush()
    except BrokenPipeError:
        mute(sys.stdout)
    except OSError as error:
        mute(sys.stdout)
        raise WriteError(
            f"standard output: cannot be written ({error.strerror}); what was to be printed is lost"
        ) from None


def complain(text: str) -> None:
    """Print one line to standard error; where nobody can read it, go without."""
    try:
        print(printable(" ".join(text.split()), 2000), file=sys.stderr, flush=True)
    except OSError:
        mute(sys.stderr)


def mute(stream: Any) -> None:
    """Let what is still to be written to a stream vanish, or Python would fail again on leaving."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no number
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
