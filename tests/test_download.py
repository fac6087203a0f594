"""Downloads from a local server that serves well, breaks off, lies, and serves another file."""

import hashlib
import json
import re
import threading
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


def test_nothing_behind_what_is_there(server, known, tmp_path):
    server.status = 416
    assert "another file" in fails(tmp_path / "to", known())
    assert names(tmp_path / "to") == []


def test_one_byte_a_connection_is_given_up(server, known, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    server.breaks = [1] * 100_000
    assert "too slow" in fails(tmp_path / "to", known())


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
