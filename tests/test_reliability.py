"""What docs/reliability.md promises, shown by breaking things: kills, faults, and files of strangers."""

import errno
import fcntl
import hashlib
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from small import ran

import train_IEMOCAP
import utils
from benchmarks import soak as benchmark
from benchmarks.soak import bits, soak
from experiment import evaluation, insight, plan, plots, tensorboard
from experiment.run import Run
from experiment.run_directory import locked
from feature_files import write_nine_tuple
from files import InputError, TrainingError, replacing
from synthetic import synthetic_corpus

DIMS = {"text": 8, "visual": 6, "acoustic": 5}
RUN = ["--valid", "0.2", "--fused-channels", "16", "--device", "cpu"]
QUICK = ["--checkpoint-every", "1", "--epochs", "3", "--GAN-epochs", "2", *RUN]
QUICKEST = [*QUICK, "--epochs", "1", "--GAN-epochs", "1"]


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(train=12, test=2, mean_length=9, dims=DIMS)


@pytest.fixture(scope="module")
def features(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "small.pkl"
    write_nine_tuple(corpus, path)
    return path


@pytest.fixture
def command(capsys):
    """Run the script; its exit status, and what it said on stderr, which is a line at most."""

    def command(*argv):
        status, _, error = ran(train_IEMOCAP.main, argv, capsys)
        assert error.count("\n") <= 1, error
        return status, error

    return command


@pytest.fixture(autouse=True)
def heed():
    """Ctrl-C, which a shell that runs the tests in the background has ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """Most of a small run's time is that of the pictures; the soak has all of them, `finished` those outside events."""
    monkeypatch.setattr(plots, "draw", lambda *_, **__: [])
    monkeypatch.setattr(tensorboard, "_images", lambda *_: None)
    monkeypatch.setattr(insight, "fused_map", lambda *_: None)


def same(directory, other):
    """Whether two runs are equal but for durations, dates and pictures."""
    one, two = (
        {name: content for name, content in bits(each).items() if not name.endswith(".png")}
        for each in (directory, other)
    )
    return one == two


@pytest.fixture(scope="module")
def finished(features, tmp_path_factory):
    """A finished run, to look at but not to change."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "_images", lambda *_: None)
        assert train_IEMOCAP.main(["--features", str(features), "--out", str(directory), *QUICK]) == 0
    return directory


@contextmanager
def after(stage, epoch, what):
    """Let something happen to a run after an epoch."""
    save = Run.save

    def save_then(run, at, done, parts):
        save(run, at, done, parts)
        if (at, done) == (stage, epoch):
            what()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", save_then)
        yield


@pytest.fixture(scope="module")
def begun(features, tmp_path_factory):
    """A run that ended without a report after the last epoch but one, to be copied."""
    directory = tmp_path_factory.mktemp("runs") / "begun"
    with after("classifier", 2, raising(TrainingError("stop"))):
        assert train_IEMOCAP.main(["--features", str(features), "--out", str(directory), *QUICK]) == 1
    return directory


@pytest.fixture
def stopped(begun, tmp_path):
    """A copy of it, to be changed and gone on with."""
    return shutil.copytree(begun, tmp_path / "run")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def raising(error):
    def work(*_, **__):
        raise error

    return work


# Resume ---------------------------------------------------------------------------------------------------------------


def test_killed_runs_end_as_the_run_nobody_killed(tmp_path, monkeypatch):
    lines = []
    threads = torch.get_num_threads()
    try:
        monkeypatch.setattr(benchmark, "FLAGS", ["--GAN-epochs", "2", "--epochs", "2", *RUN])
        assert soak(tmp_path, kills=2, seed=1, say=lines.append) == 2, lines
    finally:
        torch.set_num_threads(threads)  # the soak forks, which only one thread survives


def test_the_comparison_sees_a_difference_of_one_bit(stopped):
    before = bits(stopped)
    state = torch.load(stopped / "checkpoints" / "last.pt", weights_only=True)
    state["history"]["classifier"][0]["seconds"] += 1
    torch.save(state, stopped / "checkpoints" / "last.pt")
    assert bits(stopped) == before
    state["history"]["classifier"][0]["train_loss"] *= 1 + 1e-15
    torch.save(state, stopped / "checkpoints" / "last.pt")
    assert bits(stopped) != before


def test_ctrl_c_reports_what_there_is_and_the_run_goes_on_to_the_same_bits(features, finished, tmp_path, command):
    directory = tmp_path / "run"
    with after("classifier", 1, interrupt):
        status, error = command("--features", features, "--out", directory, *QUICK, "--checkpoint-every", "2")
    assert status == 130
    assert "Interrupted at epoch 2 of stage 2, step 1. To go on:" in error and f"--resume {directory}" in error
    assert json.loads((directory / "report.json").read_text())["interrupted"] == "epoch 2 of stage 2, step 1"
    assert (directory / "report.txt").read_text().startswith("Interrupted at epoch 2 of stage 2, step 1; this is epoch")
    state = torch.load(directory / "checkpoints" / "last.pt", weights_only=True)
    assert (state["stage"], state["epoch"]) == ("classifier", 1)  # a checkpoint, whatever --checkpoint-every says
    assert command("--resume", directory) == (0, "")
    (directory / "config.json").write_bytes((finished / "config.json").read_bytes())  # all that may differ
    assert same(directory, finished)


def test_a_second_ctrl_c_stops_at_once(features, tmp_path, command, monkeypatch):
    step = utils.AdamW.step
    monkeypatch.setattr(utils.AdamW, "step", lambda *a, **k: (interrupt(), interrupt(), step(*a, **k)))
    status, error = command("--features", features, "--out", tmp_path / "run", *QUICK)
    assert status == 130
    assert error.startswith("Stopped at once.") and f"--resume {tmp_path / 'run'}" in error


def test_ctrl_c_while_the_report_is_written_stops_at_once(stopped, finished, command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write_predictions", lambda *_: interrupt())
        assert command("--resume", stopped)[0] == 130
    assert not (stopped / "report.json").exists()
    assert command("--resume", stopped) == (0, "")
    assert same(stopped, finished)


def test_checkpoints_come_every_so_many_epochs_and_two_are_kept_until_the_report(
    features, tmp_path, command, monkeypatch
):
    written, flush = [], Path.replace
    directory = tmp_path / "run"
    argv = ["--features", features, "--out", directory, *QUICK, "--epochs", 5, "--checkpoint-every", 2]
    with monkeypatch.context() as patch:
        patch.setattr(plan, "drop_states", raising(KeyboardInterrupt))  # as if killed right after the report
        patch.setattr(Path, "replace", lambda path, to: (written.append(Path(to).name), flush(path, to))[1])
        assert command(*argv)[0] == 130
    assert written.count("last.pt") == 1 + 3  # epoch 2 of stage 1; epochs 2, 4 and the last, 5, of stage 2
    states = [torch.load(directory / "checkpoints" / f"{n}.pt", weights_only=True) for n in ("previous", "last")]
    assert [state["epoch"] for state in states] == [4, 5]
    assert command("--resume", directory) == (0, "")
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == [
        *("best.safetensors", "fusion.safetensors", "standardiser.safetensors")
    ]


def test_a_run_killed_after_its_calibration_has_the_folds_whole(features, tmp_path, command, monkeypatch):
    """Killed while they were deleted, it found a fold without its predictions and could not go on."""
    with monkeypatch.context() as patch:
        out_of_fold = train_IEMOCAP.out_of_fold
        patch.setattr(train_IEMOCAP, "out_of_fold", lambda *a: (out_of_fold(*a), raising(KeyboardInterrupt)()))
        argv = ["--features", features, "--out", tmp_path / "run", "--calibrate", "2", "--no-tensorboard", *QUICKEST]
        assert command(*argv)[0] == 130
    monkeypatch.setattr(train_IEMOCAP, "train_adversarial_fusion", raising(TrainingError("a fold is trained again")))
    assert command("--resume", tmp_path / "run") == (0, "")
    assert not (tmp_path / "run" / "calibration").exists()


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(stopped, finished, command, damage):
    last = stopped / "checkpoints" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes(content if damage == "bit flipped" else content[:1000])
    status, error = command("--resume", stopped)
    assert status == 0
    assert ("damaged; going on from" in error) == (damage != "missing")
    assert same(stopped, finished)


def test_no_good_checkpoint_is_said_in_a_line(stopped, command):
    for name in ("last", "previous"):
        (stopped / "checkpoints" / f"{name}.pt").write_bytes(b"")
    status, error = command("--resume", stopped)
    assert status == 2 and "damaged" in error


def test_every_random_state_is_taken_up(tmp_path):
    def draw():
        return np.random.rand(), torch.rand(1).item(), random.random()

    run = Run(tmp_path, tensorboard=False)
    draw()
    run.log("adversarial", {"epoch": 1, "seconds": 0.0})
    run.save("adversarial", 1, {})
    expected = draw()
    assert Run(tmp_path, tensorboard=False).restore("adversarial", {}) == 1
    assert draw() == expected


def test_a_reader_sees_whole_files_at_every_instant(features, tmp_path, command):
    directory, ended, seen, broken = tmp_path / "run", threading.Event(), set(), []

    def read_on():
        while not ended.is_set():
            for path in [*directory.glob("*.json"), *directory.glob("*.csv")]:
                try:
                    json.loads(path.read_text()) if path.suffix == ".json" else pd.read_csv(path)
                    seen.add(path.name)
                except ValueError as error:  # what json and pandas raise on half a file
                    broken.append((path.name, error))

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        assert command("--features", features, "--out", directory, *QUICKEST) == (0, "")
    finally:
        ended.set()
        reader.join()
    assert not broken
    assert seen >= {"config.json", "GAN_loss.csv", "history.csv"}


def test_resume_warns_of_another_version(stopped, command):
    config = json.loads((stopped / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    (stopped / "config.json").write_text(json.dumps(config))
    status, error = command("--resume", stopped)
    assert status == 0
    assert error.startswith("warning: ") and f"torch 1.0 (now {torch.__version__})" in error
    assert json.loads((stopped / "config.json").read_text())["versions"]["torch"] == "1.0"


# Files ----------------------------------------------------------------------------------------------------------------


def test_file_and_folder_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    calls, fsync, rename = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(Path(f"/dev/fd/{fd}").resolve().name), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("rename"), rename(a, b)))
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert calls[1:2] == ["rename"] and len(calls) == 3


def test_a_second_process_is_refused_and_of_a_dead_one_neither_lock_nor_leftovers_count(features, tmp_path, command):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / ".config.json.12.tmp").write_text("{")
    holding = (
        "import sys, time, filelock\n"
        "lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); time.sleep(60)"
    )
    argv = ["--features", features, "--out", directory, *QUICKEST]
    with subprocess.Popen([sys.executable, "-c", holding, str(directory / ".lock")], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        status, error = command(*argv)
        assert status == 2 and "another process is at work there" in error
        other.kill()
    assert (directory / ".lock").exists()
    assert command(*argv) == (0, "")
    assert not list(directory.rglob(".*"))


def test_without_flock_a_living_process_is_heeded_and_a_dead_one_keeps_no_lock(tmp_path, monkeypatch):
    """As on Lustre without it, where the lock of a killed run was taken for something of the user's."""
    monkeypatch.setattr(fcntl, "flock", raising(OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))))
    run = tmp_path / "run"
    with locked(run), pytest.raises(InputError) as refused, locked(run):
        pass
    assert str(refused.value) == f"{run}: another process is at work there; wait, or choose another directory"
    if not (child := os.fork()):
        try:
            held = locked(run)
            held.__enter__()
        finally:
            os._exit(not (run / ".lock").exists())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and (run / ".lock").exists()
    with locked(run):
        pass


def test_overwrite_spares_what_the_new_run_needs(finished, features, command):
    before = bits(finished)
    again = ["--features", features, "--out", finished, "--overwrite", *QUICK]
    status, error = command(*again, "--use-trained-GAN", finished)
    assert status == 2 and "--overwrite would delete it" in error
    assert bits(finished) == before


# Reproducible ---------------------------------------------------------------------------------------------------------


def test_hash_seed_locale_folder_tensorboard_and_progress_change_nothing(finished, features, tmp_path):
    script = Path(train_IEMOCAP.__file__)
    env = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    env["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # the promise is for one number of threads
    argv = ["--features", str(features), "--out", "run", *QUICK, "--no-tensorboard", "--deterministic", "--seeds", "0"]
    subprocess.run([sys.executable, str(script), *argv], cwd=tmp_path, env=env, check=True, capture_output=True)
    expected, found = bits(finished), bits(tmp_path / "run" / "seed0")
    expected = {name: content for name, content in expected.items() if not name.startswith("tensorboard/")}
    for each in (expected, found):
        del each["config.json"]  # holds these very flags
    assert found == expected


# Faults ---------------------------------------------------------------------------------------------------------------


NO_SPACE = r"cannot be written \(No space left on device\)"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
DENIED = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def of_file(name, method, error):
    """A method of paths that fails where it is to write this file, under its temporary name."""
    return lambda path, *given, **more: (
        raising(error)() if path.name.startswith(f".{name}.") else method(path, *given, **more)
    )


def spoil(parameters, _):
    """Gradients of which one is not finite, and their norm."""
    parameters = list(parameters)
    parameters[0].grad[0] = torch.nan
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


# What fails, how, and what is said of it. All but the last are while an epoch is trained, which is then trained again.
FAULTS = {
    "a full disk at the curves": (pd.DataFrame, "to_csv", raising(FULL), NO_SPACE),
    "a full disk at the events": (tensorboard.EventsWriter, "flush", raising(FULL), NO_SPACE),
    "a full disk at the checkpoint": (Path, "write_bytes", of_file("last.pt", Path.write_bytes, FULL), NO_SPACE),
    "a folder that is read-only": (Path, "replace", raising(DENIED), r"cannot be written \(Permission denied\)"),
    "memory": (Run, "save", raising(NO_MEMORY), r"out of memory on cpu; .*--batch-size \(16 now\)"),
    "gradients": (torch.nn.utils, "clip_grad_norm_", spoil, "epoch 3 of stage 2, step 1: the norm of .* is nan"),
    "a full disk at the report": (Path, "write_text", of_file("report.json", Path.write_text, FULL), NO_SPACE),
}


def test_faults_end_in_a_line_and_the_run_goes_on(stopped, finished, command, monkeypatch):
    """One after the other, of the same run."""
    for fault, (*where, fails, said) in FAULTS.items():
        with monkeypatch.context() as patch:
            patch.setattr(*where, fails)
            status, error = command("--resume", stopped)
        assert status == 1 and re.search(said, error), (fault, error)
        assert "disk" not in fault or "--resume" in error, (fault, error)
        assert not (stopped / "report.json").exists()
        assert not list(stopped.rglob(".*")), fault
    assert command("--resume", stopped) == (0, "")
    assert same(stopped, finished)


def test_a_quota_ends_in_a_line_and_the_run_goes_on(stopped, finished, command):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        status, error = command("--resume", stopped)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and "cannot be written" in error
    assert not list(stopped.rglob(".*"))
    assert command("--resume", stopped) == (0, "")
    assert same(stopped, finished)


def test_a_disk_that_is_full_at_a_picture_leaves_the_run_finished(stopped, finished, command, monkeypatch):
    monkeypatch.undo()  # few_pictures
    with monkeypatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "print_png", raising(FULL))
        status, error = command("--resume", stopped)
    assert status == 0 and error.startswith("warning: ") and re.search(NO_SPACE, error)
    assert (stopped / "report.json").exists()
    assert command("--resume", stopped) == (0, "")
    assert (stopped / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()


def test_every_way_of_saying_that_memory_is_out_is_known():
    assert utils.out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert utils.out_of_memory(error.value)
    assert not utils.out_of_memory(RuntimeError("a bug"))


def test_features_that_are_not_finite_end_in_a_line(corpus, tmp_path, command):
    first = corpus.splits["train"][0]
    dialogue = corpus.dialogues[first]
    spoilt = replace(dialogue, features={m: np.full_like(x, np.nan) for m, x in dialogue.features.items()})
    write_nine_tuple(replace(corpus, dialogues={**corpus.dialogues, first: spoilt}), tmp_path / "x.pkl")
    status, error = command("--features", tmp_path / "x.pkl", "--out", tmp_path / "run", *QUICK)
    assert status == 2 and first in error
    assert not (tmp_path / "run").exists()


def test_test_features_from_which_nothing_comes_end_in_a_line_and_get_no_score(corpus, finished, tmp_path, command):
    first = corpus.splits["test"][0]
    far = replace(corpus.dialogues[first], features={m: x + 3e38 for m, x in corpus.dialogues[first].features.items()})
    write_nine_tuple(replace(corpus, dialogues={**corpus.dialogues, first: far}), tmp_path / "x.pkl")
    for how in (["--out", tmp_path / "run", *QUICKEST], ["--evaluate", finished]):
        status, error = command("--features", tmp_path / "x.pkl", *how)
        assert status == 2 and f"dialogue '{first}': features so far from those of the training dialogues" in error
    assert not (tmp_path / "run" / "report.json").exists()


# Files of strangers ---------------------------------------------------------------------------------------------------


class Attack:
    def __init__(self, victim):
        self.victim = str(victim)

    def __reduce__(self):
        return os.mkdir, (self.victim,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_that_would_run_code_does_nothing(stopped, command, tmp_path, form):
    buffer = io.BytesIO()
    attack = {"stage": "classifier", "epoch": Attack(tmp_path / "victim")}
    if form == "pickle":
        pickle.dump(attack, buffer, protocol=2)
    else:
        torch.save(attack, buffer)
    content = buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
    for name in ("last", "previous"):
        (stopped / "checkpoints" / f"{name}.pt").write_bytes(content)
    status, error = command("--resume", stopped)
    assert status == 2 and "the checkpoint is damaged" in error
    assert not (tmp_path / "victim").exists()


def test_a_checkpoint_of_another_network_is_said_in_a_line(stopped, command):
    run = Run(stopped, tensorboard=False)
    run.log("classifier", {"epoch": 1, "seconds": 0.0})
    run.save("classifier", 1, {})
    status, error = command("--resume", stopped)
    assert status == 2 and "not a checkpoint of this network" in error


def test_names_in_a_file_stay_in_the_run_and_do_nothing_in_a_spreadsheet(corpus, tmp_path, command):
    ids = dict(zip(corpus.dialogues, ["../../out", "/out", "=1+1", "<script>", "@x"], strict=False))
    renamed = {
        ids.get(i, i): replace(d, id=ids.get(i, i), speakers=tuple({"F": "+F", "M": "-M"}[s] for s in d.speakers))
        for i, d in corpus.dialogues.items()
    }
    splits = {split: tuple(ids.get(i, i) for i in names) for split, names in corpus.splits.items()}
    write_nine_tuple(replace(corpus, dialogues=renamed, splits=splits), tmp_path / "x.pkl")
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    out = tmp_path / "deep" / "deeper" / "run"
    assert command("--features", tmp_path / "x.pkl", "--out", out, *QUICKEST, "--folds", "2") == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "x.pkl"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["deeper"]
    assert [p.name for p in (tmp_path / "deep" / "deeper").iterdir()] == ["run"]
    table = pd.read_csv(out / "fold1of2" / "predictions.csv")
    assert {"'=1+1", "'@x"} <= set(table["dialogue"])
    assert set(table["speaker"]) == {"'+F", "'-M"}
    text = table.select_dtypes(exclude="number").astype(str)
    assert not text.map(lambda cell: cell.startswith(("=", "+", "-", "@", "\t", "\r"))).any(axis=None)
    assert pd.api.types.is_float_dtype(table["p_0"] if "p_0" in table else table.iloc[:, -1])


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (TrainingError("it failed"), 1)])
def test_the_benchmark_that_is_stopped_or_cannot_go_on_says_so_in_a_line(error, status, monkeypatch, capsys):
    def stopped(*given):
        raise error

    monkeypatch.setattr(benchmark, "soak", stopped)
    ended, _, said = ran(benchmark.main, ["--kills", "1"], capsys)
    assert ended == status and said.count("\n") == 1


def test_the_random_state_of_an_apple_gpu_is_taken_up(tmp_path, monkeypatch):
    """Dropout draws there: a run that goes on would draw again what was drawn before."""
    now = [torch.arange(4, dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: now[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", now.append)
    run = Run(tmp_path, tensorboard=False)
    run.log("adversarial", {"epoch": 1, "seconds": 0.0})
    run.save("adversarial", 1, {})
    now.append(now[0] + 1)
    assert Run(tmp_path, tensorboard=False).restore("adversarial", {}) == 1
    assert now[-1].tolist() == [0, 1, 2, 3]


def test_on_a_mac_a_file_is_on_the_disk_and_not_in_the_drives_cache_before_it_takes_its_place(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda number, what: calls.append((what, (tmp_path / "x").exists())))
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("1")
    assert calls == [(51, False), (51, True)]
