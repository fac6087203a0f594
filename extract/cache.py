"""Rows of features by what they are of and how they were made, kept between commands.

An SQLite file: each batch is one transaction, so that a process killed at any instant leaves whole batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .house import InputError, WriteError, sha256_of

ASKED = 500  # keys a query asks for; SQLite's oldest limit is 999
TABLES = """
create table if not exists rows (key blob primary key, row blob, note text);
create table if not exists files (path text primary key, stamp text, sha256 text);
"""


def key_of(*parts: Any) -> bytes:
    """A key of 32 bytes for anything that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).digest()


class Cache:
    """A cache, opened.

    Args:
        path: Its file, made if need be.

    Raises:
        InputError: If the file is there and no cache.
        WriteError: If it cannot be made.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(
                f"{self.path.parent}: cannot be made ({error.strerror}); name a folder by --cache"
            ) from None
        with self._told():
            self.database = sqlite3.connect(self.path, timeout=600, isolation_level=None)
            self.database.execute("pragma journal_mode = wal")  # a second command may read and write meanwhile
            self.database.execute("pragma synchronous = normal")
            self.database.executescript(TABLES)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.database.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn SQLite's errors into one line."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            text = str(error)
            if any(word in text for word in ("full", "I/O", "readonly", "unable to open", "locked")):
                raise WriteError(
                    f"{self.path}: cannot be written ({text}); check the folder and its free space, or name another "
                    "by --cache"
                ) from None
            raise InputError(f"{self.path}: no cache, or a damaged one ({text}); delete it") from None

    def known(self, keys: Sequence[bytes]) -> dict[bytes, tuple[int, str]]:
        """Key to the width of its row and a note, for those of some keys that are there.

        The width is 0 where there is no row; the note says why then, and else what is odd about it, if anything is.
        """
        found: dict[bytes, tuple[int, str]] = {}
        for key, size, note in self._select("key, length(row), note", keys):
            found[key] = (size or 0) // 4, note
        return found

    def get(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """Key to its row, float32 ``[d]``, for those of some keys that have one."""
        rows = self._select("key, row", keys)
        return {key: np.frombuffer(row, np.float32) for key, row in rows if row is not None}

    def _select(self, columns: str, keys: Sequence[bytes]) -> list[tuple]:
        found: list[tuple] = []
        with self._told():
            for k in range(0, len(keys), ASKED):
                part = keys[k : k + ASKED]
                query = f"select {columns} from rows where key in ({','.join('?' * len(part))})"
                found += self.database.execute(query, part)
        return found

    def put(self, results: Mapping[bytes, tuple[np.ndarray | None, str]]) -> None:
        """Keep rows, each with its note: all of them, or none of them if the process dies."""
        values = [
            (key, None if row is None else np.ascontiguousarray(row, np.float32).tobytes(), note)
            for key, (row, note) in results.items()
        ]
        with self._told():
            self.database.execute("begin immediate")
            try:
                self.database.executemany("insert or replace into rows values (?, ?, ?)", values)
                self.database.execute("commit")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.database.execute("rollback")
                raise

    def forget_failures(self) -> None:
        """Try again whatever had no row."""
        with self._told():
            self.database.execute("delete from rows where row is null")

    def sha256(self, path: str | Path) -> str:
        """The checksum of a file, read only if size or time say that it changed; empty where it cannot be read."""
        try:
            about = Path(path).stat()
            if not stat.S_ISREG(about.st_mode):  # a pipe or a device may have no end
                return ""
            stamp = f"{about.st_size} {about.st_mtime_ns} {about.st_ino}"
            name = str(Path(path).resolve()).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            with self._told():
                row = self.database.execute("select stamp, sha256 from files where path = ?", (name,)).fetchone()
            if row and row[0] == stamp:
                return row[1]
            digest = sha256_of(Path(path))
        except (OSError, ValueError):
            return ""
        with self._told():
            self.database.execute("insert or replace into files values (?, ?, ?)", (name, stamp, digest))
        return digest
