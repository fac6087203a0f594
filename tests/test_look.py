"""The end of a run: what is left to look at, and that nothing there stops a run that is finished."""

import pytest
from made_run import corpus_of, make_run
from small import ran

from benchmarks import look as benchmark
from experiment import insight, look, page, plots
from experiment.look import leave_a_look
from experiment.settings import RunSettings


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run, and what is known of it; of its pictures a few are enough, and of its maps any points."""
    monkeypatch.setattr(insight, "plane", lambda points: points[:, :2])
    every, few = plots.pictures, ("GAN_loss", "fusion_losses", "confusion_matrix")
    monkeypatch.setattr(plots, "pictures", lambda seen: {n: make for n, make in every(seen).items() if n in few})
    network, dialogues = make_run(tmp_path / "run", corpus_of([6, 5]))
    return tmp_path / "run", {"network": network, "dialogues": dialogues}


def left(directory):
    return {path.suffix for path in directory.iterdir()} & {".html", ".png", ".pdf"} | (
        {"events"} if (directory / "tensorboard").exists() else set()
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {".html", ".png", "events"}),
        ({"pictures": False}, {"events"}),
        ({"tensorboard": False, "figures": ("pdf",)}, {".html", ".pdf"}),
        ({"tensorboard": False, "pictures": False}, set()),
    ],
)
def test_what_is_wanted_is_left_and_no_more(run, settings, expected, capsys):
    directory, known = run
    leave_a_look(directory, RunSettings(**settings), **known)
    assert left(directory) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", [(look, "gather"), (plots, "draw"), (page, "render"), (plots, "save")])
def test_what_fails_is_a_line(run, monkeypatch, capsys, where):
    directory, known = run
    before = (directory / "report.json").read_bytes()

    def fails(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*where, fails)
    leave_a_look(directory, RunSettings(tensorboard=False), **known)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said
    assert (directory / "report.json").read_bytes() == before


def test_a_run_stopped_in_stage_1_has_its_curves(run, capsys):
    directory, known = run
    for name in ("report.json", "predictions.csv", "history.csv"):
        (directory / name).unlink()
    leave_a_look(directory, RunSettings(), **known)
    assert {path.name for path in directory.glob("*.png")} == {"GAN_loss.png", "fusion_losses.png"}
    assert not (directory / "report.html").exists() and capsys.readouterr().err == ""


def test_the_benchmark_writes_nothing_into_what_is_no_run(tmp_path, capsys):
    status, _, said = ran(benchmark.main, [tmp_path / "none"], capsys)
    assert status == 2 and said.count("\n") == 1 and not (tmp_path / "none").exists()
