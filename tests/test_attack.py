"""The driver of the attacks sees what it is there to see, and the command prints it by class."""

import sys
import time
from pathlib import Path

import attack
import pytest
from attacks.driver import Attack, judge


def refusing(argv):
    print("error: no", file=sys.stderr)
    return 2


def writing(*names, status=0):
    def run(argv):
        for name in names:
            Path(name).write_text("x")
        return refusing(argv) if status else 0

    return run


def crashing(argv):
    raise ValueError("what nobody caught")


def saying(text, status=0):
    def run(argv):
        sys.stderr.write(text)
        return status

    return run


def late(argv):
    time.sleep(30)


def greedy(argv):
    return len(bytearray(b"x" * 200_000_000)) and 0


CASES = {
    "nothing": (lambda argv: 0, {}, ""),
    "a refusal": (refusing, {"refuse": True}, ""),
    "what is new": (writing("new"), {}, ""),
    "its own": (writing("own"), {"may": "own"}, ""),
    "an exception": (crashing, {}, "what nobody caught"),
    "a status": (lambda argv: 7, {}, "status 7"),
    "several lines": (saying("a\nb\n", 2), {}, "2 lines"),
    "no line": (saying("", 2), {}, "0 lines"),
    "raw text": (saying("\x1b[31m\n", 2), {}, "shown raw"),
    "acceptance": (lambda argv: 0, {"refuse": True}, "not refused"),
    "another's file": (writing("own"), {}, "own"),
    "a file outside": (writing("../new"), {}, "new"),
    "what is half-written": (writing(".a.1.tmp"), {}, ".a.1.tmp"),
    "a file of a refusal": (writing("new", status=2), {}, "new"),
    "its own, refused": (writing("own", status=2), {"may": "own"}, "own"),
    "what is left": (lambda argv: 0, {"check": lambda folder: "wrong" * (folder / "own").exists()}, "wrong"),
    "a time": (late, {"seconds": 1}, "signal 14"),
    "memory": (greedy, {}, "MB"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_driver_sees(case, tmp_path):
    run, about, why = CASES[case]
    one = Attack("", "", lambda folder: (folder / "own").write_text("theirs") and [], run, **about)
    found = judge(one, tmp_path, memory=2**26)
    assert (why in found) if why else (found == "")


def test_the_command_prints_what_was_tried_and_held_by_class(monkeypatch, capsys):
    def made():
        yield Attack("mine", "one that holds", lambda folder: [], refusing)
        yield Attack("mine", "one that does not", lambda folder: [], crashing)

    monkeypatch.setattr(attack, "KINDS", {"mine": made})
    assert attack.main(["--only", "mine"]) == 1
    said = capsys.readouterr().out.split("\n")
    assert said[1].split() == ["mine", "2", "1"] and "one that does not" in said[3]
    with pytest.raises(SystemExit):
        attack.main(["--only", "none"])


def test_every_class_of_the_issue_is_there():
    kinds = {"values", "texts", "bombs", "liars", "oddities", "downloads", "configs", "flags", "names", "directories"}
    assert kinds | {"streams"} == set(attack.KINDS)


def test_where_memory_cannot_be_seen_nothing_is_tried(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(attack, "STATM", tmp_path / "statm")
    with pytest.raises(SystemExit):
        attack.main(["--only", "values"])
    assert "run it on Linux" in capsys.readouterr().err
