"""The same test utterances under several runs: who is better, and whether that is more than chance.

python compare.py runs/first runs/second --out runs/comparison
python compare.py runs/first --predictions somebody.csv --html runs/comparison.html
"""

from __future__ import annotations

from experiment.compare_flags import parse_args
from experiment.start import begin, ending, ready

if __name__ == "__main__":
    begin(parse_args)  # wrong flags and --help are answered here, before the imports that take seconds

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dataloader import IGNORE_LABEL
from experiment.comparison import (
    DRAWS,
    GROUP_DRAWS,
    LEVEL,
    Gain,
    Predictions,
    compare,
    gain,
    latex,
    markdown,
    read_run,
    read_table,
    score_table,
)
from experiment.console import leave, say
from experiment.run_directory import write_csv
from files import InputError, replacing, spare

GROUPS = 100  # rows of speakers and sessions at most that are printed

__all__ = ["DRAWS", "Gain", "Predictions", "compare", "gain", "main", "read_run", "read_table"]


def summary(tables: Mapping[str, pd.DataFrame], runs: Sequence[Predictions], draws: int) -> str:
    """What is printed: scores and differences with their intervals, McNemar's test, speakers and sessions."""
    scored = runs[0].table[runs[0].table["label"] != IGNORE_LABEL]
    seeds = ", ".join(f"{run.name} {len(run.members)}" for run in runs)
    lines = [
        f"{len(scored)} test utterances of {scored['dialogue'].nunique()} dialogues; {LEVEL} % intervals by "
        f"{draws:,} bootstrap draws of dialogues within sessions; members (seeds) a run: {seeds}.",
        "",
        score_table(tables, mark=lambda cell: cell + " *").T.to_string(header=False),
    ]
    if len(tables["differences"]):
        lines += ["", "* the interval excludes 0."]
        together = " of the means of seeds' probabilities" if any(len(run.members) > 1 for run in runs) else ""
        for _, test in tables["mcnemar"].iterrows():
            lines.append(
                f"McNemar's exact test{together}, {test['run']} and {test['over']}: right alone "
                f"{test['right alone']} and {test['other right alone']}, p = {test['p']:.2g} (takes utterances for "
                "independent)."
            )
    groups = tables["groups"]
    by_group = groups[:GROUPS].to_string(index=False, float_format="{:.2f}".format, na_rep="–")
    if len(groups) > GROUPS:
        by_group += f"\n… {len(groups) - GROUPS} more rows: --out DIR writes all"
    drawn = f"{min(draws, GROUP_DRAWS):,} draws of the group's dialogues"
    return "\n".join([*lines, "", f"low, high: {LEVEL} % interval of weighted F1 by {drawn}.", by_group])


def write(tables: Mapping[str, pd.DataFrame], folder: Path, inputs: Sequence[Path] = ()) -> None:
    """Each table as CSV, and scores and groups as Markdown and LaTeX; none over an input."""
    for name in (*(f"{name}.csv" for name in tables), "comparison.md", "comparison.tex"):
        spare(inputs, folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be made ({error.strerror}); choose another") from None
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table, digits=8)  # not decimals: of a p-value they would leave 0
    shown = {"comparison": score_table(tables, mark=lambda cell: cell + " *"), "groups": tables["groups"]}
    if len(tables["mcnemar"]):
        shown["mcnemar"] = tables["mcnemar"]
    for suffix, written in (("md", markdown), ("tex", latex)):
        with replacing(folder / f"comparison.{suffix}") as temporary:
            temporary.write_text("\n".join(written(table) for table in shown.values()), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 2 for bad input, 130 if interrupted."""
    args = parse_args(argv)

    def work() -> None:
        if args.html:
            if len(args.runs) + len(args.predictions) < 2:
                raise InputError("--html: one run is not several; name two or more, or a table with --predictions")
            spare(map(Path, [*args.runs, *args.predictions]), Path(args.html))
        runs = [read_run(Path(run)) for run in args.runs]
        runs += [read_table(Path(path), runs[0]) for path in args.predictions]
        tables = compare(runs, args.draws)
        if args.out:
            write(tables, Path(args.out), [Path(path) for path in args.predictions])
        if args.html:
            from experiment.page import comparison_page

            comparison_page(runs, tables, [Path(run) for run in args.runs], Path(args.html))
        say(summary(tables, runs, args.draws))

    return ending(work)


if __name__ == "__main__":
    ready()
    leave(main())
