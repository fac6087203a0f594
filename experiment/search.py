"""A sweep: trials that Optuna proposes, each a run of its own, shared by as many workers as join in.

What trials there are is in the storage; what they came to is in their run directories. A trial whose worker is gone has
no lock on its directory any more: the next worker takes it up where its checkpoint left it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

import experiment.run
from dataloader import Corpus
from experiment.console import say
from experiment.plan import plan, summarise_tree, train_in_plan, train_or_read
from experiment.run_directory import LOG, check_same_run, locked, write_config, write_csv, write_json
from experiment.settings import Settings, contradiction, differences, from_json, read_json
from experiment.sweep_flags import Range, Sweep
from files import InputError, TrainingError, WriteError, complain
from utils import out_of_memory, stream

try:
    import optuna
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError
except ImportError:
    raise InputError("a sweep needs Optuna; install it with: pip install -r requirements-scale.txt") from None

JOURNAL = "journal.log"
ANSWERS_WITHIN = 5  # seconds a database may take
FIRST, WARM_UP = 5, 0.25  # trials, and part of a trial, that are never pruned

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message=".*is not divisible by `step`.*", category=UserWarning)
# As by epochs since the checkpoint that a killed trial goes on from, and by several of more than a thousand.
warnings.filterwarnings("ignore", message=".*is already reported.*", category=UserWarning)

Train = Callable[[Settings, Corpus, Path], Mapping[str, Any]]


class StorageError(TrainingError):
    """What keeps the trials does not answer."""


def open_study(sweep: Sweep, corpus: Corpus) -> optuna.Study:
    """The study of a sweep's directory, which is made unless it is there.

    Raises:
        InputError: If the directory is of something else, or of a sweep with another space, data or flags, or the
            storage does not answer.
    """
    out = Path(sweep.out)
    about = {
        "space": [dataclasses.asdict(one) for one in sweep.space],
        "settings": dataclasses.asdict(sweep.settings),
        "folds": sweep.folds,
        "first_fold_only": sweep.first_fold_only,
        "storage": hidden(sweep.storage),
        "data": corpus.sha256,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror}); choose another directory") from None
    path = out / "sweep.json"
    own = (path.name, JOURNAL)  # another worker may be making them
    if not path.exists() and any(each.name not in own and each.name[0] != "." for each in out.iterdir()):
        raise InputError(f"--out {out}: not empty and of no sweep; choose another")
    with asking(out):
        if path.exists():
            begun = read_json(path)
            if not isinstance(begun, dict) or not {*about, "study"} <= begun.keys():
                raise InputError(f"{path}: of no sweep; choose another --out")
            now = json.loads(json.dumps(about))  # tuples are lists there
            other = [name for name in about if name != "settings" and begun[name] != now[name]]
            other += differences(from_json(begun["settings"], str(path)), sweep.settings)
            if other:
                raise InputError(f"{path}: a sweep with another {', '.join(other)}; choose another --out")
        else:
            begun = {**about, "study": f"{out.resolve().name:.100}-{uuid.uuid4().hex[:8]}"}
        with answering(sweep):
            study = optuna.create_study(
                storage=storage_of(sweep),
                study_name=begun["study"],
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(FIRST, round(1000 * WARM_UP)) if sweep.prune else None,
                load_if_exists=True,
            )
        if not path.exists():
            write_json(path, begun)  # now that the storage answers: with a mistake in it the directory would be used up
        return study


def storage_of(sweep: Sweep) -> optuna.storages.BaseStorage:
    """The journal in the directory, or the database."""
    if not sweep.storage:
        return optuna.storages.JournalStorage(Journal(str(Path(sweep.out) / JOURNAL)))
    url = make_url(sweep.storage)
    options = {}
    if url.get_backend_name() == "postgresql":
        options = {"connect_args": {"connect_timeout": ANSWERS_WITHIN}, "pool_pre_ping": True}
        url = url.set(drivername="postgresql+psycopg")
    return optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=options)


class Journal(optuna.storages.journal.JournalFileBackend):
    """Optuna's journal, whose lock and last line may be those of a worker that was killed."""

    def __init__(self, path: str):
        # Its other lock is a link whose age is that of what it names: of a relative name, that of nothing, for ever.
        super().__init__(path, optuna.storages.journal.JournalFileOpenLock(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines, after taking off one that a worker was killed in the midst of: the first would be glued to it."""
        self._lock.acquire()
        try:
            with Path(self._file_path).open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
                if stream.read() not in (b"", b"\n"):
                    stream.seek(0)
                    os.truncate(self._file_path, stream.read().rfind(b"\n") + 1)
        finally:
            self._lock.release()
        super().append_logs(logs)


def hidden(storage: str | None) -> str | None:
    """The URL of a database without the password in it."""
    if not storage:
        return None
    try:
        url = make_url(storage)
        secrets = {name: "***" for name in url.query if "pass" in name.lower()}
        return url.update_query_dict(secrets).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        raise InputError("--storage: no URL of a database, such as postgresql://user@host/name") from None


@contextmanager
def answering(sweep: Sweep) -> Iterator[None]:
    """Around what is asked of the storage.

    Raises:
        StorageError: If it does not answer; what is finished is in it.
    """
    try:
        yield
    except (InputError, TrainingError, optuna.TrialPruned):
        raise
    except Exception as e:  # whatever a damaged journal, or a database of another version, comes to in Optuna
        where = f"--storage {hidden(sweep.storage)}" if sweep.storage else f"{sweep.out}/{JOURNAL}"
        why = str(e.__cause__ or e).split("\n")[0]
        raise StorageError(
            f"{where}: cannot be used ({why:.200}); finished trials are kept, and the same command goes on"
        ) from None


@contextmanager
def asking(out: Path) -> Iterator[None]:
    """One worker at a time."""
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(out / ".ask.lock"))
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another directory") from None
        yield


def search(sweep: Sweep, corpus: Corpus, train: Train) -> str | None:
    """Train trials until there are as many as asked for. Returns where it was stopped, if it was.

    Raises:
        StorageError: If the storage does not answer any more.
    """
    study = open_study(sweep, corpus)
    while True:
        with ExitStack() as held:
            with asking(Path(sweep.out)), answering(sweep):
                trial = next_trial(study, sweep, held)
            if trial is None:
                return None
            with answering(sweep):
                choices = {one.name.replace(".", "__"): suggest(trial, one) for one in sweep.space}
            settings = sweep.settings.replace(**choices)
            try:
                figure = score(trial, settings, sweep, corpus, train)
                state, told = optuna.trial.TrialState.COMPLETE, "interrupted" if figure is None else f"F1 {figure:.2f}"
            except optuna.TrialPruned as pruned:
                figure, state, told = None, optuna.trial.TrialState.PRUNED, f"pruned{pruned}"
            except (InputError, RuntimeError, MemoryError) as error:
                expected = isinstance(error, (InputError, TrainingError)) or out_of_memory(error)
                if isinstance(error, (StorageError, WriteError)) or not expected:
                    raise
                figure, state, told = None, optuna.trial.TrialState.FAIL, f"failed: {error}"
            if told == "interrupted":
                return f"trial {trial.number}"
            with answering(sweep):
                study.tell(trial, figure, state)
            chosen = ", ".join(f"{one.flag} {trial.params[one.flag]}" for one in sweep.space)
            say(f"trial {trial.number}: {told} ({chosen})")


def next_trial(study: optuna.Study, sweep: Sweep, held: ExitStack) -> optuna.Trial | None:
    """A trial that nobody is at, or a new one; its directory is locked until `held` is closed. None if none is left."""
    trials, running = study.get_trials(deepcopy=False), optuna.trial.TrialState.RUNNING
    for one in trials:
        if one.state != running:
            continue
        with suppress(InputError), ExitStack() as taken:  # an error where somebody is at it
            taken.enter_context(locked(directory_of(sweep, one.number)))
            # Whoever was at it may have finished it since we looked.
            if one.number in [now.number for now in study.get_trials(deepcopy=False, states=(running,))]:
                held.enter_context(taken.pop_all())
                return optuna.Trial(study, one._trial_id)
    if len(trials) >= sweep.trials:
        return None
    # A seed for each trial: a sweep that goes on proposes no trial of its beginning again.
    seed = stream(sweep.settings.run.seed, f"trial {len(trials)}")
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    trial = study.ask()
    held.enter_context(locked(directory_of(sweep, trial.number)))
    return trial


def directory_of(sweep: Sweep, number: int) -> Path:
    """The run directory of a trial."""
    return Path(sweep.out) / f"trial{number:04d}"


def suggest(trial: optuna.Trial, one: Range) -> Any:
    """The trial's choice."""
    if one.choices:
        return trial.suggest_categorical(one.flag, one.choices)
    if one.whole:
        return trial.suggest_int(one.flag, one.low, one.high, step=one.step or 1, log=one.log)
    return trial.suggest_float(one.flag, one.low, one.high, step=one.step, log=one.log)


def score(trial: optuna.Trial, settings: Settings, sweep: Sweep, corpus: Corpus, train: Train) -> float | None:
    """Weighted F1 on the inner folds, in percent, in the mean; None if it was stopped.

    Raises:
        optuna.TrialPruned: If the trial fell behind, or its flags contradict each other.
    """
    if problem := contradiction(settings, [one.name for one in sweep.space]):
        raise optuna.TrialPruned(f": {problem}")
    runs = plan(settings, corpus, None, sweep.folds, "train")
    directory, done = directory_of(sweep, trial.number), {}
    if sweep.first_fold_only:
        runs = [dataclasses.replace(runs[0], name="")]
        check_same_run(directory, runs[0].settings, runs[0].corpus)
    else:
        check_same_run(directory, settings, corpus)
        write_config(directory, settings, corpus, {"seeds": None, "folds": sweep.folds, "folds_over": "train"})

    def mean(*more: float) -> float:
        return float(np.mean([*(figures["test"]["weighted_f1"] for figures in done.values()), *more]))

    def train_watched(settings: Settings, corpus: Corpus, directory: Path) -> Mapping[str, Any]:
        experiment.run.watch = watch if sweep.prune else None
        try:
            return train(settings, corpus, directory)
        finally:
            experiment.run.watch = None

    def watch(stage: str, row: Mapping[str, float]) -> None:
        if stage != "classifier":
            return
        step = round(1000 * (len(done) + row["epoch"] / settings.classifier.epochs) / len(runs))
        with answering(sweep):
            trial.report(mean(row["test_weighted_f1"]), step)
            if trial.should_prune():
                raise optuna.TrialPruned(f" at epoch {row['epoch']:.0f} {runs[len(done)].name}".rstrip())

    with (directory / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log):
        for run in runs:
            figures = (train_in_plan if run.name else train_or_read)(run, directory / run.name, train_watched)
            if "interrupted" in figures:
                return None
            done[run.name] = figures
        if len(runs) > 1:
            summarise_tree(directory, done)
    return mean()


def look_back(sweep: Sweep, study: optuna.Study) -> str:
    """Draw history and importance, write the table of trials, and say what was best and how to train it."""
    from experiment.flags import as_flags

    out = Path(sweep.out)
    with answering(sweep):
        trials = study.get_trials(deepcopy=False)
        done = [one for one in trials if one.state == optuna.trial.TrialState.COMPLETE]
        if not done:
            return f"{len(trials)} trials, none of them finished."
        rows = [
            {
                **{"trial": one.number, "state": one.state.name.lower(), "weighted_f1": one.value},
                **{flag.lstrip("-"): value for flag, value in one.params.items()},
            }
            for one in trials
        ]
        write_csv(out / "trials.csv", rows)
        draw(study, out, importance=len(done) > 1)
        best = study.best_trial
    chosen = {one.name.replace(".", "__"): best.params[one.flag] for one in sweep.space}
    settings = sweep.settings.replace(**chosen, run__report_best_test=False)
    how = "the first inner fold" if sweep.first_fold_only else f"inner folds ({sweep.folds})"
    return (
        f"{len(done)} of {len(trials)} trials finished; the best is trial {best.number}, weighted F1 {best.value:.2f} "
        f"on {how} of the training split, chosen among all of them and so too high for a result. To train it:\n"
        f"python train_IEMOCAP.py {as_flags(settings)}"
    )


def draw(study: optuna.Study, out: Path, *, importance: bool) -> None:
    """Pictures of how the best score grew, and of which flags mattered."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator
    from optuna.visualization import matplotlib as drawn

    from files import replacing

    pictures = {"history": lambda: drawn.plot_optimization_history(study, target_name="weighted F1")}
    if importance:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        pictures["importance"] = lambda: drawn.plot_param_importances(study, evaluator, target_name="weighted F1")
    for name, picture in pictures.items():
        try:
            axes = picture()
        except (RuntimeError, ValueError) as error:  # of trials that are all alike
            complain(f"warning: {name}.png: {error}")
            continue
        if name == "history":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        with replacing(out / f"{name}.png") as temporary:
            axes.figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
        plt.close(axes.figure)
