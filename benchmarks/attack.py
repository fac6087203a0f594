"""Attack what reads strangers' files, run directories, flags, names and servers; print what was tried and what held.

    python benchmarks/attack.py [--only values,bombs] [--share 0.1] [--seed 1]

Held means: it was done, or refused in one line with exit status 2 (1 where a training cannot go on); no traceback,
nothing unprintable on the terminal, nothing changed that the command had no business with, nothing half-written, and
all of it within 20 seconds and 512 MB (a line of the shell: 120 seconds). ``attacks/`` has them, by class.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attacks import downloads, features, runs
from attacks.driver import STATM, attempt

import feature_files
from experiment import plots  # noqa: F401 - matplotlib looks for fonts, and would note them in the home of an attack

KINDS = {
    **{name: getattr(features, name) for name in ("values", "texts", "bombs", "liars", "oddities")},
    "downloads": downloads.downloads,
    **{name: getattr(runs, name) for name in ("configs", "flags", "names", "directories", "streams")},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Try them, and print a row a class. Returns 1 if anything got through."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(KINDS), metavar="A,B", help=f"classes, of {','.join(KINDS)}")
    parser.add_argument("--share", type=float, default=1.0, help="the part of each class's attacks to try")
    parser.add_argument("--seed", type=int, default=0, help="which part")
    args = parser.parse_args(argv)
    if not STATM.exists():
        parser.error(f"this system does not say what a process holds ({STATM}); run it on Linux")
    kinds = args.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--only: no class {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    with contextlib.redirect_stderr(io.StringIO()):
        feature_files.main(["inspect", "/nowhere"])  # everything is imported before the first child
    chosen, through = random.Random(args.seed), []
    print(f"{'class':<12}{'tried':>8}{'held':>8}")
    for kind in kinds:
        tried = [(a, attempt(a)) for a in KINDS[kind]() if chosen.random() < args.share]
        lost = [(a, why) for a, why in tried if why]
        through += lost
        print(f"{kind:<12}{len(tried):>8,}{len(tried) - len(lost):>8,}", flush=True)
    for attack, why in through:
        print(f"\n{attack.kind}: {attack.name!a:.120}\n    {why!a:.400}")
    return int(bool(through))


if __name__ == "__main__":
    sys.exit(main())
