"""The reference's method beside ours on the same data: seconds an epoch, time to a report, weighted F1.

    python benchmarks/reference.py --demo --epochs 1 --batches 1
    python benchmarks/reference.py --features IEMOCAP_features/IEMOCAP_features.pkl
    python benchmarks/reference.py --features FILE --GAN-epochs 5 --epochs 40 --defects padding,min-max,test-loss

Written by us from a description of https://github.com/Jing-yilin/GAN-FFN, none of whose code is here. Its whole job,
150 epochs of stage 1 and 160 of stage 2, takes hours. It is kept in ``--out``: the same command goes on where it was
stopped, and trains nothing again that is finished. ``--epochs`` and ``--GAN-epochs`` bound it, and ``--batches`` an
epoch: then the time of the whole is extrapolated from the median epoch of each stage, that of an epoch from its
batches, and the F1 is that of a job cut short; all are labelled so.

A generator a modality, 8 transformer layers at the modality's own width with 2048 feed-forward units, then
max(512, 2 * width), then 100. A discriminator a modality, 8 layers at width 100, then 64, 16, 1; real features of
another width pass a learned map to 100 first. Attention has as many heads as the largest number up to 10 that divides
the width, which is the reference's 10 at 100 and 8 at 512, and 1 at 11. For every ordered pair of modalities and every
batch of 32 one step of the discriminator, then one of the generator: twelve for three modalities, four for two. The
head sums the fused features and is one linear layer; generators and head learn together. All training dialogues are
learnt from; the reference leaves a tenth unused.

``--defects`` brings back what is wrong in it, none by default: ``padding`` (padded places are attended to, and count in
the adversarial loss), ``min-max`` (features scaled within each dialogue; here a constant one becomes 0, there NaN),
``test-loss`` (the epoch of the lowest loss on test is reported).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise, permutations
from pathlib import Path

import common
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import utils
from dataloader import Batch, Corpus, Dialogue, batches, class_weights
from experiment.evaluation import evaluate
from experiment.flags import Parser, flag_type
from experiment.run import Run
from experiment.run_directory import locked, write_json
from experiment.settings import Number, Settings, read_json
from files import InputError, InterruptedRunError
from model import sinusoids
from train_IEMOCAP import run_seed
from utils import finite

WIDTH = 100  # of fused features
LAYERS = 8
DROPOUT = 0.2
BATCH_SIZE = 32
EPOCHS = {"stage 1": 150, "stage 2": 160}
LR = 1e-4  # of generators, and of stage 2; discriminators learn at half of it
BETAS = (0.5, 0.6)  # of Adam in stage 1
L2 = 0.008  # in stage 2
DEFECTS = ("padding", "min-max", "test-loss")
CHECKPOINT_EVERY = 5  # epochs; half a gigabyte each
clock = time.perf_counter  # or with --cpu-seconds the processor's


class Encoder(nn.Module):
    """Eight transformer layers over a dialogue, with sinusoids for the places, and GELU behind.

    Shapes:
        x, result: ``[B, T, channels]``; mask: ``[B, T]``, which utterances are attended to.
    """

    def __init__(self, channels: int):
        super().__init__()
        heads = max(n for n in range(1, 11) if channels % n == 0)
        layer = nn.TransformerEncoderLayer(channels, heads, batch_first=True)  # 2048 units, dropout 0.1
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """What is made of the dialogue; see the class."""
        x = x + sinusoids(x.shape[1], x.shape[2], x.device)
        return F.gelu(self.layers(x, src_key_padding_mask=None if mask.all() else ~mask))


def feed_forward(*widths: int) -> nn.Sequential:
    """Linear layers, each with dropout and GELU behind."""
    return nn.Sequential(
        *(part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Dropout(DROPOUT), nn.GELU()))
    )


class Generator(nn.Module):
    """One modality's features ``[B, T, channels]`` to fused ones ``[B, T, WIDTH]``."""

    def __init__(self, channels: int):
        super().__init__()
        self.encoder = Encoder(channels)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = feed_forward(channels, max(512, 2 * channels), WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Fused features; see the class."""
        return self.layers(self.dropout(self.encoder(x, mask)))


class Discriminator(nn.Module):
    """Real features of one modality, or fused ones of another, to a logit each ``[B, T]``, high for real."""

    def __init__(self, channels: int):
        super().__init__()
        self.bring = nn.Identity() if channels == WIDTH else nn.Linear(channels, WIDTH)
        self.encoder = Encoder(WIDTH)
        self.layers = feed_forward(WIDTH, 64, 16)
        self.last = nn.Sequential(nn.Linear(16, 1), nn.Dropout(DROPOUT))

    def forward(self, fused: Tensor, mask: Tensor) -> Tensor:
        """Logits; see the class."""
        return self.last(self.layers(self.encoder(fused, mask))).squeeze(-1)


class Reference(nn.Module):
    """The generators, and the head that sums what they make: logits ``[B, T, num_classes]``.

    Args:
        corpus: For its widths and classes.
        padding: Whether padded places are taken for utterances.
    """

    def __init__(self, corpus: Corpus, padding: bool):
        super().__init__()
        self.padding = padding
        self.generators = nn.ModuleDict({m: Generator(d) for m, d in corpus.dims.items()})
        self.classify = nn.Linear(WIDTH, corpus.num_classes)

    def forward(self, batch: Batch) -> Tensor:
        """Logits; see the class."""
        seen = self.seen(batch)
        return self.classify(sum(g(batch.features[m], seen) for m, g in self.generators.items()))

    def seen(self, batch: Batch) -> Tensor:
        """The places that are taken for utterances, ``[B, T]``."""
        return torch.ones_like(batch.mask) if self.padding else batch.mask


def adversarial_update(
    network: Reference,
    discriminators: nn.ModuleDict,
    optimizers: dict[nn.Module, torch.optim.Optimizer],
    batch: Batch,
    pair: tuple[str, str],
    where: str,
) -> tuple[float, float]:
    """One step of the discriminator of modality k against generator m, then one of the generator.

    Returns:
        The losses of both, in nats.
    """
    m, k = pair
    generator, discriminator, seen = network.generators[m], discriminators[k], network.seen(batch)

    discriminator.train()
    generator.eval()
    with torch.no_grad():
        fused = generator(batch.features[m], seen)
    on_real = discriminator(discriminator.bring(batch.features[k]), seen)[seen]
    on_fake = discriminator(fused, seen)[seen]
    d_loss = (F.softplus(-on_real).mean() + F.softplus(on_fake).mean()) / 2  # binary cross entropy of the logits
    optimizers[discriminator].zero_grad()
    finite(d_loss, where).backward()
    optimizers[discriminator].step()

    generator.train()
    discriminator.eval()
    g_loss = F.softplus(-discriminator(generator(batch.features[m], seen), seen)[seen]).mean()
    optimizers[generator].zero_grad()
    finite(g_loss, where).backward()
    optimizers[generator].step()
    return d_loss.item(), g_loss.item()


@dataclass(frozen=True)
class Bounds:
    """How much of the job is done: epochs of each stage, and batches an epoch."""

    stage_1: int = EPOCHS["stage 1"]
    stage_2: int = EPOCHS["stage 2"]
    batches: int | None = None

    def some(self, loader: DataLoader) -> tuple[Iterator[Batch], float]:
        """An epoch's batches, and how many times as many a whole one has."""
        return islice(loader, self.batches), len(loader) / min(len(loader), self.batches or len(loader))


def stage_1(
    network: Reference,
    discriminators: nn.ModuleDict,
    dialogues: Sequence[Dialogue],
    bounds: Bounds,
    settings: Settings,
    run: Run,
) -> None:
    """Train the generators against discriminators."""
    device = settings.run.device
    shuffle = torch.Generator().manual_seed(settings.run.seed)
    loader = batches(dialogues, BATCH_SIZE, shuffle)
    optimizers, parts = {}, {"network": network, "discriminators": discriminators, "shuffle": shuffle}
    for kind, networks, lr in (("generator", network.generators, LR), ("discriminator", discriminators, LR / 2)):
        for m, each in networks.items():
            faster = 1.1 if m == "text" and kind == "generator" else 1.0
            optimizers[each] = torch.optim.Adam(each.parameters(), lr=faster * lr, betas=BETAS, fused=True)
            parts[f"optimizer of the {kind} of {m}"] = optimizers[each]
    done = run.restore("adversarial", parts)
    for epoch in run.epochs("reference, stage 1", done, bounds.stage_1):
        some, share = bounds.some(loader)
        where, started = f"epoch {epoch} of stage 1", clock()
        losses = []
        for batch in some:
            batch = batch.to(device)
            for pair in permutations(network.generators, 2):
                losses.append(adversarial_update(network, discriminators, optimizers, batch, pair, where))
            run.stop_here(where)
        seconds = share * (clock() - started)
        d_loss, g_loss = np.mean(losses, axis=0)
        run.log("adversarial", {"epoch": epoch, "D_loss": d_loss, "G_loss": g_loss, "seconds": seconds})
        run.save("adversarial", epoch, parts)


def stage_2(
    network: Reference,
    data: dict[str, list[Dialogue]],
    bounds: Bounds,
    settings: Settings,
    on_test_loss: bool,
    run: Run,
) -> None:
    """Train generators and head on the labels; score on test after the last epoch or, on its loss, after each."""
    device, classes = settings.run.device, network.classify.out_features
    shuffle = torch.Generator().manual_seed(settings.run.seed)
    loader = batches(data["train"], BATCH_SIZE, shuffle)
    weight = class_weights(data["train"], classes).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, weight_decay=L2, fused=True)
    parts = {"network": network, "optimizer": optimizer, "shuffle": shuffle}
    done = run.restore("classifier", parts)
    for epoch in run.epochs("reference, stage 2", done, bounds.stage_2):
        some, share = bounds.some(loader)
        where, started = f"epoch {epoch} of stage 2", clock()
        network.train()
        losses = []
        for batch in some:
            batch = batch.to(device)
            loss = F.cross_entropy(network(batch)[batch.labelled], batch.labels[batch.labelled], weight)
            optimizer.zero_grad()
            finite(loss, where).backward()
            optimizer.step()
            losses.append(loss.item())
            run.stop_here(where)
        row = {"epoch": epoch, "train_loss": float(np.mean(losses)), "seconds": share * (clock() - started)}
        if on_test_loss or epoch == bounds.stage_2:
            scored = utils.labelled(*evaluate(network, data["test"]))
            row |= {"test_loss": float(utils.loss(*scored)), "test_weighted_f1": float(utils.weighted_f1(*scored))}
        run.log("classifier", row)
        run.save("classifier", epoch, parts)


def scaled_within(dialogue: Dialogue) -> Dialogue:
    """The dialogue with each feature between 0 and 1 over its utterances, those ahead included."""
    features = {}
    for m, x in dialogue.features.items():
        low, high = np.nanmin(x, axis=0), np.nanmax(x, axis=0)
        features[m] = ((x - low) / np.where(high > low, high - low, 1)).astype(np.float32)
    return replace(dialogue, features=features)


@dataclass(frozen=True)
class Result:
    """What a job came to: ``seconds`` of each epoch by stage, and ``batches`` an epoch if not all were done."""

    weighted_f1: float
    parameters: int
    seconds: dict[str, list[float]]
    batches: int | None = None

    def whole(self) -> float:
        """Seconds of the whole job, from the median epoch of each stage unless all were done."""
        return sum(sum(s) if len(s) == EPOCHS[stage] else EPOCHS[stage] * np.median(s) for stage, s in self.epochs())

    def epochs(self) -> list[tuple[str, list[float]]]:
        """The stages that there were."""
        return [(stage, s) for stage, s in self.seconds.items() if s]

    @property
    def cut_short(self) -> bool:
        """Whether less was done than the job has."""
        return bool(self.batches) or any(len(s) < EPOCHS[stage] for stage, s in self.epochs())


def run_reference(
    corpus: Corpus, settings: Settings, bounds: Bounds, defects: Sequence[str], directory: Path
) -> Result:
    """The reference's job for one seed, or what is left of it.

    Args:
        corpus: The data.
        settings: For the seed and the device.
        bounds: How much of the job is to be done.
        defects: Some of `DEFECTS`.
        directory: Where the job is kept.

    Raises:
        InputError: If another job is kept there.
        InterruptedRunError: If it was stopped.
    """
    asked = {**common.data_of(settings, corpus), "defects": sorted(defects), **asdict(bounds)}
    asked |= {"device": settings.run.device, "clock": clock.__name__}
    with locked(directory):
        job, finished = directory / "job.json", directory / "result.json"
        if job.exists() and any(asked[key] != x for key, x in read_json(job).items()):
            raise InputError(f"{job}: of other data, defects, bounds, device or clock; choose another --out")
        if finished.exists():
            return Result(**read_json(finished))
        write_json(job, asked)
        torch.manual_seed(settings.run.seed)
        data = common.standardised(corpus)
        if "min-max" in defects:
            data = {split: [scaled_within(d) for d in corpus.split(split)] for split in corpus.splits}
        network = Reference(corpus, "padding" in defects).to(settings.run.device)
        discriminators = nn.ModuleDict({k: Discriminator(d) for k, d in corpus.dims.items()}).to(settings.run.device)
        parameters = sum(p.numel() for each in (network, discriminators) for p in each.parameters())
        run = Run(directory, network, tensorboard=False, checkpoint_every=CHECKPOINT_EVERY)
        with run.stoppable():
            if len(corpus.dims) > 1 and not run.reached("classifier"):
                stage_1(network, discriminators, data["train"], bounds, settings, run)
            stage_2(network, data, bounds, settings, "test-loss" in defects, run)
        seconds = {
            name: [row["seconds"] for row in run.history[stage]]
            for name, stage in (("stage 1", "adversarial"), ("stage 2", "classifier"))
        }
        result = Result(weighted_f1(run.history["classifier"]), parameters, seconds, bounds.batches)
        write_json(finished, asdict(result))
        for state in (run.last, run.previous):
            state.unlink(missing_ok=True)
        return result


def weighted_f1(history: Sequence[Mapping[str, float]]) -> float:
    """That of the last epoch or, as the reference has it, of the one of the lowest loss on test, where each has one."""
    return min((row for row in history if "test_loss" in row), key=lambda row: row["test_loss"])["test_weighted_f1"]


def run_default(corpus: Corpus, settings: Settings) -> tuple[float, int, float]:
    """Weighted F1, parameters and seconds to the report of our job for one seed, pictures and checkpoints included."""
    started = clock()
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        figures = run_seed(settings, corpus, Path(directory))
    if "interrupted" in figures:
        raise KeyboardInterrupt
    return figures["test"]["weighted_f1"], figures["parameters"], clock() - started


def build_parser() -> Parser:
    """All flags."""
    parser = common.make_parser("The reference's method beside ours.", (*common.DATA, "--device"))
    common.add_seeds(parser, "0")
    whole = flag_type(Number(int, 1, 100_000).parse)
    parser.add_argument("--epochs", type=whole, metavar="N", help="at most so many of each stage (default: all)")
    parser.add_argument("--GAN-epochs", type=whole, metavar="N", help="at most so many of stage 1 (default: --epochs)")
    parser.add_argument("--batches", type=whole, metavar="N", help="at most so many an epoch (default: all)")
    common.add_cpu_seconds(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/reference"), help="where the job is kept")
    parser.add_argument("--defects", type=flag_type(defects), metavar="LIST", default="", help=", ".join(DEFECTS))
    return parser


def defects(text: str) -> tuple[str, ...]:
    """Some of `DEFECTS`, with commas between."""
    chosen = tuple(name for name in text.split(",") if name)
    if unknown := [name for name in chosen if name not in DEFECTS]:
        raise ValueError(f"no defect {unknown[0]!r:.40}; choose among {', '.join(DEFECTS)}")
    return chosen


def report(ours: Sequence[tuple[float, int, float]], theirs: Sequence[Result]) -> str:
    """The table, and what it comes to in a sentence."""
    f1, parameters, seconds = zip(*ours, strict=True)
    their_f1, whole = [r.weighted_f1 for r in theirs], float(np.mean([r.whole() for r in theirs]))
    cut = theirs[0].cut_short
    lines = [
        {
            "method": "reference",
            "weighted F1": f"{common.mean_and_deviation(their_f1)}{' (cut short)' if cut else ''}",
            "seconds an epoch": ", ".join(f"{stage} {np.median(s):.2f}" for stage, s in theirs[0].epochs()),
            "epochs done": ", ".join(f"{len(s)} of {EPOCHS[stage]}" for stage, s in theirs[0].epochs())
            + (f", at most {theirs[0].batches} batches each" if theirs[0].batches else ""),
            "seconds to a report": f"{whole:.0f}{' (extrapolated)' if cut else ''}",
            "parameters": f"{theirs[0].parameters:,}",
        },
        {
            "method": "GAN-FFN",
            "weighted F1": common.mean_and_deviation(f1),
            "seconds to a report": f"{np.mean(seconds):.0f}",
            "parameters": f"{parameters[0]:,}",
        },
    ]
    said = f"{whole / np.mean(seconds):.0f} times faster to a report, {np.mean(f1) - np.mean(their_f1):+.2f} points"
    how = " (the reference's time is extrapolated, and its score that of a job cut short)" if cut else ""
    return f"{common.markdown(pd.DataFrame(lines))}\n{said}{how}.\n"


def run(settings: Settings, own: argparse.Namespace) -> None:
    """Train both for every seed and print what they come to."""
    global clock
    clock = time.process_time if own.cpu_seconds else time.perf_counter
    settings, corpus = common.prepare(settings)
    bounds = Bounds(
        min(EPOCHS["stage 1"], own.GAN_epochs or own.epochs or EPOCHS["stage 1"]),
        min(EPOCHS["stage 2"], own.epochs or EPOCHS["stage 2"]),
        own.batches,
    )
    common.make_folder(own.out)
    ours, theirs = [], []
    for seed in own.seeds:
        of_run = settings.replace(run__seed=seed)
        ours.append(run_default(corpus, of_run))
        print(f"GAN-FFN, seed {seed}: {ours[-1][0]:.2f} in {ours[-1][2]:.0f} s", flush=True)
        try:
            theirs.append(run_reference(corpus, of_run, bounds, own.defects, own.out / f"seed{seed}"))
        except InterruptedRunError as stop:
            raise KeyboardInterrupt(f"Stopped at {stop}. The same command goes on.") from None
        print(f"reference, seed {seed}: {theirs[-1].weighted_f1:.2f}", flush=True)
    kind = "CPU seconds of all threads" if own.cpu_seconds else "seconds by the clock"
    print(f"\n{report(ours, theirs)}All are {kind}, {torch.get_num_threads()} threads on {settings.run.device}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    settings, own = common.parse(build_parser(), argv)
    return common.ending(lambda: run(settings, own))


if __name__ == "__main__":
    sys.exit(main())
