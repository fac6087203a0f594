"""The floor that GAN-FFN must beat: a plain bidirectional GRU on concatenated features and who speaks.

    python benchmarks/gru_baseline.py --features IEMOCAP_features/IEMOCAP_features.pkl --seeds 0,1,2
    python benchmarks/gru_baseline.py --demo

Splits, folds, standardisation, batches, optimisation and scores are those of ``train_IEMOCAP.py``, and so is the epoch
whose weights are scored on test: the one that validation chooses, or with ``--valid 0`` the last.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch_geometric import seed_everything

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils
from dataloader import Batch, Corpus, Dialogue, Standardiser, batches, cross_validation, hold_out_validation
from files import InputError, TrainingError
from train_IEMOCAP import (
    CLIP_GRADIENT,
    LABEL_SMOOTHING,
    HelpFormatter,
    Parser,
    choose_device,
    evaluate,
    finite,
    fold_choice,
    load_corpus,
    modality_list,
    number,
    progress,
    seed_list,
)


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
class Result:
    """What one seed came to: the epoch whose weights were kept, weighted F1 on test in percent, and seconds.

    Over folds, F1 is their mean and seconds are their sum.
    """

    seed: int
    epochs: tuple[int, ...]
    weighted_f1: float
    seconds: float


def run_seeds(args: argparse.Namespace) -> Iterator[Result]:
    """Train and score the baseline for every seed, on the data and the folds that the flags name."""
    corpus = load_corpus(args)
    folds = cross_validation(corpus, args.folds, args.folds_over) if args.folds else {"": corpus}
    for seed in args.seeds:
        yield run_seed(args, list(folds.values()), seed)


def run_seed(args: argparse.Namespace, corpora: Sequence[Corpus], seed: int) -> Result:
    """Train and score the baseline for one seed, on each fold or on the one corpus there is."""
    started = time.perf_counter()
    epochs, scores = [], []
    for part in corpora:
        seed_everything(seed)
        corpus = hold_out_validation(part, args.valid, seed)
        standardise = Standardiser.fit(corpus.split("train"))
        data = {split: [standardise(d) for d in corpus.split(split)] for split in corpus.splits}
        network = GRUBaseline(
            sum(corpus.dims.values()), corpus.num_classes, corpus.num_speakers, args.hidden, args.layers, args.dropout
        ).to(args.device)
        epochs.append(train(network, data, args, seed))
        scores.append(weighted_f1(network, data["test"], args))
    return Result(seed, tuple(epochs), float(np.mean(scores)), time.perf_counter() - started)


def train(network: GRUBaseline, data: Mapping[str, Sequence[Dialogue]], args: argparse.Namespace, seed: int) -> int:
    """Train to the last epoch, and go back to the best one on the validation split where there is one.

    Returns:
        The epoch whose weights the network has.
    """
    loader = batches(data["train"], args.batch_size, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=args.l2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(loader))
    best, best_epoch, best_weights = -1.0, args.epochs, None
    for epoch in progress(f"seed {seed}", 0, args.epochs):
        network.train()
        for step, batch in enumerate(loader, 1):
            batch = batch.to(args.device)
            loss = F.cross_entropy(
                network(batch)[batch.mask], batch.labels[batch.mask], label_smoothing=LABEL_SMOOTHING
            )
            optimizer.zero_grad()
            finite(loss, f"seed {seed}, epoch {epoch}, step {step}").backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP_GRADIENT)
            optimizer.step()
            schedule.step()
        if "valid" in data and (valid := weighted_f1(network, data["valid"], args)) > best:
            best, best_epoch, best_weights = valid, epoch, copy.deepcopy(network.state_dict())
    if best_weights:
        network.load_state_dict(best_weights)
    return best_epoch


def weighted_f1(network: GRUBaseline, dialogues: Sequence[Dialogue], args: argparse.Namespace) -> float:
    """Weighted F1 over the utterances of these dialogues, in percent."""
    labels, probabilities = evaluate(network, dialogues, args)
    return utils.score(labels, probabilities, range(probabilities.shape[1]))["weighted_f1"]


def table(results: Sequence[Result]) -> str:
    """A Markdown table: a row a seed, then mean ± standard deviation (n - 1)."""
    rows = [(r.seed, ", ".join(map(str, r.epochs)), f"{r.weighted_f1:.2f}", f"{r.seconds:.0f}") for r in results]
    mean = mean_and_deviation([r.weighted_f1 for r in results])
    columns = ["seed", "epoch kept", "test weighted F1", "seconds"]
    return markdown(pd.DataFrame([*rows, ("mean ± sd", "", mean, "")], columns=columns))


def markdown(frame: pd.DataFrame) -> str:
    """The table in Markdown, what is not known as a dash."""
    text = frame.astype(object).where(frame.notna(), "–").astype(str)
    lines = [text.columns.tolist(), ["---"] * len(text.columns), *text.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean ± standard deviation (n - 1); of a single value there is no deviation."""
    deviation = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "–"
    return f"{np.mean(values):.2f} ± {deviation}"


def add_data(parser: Parser) -> None:
    """Give a benchmark the flags that name its data, and what else `load_corpus` asks for."""
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--features", metavar="FILE", help="the feature file")
    data.add_argument("--demo", action="store_true", help="the synthetic corpus instead of a file")
    parser.set_defaults(text_layers="mean", target="emotion", missing="refuse", modalities=None, fold=None)


def build_parser() -> Parser:
    """All flags; those that ``train_IEMOCAP.py`` has too mean the same and have the same defaults."""
    parser = Parser(description="The floor that GAN-FFN must beat: a plain GRU.", formatter_class=HelpFormatter)
    add_data(parser)
    parser.add_argument("--modalities", type=modality_list, metavar="LIST", help="which to use (default: all)")
    share = number(float, 0, 0.9)
    parser.add_argument("--valid", type=share, metavar="SHARE", default=0.0, help="of the training dialogues")
    parser.add_argument("--folds", type=fold_choice, metavar="K", help="sessions, or a number of folds")
    parser.add_argument("--folds-over", choices=("all", "train"), default="all", help="which dialogues are folded")
    parser.add_argument("--seeds", type=seed_list, metavar="LIST", default="0,1,2", help="one run each")
    parser.add_argument("--epochs", type=number(int, 1), metavar="N", default=40, help="epochs")
    parser.add_argument("--batch-size", type=number(int, 1), metavar="B", default=16, help="dialogues a step")
    parser.add_argument("--lr", type=number(float, 0, above=True), default=1e-3, help="peak learning rate")
    parser.add_argument("--l2", type=number(float, 0), default=1e-2, help="weight decay, decoupled (AdamW)")
    parser.add_argument("--hidden", type=number(int, 1), metavar="D", default=128, help="width of a direction")
    parser.add_argument("--layers", type=number(int, 1), metavar="N", default=2, help="of the GRU")
    parser.add_argument("--dropout", type=number(float, 0, 0.99), metavar="P", default=0.4, help="probability")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--no-cuda", action="store_true", help="the CPU, whatever there is")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    results, status = [], 0
    try:
        args.device = choose_device(args)
        for result in run_seeds(args):
            print(f"Seed {result.seed}: test weighted F1 {result.weighted_f1:.2f}", flush=True)
            results.append(result)
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        status = 130
    if results:
        print(f"\n{table(results)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
