"""Floating-point operations of an epoch of each stage, and how many a second this machine multiplies matrices at.

    python benchmarks/flops.py --demo

Prints JSON: ``stage 1`` and ``stage 2`` (operations an epoch, by `torch.utils.flop_counter`, which counts matrix
products and no other operation), ``peak`` (operations a second of a product of two float32 matrices of 2,048 rows and
columns, the best of ten) and ``utterances`` (of the training split). `speed.py` asks for these.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common  # first: it finds the project's modules
import torch
from torch.utils.flop_counter import FlopCounterMode

import utils
from dataloader import hold_out_validation
from experiment.corpus import load_corpus
from experiment.flags import parse_args
from experiment.run import Run
from experiment.trained import build_network, shape_of
from train_IEMOCAP import train_adversarial_fusion, train_classifier

SIZE, TIMES = 2048, 10


class NoModules(contextlib.nullcontext):
    """In the place of the counter's own tracker of modules, which cannot follow the gradient of a gradient."""

    parents = frozenset({"Global"})


class Counted(Run):
    """A run that counts the operations of each stage's last epoch, not what the stage does once around its epochs."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.operations = {"stage 1": 0, "stage 2": 0}

    def epochs(self, title: str, done: int, epochs: int) -> Iterator[int]:
        """Those still to do."""
        for epoch in super().epochs(title, done, epochs):
            with counter() as counted:
                yield epoch
            self.operations[title] = counted.get_total_flops()


def counter() -> FlopCounterMode:
    """Counts all operations, of no module in particular."""
    made = FlopCounterMode(display=False)
    made.mod_tracker = NoModules()
    return made


def peak(device: str) -> float:
    """Operations a second of matrix products."""
    one, other = torch.randn(2, SIZE, SIZE, device=device)
    seconds = []
    for _ in range(TIMES):
        started = time.perf_counter()
        torch.mm(one, other)[0, 0].item()  # which waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(seconds)


def count(flags: Sequence[str]) -> dict[str, float]:
    """The figures, of a run with these flags of ``train_IEMOCAP.py``.

    Raises:
        InputError: If there is no such run.
    """
    settings = parse_args(flags).settings
    device = utils.choose_device(settings.run.device)
    epochs = min(1, settings.fusion.epochs)  # without stage 1 generators learn more in stage 2
    settings = settings.replace(fusion__epochs=epochs, classifier__epochs=1, run__device="cpu")
    corpus = hold_out_validation(load_corpus(settings), settings.data.valid, settings.run.seed)
    data = common.standardised(corpus)
    torch.manual_seed(0)
    network = build_network(shape_of(corpus), settings.fusion, settings.classifier)
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        run = Counted(Path(directory), tensorboard=False, checkpoint_every=2)
        train_adversarial_fusion(network.fusion, data["train"], run, settings)
        train_classifier(network, data, run, settings)
    return {
        **run.operations,
        "peak": peak(device),
        "utterances": sum(len(d.labels) for d in data["train"]),
    }


def show(flags: Sequence[str]) -> None:
    """Print the figures, and nothing else, on standard output."""
    with contextlib.redirect_stdout(sys.stderr):
        figures = count(flags)
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(common.ending(lambda: show(sys.argv[1:])))
