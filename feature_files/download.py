"""Fetching a known public feature file: resumed where it broke off, and kept only if its checksum is the known one.

A server may be slow, lie, or be another one than it was. Nothing it says is shown raw, it cannot lead elsewhere than to
``http`` and ``https``, and one that hands out bytes by the drop is given up.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from files import InputError, is_printable, printable, to_disk

KNOWN_FILES = Path(__file__).with_name("known_files.json")
TRIES = 5  # without a byte more than before
LARGEST = 2**32  # bytes, of a file whose size is not known
PATIENCE = 60.0  # seconds that a connection may take whatever it brings
SLOWEST = 10_000  # bytes a second that it must bring after that, on average
PIECE = 2**16  # bytes

# What each key of an entry must be.
_ENTRY = {
    "name": lambda x: isinstance(x, str) and 0 < len(x) <= 100 and is_printable(x),
    "file": lambda x: isinstance(x, str) and _is_plain_name(x),
    "url": lambda x: x is None or (isinstance(x, str) and len(x) <= 2000 and is_printable(x) and x.isascii()),
    "size": lambda x: x is None or (type(x) is int and 0 < x <= LARGEST),
    "git_blob": lambda x: x is None or (isinstance(x, str) and re.fullmatch("[0-9a-f]{40}", x) is not None),
    "sha256": lambda x: x is None or (isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) is not None),
}


def _is_plain_name(name: str) -> bool:
    """Whether a name is that of a file in the folder it is put into, and of no other."""
    return 0 < len(name) <= 200 and is_printable(name) and Path(name).name == name and name not in (".", "..")


def known_files(path: Path = KNOWN_FILES) -> list[dict[str, Any]]:
    """The public files that can be recognised by their checksum.

    Raises:
        InputError: If the list is no list of entries with name, file and checksum.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        entries = None
    fit = isinstance(entries, list) and all(
        isinstance(e, dict) and all(f(e.get(k)) for k, f in _ENTRY.items()) and (e.get("git_blob") or e.get("sha256"))
        for e in entries
    )
    if not fit:
        raise InputError(f"{path}: not a list of known files; each has a name, a file and a git_blob or sha256")
    return entries


def checksums(path: Path) -> dict[str, str]:
    """A file's SHA-256, and the id that Git gives its content.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return _sums(stream)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def is_known_as(sums: dict[str, str], entry: dict[str, Any]) -> bool:
    """Whether every checksum that an entry has is the file's."""
    return all(sums[kind] == entry[kind] for kind in sums if entry.get(kind))


def download(name: str, folder: Path, known: Path = KNOWN_FILES) -> Path:
    """Fetch a known file into a folder, unless it is there.

    What has arrived is kept in ``FILE.part`` when the connection breaks, and the next call goes on from there.

    Args:
        name: Of the entry in the list.
        folder: Where to put it.
        known: The list.

    Returns:
        Where the file is.

    Raises:
        InputError: If there is no such entry, the server cannot be reached, or what it serves is another file.
    """
    entries = {entry["name"]: entry for entry in known_files(known)}
    if name not in entries:
        raise InputError(f"{known}: no file {name!r:.40}; choose from {', '.join(entries)}")
    entry = entries[name]
    url = entry.get("url") or ""
    target = folder / entry["file"]
    if os.path.lexists(target):
        if target.is_file() and is_known_as(checksums(target), entry):
            return target
        raise InputError(f"{target}: another file than the known {name!r}; move it away first")
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{known}: {name!r} has no address to fetch it from; get it by hand and put it at {target}")
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _open_part(part) as stream:
            try:
                _complete(entry, stream)
                to_disk(stream.fileno())
                part.replace(target)
            finally:
                if not stream.seek(0, os.SEEK_END):  # nothing that could be gone on from
                    part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{part}: cannot be written ({error.strerror}); check the folder and its free space") from None
    return target


@contextlib.contextmanager
def _open_part(part: Path) -> Iterator[IO[bytes]]:
    """The part as a stream to read and write, if it is a file of its own: a link would have us write elsewhere."""
    if part.is_symlink():
        raise InputError(f"{part}: a link; move it away first")
    number = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    with os.fdopen(number, "r+b") as stream:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
            raise InputError(f"{part}: no file of its own, but a link or a device; move it away first")
        yield stream


def _complete(entry: dict[str, Any], stream: IO[bytes]) -> None:
    """Bring the part up to the whole file.

    Raises:
        InputError: If the server cannot be reached, breaks off, is too slow, or serves another file; of which nothing
            is then left in the part.
    """
    resumed = stream.seek(0, os.SEEK_END) > 0
    with _Watch() as watch:
        _fetch(entry, stream, watch)
        if resumed and not is_known_as(_sums(stream), entry):  # the old part may have been of another file
            stream.truncate(0)
            _fetch(entry, stream, watch)
    if not is_known_as(_sums(stream), entry):
        stream.truncate(0)
        raise InputError(f"{entry['url']}: serves another file than the known {entry['name']!r}; nothing was kept")


def _fetch(entry: dict[str, Any], stream: IO[bytes], watch: _Watch) -> None:
    """Ask for what the part lacks until the server has no more to give."""
    url, failures, reason = entry["url"], 0, ""
    with tqdm(total=entry.get("size"), unit="B", unit_scale=True, desc=entry["file"]) as bar:
        while failures < TRIES:
            before = stream.seek(0, os.SEEK_END)
            bar.update(before - bar.n)
            done = False
            try:
                done = _fetch_some(entry, stream, before, bar, watch)
            except InputError:
                raise
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"{error.code} {error.reason}"
                done = error.code == 416  # nothing behind what is there
                if not done and error.code < 500:
                    raise InputError(f"{url}: {printable(reason, 100)}; get the file by hand") from None
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                reason = str(getattr(error, "reason", error) or type(error).__name__)
            except ValueError as error:  # of an address that the server names
                raise InputError(f"{url}: leads nowhere ({printable(str(error), 100)}); get the file by hand") from None
            after = stream.seek(0, os.SEEK_END)
            if done or (after and is_known_as(_sums(stream), entry)):
                return
            if watch.late:
                raise InputError(f"{url}: too slow, under {SLOWEST} bytes a second; call again to go on from {after}")
            failures = 0 if after > before else failures + 1
    raise InputError(f"{url}: breaks off ({printable(reason, 100)}); call again to go on from {after} bytes")


def _fetch_some(entry: dict[str, Any], stream: IO[bytes], start: int, bar: tqdm, watch: _Watch) -> bool:
    """Add to the part from one connection; True when the server says that there is no more."""
    request = urllib.request.Request(entry["url"], headers={"Range": f"bytes={start}-"} if start else {})
    limit = entry.get("size") or LARGEST
    with _opener(watch).open(request, timeout=30) as response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if not goes_on:
            bar.reset()
            stream.truncate(0)
            stream.seek(0)
        while piece := response.read(PIECE):
            stream.write(piece)
            bar.update(len(piece))
            watch.received += len(piece)
            if stream.tell() > limit:
                stream.truncate(0)
                raise InputError(
                    f"{entry['url']}: serves more than the {limit} bytes of {entry['name']!r}; nothing kept"
                )
        # `read` with a size ends quietly when the connection does.
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
    # A length may be a lie, so a file that came whole but is another one is asked for more, once.
    return start > 0 and (not goes_on or stream.seek(0, os.SEEK_END) == start)


def _sums(stream: IO[bytes]) -> dict[str, str]:
    """The checksums of what a stream holds; it is then at its end."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while piece := stream.read(2**20):
        sha256.update(piece)
        blob.update(piece)
    return {"sha256": sha256.hexdigest(), "git_blob": blob.hexdigest()}


class _Watch:
    """Cuts connections that together take longer than `PATIENCE` and `SLOWEST` allow.

    A time limit of the socket is one for each byte that it waits for, so a server could hold us for years.
    """

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.received = 0
        self.late = False
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(min(1.0, PATIENCE / 10)):
            self.late |= time.monotonic() - self._started > PATIENCE + self.received / SLOWEST
            for one in list(self.sockets) if self.late else ():
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)  # of an encrypted one as well, without its farewell


class _Response(http.client.HTTPResponse):
    def _read_next_chunk_size(self) -> int:
        size = super()._read_next_chunk_size()
        if size < 0:  # would be read as "all there is"
            raise http.client.HTTPException("a piece of negative size")
        return size


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith(("http://", "https://")):
            raise InputError(f"{req.full_url}: leads to {printable(newurl, 100)!r}; get the file by hand")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(watch: _Watch) -> urllib.request.OpenerDirector:
    """Opens addresses, on connections that the watch can cut."""

    def watched(kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        class Watched(kind):
            response_class = _Response

            def connect(self) -> None:
                super().connect()
                watch.sockets.append(self.sock)

        return Watched

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(watched(http.client.HTTPConnection), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(watched(http.client.HTTPSConnection), req, context=self._context)

    return urllib.request.build_opener(Http, Https(context=ssl.create_default_context()), _Redirects)
