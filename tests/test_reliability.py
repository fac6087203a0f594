"""What docs/reliability.md promises, shown by breaking things: kills, faults, and files of strangers."""

import errno
import hashlib
import io
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
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
from feature_files import write_nine_tuple
from files import TrainingError, replacing
from synthetic import synthetic_corpus

DIMS = {"text": 8, "visual": 6, "acoustic": 5}
RUN = ["--valid", "0.2", "--fused-channels", "16", "--device", "cpu"]
QUICK = ["--checkpoint-every", "1", "--epochs", "3", "--GAN-epochs", "2", *RUN]


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


@pytest.fixture
def stopped(features, tmp_path, monkeypatch):
    """Begin a run and let something happen to it after an epoch; the directory."""

    def stopped(what, *flags, stage="classifier", epoch=2, status=1):
        save = Run.save

        def save_then(run, at, done, parts):
            save(run, at, done, parts)
            if (at, done) == (stage, epoch):
                what()

        with monkeypatch.context() as patch:
            patch.setattr(Run, "save", save_then)
            argv = ["--features", str(features), "--out", str(tmp_path / "run"), *QUICK, *flags]
            assert train_IEMOCAP.main(argv) == status
        return tmp_path / "run"

    return stopped


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def raising(error):
    def work(*_, **__):
        raise error

    return work


# Resume ---------------------------------------------------------------------------------------------------------------


def test_killed_runs_end_as_the_run_nobody_killed(tmp_path):
    lines = []
    threads = torch.get_num_threads()
    try:
        assert soak(tmp_path, kills=2, seed=1, say=lines.append) == 2, lines
    finally:
        torch.set_num_threads(threads)  # the soak forks, which only one thread survives


def test_the_comparison_sees_a_difference_of_one_bit(stopped):
    directory = stopped(raising(TrainingError("stop")))
    before = bits(directory)
    state = torch.load(directory / "checkpoints" / "last.pt", weights_only=True)
    state["history"]["classifier"][0]["seconds"] += 1
    torch.save(state, directory / "checkpoints" / "last.pt")
    assert bits(directory) == before
    state["history"]["classifier"][0]["train_loss"] *= 1 + 1e-15
    torch.save(state, directory / "checkpoints" / "last.pt")
    assert bits(directory) != before


@pytest.mark.parametrize("every", ["1", "2"])
def test_ctrl_c_reports_what_there_is_and_the_run_goes_on_to_the_same_bits(stopped, finished, command, capsys, every):
    directory = stopped(interrupt, "--checkpoint-every", every, epoch=1, status=130)
    said = capsys.readouterr()
    assert "Interrupted at epoch 2 of stage 2, step 1. To go on:" in said.err and f"--resume {directory}" in said.err
    assert json.loads((directory / "report.json").read_text())["interrupted"] == "epoch 2 of stage 2, step 1"
    assert (directory / "report.txt").read_text().startswith("Interrupted at epoch 2 of stage 2, step 1; this is epoch")
    state = torch.load(directory / "checkpoints" / "last.pt", weights_only=True)
    assert (state["stage"], state["epoch"]) == ("classifier", 1)  # a checkpoint, whatever --checkpoint-every says
    assert command("--resume", directory) == (0, "")
    if every == "1":
        assert same(directory, finished)
    weights = Path("checkpoints") / "best.safetensors"
    assert (directory / weights).read_bytes() == (finished / weights).read_bytes()
    assert (directory / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()


def test_a_second_ctrl_c_stops_at_once(features, tmp_path, command, monkeypatch):
    step = utils.AdamW.step
    monkeypatch.setattr(utils.AdamW, "step", lambda *a, **k: (interrupt(), interrupt(), step(*a, **k)))
    status, error = command("--features", features, "--out", tmp_path / "run", *QUICK)
    assert status == 130
    assert error.startswith("Stopped at once.") and f"--resume {tmp_path / 'run'}" in error


def test_ctrl_c_while_the_report_is_written_stops_at_once(stopped, finished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write_predictions", lambda *_: interrupt())
        directory = stopped(lambda: None, status=130)
    assert not (directory / "report.json").exists()
    assert train_IEMOCAP.main(["--resume", str(directory)]) == 0
    assert same(directory, finished)


def test_checkpoints_come_every_so_many_epochs_and_two_are_kept_until_the_report(
    features, tmp_path, command, monkeypatch
):
    monkeypatch.setattr(plan, "drop_states", raising(KeyboardInterrupt))  # as if killed right after the report
    written, flush = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (written.append(Path(to).name), flush(path, to))[1])
    directory = tmp_path / "run"
    assert (
        command("--features", features, "--out", directory, *QUICK[4:], "--epochs", 5, "--checkpoint-every", 2)[0]
        == 130
    )
    assert written.count("last.pt") == 1 + 3  # epoch 2 of stage 1; epochs 2, 4 and the last, 5, of stage 2
    states = [torch.load(directory / "checkpoints" / f"{n}.pt", weights_only=True) for n in ("previous", "last")]
    assert [state["epoch"] for state in states] == [4, 5]
    monkeypatch.undo()
    assert command("--resume", directory) == (0, "")
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == [
        *("best.safetensors", "fusion.safetensors", "standardiser.safetensors")
    ]


def test_a_run_killed_after_its_calibration_has_the_folds_whole(features, tmp_path, command, monkeypatch):
    """Killed while they were deleted, it found a fold without its predictions and could not go on."""
    with monkeypatch.context() as patch:
        out_of_fold = train_IEMOCAP.out_of_fold
        patch.setattr(train_IEMOCAP, "out_of_fold", lambda *a: (out_of_fold(*a), raising(KeyboardInterrupt)()))
        argv = ["--features", features, "--out", tmp_path / "run", "--calibrate", "2", "--no-tensorboard", *QUICK]
        assert command(*argv)[0] == 130
    monkeypatch.setattr(train_IEMOCAP, "train_adversarial_fusion", raising(TrainingError("a fold is trained again")))
    assert command("--resume", tmp_path / "run") == (0, "")
    assert not (tmp_path / "run" / "calibration").exists()


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(stopped, finished, command, damage):
    directory = stopped(raising(TrainingError("stop")))
    last = directory / "checkpoints" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes(content if damage == "bit flipped" else content[:1000])
    status, error = command("--resume", directory)
    assert status == 0
    assert ("damaged; going on from" in error) == (damage != "missing")
    assert same(directory, finished)


def test_no_good_checkpoint_is_said_in_a_line(stopped, command):
    directory = stopped(raising(TrainingError("stop")))
    for name in ("last", "previous"):
        (directory / "checkpoints" / f"{name}.pt").write_bytes(b"")
    status, error = command("--resume", directory)
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


def test_leftovers_of_a_killed_write_are_cleaned_and_do_not_count(features, finished, tmp_path, command):
    directory = tmp_path / "run"
    (directory / "checkpoints").mkdir(parents=True)
    (directory / ".config.json.12.tmp").write_text("{")
    (directory / ".lock").touch()
    (directory / "checkpoints").rmdir()
    assert command("--features", features, "--out", directory, *QUICK) == (0, "")
    assert not list(directory.rglob(".*"))


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
        assert command("--features", features, "--out", directory, *QUICK) == (0, "")
    finally:
        ended.set()
        reader.join()
    assert not broken
    assert seen >= {"config.json", "GAN_loss.csv", "history.csv"}


def test_resume_warns_of_another_version(stopped, command):
    directory = stopped(raising(TrainingError("stop")))
    config = json.loads((directory / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    (directory / "config.json").write_text(json.dumps(config))
    status, error = command("--resume", directory)
    assert status == 0
    assert error.startswith("warning: ") and f"torch 1.0 (now {torch.__version__})" in error
    assert json.loads((directory / "config.json").read_text())["versions"]["torch"] == "1.0"


# Files ----------------------------------------------------------------------------------------------------------------


def test_file_and_folder_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    calls, fsync, rename = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(Path(f"/dev/fd/{fd}").resolve().name), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("rename"), rename(a, b)))
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert calls[1:2] == ["rename"] and len(calls) == 3


def test_a_second_process_is_refused_and_a_dead_one_keeps_no_lock(features, tmp_path, command):
    directory = tmp_path / "run"
    directory.mkdir()
    holding = (
        "import sys, time, filelock\n"
        "lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holding, str(directory / ".lock")], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        status, error = command("--features", features, "--out", directory, *QUICK)
        assert status == 2 and "another process is at work there" in error
        other.kill()
    assert command("--features", features, "--out", directory, *QUICK) == (0, "")


def test_without_flock_a_living_process_is_heeded_and_a_dead_one_keeps_no_lock(tmp_path):
    """As on Lustre without it, where the lock of a killed run was taken for something of the user's."""
    script = """
import errno, fcntl, os, pathlib, sys
def flock(*_): raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
from experiment.run_directory import locked
def again():
    with locked(pathlib.Path(sys.argv[1])): print("taken")
with locked(pathlib.Path(sys.argv[1])):
    try: again()
    except ValueError as error: print(error)
if not os.fork():
    locked(pathlib.Path(sys.argv[1])).__enter__(), os._exit(0)
os.wait()
again()
"""
    argv = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(argv, cwd=Path(train_IEMOCAP.__file__).parent, capture_output=True, text=True)
    said = f"{tmp_path / 'run'}: another process is at work there; wait, or choose another directory"
    assert (done.stdout.splitlines(), done.stderr) == ([said, "taken"], "")


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


@pytest.mark.parametrize("what", ["checkpoint", "curves", "events", "report", "picture"])
def test_a_full_disk_ends_in_a_line_and_the_run_goes_on(features, finished, tmp_path, command, monkeypatch, what):
    if what == "picture":
        monkeypatch.undo()  # few_pictures
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    where = {
        "checkpoint": (Path, "write_bytes"),
        "curves": (pd.DataFrame, "to_csv"),
        "events": (tensorboard.EventsWriter, "flush"),
        "report": (Path, "write_text"),
        "picture": (FigureCanvasAgg, "print_png"),
    }[what]
    real, calls = getattr(*where), 0

    def fails_in_time(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3 or what == "picture":
            raise full
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*where, fails_in_time)
        status, error = command("--features", features, "--out", tmp_path / "run", *QUICK)
    assert "cannot be written (No space left on device)" in error
    if what == "picture":  # the run is finished without them
        assert status == 0 and error.startswith("warning: ") and (tmp_path / "run" / "report.json").exists()
    else:
        assert status == 1 and "--resume" in error
    assert command("--resume", tmp_path / "run") == (0, "")
    if what == "picture":  # TensorBoard lacks them too
        assert (tmp_path / "run" / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()
    else:
        assert same(tmp_path / "run", finished)


def test_a_quota_ends_in_a_line_and_the_run_goes_on(stopped, finished, command, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        directory = stopped(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written" in capsys.readouterr().err
    assert not list(directory.rglob(".*"))
    assert command("--resume", directory) == (0, "")
    assert same(directory, finished)


def test_a_directory_that_becomes_read_only_ends_in_a_line(stopped, finished, command, monkeypatch, capsys):
    rename = Path.replace
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    directory = stopped(lambda: monkeypatch.setattr(Path, "replace", raising(denied)))
    assert "cannot be written (Permission denied)" in capsys.readouterr().err
    monkeypatch.setattr(Path, "replace", rename)
    assert command("--resume", directory) == (0, "")
    assert same(directory, finished)


def test_out_of_memory_ends_in_a_line_that_says_what_to_lower(stopped, finished, command, capsys):
    directory = stopped(raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "out of memory on cpu" in said and "--batch-size (16 now)" in said
    assert command("--resume", directory) == (0, "")
    assert same(directory, finished)


def test_every_way_of_saying_that_memory_is_out_is_known():
    assert utils.out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert utils.out_of_memory(error.value)
    assert not utils.out_of_memory(RuntimeError("a bug"))


def test_gradients_that_are_not_finite_end_in_a_line_with_the_place(features, finished, tmp_path, command, monkeypatch):
    clip, calls = torch.nn.utils.clip_grad_norm_, 0

    def spoil(parameters, norm):
        nonlocal calls
        calls += 1
        parameters = list(parameters)
        if calls == 4:  # one step an epoch: the second of stage 2
            parameters[0].grad[0] = torch.nan
        return clip(parameters, norm)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spoil)
        status, error = command("--features", features, "--out", tmp_path / "run", *QUICK)
    assert status == 1 and "epoch 2 of stage 2, step 1: the norm of the gradients is nan" in error
    assert command("--resume", tmp_path / "run") == (0, "")
    assert same(tmp_path / "run", finished)


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
    for how in (["--out", tmp_path / "run", *QUICK], ["--evaluate", finished]):
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
    directory = stopped(raising(TrainingError("stop")))
    buffer = io.BytesIO()
    attack = {"stage": "classifier", "epoch": Attack(tmp_path / "victim")}
    if form == "pickle":
        pickle.dump(attack, buffer, protocol=2)
    else:
        torch.save(attack, buffer)
    content = buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
    for name in ("last", "previous"):
        (directory / "checkpoints" / f"{name}.pt").write_bytes(content)
    status, error = command("--resume", directory)
    assert status == 2 and "the checkpoint is damaged" in error
    assert not (tmp_path / "victim").exists()


def test_a_checkpoint_of_another_network_is_said_in_a_line(stopped, command):
    directory = stopped(raising(TrainingError("stop")))
    run = Run(directory, tensorboard=False)
    run.log("classifier", {"epoch": 1, "seconds": 0.0})
    run.save("classifier", 1, {})
    status, error = command("--resume", directory)
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
    assert command("--features", tmp_path / "x.pkl", "--out", out, *QUICK, "--folds", "2") == (0, "")
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
