"""Kill a short run at random instants, resume it, and compare every file with those of the run nobody killed.

    python benchmarks/soak.py --kills 100

Half of the kills are at random instants of the run, the other half at a random one of its renames, right before or
right after it, where a file is whole and the next not begun. Only what is under `seconds` and `finished_at` may differ.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import pandas as pd
import torch
from tensorboardX.proto.event_pb2 import Event

import train_IEMOCAP
from experiment.flags import flag_type
from experiment.settings import Number
from feature_files import write_nine_tuple
from files import TrainingError
from synthetic import synthetic_corpus

FLAGS = ["--GAN-epochs", "3", "--epochs", "3", "--valid", "0.2", "--device", "cpu"]


def without_times(content: Any) -> Any:
    """JSON or a checkpoint without what is under ``seconds`` and ``finished_at``; tensors as bytes."""
    if isinstance(content, dict):
        return {k: without_times(v) for k, v in content.items() if k not in ("seconds", "finished_at")}
    if isinstance(content, (list, tuple)):
        return [without_times(x) for x in content]
    return content.numpy().tobytes() if isinstance(content, torch.Tensor) else content


def events(path: Path) -> list[tuple[str, int, float | None]]:
    """Tag, step and value of every scalar in an event file; of a duration, no value."""
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [(v.tag, event.step, v.simple_value * ("seconds" not in v.tag)) for v in event.summary.value]
        data = data[12 + size + 4 :]
    return found


def bits(directory: Path) -> dict[str, Any]:
    """Every file of a run by name, to be compared: its bytes or, where durations are in it, all else."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = str(path.relative_to(directory))
        if path.suffix == ".html":  # made of the other files, and dated
            continue
        if path.name.startswith("events."):
            found["tensorboard/events"] = [*found.get("tensorboard/events", []), events(path)]
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text(encoding="utf-8")))
        elif path.name in ("GAN_loss.csv", "history.csv"):
            found[name] = pd.read_csv(path).drop(columns="seconds").to_csv()
        elif path.suffix == ".pt":
            found[name] = without_times(torch.load(path, weights_only=True))
        else:
            found[name] = path.read_bytes()
    return found


def in_child(work: Callable[[], int]) -> int:
    """Start work in a process of its own, which has imported everything already. Returns its id."""
    if child := os.fork():
        return child
    status = 70
    try:
        torch.set_num_threads(1)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = work()
    finally:
        os._exit(status)


def train(features: Path, directory: Path) -> int:
    """Begin or go on with a run. Returns its exit status."""
    going_on = (directory / "config.json").exists()
    return train_IEMOCAP.main(
        ["--resume", str(directory)] if going_on else ["--features", str(features), "--out", str(directory), *FLAGS]
    )


def counting_renames(work: Callable[[], int], kill_at: float = float("inf"), count_to: Path | None = None) -> int:
    """Work that is killed right before a rename, the whole number ``kill_at``, or at a half, right after one."""
    rename, renames = Path.replace, 0

    def replace(path: Path, target: Path) -> Path:
        nonlocal renames
        if renames == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        done = rename(path, target)
        if renames + 0.5 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        renames += 1
        return done

    Path.replace = replace
    status = work()
    if count_to:
        count_to.write_text(str(renames))
    return status


def soak(folder: Path, kills: int, seed: int, say: Callable[[str], None] = print) -> int:
    """Kill and resume so many runs. Returns how many ended as the run that nobody killed.

    Args:
        folder: An empty one, for the runs.
        kills: How many.
        seed: Decides the instants.
        say: Where a line for each kill goes.
    """
    torch.set_num_threads(1)
    features = folder / "small.pkl"
    corpus = synthetic_corpus(train=20, test=4, mean_length=10, dims={"text": 8, "visual": 6, "acoustic": 5})
    write_nine_tuple(corpus, features)
    whole, count = folder / "whole", folder / "count"
    started = time.perf_counter()
    child = in_child(lambda: counting_renames(lambda: train(features, whole), count_to=count))
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise TrainingError("the run that nobody kills failed")
    took, renames, expected = time.perf_counter() - started, int(count.read_text()), bits(whole)
    say(f"The whole run takes {took:.1f} s and renames {renames} files.")
    draw, identical = random.Random(seed), 0
    for number in range(kills):
        directory = folder / f"run{number}"
        if number % 2:
            instant = draw.uniform(0, took)
            child = in_child(lambda directory=directory: train(features, directory))
            time.sleep(instant)
            os.kill(child, signal.SIGKILL)
            where = f"{instant:6.2f} s"
        else:
            at = draw.randrange(2 * renames) / 2
            child = in_child(
                lambda directory=directory, at=at: counting_renames(lambda: train(features, directory), kill_at=at)
            )
            where = f"{'after' if at % 1 else 'before'} rename {int(at) + 1}"
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        left = len(list(directory.rglob("*")))
        resumed = os.waitstatus_to_exitcode(
            os.waitpid(in_child(lambda directory=directory: train(features, directory)), 0)[1]
        )
        found = bits(directory)
        other = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        identical += not other and not resumed
        outcome = "identical" if not other and not resumed else f"exit {resumed}, differ: {', '.join(other)}"
        say(f"{number + 1:4} {where:>18}  {'killed' if status < 0 else 'finished'} with {left:2} files  {outcome}")
        if not other:
            shutil.rmtree(directory)
    say(f"{identical} of {kills} identical.")
    return identical


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0 if every run ended alike, 1 if not, 130 if interrupted."""
    parser = common.make_parser(__doc__.splitlines()[0], ["--seed"])
    whole = flag_type(Number(int, 1, 1_000_000).parse)
    parser.add_argument("--kills", type=whole, metavar="N", default=100, help="how many runs to kill")
    settings, own = common.parse(parser, argv, needs_data=False)
    with tempfile.TemporaryDirectory() as folder:
        return common.ending(lambda: int(soak(Path(folder), own.kills, settings.run.seed) != own.kills))


if __name__ == "__main__":
    sys.exit(main())
