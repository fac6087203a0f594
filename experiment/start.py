"""What a script does before its heavy imports. The standard library alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


def begin(parse_args: Callable[[], object]) -> None:
    """Answer ``--help`` and wrong flags at once, and make the imports that follow quiet to interrupt.

    Call it first in a script. Python handles Ctrl-C again once the script calls `ready`.

    Args:
        parse_args: Parses the command line, and exits where that is all there is to do.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="replace")  # no locale that lacks a ± ends a run
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # OpenMP reads it when torch loads; see docs/performance.md
    parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ready() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, as Python does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
