"""What each part of GAN-FFN is worth: the same training with one part changed, over the same seeds.

    python benchmarks/accuracy.py --features IEMOCAP_features/IEMOCAP_features.pkl
    python benchmarks/accuracy.py --features FILE --folds sessions --rows full,no-stage-1,no-graph
    python benchmarks/accuracy.py --demo --seeds 0,1,2
    python benchmarks/accuracy.py --features FILE --rows no-stage-1 -- --valid 0.1

Every row is a set of flags of ``train_IEMOCAP.py`` (the row ``gru`` is ``baselines.py --networks gru``). Flags after
``--`` are shared by all rows. A row's difference is to the full method over the same seeds, with the p-value of a
two-sided paired t-test. The table, which shows what a row adds to the shared flags, is printed and written to
``accuracy.csv`` and ``accuracy.md`` in ``--out``; a row that is there already is not trained again, and one that was
interrupted goes on. On the demo, the best score that anything can reach is computed from the corpus's own recipe.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import common
import numpy as np
import pandas as pd
import torch
from scipy import stats

from experiment.flags import Parser, flag_type
from experiment.run_directory import write_csv
from experiment.settings import Number, Settings, read_json
from files import InputError, replacing
from synthetic import ceiling, synthetic_corpus

Result = tuple[dict[int, float], float]  # weighted F1 in percent by seed, and seconds a seed
BASELINE = "benchmarks/baselines.py"
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


def run_row(name: str, flags: str, settings: Settings, own: argparse.Namespace) -> Result:
    """Train a row, or read it if it is there."""
    directory = own.out / name
    summary = directory / "summary.json"
    data = ["--demo"] if settings.data.demo else ["--features", settings.data.features]
    run = [*data, "--seeds", ",".join(map(str, own.seeds)), "--device", settings.run.device]
    if own.folds:
        run += ["--folds", str(own.folds), "--folds-over", own.folds_over]
    if name == "gru":
        if not (directory / "baselines.md").exists():
            call(name, BASELINE, [*run, "--networks", "gru", "--out", str(directory)], own.jobs)
        each = pd.read_csv(directory / "baselines.csv").groupby("seed")
        f1 = {int(seed): value for seed, value in each["weighted_f1"].mean().items()}
        return f1, float(each["seconds"].sum().mean())
    if (directory / "config.json").exists():
        run = ["--resume", str(directory)]
    else:
        # A state is 100 MB: written every epoch, those of many runs would take longer than what a stop loses.
        run += ["--checkpoint-every", "10", "--no-pictures", *own.shared, *flags.split(), "--out", str(directory)]
    call(name, common.SCRIPT, run, own.jobs)
    each = read_json(summary)["seeds"]
    seconds = sum(read_json(path)["seconds"]["total"] for path in directory.rglob("report.json"))
    return {int(seed): row["test"]["weighted_f1"] for seed, row in each.items()}, seconds / len(each)


def call(name: str, script: str | Path, argv: Sequence[str], jobs: int) -> None:
    """Run a script of the project with its part of the cores.

    Raises:
        InputError: If it fails, with what it said last.
    """
    ended = subprocess.run(
        [sys.executable, str(common.PROJECT / script), *argv],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))},
    )
    if ended.returncode == 130:
        raise KeyboardInterrupt
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
        raise InputError(f"{name}: {said[-1]}")


def table(results: Mapping[str, Result], flags: Mapping[str, str]) -> pd.DataFrame:
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
                "flags": flags.get(name, f"{BASELINE} --networks gru"),
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
    """All flags."""
    parser = common.make_parser("What each part of GAN-FFN is worth.", ["--features", "--demo", "--device"])
    common.add_seeds(parser, "0,1,2,3,4,5,6,7,8,9")
    common.add_folds(parser)
    parser.add_argument("--rows", metavar="LIST", help=f"among {', '.join(ROWS)}, gru, and modalities such as text")
    parser.add_argument("--out", type=Path, metavar="DIR", default="runs/accuracy", help="where runs and tables go")
    whole = flag_type(Number(int, 1, 1000).parse)
    parser.add_argument("--jobs", type=whole, default=1, metavar="N", help="rows at once; they share the cores")
    parser.add_argument("shared", nargs="*", metavar="-- FLAGS", help="flags of train_IEMOCAP.py for every row")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 2 for bad input, 130 if interrupted."""
    settings, own = common.parse(build_parser(), argv)
    results: dict[str, Result] = {}
    flags: dict[str, str] = {}
    status = common.ending(lambda: run_rows(settings, own, flags, results))
    if status == 130:
        print("Interrupted; the same command goes on.", file=sys.stderr)
    return show(table(results, flags), settings, own, status) if results and status != 2 else status


def run_rows(settings: Settings, own: argparse.Namespace, flags: dict[str, str], results: dict[str, Result]) -> None:
    """Train every row; what they come to goes into ``results``, and what they are into ``flags``."""
    _, corpus = common.prepare(settings)
    flags |= rows_for(list(corpus.dims))
    names = list(dict.fromkeys(["full", *(own.rows.split(",") if own.rows else [*flags, "gru"])]))
    if unknown := [name for name in names if name not in (*flags, "gru")]:
        raise InputError(f"--rows {unknown[0]}: no such row; choose among {', '.join(flags)}, gru")
    with ThreadPoolExecutor(own.jobs) as pool:
        every = pool.map(lambda name: run_row(name, flags.get(name, ""), settings, own), names)
        for name, result in zip(names, every, strict=True):
            results[name] = result
            print(f"{name}: {common.mean_and_deviation(list(result[0].values()))}", flush=True)


def show(frame: pd.DataFrame, settings: Settings, own: argparse.Namespace, status: int) -> int:
    """Print the table and write it. Returns the status."""
    points = frame.select_dtypes(float).columns.drop("p")
    shown = {column: frame[column].map("{:.2f}".format, na_action="ignore") for column in points}
    text = common.markdown(frame.assign(**shown))
    if settings.data.demo and not own.folds:
        best = ceiling(synthetic_corpus())
        text += f"\nBest possible: {best['context']:.2f}; from single utterances {best['utterance']:.2f}.\n"
    write_csv(own.out / "accuracy.csv", frame)
    with replacing(own.out / "accuracy.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}")
    return status


if __name__ == "__main__":
    sys.exit(main())
