"""Why the reference's adversarial stage was unstable, and what each remedy mends.

    python benchmarks/instability.py --features IEMOCAP_features/IEMOCAP_features.pkl
    python benchmarks/instability.py --demo --seeds 0,1,2 --epochs 15

Stage 1 is trained on four fifths of the training dialogues, first with the losses of the reference, then with one
remedy more in each row, and looked at on the fifth that is left; the test split is not touched. Columns, mean ±
standard deviation over seeds:

* *D wins*: how often a discriminator finds real features more real than the fused ones of the same utterance, for the
  discriminator that does so most and the one that does so least. 100 % is a game that is over, 50 % one in balance.
* *loss of G*: of the generator that fares best and the one that fares worst. The reference's log shows one near 0.
* *pairs kept*: how often the fused features of an utterance lie nearest, among the real features of all utterances of
  its dialogue, to those of the same utterance.
* *emotion kept*: weighted F1 of a logistic regression on the fused features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import common
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch_geometric import seed_everything

from dataloader import Corpus, Dialogue, batches, collate, hold_out_validation
from experiment.evaluation import extract_fused
from experiment.flags import Parser, flag_type
from experiment.settings import Number, Settings
from model import AdversarialFusion
from train_IEMOCAP import (
    DISCRIMINATOR_LR_RATIO,
    REFERENCE_DISCRIMINATOR_LR_RATIO,
    adversarial_step,
    optimizer_of_discriminators,
)


@dataclass(frozen=True)
class Game:
    """How stage 1 is trained; as it stands here, as the reference does."""

    padding: bool = True  # whether padded positions count as utterances
    speed: float = REFERENCE_DISCRIMINATOR_LR_RATIO  # learning rate of discriminators over that of generators
    relativistic: bool = False  # R3GAN's loss with R1 and R2 instead of binary cross entropy
    tied: float = 0.0  # weight of reconstruction, and of matching beside the game
    adversary: float = 1.0  # weight of the game and of matching


ROWS = {
    "as the reference": Game(),
    "+ padding masked": Game(padding=False),
    "+ faster discriminators": Game(padding=False, speed=DISCRIMINATOR_LR_RATIO),
    "+ relativistic, R1 and R2": Game(padding=False, speed=DISCRIMINATOR_LR_RATIO, relativistic=True),
    "+ matching, reconstruction": Game(padding=False, speed=DISCRIMINATOR_LR_RATIO, relativistic=True, tied=1.0),
    "+ a tenth of the game": Game(
        padding=False, speed=DISCRIMINATOR_LR_RATIO, relativistic=True, tied=1.0, adversary=0.1
    ),
}


def train(game: Game, corpus: Corpus, dialogues: Sequence[Dialogue], settings: Settings) -> AdversarialFusion:
    """The fusion after stage 1."""
    lr, device = settings.fusion.lr, settings.run.device
    fusion = AdversarialFusion(corpus.dims, relativistic=game.relativistic)
    fusion.to(device).train()
    generating = nn.ModuleList([fusion.generators, fusion.decoders])
    generator_optimizer = torch.optim.AdamW(generating.parameters(), lr=lr)
    discriminator_optimizer = optimizer_of_discriminators(fusion, game.speed * lr)
    weights = {"adversarial": game.adversary, "matching": game.adversary * game.tied, "reconstruction": game.tied}
    loader = batches(dialogues, settings.run.batch_size, torch.Generator().manual_seed(torch.initial_seed()))
    for epoch in range(1, settings.fusion.epochs + 1):
        for batch in loader:
            batch = batch.to(device)
            # The generators read padding too, else what they made of it would be the zeros of the real side.
            if game.padding:
                batch = replace(batch, mask=torch.ones_like(batch.mask))
            adversarial_step(
                fusion, batch, fusion(batch), weights, discriminator_optimizer, generator_optimizer, f"epoch {epoch}"
            )
    return fusion.eval()


@torch.no_grad()
def look(
    fusion: AdversarialFusion, train: Sequence[Dialogue], valid: Sequence[Dialogue], device: str
) -> dict[str, float]:
    """The columns of the table for one fusion."""
    batch = collate(valid).to(device)
    whole = fusion(batch)
    fused = {m: f[batch.mask] for m, f in whole.items()}
    real = fusion.real(batch)
    dialogue = torch.arange(len(valid), device=device).unsqueeze(1).expand_as(batch.mask)[batch.mask]
    elsewhere = dialogue.unsqueeze(1) != dialogue
    wins, kept = [], []
    for m, k in fusion.pairs:
        wins.append((fusion.discriminators[k](real[k]) > fusion.discriminators[k](fused[m])).double().mean().item())
        near = F.normalize(fused[m], dim=-1) @ F.normalize(real[k], dim=-1).T
        nearest = near.masked_fill(elsewhere, -torch.inf).argmax(1)
        kept.append((nearest == torch.arange(len(nearest), device=device)).double().mean().item())
    generators = [terms["adversarial"].item() for terms in fusion.generator_losses(batch, whole).values()]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    probe.fit(np.hstack(list(extract_fused(fusion, train).values())), np.concatenate([d.labels for d in train]))
    predicted = probe.predict(torch.cat(list(fused.values()), dim=-1).cpu().numpy())
    return {
        "D wins most, %": 100 * max(wins),
        "D wins least, %": 100 * min(wins),
        "lowest loss of G": min(generators),
        "highest loss of G": max(generators),
        "pairs kept, %": 100 * float(np.mean(kept)),
        "emotion kept, weighted F1": 100 * f1_score(batch.labels[batch.mask].cpu(), predicted, average="weighted"),
    }


def build_parser() -> Parser:
    """All flags."""
    parser = common.make_parser("Why the reference was unstable.", (*common.DATA, "--GAN-lr", "--device"))
    common.add_seeds(parser, "0,1,2,3,4")
    whole = flag_type(Number(int, 1, 100_000).parse)
    parser.add_argument("--epochs", type=whole, metavar="N", default=30, help="of stage 1")
    parser.add_argument("--batch-size", type=whole, metavar="B", default=32, help="dialogues a step")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    settings, own = common.parse(build_parser(), argv, Settings().replace(run__device="cpu"))
    settings = settings.replace(fusion__epochs=own.epochs, run__batch_size=own.batch_size)
    lines: list[dict[str, Any]] = []
    status = common.ending(lambda: train_all(settings, own, lines))
    if lines:
        print(f"\n{common.markdown(pd.DataFrame(lines))}")
    return status


def train_all(settings: Settings, own: argparse.Namespace, lines: list[dict[str, Any]]) -> None:
    """Train every row with every seed; the lines of the table go into ``lines``."""
    settings, corpus = common.prepare(settings)
    parts = [hold_out_validation(corpus, 0.2, seed) for seed in own.seeds]
    for name, game in ROWS.items():
        figures = []
        for seed, part in zip(own.seeds, parts, strict=True):
            seed_everything(seed)
            data = common.standardised(part)
            fusion = train(game, corpus, data["train"], settings)
            figures.append(look(fusion, data["train"], data["valid"], settings.run.device))
        columns = {title: common.mean_and_deviation([f[title] for f in figures]) for title in figures[0]}
        lines.append({"stage 1": name, **columns})
        print(f"{name}: {columns}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
