"""What got through once: hostile text, small files that unfold, odd files and flags, streams that are closed."""

import functools
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from attacks import downloads, driver, features, runs
from feature_content import LENGTHS, make_nine, refusal
from matplotlib.figure import Figure

import feature_files
from feature_files import commands
from files import InputError, WriteError, is_printable, printable, replacing

IDS = list(LENGTHS)
SECONDS, MEMORY = 60, 2**28  # of files of a megabyte; the machine may be busy


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Everything is imported before a child is forked, as in attack.py; no child looks through it for garbage."""
    feature_files.main(["inspect", "/nowhere"])
    gc.freeze()
    yield
    gc.unfreeze()


def held(one, folder):
    return driver.judge(one, folder, SECONDS, MEMORY)


def all_of(made):
    made = list(made)
    return pytest.mark.parametrize(
        "one", made, ids=[one.name.encode("ascii", "backslashreplace").decode() for one in made]
    )


@all_of(features.bombs(megabytes=1))
def test_bombs(one, tmp_path):
    assert held(one, tmp_path) == ""


@all_of(features.oddities())
def test_odd_files_and_flags(one, tmp_path):
    assert held(one, tmp_path) == ""


@all_of(features.liars())
def test_a_container_is_not_believed(one, tmp_path):
    assert held(one, tmp_path) == ""


@all_of(one for one in downloads.downloads() if "own list" not in one.name)
def test_servers_that_lie_and_what_lies_in_the_way(one, tmp_path):
    assert held(one, tmp_path) == "", one.name


TEXTS = [one for k, one in enumerate(features.texts()) if k % 9 == 0 or "TeX" in one.name]


@pytest.mark.parametrize("one", TEXTS, ids=range(len(TEXTS)))
def test_hostile_text(one, tmp_path):
    assert held(one, tmp_path) == "", one.name


def test_names_are_repaired_or_refused(save):
    nine = make_nine({"a\x1b": 2, "b": 1})
    nine[7], nine[8] = ["a\x1b"], ["b"]
    nine[0]["a\x1b"] = ["u\r=1+1", "\ud800"]
    nine[1]["a\x1b"] = ["\u202eM", "F"]
    nine[6]["a\x1b"] = ["it\x92s\0\ud800", "two\nlines"]
    corpus = feature_files.read(save(nine))
    dialogue = corpus.dialogues["a\\x1b"]
    assert corpus.splits["train"] == ("a\\x1b",)
    assert dialogue.utterances == ("u\\r=1+1", "\\ud800") and dialogue.speakers == ("\\u202eM", "F")
    assert dialogue.sentences == ("it\x92s\ufffd\ufffd", "two\nlines")  # the others are what people said
    for names in ("a\x1b,b,c,d,e,f", "a\u202e,b,c,d,e,f", "x" * 101 + ",b,c,d,e,f", "a,a,c,d,e,f", "\ud800,b,c,d,e,f"):
        assert is_printable(refusal(save(nine), label_names=names))


def test_text_made_safe_to_show():
    assert printable("Olé \u4f60 \U0001f600 $a$ \\") == "Olé \u4f60 \U0001f600 $a$ \\"
    family = "\U0001f468\u200d\U0001f469"
    assert printable(family) == family
    hostile = "\x1b[31m\x07\r\n\t\0\x9b\u202e\u2066\u2028\ufeff\ud800\U000e0041"
    shown = printable(hostile)
    assert shown.isprintable() and shown.startswith("\\x1b[31m\\x07\\r\\n\\t\\x00") and shown.encode()
    assert printable("x" * 10**6, 10) == "x" * 9 + "…" and printable("x" * 10, 10) == "x" * 10
    assert len(printable("\x1b" * 100, 50)) == 50 and printable("x" * 500, None) == "x" * 500


def test_a_device_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/"), Path(), Path("a\0")):
        with pytest.raises(WriteError), replacing(path) as temporary:
            temporary.write_bytes(b"x")
    assert pipe.is_fifo() and [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_an_output_over_an_input_is_refused(save, tmp_path, capsys):
    path = save(tuple(make_nine()))
    beside = path.with_name("features.pkl.labels.txt")
    beside.write_text("\n".join("abcdef"))
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to(path)
    hard.hardlink_to(path)
    before = path.read_bytes()
    for out in (path, link, hard, beside, tmp_path / "." / path.name):
        for arguments in (["convert", path, out], ["inspect", path, "--plot", out], ["join", path, path, out]):
            assert feature_files.main([str(a) for a in arguments]) == 2
            assert "would be lost" in capsys.readouterr().err
    assert path.read_bytes() == before and beside.read_text() == "\n".join("abcdef")


def test_what_may_not_be_read(save, tmp_path):
    path = save(tuple(make_nine()))
    folder = tmp_path / "folder"
    folder.mkdir()
    for one in (path, folder):
        one.chmod(0)
    tmp_path.chmod(0o755)

    def as_nobody():
        os.seteuid(65534)
        for one in (path, folder):
            with pytest.raises(InputError, match="cannot be read"):
                feature_files.read(one)
        return 0

    if os.geteuid():
        assert "cannot be read" in refusal(path) and "cannot be read" in refusal(folder)
        return
    outer = tmp_path.parent
    while outer != outer.parent:  # or nobody would not get as far
        if outer.stat().st_uid == 0 and outer.name.startswith("pytest-"):
            outer.chmod(0o755)
        outer = outer.parent
    child = os.fork()
    if not child:
        status = 99
        try:
            status = as_nobody()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for one in (path, folder):
        one.chmod(0o755)


# Streams and signals --------------------------------------------------------------------------------------------------


def run(arguments, out=None, err=None):
    """`commands.run` in a child whose stdout and stderr are these descriptors, or closed where one is None."""
    child = os.fork()
    if not child:
        status = 99
        try:
            for number, name, given in ((1, "stdout", out), (2, "stderr", err)):
                if given is None:
                    os.close(number)
                    setattr(sys, name, None)
                else:
                    os.dup2(given, number)
                    setattr(sys, name, os.fdopen(number, "w", closefd=False))
            sys.argv = ["feature_files", *map(str, arguments)]
            status = commands.run()
            sys.stdout.flush()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("streams", ["no reader", "full", "closed", "no errors", "none", "full errors"])
@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_files_are_written_whatever_the_streams(save, tmp_path, monkeypatch, streams, command):
    # What is in the picture does not matter here, and to draw it takes most of the time.
    monkeypatch.setattr(Figure, "savefig", lambda figure, where, **_: Path(where).write_bytes(bytes(2000)))
    path, written = save(tuple(make_nine())), tmp_path / "out.png"
    arguments = ["inspect", path, "--plot", written] if command == "inspect" else ["convert", path, written]
    reader, no_reader = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        o, e = out.fileno(), err.fileno()
        status = run(
            arguments,
            *{
                "no reader": (no_reader, e),
                "full": (full, e),
                "closed": (None, e),
                "no errors": (o, None),
                "none": (None, None),
                "full errors": (o, full),
            }[streams],
        )
    os.close(no_reader)
    os.close(full)
    assert written.stat().st_size > 1000
    assert status == (2 if streams == "full" else 0)
    complaint = (tmp_path / "err").read_text()
    assert complaint.count("\n") == (streams == "full") and ("No space left" in complaint) == (streams == "full")
    assert bool((tmp_path / "out").read_text()) == (streams in ("no errors", "full errors"))


def test_a_file_never_takes_the_place_of_a_closed_stream(save, tmp_path):
    """With descriptor 1 closed, the next file to be opened would get all that is printed."""
    path, out = save(tuple(make_nine())), tmp_path / "out.safetensors"
    assert run(["convert", path, out]) == 0
    assert feature_files.read(out).dims == feature_files.read(path).dims


@all_of(one for one in runs.streams() if one.name in ("--help | true", "--help > /dev/full", "wrong flag 2>&-"))
def test_as_a_program(one, tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "features.pkl").touch()  # no line here reads it, and to train runs takes seconds
    monkeypatch.setattr(runs, "made", lambda: tmp_path / "made")
    assert held(one, tmp_path) == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_at_any_time_is_quiet_and_leaves_nothing_half_written(save, tmp_path, number):
    path = save((*make_nine({f"d{k}": 20 for k in range(400)}, (300, 300, 300))[:7], ["d0"], ["d1"]))
    for delay in (0, 0.4, 1.2):
        process = subprocess.Popen(
            [sys.executable, "-m", "feature_files", "convert", str(path), str(tmp_path / "out.pkl")],
            cwd=driver.ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        while process.poll() is None and "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)  # Python itself is not ours to make quiet
        time.sleep(delay)
        process.send_signal(number)
        complaint = process.communicate()[1]
        assert process.returncode in (0, 128 + number, -number)
        assert "Traceback" not in complaint
        assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_a_verified_container_costs_little(save, tmp_path):
    """Reading it all takes a fraction of what reading a pickle does, so it is always done."""
    nine = make_nine({f"d{k}": 50 for k in range(100)}, (500, 500, 500))
    path, ours = save((*nine[:7], ["d0"], ["d1"])), tmp_path / "a"
    feature_files.write_container(feature_files.read(path), ours)
    took = {}
    for read in (functools.partial(feature_files.read, ours), functools.partial(feature_files.read, path)):
        began = time.process_time()
        corpus = read()
        took[len(took)] = time.process_time() - began
    assert took[0] < 3 * took[1] + 0.5
    assert np.isfinite(corpus.dialogues["d0"].features["text"]).all()
