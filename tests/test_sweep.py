"""Sweeps: what is chosen on what, stopped and gone on with, shared by workers, kept in a database that may go away."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure
from small import BARE, corpus, features, ran, write

import train_IEMOCAP
from experiment.run import Run

__all__ = ["corpus", "features"]  # fixtures

pytest.importorskip("optuna", reason="pip install -r requirements-scale.txt")

import sweep
from experiment import search

SPACE = {
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "--graph-layers": [1, 2],
    "window-past": {"low": 0, "high": 4, "step": 2},
}
QUICK = ["--epochs", "2", "--GAN-epochs", "1", "--fused-channels", "16", "--batch-size", "6", *BARE]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space.json"
    path.write_text(json.dumps(SPACE))
    return path


@pytest.fixture
def command(capsys):
    """Run the script; its exit status, what it printed, and its complaints."""

    return lambda *argv: ran(sweep.main, argv, capsys)


def table(out):
    return pd.read_csv(out / "trials.csv", float_precision="round_trip")


@pytest.fixture(scope="module")
def finished(space, features, tmp_path_factory):
    """A finished sweep, to look at but not to change."""
    out = tmp_path_factory.mktemp("sweeps") / "finished"
    argv = [space, "--features", features, *QUICK, "--valid", "0.34", "--trials", "3", "--out", out]
    assert sweep.main([str(a) for a in argv]) == 0
    return out


def test_numbers_of_trials_are_whole_in_the_picture(tmp_path, monkeypatch):
    study, ticks, write = search.optuna.create_study(), [], Figure.savefig
    for f1 in (29.0, 32.0, 37.0):
        study.add_trial(search.optuna.trial.create_trial(value=f1))

    def look(figure, *given, **flags):
        write(figure, *given, **flags)
        ticks.extend(figure.axes[0].get_xticks())

    monkeypatch.setattr(Figure, "savefig", look)
    search.draw(study, tmp_path, importance=False)
    assert ticks and all(float(tick).is_integer() for tick in ticks)


def test_a_sweep_leaves_trials_that_are_runs_pictures_and_the_best_command(space, features, tmp_path, command):
    out = tmp_path / "sweep"
    argv = [space, "--features", features, *QUICK, "--out", out]
    status, said, error = command(*argv, "--folds", "2", "--trials", "2")
    assert (status, error) == (0, "")
    trials = table(out)
    assert set(trials["state"]) == {"complete"} and trials["lr"].between(1e-4, 1e-2).all()
    best = trials.loc[trials["weighted_f1"].idxmax()]
    assert f"the best is trial {best['trial']}, weighted F1 {best['weighted_f1']:.2f}" in said
    line = said.splitlines()[-1]
    assert line.startswith(f"python train_IEMOCAP.py --features {features} ") and f"--lr {float(best['lr'])!r} " in line
    assert {"--folds", "--report-best-test"}.isdisjoint(line.split())
    train_IEMOCAP.parse_args(line.split()[2:])  # it is a command
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("history", "importance"))
    means = [json.loads((out / f"trial{i:04d}" / "summary.json").read_text())["mean"] for i in (0, 1)]
    assert trials["weighted_f1"].tolist() == pytest.approx([mean["test"]["weighted_f1"] for mean in means])
    assert train_IEMOCAP.main(["--resume", str(out / "trial0000")]) == 0


def test_what_a_run_would_refuse_is_refused_before_anything_is_written(finished, space, features, tmp_path, command):
    for flags, said in (
        (["--use-trained-GAN", finished / "trial0000"], "of this run's held-out dialogues"),
        (["--use-trained-GAN", tmp_path / "nowhere"], "cannot be read"),
        (["--drop-modality", "text:0.1", "--modalities", "visual,audio"], "no text features"),
    ):
        argv = [space, "--features", features, *QUICK, "--folds", "2", "--out", tmp_path / "sweep", *flags]
        status, _, error = command(*argv)
        assert status == 2 and error.count("\n") == 1 and said in error
        assert not (tmp_path / "sweep").exists()


def test_test_dialogues_play_no_part(finished, space, corpus, tmp_path, command):
    test = set(corpus.splits["test"])
    other = {
        i: replace(d, labels=(d.labels + 1) % 6, features={m: -x for m, x in d.features.items()}) if i in test else d
        for i, d in corpus.dialogues.items()
    }
    rolled = write(replace(corpus, dialogues=other), tmp_path / "rolled.pkl")
    argv = [space, "--features", rolled, *QUICK, "--valid", "0.34", "--trials", "3", "--out", tmp_path / "sweep"]
    assert command(*argv)[0] == 0
    assert table(tmp_path / "sweep").equals(table(finished))
    for out in (finished, tmp_path / "sweep"):
        for path in out.glob("trial*/predictions.csv"):
            assert test.isdisjoint(pd.read_csv(path)["dialogue"])


def test_a_sweep_that_is_stopped_goes_on_with_the_same_command(
    finished, space, features, tmp_path, command, monkeypatch
):
    argv = [space, "--features", features, *QUICK, "--valid", "0.34", "--trials", "3", "--out", tmp_path / "sweep"]
    log = Run.log

    def log_then_interrupt(run, stage, row):
        log(run, stage, row)
        if "trial0001" in str(run.directory) and (stage, row["epoch"]) == ("classifier", 1):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_then_interrupt)
        status, _, error = command(*argv)
    assert status == 130 and error == "Interrupted in trial 1. The same command goes on.\n"
    before = (tmp_path / "sweep" / "trial0000" / "report.json").read_bytes()
    assert command(*argv)[0] == 0
    assert (tmp_path / "sweep" / "trial0000" / "report.json").read_bytes() == before
    assert table(tmp_path / "sweep").equals(table(finished))


def test_trials_that_fall_behind_are_pruned(space, features, tmp_path, command, monkeypatch):
    monkeypatch.setattr(search, "FIRST", 1)
    scores = iter([90.0, 90.0, 10.0, 10.0, 10.0])

    def low_after_the_first(run, stage, row, log=Run.log):
        log(run, stage, row | ({"test_weighted_f1": next(scores)} if stage == "classifier" else {}))

    monkeypatch.setattr(Run, "log", low_after_the_first)
    argv = [space, "--features", features, *QUICK, "--valid", "0.34", "--trials", "2", "--out", tmp_path / "sweep"]
    status, said, _ = command(*argv)
    assert status == 0 and "trial 1: pruned at epoch 1" in said
    assert table(tmp_path / "sweep")["state"].tolist() == ["complete", "pruned"]
    assert not (tmp_path / "sweep" / "trial0001" / "report.json").exists()


def test_two_workers_share_a_journal(space, features, tmp_path, command, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "sweep"
    argv = [space, "--features", features, *QUICK, "--valid", "0.34", "--trials", "6", "--out", out, "--jobs", "2"]
    status, said, error = command(*argv)
    assert (status, error) == (0, "")
    trials = table(out)
    assert trials["trial"].tolist() == list(range(6)) and set(trials["state"]) <= {"complete", "pruned"}
    told = [line for line in said.splitlines() if ": trial " in line]
    assert len(told) == 6 and {line.split(":")[0] for line in told} == {"worker0", "worker1"}


def test_a_trial_that_another_worker_finishes_meanwhile_is_not_taken_up(tmp_path, monkeypatch):
    """Between the look at the trials and the lock on one of them."""
    sweep = SimpleNamespace(out=tmp_path, trials=1)
    study = search.optuna.create_study()
    other, lock = study.ask(), search.locked

    def finished_first(directory):
        study.tell(other, 30.0)
        return lock(directory)

    monkeypatch.setattr(search, "locked", finished_first)
    with ExitStack() as held:
        assert search.next_trial(study, sweep, held) is None
    with lock(search.directory_of(sweep, other.number)):
        pass


def test_a_cluster_takes_a_sweep(finished, space, features, tmp_path, command, monkeypatch):
    """With one worker; that another goes on where one is killed is shown in test_jobs.py."""
    distributed = pytest.importorskip("distributed", reason="pip install -r requirements-scale.txt")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, quiet = tmp_path / "sweep", {"dashboard_address": None, "silence_logs": 50}
    argv = [space, "--features", features, *QUICK, "--valid", "0.34", "--trials", "2", "--out", out]
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **quiet) as cluster:
        status, _, error = command(*argv, "--cluster", cluster.scheduler_address)
    assert (status, error) == (0, "")
    trials = table(out)
    assert trials["lr"].tolist() == table(finished)["lr"].tolist()[:2] and set(trials["state"]) <= {
        "complete",
        "pruned",
    }


@pytest.mark.parametrize(
    "content, said",
    {
        "[": "not valid JSON",
        "{}": "no flags with ranges",
        '{"lrr": [1, 2]}': "'lrr' is no flag to be tuned; there are --GAN-epochs",
        '{"features": ["a", "b"]}': "'features' is no flag to be tuned",
        '{"lr": {"low": 1, "high": 0.1}}': "lr: low 1.0 is not below high 0.1",
        '{"lr": {"low": 0, "high": 0.1, "log": true}}': "lr: 0 is out of range",
        '{"noise": {"low": 0, "high": 0.1, "log": true}}': "noise: log goes with low above 0",
        '{"epochs": {"low": 1.5, "high": 3}}': "epochs: 1.5 is no int",
        '{"epochs": [3]}': "epochs: give two or more choices",
        '{"attention": {"low": 0, "high": 1}}': "attention: has no range",
        '{"epochs": {"low": 1, "high": 3, "stop": 1}}': "epochs: give a list of choices, or low and high",
        '{"epochs": {"low": 1, "high": 3, "step": 9}}': "epochs: 9 is no step between low and high",
        '{"noise": {"low": 0, "high": 1, "step": 1e-320}}': "noise: 1e-320 is no step",
        '{"lr": [0.1, 0.2], "--lr": [0.1, 0.3]}': "--lr is there twice; give it once",
        '{"drop-modality": [{"text": 0.1}, {"text": 0.2}]}': "drop-modality: its values are no plain words or numbers",
    }.items(),
)
def test_a_space_that_cannot_be_is_refused_in_a_line(content, said, features, tmp_path, command):
    (tmp_path / "space.json").write_text(content)
    status, _, error = command(tmp_path / "space.json", "--features", features, "--out", tmp_path / "sweep")
    assert status == 2 and error.count("\n") == 1 and said in error and str(tmp_path / "space.json") in error
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "flags, said",
    {
        "--lr 0.1": "--lr is in",
        "--causal --window-future 3": "--causal has no future window",
        "--valid 0.2 --folds 3": "--valid and --folds exclude each other",
        "--storage nonsense": "is not the URL of a database",
        "--storage Postgresql://me:secret@127.0.0.1:9/x": "--storage: this is not the URL of a database",
        "--storage postgresql://me:my@secret@127.0.0.1:9/x": "--storage: write the @ of a password as %40",
        "--storage nonsense://x": "--storage nonsense://x: cannot be used",
        "--storage postgresql://me:secret@127.0.0.1:9/x": "--storage postgresql://me:***@127.0.0.1:9/x: cannot be used",
        "--storage postgresql://127.0.0.1:9/x?password=secret": "?password=%2A%2A%2A: cannot be used",
        "--storage sqlite:///:memory: --jobs 2": "a database in memory is gone with its process",
        "--folds 2000": "fewer folds",
    }.items(),
)
def test_flags_that_cannot_be_are_refused_in_a_line(flags, said, space, features, tmp_path, command):
    status, _, error = command(space, "--features", features, "--out", tmp_path / "sweep", *flags.split())
    assert status in (1, 2) and error.count("\n") == 1 and said in error and "secret" not in error
    assert not (tmp_path / "sweep" / "sweep.json").exists()  # so that the command can be mended


def test_a_folder_of_something_else_or_of_another_sweep_is_refused(finished, space, features, tmp_path, command):
    argv = ["--features", features, *QUICK, "--valid", "0.34", "--trials", "3", "--out"]
    (tmp_path / "space.json").write_text(json.dumps({**SPACE, "noise": [0.1, 0.2]}))
    before = (finished / "journal.log").read_bytes()
    for changed, what in (
        ([tmp_path / "space.json", *argv], "space"),
        ([space, "--focal", "1", *argv], "classifier.focal"),
    ):
        status, _, error = command(*changed, finished)
        assert status == 2 and error.count("\n") == 1 and f"a sweep with another {what}; choose another --out" in error
    assert (finished / "journal.log").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("years of work")
    status, _, error = command(space, *argv, tmp_path)
    assert status == 2 and error.count("\n") == 1 and "not empty and of no sweep" in error
    assert not (tmp_path / ".ask.lock").exists()
    (tmp_path / "locked" / ".ask.lock").mkdir(parents=True)
    status, _, error = command(space, *argv, tmp_path / "locked")
    assert status == 2 and error.count("\n") == 1 and "cannot be written" in error


@pytest.mark.parametrize("damage", ["torn", "{}\n", "[1]\n", '{"op_code": 99}\n'])
def test_a_damaged_journal_is_mended_or_said_in_a_line(finished, space, features, tmp_path, command, damage):
    """A worker that is killed in the midst of a line leaves half of it, and the sweep goes on."""
    out = shutil.copytree(finished, tmp_path / "sweep")
    content = (out / "journal.log").read_text()
    (out / "journal.log").write_text(content[:-40] if damage == "torn" else content + damage)
    argv = [space, "--features", features, *QUICK, "--valid", "0.34", "--trials", "3", "--out", out]
    status, _, error = command(*argv)
    if damage == "torn":
        assert (status, error) == (0, "") and table(out)["lr"].tolist() == table(finished)["lr"].tolist()
    else:
        assert status == 1 and error.count("\n") == 1 and "journal.log: cannot be used" in error


def test_a_worker_killed_amid_a_line_of_the_journal_leaves_it_whole_for_those_at_work(tmp_path):
    journal = search.Journal(str(tmp_path / "journal.log"))
    journal.append_logs([{"number": 1}])
    with (tmp_path / "journal.log").open("a") as stream:
        stream.write('{"number": ')
    journal.append_logs([{"number": 2}, {"number": 3}])
    assert [line["number"] for line in journal.read_logs(0)] == [1, 2, 3]


def test_the_journals_lock_of_a_killed_worker_is_taken_over(tmp_path, monkeypatch):
    """In a directory with a relative name, too, where it was waited for without end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    lock = search.Journal("runs/journal.log")._lock
    lock.acquire()
    lock.grace_period = 0.1
    other = threading.Thread(target=lock.acquire, daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()


def test_epochs_that_a_killed_trial_repeats_are_no_warning():
    if not (child := os.fork()):
        status = 99
        try:
            warnings.resetwarnings()  # pytest has its own
            del sys.modules["experiment.search"]
            with warnings.catch_warnings(record=True) as said:
                from experiment.search import optuna

                one = optuna.create_study().ask()
                one.report(1, 0)
                one.report(1, 0)
            status = len(said)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_choice_that_cannot_be_fails_its_trial_alone(features, tmp_path, command):
    (tmp_path / "space.json").write_text(json.dumps({"use-trained-GAN": [str(tmp_path / "a"), str(tmp_path / "b")]}))
    argv = [tmp_path / "space.json", "--features", features, *QUICK, "--folds", "2", "--trials", "2"]
    status, said, error = command(*argv, "--out", tmp_path / "sweep")
    assert (status, error) == (0, "") and said.count("failed: ") == 2 and "none of them finished" in said


def test_without_optuna_the_line_says_how_to_install_it(space, features, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "experiment.search")
    monkeypatch.delattr("experiment.search")
    status, _, error = command(space, "--features", features, "--out", tmp_path / "sweep")
    assert status == 2 and error.count("\n") == 1 and "pip install -r requirements-scale.txt" in error


# A database -----------------------------------------------------------------------------------------------------------


class Server:
    """A PostgreSQL server of its own."""

    def __init__(self, programs, folder):
        self.programs, self.folder = programs, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.user = {"user": "nobody"} if os.getuid() == 0 else {}  # it refuses root
        if self.user:
            shutil.chown(folder, "nobody")
        self.run("initdb", "--no-sync", "--username", "me", "--auth", "trust")

    def run(self, program, *flags):
        done = subprocess.run(
            [self.programs / program, "-D", self.folder / "data", *flags],
            **self.user,
            cwd=self.folder,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr

    def start(self):
        where = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self.run("pg_ctl", "--wait", "-l", str(self.folder / "log"), "-o", where, "start")

    def stop(self):
        self.run("pg_ctl", "--wait", "-m", "immediate", "stop")


@pytest.fixture
def server():
    pytest.importorskip("psycopg", reason="pip install -r requirements-scale.txt")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found += [Path(path)] if (path := shutil.which("initdb")) else []
    if not found:
        pytest.skip("no PostgreSQL here; on Debian: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="gan-ffn-database-"))
    server = Server(found[0].parent, folder)
    server.start()
    try:
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder)


def test_a_database_that_goes_away_ends_in_a_line_and_the_sweep_goes_on(
    server, finished, space, features, tmp_path, command, monkeypatch
):
    url, out = f"postgresql://me:secret@127.0.0.1:{server.port}/postgres", tmp_path / "sweep"
    argv = [space, "--features", features, *QUICK, "--valid", "0.34", "--trials", "3", "--out", out, "--storage", url]
    log = Run.log

    def log_then_stop(run, stage, row):
        log(run, stage, row)
        if "trial0001" in str(run.directory) and (stage, row["epoch"]) == ("adversarial", 1):
            server.stop()

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_then_stop)
        status, _, error = command(*argv)
    assert status == 1 and error.count("\n") == 1
    assert f"postgresql://me:***@127.0.0.1:{server.port}/postgres: cannot be used" in error
    assert "finished trials are kept, and the same command goes on" in error
    assert (out / "trial0000" / "report.json").exists() and not (out / "trial0001" / "report.json").exists()
    assert "secret" not in (out / "sweep.json").read_text()
    server.start()
    status, _, error = command(*argv)
    assert (status, error) == (0, "")
    one, other = table(out), table(finished)
    assert one["weighted_f1"].tolist() == pytest.approx(other["weighted_f1"].tolist())
    assert one["lr"].tolist() == pytest.approx(other["lr"].tolist())
