"""Processes that decode. One that crashes, hangs or asks for too much memory costs its clip, and nothing else."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .media import UnreadableError

AHEAD = 3  # clips a worker has waiting
PATIENCE = 300.0  # seconds that decoding of one clip may take
MEMORY = 6 * 2**30  # bytes of addresses that a worker may ask for


class Workers:
    """A pool of processes.

    Args:
        count: How many; 0 to run in this process, where a crash is a crash.
        patience: Seconds that one call may take.
        memory: Bytes of address space that a worker may have.
    """

    def __init__(self, count: int, patience: float = PATIENCE, memory: int = MEMORY):
        self.count, self.patience = count, patience
        self.pool: Any = None
        if count:
            from .models import need  # not above: it imports torch, which processes that decode do without

            # Not fork: threads of torch and CUDA do not survive it.
            self.pool = need("--workers", "pebble").ProcessPool(
                max_workers=count,
                initializer=_start,
                initargs=[os.getpid(), memory],
                context=multiprocessing.get_context("spawn"),
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.stop()
            self.pool.join()

    def map(self, function: Callable[..., Any], calls: Iterable[tuple[Any, dict]]) -> Iterator[tuple[Any, Any]]:
        """Run a function on each call's keywords, a few ahead of whoever takes the results, in order.

        Args:
            function: A function of a module, which each worker imports.
            calls: Pairs of anything and the keyword arguments.

        Yields:
            The anything, and what the function returned or the `UnreadableError` that says why there is nothing.

        Raises:
            InputError: If a package that the function needs is not installed.
        """
        for what, result in self._results(function, calls):
            if isinstance(result, ImportError):  # the user's to mend, not the clip's
                from .house import InputError
                from .models import REQUIREMENTS

                raise InputError(
                    f"decoding: the package {result.name} cannot be imported; pip install -r {REQUIREMENTS}"
                )
            yield what, result

    def _results(self, function: Callable[..., Any], calls: Iterable[tuple[Any, dict]]) -> Iterator[tuple[Any, Any]]:
        if self.pool is None:
            for what, keywords in calls:
                yield what, _caught(function, keywords)
            return
        waiting: deque[tuple[Any, Any]] = deque()
        calls = iter(calls)
        while True:
            while len(waiting) < AHEAD * self.count and (call := next(calls, None)) is not None:
                future = self.pool.schedule(_caught, args=[function, call[1]], timeout=self.patience)
                waiting.append((call[0], future))
            if not waiting:
                return
            what, future = waiting.popleft()
            yield what, self._result(future)

    def _result(self, future: Any) -> Any:
        from pebble import ProcessExpired

        try:
            return future.result()
        except ProcessExpired as error:
            how = f"signal {-error.exitcode}" if (error.exitcode or 0) < 0 else f"exit status {error.exitcode}"
            return UnreadableError(f"the decoder crashed ({how})")
        except TimeoutError:
            return UnreadableError(f"decoding took longer than {self.patience:g} s")


def _caught(function: Callable[..., Any], keywords: dict) -> Any:
    try:
        return function(**keywords)
    except (UnreadableError, ImportError) as error:
        return error
    except MemoryError:
        return UnreadableError("decoding asks for too much memory")
    except Exception as error:  # a damaged file can raise anything
        return UnreadableError(f"damaged ({type(error).__name__})")


def _start(parent: int, memory: int) -> None:
    """Make a worker quiet, modest, and no orphan."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    with contextlib.suppress(ValueError, OSError):  # a system with no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with contextlib.suppress(ImportError):
        import av

        av.logging.set_level(av.logging.PANIC)  # it writes of damaged files straight to the terminal

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
