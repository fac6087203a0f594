"""Servers that lie, break off, lead elsewhere or never end, and what may lie in a download's way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import feature_files
from attacks.driver import Attack
from attacks.values import TEXTS, VALUES
from feature_files import download

TARGET, PART = "features.pkl", "features.pkl.part"
CONTENT = bytes(range(256)) * 10
ENTRY = {"name": "mine", "file": TARGET, "size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """Answers every request with the same bytes, and then one piece again and again until nobody listens.

    Attributes:
        pieces: What it says first.
        forever: What it says after that, every so many seconds.
        asked: How many connections there were.
    """

    def __init__(self) -> None:
        self.pieces: Sequence[bytes] = ()
        self.forever, self.every, self.asked = b"", 0.0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.serve, daemon=True).start()

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/x"

    def serve(self) -> None:
        """Answer."""
        while True:
            connection, _ = self.listener.accept()
            self.asked += 1
            with contextlib.suppress(OSError), connection:
                connection.settimeout(20)
                connection.recv(4096)
                for piece in self.pieces:
                    connection.sendall(piece)
                while self.forever:
                    time.sleep(self.every)
                    connection.sendall(self.forever)


server = cache(Server)


def fetch(arguments: Sequence[str]) -> int:
    """``python -m feature_files download`` with a second's patience and no bar."""
    download.PATIENCE, download.tqdm = 1.0, partial(tqdm, disable=True)
    return feature_files.main(arguments)


def right(folder: Path) -> str:
    """Whether what is there in the end is the file itself, or nothing."""
    target = folder / "to" / TARGET
    return "kept another file" if target.is_file() and target.read_bytes() != CONTENT else ""


def downloads() -> Iterator[Attack]:
    """Every lie of a server, an own list or a folder that we could think of."""

    def of(
        name: str,
        *pieces: bytes,
        forever: bytes = b"",
        every: float = 0.05,
        refuse: bool = True,
        known: Any = None,
        part: bytes = b"",
        lay: Callable[[Path], Any] | None = None,
    ) -> Attack:
        """A server that says these pieces; with `lay`, nothing of what that puts into the folder may change."""

        def make(folder: Path) -> list[str]:
            one = server()
            one.pieces, one.forever, one.every = pieces, forever, every
            (folder / "to").mkdir()
            (folder / "victim").write_bytes(CONTENT[:50])
            if part:
                (folder / "to" / PART).write_bytes(part)
            if lay:
                lay(folder / "to")
            entry = ENTRY | {"url": one.address} | (known if isinstance(known, dict) else {})
            text = known if isinstance(known, str) else json.dumps([entry])
            (folder / "known.json").write_text(text, errors="surrogateescape")
            return ["download", "mine", "--to", "to", "--known", "known.json"]

        kept = {} if lay else {"may": "to", "even_refused": True, "check": right}
        return Attack("downloads", name, make, run=fetch, refuse=refuse, **kept)

    def ok(content: bytes, length: int | str | None = None, status: str = "200 OK", more: str = "") -> bytes:
        claims = len(content) if length is None else length
        return f"HTTP/1.1 {status}\r\nContent-Length: {claims}\r\n{more}\r\n".encode() + content

    honest = of("an honest server", ok(CONTENT), refuse=False)
    yield replace(honest, check=lambda folder: "" if (folder / "to" / TARGET).exists() else "did not arrive")
    for name, content in {
        "another file": CONTENT[:-1] + b"x",
        "a page": b"<html>",
        "too short": CONTENT[:50],
        "nothing": b"",
        "twice": CONTENT * 2,
        "without end": CONTENT * 1000,
    }.items():
        yield of(name, ok(content))
        yield of(f"{name}, of no known size", ok(content), known={"size": None})
        yield of(f"{name}, after a part", ok(content), part=CONTENT[:50])
    for length in (0, 50, len(CONTENT) + 5000, 10**30, -1, "x", "\x1b"):
        yield of(f"a length of {length!a}", ok(CONTENT, length), refuse=False)
    lie = f"Content-Range: bytes 50-99/{len(CONTENT)}\r\n"
    yield of(
        "a range that is the beginning",
        ok(CONTENT[:-50], status="206 Partial", more=lie),
        part=CONTENT[:50],
    )
    for code in ("404", "403", "416", "500", "503", "302", "999", "1", "x"):
        yield of(f"status {code}", ok(b"", status=f"{code} \x1b[31mno\x07\u202e"))
        yield of(f"status {code} after a part of another file", ok(b"", status=f"{code} no"), part=b"y" * 50)
    for place in (
        *("ftp://127.0.0.1/x", "file:///etc/passwd", "http://[::1", "http://127.0.0.1:port/", "http://", "//[", "\0"),
        *("x", "javascript:1", "http://127.0.0.1:1/", "data:,x", "http://a\u202eb/", "/" * 70_000),
    ):
        yield of(f"leads to {place[:40]!a}", ok(b"", status="302 Found", more=f"Location: {place}\r\n"))
    for size in (b"-1", b"-ffffffff", b"zz", b"", b"f" * 24, b"1" * 70_000, b"0x5", b"+5"):
        yield of(f"a piece of size {size[:30]!a}", CHUNKED, size + b"\r\n", forever=b"x" * 1000, every=0.001)
    for name, (pieces, drop) in {
        "status": ([b"HTTP/1.1 2"], b"0"),
        "header": ([b"HTTP/1.1 200 OK\r\nX: "], b"a"),
        "headers": ([b"HTTP/1.1 200 OK\r\n"], b"X: y\r\n"),
        "body": ([b"HTTP/1.1 200 OK\r\n\r\n"], b"a"),
        "chunks": ([CHUNKED], b"1\r\nx\r\n"),
        "trailer": ([CHUNKED, b"0\r\n"], b"X: y\r\n"),
    }.items():
        yield of(f"a drip of {name}", *pieces, forever=drop)
    yield of("no answer", b"")
    yield of("bytes that are no answer", bytes(range(256)))
    for name, lay in {
        "a link as part": lambda to: (to / PART).symlink_to("../victim"),
        "a hard link as part": lambda to: (to / PART).hardlink_to(to / "../victim"),
        "a folder as part": lambda to: (to / PART).mkdir(),
        "a pipe as part": lambda to: os.mkfifo(to / PART),
        "a folder in the way": lambda to: (to / TARGET).mkdir(),
        "a link to nowhere in the way": lambda to: (to / TARGET).symlink_to("nowhere"),
        "a link to a file in the way": lambda to: (to / TARGET).symlink_to("../victim"),
        "a pipe in the way": lambda to: os.mkfifo(to / TARGET),
        "another file in the way": lambda to: (to / TARGET).write_bytes(b"theirs"),
        "a file for the folder": lambda to: to.rmdir() or to.write_bytes(b"theirs"),
        "a link to nowhere for the folder": lambda to: to.rmdir() or to.symlink_to("nowhere"),
    }.items():
        yield of(name, ok(CONTENT), lay=lay)
    plain = {k: v for k, v in VALUES.items() if isinstance(v, str | bool | int | float | None) and v != 10**5000}
    for key in ENTRY | {"url": "", "git_blob": ""}:
        for name, value in plain.items():
            if (key, name) != ("name", "true") and not (value is None and key in ("size", "git_blob")):
                yield of(f"{key} of {name} in one's own list", ok(b"no"), known={key: value})
    for name, text in TEXTS.items():
        yield of(f"a list that is {name}", known=json.dumps(text))
    yield of("a list within lists", known="[" * 100_000)
