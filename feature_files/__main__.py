"""``python -m feature_files``."""

import signal
import sys


def _run() -> int:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # quiet while importing: there is nothing to clean up yet
    from feature_files.commands import run

    return run()


if __name__ == "__main__":
    sys.exit(_run())
