"""What the benchmarks share: flags, data, statistics, tables, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_IEMOCAP
import utils
from dataloader import Corpus, Dialogue, Standardiser
from experiment.evaluation import evaluate
from experiment.flags import HelpFormatter, Parser, add_settings, flag_type
from experiment.run_directory import write_json
from experiment.settings import Number, Settings, contradiction, parse_folds, parse_seeds, read_json
from experiment.start import ending as ending
from files import InputError, complain, replacing

SCRIPT, BASELINE = "train_IEMOCAP.py", "benchmarks/baselines.py"  # from the project's folder
DATA = ("--features", "--demo", "--modalities", "--missing", "--text-layers", "--target", "--label-names")

# Flags ----------------------------------------------------------------------------------------------------------------


def make_parser(description: str, flags: Sequence[str]) -> Parser:
    """A parser with some of the flags that ``train_IEMOCAP.py`` has; they mean the same and have the same defaults."""
    made = Parser(description=description, formatter_class=HelpFormatter)
    add_settings(made, flags)
    return made


def add_seeds(parser: Parser, default: str) -> None:
    """Give a parser the flag that says which seeds to run."""
    parser.add_argument("--seeds", type=flag_type(parse_seeds), metavar="LIST", default=default, help="one run each")


def add_folds(parser: Parser) -> None:
    """Give a parser the flags of cross-validation."""
    parser.add_argument("--folds", type=flag_type(parse_folds), metavar="K", help="sessions, or a number of folds")
    parser.add_argument("--folds-over", choices=("all", "train"), default="all", help="which dialogues are folded")


def add_jobs(parser: Parser) -> None:
    """Give a parser the flags that say how many runs go at once, and where."""
    whole = flag_type(Number(int, 1, 1000).parse)
    parser.add_argument("--jobs", type=whole, default=1, metavar="N", help="runs at once; they share the cores")
    parser.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler that takes the runs instead")


def add_cpu_seconds(parser: Parser) -> None:
    """Give a parser the flag that says which clock to use."""
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="of all threads, not the clock's: for a machine that others use"
    )


def parse(
    parser: Parser, argv: Sequence[str] | None, base: Settings | None = None, *, needs_data: bool = True
) -> tuple[Settings, argparse.Namespace]:
    """The settings that the flags name, and the benchmark's own flags; exits with status 2 if they are wrong."""
    given = vars(parser.parse_args(argv))
    changes = {name.replace(".", "__"): given.pop(name) for name in list(given) if "." in name}
    settings = (base or Settings()).replace(**changes)
    if problem := contradiction(settings, {name.replace("__", ".") for name in changes}):
        parser.error(problem)
    if needs_data and not (settings.data.features or settings.data.demo):
        parser.error("no data: give --features FILE or --demo")
    return settings, argparse.Namespace(**given)


# Data -----------------------------------------------------------------------------------------------------------------


def prepare(settings: Settings) -> tuple[Settings, Corpus]:
    """The settings with a device that is there, and the corpus they name."""
    settings = settings.replace(run__device=utils.choose_device(settings.run.device))
    with contextlib.redirect_stdout(io.StringIO()):
        return settings, train_IEMOCAP.load_corpus(settings)


def data_of(settings: Settings, corpus: Corpus) -> dict[str, str]:
    """What decides which data these are, to be kept beside what was measured on them."""
    read = {name: getattr(settings.data, name) for name in ("modalities", "missing", "text_layers", "target")}
    return {"data": corpus.sha256, **{name: str(value) for name, value in read.items()}}


def standardised(corpus: Corpus) -> dict[str, list[Dialogue]]:
    """Split to dialogues, standardised by those of the training split."""
    standardise = Standardiser.fit(corpus.split("train"))
    return {split: [standardise(d) for d in corpus.split(split)] for split in corpus.splits}


# Runs of other scripts ------------------------------------------------------------------------------------------------


def data_flags(settings: Settings, own: argparse.Namespace) -> list[str]:
    """The flags of a script that name the data, the device and the folds of a benchmark."""
    data = ["--demo"] if settings.data.demo else ["--features", settings.data.features]
    folds = ["--folds", str(own.folds), "--folds-over", own.folds_over] if own.folds else []
    return [*data, "--device", settings.run.device, *folds]


def run_flags(
    settings: Settings, own: argparse.Namespace, seed: int, directory: Path, flags: Sequence[str]
) -> list[str]:
    """The flags of ``train_IEMOCAP.py`` for one seed of a benchmark; of a run that was begun, those that go on with it.

    Args:
        settings: The data and the device.
        own: The benchmark's flags.
        seed: The run's.
        directory: The run's.
        flags: More of them.
    """
    if (directory / "config.json").exists():
        return ["--resume", str(directory)]
    given = [*data_flags(settings, own), "--seed", str(seed), "--no-pictures"]
    return [*given, *flags, "--out", str(directory)]


def status_of(results: Mapping[str, Mapping[str, Any]], count: int) -> int:
    """1 if one of so many runs has failed, which is said, else 0.

    Args:
        results: What `experiment.jobs.do_all` returned.
        count: How many runs there are with those that were finished before.

    Raises:
        KeyboardInterrupt: If one was stopped.
    """
    if any("interrupted" in result for result in results.values()):
        raise KeyboardInterrupt("Interrupted; the same command goes on.")
    failed = [f"{name}: {result['failed']}" for name, result in results.items() if "failed" in result]
    if failed:
        complain(f"error: {len(failed)} of {count} runs failed, the others are finished: {failed[0]}")
    return int(bool(failed))


def finished_runs(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines that `append` wrote, by ``row`` and ``seed``; one that was cut off in mid-line counts as none."""
    lines = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            lines[line["row"], line["seed"]] = line
        except (ValueError, KeyError, TypeError):
            continue
    return lines


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add what a finished run came to as a line of JSON, behind one that was cut off too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" * cut_off + json.dumps(line) + "\n")


def make_folder(out: Path) -> None:
    """Make the folder that ``--out`` names.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror}); choose another directory") from None


def begin(out: Path, asked: Mapping[str, Any]) -> None:
    """Make the folder of ``--out``, whose runs are not trained again, or see that they are of the same job.

    Args:
        out: The folder.
        asked: What all runs there have in common: data, folds, flags.

    Raises:
        InputError: If it cannot be made, or runs of another job are there.
    """
    make_folder(out)
    job = out / "job.json"
    if job.exists() and (begun := read_json(job)) != asked:
        raise InputError(f"{job}: runs of another job are there, {begun!r:.200}; name another folder with --out")
    write_json(job, asked)


# Figures --------------------------------------------------------------------------------------------------------------


def weighted_f1(network: nn.Module, dialogues: Sequence[Dialogue]) -> float:
    """Weighted F1 over the labelled utterances of these dialogues, in percent."""
    return float(utils.weighted_f1(*utils.labelled(*evaluate(network, dialogues))))


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean ± standard deviation (n - 1); of a single value there is no deviation."""
    deviation = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "–"
    return f"{np.mean(values):.2f} ± {deviation}"


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown(frame: pd.DataFrame) -> str:
    """The table in Markdown, what is not known as a dash."""
    text = frame.astype(object).where(frame.notna(), "–").astype(str)
    lines = [text.columns.tolist(), ["---"] * len(text.columns), *text.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
