"""How long threads wait for each other by spinning: long on cores of one's own, briefly on cores that others use, too.

OpenMP's threads spin where one has to wait for the others. On idle cores that is right: to sleep and be woken takes
longer than most operations. Where another process is running, they spin on the core of which it, or the thread they
wait for, has need, and training takes several times as long (docs/performance.md).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

LOOK = 0.5  # seconds between two looks at what others do
OTHERS = 0.3  # cores; less is the system's own work


def threads() -> int:
    """How many threads OpenMP takes."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else len(os.sched_getaffinity(0))


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


@contextmanager
def watched() -> Iterator[None]:
    """Meanwhile let waiting threads spin no longer than others leave cores for them.

    OpenMP reads how long when it is loaded. But GNU's spins briefly where a process has more of its threads than there
    are cores. So where other processes come, threads are made that sleep, and ended when those have gone; nothing that
    is computed depends on it. Does nothing where ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` is set, or without Linux.
    """
    set_already = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    if set_already or not Path("/proc/stat").exists() or threads() < 2:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(done,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(done: threading.Event) -> None:
    with suppress(OSError, ValueError), ExitStack() as idle:  # a system that says nothing of its cores
        before, spinning = (time.monotonic(), _busy(), time.process_time()), True
        while not done.wait(LOOK):
            now = time.monotonic(), _busy(), time.process_time()
            passed, every, own = (b - a for a, b in zip(before, now, strict=True))
            before = now
            shared = (every - own) / passed + threads() > (os.cpu_count() or 1) + OTHERS
            if shared and spinning:
                idle.enter_context(_more_threads_than_cores())
            elif not shared and not spinning:
                idle.close()
            spinning = not shared


def _busy() -> float:
    """Seconds for which the machine's cores have been busy, all together."""
    line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts = map(int, line.split()[1:8])
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _more_threads_than_cores() -> Iterator[None]:
    """Threads of OpenMP that sleep: each of Python's that has computed something has others of its own."""
    import torch

    done = threading.Event()

    def compute_and_sleep() -> None:
        torch.empty(2**17).fill_(0)  # so large that all threads take part
        done.wait()

    more = -(-(len(os.sched_getaffinity(0)) + 1 - threads()) // (threads() - 1))
    idle = [threading.Thread(target=compute_and_sleep, daemon=True) for _ in range(more)]
    for thread in idle:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in idle:
            thread.join()
