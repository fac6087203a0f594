"""How long the default job takes, and how much memory.

    python benchmarks/speed.py
    python benchmarks/speed.py --beside 0,1,2
    python benchmarks/speed.py -- --epochs 5 --device cpu

Runs ``train_IEMOCAP.py --demo`` as a process of its own, with the flags after ``--``, and prints a Markdown table. The
very first run on a machine also pays for reading the packages from disk: take the second. With ``--beside N``, N
processes that do nothing but count run beside it, as other people's jobs do on a machine that shares its cores; of
several numbers with commas between, each is a column.
"""

from __future__ import annotations

# The standard library only: this process must neither warm the packages up for the one it measures, nor be so large
# that the operating system counts its size into the other's peak memory.
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiment.flags import Parser, flag_type
from experiment.settings import Number
from files import InputError

PROJECT = Path(__file__).resolve().parent.parent
SCRIPT = PROJECT / "train_IEMOCAP.py"
FLOPS = PROJECT / "benchmarks" / "flops.py"
CURVES = {"stage 1": "GAN_loss.csv", "stage 2": "history.csv"}
POLL = 0.01  # seconds


# Ends with its parent even where that is killed and can end nobody.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclass(frozen=True)
class Watched:
    """What is seen of the job from outside.

    Attributes:
        status: Its exit status.
        total: Seconds from its start to its end.
        first_epoch_logged: Seconds from its start until the curves of its first epoch appeared, if they did.
        peak_mebibytes: The most memory it held.
    """

    status: int
    total: float
    first_epoch_logged: float | None
    peak_mebibytes: float


def watch(command: Sequence[str], curves: Sequence[Path]) -> Watched:
    """Run a command to its end, its output thrown away, its complaints let through.

    Args:
        command: What to run.
        curves: Files of which the first to appear shows that the first epoch is done.
    """
    started = time.perf_counter()
    appeared = None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        # Not `Popen.poll`: of a process that it has seen end, the system no longer says what memory it held.
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            if appeared is None and any(path.exists() for path in curves):
                appeared = time.perf_counter() - started
            time.sleep(POLL)
    except BaseException:  # Ctrl-C, most likely; the job must not outlive us
        process.kill()
        process.wait()
        raise
    total, (_, status, used) = time.perf_counter() - started, ended
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Watched(process.returncode, total, appeared, peak)


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen]]:
    """So many processes that keep a core busy each, ended with the block however it ends."""
    beside: list[subprocess.Popen] = []
    try:
        for _ in range(count):
            beside.append(subprocess.Popen([sys.executable, "-c", BUSY]))
        yield beside
    finally:
        for process in beside:
            process.kill()
        for process in beside:
            process.wait()


def stop(number: int, frame: object) -> None:
    """End as Ctrl-C does, so that what was started ends too."""
    raise KeyboardInterrupt


def seconds_column(path: Path) -> list[float]:
    """Seconds of each epoch; none if the stage was left out."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)]


def measurements(directory: Path, watched: Watched, flops: Mapping[str, float]) -> dict[str, str]:
    """The rows of the table: what to its value.

    Args:
        directory: The run's.
        watched: What was seen of it.
        flops: What `flops.py` prints.

    The first batch comes when the first epoch is logged, less the seconds that the job itself says the epoch took.

    Raises:
        InputError: If the directory does not hold exactly one run.
    """
    report, config = (read_json(directory / name) for name in ("report.json", "config.json"))
    seconds = {stage: seconds_column(directory / name) for stage, name in CURVES.items()}
    epochs = [s for column in seconds.values() for s in column]
    saving = report["seconds"]["checkpoints"]
    if not epochs or watched.first_epoch_logged is None:
        raise InputError("flags after --: the job trained nothing; give flags of one training run")
    start = watched.first_epoch_logged - epochs[0]
    return {
        "process start to first batch, s": f"{start:.2f}",
        **{
            f"{stage}, s an epoch (median of {len(column)})": f"{statistics.median(column):.3f}" if column else "–"
            for stage, column in seconds.items()
        },
        **{
            f"{stage}, {what}": f"{value / statistics.median(column):{form}}"
            for stage, column in seconds.items()
            for what, value, form in (
                ("utterances a second", flops["utterances"], ",.0f"),
                ("matrix products, GFLOP a second", flops[stage] / 1e9, ".0f"),
                ("matrix products, share of the peak, %", 100 * flops[stage] / flops["peak"], ".0f"),
            )
            if column
        },
        "this machine's peak, GFLOP a second": f"{flops['peak'] / 1e9:.0f}",
        "checkpoints, s": f"{saving:.1f}",
        "report, pictures and page, s": f"{watched.total - start - sum(epochs) - saving:.1f}",
        "whole job, wall s": f"{watched.total:.1f}",
        "peak memory, MiB": f"{watched.peak_mebibytes:.0f}",
        "parameters": f"{report['parameters']:,}",
        "device": config["device"],
        "cores": f"{os.cpu_count()} (OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')})",
        "torch": config["versions"]["torch"],
    }


def read_json(path: Path) -> Any:
    """What the job wrote."""
    if not path.exists():
        raise InputError(f"flags after --: the job left no {path.name}; give flags of one training run, no --seeds")
    return json.loads(path.read_text(encoding="utf-8"))


def table(columns: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table: a row a thing that was measured, a column a run."""
    lines = ["| measured |" + " |" * len(columns), "|:--|" + "--:|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join([what, *(c[what] for c in columns)]) + " |" for what in columns[0])])


def counted(flags: Sequence[str]) -> dict[str, float]:
    """What `flops.py` prints of the job, of a process of its own."""
    run = subprocess.run([sys.executable, str(FLOPS), *data_of(flags), *flags], stdout=subprocess.PIPE, text=True)
    if run.returncode:  # it has said why
        raise SystemExit(run.returncode if run.returncode > 0 else 128 - run.returncode)
    return json.loads(run.stdout)


def data_of(flags: Sequence[str]) -> list[str]:
    """The demo, unless the flags name other data."""
    return [] if any(flag.startswith("--features") for flag in flags) else ["--demo"]


def job(flags: Sequence[str], directory: Path) -> list[str]:
    """The command to measure. ``--out`` comes last, so that it holds whatever the flags say."""
    return [sys.executable, str(SCRIPT), *data_of(flags), *flags, "--out", str(directory)]


def counts(text: str) -> list[int]:
    """Numbers of processes, with commas between."""
    return [Number(int, 0, 1000).parse(part) for part in text.split(",")]


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(
        description="Time the default job: train_IEMOCAP.py --demo.",
        usage="%(prog)s [-h] [--beside N,N] [-- FLAG ...]",
    )
    parser.add_argument(
        "--beside", type=flag_type(counts), metavar="N,N", default="0", help="busy processes beside the job, a run each"
    )
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="more flags for train_IEMOCAP.py (default: none)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 2 for bad input, 130 if interrupted, else that of the job."""
    own = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    try:
        flops, columns = counted(own.flags), []
        for count in own.beside:
            with tempfile.TemporaryDirectory() as temporary, busy(count):
                directory = Path(temporary) / "run"
                watched = watch(job(own.flags, directory), [directory / name for name in CURVES.values()])
                if watched.status:  # the job has said why
                    return watched.status if watched.status > 0 else 128 - watched.status
                columns.append({"busy processes beside it": str(count), **measurements(directory, watched, flops)})
        print(table(columns))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
