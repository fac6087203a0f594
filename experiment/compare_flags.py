"""The command line of ``compare.py``. The standard library alone, so that wrong flags are answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from experiment.flags import HelpFormatter, Parser, flag_type
from experiment.settings import Number


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(
        prog="compare.py",
        description="The same test utterances under several runs: scores, differences, and intervals over dialogues.",
        epilog="Differences are to the first run.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="directory of a run, or of a run of --seeds or --folds")
    parser.add_argument(
        "--predictions",
        metavar="CSV",
        action="append",
        default=[],
        help="somebody else's predictions: the columns utterance and predicted (a name or number), maybe dialogue",
    )
    parser.add_argument("--out", metavar="DIR", help="write the tables there as CSV, Markdown and LaTeX (booktabs)")
    parser.add_argument(
        "--html", metavar="FILE", help="write a page of the differences, and the utterances they are in"
    )
    parser.add_argument(
        "--draws", metavar="N", type=flag_type(Number(int, 100, 1_000_000).parse), default=10_000, help="of bootstrap"
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; exits with status 2 and one line if they are wrong."""
    return build_parser().parse_args(argv)
