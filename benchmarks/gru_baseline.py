"""The floor that GAN-FFN must beat: a plain bidirectional GRU on concatenated features and who speaks.

    python benchmarks/gru_baseline.py --features IEMOCAP_features/IEMOCAP_features.pkl --seeds 0,1,2
    python benchmarks/gru_baseline.py --demo

Splits, folds, standardisation, batches, optimizer and scores are those of ``train_IEMOCAP.py``, and so is the epoch
whose weights are scored on test: the one that validation chooses, or with ``--valid 0`` the last.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import common
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch_geometric import seed_everything

from dataloader import Batch, Corpus, Dialogue, batches, cross_validation, hold_out_validation
from experiment.console import Progress
from experiment.flags import Parser, flag_type
from experiment.run_directory import write_json
from experiment.settings import PROBABILITY, Number, Settings
from model import LABEL_SMOOTHING
from train_IEMOCAP import CLIP_GRADIENT
from utils import finite


class GRUBaseline(nn.Module):
    """Features of all modalities and a one-hot speaker, through a bidirectional GRU, to the emotion.

    Shapes:
        result: logits ``[B, T, num_classes]``; what stands where padded means nothing.

    Args:
        in_channels: Width of the concatenated features.
        num_classes: How many emotions.
        num_speakers: Length of the one-hot vector.
        hidden: Width of the GRU, a direction.
        layers: Of the GRU.
        dropout: Between the layers and before the classifier.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_speakers: int,
        hidden: int = 128,
        layers: int = 2,
        dropout: float = 0.4,
    ):
        super().__init__()
        self.num_speakers = num_speakers
        self.gru = nn.GRU(
            in_channels + num_speakers,
            hidden,
            num_layers=layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden, num_classes))

    def forward(self, batch: Batch) -> Tensor:
        """Logits; see the class."""
        speakers = F.one_hot(batch.speakers, self.num_speakers).float()
        x = torch.cat([*batch.features.values(), speakers], dim=-1)
        packed = pack_padded_sequence(x, batch.mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=batch.mask.shape[1])
        return self.classify(states)


@dataclass(frozen=True)
class Size:
    """Of the network.

    Attributes:
        hidden: Width of the GRU, a direction.
        layers: Of the GRU.
        dropout: Between the layers and before the classifier.
    """

    hidden: int = 128
    layers: int = 2
    dropout: float = 0.4


@dataclass(frozen=True)
class Result:
    """What one seed came to: the epoch whose weights were kept, weighted F1 on test in percent, and seconds.

    Over folds, F1 is their mean and seconds are their sum.
    """

    seed: int
    epochs: tuple[int, ...]
    weighted_f1: float
    seconds: float


def run_seed(settings: Settings, corpora: Sequence[Corpus], size: Size, seed: int) -> Result:
    """Train and score the baseline for one seed, on each fold or on the one corpus there is."""
    started = time.perf_counter()
    epochs, scores = [], []
    for part in corpora:
        seed_everything(seed)
        corpus = hold_out_validation(part, settings.data.valid, seed)
        data = common.standardised(corpus)
        network = GRUBaseline(sum(corpus.dims.values()), corpus.num_classes, corpus.num_speakers, **asdict(size)).to(
            settings.run.device
        )
        epochs.append(train(network, data, settings, seed))
        scores.append(common.weighted_f1(network, data["test"]))
    return Result(seed, tuple(epochs), float(np.mean(scores)), time.perf_counter() - started)


def train(network: GRUBaseline, data: Mapping[str, Sequence[Dialogue]], settings: Settings, seed: int) -> int:
    """Train to the last epoch, and go back to the best one on the validation split where there is one.

    Returns:
        The epoch whose weights the network has.
    """
    flags = settings.classifier
    loader = batches(data["train"], settings.run.batch_size, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(network.parameters(), lr=flags.lr, weight_decay=flags.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, flags.lr, total_steps=flags.epochs * len(loader))
    best, best_epoch, best_weights = -1.0, flags.epochs, None
    progress = Progress(f"seed {seed}", 0, flags.epochs)
    for epoch in progress:
        network.train()
        for step, batch in enumerate(loader, 1):
            batch = batch.to(settings.run.device)
            loss = F.cross_entropy(
                network(batch)[batch.mask], batch.labels[batch.mask], label_smoothing=LABEL_SMOOTHING
            )
            optimizer.zero_grad()
            finite(loss, f"seed {seed}, epoch {epoch}, step {step}").backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP_GRADIENT)
            optimizer.step()
            schedule.step()
        figures = {"epoch": epoch, "train_loss": loss.item()}
        if "valid" in data:
            figures["valid_weighted_f1"] = common.weighted_f1(network, data["valid"])
            if figures["valid_weighted_f1"] > best:
                best, best_epoch = figures["valid_weighted_f1"], epoch
                best_weights = copy.deepcopy(network.state_dict())
        progress.show(figures)
    if best_weights:
        network.load_state_dict(best_weights)
    return best_epoch


def table(results: Sequence[Result]) -> str:
    """A Markdown table: a row a seed, then mean ± standard deviation (n - 1)."""
    rows = [(r.seed, ", ".join(map(str, r.epochs)), f"{r.weighted_f1:.2f}", f"{r.seconds:.0f}") for r in results]
    mean = common.mean_and_deviation([r.weighted_f1 for r in results])
    columns = ["seed", "epoch kept", "test weighted F1", "seconds"]
    return common.markdown(pd.DataFrame([*rows, ("mean ± sd", "", mean, "")], columns=columns))


def build_parser() -> Parser:
    """All flags."""
    flags = (*common.DATA, "--valid", "--epochs", "--batch-size", "--weight-decay", "--device")
    parser = common.make_parser("The floor that GAN-FFN must beat: a plain GRU.", flags)
    common.add_seeds(parser, "0,1,2")
    common.add_folds(parser)
    rate = flag_type(Number(float, 0, 1e3, above=True).parse)
    parser.add_argument("--lr", type=rate, default=1e-3, help="peak learning rate of the one-cycle schedule")
    whole = flag_type(Number(int, 1, 10_000).parse)
    parser.add_argument("--hidden", type=whole, metavar="D", default=Size.hidden, help="width of a direction")
    parser.add_argument("--layers", type=whole, metavar="N", default=Size.layers, help="of the GRU")
    probability = flag_type(PROBABILITY.parse)
    parser.add_argument("--dropout", type=probability, metavar="P", default=Size.dropout, help="dropout probability")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every seed's figures there too")
    parser.add_argument("--no-cuda", action="store_true", help="the CPU, whatever there is")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    settings, own = common.parse(build_parser(), argv)
    settings = settings.replace(classifier__lr=own.lr)
    if own.no_cuda:
        settings = settings.replace(run__device="cpu")
    results: list[Result] = []
    status = common.ending(lambda: run(settings, own, results))
    if results:
        print(f"\n{table(results)}")
    return status


def run(settings: Settings, own: argparse.Namespace, results: list[Result]) -> None:
    """Train and score the baseline for every seed, on the data and the folds that the flags name."""
    settings, corpus = common.prepare(settings)
    parts = cross_validation(corpus, own.folds, own.folds_over) if own.folds else {"": corpus}
    for seed in own.seeds:
        results.append(run_seed(settings, list(parts.values()), Size(own.hidden, own.layers, own.dropout), seed))
        print(f"Seed {seed}: test weighted F1 {results[-1].weighted_f1:.2f}", flush=True)
    if own.json:
        write_json(own.json, {result.seed: asdict(result) for result in results})


if __name__ == "__main__":
    sys.exit(main())
