"""Whether time and memory stay in proportion as data grow: more dialogues, longer ones, wide features.

    python benchmarks/scale.py
    python benchmarks/scale.py --out runs/scale -- --fused-channels 64
    python benchmarks/scale.py --million    # 1,000,000 utterances of 3,000 features: 13 GB of disk, and hours

Made-up features are written as containers, which are mapped into memory, and ``train_IEMOCAP.py``'s ``run_seed``
learns from each in a process of its own, with the flags after ``--``. Three groups:

* *dialogues*: 1, 10 and 100 times as many, in batches of 16;
* *turns*: dialogues of 100, 1,000 and 20,000 turns, as many a batch as make 20,000 utterances;
* *width*: 3,000 features, few utterances and many.

Time is that of the fastest epoch of both stages, by utterance. Memory is what the process holds (``RssAnon``) beyond
what it held when the corpus was open: what is mapped from the file can be given back, and is not counted. Linux only.
Prints a Markdown table and what it comes to; ``--out`` also writes ``scale.csv``, ``scale.md`` and ``scale.png``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import pandas as pd

import utils
from dataloader import IEMOCAP_LABELS
from experiment.flags import Parser, flag_type, parse_args
from experiment.run_directory import write_csv
from experiment.settings import Number
from feature_files.stream import stream_container
from files import InputError, TrainingError
from train_IEMOCAP import load_corpus, run_seed

DIMS = {"text": 100, "visual": 512, "acoustic": 100}  # IEMOCAP's
WIDE = {"text": 1024, "visual": 1024, "acoustic": 952}
STATUS = Path("/proc/self/status")
EPOCHS = 3  # of each stage, of which the fastest counts
TIME_TARGET, MEMORY_TARGET, MILLION_TARGET = 1.15, 0.1, 4.0  # times the smallest; of what data grow by; GiB in all


@dataclass(frozen=True)
class Case:
    """A corpus to learn from: dialogues of equal length, and a tenth as many to score on."""

    group: str
    dialogues: int
    turns: int
    dims: Mapping[str, int]
    batch_size: int = 16
    epochs: int = EPOCHS

    @property
    def everything(self) -> int:
        """Dialogues of both splits."""
        return self.dialogues + max(1, self.dialogues // 10)

    @property
    def data(self) -> float:
        """MiB of features."""
        return 4 * self.everything * self.turns * sum(self.dims.values()) / 2**20


def cases(dialogues: int, turns: int, utterances: int, million: bool) -> list[Case]:
    """What is measured.

    Args:
        dialogues: How many the smallest of the first group has, of 40 turns.
        turns: Of the longest dialogue of the second group; the others have a twentieth and a two hundredth.
        utterances: How many the larger of the third group has; the smaller has a quarter.
        million: Whether that group also has a million.
    """
    made = [Case("dialogues", times * dialogues, 40, DIMS) for times in (1, 10, 100)]
    for parts in (200, 20, 1):
        made.append(Case("turns", parts, turns // parts, DIMS, batch_size=parts))
    made += [Case("width", n // 50, 50, WIDE) for n in (utterances // 4, utterances)]
    return made + ([Case("width", 20_000, 50, WIDE, epochs=1)] if million else [])


def write(case: Case, path: Path) -> None:
    """Write the corpus of a case, a dialogue at a time.

    Raises:
        InputError: If the disk has no room for it.
    """
    room = shutil.disk_usage(path.parent).free / 2**20
    if room < 1.1 * case.data:
        raise InputError(f"{path.parent}: {room:,.0f} MiB free of {1.1 * case.data:,.0f}; set TMPDIR to a larger disk")
    count, rng = case.everything, np.random.default_rng(0)
    ids = [f"d{i}" for i in range(count)]
    labels = rng.integers(len(IEMOCAP_LABELS), size=count * case.turns)
    about = {
        "dialogues": [(i, case.turns) for i in ids],
        "speakers": ["AB"[t % 2] for _ in ids for t in range(case.turns)],
        "sentences": [""] * len(labels),
        "utterances": [f"{t}" for _ in ids for t in range(case.turns)],
        "splits": {"train": ids[: case.dialogues], "test": ids[case.dialogues :]},
        "label_names": IEMOCAP_LABELS,
    }

    def rows(width: int) -> Iterator[np.ndarray]:
        for _ in ids:
            yield rng.standard_normal((case.turns, width), np.float32)

    stream_container(path, about, labels, {m: (d, rows(d)) for m, d in case.dims.items()}, finite=True)


# In the process that is measured --------------------------------------------------------------------------------------


def held() -> float:
    """MiB that this process holds beside what is mapped from files."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text(encoding="utf-8")).group(1)) / 1024


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """The most that `held` says meanwhile, as the one item of a list."""
    most, done = [held()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], held())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def measure(flags: Sequence[str], cpu_seconds: bool) -> dict[str, float]:
    """Train as the flags say. Returns seconds of the fastest epochs, and MiB: ``loaded`` and at ``most``."""
    if cpu_seconds:
        time.perf_counter = time.process_time  # by which train_IEMOCAP times its epochs
    settings = parse_args(flags).settings
    settings = settings.replace(run__device=utils.choose_device(settings.run.device))
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
        corpus = load_corpus(settings)
        loaded = held()
        with watched() as most:
            run_seed(settings, corpus, Path(temporary))
        stages = [pd.read_csv(Path(temporary) / name)["seconds"] for name in ("GAN_loss.csv", "history.csv")]
    return {"seconds": sum(float(each.min()) for each in stages), "loaded": loaded, "most": most[0]}


# Around it ------------------------------------------------------------------------------------------------------------


def in_a_process(case: Case, own: argparse.Namespace, folder: Path) -> dict[str, str | float]:
    """A row of the table."""
    path = folder / "features.safetensors"
    write(case, path)
    flags = ["--features", str(path), "--no-pictures", "--no-tensorboard", "--checkpoint-every", "1000", *own.flags]
    flags += ["--batch-size", str(case.batch_size), "--GAN-epochs", str(case.epochs), "--epochs", str(case.epochs)]
    argv = [sys.executable, __file__, "--measure", *(["--cpu-seconds"] if own.cpu_seconds else []), "--", *flags]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    path.unlink()
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
        raise TrainingError(f"{case.group}, {case.dialogues} dialogues of {case.turns} turns: {said[-1]}")
    figures = json.loads(ended.stdout.splitlines()[-1])
    return {
        "group": case.group,
        "dialogues": case.dialogues,
        "turns": case.turns,
        "features": sum(case.dims.values()),
        "data MiB": case.data,
        "ms an utterance": 1000 * figures["seconds"] / (case.dialogues * case.turns),
        "MiB above the data": figures["most"] - figures["loaded"],
        "MiB in all": figures["most"],
    }


def verdicts(rows: pd.DataFrame) -> list[str]:
    """What each group comes to, beside its target."""
    said = []
    for group, of_group in rows.groupby("group", sort=False):
        (smaller, larger), times = of_group.tail(2).to_dict("records"), of_group["ms an utterance"]
        if group != "width":
            worst = times.max() / times.min()
            said.append(f"{group}: the slowest utterance takes {worst:.2f} times the fastest ({TIME_TARGET} wanted)")
        if group == "turns":
            most = of_group["MiB above the data"]
            said.append(f"turns: memory above the data {most.min():.0f} to {most.max():.0f} MiB, at as many a batch")
        else:
            more, growth = (larger[name] - smaller[name] for name in ("data MiB", "MiB above the data"))
            said.append(
                f"{group}: the last {more:.0f} MiB more of data take {growth:.0f} MiB more of memory above them, "
                f"{growth / more:.3f} of that (at most {MEMORY_TARGET} wanted)"
            )
    million = rows[(rows["group"] == "width") & (rows["dialogues"] * rows["turns"] == 1_000_000)]
    if len(million):
        most = million["MiB in all"].max() / 1024
        said.append(f"a million utterances of 3,000 features: {most:.2f} GiB in all ({MILLION_TARGET} wanted)")
    return said


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Time and memory by size, a line a group."""
    from experiment import plots

    with plots.style():
        figure, axes = plots.plt.subplots(1, 2, figsize=(plots.PAGE, 2.6), layout="constrained")
        for ax, column in zip(axes, ("ms an utterance", "MiB above the data"), strict=True):
            for group, of_group in rows.groupby("group", sort=False):
                size = of_group["turns"] if group == "turns" else of_group["dialogues"] * of_group["turns"]
                label = "by turns of a dialogue" if group == "turns" else f"by utterances ({group})"
                ax.plot(size, of_group[column], label=label)
            ax.set(xscale="log", xlabel="turns or utterances", ylabel=column)
            ax.set_ylim(bottom=0)
        axes[0].legend()
        plots.save(figure, path)


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(description="Whether time and memory stay in proportion.", usage="%(prog)s [flags] [-- FLAG ...]")
    whole = flag_type(Number(int, 1, 10_000_000).parse)
    parser.add_argument("--dialogues", type=whole, metavar="N", default=30, help="of the smallest corpus")
    long = flag_type(Number(int, 200, 10_000_000).parse)
    parser.add_argument("--turns", type=long, metavar="N", default=20_000, help="of the longest dialogue")
    wide = flag_type(Number(int, 1000, 100_000_000).parse)
    parser.add_argument("--utterances", type=wide, metavar="N", default=20_000, help="of 3,000 features")
    parser.add_argument("--million", action="store_true", help="also 1,000,000 utterances of 3,000 features: 13 GB")
    common.add_cpu_seconds(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write scale.csv, scale.md and scale.png there")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="more flags for train_IEMOCAP.py")
    return parser


def run(own: argparse.Namespace) -> None:
    """Measure every case, print and write what it comes to."""
    if own.measure:
        print(json.dumps(measure(own.flags, own.cpu_seconds)))
        return
    if not STATUS.exists() or "RssAnon" not in STATUS.read_text(encoding="utf-8"):
        raise InputError("scale.py: this system does not say what a process holds (/proc/self/status); run it on Linux")
    if own.out:
        common.make_folder(own.out)
    rows: list[dict[str, str | float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(own.dialogues, own.turns, own.utterances, own.million):
            rows.append(in_a_process(case, own, Path(folder)))
            print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    frame = pd.DataFrame(rows)
    digits = {"data MiB": 0, "ms an utterance": 3, "MiB above the data": 0, "MiB in all": 0}
    shown = frame.assign(**{name: frame[name].map(f"{{:.{n}f}}".format) for name, n in digits.items()})
    text = common.markdown(shown) + "\n" + "\n".join(f"* {line}" for line in verdicts(frame)) + "\n"
    print(f"\n{text}")
    if own.out:
        write_csv(own.out / "scale.csv", frame)
        common.write_text(own.out / "scale.md", text)
        draw(frame, own.out / "scale.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    own = build_parser().parse_args(argv)
    return common.ending(lambda: run(own))


if __name__ == "__main__":
    sys.exit(main())
