"""What each part of GAN-FFN is worth: the same training with one part changed, over the same seeds.

    python benchmarks/accuracy.py --features IEMOCAP_features/IEMOCAP_features.pkl
    python benchmarks/accuracy.py --features FILE --folds sessions --rows full,no-stage-1,no-graph
    python benchmarks/accuracy.py --demo --seeds 0,1,2
    python benchmarks/accuracy.py --features FILE --rows no-stage-1 -- --valid 0.1

Every row is a set of flags of ``train_IEMOCAP.py`` (the GRU baseline is ``gru_baseline.py``). Flags after ``--`` are
shared by all rows. A row's difference is to the full method over the same seeds, with the p-value of a two-sided paired
t-test. The table, which shows what a row adds to the shared flags, is printed and written to
``accuracy.csv`` and ``accuracy.md`` in ``--out``; a row that is there already is not trained again, and one that was
interrupted goes on. On the demo, the best score that anything can reach is computed from the corpus's own recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gru_baseline
import synthetic_ceiling

import utils
from files import InputError, replacing
from synthetic import synthetic_corpus
from train_IEMOCAP import HelpFormatter, Parser, choose_device, fold_choice, load_corpus, number, seed_list

SCRIPT = Path(__file__).resolve().parent.parent / "train_IEMOCAP.py"
ROWS = {
    "full": "",
    "no-stage-1": "--GAN-epochs 0",
    "no-stage-1-equal-budget": "--GAN-epochs 0 --epochs 55",
    "no-adversary": "--GAN-adversary 0",
    "full-adversary": "--GAN-adversary 1",
    "reference-losses": "--GAN-loss reference",
    "no-graph": "--window-past 0 --window-future 0",
    "no-parties": "--party-blocks 0",
    "no-windows": "--convolutions 0",
    "epoch-by-validation": "--valid 0.1",
    "undisturbed": "--noise 0 --drop-utterance 0",
    "narrow": "--fused-channels 128 --lr 1e-3",
    "attention": "--attention",
    "no-session-shares": "--no-session-shares",
    "class-weight": "--class-weight",
    "focal": "--focal 2",
    "lr-halved": "--lr 2.5e-4",
    "lr-doubled": "--lr 1e-3",
    "GAN-epochs-halved": "--GAN-epochs 8",
    "GAN-epochs-doubled": "--GAN-epochs 30",
}


def rows_for(modalities: Sequence[str]) -> dict[str, str]:
    """All rows for a corpus of these modalities: name to flags; ``gru`` is the baseline."""
    rows = dict(ROWS)
    for size in (1, 2):
        for some in combinations(modalities, size):
            if len(some) < len(modalities):
                rows["+".join(some)] = f"--modalities {','.join(some)}"
    return rows


def run_row(name: str, flags: str, data: Sequence[str], args: argparse.Namespace) -> tuple[dict[int, float], float]:
    """Train a row, or read it if it is there. Returns weighted F1 in percent by seed, and seconds a seed."""
    directory = Path(args.out) / name
    summary = directory / "summary.json"
    protocol = [*data, "--seeds", ",".join(map(str, args.seeds))]
    if args.folds:
        protocol += ["--folds", str(args.folds), "--folds-over", args.folds_over]
    if name == "gru":
        if not summary.exists():
            baseline = gru_baseline.build_parser().parse_args([*protocol, "--device", args.device])
            baseline.device = choose_device(baseline)
            results = {result.seed: asdict(result) for result in gru_baseline.run_seeds(baseline)}
            directory.mkdir(parents=True, exist_ok=True)
            utils.write_json(summary, results)
        each = utils.read_json(summary)
        return {int(s): r["weighted_f1"] for s, r in each.items()}, float(
            np.mean([r["seconds"] for r in each.values()])
        )
    if (directory / "config.json").exists():
        run = ["--resume", str(directory)]
    else:
        # A state is 100 MB: written every epoch, those of many runs would take longer than what a stop loses.
        shared = ["--checkpoint-every", "10", *args.shared]
        run = [*protocol, *shared, *flags.split(), "--out", str(directory), "--device", args.device]
    threads = max(1, torch.get_num_threads() // args.jobs)
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *run],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if ended.returncode:
        raise InputError(f"{name}: {ended.stderr.strip().splitlines()[-1]}")
    each = utils.read_json(summary)["seeds"]
    seconds = sum(utils.read_json(path)["seconds"]["total"] for path in directory.rglob("report.json"))
    return {int(seed): row["test"]["weighted_f1"] for seed, row in each.items()}, seconds / len(each)


def table(results: Mapping[str, tuple[Mapping[int, float], float]], flags: Mapping[str, str]) -> pd.DataFrame:
    """One line a row: mean, standard deviation (n - 1), extremes, difference to full, its p-value, seconds a seed."""
    full = results["full"][0]
    reference = np.array(list(full.values()))
    lines = []
    for name, (by_seed, seconds) in results.items():
        values = np.array([by_seed[seed] for seed in full])
        several = name != "full" and len(values) > 1
        lines.append(
            {
                "row": name,
                "flags": flags.get(name, "benchmarks/gru_baseline.py"),
                "seeds": len(values),
                "weighted F1": round(values.mean(), 2),
                "sd": round(values.std(ddof=1), 2) if len(values) > 1 else np.nan,
                "lowest": round(values.min(), 2),
                "highest": round(values.max(), 2),
                "difference": round((values - reference).mean(), 2),
                "p": float(f"{stats.ttest_rel(values, reference).pvalue:.2g}") if several else np.nan,
                "seconds": round(seconds),
            }
        )
    return pd.DataFrame(lines)


def build_parser() -> Parser:
    """All flags; those that ``train_IEMOCAP.py`` has too mean the same."""
    parser = Parser(description="What each part of GAN-FFN is worth.", formatter_class=HelpFormatter)
    gru_baseline.add_data(parser)
    parser.add_argument("--seeds", type=seed_list, metavar="LIST", default="0,1,2,3,4,5,6,7,8,9", help="one run each")
    parser.add_argument("--folds", type=fold_choice, metavar="K", help="sessions, or a number of folds")
    parser.add_argument("--folds-over", choices=("all", "train"), default="all", help="which dialogues are folded")
    parser.add_argument("--rows", metavar="LIST", help=f"among {', '.join(ROWS)}, gru, and modalities such as text")
    parser.add_argument("--out", metavar="DIR", default="runs/accuracy", help="where runs and tables go")
    parser.add_argument(
        "--jobs", type=number(int, 1), default=1, metavar="N", help="rows at once; they share the cores"
    )
    parser.add_argument("shared", nargs="*", metavar="-- FLAGS", help="flags of train_IEMOCAP.py for every row")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 2 for bad input, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    results: dict[str, tuple[dict[int, float], float]] = {}
    status = 0
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            corpus = load_corpus(args)
        flags = rows_for(list(corpus.dims))
        names = list(dict.fromkeys(["full", *(args.rows.split(",") if args.rows else [*flags, "gru"])]))
        if unknown := [name for name in names if name not in (*flags, "gru")]:
            raise InputError(f"--rows {unknown[0]}: no such row; choose among {', '.join(flags)}, gru")
        data = ["--demo"] if args.demo else ["--features", args.features]
        with ThreadPoolExecutor(args.jobs) as pool:
            every = pool.map(lambda name: run_row(name, flags.get(name, ""), data, args), names)
            for name, result in zip(names, every, strict=True):
                results[name] = result
                print(f"{name}: {gru_baseline.mean_and_deviation(list(result[0].values()))}", flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the runs have had it too, and ended with a checkpoint
        print("Interrupted; the same command goes on.", file=sys.stderr)
        status = 130
        if not results:
            return status
    frame = table(results, flags)
    utils.write_csv(Path(args.out) / "accuracy.csv", frame)
    points = frame.select_dtypes(float).columns.drop("p")
    shown = {column: frame[column].map("{:.2f}".format, na_action="ignore") for column in points}
    text = gru_baseline.markdown(frame.assign(**shown))
    if args.demo and not args.folds:
        ceiling = synthetic_ceiling.ceiling(synthetic_corpus())
        text += f"\nBest possible: {ceiling['context']:.2f}; from single utterances {ceiling['utterance']:.2f}.\n"
    with replacing(Path(args.out) / "accuracy.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}")
    return status


if __name__ == "__main__":
    sys.exit(main())
