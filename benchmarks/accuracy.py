"""What each part of GAN-FFN is worth: the same training with one part changed, over the same seeds.

    python benchmarks/accuracy.py --features IEMOCAP_features/IEMOCAP_features.pkl
    python benchmarks/accuracy.py --features FILE --folds sessions --rows full,no-stage-1,no-graph
    python benchmarks/accuracy.py --demo --seeds 0,1,2
    python benchmarks/accuracy.py --features FILE --rows no-stage-1 -- --valid 0.1

Every row is a set of flags of ``train_IEMOCAP.py`` (``gru`` is ``baselines.py``). Flags after ``--`` are
shared by all rows, by ``gru`` those that it has. A row's difference is to the full method over the same seeds, with the
p-value of a two-sided paired t-test, which says nothing of new speakers. Beside it are the difference over dialogues,
the 95 % interval of a paired bootstrap over dialogues within sessions, and the sign in every session: a gain, or a
loss, is one only where that interval excludes 0.

The table, which shows what a row adds to the shared flags, is printed and written to ``accuracy.csv`` and
``accuracy.md`` in ``--out``. Every run that is finished leaves a line in ``runs.jsonl`` there and is not trained again;
one that was interrupted goes on; rows and seeds can be added later. Each run is a process of its own; ``--jobs`` and
``--cluster`` are those of ``train_IEMOCAP.py``. On the demo, the best score that anything can reach
is computed from the corpus's own recipe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import baselines
import common
import numpy as np
import pandas as pd
from scipy import stats

from experiment.comparison import LEVEL, Gain, Predictions, gain, member_tables, of_tables
from experiment.flags import Parser
from experiment.jobs import Job, do_all
from experiment.run_directory import write_csv
from experiment.settings import Settings, read_json
from files import InputError, replacing
from synthetic import ceiling, synthetic_corpus

Result = tuple[dict[int, float], float]  # weighted F1 in percent by seed, and seconds a seed
ROWS = {
    "full": "",
    "no-stage-1": "--GAN-epochs 0",
    "no-stage-1-equal-budget": "--GAN-epochs 0 --epochs 54",
    "no-adversary": "--GAN-weight 0",
    "full-adversary": "--GAN-weight 10",
    "reference-losses": "--GAN-loss reference",
    "no-graph": "--window-past 0 --window-future 0",
    "no-parties": "--speaker-layers 0",
    "no-windows": "--graph-layers 0",
    "epoch-by-validation": "--valid 0.1",
    "undisturbed": "--noise 0 --drop-utterances 0",
    "wide": "--fused-channels 256 --lr 5e-4",
    "attention": "--attention",
    "no-session-shares": "--no-session-logit-adjustment",
    "class-weight": "--class-weight",
    "focal": "--focal 2",
    "lr-halved": "--lr 5e-4",
    "lr-doubled": "--lr 2e-3",
    "GAN-epochs-halved": "--GAN-epochs 15",
    "GAN-epochs-doubled": "--GAN-epochs 60",
}


def rows_for(modalities: Sequence[str]) -> dict[str, str]:
    """All rows for a corpus of these modalities: name to flags; ``gru`` is the baseline."""
    rows = dict(ROWS)
    for size in (1, 2):
        for some in combinations(modalities, size):
            if len(some) < len(modalities):
                rows["+".join(some)] = f"--modalities {','.join(some)}"
    return rows


def job(name: str, flags: str, seed: int, settings: Settings, own: argparse.Namespace) -> Job:
    """One seed of a row, or what is left of it, as a job for another process."""
    directory = seed_directory(own, name, seed)
    if name == "gru":
        argv = [*common.data_flags(settings, own), "--networks", "gru", "--seeds", str(seed), "--out", str(directory)]
        return Job("experiment.jobs", "command", (common.BASELINE, (*argv, *of_baseline(own.shared))), directory)
    alone = ["--unimodal-loss", "0"] if "--modalities" in flags and "," not in flags else []  # it is refused there
    argv = common.run_flags(settings, own, seed, directory, [*own.shared, *flags.split(), *alone])
    return Job("experiment.jobs", "command", (common.SCRIPT, tuple(argv)), directory)


def of_baseline(flags: Sequence[str]) -> list[str]:
    """Those of these flags that ``baselines.py`` has too; the others are of what it has not."""
    starts, parser = [at for at, flag in enumerate(flags) if flag.startswith("--")], baselines.build_parser()
    each = (flags[a:b] for a, b in pairwise([*starts, len(flags)]))
    return [word for words in each if not parser.parse_known_args(words)[1] for word in words]


def figures(name: str, seed: int, own: argparse.Namespace) -> tuple[float, float]:
    """Weighted F1 in percent, over folds the mean, and seconds of a seed that is finished."""
    directory = seed_directory(own, name, seed)
    if name == "gru":
        folds = pd.read_csv(directory / "baselines.csv")
        return float(folds["weighted_f1"].mean()), float(folds["seconds"].sum())
    report = read_json(directory / "summary.json")["mean"] if own.folds else read_json(directory / "report.json")
    seconds = sum(read_json(path)["seconds"]["total"] for path in directory.rglob("report.json"))
    return report["test"]["weighted_f1"], seconds


def seed_directory(own: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a seed of a row is trained."""
    return own.out / name / f"seed{seed}"


def gains(names: Sequence[str], seeds: Mapping[str, Sequence[int]], own: argparse.Namespace) -> dict[str, Gain]:
    """What each row scores above the full method on the same dialogues, of those rows that left predictions.

    Args:
        names: Of rows.
        seeds: Row to the seeds that are finished in it and in full.
        own: The benchmark's flags.
    """

    def read(name: str, row: str) -> Predictions:
        tables = [t for seed in seeds[row] for t in member_tables(seed_directory(own, name, seed))]
        return of_tables(tables, name, str(own.out / name))

    found = {}
    for row in names:
        if row not in ("full", "gru") and seeds[row]:
            try:
                found[row] = gain(read(row, row), read("full", row))
            except InputError as error:
                print(f"note: no interval over dialogues: {error}", file=sys.stderr)
    return found


def table(
    results: Mapping[str, Result], flags: Mapping[str, str], above: Mapping[str, Gain] | None = None
) -> pd.DataFrame:
    """One line a row: mean, standard deviation (n - 1), extremes and seconds a seed; difference to the full method.

    Args:
        results: Row to results; compared over the seeds that full has too.
        flags: Row to its flags.
        above: Row to what it scores above full, by bootstrap.

    Returns:
        ``difference`` and ``p`` are over seeds; ``over dialogues``, ``low``, ``high``, ``gain`` and ``by session`` over
        dialogues, whose scores are pooled over folds.
    """
    full = results["full"][0]
    lines = []
    for name, (by_seed, seconds) in results.items():
        seeds = [seed for seed in full if seed in by_seed]
        if not seeds:
            continue
        values, reference = (np.array([each[seed] for seed in seeds]) for each in (by_seed, full))
        several = name != "full" and len(values) > 1
        over = (above or {}).get(name)
        lines.append(
            {
                "row": name,
                "flags": flags.get(name, f"{common.BASELINE} --networks gru"),
                "seeds": len(values),
                "weighted F1": round(values.mean(), 2),
                "sd": round(values.std(ddof=1), 2) if len(values) > 1 else np.nan,
                "lowest": round(values.min(), 2),
                "highest": round(values.max(), 2),
                "difference": round((values - reference).mean(), 2),
                "p": float(f"{stats.ttest_rel(values, reference).pvalue:.2g}") if several else np.nan,
                "over dialogues": round(over.difference, 2) if over else np.nan,
                "low": round(over.low, 2) if over else np.nan,
                "high": round(over.high, 2) if over else np.nan,
                "gain": over.verdict if over else None,
                "by session": ", ".join(f"{s} {x:+.1f}" for s, x in over.sessions.items()) if over else None,
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
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs/accuracy"), help="where runs and tables go"
    )
    common.add_jobs(parser)
    parser.add_argument("shared", nargs="*", metavar="-- FLAGS", help="flags of train_IEMOCAP.py for every row")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if a run failed, 2 for bad input, 130 if interrupted."""
    settings, own = common.parse(build_parser(), argv)
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    flags: dict[str, str] = {}
    status = common.ending(lambda: run_rows(settings, own, flags, runs))
    if status == 2 or not runs.get("full"):
        return status
    seeds = {name: [seed for seed in runs["full"] if seed in lines] for name, lines in runs.items()}
    results = {
        name: (
            {seed: line["weighted_f1"] for seed, line in lines.items()},
            float(np.mean([line["seconds"] for line in lines.values()])),
        )
        for name, lines in runs.items()
    }
    return show(table(results, flags, gains(list(runs), seeds, own)), settings, own, status)


def run_rows(
    settings: Settings, own: argparse.Namespace, flags: dict[str, str], runs: dict[str, dict[int, dict[str, Any]]]
) -> int:
    """Train every seed of every row that is not finished; each leaves a line in ``runs.jsonl``.

    Returns 1 if any failed, which stops no other, else 0.

    Args:
        settings: The data and the device.
        own: The benchmark's flags.
        flags: Takes every row's flags.
        runs: Takes row to seed to line, in the order of the rows.
    """
    _, corpus = common.prepare(settings)
    flags |= rows_for(list(corpus.dims))
    names = list(dict.fromkeys(["full", *(own.rows.split(",") if own.rows else [*flags, "gru"])]))
    if unknown := [name for name in names if name not in (*flags, "gru")]:
        raise InputError(f"--rows {unknown[0]}: no such row; choose among {', '.join(flags)}, gru")
    path = own.out / "runs.jsonl"
    before = common.finished_runs(path)
    folds = f"--folds {own.folds} --folds-over {own.folds_over}" if own.folds else ""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    work: dict[str, tuple[str, int]] = {}
    for name, seed in ((name, seed) for name in names for seed in own.seeds):
        asked = {"flags": " ".join([folds, *own.shared, flags.get(name, "")]).strip(), "data": corpus.sha256}
        line = before.get((name, seed))
        if line and (changed := next((key for key in asked if line.get(key) != asked[key]), None)):
            raise InputError(
                f"{path}: {name}, seed {seed}: was trained with {changed} {line.get(changed)!r:.200}, not "
                f"{asked[changed]!r:.200}; name another folder with --out"
            )
        lines[name, seed] = line or {"row": name, "seed": seed, **asked}
        if not line:
            work[f"{name}, seed {seed}"] = name, seed
    jobs = {spoken: job(name, flags.get(name, ""), seed, settings, own) for spoken, (name, seed) in work.items()}
    common.begin(own.out, {"flags": " ".join([folds, *own.shared]).strip(), "data": corpus.sha256})
    results = do_all(jobs, own.jobs, own.cluster, own.out) if jobs else {}
    for spoken, (name, seed) in work.items():
        if not {"failed", "interrupted"} & results[spoken].keys():
            score, seconds = figures(name, seed, own)
            lines[name, seed] |= {"weighted_f1": score, "seconds": seconds}
            common.append(path, lines[name, seed])
    for (name, seed), line in lines.items():
        if "weighted_f1" in line:
            runs.setdefault(name, {})[seed] = line
    return common.status_of(results, len(lines))


def show(frame: pd.DataFrame, settings: Settings, own: argparse.Namespace, status: int) -> int:
    """Print the table and write it. Returns the status."""
    points = frame.select_dtypes(float).columns.drop("p")
    shown = frame.assign(**{c: [np.nan if np.isnan(x) else f"{x:.2f}" for x in frame[c]] for c in points})
    ends = zip(shown["low"], shown["high"], strict=True)
    shown[f"{LEVEL} % interval"] = [f"[{low}, {high}]" if isinstance(low, str) else np.nan for low, high in ends]
    order = [*frame.columns[: frame.columns.get_loc("low")], f"{LEVEL} % interval", "gain", "by session", "seconds"]
    shown = shown[order]
    text = common.markdown(shown)
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
