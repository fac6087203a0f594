"""What a run says while it goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

import files
from files import complain, printable

tqdm.set_lock(threading.RLock())  # its own has a semaphore, of which Python complains once the process is killed
EVERY = 30.0  # seconds between two lines where there is no terminal
NOTHING_HELD_OUT = (
    "\nNothing held out is watched while it trains: the curves are of the training dialogues themselves. --valid 0.1 "
    "holds some out."
)


def say(text: str) -> None:
    """Print to standard output at once, line breaks kept and all else made safe to show; if it cannot be, go on.

    A run whose reader left (``| head -1``) or whose disk is full has written its files before it speaks.
    """
    global lost
    try:
        files.say("\n".join(printable(line, None) for line in text.split("\n")))
    except ValueError as error:  # a WriteError, or a stream that is closed
        if not lost:
            lost = str(error)
            complain(f"warning: {error}; the files of the run are whole")


def announce(corpus: Any, network: Any, device: str, directory: Path) -> None:
    """Say in a line what is about to be trained, on what and into which directory."""
    dialogues = ", ".join(f"{len(ids)} {split}" for split, ids in corpus.splits.items())
    features = ", ".join(f"{m} {d}" for m, d in corpus.dims.items())
    parameters = sum(p.numel() for p in network.parameters())
    if corpus.most_speakers > corpus.num_speakers:
        say(
            f"up to {corpus.most_speakers} speakers in a dialogue: those from the {corpus.num_speakers}th on count as "
            "one, and share their edge types"
        )
    say(
        f"{Path(corpus.name).name}: dialogues {dialogues}; features {features}; {parameters:,} parameters on {device}; "
        f"into {directory}{'' if 'valid' in corpus.splits else NOTHING_HELD_OUT}"
    )


lost = ""  # why standard output could not be written


def leave(status: int) -> NoReturn:
    """End the process: quietly, and with status 1 where all went well but what was said is lost."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    say("")
    sys.exit(status or int(bool(lost)))


class Progress:
    """The epochs of a stage as they are done.

    Args:
        title: Of the stage.
        done: Epochs done in an earlier sitting.
        epochs: All of them.
    """

    def __init__(self, title: str, done: int, epochs: int):
        self.title, self.done, self.epochs = title, done, epochs
        self.started = self.spoke = time.monotonic()
        self.bar = tqdm(desc=title, initial=done, total=epochs, unit="epoch", disable=not _terminal(sys.stderr))

    def __iter__(self) -> Iterator[int]:
        """The numbers of the epochs still to do, from 1."""
        try:
            yield from range(self.done + 1, self.epochs + 1)
        finally:
            with suppress(OSError):
                self.bar.close()

    def show(self, row: Mapping[str, float]) -> None:
        """Say what an epoch came to: its losses and, where it was scored, its weighted F1."""
        figures = {
            name.removesuffix("_weighted_f1") + " F1" if name.endswith("_f1") else name.replace("_", " "): value
            for name, value in row.items()
            if name.endswith(("_loss", "_weighted_f1"))
        }
        if not self.bar.disable:
            with suppress(OSError):  # of a terminal that was closed
                self.bar.set_postfix({name: f"{value:.2f}" for name, value in figures.items()}, refresh=False)
                self.bar.update()
            return
        epoch, now = int(row["epoch"]), time.monotonic()
        if now - self.spoke >= EVERY or epoch == self.epochs:
            left = (now - self.started) / (epoch - self.done) * (self.epochs - epoch)
            said = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
            say(f"{self.title}, epoch {epoch} of {self.epochs}: {said}; {left:.0f} s left")
            self.spoke = now


def _terminal(stream: object) -> bool:
    return stream is not None and stream.isatty()
