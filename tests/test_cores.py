"""How long threads spin where they wait, by what other processes do."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiment import cores

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="asks Linux")


def test_cores_are_shared_where_there_are_fewer_than_threads_and_other_busy_processes(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for number, shared in ((1, True), (1_000_000, False)):
        monkeypatch.setattr(os, "cpu_count", lambda number=number: number)
        assert cores.shared_at_start() == shared


def test_while_others_use_the_cores_there_are_more_threads_than_cores():
    """What GNU's OpenMP looks at to spin briefly, in a process of its own: threads stay in this one."""
    script = """
        import os, time
        import torch
        from experiment import cores

        def threads():
            return len(os.listdir("/proc/self/task"))

        def until(true):
            for _ in range(1000):
                if true():
                    return True
                time.sleep(0.01)
            return False

        others, started = 0.0, time.monotonic()
        cores._busy = lambda: time.process_time() + others * (time.monotonic() - started)
        cores.LOOK = 0.01
        torch.empty(2**17).fill_(0)
        alone, available = threads(), len(os.sched_getaffinity(0))
        with cores.watched():
            assert until(lambda: threads() == alone + 1), "the one that looks"
            others = float(os.cpu_count())
            # At least as many more as make the threads of OpenMP, of which 2 are there, more than the cores.
            assert until(lambda: threads() >= alone + 1 + 2 * max(1, available - 1)), "others have come"
            others = 0.0
            started = time.monotonic()
            assert until(lambda: threads() == alone + 1), "they have gone"
        assert until(lambda: threads() == alone)
        with cores.watched():
            for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
                os.environ[name] = "1"
                with cores.watched():
                    assert threads() == alone + 1, "what is set is left"
                del os.environ[name]
    """
    settings = {n: v for n, v in os.environ.items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env=settings | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
