"""The bytes of a feature file, or of the files of a folder, and their checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from feature_files import safe_pickle
from files import InputError


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

    def bytes_of(self, path: Path) -> bytes:
        """A whole file.

        Raises:
            InputError: If it cannot be read, or is known not to be the data itself.
        """
        data = _bytes_of(path)
        self.size += len(data)
        self._digests[str(path.relative_to(self.path) if path != self.path else path)] = hashlib.sha256(
            data
        ).hexdigest()
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
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _bytes_of(path: Path) -> bytes:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the name, or put the feature file there")
    if not path.is_file():
        raise InputError(f"{path}: {'a directory' if path.is_dir() else 'no regular file'}; name a feature file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not data:
        raise InputError(f"{path}: the file is empty; get it again")
    if data.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git-LFS pointer, not the data itself; fetch the data with 'git lfs pull'")
    if data.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise InputError(f"{path}: a web page saved under the data's name; download the raw file")
    return data
