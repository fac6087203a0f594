"""What a trained run says of conversations, from the shell or from Python.

python predict.py runs/first new.pkl --out predictions.csv
python predict.py runs/first --manifest talk.csv
python predict.py runs/first --recording talk.mp4 --speakers 2
python predict.py runs/first --stream < turns.jsonl
python predict.py runs/first --export model.onnx

from predict import load
model = load("runs/first")
table = model.predict("new.pkl")
"""

from __future__ import annotations

from experiment.predict_flags import parse_args
from experiment.start import begin, ending, ready

if __name__ == "__main__":
    begin(parse_args)  # wrong flags and --help are answered here, before the imports that take seconds

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import utils
from dataloader import IGNORE_LABEL
from experiment.console import leave, say
from experiment.evaluation import utterance_table, write_predictions
from experiment.prediction import Embedding, Model, load
from experiment.run_directory import run_of, unfinished_notes
from files import InputError, complain, printable, spare

__all__ = ["Embedding", "Model", "load", "main"]

COLOURS = (33, 34, 39, 31, 35, 36, 32)  # of a terminal, for the classes in turn; 39 is that of all other text


def predict_file(model: Model, args: argparse.Namespace) -> None:
    """Predict a feature file: print its transcript, write its table and, where all is labelled, print the report."""
    out = Path(args.out) if args.out else None if args.json else Path("predictions.csv")
    if out and not out.resolve().parent.is_dir():
        raise InputError(f"--out {out}: there is no such folder; make it")
    if out and out.is_dir():
        raise InputError(f"--out {out}: is a directory; name a file with --out")
    if out and (run := run_of(out)):
        raise InputError(f"--out {out}: is a file of the run in {run}; name another with --out")
    if out:
        read = (args.file, args.manifest, args.recording, args.transcript, model.directory)
        spare([Path(path) for path in read if path], out)
    reading = model.read(args.file, args.missing, args.split)
    probabilities = model.probabilities(reading.dialogues)
    table = utterance_table(reading.dialogues, probabilities, model.label_names)
    if out:
        write_predictions(out, table)
    for note in reading.notes:
        complain(f"note: {note}")
    if args.json:
        say("\n".join(json_lines(table, model.label_names)))
    elif not args.quiet:
        say("\n".join(transcript(table, colours=sys.stdout.isatty() and "NO_COLOR" not in os.environ)))
    if not model.calibrated and not model.unfinished:
        complain(f"note: {UNCALIBRATED}")
    labels = np.concatenate([d.labels for d in reading.dialogues])
    if (labels != IGNORE_LABEL).all() and not args.json:
        say(utils.report_text(labels, probabilities, model.label_names).replace("Test performance..", "Performance.."))
    if out:
        complain(f"{len(table)} utterances of {len(reading.dialogues)} dialogues written to {out}")


def extracted(model: Model, args: argparse.Namespace, folder: Path) -> Path:
    """A feature file of the recordings that were named, by the encoders that the run was trained with.

    Raises:
        InputError: If the run does not say which they were, or the recordings cannot be read.
    """
    from extract import for_run
    from extract.manifest import read_manifest
    from extract.recogniser import recogniser_of
    from extract.recordings import read_recording

    device = utils.choose_device(args.device)
    if args.manifest:
        listing = read_manifest(Path(args.manifest), model.label_names)
    else:
        transcript = Path(args.transcript) if args.transcript else None
        recogniser = recogniser_of(args.transcribe, device, Path(args.cache))
        listing = read_recording(Path(args.recording), args.speakers, transcript, model.label_names, recogniser)
    out, cache = folder / "recordings.safetensors", Path(args.cache) / "features.sqlite"
    for_run(model.provenance, listing, out, cache=cache, device=device)
    return out


UNCALIBRATED = (
    "the probabilities are uncalibrated: the run had no dialogues to fit a temperature on; train with --valid 0.1 "
    "or --calibrate 5"
)


def transcript(table: pd.DataFrame, colours: bool) -> Iterator[str]:
    """The lines of a readable transcript: turn, speaker, emotion, probability, sentence; a wrong one with its label.

    Args:
        table: As `Model.predict` gives it.
        colours: Whether emotions are coloured, for a terminal.
    """
    names = [name.removeprefix("p_") for name in table if name.startswith("p_")]
    width = max(map(len, names))
    for dialogue, turns in table.groupby("dialogue", sort=False):
        yield printable(dialogue, 80)
        speakers = [printable(name, 16) for name in turns["speaker"]]
        widest = max(map(len, speakers))
        labels = turns["label_name"] if "label_name" in turns else [""] * len(turns)
        rows = zip(
            turns["turn"], speakers, turns["emotion"], turns["confidence"], turns["sentence"], labels, strict=True
        )
        for turn, speaker, emotion, confidence, sentence, label in rows:
            shown = f"{printable(emotion, 100):<{width}}"
            if colours:
                shown = f"\x1b[{COLOURS[names.index(emotion) % len(COLOURS)]}m{shown}\x1b[0m"
            wrong = f"  [{printable(label, 100)}]" if label and label != emotion else ""
            said = f"  {printable(sentence, 400)}" if sentence else ""
            yield f"{turn:4d}  {speaker:<{widest}}  {shown}  {confidence:.2f}{said}{wrong}"
        yield ""


def json_lines(table: pd.DataFrame, label_names: Sequence[str]) -> Iterator[str]:
    """One JSON object an utterance, in ASCII; numbers with 6 decimals."""
    plain = [name for name in ("dialogue", "utterance", "turn", "speaker", "sentence", "emotion") if name in table]
    for row in table.to_dict("records"):
        answer: dict[str, Any] = {name: row[name] for name in plain}
        answer["confidence"] = round(row["confidence"], 6)
        answer["probabilities"] = {name: round(row[f"p_{name}"], 6) for name in label_names}
        if row.get("label_name"):
            answer |= {"label": row["label_name"], "correct": bool(row["correct"])}
        yield json.dumps(answer)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 2 for bad input, 130 if interrupted."""
    args = parse_args(argv)
    return ending(lambda: answer(args))


def answer(args: argparse.Namespace) -> int:
    """Do what is asked for. Returns the exit status.

    Raises:
        InputError: If the run or the data cannot be read, or there is not the memory for them.
    """
    try:
        model = load(args.run, args.device)
        for note in unfinished_notes(model.unfinished, "weights") if args.stream or args.export else ():
            complain(f"note: {note}")
        if args.stream:
            from experiment.streaming import Stream, answer_lines

            return answer_lines(Stream(model, missing=args.missing), sys.stdin.buffer, sys.stdout, strict=args.strict)
        if args.export:
            from experiment.export import export

            say(export(model, Path(args.export)))
            return 0
        if args.file:
            predict_file(model, args)
            return 0
        with tempfile.TemporaryDirectory() as folder:
            args.file, args.missing = str(extracted(model, args, Path(folder))), "mask"
            predict_file(model, args)
        return 0
    except (MemoryError, RuntimeError) as error:
        if not utils.out_of_memory(error):
            raise
        raise InputError("out of memory; predict parts of the file, or with --device cpu") from None


if __name__ == "__main__":
    ready()
    leave(main())
