"""The command line: ``python -m feature_files inspect|convert|join|merge|download``.

Nothing heavy is imported before the flags are known to be right.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_files import download
from files import InputError, complain, open_streams, printable, say, spare

if TYPE_CHECKING:
    from dataloader import Corpus

FOLDER = Path(__file__).parent.parent / "IEMOCAP_features"


def build_parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="python -m feature_files", description="Look at, convert, join and fetch feature files."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    look = commands.add_parser("inspect", help="print what a file is and what is suspicious about it")
    look.add_argument(
        "file", type=Path, metavar="FILE", help="a feature file, or the folder of one that is several files"
    )
    look.add_argument("--json", action="store_true", help="for machines")
    look.add_argument("--plot", type=Path, metavar="PNG", help="draw class shares, lengths and a map of each modality")

    one = commands.add_parser("convert", help="write a file as our container, or as a 9-tuple where OUT is a .pkl")
    one.add_argument("file", type=Path, metavar="IN", help="a feature file of any known layout")
    one.add_argument("out", type=Path, metavar="OUT", help="NAME.safetensors, or NAME.pkl for the 9-tuple")

    two = commands.add_parser("join", help="join the text of one file with the other modalities of another")
    two.add_argument("text_file", type=Path, help="has the text")
    two.add_argument("av_file", type=Path, help="has visual, acoustic, or both, of the same utterances")
    two.add_argument("out", type=Path, metavar="OUT", help="as for convert")

    many = commands.add_parser("merge", help="join the parts that extract_features.py --shard wrote")
    many.add_argument("parts", type=Path, nargs="+", metavar="PARTS", help="all of them, in any order")
    many.add_argument("out", type=Path, metavar="OUT", help="NAME.safetensors")

    for command in (one, two):
        command.add_argument("--text-layers", default="mean", help="mean (default), concat, or a layer's number from 1")
        command.add_argument("--target", default="emotion", help="emotion (default) or sentiment")
        command.add_argument(
            "--keep-unlabelled",
            action="store_true",
            help="take utterances without a label too (None, NaN, below 0, or a file that has none), for predict.py",
        )
    for command in (look, one, two):
        command.add_argument("--missing", default="refuse", help="refuse (default) or mask what a modality lacks")
    for command, name in ((look, "FILE"), (one, "IN")):
        command.add_argument(
            "--label-names",
            metavar="A,B,C",
            help=f"names of the classes from 0 up; beside it, {name}.labels.txt or {name}.labels.json does the same",
        )

    get = commands.add_parser("download", help="fetch a known public file and verify it")
    get.add_argument("name", help="one of: " + ", ".join(entry["name"] for entry in download.known_files()))
    get.add_argument("--to", type=Path, default=FOLDER, help="folder to put it in")
    get.add_argument("--known", type=Path, default=download.KNOWN_FILES, help="list of known files (default: ours)")
    return parser


def main(argv: Sequence[str] | None = None, ready: Callable[[], None] = lambda: None) -> int:
    """Run a command: write its files, then print.

    Args:
        argv: The command line, without the program.
        ready: Called when everything is imported and the work begins.

    Returns:
        0 if it went well, 2 after one line that says what is wrong.
    """
    open_streams()
    args = build_parser().parse_args(argv)
    try:
        try:
            say({"inspect": _inspect, "download": _download, "merge": _merge}.get(args.command, _convert)(args, ready))
        except MemoryError:
            raise InputError(f"{args.command}: out of memory; give it a smaller file, or more memory") from None
    except InputError as error:
        complain(str(error))
        return 2
    return 0


def _inspect(args: argparse.Namespace, ready: Callable[[], None]) -> str:
    from feature_files import inspection

    ready()
    if args.plot:
        _spare([args.file], args.plot)
    report = inspection.inspect(args.file, args.plot, args.missing, args.label_names)
    return json.dumps(report, indent=2) if args.json else inspection.as_text(report)


def _download(args: argparse.Namespace, ready: Callable[[], None]) -> str:
    ready()
    return printable(str(download.download(args.name, args.to, args.known)), None)


def _convert(args: argparse.Namespace, ready: Callable[[], None]) -> str:
    from functools import partial

    from feature_files import join, read, write_container, write_nine_tuple
    from feature_files.unlabelled import read_whole

    ready()
    choices = {"text_layers": args.text_layers, "target": args.target, "missing": args.missing}
    files = [args.file] if args.command == "convert" else [args.text_file, args.av_file]
    _spare(files, args.out)
    reader = read_whole if args.keep_unlabelled else partial(read, needs=())  # predict.py needs no split
    corpora = [reader(file, **choices, label_names=getattr(args, "label_names", None)) for file in files]
    corpus = corpora[0] if len(corpora) == 1 else join(*corpora, str(args.out))
    if args.out.suffix.lower() in (".pkl", ".pickle", ".p"):
        write_nine_tuple(corpus, args.out)
    else:
        write_container(corpus, args.out, _provenance(files, corpora, choices))
    return printable(str(args.out), None)


def _merge(args: argparse.Namespace, ready: Callable[[], None]) -> str:
    from feature_files import merge

    ready()
    _spare(args.parts, args.out)
    merge(args.parts, args.out)
    return printable(str(args.out), None)


def _provenance(files: Sequence[Path], corpora: Sequence[Corpus], choices: Mapping[str, str]) -> dict[str, Any]:
    origin = [
        {"file": printable(file.name, 200), "sha256": corpus.sha256}
        for file, corpus in zip(files, corpora, strict=True)
    ]
    before = corpora[0].provenance if len(corpora) == 1 else {}
    return {**before, "from": origin, **choices}


def _spare(inputs: Sequence[Path], out: Path) -> None:
    """Refuse to write over what is to be read, or a file of class names beside it."""
    spare(
        [*inputs, *(p.with_name(p.name + end) for p in inputs for end in (".labels.txt", ".labels.json") if p.name)],
        out,
    )


def _catch_signals() -> None:
    """Make the signals that stop us exceptions, so that nothing half-written stays."""

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # one that is ignored, as by nohup, stays ignored
            signal.signal(number, stop)


def run() -> int:
    """The command line as a program: also when it is stopped, or when nobody reads what it prints."""
    try:
        status = main(ready=_catch_signals)
    except KeyboardInterrupt as stopped:
        complain("stopped; nothing half-written was kept")
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    except SystemExit as done:  # after --help, or a wrong flag
        status = done.code
    try:
        say()
    except InputError as error:
        complain(str(error))
        return 2
    return status
