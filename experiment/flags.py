"""The command line of ``train_IEMOCAP.py``, made from the settings.

The standard library alone: ``--help`` and wrong flags are answered before torch is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from experiment import settings as s
from files import InputError, printable

TITLES = {
    "data": "data",
    "fusion": "stage 1: adversarial fusion",
    "classifier": "stage 2: graph-based emotion classifier",
    "augmentation": "augmentation of training data, in both stages",
    "run": "run",
}
WITH_EVALUATE = {
    "data.features",
    "data.demo",
    "data.missing",
    "data.label_names",
    "run.device",
    "run.pictures",
    "run.figures",
}
README_FLAGS = (  # those that matter most
    *("--features", "--modalities", "--valid"),
    *("--GAN-epochs", "--GAN-weight"),
    *("--epochs", "--lr", "--window-past", "--window-future", "--unimodal-loss"),
    *("--seed", "--device"),
)


@dataclass(frozen=True)
class Command:
    """What the command line asks for.

    Attributes:
        settings: Of the run, or of each of several.
        out: The run directory, if named.
        overwrite: Whether it may replace a run.
        resume: The run to go on with.
        seeds: Of several runs.
        folds: Of cross-validation.
        folds_over: Which dialogues are folded.
        jobs: How many runs at a time.
        cluster: Address of the Dask scheduler that takes them.
        evaluate: The run to score again.
        given: Names of the settings that the command line itself named.
        export_fused: Where fused features go.
        export_stage: Of which stage they are, 1 or 2.
        download: The public file to fetch.
    """

    settings: s.Settings
    out: str | None = None
    overwrite: bool = False
    resume: str | None = None
    seeds: tuple[int, ...] | None = None
    folds: str | int | None = None
    folds_over: str = "all"
    jobs: int = 1
    cluster: str | None = None
    evaluate: str | None = None
    export_fused: str | None = None
    export_stage: int = 1
    download: str | None = None
    given: frozenset[str] = frozenset()

    @property
    def together(self) -> str:
        """The flags that say how runs go together, as a command line goes on with them."""
        return (
            f" --cluster {shlex.quote(self.cluster)}"
            if self.cluster
            else f" --jobs {self.jobs}"
            if self.jobs > 1
            else ""
        )


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {printable(' '.join(message.split()), 1000)}\n")


class HelpFormatter(argparse.HelpFormatter):
    """Help of a readable width, with every default there is."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        known = action.default not in (None, False, [], argparse.SUPPRESS) and "default:" not in (action.help or "")
        return f"{action.help} (default: %(default)s)" if known else action.help


class Merge(argparse.Action):
    """A flag that may be given several times, each time with more of a dictionary."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Add what was given to what there is."""
        before = getattr(namespace, self.dest, None) or {}
        if twice := before.keys() & values.keys():
            raise argparse.ArgumentError(self, f"names {min(twice)} twice")
        setattr(namespace, self.dest, {**before, **values})


def flag_type(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of values as argparse wants it."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def add_settings(parser: argparse.ArgumentParser, only: Sequence[str] | None = None) -> None:
    """Give a parser a flag for every setting, or for those of some flags; values not given are left out."""
    for group, cls in s.groups().items():
        fields = [f for f in dataclasses.fields(cls) if f.metadata["flag"]]
        fields = [f for f in fields if only is None or f.metadata["flag"] in only]
        target = parser.add_argument_group(TITLES[group]) if fields else None
        for f in fields:
            about = f.metadata
            options: dict[str, Any] = {"dest": f"{group}.{f.name}", "default": argparse.SUPPRESS}
            if isinstance(about["kind"], s.Switch):
                options["action"] = argparse.BooleanOptionalAction
            else:
                options |= {"type": flag_type(about["kind"].parse), "metavar": about["metavar"] or f.name.upper()}
            if isinstance(about["kind"], s.Choice):
                options["metavar"] = "{" + ",".join(about["kind"].words) + "}"
            if isinstance(about["kind"], s.Probabilities):
                options["action"] = Merge
            shown = f.default is not None and f.default is not False and "default:" not in about["help"]
            help = about["help"] + (f" (default: {f.default})" if shown else "")
            target.add_argument(about["flag"], help=help, **options)
            if about["aliases"]:
                target.add_argument(*about["aliases"], help=argparse.SUPPRESS, **options)


def add_jobs(target: Any, what: str) -> None:
    """Give a parser, or a group of it, the flags of `experiment.jobs`.

    Args:
        target: Gets them.
        what: What goes together.
    """
    target.add_argument(
        "--jobs",
        type=flag_type(s.Number(int, 1, 1000).parse),
        metavar="N",
        default=1,
        help=f"{what} at a time, in processes that share the cores out",
    )
    target.add_argument(
        "--cluster",
        type=flag_type(s.Text().parse),
        metavar="ADDRESS",
        help=f"{what} on the workers of the Dask scheduler at ADDRESS, such as tcp://node1:8786 (docs/scale.md)",
    )


def build_parser() -> Parser:
    """All flags, grouped as the method is. Those of the reference keep their names."""
    parser = Parser(
        prog="train_IEMOCAP.py",
        description="Train GAN-FFN: features of a conversation in, an emotion for every utterance and a report out.",
        epilog="Without data at hand, try: python train_IEMOCAP.py --demo",
        formatter_class=HelpFormatter,
    )
    add_settings(parser)
    what = parser.add_argument_group("what to do")
    what.add_argument(
        "--config",
        type=flag_type(s.FileName().parse),
        metavar="FILE",
        help="settings from JSON, such as a run's config.json; flags override",
    )
    what.add_argument(
        "--out",
        type=flag_type(s.FileName(new=True).parse),
        metavar="DIR",
        help="run directory (default: runs/ and the data's name, time)",
    )
    what.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    what.add_argument(
        "--resume",
        type=flag_type(s.FileName().parse),
        metavar="RUN",
        nargs="?",
        const=True,
        help="go on with a run that was stopped: RUN, or that of --out, which begins if there is none; with --seeds or "
        "--folds, also gather runs that were made one by one",
    )
    what.add_argument("--seeds", type=flag_type(s.parse_seeds), metavar="LIST", help="several runs, such as 0,1,2")
    what.add_argument(
        "--folds",
        type=flag_type(s.parse_folds),
        metavar="K",
        help="cross-validation over all dialogues of the file: sessions leaves each session out (IEMOCAP's ids name "
        "them), a number deals the dialogues to that many folds",
    )
    what.add_argument(
        "--folds-over",
        choices=("all", "train"),
        default="all",
        help="train: cross-validation within the training split, to choose flags without a look at the test split",
    )
    add_jobs(what, "runs of --seeds and --folds")
    what.add_argument(
        "--evaluate",
        type=flag_type(s.FileName().parse),
        metavar="RUN",
        help="score a finished run again, on its own data or, with --features, on other; --out DIR writes that too",
    )
    what.add_argument(
        "--export-fused",
        type=flag_type(s.FileName(new=True).parse),
        metavar="FILE",
        help="write the fused features as a 9-tuple pickle for other networks",
    )
    what.add_argument(
        "--export-stage",
        type=int,
        choices=(1, 2),
        default=1,
        help="of which stage they are: 1 looks at no label; 2 has learnt from those of the training dialogues",
    )
    what.add_argument(
        "--download",
        type=flag_type(s.Text().parse),
        metavar="NAME",
        nargs="?",
        const="iemocap",
        help="fetch a known public feature file into IEMOCAP_features/ and stop; iemocap unless named",
    )
    what.add_argument("--no-cuda", action="store_true", help="the CPU, whatever there is")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Command:
    """What the flags ask for, checked against each other; exits with status 2 and one line if they are wrong."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    if given["export_stage"] != 1 and not given["export_fused"]:
        parser.error("--export-stage says of which stage --export-fused writes features: name its FILE too")
    chosen = {name: given.pop(name) for name in list(given) if "." in name}
    if given.pop("no_cuda") and chosen.get("run.device", "auto").startswith(("auto", "cuda")):
        chosen["run.device"] = "cpu"
    config = given.pop("config")
    if given["seeds"] and "run.seed" in chosen:
        parser.error("--seed and --seeds exclude each other; give one")
    try:
        if given["resume"] is not None:
            if unheeded := next((n for n in ("evaluate", "overwrite", "download") if given[n]), None):
                parser.error(f"--resume goes on with a run as it was begun: leave out --{unheeded}")
            if given["out"] and given["resume"] is not True and Path(given["out"]) != Path(given["resume"]):
                parser.error(f"--resume {given['resume']}: the run stays where it is: leave out --out {given['out']}")
            if given["resume"] is True:
                given["resume"] = given["out"] or parser.error(
                    "--resume: name the run, or give its directory with --out"
                )
                several = True  # and if nothing is there yet, it begins: the same command always goes on
            else:
                several = (given["seeds"] or given["folds"]) and Path(given["resume"]).is_dir()
            if not several or (Path(given["resume"]) / "config.json").exists():
                return _resumed(parser, given, chosen, config)
            given["out"] = given["resume"]  # runs that others began one by one are gathered
        base = s.from_file(Path(config)) if config else s.Settings()
    except InputError as error:
        parser.error(str(error))
    settings = base.replace(**{name.replace(".", "__"): value for name, value in chosen.items()})
    if problem := s.contradiction(settings, chosen):
        parser.error(problem)
    if given["evaluate"]:
        stray = [*chosen.keys() - WITH_EVALUATE, *(n for n in ("seeds", "folds", "overwrite") if given[n])]
        if stray or config:
            words = ", ".join(map(flag_of, sorted(stray))) or "--config"
            parser.error(f"--evaluate takes its flags from the run: leave out {words}")
    if problem := jobs_problem(given):
        parser.error(problem)
    if given["export_fused"] and (given["seeds"] or given["folds"]):
        parser.error("--export-fused writes the features of one run: use --seed, or --evaluate RUN/seed0 afterwards")
    return Command(settings, **given, given=frozenset(chosen))


def _resumed(parser: Parser, given: dict[str, Any], chosen: Mapping[str, Any], config: str | None) -> Command:
    """The command of the run to resume; what is given beside ``--resume`` must say the same."""
    path = Path(given["resume"]) / "config.json"
    config_of_run = s.read_run(path)
    settings = s.from_json(config_of_run["settings"], str(path))
    try:
        plan = config_of_run.get("plan") or {}
        seeds = s.check_seeds(plan["seeds"]) if plan.get("seeds") else None
        folds = s.parse_folds(str(plan["folds"])) if plan.get("folds") else None
        over = s.Choice(("all", "train")).check(plan.get("folds_over", "all"))
    except (OSError, ValueError, TypeError, AttributeError):
        raise InputError(f"{path}: plan: no seeds and folds of a run; the run directory is damaged") from None
    saved = {**s.flat(settings), "seeds": seeds, "folds": folds, "folds_over": over}
    said = {**chosen, **{n: given[n] for n in ("seeds", "folds") if given[n]}}
    if given["folds_over"] != "all":
        said["folds_over"] = given["folds_over"]
    changed = [name for name, value in said.items() if name not in s.FREE_ON_RESUME and saved.get(name) != value]
    if changed or config:
        words = ", ".join(f"{flag_of(n)} {said[n]} (the run has {saved.get(n)})" for n in changed) or "--config"
        parser.error(f"--resume {given['resume']}: the run was begun with other flags: {words}; leave them out")
    free = {name.replace(".", "__"): value for name, value in chosen.items() if name in s.FREE_ON_RESUME}
    given |= {"seeds": seeds, "folds": folds, "folds_over": over, "out": given["resume"]}
    if problem := jobs_problem(given):
        parser.error(problem)
    return Command(settings.replace(**free), **given, given=frozenset(chosen))


def jobs_problem(given: Mapping[str, Any]) -> str | None:
    """What is wrong with how runs are divided, and go together; None if nothing is."""
    if given["jobs"] > 1 and given["cluster"]:
        return "--jobs and --cluster exclude each other: a cluster has as many runs at a time as it has workers"
    if (given["jobs"] > 1 or given["cluster"]) and not (given["seeds"] or given["folds"]):
        return f"--{'cluster' if given['cluster'] else 'jobs'} is for several runs: add --seeds or --folds"
    if given["folds_over"] != "all" and not given["folds"]:
        return f"--folds-over {given['folds_over']} goes with --folds; add it"
    return None


def flag_of(name: str) -> str:
    """The flag of a setting, such as ``--seed`` of ``run.seed``."""
    group, _, one = name.rpartition(".")
    fields = {f.name: f for f in dataclasses.fields(s.groups()[group])} if group else {}
    return fields[one].metadata["flag"] if one in fields else f"--{name.replace('_', '-')}"


def as_flags(settings: s.Settings) -> str:
    """The flags of a command line with these settings; what has its default is left out."""
    words = []
    for group, cls in s.groups().items():
        for f in dataclasses.fields(cls):
            value, flag = getattr(getattr(settings, group), f.name), f.metadata["flag"]
            if not flag or value == f.default or (f.name == "window_future" and settings.classifier.causal):
                continue  # beside --causal the future window is refused
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
                continue
            text = ",".join(f"{m}:{p}" for m, p in value.items()) if isinstance(value, Mapping) else str(value)
            words += [flag, ",".join(value) if isinstance(value, tuple) else text]
    return shlex.join(words)


def readme_table() -> str:
    """The flags that matter, as the README shows them."""
    lines = ["| flag | default | what it does |", "|---|---|---|"]
    for cls in s.groups().values():
        for f in dataclasses.fields(cls):
            about = f.metadata
            if about["flag"] in README_FLAGS:
                value = f" {about['metavar']}" if about["metavar"] else ""
                shown = (
                    ""
                    if f.default is None or f.default is False
                    else f"{f.default:{'g' * isinstance(f.default, float)}}"
                )
                lines.append(f"| `{about['flag']}{value}` | {shown} | {about['help']} |")
    return "\n".join(lines) + "\n"
