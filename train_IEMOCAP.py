"""Train GAN-FFN on a feature file and report how well it recognises emotions.

    python train_IEMOCAP.py --features IEMOCAP_features/IEMOCAP_features.pkl
    python train_IEMOCAP.py --demo

`run_seed` is the method, told from top to bottom.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_geometric import __version__ as pyg_version
from torch_geometric import seed_everything
from tqdm import tqdm

import feature_files
import utils
from dataloader import (
    MODALITIES,
    Batch,
    Corpus,
    Dialogue,
    Standardiser,
    batches,
    carve_validation,
    cross_validation,
    session_of,
)
from files import InputError, InterruptedRunError, TrainingError, WriteError, replacing
from model import GANFFN, AdversarialFusion, GraphEmotionClassifier
from synthetic import synthetic_corpus
from utils import Run

# What the method fixes; benchmarks/ shows what each is worth.
DISCRIMINATOR_SPEED = 2.0  # learning rate of discriminators over that of generators (TTUR, arXiv 1706.08500)
REFERENCE_DISCRIMINATOR_SPEED = 0.5  # the same in the reference implementation
GRADIENT_PENALTY = 1.0  # weight of R1 and R2
GAN_AVERAGING = 0.98  # of the generators in stage 1, a step
AVERAGING = 0.98  # of all weights in stage 2, a step
LABEL_SMOOTHING = 0.1
CLIP_GRADIENT = 1.0  # norm
SESSION_SMOOTHING = 5.0  # utterances of each class that a session is taken to have besides its own
HEADLINES = ["weighted_f1", "macro_f1", "accuracy", "loss"]  # what a summary of seeds shows

# Flags ---------------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows every default there is."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def number(kind: type, low: float, high: float = float("inf"), *, above: bool = False) -> Callable[[str], Any]:
    """A flag's type: a number from low (or above it) up to high."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}") from None
        if not (low < value if above else low <= value) or not value <= high or value == float("inf"):
            bounds = f"{'above' if above else 'at least'} {low:g}" + (f" and at most {high:g}" if high < 1e9 else "")
            raise argparse.ArgumentTypeError(f"{text} is out of range; give a number {bounds}")
        return value

    return parse


def seed_list(text: str) -> list[int]:
    """A flag's type: seeds with commas between, each once."""
    seeds = [number(int, 0, 2**32 - 1)(part) for part in text.split(",")]
    if len(set(seeds)) != len(seeds):
        raise argparse.ArgumentTypeError(f"{text} names a seed twice")
    return seeds


def fold_choice(text: str) -> str | int:
    """A flag's type: ``sessions`` or a number of folds."""
    return text if text == "sessions" else number(int, 2)(text)


def modality_list(text: str) -> list[str]:
    """A flag's type: modalities with commas between, each once."""
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in MODALITIES:
            raise argparse.ArgumentTypeError(f"unknown modality {name!r}; choose among {', '.join(MODALITIES)}")
    if len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{text} names a modality twice")
    return names


def modality_shares(text: str) -> dict[str, float]:
    """A flag's type: modalities, each once and with a probability after a colon, with commas between."""
    pairs = [part.strip().partition(":") for part in text.split(",")]
    modality_list(",".join(name for name, _, _ in pairs))
    if not all(colon for _, colon, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: give a probability after each modality, such as visual:0.3")
    return {name: number(float, 0, 0.99)(share) for name, _, share in pairs}


class Merge(argparse.Action):
    """A flag that may be given several times, each time with more of a dictionary."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Add what was given to what there is."""
        before = getattr(namespace, self.dest)
        before = before if isinstance(before, dict) else {}
        if twice := before.keys() & values.keys():
            raise argparse.ArgumentError(self, f"names {min(twice)} twice")
        setattr(namespace, self.dest, {**before, **values})


def build_parser() -> Parser:
    """All flags, grouped as the method is. Those of the reference keep their names."""
    parser = Parser(
        prog=Path(__file__).name,
        description="Train GAN-FFN: features of a conversation in, an emotion for every utterance and a report out.",
        epilog="Without data at hand, try: python train_IEMOCAP.py --demo",
        formatter_class=HelpFormatter,
    )
    on_off = argparse.BooleanOptionalAction

    data = parser.add_argument_group("data")
    data.add_argument("--features", metavar="FILE", help="the feature file")
    data.add_argument(
        "--download",
        metavar="NAME",
        nargs="?",
        const="iemocap",
        help="fetch a known public feature file into IEMOCAP_features/ and stop; iemocap unless named",
    )
    data.add_argument(
        "--text-layers",
        metavar="CHOICE",
        default="mean",
        help="where a file has several layers of text features: mean, concat, or a layer's number",
    )
    data.add_argument(
        "--target", choices=("emotion", "sentiment"), default="emotion", help="which labels, where a file has both"
    )
    data.add_argument("--demo", action="store_true", help="a synthetic corpus of IEMOCAP's shape instead of a file")
    data.add_argument(
        "--modalities",
        type=modality_list,
        metavar="LIST",
        help="which to use, such as text,acoustic (default: all that the file has)",
    )
    data.add_argument(
        "--missing",
        choices=("refuse", "mask"),
        default="refuse",
        help="utterances that lack a modality (a row of NaN, or none): refuse the file, or mask the modality there",
    )
    data.add_argument(
        "--valid",
        type=number(float, 0, 0.9),
        metavar="SHARE",
        default=0.0,
        help="part of the training dialogues set aside to choose the epoch on; 0 trains on all of them and takes the "
        "last epoch, where the schedule ends; a file's own validation split is used whatever is said here",
    )
    data.add_argument(
        "--folds",
        type=fold_choice,
        metavar="K",
        help="cross-validation over all dialogues of the file: sessions leaves each session out (IEMOCAP's ids name "
        "them), a number deals the dialogues to that many folds",
    )
    data.add_argument(
        "--folds-over",
        choices=("all", "train"),
        default="all",
        help="train: cross-validation within the training split, to choose flags without a look at the test split",
    )

    data.set_defaults(fold=None)  # which of the folds a run is; set by --folds, kept in config.json

    fusion = parser.add_argument_group("stage 1: adversarial fusion")
    fusion.add_argument("--GAN-epochs", type=number(int, 0), metavar="N", default=15, help="epochs; 0 leaves it out")
    fusion.add_argument("--GAN-lr", type=number(float, 0, above=True), metavar="LR", default=1e-3, help="of generators")
    fusion.add_argument(
        "--GAN-adversary",
        type=number(float, 0),
        metavar="W",
        default=0.1,
        help="weight of passing for the other modalities, and of matching them, beside reconstruction",
    )
    fusion.add_argument(
        "--GAN-loss",
        choices=("relativistic", "reference"),
        default="relativistic",
        help="reference: binary cross entropy, nothing ties fused features to their utterance, slow discriminators",
    )
    fusion.add_argument("--use-trained-GAN", metavar="RUN", help="take stage 1 from that run")
    fusion.add_argument(
        "--continue-train-GAN-step",
        type=number(int, 0),
        metavar="N",
        default=0,
        help="with --use-trained-GAN: train it N epochs further first",
    )

    graph = parser.add_argument_group("stage 2: graph-based emotion classifier")
    graph.add_argument("--epochs", type=number(int, 1), metavar="N", default=40, help="epochs")
    graph.add_argument("--lr", type=number(float, 0, above=True), default=5e-4, help="peak learning rate")
    graph.add_argument("--l2", type=number(float, 0), default=1e-2, help="weight decay, decoupled (AdamW)")
    graph.add_argument("--window-past", type=number(int, 0), metavar="TURNS", default=8, help="turns heard backwards")
    graph.add_argument(
        "--window-future",
        type=number(int, 0),
        metavar="TURNS",
        default=8,
        help="turns heard ahead; with both windows 0 there is no graph",
    )
    graph.add_argument(
        "--party-blocks",
        type=number(int, 0),
        metavar="N",
        default=2,
        help="blocks that hand each modality's fused features on from turn to turn of every speaker, both ways",
    )
    graph.add_argument(
        "--convolutions", type=number(int, 0), metavar="N", default=2, help="graph convolutions over the windows"
    )
    graph.add_argument("--attention", action=on_off, default=False, help="nodal attention over the dialogue on top")
    graph.add_argument(
        "--focal", type=number(float, 0), metavar="GAMMA", default=0.0, help="focal loss: exponent of what is missing"
    )
    graph.add_argument(
        "--session-shares",
        action=on_off,
        default=True,
        help="keep how often each emotion is in a training session out of what is learnt, where ids name sessions",
    )
    graph.add_argument("--class-weight", action=on_off, default=False, help="weigh the loss by one over class shares")

    both = parser.add_argument_group("both stages")
    both.add_argument(
        "--fused-channels", type=number(int, 2), metavar="D", default=256, help="width of the fused features; even"
    )
    both.add_argument("--dropout", type=number(float, 0, 0.99), metavar="P", default=0.4, help="probability")
    both.add_argument(
        "--noise",
        type=number(float, 0),
        metavar="SD",
        default=0.5,
        help="standard deviation of the noise on training features, in theirs",
    )
    both.add_argument(
        "--drop-utterance",
        type=number(float, 0, 0.99),
        metavar="P",
        default=0.2,
        help="leave utterances out of training dialogues with this probability, drawn anew every epoch",
    )
    both.add_argument(
        "--drop-modality",
        type=modality_shares,
        action=Merge,
        metavar="LIST",
        help="hide modalities from training utterances with a probability, such as visual:0.3,acoustic:0.2",
    )
    both.add_argument("--batch-size", type=number(int, 1), metavar="B", default=16, help="dialogues a step")

    run = parser.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="run directory (default: runs/ and the data's name, time)")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    run.add_argument(
        "--resume", metavar="RUN", nargs="?", const="", help="go on with a run that was stopped: RUN, or that of --out"
    )
    run.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of all that is random")
    run.add_argument("--seeds", type=seed_list, metavar="LIST", help="several runs, such as 0,1,2")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    run.add_argument("--no-cuda", action="store_true", help="the CPU, whatever there is")
    run.add_argument(
        "--report-best-test",
        action="store_true",
        help="score the test split at every epoch and show the best beside the report, as much of the field does; "
        "the weights that are kept do not depend on it",
    )
    run.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits every time on a GPU too, at some cost in speed; on the CPU they are anyway",
    )
    run.add_argument(
        "--checkpoint-every", type=number(int, 1), metavar="N", default=1, help="epochs between checkpoints"
    )
    run.add_argument("--tensorboard", action=on_off, default=True, help="write TensorBoard events")

    after = parser.add_argument_group("after training")
    after.add_argument(
        "--evaluate",
        metavar="RUN",
        help="score a finished run again, on its own data or, with --features, on other; --out DIR writes that too",
    )
    after.add_argument(
        "--export-fused",
        metavar="FILE",
        help="write the fused features of stage 1 as a 9-tuple pickle for other networks",
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags, checked against each other; with ``--resume``, those of the run that goes on."""
    parser = build_parser()
    defaults = vars(parser.parse_args([]))
    unset = object()
    given = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, unset))))
    given = {flag: value for flag, value in given.items() if value is not unset}
    if "resume" in given:
        given["resume"] = given["resume"] or given.get("out")
        if not given["resume"]:
            parser.error("--resume: name the run, or give its directory with --out")
        given = _resumed(parser, given)
    args = argparse.Namespace(**{**defaults, **given})
    if args.features and args.demo:
        parser.error("--features and --demo exclude each other; give one")
    if args.evaluate:
        own = {"evaluate", "features", "demo", "missing", "out", "export_fused", "device", "no_cuda"}
        if stray := [f"--{flag.replace('_', '-')}" for flag in given if flag not in own]:
            parser.error(f"--evaluate takes its flags from the run: leave out {', '.join(stray)}")
    if args.export_fused and (args.seeds or args.folds):
        parser.error("--export-fused writes the features of one run: use --seed, or --evaluate RUN/seed0 afterwards")
    if args.fused_channels % 2:
        parser.error(
            f"--fused-channels {args.fused_channels}: past and future share the width evenly; give an even one"
        )
    if args.continue_train_GAN_step and not args.use_trained_GAN:
        parser.error("--continue-train-GAN-step needs --use-trained-GAN RUN")
    return args


def _resumed(parser: Parser, given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the run to resume; those given beside ``--resume`` must say the same."""
    saved = read_config(Path(given["resume"]))["flags"]
    free = {"resume", "out", "features", "export_fused"}  # the data may have moved: its checksum is compared instead
    changed = [flag for flag, value in given.items() if flag not in free and saved.get(flag) != value]
    if changed:
        said = ", ".join(f"--{f.replace('_', '-')} {given[f]} (the run has {saved.get(f)})" for f in changed)
        parser.error(f"--resume {given['resume']}: the run was begun with other flags: {said}; leave them out")
    return {**saved, **given, "out": saved["out"]}


# The method ----------------------------------------------------------------------------------------------------------


def run_seed(args: argparse.Namespace, corpus: Corpus, directory: Path) -> dict[str, Any]:
    """GAN-FFN, for one seed. Returns what ``report.json`` holds."""
    write_config(args, corpus, directory)
    seed_everything(args.seed)
    corpus = carve_validation(corpus, args.valid, args.seed)
    standardise = Standardiser.fit(corpus.split("train"))
    data = {split: [standardise(d) for d in corpus.split(split)] for split in corpus.splits}
    network = build_network(args, shape_of(corpus)).to(args.device)
    run = Run(directory, tensorboard=args.tensorboard, checkpoint_every=args.checkpoint_every)
    utils.save_tensors(run.checkpoints / "standardiser.safetensors", standardise.tensors())

    interrupted = None
    try:
        with run.stoppable():
            if not run.reached("classifier"):
                train_adversarial_fusion(network.fusion, data["train"], run, args)
                utils.save_tensors(fusion_weights(directory), network.fusion.state_dict())
            train_classifier(network, data, run, args)
    except InterruptedRunError as stop:
        interrupted = str(stop)
    return report(network, data, corpus, run, args, interrupted)


def shape_of(corpus: Corpus) -> dict[str, Any]:
    """What of a corpus decides the network's shape."""
    return {"dims": corpus.dims, "label_names": list(corpus.label_names), "num_speakers": corpus.num_speakers}


def build_network(args: argparse.Namespace, shape: Mapping[str, Any]) -> GANFFN:
    """The network for a corpus: its widths, classes and speakers come from the data."""
    fusion = AdversarialFusion(
        shape["dims"],
        args.fused_channels,
        dropout=args.dropout,
        relativistic=args.GAN_loss == "relativistic",
    )
    classifier = GraphEmotionClassifier(
        fusion.fused_channels,
        len(shape["label_names"]),
        shape["num_speakers"],
        window_past=args.window_past,
        window_future=args.window_future,
        layers=args.convolutions,
        attention=args.attention,
        dropout=args.dropout,
    )
    graph = bool(args.window_past + args.window_future)
    return GANFFN(fusion, classifier, party_blocks=args.party_blocks if graph else 0, dropout=args.dropout)


def train_adversarial_fusion(
    fusion: AdversarialFusion, dialogues: Sequence[Dialogue], run: Run, args: argparse.Namespace
) -> None:
    """Stage 1: every modality's fused features learn to pass for the other modalities.

    No label is looked at. At the end the generators are the exponential moving average of themselves over the steps
    (arXiv 1806.04498).
    """
    epochs = args.GAN_epochs
    if len(fusion.generators) < 2:
        print("One modality: there is nothing to fuse, so stage 1 is skipped.")
        return
    if args.use_trained_GAN:
        load_weights(fusion, fusion_weights(Path(args.use_trained_GAN)))
        epochs = args.continue_train_GAN_step
    shuffle = torch.Generator().manual_seed(args.seed)
    loader = batches(dialogues, args.batch_size, shuffle)
    generating = nn.ModuleList([fusion.generators, fusion.decoders])
    weights = loss_weights(args.GAN_adversary, tied=float(fusion.relativistic))
    average = AveragedModel(fusion.generators, multi_avg_fn=get_ema_multi_avg_fn(GAN_AVERAGING))
    generator_optimizer = torch.optim.AdamW(generating.parameters(), lr=args.GAN_lr, weight_decay=args.l2)
    speed = DISCRIMINATOR_SPEED if fusion.relativistic else REFERENCE_DISCRIMINATOR_SPEED
    discriminator_optimizer = optimizer_of_discriminators(fusion, speed * args.GAN_lr)
    parts = {
        "fusion": fusion,
        "average": average,
        "generator_optimizer": generator_optimizer,
        "discriminator_optimizer": discriminator_optimizer,
        "shuffle": shuffle,
    }
    done = run.restore("adversarial", parts)
    for epoch in progress("stage 1", done, epochs):
        started = time.perf_counter()
        fusion.train()
        losses = []
        for step, batch in enumerate(loader, 1):
            batch = disturb(batch, args).to(args.device)
            where = f"epoch {epoch} of stage 1, step {step}"
            fused = fusion(batch)

            discriminator_losses, generator_losses = play(
                fusion, batch, fused, weights, discriminator_optimizer, generator_optimizer, where
            )
            average.update_parameters(fusion.generators)

            losses.append(
                {f"{m}_G_loss": terms["adversarial"].item() for m, terms in generator_losses.items()}
                | {f"{k}_D_loss": loss.item() for k, loss in discriminator_losses.items()}
                | {
                    f"{m}_{t}": terms[t].item()
                    for t in ("matching", "reconstruction")
                    for m, terms in generator_losses.items()
                }
            )
            run.stop_here(where)
        finite_weights(fusion, where)
        means = {name: float(np.mean([step[name] for step in losses])) for name in losses[0]}
        run.log("adversarial", {"epoch": epoch, **means, "seconds": time.perf_counter() - started})
        run.save("adversarial", epoch, parts)
    if epochs:
        fusion.generators.load_state_dict(average.module.state_dict())


def loss_weights(adversary: float, tied: float) -> dict[str, float]:
    """Weights of the generators' losses, by name: the game's, and of what ties fused features to their utterance."""
    return {"adversarial": adversary, "matching": adversary * tied, "reconstruction": tied}


def optimizer_of_discriminators(fusion: AdversarialFusion, lr: float) -> torch.optim.Optimizer:
    """Adam with little momentum and no decay, as R3GAN's discriminators have it."""
    return torch.optim.AdamW(fusion.discriminators.parameters(), lr=lr, betas=(0.5, 0.99), weight_decay=0)


def play(
    fusion: AdversarialFusion,
    batch: Batch,
    fused: Mapping[str, Tensor],
    weights: Mapping[str, float],
    discriminator_optimizer: torch.optim.Optimizer,
    generator_optimizer: torch.optim.Optimizer,
    where: str,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A step of each side of the game. Returns the losses of the discriminators and those of the generators, by name.

    Raises:
        TrainingError: If a loss or a gradient is not finite.
    """
    # Discriminators: tell the real features of a modality from the fused features of the others.
    discriminator_losses = fusion.discriminator_losses(batch, fused, gamma=GRADIENT_PENALTY)
    discriminator_optimizer.zero_grad()
    finite(sum(discriminator_losses.values()), where).backward()
    discriminator_optimizer.step()

    # Generators: pass for the other modalities and, unlike the reference's, keep to the utterance.
    generator_losses = fusion.generator_losses(batch, fused)
    loss = sum(weights[name] * term for terms in generator_losses.values() for name, term in terms.items())
    generator_optimizer.zero_grad()
    finite(loss, where).backward()
    generating = [p for group in generator_optimizer.param_groups for p in group["params"]]
    finite(nn.utils.clip_grad_norm_(generating, CLIP_GRADIENT), where, "norm of the gradients")
    generator_optimizer.step()
    return discriminator_losses, generator_losses


def disturb(batch: Batch, args: argparse.Namespace) -> Batch:
    """A training batch as a step sees it: never the same twice, so that it cannot be learnt by heart."""
    return batch.thin(args.drop_utterance).blur(args.noise).hide(args.drop_modality)


def train_classifier(
    network: GANFFN, data: Mapping[str, Sequence[Dialogue]], run: Run, args: argparse.Namespace
) -> None:
    """Stage 2: generators and graph classifier learn the emotions together.

    What is kept is an exponential moving average of the weights over the steps: that of the last epoch, where the
    schedule has come to rest, or with a validation split that of the epoch which scores best there.
    """
    shuffle = torch.Generator().manual_seed(args.seed)
    loader = batches(data["train"], args.batch_size, shuffle)
    weight = class_weights(data["train"], network.classifier.num_classes).to(args.device) if args.class_weight else None
    shifts = label_shifts(data["train"], network.classifier.num_classes) if args.session_shares else {}
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING))
    # The other players of stage 1 rest: they keep old gradients, and decay would move them.
    learning = [*nn.ModuleList([network.fusion.generators, network.graphs, network.classifier]).parameters()]
    optimizer = torch.optim.AdamW(learning, lr=args.lr, weight_decay=args.l2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(loader))
    parts = {"network": network, "average": average, "optimizer": optimizer, "schedule": schedule, "shuffle": shuffle}
    done = run.restore("classifier", parts)
    for epoch in progress("stage 2", done, args.epochs):
        started = time.perf_counter()
        network.train()
        losses, labels, probabilities = [], [], []
        for step, batch in enumerate(loader, 1):
            batch = disturb(batch, args).to(args.device)
            where = f"epoch {epoch} of stage 2, step {step}"
            logits = network(batch)
            shifted = logits + torch.stack([shifts[i] for i in batch.ids]).unsqueeze(1).to(logits) if shifts else logits
            loss = emotion_loss(shifted[batch.mask], batch.labels[batch.mask], weight, args.focal)
            optimizer.zero_grad()
            finite(loss, where).backward()
            finite(nn.utils.clip_grad_norm_(learning, CLIP_GRADIENT), where, "norm of the gradients")
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            losses.append(loss.item())
            labels.append(batch.labels[batch.mask].cpu())
            probabilities.append(logits.detach()[batch.mask].softmax(-1).cpu())
            run.stop_here(where)
        finite_weights(network, where)
        train = utils.score(torch.cat(labels).numpy(), torch.cat(probabilities).numpy(), range(logits.shape[-1]))
        row = {"epoch": epoch, "train_loss": float(np.mean(losses)), "train_weighted_f1": train["weighted_f1"]}
        for split in ("valid", *(["test"] if args.report_best_test else [])):
            if split in data:
                scores = utils.score(*predict(average.module, data[split], args), range(logits.shape[-1]))
                finite(torch.tensor(scores["loss"]), f"{where}, on {split}")
                row |= {f"{split}_loss": scores["loss"], f"{split}_weighted_f1": scores["weighted_f1"]}
        # Without validation nothing else looks at what the averaged weights say before they are kept.
        finite(torch.from_numpy(predict(average.module, data["train"][:1], args)[1]).sum(), where, "output")
        if best_epoch([*run.history["classifier"], row]) == epoch:
            run.keep(average.module.state_dict())
        run.log("classifier", {**row, "seconds": time.perf_counter() - started})
        run.save("classifier", epoch, parts)


def best_epoch(history: Sequence[Mapping[str, float]], split: str = "valid") -> int:
    """The first epoch of the best weighted F1 on a split; the last epoch where that was not scored."""
    figure = f"{split}_weighted_f1"
    return int(max(history, key=lambda row: row[figure])["epoch"] if figure in history[-1] else history[-1]["epoch"])


@torch.no_grad()
def predict(network: GANFFN, dialogues: Sequence[Dialogue], args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Labels ``[N]`` and probabilities ``[N, C]`` of the real utterances, in the order of the dialogues."""
    network.eval()
    labels, probabilities = [], []
    for batch in batches(dialogues, args.batch_size):
        batch = batch.to(args.device)
        labels.append(batch.labels[batch.mask])
        probabilities.append(network(batch)[batch.mask].cpu().double().softmax(-1))
    return torch.cat(labels).cpu().numpy(), torch.cat(probabilities).numpy()


@torch.no_grad()
def fuse(fusion: AdversarialFusion, dialogues: Sequence[Dialogue], args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Fused features of each modality, ``[N, d]``, over the real utterances in the order of the dialogues.

    Rows are NaN where the modality is missing.
    """
    fusion.eval()
    fused: dict[str, list[Tensor]] = {m: [] for m in fusion.generators}
    for batch in batches(dialogues, args.batch_size):
        batch = batch.to(args.device)
        for modality, features in fusion(batch).items():
            features = features.masked_fill(~batch.has(modality).unsqueeze(-1), torch.nan)
            fused[modality].append(features[batch.mask].cpu())
    return {m: torch.cat(parts).numpy() for m, parts in fused.items()}


def emotion_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, focal: float) -> Tensor:
    """Cross entropy of ``logits [N, C]``, weighted by class and by how wrong the utterance still is.

    The second weight is ``(1 - p)**focal`` of the label's probability p (focal loss, arXiv 1708.02002, equation 4).
    """
    each = F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=LABEL_SMOOTHING)
    if focal:
        each = each * (1 - logits.softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)) ** focal
    return each.sum() / (len(labels) if weight is None else weight[labels].sum())


def label_counts(dialogues: Sequence[Dialogue], num_classes: int) -> Tensor:
    """How many utterances each class has, ``[C]``."""
    return torch.bincount(torch.from_numpy(np.concatenate([d.labels for d in dialogues])), minlength=num_classes)


def class_weights(dialogues: Sequence[Dialogue], num_classes: int) -> Tensor:
    """One over each class's share, scaled to a mean of 1 over the utterances; 0 for a class without any, ``[C]``."""
    counts = label_counts(dialogues, num_classes)
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)


def label_shifts(dialogues: Sequence[Dialogue], num_classes: int) -> dict[str, Tensor]:
    """How much likelier each class is in a dialogue's session than in all of them, as logarithms; id to ``[C]``.

    Added to the logits in training, never after it, they account for the sessions' shares of emotions, so that the
    network need not: what it learns stands on the shares of all sessions together (logit adjustment, arXiv 2007.07314,
    with a prior for each session). All 0 where ids name one session, or none.
    """
    sessions: dict[str, list[Dialogue]] = {}
    for d in dialogues:
        sessions.setdefault(session_of(d.id), []).append(d)
    counts = {name: SESSION_SMOOTHING + label_counts(members, num_classes) for name, members in sessions.items()}
    pooled = sum(counts.values())
    shifts = {name: (count / count.sum()).log() - (pooled / pooled.sum()).log() for name, count in counts.items()}
    return {d.id: shifts[session_of(d.id)] for d in dialogues}


def finite(loss: Tensor, where: str, name: str = "loss") -> Tensor:
    """The loss, or whatever figure is named, itself.

    Raises:
        TrainingError: If it is not finite.
    """
    if not torch.isfinite(loss):
        raise TrainingError(
            f"{where}: the {name} is {loss.item()}; the last checkpoint is kept; lower the learning rate"
        )
    return loss


def finite_weights(module: nn.Module, where: str) -> None:
    """Check what an epoch came to, before it is kept.

    Raises:
        TrainingError: If a weight is not finite.
    """
    if not all(p.isfinite().all() for p in module.parameters()):
        raise TrainingError(
            f"{where}: weights became infinite or NaN; the last checkpoint is kept; lower the learning rate"
        )


def progress(name: str, done: int, epochs: int) -> tqdm:
    """Epochs still to do, from 1, with a bar on a terminal."""
    return tqdm(range(done + 1, epochs + 1), desc=name, initial=done, total=epochs, unit="epoch", disable=None)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load what a run saved.

    Raises:
        InputError: If the file is not there, is damaged, or is of a network of another shape.
    """
    try:
        module.load_state_dict(utils.load_tensors(path))
    except RuntimeError:
        raise InputError(
            f"{path}: weights of another network; use the modalities, feature widths and flags of the run they are from"
        ) from None


# Report --------------------------------------------------------------------------------------------------------------


def report(
    network: GANFFN,
    data: Mapping[str, Sequence[Dialogue]],
    corpus: Corpus,
    run: Run,
    args: argparse.Namespace,
    interrupted: str | None,
) -> dict[str, Any]:
    """Score the chosen weights, print the report and write the run's files. The test split is scored here only."""
    started = time.perf_counter()
    directory, history = run.directory, run.history
    if history["adversarial"]:
        utils.plot_adversarial_losses(history["adversarial"], directory / "GAN_loss.png")
    run.close()
    if not history["classifier"]:
        return {"interrupted": interrupted}
    chosen = best_epoch(history["classifier"])
    utils.plot_training_curves(history["classifier"], chosen, directory / "training_curves.png")
    load_weights(network, run.checkpoints / "best.safetensors")
    heading = f"Interrupted at {interrupted}; this is epoch {chosen}.\n" if interrupted else ""
    scores = assess(network, data, corpus, args, directory, heading)
    seconds = {stage: run.seconds(stage) for stage in history}
    figures = {
        **scores,
        **({"chosen_on_test": best_on_test(history["classifier"])} if args.report_best_test else {}),
        "best_epoch": chosen,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": {**seconds, "total": sum(seconds.values()) + time.perf_counter() - started},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **({"interrupted": interrupted} if interrupted else {}),
    }
    utils.write_json(directory / "report.json", figures)
    return figures


def best_on_test(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Print and return the epoch and the weighted F1 that looking at the test split would have chosen."""
    epoch = best_epoch(history, "test")
    row = next(row for row in history if row["epoch"] == epoch)
    best = {"epoch": epoch, "weighted_f1": row["test_weighted_f1"]}
    print(
        f"Chosen on test, as much of the field reports: F1-score {best['weighted_f1']:.2f}, epoch {epoch}. "
        "The report above is the honest one."
    )
    return best


def assess(
    network: GANFFN,
    data: Mapping[str, Sequence[Dialogue]],
    corpus: Corpus,
    args: argparse.Namespace,
    directory: Path | None,
    heading: str = "",
) -> dict[str, Any]:
    """Print the report on the test split and, where a directory is given, write it beside predictions and pictures.

    Returns:
        The scores of ``test`` and ``valid``, None of a validation split that there is not.
    """
    predictions = {split: predict(network, dialogues, args) for split, dialogues in data.items()}
    scores = {
        split: utils.score(*predictions[split], corpus.label_names) if split in predictions else None
        for split in ("test", "valid")
    }
    text = heading + utils.report_text(*predictions["test"], corpus.label_names)
    print(text)
    if directory:
        with replacing(directory / "report.txt") as temporary:
            temporary.write_text(text, encoding="utf-8")
        probabilities = {split: probability for split, (_, probability) in predictions.items()}
        table = utils.prediction_table(data, probabilities, corpus.label_names)
        utils.write_csv(directory / "predictions.csv", table)
        matrix = scores["test"]["confusion_matrix"]
        utils.plot_confusion_matrix(matrix, corpus.label_names, directory / "confusion_matrix.png")
        fused = fuse(network.fusion, data["test"], args)
        labels = predictions["test"][0]
        utils.plot_fused_features(fused, labels, corpus.label_names, directory / "fused_features.png")
    return scores


def configuration(args: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """What ``config.json`` holds: every flag, what the run stands on, and the data by checksum."""
    flags = {flag: value for flag, value in vars(args).items() if flag not in ("overwrite", "resume", "evaluate")}
    return {
        "flags": flags,
        "seed": args.seed,
        "device": args.device,
        "versions": versions(),
        "features": {"file": corpus.name, "sha256": corpus.sha256},
        "corpus": shape_of(corpus),
    }


def write_config(args: argparse.Namespace, corpus: Corpus, directory: Path) -> None:
    """Write ``config.json``, before all else. A run that goes on keeps the versions it was begun with."""
    config = configuration(args, corpus)
    if (directory / "config.json").exists():
        config["versions"] = read_config(directory).get("versions", config["versions"])
    utils.write_json(directory / "config.json", config)


def versions() -> dict[str, str]:
    """What a run's bits depend on besides data and flags."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return {
        "code": hashlib.sha256(code).hexdigest()[:12],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": pyg_version,
        "numpy": np.__version__,
    }


def read_config(directory: Path) -> dict[str, Any]:
    """What `configuration` said of a run.

    Raises:
        InputError: If the directory is no run's.
    """
    path = directory / "config.json"
    config = utils.read_json(path)
    if not isinstance(config, dict) or not {"flags", "features", "corpus"} <= config.keys():
        raise InputError(f"{path}: not of a run of GAN-FFN; name the directory of one")
    return config


def summarise(directory: Path, kind: str, figures: Mapping[Any, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Print, draw and write mean, standard deviation (n - 1; none of a single run), interval and every run's figures.

    Args:
        directory: Where ``summary.json`` and ``spread.png`` go.
        kind: What the runs are: ``seed`` or ``fold``.
        figures: Name of the run to what `run_seed` or, for the folds of a seed, this function returned.

    Returns:
        The means of ``test`` and ``valid``.
    """
    table = {
        split: pd.DataFrame([each[split] for each in figures.values()], columns=HEADLINES).astype(float)
        for split in ("test", "valid")
        if all(each.get(split) for each in figures.values())
    }
    means = {split: frame.mean().to_dict() for split, frame in table.items()}
    summary: dict[str, Any] = {f"{kind}s": {str(name): dict(each) for name, each in figures.items()}, "mean": means}
    summary["standard_deviation"] = {
        split: {name: utils.deviation(frame[name]) for name in frame} for split, frame in table.items()
    }
    summary["interval_95"] = {
        split: {name: utils.interval(frame[name]) for name in frame} for split, frame in table.items()
    }
    utils.write_json(directory / "summary.json", summary)
    print(f"{len(figures)} {kind}{'s' * (len(figures) > 1)}, test split, mean ± standard deviation, 95 % interval:")
    for name, column in table["test"].items():
        each = ", ".join(f"{value:.2f}" for value in column)
        spread, interval = utils.deviation(column), utils.interval(column)
        known = f"{spread:.2f}, {interval[0]:.2f} to {interval[1]:.2f}" if interval else "–"
        print(f"  {name:<12} {column.mean():6.2f} ± {known}   ({each})")
    weighted_f1 = dict(zip(map(str, figures), table["test"]["weighted_f1"], strict=True))
    utils.plot_spread(weighted_f1, kind, directory / "spread.png")
    return means


def evaluate_run(args: argparse.Namespace) -> None:
    """Score a finished run again, on its own feature file or on another of the same shape."""
    directory = Path(args.evaluate)
    config = read_config(directory)
    if config["flags"].get("seeds") or config["flags"].get("folds"):
        one = min(directory.glob("*/config.json"), default=directory / "seed0").parent
        raise InputError(f"{directory}: holds a run for each of several seeds or folds; name one, such as {one}")
    flags = argparse.Namespace(**{**vars(parse_args([])), **config["flags"], "device": args.device})
    if args.missing == "mask":
        flags.missing = args.missing
    if args.features or args.demo:
        flags.features, flags.demo = args.features, args.demo
    utils.choose_determinism(flags.deterministic)
    corpus = load_corpus(flags)
    shape = config["corpus"]
    if {**shape_of(corpus), "num_speakers": 0} != {**shape, "num_speakers": 0}:
        raise InputError(
            f"{corpus.name}: features {corpus.dims} and {corpus.num_classes} classes, but the run {directory} was "
            f"trained on {shape['dims']} and {len(shape['label_names'])}; give a file of the same shape"
        )
    if args.export_fused:
        check_export(flags, corpus, args.export_fused)
    standardise = load_standardiser(directory)
    network = build_network(flags, shape).to(args.device)
    load_weights(network, directory / "checkpoints" / "best.safetensors")
    carved = carve_validation(corpus, flags.valid, flags.seed)
    data = {split: [standardise(d) for d in carved.split(split)] for split in carved.splits}
    out = Path(args.out) if args.out else None
    with utils.locked(out) if out else nullcontext():
        if out:
            prepare_directory(args, corpus, out)
        scores = assess(network, data, carved, flags, out)
        if out:
            utils.write_json(out / "report.json", scores)
    if args.export_fused:
        export_fused(directory, corpus, flags, args.export_fused)


def export_fused(directory: Path, corpus: Corpus, args: argparse.Namespace, path: str) -> None:
    """Write the fused features of every utterance in the places of the raw ones.

    They are the features of stage 1, which looks at no label.

    Raises:
        InputError: If the run had no stage 1, or the file cannot be written.
    """
    check_export(args, corpus, path)
    standardise = load_standardiser(directory)
    network = build_network(args, read_config(directory)["corpus"]).to(args.device)
    load_weights(network.fusion, fusion_weights(directory))
    dialogues = list(corpus.dialogues.values())
    fused = fuse(network.fusion, [standardise(d) for d in dialogues], args)
    ends = np.cumsum([len(d) for d in dialogues])[:-1]
    parts = {m: np.split(x, ends) for m, x in fused.items()}
    features = {d.id: replace(d, features={m: parts[m][i] for m in parts}) for i, d in enumerate(dialogues)}
    feature_files.write_nine_tuple(replace(corpus, dialogues=features), path)
    print(f"Fused features of {len(dialogues)} dialogues written to {path} (no label was used).")


def check_export(args: argparse.Namespace, corpus: Corpus, path: str) -> None:
    """Refuse to export fused features where there are none, or to where nothing can be.

    Raises:
        InputError: If a run with these flags has no stage 1, or the file's folder is not there.
    """
    if len(corpus.dims) < 2 or not (args.GAN_epochs or args.use_trained_GAN):
        raise InputError("--export-fused: stage 1 was left out, so no features are fused; use two modalities or more")
    if not Path(path).resolve().parent.is_dir():
        raise InputError(f"--export-fused {path}: cannot be written; there is no such folder, make it")


def fusion_weights(directory: Path) -> Path:
    """Where a run keeps what stage 1 came to."""
    return directory / "checkpoints" / "fusion.safetensors"


def load_standardiser(directory: Path) -> Standardiser:
    """The standardisation a run learnt on its training dialogues."""
    return Standardiser.from_tensors(utils.load_tensors(directory / "checkpoints" / "standardiser.safetensors"))


# Command line --------------------------------------------------------------------------------------------------------

NO_DATA = f"""\
no feature file. Put one into IEMOCAP_features/ and name it:
  python {Path(__file__).name} --features IEMOCAP_features/IEMOCAP_features.pkl
To fetch the public IEMOCAP features there:
  python {Path(__file__).name} --download
IEMOCAP_features/README.md says where other public files are and how to make one. To try GAN-FFN without data:
  python {Path(__file__).name} --demo"""


def load_corpus(args: argparse.Namespace) -> Corpus:
    """The corpus that the flags name."""
    if args.demo:
        corpus = synthetic_corpus()
        print("*** SYNTHETIC CORPUS: made-up dialogues of IEMOCAP's shape. Its scores say nothing about real ones. ***")
    elif args.features:
        corpus = feature_files.read(
            args.features, text_layers=args.text_layers, target=args.target, missing=args.missing
        )
    else:
        raise InputError(NO_DATA)
    if args.fold:
        folds, over, name = args.fold
        corpus = cross_validation(corpus, folds, over)[name]
    return corpus.select_modalities(args.modalities) if args.modalities else corpus


def choose_device(args: argparse.Namespace) -> str:
    """The device to run on.

    Raises:
        InputError: If it is not there.
    """
    name = args.device
    if args.no_cuda and (name == "auto" or name.startswith("cuda")):
        return "cpu"
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not to be had here ({reason}); try --device cpu") from None
    return name


def check_before_writing(args: argparse.Namespace, corpus: Corpus) -> None:
    """Find what would stop the run later, while the run directory, and one to be replaced, are untouched.

    Raises:
        InputError: If validation, a modality, the earlier run's stage 1 or the export cannot be had.
    """
    parts = cross_validation(corpus, args.folds, args.folds_over).values() if args.folds else [corpus]
    for part in parts:
        carved = carve_validation(part, args.valid, args.seed)
        if args.missing == "mask":
            Standardiser.fit(carved.split("train"))
    for name in args.drop_modality or ():
        if name not in corpus.dims:
            raise InputError(f"{corpus.name}: --drop-modality: no {name} features; there are {', '.join(corpus.dims)}")
    for flag in ("features", "use_trained_GAN"):
        if args.overwrite and args.out and (needed := getattr(args, flag)):
            path = Path(needed).resolve()
            if Path(args.out).resolve() in (path, *path.parents):
                raise InputError(
                    f"--{flag.replace('_', '-')} {needed}: --overwrite would delete it; give another --out"
                )
    if args.use_trained_GAN and len(corpus.dims) > 1:
        load_weights(build_network(args, shape_of(corpus)).fusion, fusion_weights(Path(args.use_trained_GAN)))
    if args.export_fused:
        check_export(args, corpus, args.export_fused)


def prepare_directory(args: argparse.Namespace, corpus: Corpus, directory: Path) -> None:
    """Make sure that the run directory is empty or that of the run to resume.

    Raises:
        InputError: If it is neither.
    """
    if args.resume:
        begun = read_config(directory)
        trained_on = begun["features"]["sha256"]
        if trained_on != corpus.sha256:
            raise InputError(
                f"{corpus.name}: not the data that {directory} was trained on (SHA-256 {corpus.sha256[:12]}…, then "
                f"{trained_on[:12]}…); give the file it was begun with"
            )
        then, now = begun.get("versions", {}), versions()
        if other := [f"{name} {then.get(name)} (now {now[name]})" for name in now if then.get(name) != now[name]]:
            print(f"warning: {directory} was begun with {', '.join(other)}; the bits may differ", file=sys.stderr)
    elif not utils.unused(directory):
        if not args.overwrite:
            raise InputError(f"--out {directory}: exists; choose another, or add --overwrite or --resume {directory}")
        if not (directory / "config.json").exists():
            raise InputError(f"--out {directory}: --overwrite replaces only runs, and this is none; choose another")
        utils.empty(directory)
    utils.sweep(directory)


def default_directory(args: argparse.Namespace) -> str:
    """A run directory named after the data and the time."""
    return f"runs/{'demo' if args.demo else Path(args.features).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def train(args: argparse.Namespace) -> int:
    """Train and report, once or for every seed and fold. Returns the exit status."""
    corpus = load_corpus(args)
    check_before_writing(args, corpus)
    directory = Path(args.resume or args.out or default_directory(args))
    go_on = f"To go on: python {Path(__file__).name} --resume {directory}"
    try:
        with utils.locked(directory):
            prepare_directory(args, corpus, directory)
            figures = train_seeds(args, corpus, directory)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped at once. {go_on}") from None
    except WriteError as error:
        raise TrainingError(f"{error}. What was finished is kept. {go_on}") from None
    if "interrupted" in figures:
        print(f"Interrupted at {figures['interrupted']}. {go_on}", file=sys.stderr)
        return 130
    if args.export_fused:
        export_fused(directory, corpus, args, args.export_fused)
    print(f"Everything about this run is in {directory}.")
    return 0


def train_seeds(args: argparse.Namespace, corpus: Corpus, directory: Path) -> dict[str, Any]:
    """Every seed and, of each, every fold, with a summary over each; or the one run there is."""
    if args.seeds:
        kind = "seed"
        runs = {
            seed: (argparse.Namespace(**{**vars(args), "seed": seed, "seeds": None}), corpus) for seed in args.seeds
        }
    elif args.folds:
        kind = "fold"
        runs = {
            name: (
                argparse.Namespace(**{**vars(args), "folds": None, "fold": [args.folds, args.folds_over, name]}),
                fold,
            )
            for name, fold in cross_validation(corpus, args.folds, args.folds_over).items()
        }
    else:
        return train_or_read(args, corpus, directory)
    write_config(args, corpus, directory)
    every: dict[Any, dict[str, Any]] = {}
    for name, (flags, part) in runs.items():
        print(f"{kind.capitalize()} {name}")
        with utils.locked(directory / f"{kind}{name}"):
            figures = train_seeds(flags, part, directory / f"{kind}{name}")
        if "interrupted" in figures:
            break
        every[name] = figures
    means = summarise(directory, kind, every) if every else {}
    return figures if "interrupted" in figures else means


def train_or_read(args: argparse.Namespace, corpus: Corpus, directory: Path) -> dict[str, Any]:
    """`run_seed`, or what it reported if this run is finished already."""
    finished = directory / "report.json"
    figures = utils.read_json(finished) if finished.exists() else {"interrupted": None}
    if "interrupted" in figures:
        figures = run_seed(args, corpus, directory)
    else:
        print((directory / "report.txt").read_text(encoding="utf-8"))
    if "interrupted" not in figures:
        utils.drop_states(directory)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    try:
        args = parse_args(argv)
        if args.download:
            return feature_files.main(["download", args.download])
        args.device = choose_device(args)
        if args.evaluate:
            evaluate_run(args)
            return 0
        utils.choose_determinism(args.deterministic)
        return train(args)
    except InputError as error:
        message = str(error)  # in which a file's name may have a line break
        print(f"error: {message if message == NO_DATA else ' '.join(message.split())}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(str(stop) or "Stopped.", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not utils.out_of_memory(error):
            raise
        print(
            f"error: out of memory on {args.device}; what was finished is kept; lower --batch-size ({args.batch_size} "
            "now), use fewer --modalities, or --resume where there is more memory",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # no locale that lacks a ± ends a run
    sys.exit(main())
