"""The bytes of a feature file, or of the files of a folder, and their checksum."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any

from feature_files import safe_pickle
from files import InputError

LARGEST = 2**34  # bytes of a feature file; real ones have been under 2 GB
LARGEST_READ = 2**32  # bytes of one that must be in memory as a whole, which is every layout but ours
LARGEST_UTTERANCE = 2**28  # bytes of a file that holds one utterance


class Source:
    """A feature file, or the files of a folder, with what was read of them for the checksum.

    Args:
        path: The file or folder.

    Raises:
        InputError: If it is not there.
    """

    def __init__(self, path: Path):
        try:
            path.stat()
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the name, or put the feature file there") from None
        except (OSError, ValueError) as error:  # a name too long, or with a null character
            raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); check the name") from None
        self.path = path
        self.given = path  # as the user named it; `path` becomes the folder where that is the layout
        self.size = 0
        self._digests: dict[str, str] = {}

    def add(self, path: Path, size: int, sha256: str) -> None:
        """Note a file that was read; one that is read again counts once."""
        name = str(path.relative_to(self.path) if path != self.path else path)
        if name not in self._digests:
            self.size += size
            self._digests[name] = sha256

    def bytes_of(self, path: Path, limit: int = LARGEST_READ) -> bytes:
        """A whole file.

        Raises:
            InputError: If it cannot be read, is larger than the limit, or is known not to be the data itself.
        """
        start = first_bytes(path, 4096, limit)
        if not start.strip(b"\0"):
            raise InputError(f"{path}: begins with nothing but zeros, as a broken download does; get the file again")
        if start.startswith(b"version https://git-lfs"):
            raise InputError(f"{path}: a Git-LFS pointer, not the data itself; fetch the data with 'git lfs pull'")
        if start.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
            raise InputError(f"{path}: a web page saved under the data's name; download the raw file")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise unreadable(path, error) from None
        except MemoryError:
            raise InputError(f"{path}: does not fit into memory; read it on a machine that has more") from None
        self.add(path, len(data), hashlib.sha256(data).hexdigest())
        return data

    def unpickled(self, path: Path) -> Any:
        """What a pickle holds, no code run."""
        return safe_pickle.loads(self.bytes_of(path), path)

    @property
    def sha256(self) -> str:
        """The file's checksum; of a folder, that of the sorted list of its files' as ``sha256sum`` prints it."""
        if len(self._digests) == 1 and self.path.is_file():
            return next(iter(self._digests.values()))
        lines = (f"{digest}  {name}\n" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def first_bytes(path: Path, count: int, limit: int = LARGEST) -> bytes:
    """How a file begins, once it is known to be one that may be read.

    Raises:
        InputError: If it is no regular file, cannot be read, is empty, or is larger than the limit.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            what = "a directory" if stat.S_ISDIR(about.st_mode) else "no regular file"
            raise InputError(f"{path}: {what}; name a feature file")
        if not about.st_size:  # before it is opened: some of the system's own files never end
            raise InputError(f"{path}: the file is empty; get it again")
        if about.st_size > limit:
            raise InputError(f"{path}: {about.st_size} bytes, more than the {limit} that are read; name a feature file")
        with path.open("rb") as stream:
            return stream.read(count)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name, or put the feature file there") from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> InputError:
    """The line for a file or folder that the system does not let us read."""
    return InputError(f"{path}: cannot be read ({error.strerror}); check its permissions")


def listing(folder: Path) -> list[Path]:
    """What is in a folder, sorted.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None


def is_file(path: Path) -> bool:
    """Whether there is a file of that name; False as well where we may not look."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder of that name; False as well where we may not look."""
    try:
        return path.is_dir()
    except OSError:
        return False


def sha256_of(path: Path) -> str:
    """The checksum of a file, read in pieces.

    Raises:
        InputError: If it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(2**20):
                digest.update(piece)
    except OSError as error:
        raise unreadable(path, error) from None
    return digest.hexdigest()
