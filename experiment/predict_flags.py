"""The command line of ``predict.py``. The standard library alone, so that wrong flags are answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from experiment.flags import HelpFormatter, Parser, flag_type
from experiment.settings import DEVICE, DataSettings, RunSettings


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(
        prog="predict.py",
        description="What a trained run, or the runs of several seeds as one, says of conversations.",
        epilog="The run is a directory that train_IEMOCAP.py wrote.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="directory of the run; of a --seeds run, its members are averaged")
    parser.add_argument("file", metavar="FILE", nargs="?", help="a feature file of any layout, labelled or not")
    what = parser.add_argument_group("what to do, besides predicting FILE")
    what.add_argument("--manifest", metavar="CSV", help="recordings that a CSV file lists, by the run's own encoders")
    what.add_argument("--recording", metavar="MEDIA", help="a recording with its transcript, by the run's own encoders")
    what.add_argument("--stream", action="store_true", help="answer turns, JSON lines on standard input, as they come")
    what.add_argument("--export", metavar="OUT", help="write the network as .onnx, or as .pt2 for torch.export")
    files = parser.add_argument_group("predicting a file")
    files.add_argument("--speakers", type=int, metavar="N", help="of a recording: how many there are, to be checked")
    files.add_argument(
        "--transcript", metavar="PATH", help="of a recording: .srt, .vtt or .TextGrid (default: beside it)"
    )
    files.add_argument(
        "--transcribe",
        metavar="RECOGNISER",
        help="of a recording without a transcript: transformers:NAME_OR_FOLDER of a Whisper model; one speaker",
    )
    files.add_argument("--cache", metavar="DIR", default=".extract_cache", help="where features of recordings are kept")
    files.add_argument("--out", metavar="CSV", help="where the table goes (default: predictions.csv)")
    files.add_argument("--json", action="store_true", help="print JSON lines, one an utterance; no table unless --out")
    files.add_argument("--quiet", action="store_true", help="print no transcript")
    files.add_argument("--split", metavar="NAME", help="train, valid or test alone (default: all dialogues)")
    both = parser.add_argument_group("files and streams")
    both.add_argument(
        "--missing",
        choices=("refuse", "mask"),
        default=DataSettings().missing,
        help="what lacks a modality of the run's: refuse it, or do without",
    )
    both.add_argument(
        "--device",
        type=flag_type(DEVICE.parse),
        default=RunSettings().device,
        help="auto, cpu, cuda, cuda:1, mps",
    )
    both.add_argument("--strict", action="store_true", help="with --stream: stop at the first turn that is refused")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked against each other; exits with status 2 and one line if they are wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    asked = [
        name
        for name, given in (
            ("FILE", args.file),
            ("--manifest", args.manifest),
            ("--recording", args.recording),
            ("--stream", args.stream),
            ("--export", args.export),
        )
        if given
    ]
    if len(asked) != 1:
        instead = f", not {' and '.join(asked)}" if asked else ""
        parser.error(f"give one of FILE, --manifest, --recording, --stream and --export{instead}")
    for flag in ("out", "json", "quiet", "split"):
        if getattr(args, flag) and not (args.file or args.manifest or args.recording):
            parser.error(f"--{flag} goes with a FILE; leave it out with {asked[0]}")
    for flag in ("speakers", "transcript", "transcribe"):
        if getattr(args, flag) is not None and not args.recording:
            parser.error(f"--{flag} goes with --recording; leave it out with {asked[0]}")
    if args.cache != parser.get_default("cache") and not (args.recording or args.manifest):
        parser.error(f"--cache goes with --recording and --manifest; leave it out with {asked[0]}")
    if args.transcribe and args.transcript:
        parser.error("--transcribe does not go with --transcript; leave one out")
    if args.strict and not args.stream:
        parser.error("--strict goes with --stream; leave it out")
    return args
