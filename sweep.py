"""Choose flags by Optuna, on inner folds of the training split.

python sweep.py SPACE.json --features IEMOCAP_features/IEMOCAP_features.pkl --out runs/sweep --trials 50

The same command goes on with a sweep that was stopped, and joins in with one that is under way.
"""

from __future__ import annotations

from experiment.start import begin, ready

if __name__ == "__main__":
    begin("experiment.sweep_flags")  # wrong flags and --help are answered here, before the imports that take seconds

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import utils
from experiment.checks import check_jobs, check_training
from experiment.console import leave, say
from experiment.corpus import load_corpus
from experiment.jobs import Job, do_all
from experiment.plan import plan
from experiment.sweep_flags import Sweep, parse_args
from files import InputError, TrainingError, WriteError, complain
from train_IEMOCAP import run_seed


def work(argv: Sequence[str]) -> dict[str, Any]:
    """One worker of a sweep: trains trials until there are enough."""
    sweep = here(parse_args(argv))
    from experiment.search import search

    stopped = search(sweep, load_corpus(sweep.settings, ["train"]), run_seed)
    return {"interrupted": stopped} if stopped else {}


def here(sweep: Sweep) -> Sweep:
    """The sweep with this machine's device."""
    utils.choose_determinism(sweep.settings.run.deterministic)
    return replace(sweep, settings=sweep.settings.replace(run__device=utils.choose_device(sweep.settings.run.device)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if it cannot go on, 2 for bad input, 130 if interrupted."""
    argv = [str(a) for a in (sys.argv[1:] if argv is None else argv)]
    sweep = parse_args(argv)
    try:
        from experiment.search import look_back, open_study, search

        sweep, out = here(sweep), Path(sweep.out)
        corpus = load_corpus(sweep.settings, ["train"])
        check_jobs(sweep.jobs, sweep.settings, corpus)
        check_training(plan(sweep.settings, corpus, None, sweep.folds, "train"))
        study = open_study(sweep, corpus)
        if sweep.jobs > 1 or sweep.cluster:
            alone = [*argv, "--jobs", "1"]
            names = [f"worker{number}" for number in range(sweep.jobs)]
            workers = {name: Job("sweep", "work", (alone,), out / name) for name in names}
            results = do_all(workers, sweep.jobs, sweep.cluster, out)
            if failed := {result["failed"] for result in results.values() if "failed" in result}:
                raise TrainingError("; ".join(sorted(failed)))
            stopped = next((result["interrupted"] for result in results.values() if "interrupted" in result), None)
        else:
            stopped = search(sweep, corpus, run_seed)
        say(look_back(sweep, study))
        if stopped:
            complain(f"Interrupted in {stopped}. The same command goes on.")
        return 130 if stopped else 0
    except WriteError as error:
        complain(f"error: {error}. Finished trials are kept, and the same command goes on.")
        return 1
    except InputError as error:
        complain(f"error: {error}")
        return 2
    except TrainingError as error:
        complain(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        complain("Stopped at once. The same command goes on.")
        return 130


if __name__ == "__main__":
    ready()
    leave(main())
