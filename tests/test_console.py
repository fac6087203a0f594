"""What a run says and to whom: pipes that close, no terminal, Ctrl-C at any time, files others may read."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from small import SHORT, corpus, features, train

import train_IEMOCAP
from experiment import console, run_directory

__all__ = ["corpus", "features"]  # fixtures

SCRIPT = Path(train_IEMOCAP.__file__)


def test_progress_without_a_terminal_is_a_line_at_the_start_and_some_later(features, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "EVERY", 0.0)
    run = train(tmp_path / "run", "--features", features, *SHORT, "--valid", "0.2")
    said = capsys.readouterr()
    lines = said.out.splitlines()
    parameters = json.loads((run / "report.json").read_text())["parameters"]
    assert lines[0] == (
        f"small.pkl: dialogues 8 train, 2 test, 2 valid; features text 8, visual 6, acoustic 5; {parameters:,} "
        f"parameters on cpu; into {run}"
    )
    spoken = [line for line in lines if re.match(r"stage \d, epoch", line)]
    assert [line.split(":")[0] for line in spoken] == [f"stage {s}, epoch {e} of 2" for s in (1, 2) for e in (1, 2)]
    assert all(re.search(r"text G loss \d\.\d\d.*; \d+ s left$", line) for line in spoken[:2])
    assert all(re.search(r"train loss \d\.\d\d, .*valid F1 \d+\.\d\d; \d+ s left$", line) for line in spoken[2:])
    assert not said.err


@pytest.fixture(scope="module")
def quick(features, tmp_path_factory):
    """A run of a commit and under a umask of its own, to look at but not to change, and what it said."""
    before, said = os.umask(0o027), io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
            patch.setattr(run_directory, "git_commit", lambda: "abc+")
            run = train(tmp_path_factory.mktemp("runs") / "quick", "--features", features, *SHORT)
    finally:
        os.umask(before)
    return run, said.getvalue()


def test_a_quick_run_says_the_last_epoch_of_each_stage_only(quick):
    spoken = re.findall(r"^stage \d, epoch \d of \d", quick[1], re.MULTILINE)
    assert spoken == ["stage 1, epoch 2 of 2", "stage 2, epoch 2 of 2"]


def test_a_terminal_has_a_bar_with_loss_and_f1(features, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "_terminal", lambda _: True)
    train(tmp_path / "run", "--features", features, *SHORT)
    said = capsys.readouterr()
    bars = said.err.replace("\r", "\n").splitlines()
    assert any(re.search(r"stage 2.*2/2.*train loss=\d\.\d\d, train F1=\d+\.\d\d", bar) for bar in bars)
    assert "stage 2, epoch" not in said.out


@pytest.mark.parametrize("number, status", [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)])
def test_ctrl_c_while_packages_are_loaded_is_quiet(number, status, tmp_path):
    for name in ("numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(SCRIPT), "--demo"], env=env, cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        error = process.communicate()[1]
    assert (process.returncode, error) == (status, "")


def test_what_a_run_writes_is_readable_as_umask_says(quick):
    run, _ = quick
    modes = {str(p.relative_to(run)): p.stat().st_mode & 0o777 for p in run.rglob("*") if p.is_file()}
    assert {"checkpoints/best.safetensors", "checkpoints/fusion.safetensors", "report.json"} <= modes.keys()
    assert set(modes.values()) == {0o640}


def test_pictures_can_be_left_out_and_change_nothing(quick, features, tmp_path, monkeypatch):
    # What is in a picture does not matter here, and to draw it takes most of the time.
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda canvas, where: where.write_bytes(b"drawn"))
    runs = train(tmp_path / "run", "--features", features, *SHORT, "--pictures"), quick[0]
    drawn, plain = ({p.name for p in run.iterdir()} for run in runs)
    assert drawn - plain == {name for name in drawn if name.endswith((".png", ".html"))} != set()
    assert plain < drawn
    for name in ("predictions.csv", "report.txt", "checkpoints/best.safetensors"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()


# The commit -----------------------------------------------------------------------------------------------------------


def git(folder, *words):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", folder, *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_named_and_marked_where_files_differ_from_it(tmp_path, monkeypatch):
    commit_of = run_directory.git_commit.__wrapped__
    monkeypatch.setattr(run_directory, "PROJECT", tmp_path)
    assert commit_of() is None
    git(tmp_path, "init", "-q")
    assert commit_of() is None  # nothing is committed yet
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of() == head and len(head) == 40
    (tmp_path / "untracked").write_text("2")
    assert commit_of() == head
    (tmp_path / "a.py").write_text("2")
    assert commit_of() == head + "+"
    monkeypatch.setenv("PATH", "")
    assert commit_of() is None  # no Git


def test_config_names_the_commit(quick):
    assert json.loads((quick[0] / "config.json").read_text())["git_commit"] == "abc+"


def test_of_a_killed_process_of_jobs_nothing_complains():
    """Python's own tracker of resources outlives it, and wrote two lines of the semaphore that tqdm had made."""
    script = """
import multiprocessing, os
multiprocessing.set_start_method("spawn")  # as where joblib has started the process
from experiment.console import Progress
Progress("", 0, 1)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-9, "")
