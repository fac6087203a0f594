"""How long threads wait for each other by spinning: long on cores of one's own, briefly on cores that others use, too.

OpenMP's threads spin where one has to wait for the others. On idle cores that is right: to sleep and be woken takes
longer than most operations. Where another process is running, they spin on the core of which it, or the thread they
wait for, has need, and training takes several times as long (docs/performance.md).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

LOOK = 0.5  # seconds between two looks at what others do
OTHERS = 0.3  # cores; less is the system's own work


def threads_asked_for() -> int | None:
    """What OMP_NUM_THREADS says, if it says a number."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if re.fullmatch(r"[1-9]\d{0,3}", said) else None


def threads() -> int:
    """How many threads OpenMP takes."""
    return threads_asked_for() or len(os.sched_getaffinity(0))


def waiting_is_set() -> bool:
    """Whether the user has said how long threads spin."""
    return bool({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys())


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let a thread work while the block does, until the event it is given is set."""
    ended = threading.Event()
    worker = threading.Thread(target=work, args=(ended,), daemon=True)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


def shared_at_start() -> bool:
    """Whether other processes keep so many cores busy that threads of this one will have to wait for theirs."""
    running = []
    try:
        for _ in range(5):  # the least of several looks: a process may be awake for a moment
            running.append(int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]))
            time.sleep(0.002)
    except (OSError, ValueError, IndexError):
        return False  # no Linux
    return min(running) - 1 + threads() > (os.cpu_count() or 1)


def watched() -> AbstractContextManager[None]:
    """Meanwhile let waiting threads spin no longer than others leave cores for them.

    OpenMP reads how long when it is loaded. But GNU's spins briefly where a process has more of its threads than there
    are cores. So where other processes come, threads are made that sleep, and ended when those have gone; nothing that
    is computed depends on it. Does nothing where ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` is set, or without Linux.
    """
    if waiting_is_set() or not Path("/proc/stat").exists() or threads() < 2:
        return nullcontext()
    return beside(_watch)


def _watch(done: threading.Event) -> None:
    with suppress(OSError, ValueError), ExitStack() as idle:  # a system that says nothing of its cores
        before, spinning = (time.monotonic(), _busy(), time.process_time()), True
        while not done.wait(LOOK):
            now = time.monotonic(), _busy(), time.process_time()
            passed, every, own = (b - a for a, b in zip(before, now, strict=True))
            before = now
            shared = (every - own) / passed + threads() > (os.cpu_count() or 1) + OTHERS
            if shared and spinning:
                for _ in range(-(-(len(os.sched_getaffinity(0)) + 1 - threads()) // (threads() - 1))):
                    idle.enter_context(beside(_compute_and_sleep))  # until OpenMP has more threads than cores
            elif not shared and not spinning:
                idle.close()
            spinning = not shared


def _busy() -> float:
    """Seconds for which the machine's cores have been busy, all together."""
    line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts = map(int, line.split()[1:8])
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def _compute_and_sleep(done: threading.Event) -> None:
    """Hold threads of OpenMP: each of Python's that has computed something has others of its own."""
    import torch

    torch.empty(2**17).fill_(0)  # so large that all threads take part
    done.wait()
