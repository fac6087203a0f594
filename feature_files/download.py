"""Fetching a known public feature file: resumed where it broke off, and kept only if its checksum is the known one."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from files import InputError

KNOWN_FILES = Path(__file__).with_name("known_files.json")
TRIES = 5  # without a byte more than before
LARGEST = 2**32  # bytes, of a file whose size is not known


def known_files(path: Path = KNOWN_FILES) -> list[dict[str, Any]]:
    """The public files that can be recognised by their checksum.

    Raises:
        InputError: If the list is no list of entries with name, file and checksum.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        fit = all({"name", "file"} <= e.keys() and (e.get("git_blob") or e.get("sha256")) for e in entries)
    except (OSError, ValueError, AttributeError, TypeError):
        fit = False
    if not fit or any(Path(e["file"]).name != e["file"] for e in entries):
        raise InputError(f"{path}: not a list of known files; each has a name, a file and a git_blob or sha256")
    return entries


def checksums(path: Path) -> dict[str, str]:
    """A file's SHA-256, and the id that Git gives its content."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(2**20):
            sha256.update(piece)
            blob.update(piece)
    return {"sha256": sha256.hexdigest(), "git_blob": blob.hexdigest()}


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
    target = folder / entry["file"]
    if target.exists():
        if is_known_as(checksums(target), entry):
            return target
        raise InputError(f"{target}: another file than the known {name!r}; move it away first")
    if not str(entry.get("url")).startswith(("http://", "https://")):
        raise InputError(f"{known}: {name!r} has no address to fetch it from; get it by hand and put it at {target}")
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    resumed = part.exists()
    try:
        _fetch(entry, part)
        if resumed and not is_known_as(checksums(part), entry):  # the old part may have been of another file
            part.unlink()
            _fetch(entry, part)
    except OSError as error:
        raise InputError(f"{part}: cannot be written ({error.strerror}); check the folder and its free space") from None
    if not is_known_as(checksums(part), entry):
        part.unlink()
        raise InputError(f"{entry['url']}: serves another file than the known {name!r}; nothing was kept")
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(target)
    return target


def _fetch(entry: dict[str, Any], part: Path) -> None:
    """Bring the part up to the whole file, or to all the server will give."""
    failures, reason = 0, ""
    with tqdm(total=entry.get("size"), unit="B", unit_scale=True, desc=entry["file"]) as bar:
        while failures < TRIES:
            before = part.stat().st_size if part.exists() else 0
            bar.update(before - bar.n)
            try:
                done = _fetch_some(entry, part, before, bar)
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                done, reason = False, str(getattr(error, "reason", error) or type(error).__name__)
                if isinstance(error, urllib.error.HTTPError) and error.code != 416 and error.code < 500:
                    raise InputError(f"{entry['url']}: {error.code} {error.reason}; get the file by hand") from None
            after = part.stat().st_size if part.exists() else 0
            if after and is_known_as(checksums(part), entry):
                return
            if done:
                return  # the server has no more, and it is not the file
            failures = 0 if after > before else failures + 1
    raise InputError(f"{entry['url']}: breaks off ({reason:.100}); call again to go on from {after} bytes")


def _fetch_some(entry: dict[str, Any], part: Path, start: int, bar: tqdm) -> bool:
    """Add to the part from one connection; True when the server says that there is no more."""
    request = urllib.request.Request(entry["url"], headers={"Range": f"bytes={start}-"} if start else {})
    limit = entry.get("size") or LARGEST
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing behind what is there
            error.close()
            return True
        raise
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if start and not goes_on:
            bar.reset()
        with part.open("ab" if goes_on else "wb") as stream:
            while piece := response.read(2**16):
                stream.write(piece)
                bar.update(len(piece))
                if stream.tell() > limit:
                    part.unlink()
                    raise InputError(
                        f"{entry['url']}: serves more than the {limit} bytes of {entry['name']!r}; nothing kept"
                    )
        # `read` with a size ends quietly when the connection does.
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
    # A length may be a lie, so a file that came whole but is another one is asked for more, once.
    return start > 0 and (not goes_on or part.stat().st_size == start)
