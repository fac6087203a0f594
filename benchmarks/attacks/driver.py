"""One attack, and the judgement whether it held: run in a child, within bounds, what it changed seen from outside."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import feature_files
from files import is_printable

ROOT = Path(__file__).resolve().parent.parent.parent
STATM = Path("/proc/self/statm")  # what a process holds, in pages
SECONDS, MEMORY = 20, 2**29
LONGEST = 2500  # characters of a complaint


@dataclass(frozen=True)
class Attack:
    """A command, and what stands in its folder.

    Attributes:
        kind: The class it is counted under.
        name: What it is, for the list of those that got through.
        make: Writes into an empty folder, in which the command then runs, and returns the arguments.
        run: The command: takes the arguments, returns the exit status.
        refuse: Whether it must be refused.
        may: The file or folder, of those that were there, that the command may change where it is not refused.
        even_refused: Whether it may change that where it is refused, too.
        check: Looks at the folder afterwards; what is wrong, or nothing.
        seconds: That it may take.
    """

    kind: str
    name: str
    make: Callable[[Path], Sequence[str]]
    run: Callable[[Sequence[str]], int] = feature_files.main
    refuse: bool = False
    may: str = ""
    even_refused: bool = False
    check: Callable[[Path], str] = lambda folder: ""
    seconds: int = SECONDS


def shell(arguments: Sequence[str]) -> int:
    """Become bash with a line whose status is that of the first command to fail."""
    sys.stdout.flush()
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    os.execvp("bash", ["bash", "-o", "pipefail", "-c", *arguments])


def there(folder: Path) -> dict[str, tuple]:
    """Everything in a folder with what is in it; of large files and devices, when they were written."""
    found = {}
    for at, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(at, name)
            about = path.lstat()
            inside: Any = about.st_mtime_ns
            if path.is_symlink():
                inside = path.readlink()
            elif path.is_dir():
                inside = None
            elif path.is_file() and about.st_size < 2**24:
                inside = path.read_bytes()
            found[str(path.relative_to(folder))] = (about.st_mode, inside)
    return found


def changes(before: dict[str, tuple], after: dict[str, tuple], attack: Attack, refused: bool) -> list[str]:
    """What a command had no business with: of a refused one anything, else what was there and is not its own."""
    names = [n for n in before.keys() | after.keys() if before.get(n) != after.get(n)]
    own = f"in/{attack.may}"
    if attack.may and (attack.even_refused or not refused):
        names = [n for n in names if n != own and not n.startswith(f"{own}/")]
    return sorted(n for n in names if refused or n in before or not n.startswith("in/") or n.endswith(".tmp"))


def judge(attack: Attack, outer: Path, seconds: int = 0, memory: int = MEMORY) -> str:
    """Why an attack got through; empty where it held.

    Args:
        attack: What to try.
        outer: An empty folder; the command runs in a folder in it, which is its home as well.
        seconds: That it may take, if not its own.
        memory: Bytes that it may take besides what this process has.
    """
    folder = outer / "in"
    folder.mkdir()
    arguments, before = attack.make(folder), there(outer)
    base = int(STATM.read_text().split()[1]) * resource.getpagesize()  # what the child begins with
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            status = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                torch.set_num_threads(1)  # others did not come along into the child
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(seconds or attack.seconds)
                if attack.run is not shell:
                    now = int(STATM.read_text().split()[0]) * resource.getpagesize()
                    resource.setrlimit(resource.RLIMIT_AS, (now + 2**33, now + 2**33))
                os.environ["HOME"] = str(folder)
                os.chdir(folder)
                status = attack.run(arguments)
            except SystemExit as done:
                status = done.code
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status if isinstance(status, int) else 98)
        _, waited, used = os.wait4(child, 0)
        out.seek(0)
        err.seek(0)
        shown, complaint = (stream.read().decode("utf-8", "replace") for stream in (out, err))
    if os.WIFSIGNALED(waited):
        return f"killed by signal {os.WTERMSIG(waited)} (14 is the time limit)"
    status = os.WEXITSTATUS(waited)
    if status not in (0, 1, 2) or "Traceback" in complaint or "Exception ignored" in complaint:
        return f"status {status}: {' '.join(complaint.split())[-150:]!a}"
    if complaint.count("\n") > 1 or len(complaint) > LONGEST or (status and attack.run is not shell and not complaint):
        return f"{complaint.count(chr(10))} lines, {len(complaint)} characters: {complaint[:150]!a}"
    if not all(map(is_printable, (shown + complaint).split("\n"))):
        return f"shown raw: {complaint + shown!a:.150}"
    if used.ru_maxrss * 1024 - base > memory:
        return f"{(used.ru_maxrss * 1024 - base) >> 20} MB"
    if attack.refuse and status != 2:
        return f"was not refused, but ended with {status}"
    if stray := changes(before, there(outer), attack, status == 2 and attack.run is not shell):
        return f"changed {stray[:3]!a}"
    return attack.check(folder)


def attempt(attack: Attack) -> str:
    """Why an attack got through; empty where it held."""
    with tempfile.TemporaryDirectory(prefix="attack-") as outer:
        return judge(attack, Path(outer))
