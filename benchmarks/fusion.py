"""Whether adversarial fusion fuses, and what the fused features are good for, on dialogues held out from it.

    python benchmarks/fusion.py --features IEMOCAP_features/IEMOCAP_features.pkl --folds sessions --seeds 0,1,2
    python benchmarks/fusion.py --demo --parts quality --seeds 0
    python benchmarks/fusion.py --features FILE --parts quality -- --GAN-weight 0

Three parts, with the flags after ``--`` given to the method:

* ``quality``: stage 1 alone, which looks at no label. How often discriminators, a linear probe and a probe with hidden
  layers tell the modality; the generators' adversarial losses over the last third of the epochs (even: 0.69); how
  often an utterance's other modality is found among those of its dialogue, beside linear CCA with a ridge on the same
  features and chance.
* ``elsewhere``: networks of ``baselines.py`` on raw features and on those that ``--export-fused`` writes, of stage 1
  and of stage 2, with rates chosen for each in the same way: by cross-validation within the training dialogues of the
  first fold, where the method is trained anew.
* ``subset``: the whole method with all modalities and with one alone: trained on all as it is, trained on all with
  ``--unimodal-loss 0.5``, and trained on that one alone.

Every finished piece, and every rate, leaves a line in ``runs.jsonl`` in ``--out`` and is not computed again. The table,
mean ± standard deviation over seeds and the mean of every fold, is printed and written to ``fusion.csv`` and
``fusion.md``, and drawn in ``fusion.png``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import baselines
import common
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold

import utils
from dataloader import Corpus, Dialogue, cross_validation, hold_out_validation
from experiment import plots
from experiment.flags import Parser, flag_type, parse_args
from experiment.fused import fused_corpus
from experiment.fusion_quality import fusion_quality, retrieval, thinned
from experiment.run import Run
from experiment.run_directory import write_csv
from experiment.settings import Settings
from experiment.trained import (
    best_weights,
    build_network,
    fusion_weights,
    load_standardiser,
    load_weights,
    shape_of,
)
from files import InputError
from model import GANFFN, AdversarialFusion
from train_IEMOCAP import run_seed, train_adversarial_fusion

UNIMODAL = 0.5  # weight of the loss by each modality alone, where a network learns to do without the others
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of CCA, in mean variances, to choose from
COMPONENTS = (4, 8, 16, 64)  # of CCA, the same

# What is measured: a function of settings (with the seed) and corpus (with the fold) gives name to figure ------------


def fuse(settings: Settings, corpus: Corpus) -> tuple[AdversarialFusion, pd.DataFrame]:
    """Stage 1 alone: what it came to, and its curves."""
    data = common.standardised(corpus)
    torch.manual_seed(utils.stream(settings.run.seed, "weights"))
    fusion = build_network(shape_of(corpus), settings.fusion, settings.classifier).to(settings.run.device).fusion
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        run = Run(Path(directory), tensorboard=False, checkpoint_every=settings.fusion.epochs + 1)
        train_adversarial_fusion(fusion, data["train"], run, settings)
    return fusion, pd.DataFrame(run.history["adversarial"])


def quality(settings: Settings, corpus: Corpus) -> dict[str, float]:
    """What no label is needed to see.

    Raises:
        InputError: If no utterance has all modalities.
    """
    corpus = hold_out_validation(corpus, settings.data.valid, settings.run.seed)
    fusion, curves = fuse(settings, corpus)
    data = common.standardised(corpus)
    found = fusion_quality(fusion, data["train"], data["test"], nonlinear=True)
    if not found:
        raise InputError(f"{corpus.name}: no utterance of a split has all modalities: no quality to see; name --parts")
    last = curves.tail(max(1, len(curves) // 3))
    figures = {
        "linear probe, %": found["modality_probe"],
        "probe with hidden layers, shared channels, %": found["modality_probe_nonlinear_shared"],
        "probe, chance": found["chance"]["modality_probe"],
    }
    figures |= {f"discriminator {pair}, %": x for pair, x in found["discriminator_accuracy"].items()}
    figures |= {f"loss of G, {m}": float(last[f"{m}_G_loss"].mean()) for m in fusion.generators}
    for m, k in fusion.pairs:
        figures[f"retrieval {m}>{k}, %"] = found["retrieval"][f"{m}>{k}"]
        figures[f"retrieval {m}>{k} by CCA, %"] = cca_retrieval(data["train"], data["test"], m, k)
    return figures | {"retrieval, chance": found["chance"]["retrieval"]}


def elsewhere(
    settings: Settings, corpus: Corpus, networks: Sequence[str], rate: Callable[[str, str], float]
) -> dict[str, float]:
    """Other networks' weighted F1 on every kind of features."""
    return {
        f"{name}, {kind} features": baselines.score(
            name, features, settings, settings.run.seed, rate(name, kind)
        ).weighted_f1
        for kind, features in kinds(settings, corpus).items()
        for name in networks
    }


def kinds(settings: Settings, corpus: Corpus) -> dict[str, Corpus]:
    """The features as they are, and as a run that is trained on them exports them, of either stage."""
    with tempfile.TemporaryDirectory() as temporary:
        network = trained(settings, corpus, Path(temporary))
        standardise = load_standardiser(Path(temporary))
        tuned = fused_corpus(network, network.encoded, standardise, corpus)
        load_weights(network.fusion, fusion_weights(Path(temporary)))
        fused = fused_corpus(network, network.fusion.export, standardise, corpus)
    return {"raw": corpus, "fused": fused, "stage 2's": tuned}


def subset(settings: Settings, corpus: Corpus) -> dict[str, float]:
    """The method's weighted F1 with all modalities, and with one of them."""
    figures: dict[str, float] = {}
    for name, of_run in {
        "trained on all": settings,
        f"trained with --unimodal-loss {UNIMODAL:g}": settings.replace(classifier__unimodal_loss=UNIMODAL),
    }.items():
        score = scored(of_run, corpus)
        figures[f"whole, {name}"] = score(None)
        figures |= {f"{m} alone, {name}": score(m) for m in corpus.dims}
    for m in corpus.dims:
        figures[f"{m} alone, trained on it alone"] = scored(settings, corpus.select_modalities([m]))(None)
    return figures


def trained(settings: Settings, corpus: Corpus, directory: Path) -> GANFFN:
    """The method's network after a run in that directory."""
    with contextlib.redirect_stdout(io.StringIO()):
        if "interrupted" in run_seed(settings, corpus, directory):
            raise KeyboardInterrupt
    network = build_network(shape_of(corpus), settings.fusion, settings.classifier).to(settings.run.device)
    load_weights(network, best_weights(directory))
    return network


def scored(settings: Settings, corpus: Corpus) -> Callable[[str | None], float]:
    """Train the method. Returns its weighted F1 on test when one modality is there, or all."""
    with tempfile.TemporaryDirectory() as temporary:
        network = trained(settings, corpus, Path(temporary))
        standardise = load_standardiser(Path(temporary))
    test = [standardise(d) for d in corpus.split("test")]
    return lambda modality: common.weighted_f1(network, [only(d, modality) for d in test])


def only(dialogue: Dialogue, modality: str | None) -> Dialogue:
    """The dialogue with no modality but this one, or as it is."""
    gone = {m: np.full_like(x, np.nan) for m, x in dialogue.features.items() if modality not in (None, m)}
    return replace(dialogue, features={**dialogue.features, **gone})


def cca_retrieval(train: Sequence[Dialogue], held_out: Sequence[Dialogue], m: str, k: str) -> float:
    """How often linear CCA finds an utterance's other modality among those of its dialogue, in percent.

    It reads what generators read. Ridge and components are chosen by cross-validation in the training dialogues. As in
    `fusion_quality`, it is asked for the utterances that have all modalities, among each other.

    Raises:
        InputError: If there are too few training dialogues to choose on.
    """
    x, y, dialogue = paired(train, m, k)
    if len(np.unique(dialogue)) < 3:
        raise InputError(f"--parts quality: fewer than three training dialogues with {m} and {k} to choose CCA on")
    folds = list(GroupKFold(3).split(x, groups=dialogue))
    tried = {
        ridge: np.mean([cca(x[a], y[a], x[b], y[b], dialogue[b], ridge) for a, b in folds], axis=0) for ridge in RIDGES
    }
    ridge = max(tried, key=lambda ridge: tried[ridge].max())
    asked = paired(thinned(held_out), m, k, whole=True)
    return cca(x, y, *asked, ridge)[tried[ridge].argmax()]


def cca(
    x: np.ndarray, y: np.ndarray, query: np.ndarray, found: np.ndarray, dialogue: np.ndarray, ridge: float
) -> list[float]:
    """Retrieval of `found` by `query`, by each of `COMPONENTS`, where ridge CCA has learnt from x and y.

    Canonical variates count by their correlation. scikit-learn's CCA has no ridge, and finds less here.
    """
    whiten = []
    for each in (x, y):
        covariance = np.cov(each.T)
        covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        values, vectors = np.linalg.eigh(covariance)
        whiten.append(vectors / np.sqrt(values.clip(1e-9)) @ vectors.T)
    means = [each.mean(0) for each in (x, y)]
    left, correlation, right = np.linalg.svd(whiten[0] @ np.cov(x.T, y.T)[: x.shape[1], x.shape[1] :] @ whiten[1])
    variates = [
        (each - mean) @ (white @ directions[:, : len(correlation)]) * correlation
        for each, mean, white, directions in zip((query, found), means, whiten, (left, right.T), strict=True)
    ]
    return [retrieval(*(each[:, :pairs] for each in variates), dialogue) for pairs in COMPONENTS]


def paired(
    dialogues: Sequence[Dialogue], m: str, k: str, whole: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both modalities' features, beside the same less their speaker's mean, and the dialogue of each utterance.

    Of the utterances that have both, or where they shall be whole, all modalities.
    """
    rows: dict[str, list[np.ndarray]] = {m: [], k: []}
    for d in dialogues:
        for modality, parts in rows.items():
            x = pd.DataFrame(d.features[modality])
            parts.append(np.hstack([x, x - x.groupby(d.speaker_index).transform("mean")]))
    x, y = (np.concatenate(parts) for parts in rows.values())
    dialogue = np.repeat(np.arange(len(dialogues)), [len(d) for d in dialogues])
    needed = dialogues[0].features if whole else (m, k)
    there = ~np.concatenate([np.isnan(np.hstack([d.features[i] for i in needed])).any(1) for d in dialogues])
    return x[there], y[there], dialogue[there]


# The table ------------------------------------------------------------------------------------------------------------


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a measure of rows ``seed, fold, measure, value``."""
    lines = []
    for measure, of_measure in rows.groupby("measure", sort=False):
        folds = of_measure.groupby("fold", sort=False)["value"].mean()
        by_seed = of_measure.groupby("seed")["value"].mean().tolist()
        lines.append({"measure": measure, "seeds": len(by_seed), "mean ± sd": common.mean_and_deviation(by_seed)})
        lines[-1] |= {fold: round(value, 2) for fold, value in folds.items()} if len(folds) > 1 else {}
    return pd.DataFrame(lines)


def picture(rows: pd.DataFrame) -> plt.Figure:
    """Every measure in percent: a dot a fold, a line at the mean."""
    shown = rows[~rows["measure"].str.startswith("loss")]
    means = shown.groupby(["measure", "fold"], sort=False)["value"].mean().reset_index()
    measures = list(dict.fromkeys(means["measure"]))
    figure, axis = plt.subplots(figsize=(plots.PAGE, 0.6 + 0.26 * len(measures)))
    for at, measure in enumerate(measures):
        values = means.loc[means["measure"] == measure, "value"]
        axis.plot(values, [at] * len(values), "o", color="C0", alpha=0.6)
        axis.plot([values.mean()] * 2, [at - 0.35, at + 0.35], color="black")
    axis.set_yticks(range(len(measures)), measures)
    axis.invert_yaxis()
    axis.set(xlabel="percent: a dot a fold, a line at the mean", xlim=(0, 100))
    axis.grid(axis="y", alpha=0.3)
    return figure


PARTS = ("quality", "elsewhere", "subset")


def names(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads a list of some of these, each once."""

    def read(text: str) -> list[str]:
        chosen = list(dict.fromkeys(text.split(",")))
        if unknown := [name for name in chosen if name not in allowed]:
            raise ValueError(f"unknown: {unknown[0]!r:.40}; choose among {', '.join(allowed)}")
        return chosen

    return read


def build_parser() -> Parser:
    """All flags."""
    parser = common.make_parser("Whether adversarial fusion fuses, and what for.", (*common.DATA, "--device"))
    common.add_seeds(parser, "0,1,2")
    common.add_folds(parser)
    parser.add_argument("--parts", type=flag_type(names(PARTS)), metavar="LIST", default=",".join(PARTS), help="which")
    networks = flag_type(names(tuple(baselines.RATES)))
    parser.add_argument("--networks", type=networks, metavar="LIST", default="gru,lstm,logistic", help="of elsewhere")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/fusion"), help="where the tables go")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: more flags for train_IEMOCAP.py")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    parser = build_parser()
    given = parser.parse_args(argv)
    shared = parse_args([*given.flags, "--no-tensorboard", "--no-pictures"]).settings
    settings, own = common.parse(parser, argv, shared)
    return common.ending(lambda: measure(settings, own))


def measure(settings: Settings, own: argparse.Namespace) -> None:
    """Measure what is not measured yet; write the tables."""
    settings, corpus = common.prepare(settings)
    if len(corpus.dims) < 2:
        raise InputError(f"{corpus.name}: one modality; there is nothing to fuse")
    folds = cross_validation(corpus, own.folds, own.folds_over) if own.folds else {"test": corpus}
    lines, of = own.out / "runs.jsonl", {"folds": own.folds, "folds_over": own.folds_over, "flags": own.flags}
    of |= common.data_of(settings, corpus)
    if any(of[key] != x for line in common.finished_runs(lines).values() for key, x in line.get("of", {}).items()):
        raise InputError(f"{lines}: measured on other data, folds or flags; choose another --out")

    @cache
    def inner() -> list[dict[str, Corpus]]:
        parts = baselines.inner_folds(next(iter(folds.values())))
        return [kinds(settings.replace(run__seed=0), part) for part in parts]

    def rate(name: str, kind: str) -> float:
        row = f"rate of {name} on {kind} features"
        if line := common.finished_runs(lines).get((row, 0)):
            return line["rate"]
        chosen, _ = baselines.choose_rate(name, [part[kind] for part in inner()], settings)
        common.append(lines, {"row": row, "seed": 0, "of": of, "rate": chosen, "figures": {}})
        print(f"{row}: {chosen:g}", flush=True)
        return chosen

    pieces: dict[str, Callable[[Settings, Corpus, list[str]], dict[str, float]]] = {
        "quality": lambda of_run, part, left: quality(of_run, part),
        "elsewhere": lambda of_run, part, left: elsewhere(of_run, part, left, rate),
        "subset": lambda of_run, part, left: subset(of_run, part),
    }
    common.make_folder(own.out)
    for seed in own.seeds:
        for fold, part in folds.items():
            for name in own.parts:
                known = common.finished_runs(lines).get((f"{name} {fold}", seed), {}).get("figures", {})
                left = [each for each in own.networks if f"{each}, raw features" not in known]
                if left if name == "elsewhere" else not known:
                    figures = known | pieces[name](settings.replace(run__seed=seed), part, left)
                    row = {"row": f"{name} {fold}", "seed": seed, "of": of, "fold": fold, "figures": figures}
                    common.append(lines, row)
                    print(f"seed {seed}, {fold}, {name}: done", flush=True)
    rows = pd.DataFrame(
        {"seed": line["seed"], "fold": line["fold"], "measure": measure, "value": value}
        for line in common.finished_runs(lines).values()
        for measure, value in line["figures"].items()
    )
    order = {name: at for at, name in enumerate(dict.fromkeys(rows["measure"]))}
    rows = rows.sort_values("measure", key=lambda column: column.map(order), kind="stable")
    write_csv(own.out / "fusion.csv", rows)
    text = common.markdown(table(rows))
    common.write_text(own.out / "fusion.md", text)
    plots.save(picture(rows), own.out / "fusion")
    print(f"\n{text}")


if __name__ == "__main__":
    sys.exit(main())
