"""A corpus as it is released, or one's own recordings, in; a feature file for train_IEMOCAP.py out.

    python extract_features.py --iemocap IEMOCAP_full_release --out IEMOCAP_features/mine.safetensors
    python extract_features.py --meld MELD.Raw --out meld.safetensors
    python extract_features.py --manifest talk.csv --out talk.safetensors
    python extract_features.py --recording talk.wav --speakers 2 --out talk.safetensors

What it needs beside the rest: pip install -r requirements-extract.txt, and as docs/extract.md says.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.start import begin, ready
from files import complain, printable, say, spare

if TYPE_CHECKING:
    from extract.listing import Listing

# Nothing heavy is imported here: every process that decodes imports this file anew.


# Flags that say something of one source alone, or of a modality's encoders: of one kind, or of any.
OF_SOURCE = {
    "iemocap": ("classes", "sessions", "keep_unlabelled"),
    "manifest": ("labels",),
    "recording": ("speakers", "transcript", "transcribe"),
}
OF_ENCODER = {
    "text_context": ("text", None),
    "text_layers": ("text", "transformers"),
    "layers": ("acoustic", "transformers"),
    "frame_rate": ("visual", None),
    "most_frames": ("visual", None),
    "face": ("visual", None),
}


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    group = parser.add_argument_group("source, one of")
    sources = group.add_mutually_exclusive_group(required=True)
    sources.add_argument("--iemocap", type=Path, metavar="FOLDER", help="IEMOCAP_full_release")
    sources.add_argument("--meld", type=Path, metavar="FOLDER", help="MELD.Raw, its archives unpacked")
    sources.add_argument("--manifest", type=Path, metavar="CSV", help="any corpus; docs/extract.md names the columns")
    sources.add_argument("--recording", type=Path, metavar="FILE", help="a sound or video file with its transcript")

    group = parser.add_argument_group("about the source")
    group.add_argument(
        "--classes",
        default="6",
        choices=("6", "4", "4-excited"),
        help="of IEMOCAP: six; four; four with excited counted as happy (default 6)",
    )
    group.add_argument(
        "--sessions", default="1,2,3,4,5", metavar="LIST", help="of IEMOCAP, those that you have (default all)"
    )
    group.add_argument(
        "--keep-unlabelled", action="store_true", help="of IEMOCAP: keep utterances of no class as context"
    )
    group.add_argument(
        "--labels",
        metavar="LIST",
        help="of a manifest: the classes in their order (default: a known set with all it names, else those, sorted)",
    )
    group.add_argument("--speakers", type=int, metavar="N", help="of a recording: how many there are, to be checked")
    group.add_argument("--transcript", type=Path, metavar="FILE", help="of a recording: .srt, .vtt or .TextGrid")
    group.add_argument(
        "--transcribe",
        metavar="RECOGNISER",
        help="of a recording without a transcript: transformers:NAME_OR_FOLDER of a Whisper model; one speaker",
    )

    group = parser.add_argument_group("encoders, each KIND:NAME_OR_FOLDER or none")
    group.add_argument(
        "--preset", default="laptop", choices=("laptop", "gpu"), help="those not named below (default laptop)"
    )
    group.add_argument("--text", metavar="ENCODER", help="sentence-transformers: or transformers:")
    group.add_argument(
        "--text-context",
        type=int,
        default=0,
        metavar="N",
        help="previous turns, with speakers, that are read too (default 0)",
    )
    group.add_argument(
        "--text-layers",
        default="last",
        metavar="LAYERS",
        help="of transformers: averaged; last, all, 6-12 (default last)",
    )
    group.add_argument("--acoustic", metavar="ENCODER", help="opensmile: or transformers:")
    group.add_argument(
        "--layers",
        default="all",
        metavar="LAYERS",
        help="of an acoustic transformers encoder: averaged; all, last, 6-12 (default all)",
    )
    group.add_argument("--visual", metavar="ENCODER", help="transformers: or timm:")
    group.add_argument("--frame-rate", type=float, default=2.0, metavar="R", help="pictures a second (default 2)")
    group.add_argument(
        "--most-frames", type=int, default=32, metavar="N", help="pictures of an utterance at most (default 32)"
    )
    group.add_argument(
        "--face",
        default="largest",
        choices=("largest", "none"),
        help="what is looked at: the largest face, or all of the speaker's picture (default largest)",
    )

    group = parser.add_argument_group("run")
    group.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="NAME.safetensors, or NAME.pkl for the 9-tuple"
    )
    group.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="what is computed is kept here (default: .extract_cache beside --out)",
    )
    group.add_argument("--retry", action="store_true", help="try again what could not be decoded before")
    group.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, mps (default: cuda where it is, else cpu)",
    )
    group.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode (default 2)")
    group.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="utterances encoded at once at most (default 32)"
    )
    group.add_argument(
        "--shard", metavar="K/N", help="write part K of N only; 'python -m feature_files merge' joins them"
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags as given, checked on their own."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.shard = _shard(parser, args.shard)
    if not re.fullmatch(r"[1-5](,[1-5])*", args.sessions):
        parser.error(f"--sessions: {args.sessions!r:.40} is no list such as 1,2,3")
    if args.transcribe and args.transcript:
        parser.error("--transcribe: does not go with --transcript; leave one out")
    for name, least in (("batch_size", 1), ("most_frames", 1), ("workers", 0), ("text_context", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')}: give {least} or more")
    if not 0 < args.frame_rate <= 100:
        parser.error("--frame-rate: give a rate above 0, and 100 at most")
    for source, flags in OF_SOURCE.items():
        for flag in flags if not getattr(args, source) else ():
            if getattr(args, flag) != parser.get_default(flag):
                parser.error(f"--{flag.replace('_', '-')}: goes with --{source}; leave it out")
    return args


def _shard(parser: argparse.ArgumentParser, value: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value or "", re.ASCII)
    if value and (not match or not 1 <= int(match[1]) <= int(match[2])):
        parser.error(f"--shard: {value!r:.40} is no part such as 3/16")
    return (int(match[1]), int(match[2])) if match else None


def main(argv: Sequence[str] | None = None) -> int:
    """Extract; 0 if it went well, 2 after one line that says what is wrong, 130 after Ctrl-C."""
    args = parse_args(argv)
    from extract import pipeline
    from extract.encoders import KINDS, PRESETS, Settings
    from extract.house import InputError
    from utils import choose_device

    preset = PRESETS[args.preset]
    settings = Settings(
        text=args.text or preset["text"],
        visual=args.visual or preset["visual"],
        acoustic=args.acoustic or preset["acoustic"],
        text_context=args.text_context,
        text_layers=args.text_layers,
        layers=args.layers,
        frame_rate=args.frame_rate,
        most_frames=args.most_frames,
        face=args.face,
    )
    part = f"-{args.shard[0]}-of-{args.shard[1]}" if args.shard else ""  # parts may run on several machines
    folder = args.cache or args.out.parent / ".extract_cache"
    cache = folder / f"features{part}.sqlite"
    try:
        for flag, (modality, only) in OF_ENCODER.items():
            encoder, kinds = getattr(settings, modality), [only] if only else KINDS[modality]
            if getattr(settings, flag) != getattr(Settings, flag) and encoder.partition(":")[0] not in kinds:
                raise InputError(
                    f"--{flag.replace('_', '-')}: does nothing with --{modality} {printable(encoder, 60)}; leave it out"
                )
        spare([path for path in (args.manifest, args.recording, args.transcript) if path], args.out)
        args.device = choose_device(args.device)
        summary = pipeline.run(
            _listing(args, folder),
            settings,
            args.out,
            cache=cache,
            device=args.device,
            workers=args.workers,
            batch_size=args.batch_size,
            shard=args.shard,
            retry=args.retry,
        )
        say(f"{summary.text()}\n{args.out}")
    except InputError as error:
        complain(str(error))
        return 2
    except (pipeline.StoppedError, KeyboardInterrupt) as stopped:
        complain(str(stopped) or "stopped; whole batches are kept, and the same command goes on")
        return 130
    return 0


def _listing(args: argparse.Namespace, cache: Path) -> Listing:
    """The utterances of whichever source was named; what a recogniser hears is kept in the folder of the cache."""
    if args.iemocap:
        from extract.iemocap import read_iemocap

        sessions = sorted({int(k) for k in args.sessions.split(",")})
        return read_iemocap(args.iemocap, args.classes, args.keep_unlabelled, sessions)
    if args.meld:
        from extract.meld import read_meld

        return read_meld(args.meld)
    if args.manifest:
        from extract.manifest import read_manifest

        labels = [name.strip() for name in (args.labels or "").split(",") if name.strip()]
        return read_manifest(args.manifest, labels)
    from extract.recogniser import recogniser_of
    from extract.recordings import read_recording

    return read_recording(
        args.recording, args.speakers, args.transcript, transcribe=recogniser_of(args.transcribe, args.device, cache)
    )


if __name__ == "__main__":
    begin(parse_args)
    import_module("extract.pipeline")  # quiet to Ctrl-C, as `begin` has it
    ready()
    sys.exit(main())
