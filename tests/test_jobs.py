"""Several runs at a time: the bits of one after the other, and no failure, kill or stop that takes others along."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from joblib.externals.loky.backend import resource_tracker
from small import BARE, corpus, features, ran, train

import train_IEMOCAP
from experiment import checks, jobs, plan

__all__ = ["corpus", "features"]  # fixtures

QUICK = ["--GAN-epochs", "1", "--epochs", "2", "--fused-channels", "16", "--batch-size", "6", *BARE]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Here and in the processes that are started: with more, sums have another order and other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(capsys):
    """Run the script; its exit status, what it printed, and its complaints."""

    return lambda *argv: ran(train_IEMOCAP.main, argv, capsys)


@pytest.fixture(scope="module")
def in_turn(features, tmp_path_factory):
    """Three seeds one after the other, with one thread, each begun by a command of its own, and then gathered."""
    out = tmp_path_factory.mktemp("runs") / "turn"
    argv = ["--features", str(features), *QUICK]
    for seed in ("0", "1"):  # as an array of jobs of a scheduler does
        train(out / f"seed{seed}", *argv, "--seed", seed)
    train(out, *argv, "--seeds", "0,1,2", "--resume")
    return out


def bits_of(directory, seed):
    run = directory / f"seed{seed}" if seed is not None else directory
    return [(run / name).read_bytes() for name in ("predictions.csv", "checkpoints/best.safetensors")]


def scores(directory):
    summary = json.loads((directory / "summary.json").read_text())
    return {seed: each["test"] for seed, each in summary["seeds"].items()}


def test_runs_made_one_by_one_are_gathered_and_what_lacks_is_trained(in_turn, features, command):
    assert list(scores(in_turn)) == ["0", "1", "2"]
    status, _, error = command("--features", features, *QUICK, "--seeds", "0,1", "--out", in_turn.parent, "--resume")
    assert status == 2 and error.count("\n") == 1 and "none of a run's" in error


def test_a_gathered_run_of_other_flags_is_refused(in_turn, features, tmp_path, command):
    shutil.copytree(in_turn / "seed0", tmp_path / "run" / "seed0")
    argv = ["--features", features, *QUICK, "--lr", "0.1", "--seeds", "0,1", "--out", tmp_path / "run", "--resume"]
    status, _, error = command(*argv)
    assert status == 2 and error.count("\n") == 1 and "a run with another classifier.lr" in error


def test_jobs_have_the_bits_of_one_after_the_other_and_each_its_log(in_turn, features, tmp_path, monkeypatch, command):
    """Ctrl-C stops all, what is done is kept, and the command that is printed goes on to the same bits."""
    out, say = tmp_path / "run", jobs.say

    def stop_then(text):
        say(text)
        if "stage 1, epoch" in text:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(jobs, "say", say)

    monkeypatch.setattr(jobs, "say", stop_then)
    argv = ["--features", features, *QUICK, "--epochs", "15", "--seeds", "0,1,2", "--jobs", "2", "--out", out]
    status, before, error = command(*argv)
    go_on = f"--resume {out} --jobs 2"
    assert status == 130 and error.startswith("Interrupted at seed") and error.rstrip().endswith(go_on)
    assert error.count("\n") == 1 and not list(out.glob(".*"))
    status, after, error = command(*go_on.split())
    assert (status, error) == (0, "")
    assert all(f"seed{seed}: stage" in before + after for seed in (0, 1, 2))
    assert "stage 2, epoch 15 of 15" in (out / "seed1" / "log.txt").read_text()
    alone = train(tmp_path / "alone", "--features", features, *QUICK, "--epochs", "15")
    assert bits_of(out, 0) == bits_of(alone, None)
    assert scores(out).keys() == scores(in_turn).keys()


def test_a_job_that_fails_or_is_killed_stops_no_other(features, in_turn, tmp_path, monkeypatch, command):
    out = tmp_path / "run"
    (out / "seed1").mkdir(parents=True)
    (out / "seed1" / "notes.txt").write_text("none of a run's")
    say = jobs.say

    def kill_one(text):
        say(text)
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        workers = [p for p in children if "popen_loky" in Path(f"/proc/{p}/cmdline").read_text()]
        if text.startswith("seed1: failed"):
            os.kill(int(workers[0]), signal.SIGKILL)

    monkeypatch.setattr(jobs, "say", kill_one)
    argv = ["--features", features, *QUICK, "--out", out, "--seeds", "0,1,2"]
    status, _, error = command(*argv, "--jobs", "2", "--resume")
    assert status == 2
    assert "error: 1 of 3 runs failed, the others are finished: seed1: " in error and "a run" in error
    assert "a process was killed" in error and error.count("\n") == 2
    assert bits_of(out, 0) == bits_of(in_turn, 0) and bits_of(out, 2) == bits_of(in_turn, 2)
    assert list(scores(out)) == ["0", "2"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_job_does_not_die_of_what_a_scheduler_sends_to_all_processes(name, tmp_path, monkeypatch):
    """Outside training it did, as of SIGTERM: the pool then ended the others at once, without a checkpoint."""
    monkeypatch.setattr(jobs.run, "stop_file", None)
    monkeypatch.chdir(tmp_path)  # as a job does, and back
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {each: signal.signal(each, signal.SIG_DFL) for each in signals}
    try:
        asked = ("signal", "getsignal", (signal.Signals[name],))
        assert jobs.do(*asked, tmp_path / "log.txt", tmp_path / "stop", None, tmp_path) == signal.SIG_IGN
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.skipif(not Path("/proc").exists(), reason="Linux only")
def test_a_terminal_that_is_closed_does_not_end_joblibs_tracker():
    """joblib then wrote a traceback of each thing that it had told it of."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            tracker = resource_tracker._resource_tracker
            tracker._fd = tracker._pid = None  # of the process that forked: here is none yet
            with jobs.pool(2, None):
                os.write(write, Path(f"/proc/{tracker._pid}/status").read_bytes())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        (blocked,) = [line.split()[1] for line in said if line.startswith("SigBlk:")]
    os.waitpid(child, 0)
    assert int(blocked, 16) >> signal.SIGHUP - 1 & 1


@pytest.mark.parametrize(
    "flags, said",
    {
        "--jobs 0 --seeds 0,1": "--jobs: 0 is out of range",
        "--jobs 2": "--jobs is for several runs: add --seeds or --folds",
        "--jobs 2 --cluster tcp://127.0.0.1:9 --seeds 0,1": "--jobs and --cluster exclude each other",
        "--cluster tcp://127.0.0.1:9": "--cluster is for several runs",
        "--cluster tcp://127.0.0.1:9 --seeds 0,1": "--cluster tcp://127.0.0.1:9: nobody answers there",
        "--cluster nonsense://x --seeds 0,1": "--cluster nonsense://x: nobody answers there",
        "--jobs 3 --seeds 0,1,2": "--jobs 3: so many runs take at least 1 GB and the machine has 1; at most --jobs 2",
    }.items(),
)
def test_what_cannot_be_is_said_in_a_line(flags, said, features, tmp_path, command, monkeypatch):
    if "distributed" not in sys.modules and "answers" in said:
        pytest.importorskip("distributed", reason="pip install -r requirements-scale.txt")
    monkeypatch.setattr(checks, "memory", lambda: 10**9)
    monkeypatch.setattr(jobs, "ANSWERS_WITHIN", 0.2)
    status, _, error = command("--features", features, *QUICK, "--out", tmp_path / "run", *flags.split())
    assert status == 2 and error.count("\n") == 1 and said in error


def test_more_jobs_than_runs_are_as_many_as_there_are(features, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        plan, "do_all", lambda work, at_once, *_: asked.append(at_once) or {n: {"failed": ""} for n in work}
    )
    train(tmp_path / "run", "--features", features, *QUICK, "--seeds", "0,1", "--jobs", "7", status=1)
    assert asked == [2] and "--jobs 7: there are 2 runs, so 2 at a time" in capsys.readouterr().out


@pytest.mark.parametrize("ends", [KeyboardInterrupt, jobs.LostProcessError])
def test_jobs_of_a_cluster_are_told_to_stop_by_a_process_that_ends_before_them(ends, tmp_path):
    """One that was reading its data trained on to the end, and --resume found another process at work."""
    with pytest.raises(ends), jobs.stop_file(tmp_path, stays=True) as stop:
        raise ends
    assert stop.exists()
    with jobs.stop_file(tmp_path, stays=True) as again:
        assert again == stop and not stop.exists()  # of another process of the same number


def test_ctrl_c_where_no_file_can_be_made_stops_at_once(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(KeyboardInterrupt), jobs.stop_file(tmp_path, stays=False):
        os.kill(os.getpid(), signal.SIGINT)


def test_several_runs_in_a_folder_that_is_gone_end_in_a_line(tmp_path, monkeypatch):
    """joblib loses the error of a job that cannot be made, and they were begun again without end."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(jobs.InputError, match="is gone"), jobs.pool(2, None) as start:
        list(start({"seed0": jobs.Job("os", "getpid", (), tmp_path)}, tmp_path / "stop", 2))


def test_without_dask_the_line_says_how_to_install_it(features, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    argv = ["--features", features, *QUICK, "--out", tmp_path / "run", "--seeds", "0,1", "--cluster", "tcp://x:1"]
    status, _, error = command(*argv)
    assert status == 2 and error.count("\n") == 1 and "pip install -r requirements-scale.txt" in error


# A cluster ------------------------------------------------------------------------------------------------------------


@contextmanager
def cluster_of(workers, folder):
    """A scheduler and workers as a shell starts them, who know nothing of the project: its address, and the workers."""
    pytest.importorskip("distributed", reason="pip install -r requirements-scale.txt")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    started = []

    def start(*argv):
        command = [sys.executable, "-m", "distributed.cli.dask_" + argv[0], *argv[1:], "--scheduler-file", "scheduler"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([*command, "--no-dashboard"], cwd=folder, env=env, **quiet))
        return started[-1]

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not (folder / "scheduler").exists():
            assert started[0].poll() is None
            time.sleep(0.05)
        several = [start("worker", "--nthreads", "1", "--no-nanny") for _ in range(workers)]
        yield json.loads((folder / "scheduler").read_text())["address"], several
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def test_a_killed_worker_of_a_cluster_gives_its_run_to_the_other(features, tmp_path, command):
    out, killed = tmp_path / "run", []
    argv = ["--features", features, *QUICK, "--epochs", "20", "--seeds", "0,1", "--out", out]

    def kill_a_busy_one(workers):
        while not (begun := sorted(out.glob("seed*/checkpoints/last.pt"))):
            time.sleep(0.01)
        lock = str(begun[0].parent.parent / ".lock")
        for worker in workers:
            if any(os.path.realpath(fd) == lock for fd in Path(f"/proc/{worker.pid}/fd").iterdir()):
                worker.kill()
                killed.append(begun[0].parent.parent)

    with cluster_of(2, tmp_path) as (address, workers):
        killer = threading.Thread(target=kill_a_busy_one, args=(workers,), daemon=True)
        killer.start()
        status, _, error = command(*argv, "--cluster", address)
        killer.join(10)
    assert (status, error) == (0, "") and len(killed) == 1
    assert scores(out).keys() == {"0", "1"}
    begun = {run: (run / "log.txt").read_text().count(f"into {run}") for run in (out / "seed0", out / "seed1")}
    assert begun[killed[0]] == 2  # it has gone on, and
    assert len(pd.read_csv(killed[0] / "history.csv")) == 20
