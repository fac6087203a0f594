"""Streams that are closed or full, and signals: files first, printing last; no traceback; a sensible exit status."""

import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from run_content import QUICK, features_in, main

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "train_IEMOCAP.py"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return features_in(tmp_path_factory.mktemp("features"))


def shell(command, **how):
    """Run a line of bash; the exit status, of the script where the line gives that, and what came out."""
    line = command.replace("SCRIPT", f"{sys.executable} {SCRIPT}")
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=100, env=ENV, check=False, **how
    )
    assert "Traceback" not in done.stdout + done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


def stand(number, kind, folder):
    """Make a standard stream of this process anew, as Python does of the descriptor that it is given, or lacks."""
    name = ("stdin", "stdout", "stderr")[number]
    if kind == "closed":
        os.close(number)
        setattr(sys, name, None)
        return
    if kind == "unread":
        reader, given = os.pipe()
        os.close(reader)
    else:
        given = os.open("/dev/full" if kind == "full" else folder / name, os.O_RDWR | os.O_CREAT)
    os.dup2(given, number)
    os.close(given)
    setattr(sys, name, os.fdopen(number, "w" if number else "r", buffering=1 if number == 2 else -1, closefd=False))


@pytest.fixture
def fork(tmp_path_factory):
    """Begin a script in a child that has imported everything already; what ends it, and what it then said.

    Its streams are "closed", "full", without a reader ("unread") or else files.
    """
    children = []

    def fork(script, *argv, streams=("", "", "")):
        folder = tmp_path_factory.mktemp("said")
        if child := os.fork():
            children.append(child)

            def ended():
                children.remove(child)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                out, err = ((folder / f).read_text() if (folder / f).exists() else "" for f in ("stdout", "stderr"))
                assert "Traceback" not in out + err and "Exception ignored" not in err, err
                return status, out, err

            return child, ended
        status = 120  # Python's own, where the streams cannot be flushed on leaving
        try:
            signal.alarm(100)
            heed()
            for number, kind in enumerate(streams):
                stand(number, kind, folder)
            torch.set_num_threads(1)  # others did not come along into the child
            sys.argv = [str(script), *map(str, argv)]
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as stop:
                for stream in filter(None, (sys.stdout, sys.stderr)):
                    stream.flush()
                status = stop.code
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    yield fork
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def check_files(run):
    files = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    assert {"report.txt", "report.json", "predictions.csv"} <= files.keys()
    assert files["report.txt"].startswith(b"Test performance..")
    assert not any(b"epoch 1 of 1" in content for content in files.values())  # a closed stream's number is no file's


def test_the_files_of_a_run_do_not_depend_on_who_reads_what_it_says(features, tmp_path):
    flags = ["--features", str(features), "--out", str(tmp_path / "run"), *QUICK]
    done = shell(f"SCRIPT {' '.join(flags)} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "standard output: cannot be written" in done.stderr
    check_files(tmp_path / "run")


@pytest.mark.parametrize("streams", [("", "unread", "full"), ("closed", "closed", "closed")])
def test_where_nobody_reads_a_run_ends_well(features, tmp_path, fork, streams):
    _, ended = fork(SCRIPT, "--features", features, "--out", tmp_path / "run", *QUICK, streams=streams)
    assert ended()[0] == 0
    check_files(tmp_path / "run")


@pytest.mark.parametrize("stream", ["| true", "> /dev/full", ">&- 2>&-", "2> /dev/full"])
@pytest.mark.parametrize(("flags", "status"), [("--help", (0, 1)), ("--epochs x", (2,))])
def test_help_and_complaints_end_quietly(tmp_path, stream, flags, status):
    done = shell(f"SCRIPT {flags} {stream}; exit ${{PIPESTATUS[0]}}", cwd=tmp_path)
    assert done.returncode in status
    assert list(tmp_path.iterdir()) == []
    if flags != "--help" and "2>" not in stream:
        assert "error: " in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.fixture(scope="module")
def trained(features, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main("--features", features, "--out", out, *QUICK) == 0
    return out


def test_predictions_and_comparisons_are_written_whoever_reads(features, trained, tmp_path, fork):
    predict = [ROOT / "predict.py", trained, features, "--device", "cpu", "--out", tmp_path / "p.csv"]
    compare = [ROOT / "compare.py", trained, "--out", tmp_path]
    for argv, streams, written, status in (
        (predict, ("", "full", ""), "p.csv", 1),
        (compare, ("", "closed", "closed"), "scores.csv", 0),
    ):
        _, ended = fork(*argv, streams=streams)
        assert ended()[0] == status
        assert (tmp_path / written).stat().st_size > 100


def test_the_complaint_of_an_extraction_ends_quietly(tmp_path, monkeypatch, fork):
    monkeypatch.chdir(tmp_path)
    flags = ["--manifest", "none.csv", "--out", tmp_path / "x.safetensors"]
    _, ended = fork(ROOT / "extract_features.py", *flags, streams=("", "", "full"))
    assert ended()[:2] == (2, "") and not list(tmp_path.iterdir())


def heed():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup, under which the tests may run, has ignored


@pytest.mark.parametrize("after", [0.15, 0.5, 1.5])
def test_ctrl_c_while_importing_says_nothing(features, tmp_path, after):
    argv = [sys.executable, str(SCRIPT), "--features", str(features), "--out", str(tmp_path / "run"), *QUICK]
    process = subprocess.Popen(
        [*argv, "--epochs", "5000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV, preexec_fn=heed
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert b"Traceback" not in out + err and b"Exception ignored" not in err, err
    assert process.returncode in (-signal.SIGINT, 130)


def test_the_script_handles_ctrl_c_before_it_imports_more_than_a_few_small_modules():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import experiment.start\n"
        "print(*sorted(m for m in set(sys.modules) - before if '.' not in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"argparse", "json", "files", "torch"} & set(done.stdout.split())


def test_a_signal_that_stops_a_run_leaves_one_that_goes_on(features, tmp_path, fork):
    run = tmp_path / "run"
    child, ended = fork(SCRIPT, "--features", features, "--out", run, *QUICK, "--epochs", "5000")
    until = time.monotonic() + 60
    while not (run / "history.csv").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(child, signal.SIGHUP)
    assert ended()[0] == 130
    assert (run / "checkpoints" / "last.pt").exists()
    assert "Interrupted at epoch" in (run / "report.txt").read_text()


def test_nohup_keeps_a_run_going(features, tmp_path):
    from experiment.run import stops

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stops()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert signal.SIGHUP in stops()
    signal.signal(signal.SIGHUP, before)
