"""The command line: ``python -m feature_files inspect|convert|join|merge|download``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_files import download
from files import InputError

if TYPE_CHECKING:
    from dataloader import Corpus

FOLDER = Path(__file__).parent.parent / "IEMOCAP_features"


def _write(corpus: Corpus, path: Path, provenance: Mapping[str, Any]) -> None:
    from feature_files import write_container, write_nine_tuple

    if path.suffix in (".pkl", ".pickle", ".p"):
        write_nine_tuple(corpus, path)
    else:
        write_container(corpus, path, provenance)


def build_parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="python -m feature_files", description="Look at, convert, join and fetch feature files."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    look = commands.add_parser("inspect", help="print what a file is and what is suspicious about it")
    look.add_argument("file", type=Path, help="a feature file, or the folder of one that is several files")
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
    for command in (look, one, two):
        command.add_argument("--missing", default="refuse", help="refuse (default) or mask what a modality lacks")
    for command in (look, one):
        command.add_argument(
            "--label-names",
            metavar="A,B,C",
            help="names of the classes from 0 up; a file IN.labels.txt or IN.labels.json beside IN does the same",
        )

    get = commands.add_parser("download", help="fetch a known public file and verify it")
    get.add_argument("name", help="one of: " + ", ".join(entry["name"] for entry in download.known_files()))
    get.add_argument("--to", type=Path, default=FOLDER, help="folder to put it in")
    get.add_argument("--known", type=Path, default=download.KNOWN_FILES, help="list of known files (default: ours)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it went well, 2 after one line that says what is wrong."""
    args = build_parser().parse_args(argv)
    try:
        if args.command == "inspect":
            from feature_files import inspection

            report = inspection.inspect(args.file, args.plot, args.missing, args.label_names)
            print(json.dumps(report, indent=2) if args.json else inspection.as_text(report))
        elif args.command == "download":
            print(download.download(args.name, args.to, args.known))
        elif args.command == "merge":
            from feature_files import merge

            merge(args.parts, args.out)
            print(args.out)
        else:
            from feature_files import join, read

            choices = {"text_layers": args.text_layers, "target": args.target, "missing": args.missing}
            files = [args.file] if args.command == "convert" else [args.text_file, args.av_file]
            corpora = [read(file, **choices, label_names=getattr(args, "label_names", None)) for file in files]
            corpus = corpora[0] if len(corpora) == 1 else join(*corpora, str(args.out))
            origin = [{"file": file.name, "sha256": c.sha256} for file, c in zip(files, corpora, strict=True)]
            before = corpora[0].provenance if len(corpora) == 1 else {}
            _write(corpus, args.out, {**before, "from": origin, **choices})
            print(args.out)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
