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
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from gru_baseline import add_data, markdown, mean_and_deviation
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch_geometric import seed_everything

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataloader import Corpus, Dialogue, Standardiser, batches, collate, hold_out_validation
from files import InputError, TrainingError
from model import AdversarialFusion
from train_IEMOCAP import (
    DISCRIMINATOR_LR_RATIO,
    REFERENCE_DISCRIMINATOR_LR_RATIO,
    HelpFormatter,
    Parser,
    adversarial_step,
    extract_fused,
    load_corpus,
    loss_weights,
    number,
    optimizer_of_discriminators,
    seed_list,
)


@dataclass(frozen=True)
class Game:
    """How stage 1 is played; as it stands here, as the reference does."""

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


def train(game: Game, corpus: Corpus, dialogues: Sequence[Dialogue], args: argparse.Namespace) -> AdversarialFusion:
    """The fusion after stage 1."""
    fusion = AdversarialFusion(corpus.dims, relativistic=game.relativistic)
    fusion.to(args.device).train()
    generating = nn.ModuleList([fusion.generators, fusion.decoders])
    generator_optimizer = torch.optim.AdamW(generating.parameters(), lr=args.GAN_lr)
    discriminator_optimizer = optimizer_of_discriminators(fusion, game.speed * args.GAN_lr)
    weights = loss_weights(game.adversary, game.tied)
    loader = batches(dialogues, args.batch_size, torch.Generator().manual_seed(torch.initial_seed()))
    for epoch in range(1, args.epochs + 1):
        for batch in loader:
            batch = batch.to(args.device)
            # The generators read padding too, else what they made of it would be the zeros of the real side.
            if game.padding:
                batch = replace(batch, mask=torch.ones_like(batch.mask))
            adversarial_step(
                fusion, batch, fusion(batch), weights, discriminator_optimizer, generator_optimizer, f"epoch {epoch}"
            )
    return fusion.eval()


@torch.no_grad()
def look(
    fusion: AdversarialFusion, train: Sequence[Dialogue], valid: Sequence[Dialogue], args: argparse.Namespace
) -> dict[str, float]:
    """The columns of the table for one fusion."""
    batch = collate(valid).to(args.device)
    whole = fusion(batch)
    fused = {m: f[batch.mask] for m, f in whole.items()}
    real = fusion.real(batch)
    dialogue = torch.arange(len(valid), device=args.device).unsqueeze(1).expand_as(batch.mask)[batch.mask]
    elsewhere = dialogue.unsqueeze(1) != dialogue
    wins, kept = [], []
    for m, k in fusion.pairs:
        wins.append((fusion.discriminators[k](real[k]) > fusion.discriminators[k](fused[m])).double().mean().item())
        near = F.normalize(fused[m], dim=-1) @ F.normalize(real[k], dim=-1).T
        nearest = near.masked_fill(elsewhere, -torch.inf).argmax(1)
        kept.append((nearest == torch.arange(len(nearest), device=args.device)).double().mean().item())
    generators = [terms["adversarial"].item() for terms in fusion.generator_losses(batch, whole).values()]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    probe.fit(np.hstack(list(extract_fused(fusion, train, args).values())), np.concatenate([d.labels for d in train]))
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
    """All flags; those that ``train_IEMOCAP.py`` has too mean the same."""
    parser = Parser(description="Why the reference was unstable.", formatter_class=HelpFormatter)
    add_data(parser)
    parser.add_argument("--seeds", type=seed_list, metavar="LIST", default="0,1,2,3,4", help="one run of each row each")
    parser.add_argument("--epochs", type=number(int, 1), metavar="N", default=30, help="of stage 1")
    parser.add_argument("--GAN-lr", type=number(float, 0, above=True), metavar="LR", default=1e-3, help="of generators")
    parser.add_argument("--batch-size", type=number(int, 1), metavar="B", default=32, help="dialogues a step")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    lines, status = [], 0
    try:
        corpus = load_corpus(args)
        parts = [hold_out_validation(corpus, 0.2, seed) for seed in args.seeds]
        for name, game in ROWS.items():
            figures = []
            for seed, part in zip(args.seeds, parts, strict=True):
                seed_everything(seed)
                standardise = Standardiser.fit(part.split("train"))
                known, held_out = ([standardise(d) for d in part.split(split)] for split in ("train", "valid"))
                figures.append(look(train(game, corpus, known, args), known, held_out, args))
            columns = {title: mean_and_deviation([f[title] for f in figures]) for title in figures[0]}
            lines.append({"stage 1": name, **columns})
            print(f"{name}: {columns}", flush=True)
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        status = 130
    if lines:
        print(f"\n{markdown(pd.DataFrame(lines))}")
    return status


if __name__ == "__main__":
    sys.exit(main())
