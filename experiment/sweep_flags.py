"""The command line of ``sweep.py`` and its space. The standard library alone, so that mistakes are answered at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment import settings as s
from experiment.flags import HelpFormatter, Parser, add_jobs, add_settings, flag_type
from files import InputError

TUNABLE = ("fusion", "classifier", "augmentation")  # groups of settings; of the run, the batch size alone


@dataclass(frozen=True)
class Range:
    """What a trial may choose for one setting.

    Attributes:
        name: Of the setting, such as ``classifier.lr``.
        flag: Its flag.
        choices: The values, of which one is taken; empty where it is a range.
        low: The least value.
        high: The greatest.
        log: Whether it is drawn by its logarithm.
        step: Between two values; None where any will do.
        whole: Whether values are whole numbers.
    """

    name: str
    flag: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    whole: bool = False


@dataclass(frozen=True)
class Sweep:
    """What the command line asks for.

    Attributes:
        settings: Of every trial, but for what it chooses.
        space: What it chooses.
        out: Directory of the sweep.
        trials: How many in all.
        storage: URL of a database; None for a journal in the directory.
        folds: Inner folds, of the training split.
        first_fold_only: Whether a trial is trained on the first of them alone.
        prune: Whether trials that fall behind are stopped.
        jobs: How many trials at a time.
        cluster: Address of the Dask scheduler that takes them.
    """

    settings: s.Settings
    space: tuple[Range, ...]
    out: str
    trials: int
    storage: str | None
    folds: str | int
    first_fold_only: bool
    prune: bool
    jobs: int
    cluster: str | None


def build_parser() -> Parser:
    """All flags: those of a run, and the sweep's own."""
    parser = Parser(
        prog="sweep.py",
        description="Choose flags of train_IEMOCAP.py by Optuna (TPE). The test split plays no part: a trial is scored "
        "on inner folds of the training split.",
        epilog='SPACE.json: {"lr": {"low": 1e-4, "high": 1e-2, "log": true}, "graph-layers": [1, 2, 3]}',
        formatter_class=HelpFormatter,
    )
    parser.add_argument("space", metavar="SPACE.json", help="flags to their ranges (low, high, log, step) or choices")
    add_settings(parser)
    own = parser.add_argument_group("the sweep")
    own.add_argument(
        "--out",
        required=True,
        type=flag_type(s.FileName(new=True).parse),
        metavar="DIR",
        help="directory of the sweep; where it has begun, the same command goes on or joins in",
    )
    own.add_argument(
        "--trials", type=flag_type(s.Number(int, 1, 1_000_000).parse), default=50, metavar="N", help="trials in all"
    )
    own.add_argument(
        "--storage",
        type=flag_type(url),
        metavar="URL",
        help="a database, such as postgresql://user@host/name (default: a journal file in the directory)",
    )
    own.add_argument(
        "--folds",
        type=flag_type(s.parse_folds),
        metavar="K",
        help="score a trial by the mean over K inner folds, or over sessions; with --valid SHARE it is scored on the "
        "first of 1 / SHARE folds alone (default: 5)",
    )
    own.add_argument("--no-prune", action="store_true", help="finish every trial, though others were better halfway")
    add_jobs(own, "trials")  # of a cluster, too, --jobs says how many
    return parser


def url(text: str) -> str:
    """The URL of a database, which is not shown where it is none: a password may be in it.

    Raises:
        ValueError: If it is none, or its password has an ``@``, behind which the rest of it would pass for the host.
    """
    if text.partition("?")[0].count("@") > 1:
        raise ValueError("write the @ of a password as %40")
    try:
        return s.Text(r"[a-z0-9+]+://[^\x00]+").check(text)
    except ValueError:
        raise ValueError("this is not the URL of a database, such as postgresql://user@host/name") from None


def parse_args(argv: Sequence[str] | None = None) -> Sweep:
    """What the flags ask for; exits with status 2 and one line if they, or the space, are wrong."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    chosen = {name: given.pop(name) for name in list(given) if "." in name}
    settings = s.Settings().replace(**{name.replace(".", "__"): value for name, value in chosen.items()})
    try:
        space = read_space(Path(given["space"]))
    except InputError as error:
        parser.error(str(error))
    for one in space:
        if one.name in chosen:
            parser.error(f"{one.flag} is in {given['space']}: leave it out of one of them")
    if not (settings.data.features or settings.data.demo):
        parser.error("name the feature file with --features, or try --demo")
    if problem := s.contradiction(settings, {*chosen, *(one.name for one in space)}):
        parser.error(problem)
    if (given["storage"] or "").startswith("sqlite") and ":memory:" in given["storage"]:
        parser.error("--storage: a database in memory is gone with its process; name a file, sqlite:///FILE")
    valid = settings.data.valid
    if valid and given["folds"]:
        parser.error("--valid and --folds exclude each other: a trial is scored on one inner fold, or on all of them")
    if settings.run.calibrate or settings.run.report_best_test:
        parser.error("--calibrate and --report-best-test are of finished runs: leave them out of a sweep")
    return Sweep(
        settings.replace(data__valid=0.0, run__report_best_test=not given["no_prune"]),
        space,
        given["out"],
        given["trials"],
        given["storage"],
        given["folds"] or (max(2, round(1 / valid)) if valid else 5),
        bool(valid),
        not given["no_prune"],
        given["jobs"],
        given["cluster"],
    )


def read_space(path: Path) -> tuple[Range, ...]:
    """What trials choose from.

    Raises:
        InputError: If the file cannot be read, or names no flag, or a value that the flag does not take.
    """
    content = s.read_json(path, "name a JSON file of flags and ranges")
    if not isinstance(content, Mapping) or not content:
        raise InputError(f'{path}: no flags with ranges, such as {{"lr": {{"low": 1e-4, "high": 1e-2, "log": true}}}}')
    fields = {
        f.metadata["flag"]: (f"{group}.{f.name}", f.metadata["kind"])
        for group, cls in s.groups().items()
        for f in dataclasses.fields(cls)
        if group in TUNABLE or f.name == "batch_size"
    }
    found = []
    for key, value in content.items():
        flag = f"--{key.lstrip('-')}"
        if flag in [one.flag for one in found]:
            raise InputError(f"{path}: {flag} is there twice; give it once")
        if flag not in fields:
            raise InputError(f"{path}: {key!r:.40} is no flag to be tuned; there are {', '.join(sorted(fields))}")
        try:
            found.append(_range(*fields[flag], flag, value))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: {key}: {error}") from None
    return tuple(found)


def _range(name: str, kind: Any, flag: str, value: Any) -> Range:
    if isinstance(value, list):
        choices = tuple(kind.check(x) for x in value)
        if any(isinstance(x, Mapping) for x in choices):
            raise ValueError("its values are no plain words or numbers; fix it by its flag")
        if len(set(choices)) != len(choices) or len(choices) < 2:
            raise ValueError("give two or more choices, each once")
        return Range(name, flag, choices)
    if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys() <= {"low", "high", "log", "step"}:
        raise ValueError("give a list of choices, or low and high, and maybe log or step")
    if not isinstance(kind, s.Number):
        raise ValueError("has no range; give a list of choices")
    low, high = kind.check(value["low"]), kind.check(value["high"])
    log, step = s.SWITCH.check(value.get("log", False)), value.get("step")
    if low >= high:
        raise ValueError(f"low {low} is not below high {high}")
    if log and (low <= 0 or step):
        raise ValueError("log goes with low above 0 and without step")
    if step is not None and not (isinstance(step, (int, kind.kind)) and 1e-6 * (high - low) <= step <= high - low):
        raise ValueError(f"{step!r:.40} is no step between low and high")
    return Range(name, flag, (), low, high, log, step, kind.kind is int)
