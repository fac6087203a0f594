"""Attack run directories, flags and names as a hostile user would, and count what held, by class.

    python benchmarks/attack_runs.py            # all of it, some minutes
    python benchmarks/attack_runs.py --most 100 # a sample of each class

An attack is held if the script ends with a status of its own and at most one line on standard error, within 20 seconds
and 2 GB more than it had, and if nothing changed that it had no business with. docs/reliability.md says what is
promised.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_IEMOCAP
from experiment.flags import build_parser, parse_args
from feature_files import write_nine_tuple
from synthetic import synthetic_corpus

SECONDS, MEMORY = 20, 2 * 10**9  # that an attack may take
QUICK = ["--epochs", "1", "--GAN-epochs", "1", "--fused-channels", "16", "--device", "cpu"]
QUIET = ["--no-pictures", "--no-tensorboard"]

# What stands in the place of every value of a config.json, as Python has it before it becomes JSON.
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 10**9, 10**30, -(10**300), 0.5, 1e308, float("inf"), float("nan")),
    *("", "x", "0", "/../../x", "../x", "/", "~", "\x00", "\x1b[2J\x07", "\u202ex", "\ud800", "a\nb", "x" * 100_000),
    *([], [1], ["x"], [[]], [None] * 3, ["a", "a"], list(range(5000)), {}, {"x": 1}, {"": {}}, {"text": -1}),
    *({"text": "0.5"}, {"text": True}, {"\x1b": 1}, ["../../x", "/x"]),
]
# The same for flags and names.
TEXTS = [
    *("", " ", "0", "-1", "1", "1e3", "0x10", "1_0", "٣", "9" * 400, "9" * 5000, "-" + "9" * 400, "1e999", "nan"),
    *("inf", "-inf", str(2**63), str(-(2**63) - 1), "1e-400", "x", "x" * 300, "x" * 5000, "a\nb", "a\rb", "\x1b[2J"),
    *("\u202e", "\udcff", "\udcffx/y", "../..", "/", "~", "~nobody/x", "/proc/self/mem"),
    *("a,b", ",", "a,a", "meta", "hpu", "privateuseone", "cuda:999", "cuda:9999", "cpu:1", "xla", "lazy", "text:"),
    *("visual:0.3", "visual:2", "visual:0.3,visual:0.3", "text,text", "sessions", "$(x)", "`x`", "<script>", "=1+1"),
    *("x\ty", "☃", "é" * 130),
]


class Outcome(NamedTuple):
    """What came of one attack."""

    kind: str
    what: str
    held: bool
    why: str


class TooLong(BaseException):
    """An attack took more time than it may."""


@contextmanager
def bounded(seconds: int = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Let the body take so much time, and so much more memory than there is now."""

    def late(*_: object) -> None:
        raise TooLong

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def attempt(kind: str, what: str, argv: Sequence[str], *, parse_only: bool = False) -> Outcome:
    """Run the script in this process, within bounds."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with bounded(), redirect_stdout(out), redirect_stderr(err):
            try:
                status = parse_args(argv) and 0 if parse_only else train_IEMOCAP.main(argv)
            except SystemExit as stop:
                status = stop.code
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(kind, what, False, f"{type(error).__name__}: {error!s:.200}")
    said = err.getvalue()
    shown = said + out.getvalue()
    if train_IEMOCAP.NO_DATA in said:  # the one message of several lines
        said = "no data\n"
    if status not in (0, 1, 2) or (status and said.count("\n") != 1) or said.count("\n") > 1:
        return Outcome(kind, what, False, f"status {status}, said {said!r:.300}")
    if any((ord(c) < 32 and c != "\n") or c == "\u202e" or "\ud800" <= c <= "\udfff" for c in shown):
        return Outcome(kind, what, False, f"control characters shown: {shown!r:.300}")
    return Outcome(kind, what, True, f"status {status}: {said.strip()}")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes; links are not followed."""
    files = [Path(at, name) for at, _, names in os.walk(folder) for name in names]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.is_file() and not p.is_symlink()}


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in JSON, of long lists the first two."""
    if path:
        yield path
    if isinstance(content, dict):
        for name, value in content.items():
            yield from places(value, (*path, name))
    elif isinstance(content, list):
        for i, value in enumerate(content[:2]):
            yield from places(value, (*path, i))


def tampered(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was changed and the text of the config.json: every value replaced by odd ones, left out, or doubled."""
    for path in places(config):
        for value in [*VALUES, "left out"]:
            changed = copy.deepcopy(config)
            at = changed
            for step in path[:-1]:
                at = at[step]
            if value == "left out":
                del at[path[-1]]
            else:
                at[path[-1]] = value
            yield f"{'.'.join(map(str, path))} = {value!r:.40}", json.dumps(changed)
    text = json.dumps(config)
    yield from {
        "empty": "",
        "cut off": text[:-5],
        "nested": "[" * 100_000,
        "nested objects": '{"a":' * 100_000,
        "a number of 5,000 digits": text.replace('"seed": 0', '"seed": ' + "1" * 5000),
        "twice the same name": '{"format": 1,' + text[1:],
        "not UTF-8": text[:-1] + "\udcff}",
        "a list": "[]",
        "a text": '"x"',
        "nothing": "null",
    }.items()


def attack_configs(folder: Path, most: int | None, seed: int) -> Iterator[Outcome]:
    """Runs whose config.json was tampered with: finished, stopped, and of two seeds; resumed and evaluated."""
    features = folder / "features.pkl"
    for name, flags in (("one", []), ("two", ["--seeds", "0,1"])):
        flags = ["--features", str(features), *QUICK, *QUIET, *flags]
        sound = attempt("", "", [*flags, "--out", str(folder / name)])
        if not sound.why.startswith("status 0"):
            raise RuntimeError(f"no run to attack: {sound.why}")
    for name in ("one", "two"):
        run, config = folder / name, folder / name / "config.json"
        text, before = config.read_text(), contents(folder)
        for what, odd in sample(tampered(json.loads(text)), most, seed):
            for flag in ("--resume", "--evaluate"):
                config.write_bytes(odd.encode(errors="surrogateescape"))
                outcome = attempt("config.json", f"{name}: {flag}: {what}", [flag, str(run)])
                after = contents(folder)
                refused = "status 2" in outcome.why
                ours = f"{name}/"
                changed = [n for n in {*before, *after} if before.get(n) != after.get(n) and n != f"{name}/config.json"]
                if stray := [n for n in changed if refused or not n.startswith(ours) or ".." in n]:
                    outcome = Outcome(*outcome[:2], False, f"changed {stray[:3]}")
                    restore(folder, before)
                config.write_text(text)
                if changed:
                    restore(folder, before)
                yield outcome


def restore(folder: Path, before: dict[str, bytes]) -> None:
    """Bring a folder back to what it was."""
    for name in contents(folder).keys() - before.keys():
        (folder / name).unlink()
    for name, content in before.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def attack_flags(most: int | None, seed: int) -> Iterator[Outcome]:
    """Every flag with odd values."""
    flags = [a.option_strings[-1] for a in build_parser()._actions if a.nargs != 0 and a.option_strings]
    cases = ((flag, text) for flag in flags for text in TEXTS)
    for flag, text in sample(cases, most, seed):
        yield attempt("flags", f"{flag} {text!r:.40}", [f"{flag}={text}"], parse_only=True)


def attack_names(folder: Path, most: int | None, seed: int) -> Iterator[Outcome]:
    """Every file and folder that a flag names, by odd names; those that are made stay in the folder."""
    features, before = folder / "features.pkl", contents(folder)
    quick = ["--features", str(features), *QUICK, *QUIET]
    flags = {
        "--features": QUICK,
        "--evaluate": [],
        "--resume": [],
        "--config": quick,
        "--use-trained-GAN": quick,
        "--export-fused": [*quick, "--out", "made"],
        "--out": quick,
    }
    names = [text for text in TEXTS if text not in ("/", "~")]
    here, home = Path.cwd(), os.environ.get("HOME")
    os.environ["HOME"] = str(folder)
    try:
        for flag, text in sample(((f, t) for f in flags for t in names), most, seed):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                os.chdir(place)
                yield attempt("names", f"{flag} {text!r:.40}", [f"{flag}={text}", *flags[flag]])
                os.chdir(here)
            after = contents(folder)
            if changed := [name for name in {*before, *after} if before.get(name) != after.get(name)]:
                yield Outcome("names", f"{flag} {text!r:.40}", False, f"changed {changed[:3]}")
                restore(folder, before)
    finally:
        os.chdir(here)
        os.environ.pop("HOME") if home is None else os.environ.update(HOME=home)


def sample(cases: Iterable[Any], most: int | None, seed: int) -> Iterable[Any]:
    """All, or so many of them at random."""
    if most is None:
        return cases
    cases = list(cases)
    return random.Random(seed).sample(cases, min(most, len(cases)))


def attack(folder: Path, most: int | None = None, seed: int = 0) -> Iterator[Outcome]:
    """All attacks of this file, or `most` of each class."""
    corpus = synthetic_corpus(train=6, test=2, mean_length=5, dims={"text": 8, "visual": 6, "acoustic": 5})
    write_nine_tuple(corpus, folder / "features.pkl")
    yield from attack_flags(most, seed)
    yield from attack_names(folder, most, seed)
    yield from attack_configs(folder, most, seed)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, help="attacks of each class (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=20, help="how many that got through to print")
    args = parser.parse_args(argv)
    tried, held, through = Counter(), Counter(), []
    folder = Path(tempfile.mkdtemp())
    try:
        for outcome in attack(folder, args.most, args.seed):
            tried[outcome.kind] += 1
            held[outcome.kind] += outcome.held
            if not outcome.held:
                through.append(outcome)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{'class':<16}{'tried':>8}{'held':>8}")
    for kind in tried:
        print(f"{kind:<16}{tried[kind]:>8,}{held[kind]:>8,}")
    for outcome in islice(through, args.show):
        print(f"got through: {outcome.kind}: {outcome.what}: {outcome.why}")
    return int(bool(through))


if __name__ == "__main__":
    sys.exit(main())
