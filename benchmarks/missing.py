"""What missing modalities cost, and what training with ``--drop-modality`` or ``--unimodal-loss`` saves of it.

    python benchmarks/missing.py --demo
    python benchmarks/missing.py --features FILE --seeds 0,1,2 --csv missing.csv
    python benchmarks/missing.py --demo -- --epochs 20 --no-cuda

For each seed three models are trained by ``train_IEMOCAP.py``, with the flags after ``--``: one as it is, one with
``--drop-modality`` and one with ``--unimodal-loss``. All are then scored on the test split while a modality is missing
from a growing share of its utterances, the same for all. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
import pandas as pd

from dataloader import Corpus, Dialogue
from experiment.flags import Merge, Parser, flag_type, parse_args
from experiment.run_directory import write_csv
from experiment.settings import Number, Probabilities, Settings
from experiment.trained import best_weights, build_network, load_standardiser, load_weights, shape_of
from train_IEMOCAP import run_seed

MODELS = ("as it is", "--drop-modality", "--unimodal-loss")


def without(dialogues: Sequence[Dialogue], modality: str, share: float, seed: int) -> list[Dialogue]:
    """These dialogues with the modality missing from a share of their utterances, those of a smaller share included."""
    order = np.random.default_rng(seed).permutation(sum(map(len, dialogues)))
    lost = np.split(order < round(share * len(order)), np.cumsum([len(d) for d in dialogues])[:-1])
    return [
        replace(d, features={**d.features, modality: np.where(gone[:, None], np.float32("nan"), d.features[modality])})
        for d, gone in zip(dialogues, lost, strict=True)
    ]


def run(settings: Settings, corpus: Corpus, shares: Sequence[float]) -> list[dict[str, float | str]]:
    """Train one model.

    Returns:
        A row for each modality and share, with the weighted F1 on test in percent.
    """
    seed = settings.run.seed
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        with contextlib.redirect_stdout(io.StringIO()):
            figures = run_seed(settings, corpus, directory)
        if "interrupted" in figures:
            raise KeyboardInterrupt
        network = build_network(shape_of(corpus), settings.fusion, settings.classifier).to(settings.run.device)
        load_weights(network, best_weights(directory))
        standardise = load_standardiser(directory)
    test = [standardise(d) for d in corpus.split("test")]
    return [
        {
            "seed": seed,
            "modality": modality,
            "missing": share,
            "weighted_f1": common.weighted_f1(network, without(test, modality, share, seed)),
        }
        for modality in corpus.dims
        for share in shares
    ]


def table(rows: pd.DataFrame) -> str:
    """A Markdown table: mean ± standard deviation (n - 1) over seeds for each modality, share and model."""
    cells = rows.groupby(["modality", "missing", "model"], sort=False)["weighted_f1"].agg(common.mean_and_deviation)
    frame = cells.unstack("model").reindex(columns=list(MODELS)).reset_index()
    return common.markdown(frame.assign(missing=frame["missing"].map("{:.0%}".format)))


def share_list(text: str) -> list[float]:
    """Shares with commas between."""
    return [Number(float, 0, 1).parse(part) for part in text.split(",")]


def build_parser() -> Parser:
    """All flags."""
    parser = common.make_parser("Weighted F1 against the share of test utterances that lack a modality.", common.DATA)
    common.add_seeds(parser, "0,1,2")
    parser.add_argument(
        "--shares", type=flag_type(share_list), metavar="LIST", default="0,0.1,0.3,0.5,0.7,1", help="missing"
    )
    parser.add_argument(
        "--drop-modality",
        type=flag_type(Probabilities().parse),
        action=Merge,
        metavar="LIST",
        help="what the second model is trained with (default: 0.3 for each modality there is)",
    )
    weight = flag_type(Number(float, 0, 1e3, above=True).parse)
    parser.add_argument(
        "--unimodal-loss", type=weight, metavar="W", default=0.5, help="what the third model is trained with"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every seed's figures there too")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: more flags for train_IEMOCAP.py")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    parser = build_parser()
    more = parse_args([*parser.parse_args(argv).flags, "--no-tensorboard", "--no-pictures"]).settings
    settings, own = common.parse(parser, argv, more)
    results: list[pd.DataFrame] = []
    drop: dict[str, float] = dict(own.drop_modality or {})
    status = common.ending(lambda: train_all(settings, own, drop, results))
    if results:
        print(f"The second model: --drop-modality {','.join(f'{m}:{share:g}' for m, share in drop.items())}\n")
        rows = pd.concat(results)
        compared = rows.groupby("seed").filter(lambda of_seed: set(of_seed["model"]) == set(MODELS))
        print(table(rows if compared.empty else compared))
    return status


def train_all(settings: Settings, own: argparse.Namespace, drop: dict[str, float], results: list[pd.DataFrame]) -> None:
    """Train the models for every seed; their rows go into ``results``, and into ``drop`` what it is by default."""
    settings, corpus = common.prepare(settings)
    drop |= {} if drop else dict.fromkeys(corpus.dims, 0.3)
    if own.csv:
        write_csv(own.csv, [])  # refused now rather than after the training
    for seed in own.seeds:
        of_seed = settings.replace(run__seed=seed)
        changed = {"augmentation__drop_modality": drop}, {"classifier__unimodal_loss": own.unimodal_loss}
        for model, changes in zip(MODELS, ({}, *changed), strict=True):
            of_run = of_seed.replace(**changes)
            rows = pd.DataFrame(run(of_run, corpus, own.shares)).assign(model=model)
            results.append(rows)
            whole = rows["weighted_f1"].iloc[0]
            print(f"Seed {seed}, {model}: {whole:.2f} with {own.shares[0]:.0%} missing", file=sys.stderr)
            if own.csv:
                write_csv(own.csv, pd.concat(results))


if __name__ == "__main__":
    sys.exit(main())
