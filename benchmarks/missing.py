"""What missing modalities cost, and what training with ``--drop-modality`` saves of it.

    python benchmarks/missing.py --demo
    python benchmarks/missing.py --features FILE --seeds 0,1,2 --csv missing.csv
    python benchmarks/missing.py --demo -- --epochs 20 --no-cuda

For each seed two models are trained by ``train_IEMOCAP.py``, with the flags after ``--``: one as it is, and one with
``--drop-modality``. Both are then scored on the test split while a modality is missing from a growing share of its
utterances, the same for both. Prints a Markdown table.
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

import numpy as np
import pandas as pd
from gru_baseline import markdown, mean_and_deviation

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils
from dataloader import Corpus, Dialogue
from files import InputError, TrainingError
from train_IEMOCAP import (
    HelpFormatter,
    Merge,
    Parser,
    build_network,
    choose_device,
    evaluate,
    load_corpus,
    load_standardiser,
    load_weights,
    modality_shares,
    number,
    parse_args,
    run_seed,
    seed_list,
    shape_of,
)

MODELS = ("as it is", "--drop-modality")


def without(dialogues: Sequence[Dialogue], modality: str, share: float, seed: int) -> list[Dialogue]:
    """These dialogues with the modality missing from a share of their utterances, those of a smaller share included."""
    order = np.random.default_rng(seed).permutation(sum(map(len, dialogues)))
    lost = np.split(order < round(share * len(order)), np.cumsum([len(d) for d in dialogues])[:-1])
    return [
        replace(d, features={**d.features, modality: np.where(gone[:, None], np.float32("nan"), d.features[modality])})
        for d, gone in zip(dialogues, lost, strict=True)
    ]


def run(args: argparse.Namespace, corpus: Corpus, shares: Sequence[float]) -> list[dict[str, float | str]]:
    """Train one model.

    Returns:
        A row for each modality and share, with the weighted F1 on test in percent.
    """
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        with contextlib.redirect_stdout(io.StringIO()):
            figures = run_seed(args, corpus, directory)
        if "interrupted" in figures:
            raise KeyboardInterrupt
        network = build_network(args, shape_of(corpus)).to(args.device)
        load_weights(network, directory / "checkpoints" / "best.safetensors")
        standardise = load_standardiser(directory)
    test = [standardise(d) for d in corpus.split("test")]
    rows = []
    for modality in corpus.dims:
        for share in shares:
            predicted = evaluate(network, without(test, modality, share, args.seed), args)
            f1 = utils.score(*predicted, corpus.label_names)["weighted_f1"]
            rows.append({"seed": args.seed, "modality": modality, "missing": share, "weighted_f1": f1})
    return rows


def table(rows: pd.DataFrame) -> str:
    """A Markdown table: mean ± standard deviation (n - 1) over seeds for each modality, share and model."""
    cells = rows.groupby(["modality", "missing", "model"], sort=False)["weighted_f1"].agg(mean_and_deviation)
    frame = cells.unstack("model").reindex(columns=list(MODELS)).reset_index()
    return markdown(frame.assign(missing=frame["missing"].map("{:.0%}".format)))


def share_list(text: str) -> list[float]:
    """A flag's type: shares with commas between."""
    return [number(float, 0, 1)(part) for part in text.split(",")]


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(
        description="Weighted F1 against the share of test utterances that lack a modality.",
        formatter_class=HelpFormatter,
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--features", metavar="FILE", help="the feature file")
    data.add_argument("--demo", action="store_true", help="the synthetic corpus instead of a file")
    parser.add_argument("--seeds", type=seed_list, metavar="LIST", default="0,1,2", help="two models each")
    parser.add_argument("--shares", type=share_list, metavar="LIST", default="0,0.1,0.3,0.5,0.7,1", help="missing")
    parser.add_argument(
        "--drop-modality",
        type=modality_shares,
        action=Merge,
        metavar="LIST",
        help="what the second model is trained with (default: 0.3 for each modality there is)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every seed's figures there too")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: more flags for train_IEMOCAP.py")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    args = build_parser().parse_args(argv)
    flags = parse_args([*args.flags, "--no-tensorboard", *(["--demo"] if args.demo else ["--features", args.features])])
    results, status = [], 0
    try:
        flags.device = choose_device(flags)
        corpus = load_corpus(flags)
        drop = args.drop_modality or dict.fromkeys(corpus.dims, 0.3)
        if args.csv:
            utils.write_csv(args.csv, [])  # refused now rather than after the training
        for seed in args.seeds:
            for model, shares in zip(MODELS, (None, drop), strict=True):
                of_run = argparse.Namespace(**{**vars(flags), "seed": seed, "drop_modality": shares})
                rows = pd.DataFrame(run(of_run, corpus, args.shares)).assign(model=model)
                results.append(rows)
                whole = rows["weighted_f1"].iloc[0]
                print(f"Seed {seed}, {model}: {whole:.2f} with {args.shares[0]:.0%} missing", file=sys.stderr)
            if args.csv:
                utils.write_csv(args.csv, pd.concat(results))
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        status = 130
    if results:
        print(f"The second model: --drop-modality {','.join(f'{m}:{share:g}' for m, share in drop.items())}\n")
        print(table(pd.concat(results)))
    return status


if __name__ == "__main__":
    sys.exit(main())
