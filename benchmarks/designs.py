"""Stage 1 made otherwise: what each design of it fuses, and what the emotion classifier scores behind it.

    python benchmarks/designs.py --features IEMOCAP_features/IEMOCAP_features.pkl --folds sessions
    python benchmarks/designs.py --features FILE --designs "as it is,no game" --seeds 0,1
    python benchmarks/designs.py --features FILE --folds sessions -- --epochs 20

A design is the whole method with one part of stage 1 changed, as ``design.py`` has it. Flags after ``--`` are shared by
all. Every seed of a design is a run of ``train_IEMOCAP.py`` in a folder of ``--out``; what is finished is not trained
again, and what was interrupted goes on. ``--jobs`` and ``--cluster`` are those of ``train_IEMOCAP.py``. The table has
all that is finished in ``--out``.

The table is printed and written to ``designs.csv`` and ``designs.md``: weighted F1, mean ± standard deviation over
seeds and the mean of every fold; how many of the discriminators of all runs are right on 45 to 75 % of held-out
utterances, the least and the most; the linear probe; in-dialogue retrieval, the mean over pairs; and what the design
scores above "none", which has no stage 1, over the seeds that both have: pooled, the 95 % interval of a paired
bootstrap over dialogues within sessions, and by session.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
from design import DESIGNS, NONE

from experiment.comparison import LEVEL, Gain, gain, member_tables, of_tables
from experiment.flags import Parser
from experiment.jobs import Job, do_all
from experiment.run_directory import write_csv
from experiment.settings import Settings, read_json
from files import InputError

EVEN = (45, 75)  # percent of held-out utterances that a discriminator may be right on: a game that is one

# Runs -----------------------------------------------------------------------------------------------------------------


def run_directory(name: str, seed: int, own: argparse.Namespace) -> Path:
    """Where a seed of a design is trained."""
    return own.out / name.replace(" ", "-").replace("'", "") / f"seed{seed}"


def finished(directory: Path) -> bool:
    """Whether the run is over, and was not stopped."""
    several = read_json(directory / "config.json").get("plan") if (directory / "config.json").exists() else None
    report = directory / ("summary.json" if several else "report.json")
    return report.exists() and "interrupted" not in read_json(report)


def job(name: str, seed: int, settings: Settings, own: argparse.Namespace) -> Job:
    """What is not finished of one seed of a design, as a job for another process."""
    directory = run_directory(name, seed, own)
    flags = common.run_flags(settings, own, seed, directory, ["--no-tensorboard", *own.flags])
    return Job("experiment.jobs", "command", ("benchmarks/design.py", (name, *flags)), directory)


# The table ------------------------------------------------------------------------------------------------------------


def reports(directory: Path) -> list[dict[str, Any]]:
    """What each fold's report says, or that of the one run."""
    return [read_json(path) for path in sorted(directory.glob("fold*/report.json"))] or [
        read_json(directory / "report.json")
    ]


def above_none(name: str, seeds: Sequence[int], own: argparse.Namespace) -> Gain | None:
    """What a design scores above no stage 1 over the seeds that both have."""
    both = [seed for seed in seeds if finished(run_directory(NONE, seed, own))]
    if name == NONE or not both:
        return None
    one, other = (
        of_tables([t for s in both for t in member_tables(run_directory(each, s, own))], each, str(own.out))
        for each in (name, NONE)
    )
    return gain(one, other)


def line(name: str, seeds: Sequence[int], own: argparse.Namespace) -> dict[str, Any]:
    """A design's line in the table."""
    found = [reports(run_directory(name, seed, own)) for seed in seeds]
    f1 = np.array([[report["test"]["weighted_f1"] for report in each] for each in found])
    row = {"design": name, "seeds": len(seeds), "weighted F1": common.mean_and_deviation(f1.mean(1).tolist())}
    row["by fold"] = ", ".join(f"{x:.1f}" for x in f1.mean(0))
    fused = [[report.get("fusion") for report in each] for each in found]
    if fused[0][0]:
        right = np.array([list(x["discriminator_accuracy"].values()) for each in fused for x in each])
        even = int(((right >= EVEN[0]) & (right <= EVEN[1])).sum())
        row["discriminators in 45–75 %"] = f"{even} of {right.size} ({right.min():.0f}–{right.max():.0f})"
        row["linear probe"] = f"{np.mean([x['modality_probe'] for each in fused for x in each]):.1f}"
        rank = np.array([[np.mean(list(x["retrieval"].values())) for x in each] for each in fused]).mean(0)
        row["retrieval"] = ", ".join(f"{x:.1f}" for x in rank)
    if over := above_none(name, seeds, own):
        row["less none"] = f"{over.difference:+.2f} [{over.low:+.2f}, {over.high:+.2f}]"
        row["less none, by session"] = ", ".join(f"{x:+.1f}" for x in over.sessions.values())
    return row


# The script -----------------------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    """All flags."""
    parser = common.make_parser("Stage 1 made otherwise.", ("--features", "--demo", "--device"))
    common.add_seeds(parser, "0,1,2,3,4,5,6,7,8,9")
    common.add_folds(parser)
    parser.add_argument("--designs", metavar="LIST", default=",".join(DESIGNS), help=f"among {', '.join(DESIGNS)}")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/designs"), help="where all goes")
    common.add_jobs(parser)
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="flags of train_IEMOCAP.py for every run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    settings, own = common.parse(build_parser(), argv)
    return common.ending(lambda: compare(settings, own))


def compare(settings: Settings, own: argparse.Namespace) -> int:
    """Train what is not trained yet; write the table. Returns 1 if a run failed, which stops no other, else 0."""
    names = list(dict.fromkeys(own.designs.split(",")))
    if unknown := [name for name in names if name not in DESIGNS]:
        raise InputError(f"--designs {unknown[0]!r:.60}: no such design; choose among {', '.join(DESIGNS)}")
    _, corpus = common.prepare(settings)
    folds = f"--folds {own.folds} --folds-over {own.folds_over}" if own.folds else ""
    common.begin(own.out, {"flags": " ".join([folds, *own.flags]).strip(), "data": corpus.sha256})
    work = [(name, seed) for name in names for seed in own.seeds if not finished(run_directory(name, seed, own))]
    jobs = {f"{name}, seed {seed}": job(name, seed, settings, own) for name, seed in work}
    results = do_all(jobs, own.jobs, own.cluster, own.out) if jobs else {}
    lines = []
    for name in DESIGNS:
        there = sorted(int(each.name[4:]) for each in run_directory(name, 0, own).parent.glob("seed*"))
        if seeds := [seed for seed in there if finished(run_directory(name, seed, own))]:
            lines.append(line(name, seeds, own))
    if lines:
        rows = pd.DataFrame(lines).rename(columns={"less none": f"less none [{LEVEL} % interval]"})
        write_csv(own.out / "designs.csv", rows)
        text = common.markdown(rows)
        common.write_text(own.out / "designs.md", text)
        print(f"\n{text}")
    return common.status_of(results, len(names) * len(own.seeds))


if __name__ == "__main__":
    sys.exit(main())
