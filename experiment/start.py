"""What a script does before its heavy imports, and how it ends. The standard library alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from importlib import import_module

from experiment.cores import shared_at_start


def begin(parse_args: str | Callable[[], object]) -> None:
    """Answer ``--help`` and wrong flags at once, and make the imports that follow quiet to interrupt.

    Call it first in a script. Python handles Ctrl-C again once the script calls `ready`.

    Args:
        parse_args: Parses the command line, and exits where that is all there is to do; or the module that has a
            function of that name, to be imported here.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from files import WriteError, complain, open_streams, say

    open_streams()
    try:
        (import_module(parse_args).parse_args if isinstance(parse_args, str) else parse_args)()
    except SystemExit as stop:
        try:
            say()
        except WriteError as error:
            complain(str(error))
            raise SystemExit(stop.code or 1) from None
        if stop.code and os.environ.get("WORLD_SIZE") != os.environ.get("LOCAL_WORLD_SIZE"):
            from parallel import leave_word

            leave_word()  # or processes on other hosts would wait for this one
        raise
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() and shared_at_start():
        os.environ["GOMP_SPINCOUNT"] = "100"  # OpenMP reads it when torch loads


def ending(work: Callable[[], int | None]) -> int:
    """Do the work of a script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted.

    Args:
        work: Returns a status of its own, or nothing where all went well.
    """
    from files import InputError, TrainingError, complain

    try:
        return work() or 0
    except (InputError, TrainingError) as error:
        complain(f"error: {error}")
        return 2 if isinstance(error, InputError) else 1
    except MemoryError:
        complain("error: out of memory; give it less at once, or more memory")
        return 2
    except KeyboardInterrupt as stop:
        complain(str(stop) or "Stopped.")
        return 130


def ready() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, as Python does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
