"""Streams that are closed or full, and signals: files first, printing last; no traceback; a sensible exit status."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
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


@pytest.mark.parametrize(
    ("stream", "status"),
    [("2> /dev/full | head -1", 0), ("> /dev/full", 1), (">&- 2>&- <&-", 0)],
)
def test_the_files_of_a_run_do_not_depend_on_who_reads_what_it_says(features, tmp_path, stream, status):
    flags = ["--features", str(features), "--out", str(tmp_path / "run"), *QUICK]
    done = shell(f"SCRIPT {' '.join(flags)} {stream}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == status
    files = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    assert {"report.txt", "report.json", "predictions.csv"} <= files.keys()
    assert files["report.txt"].startswith(b"Test performance..")
    assert not any(b"epoch 1 of 1" in content for content in files.values())  # a closed stream's number is no file's
    if stream == "> /dev/full":
        assert done.stderr.count("\n") == 1 and "standard output: cannot be written" in done.stderr


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


def test_predictions_and_comparisons_are_written_whoever_reads(features, trained, tmp_path):
    predict = f"predict.py {trained} {features} --device cpu --out {tmp_path / 'p.csv'} > /dev/full"
    compare = f"compare.py {trained} --out {tmp_path} >&- 2>&-"
    for line, written, status in ((predict, "p.csv", 1), (compare, "scores.csv", 0)):
        assert shell(f"{sys.executable} {ROOT}/{line}").returncode == status
        assert (tmp_path / written).stat().st_size > 100


def test_the_complaint_of_an_extraction_ends_quietly(tmp_path):
    flags = f"--manifest none.csv --out {tmp_path / 'x.safetensors'} 2> /dev/full"
    done = shell(f"{sys.executable} {ROOT}/extract_features.py {flags}", cwd=tmp_path)
    assert done.returncode == 2 and not done.stderr and not list(tmp_path.iterdir())


def ended(process):
    out, err = process.communicate(timeout=60)
    assert b"Traceback" not in out + err and b"Exception ignored" not in err, err
    return process.returncode


def begin(*flags):
    argv = [sys.executable, str(SCRIPT), *map(str, flags)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV, preexec_fn=heed)


def heed():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup, under which the tests may run, has ignored


@pytest.mark.parametrize("after", [0.15, 0.5, 1.5])
def test_ctrl_c_while_importing_says_nothing(features, tmp_path, after):
    process = begin("--features", features, "--out", tmp_path / "run", *QUICK, "--epochs", "5000")
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    assert ended(process) in (-signal.SIGINT, 130)


def test_the_script_handles_ctrl_c_before_it_imports_more_than_a_few_small_modules():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import experiment.start\n"
        "print(*sorted(m for m in set(sys.modules) - before if '.' not in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"argparse", "json", "files", "torch"} & set(done.stdout.split())


def test_a_signal_that_stops_a_run_leaves_one_that_goes_on(features, tmp_path):
    process = begin("--features", features, "--out", tmp_path / "run", *QUICK, "--epochs", "5000")
    history = tmp_path / "run" / "history.csv"
    while not history.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert ended(process) == 130
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
    assert "Interrupted at epoch" in (tmp_path / "run" / "report.txt").read_text()


def test_nohup_keeps_a_run_going(features, tmp_path):
    from experiment.run import stops

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stops()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert signal.SIGHUP in stops()
    signal.signal(signal.SIGHUP, before)
