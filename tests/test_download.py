"""Downloads from a local server that serves well, breaks off, lies, and serves another file."""

import hashlib
import json
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import feature_files
from feature_files import download
from files import InputError

CONTENT = bytes(range(256)) * 1000
BLOB = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted.group(1)) if wanted and server.ranges else 0
        server.requests.append(start)
        if server.status:
            return self.send_error(server.status)
        if start and start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.claims is not None:
            self.send_header("Content-Length", str(server.claims if not start else len(body)))
        elif server.claims is None and not server.silent:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        limit = server.breaks.pop(0) if server.breaks else len(body)
        self.wfile.write(body[:limit])
        self.close_connection = True


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content, httpd.ranges, httpd.status = CONTENT, True, 0
    httpd.claims, httpd.silent, httpd.breaks, httpd.requests = None, False, [], []
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def known(server, tmp_path):
    def known(**changes):
        url = f"http://127.0.0.1:{server.server_port}/features.pkl"
        entry = {"name": "mine", "file": "features.pkl", "url": url, "size": len(CONTENT), "git_blob": BLOB} | changes
        path = tmp_path / "known.json"
        path.write_text(json.dumps([entry]))
        return path

    return known


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def fails(folder, known):
    with pytest.raises(InputError) as caught:
        download.download("mine", folder, known)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "changes", [{}, {"size": None}, {"git_blob": None, "sha256": hashlib.sha256(CONTENT).hexdigest()}]
)
def test_a_file_arrives_and_is_verified(server, known, tmp_path, capsys, changes):
    arguments = ["download", "mine", "--to", str(tmp_path / "to"), "--known", str(known(**changes))]
    assert feature_files.main(arguments) == 0
    assert (tmp_path / "to" / "features.pkl").read_bytes() == CONTENT
    assert names(tmp_path / "to") == ["features.pkl"]
    assert "features.pkl" in capsys.readouterr().err  # the bar
    assert feature_files.main(arguments) == 0
    assert server.requests == [0]  # what is there is not fetched again


def test_a_broken_connection_is_taken_up_where_it_broke(server, known, tmp_path):
    server.breaks = [100_000, 1, 70_000]
    download.download("mine", tmp_path / "to", known())
    assert (tmp_path / "to" / "features.pkl").read_bytes() == CONTENT
    assert server.requests == [0, 100_000, 100_001, 170_001]


def test_a_later_call_goes_on_from_what_an_earlier_one_got(server, known, tmp_path):
    server.breaks = [100_000] + [0] * 20
    message = fails(tmp_path / "to", known())
    assert "breaks off" in message and "100000 bytes" in message
    assert names(tmp_path / "to") == ["features.pkl.part"]
    server.breaks, server.requests = [], []
    download.download("mine", tmp_path / "to", known())
    assert server.requests == [100_000] and names(tmp_path / "to") == ["features.pkl"]


def test_a_server_without_ranges_starts_again(server, known, tmp_path):
    server.ranges, server.breaks = False, [100_000]
    download.download("mine", tmp_path / "to", known())
    assert (tmp_path / "to" / "features.pkl").read_bytes() == CONTENT


def test_a_part_of_another_file_is_thrown_away(server, known, tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "features.pkl.part").write_bytes(b"x" * 5000)
    download.download("mine", tmp_path / "to", known())
    assert (tmp_path / "to" / "features.pkl").read_bytes() == CONTENT


@pytest.mark.parametrize("claims", [len(CONTENT) + 5000, 5000, 0])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_lie_about_length_does_no_harm(server, known, tmp_path, claims, size):
    server.claims = claims
    if claims:
        download.download("mine", tmp_path / "to", known(size=size))
        assert (tmp_path / "to" / "features.pkl").read_bytes() == CONTENT
    else:  # nothing ever arrives
        fails(tmp_path / "to", known(size=size))
        assert "features.pkl" not in names(tmp_path / "to")


def test_no_length_at_all(server, known, tmp_path):
    server.silent = True
    download.download("mine", tmp_path / "to", known(size=None))
    assert (tmp_path / "to" / "features.pkl").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:5000], b"<html>", CONTENT * 2])
@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("ranges", [True, False])
def test_another_file_is_refused_and_not_kept(server, known, tmp_path, content, size, ranges):
    server.content, server.ranges = content, ranges
    assert "mine" in fails(tmp_path / "to", known(size=size))
    assert names(tmp_path / "to") == []


def test_what_is_there_and_differs_is_left_alone(server, known, tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "features.pkl").write_bytes(b"mine")
    assert "another file" in fails(tmp_path / "to", known())
    assert (tmp_path / "to" / "features.pkl").read_bytes() == b"mine" and server.requests == []


@pytest.mark.parametrize("status", [404, 403, 500])
def test_errors_of_the_server(server, known, tmp_path, status):
    server.status = status
    assert "127.0.0.1" in fails(tmp_path / "to", known())
    assert names(tmp_path / "to") == []


def test_no_server(server, known, tmp_path):
    assert "breaks off" in fails(tmp_path / "to", known(url="http://127.0.0.1:9/x"))
    assert "no address" in fails(tmp_path / "to", known(url=None))
    assert "no address" in fails(tmp_path / "to", known(url="file:///etc/passwd"))


def test_lists_of_known_files(tmp_path):
    entries = {entry["name"]: entry for entry in download.known_files()}
    assert entries["iemocap"]["git_blob"] == "48a47d73b4b10c805ac7819fd9bcc61444119c65"
    assert entries["iemocap-mmgcn"]["git_blob"] == "889532cad757903e78b3f87445306592eb8e2070"
    path = tmp_path / "known.json"
    unsafe = {"name": "a", "file": "../a", "sha256": "0"}
    for content in ("{", "3", "[3]", '[{"name": "a", "file": "b"}]', json.dumps([unsafe])):
        path.write_text(content)
        with pytest.raises(InputError, match="not a list of known files"):
            download.known_files(path)


@pytest.fixture
def raw(known, tmp_path):
    """A server that says what it is told to, byte by byte; what it is asked is of no interest."""
    listener = socket.create_server(("127.0.0.1", 0))
    answers, stop = [], threading.Event()

    def serve():
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                try:
                    for piece in answers[0]():
                        connection.sendall(piece)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def raw(*pieces, forever=None, every=0.0):
        def answer():
            yield from pieces
            while forever and not stop.is_set():
                time.sleep(every)
                yield forever

        answers[:] = [answer]
        return known(url=f"http://127.0.0.1:{listener.getsockname()[1]}/x")

    yield raw
    stop.set()
    listener.close()


NOT_FOUND = b"HTTP/1.1 404 \x1b[31mno\x07\xe2\x80\xae\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("status", [b"404", b"503", b"416", b"302", b"999", b"1"])
def test_a_status_line_is_not_shown_raw(raw, tmp_path, status):
    message = fails(tmp_path / "to", raw(NOT_FOUND.replace(b"404", status)))
    assert message.isprintable()
    assert names(tmp_path / "to") == []


@pytest.mark.parametrize(
    "place",
    ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[::1", "http://127.0.0.1:port/", "http://", "//[", "\x00", "x"],
)
def test_a_redirect_leads_nowhere_else(raw, tmp_path, place):
    reply = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    assert fails(tmp_path / "to", raw(reply)).isprintable()
    assert names(tmp_path / "to") == []


def test_nothing_behind_what_is_there(server, known, tmp_path):
    server.status = 416
    assert "another file" in fails(tmp_path / "to", known())
    assert names(tmp_path / "to") == []


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("size", [b"-1", b"-ffffffff", b"zz", b"", b"ffffffffffffffffffffffff", b"1" * 70_000])
def test_a_piece_of_odd_size(raw, tmp_path, monkeypatch, size):
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    began = time.monotonic()
    fails(tmp_path / "to", raw(CHUNKED, size + b"\r\n", forever=b"x" * 1000, every=0.001))
    assert time.monotonic() - began < 8
    part = tmp_path / "to" / "features.pkl.part"
    assert not part.exists() or part.stat().st_size <= len(CONTENT)


@pytest.mark.parametrize("slow", ["header", "status", "body", "no end of headers", "chunks", "trailer"])
def test_a_drip_is_given_up(raw, tmp_path, monkeypatch, slow):
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    pieces, drop = {
        "header": ([b"HTTP/1.1 200 OK\r\nX: "], b"a"),
        "status": ([b"HTTP/1.1 2"], b"0"),
        "body": ([b"HTTP/1.1 200 OK\r\n\r\n"], b"a"),
        "no end of headers": ([b"HTTP/1.1 200 OK\r\n"], b"X: y\r\n"),
        "chunks": ([CHUNKED], b"1\r\nx\r\n"),
        "trailer": ([CHUNKED, b"0\r\n"], b"X: y\r\n"),
    }[slow]
    began = time.monotonic()
    fails(tmp_path / "to", raw(*pieces, forever=drop, every=0.05))
    assert time.monotonic() - began < 5


def test_one_byte_a_connection_is_given_up(server, known, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    server.breaks = [1] * 100_000
    assert "too slow" in fails(tmp_path / "to", known())


@pytest.mark.parametrize("way", ["link", "hard link", "folder", "pipe"])
def test_a_part_that_is_not_ours_is_left_alone(server, known, tmp_path, way):
    (tmp_path / "to").mkdir()
    victim, part = tmp_path / "victim", tmp_path / "to" / "features.pkl.part"
    victim.write_bytes(CONTENT[:50])
    if way == "link":
        part.symlink_to(victim)
    elif way == "hard link":
        part.hardlink_to(victim)
    elif way == "folder":
        part.mkdir()
    else:
        os.mkfifo(part)
    fails(tmp_path / "to", known())
    assert victim.read_bytes() == CONTENT[:50] and names(tmp_path / "to") == ["features.pkl.part"]


@pytest.mark.parametrize("way", ["folder", "link to nowhere", "pipe", "folder is a file", "folder in a file"])
def test_something_in_the_way(server, known, tmp_path, way):
    folder = tmp_path / "to"
    if way.startswith("folder "):
        folder.write_bytes(b"x")
        folder = folder / "in" if "in a" in way else folder
    else:
        folder.mkdir()
        target = folder / "features.pkl"
        {"folder": target.mkdir, "pipe": lambda: os.mkfifo(target)}.get(way, lambda: target.symlink_to("nowhere"))()
    fails(folder, known())
    assert server.requests == []


SOUND = {"name": "a", "file": "b", "sha256": "0" * 64}


@pytest.mark.parametrize(
    "changes",
    [
        *({"name": x} for x in (3, None, "", "a\x1b", "x" * 5000, ["a"])),
        *({"file": x} for x in (3, None, "", ".", "..", "a/b", "a\0", "\ud800", "x" * 5000, [])),
        *({"url": x} for x in (3, [], "http://a\r\nb", "http://\u00e9")),
        *({"size": x} for x in ("3", -1, 0, 1.5, 2**70, True, [])),
        *({"sha256": x} for x in (3, "0", "", "g" * 64, ["0" * 64])),
        {"git_blob": 5},
    ],
)
def test_odd_entries_of_ones_own_list(tmp_path, changes):
    path = tmp_path / "known.json"
    path.write_text(json.dumps([SOUND]))
    assert download.known_files(path) == [SOUND]
    for content in (json.dumps([SOUND | changes]), "[" * 100_000):
        path.write_text(content)
        assert feature_files.main(["download", "a", "--known", str(path), "--to", str(tmp_path / "to")]) == 2
    assert not (tmp_path / "to").exists()
