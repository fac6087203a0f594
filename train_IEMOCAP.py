"""Train GAN-FFN on a feature file and report how well it recognises emotions.

    python train_IEMOCAP.py --features IEMOCAP_features/IEMOCAP_features.pkl
    python train_IEMOCAP.py --demo

`run_seed` is the method, told from top to bottom.
"""

from __future__ import annotations

from experiment.start import begin, ready

if __name__ == "__main__":
    begin("experiment.flags")  # wrong flags and --help are answered here, before the imports that take seconds

import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import feature_files
import parallel
import utils
from dataloader import (
    Batch,
    Corpus,
    Dialogue,
    batches,
    class_weights,
    hold_out_validation,
    session_logit_adjustment,
)
from experiment.checks import check_alike, check_before_writing, check_export
from experiment.console import announce, leave, say
from experiment.cores import watched as watched_cores
from experiment.corpus import NO_DATA, load_corpus
from experiment.evaluation import best_epoch, evaluate, report
from experiment.flags import Command, parse_args
from experiment.fused import export_fused, with_shared
from experiment.fusion_quality import quality_of_run
from experiment.look import leave_a_look
from experiment.plan import out_of_fold, plan, train_plan
from experiment.rescoring import rescore
from experiment.run import Run
from experiment.run_directory import (
    check_same_run,
    locked,
    prepare_directory,
    read_config,
    save_tensors,
    write_config,
)
from experiment.settings import Settings, from_json
from experiment.tensorboard import WATCHED, discriminators_right
from experiment.trained import (
    build_network,
    fusion_weights,
    load_weights,
    shape_of,
    source_of_stage_1,
    standardisation,
    standardiser_file,
)
from files import InputError, InterruptedRunError, TrainingError, WriteError, printable
from model import GANFFN, AdversarialFusion, emotion_loss
from parallel import LostProcessError, complain
from utils import AveragedWeights, finite, finite_weights, stream

# What the method fixes; benchmarks/ shows what each is worth.
REFERENCE_DISCRIMINATOR_LR_RATIO = 0.5  # discriminators' learning rate over generators' in the reference; here 1
GRADIENT_PENALTY = 1.0  # weight of R1 and R2
EMA_DECAY = 0.98  # of the averaged weights, a step
CLIP_GRADIENT = 1.0  # norm
WARM_UP = 0.1  # part of stage 1 in which its learning rate rises
GLANCE = 100  # turns of a dialogue that the averaged weights are tried on

# The method ----------------------------------------------------------------------------------------------------------


def run_seed(settings: Settings, corpus: Corpus, directory: Path) -> dict[str, Any]:
    """GAN-FFN, for one seed. Returns what ``report.json`` holds."""
    corpus = hold_out_validation(corpus, settings.data.valid, settings.run.seed)
    write_config(directory, settings, corpus)
    standardise = standardisation(settings, corpus, directory)
    data = {split: [standardise(d) for d in corpus.split(split)] for split in corpus.splits}
    torch.manual_seed(stream(settings.run.seed, "weights"))
    network = build_network(shape_of(corpus), settings.fusion, settings.classifier).to(settings.run.device)
    run = Run(directory, network, tensorboard=settings.run.tensorboard, checkpoint_every=settings.run.checkpoint_every)
    save_tensors(standardiser_file(directory), standardise.tensors())
    announce(corpus, network, settings.run.device, directory)

    interrupted, held_out = None, []
    try:
        with run.stoppable(), watched_cores():
            if not run.reached("classifier"):
                train_adversarial_fusion(network.fusion, data["train"], run, settings)
                save_tensors(fusion_weights(directory), network.fusion.state_dict())
            train_classifier(network, data, run, settings, corpus.label_names)
        if settings.run.calibrate:
            held_out = out_of_fold(settings, corpus, directory, run_seed)
    except InterruptedRunError as stop:
        interrupted = str(stop)
    if parallel.follows():
        return {}
    figures = report(
        network,
        data,
        corpus.label_names,
        run,
        best_on_test=settings.run.report_best_test,
        interrupted=interrupted,
        fusion=quality_of_run(network.fusion, settings.fusion, run, data),
        out_of_fold=held_out,
    )
    leave_a_look(directory, settings.run, network=network, dialogues=data["test"])
    return figures


def train_adversarial_fusion(
    fusion: AdversarialFusion, dialogues: Sequence[Dialogue], run: Run, settings: Settings
) -> None:
    """Stage 1: every modality's fused features learn to pass for the other modalities'.

    No label is looked at, and features are clean: with noise the game looks even in training and is lost without. At
    the end the generators are the exponential moving average of themselves over the steps (arXiv 1806.04498).
    """
    epochs = settings.fusion.epochs
    if len(fusion.generators) < 2:
        say("One modality: there is nothing to fuse, so stage 1 is skipped.")
        return
    if settings.fusion.trained_run:
        if not run.reached("adversarial"):  # then they are restored below
            load_weights(fusion, fusion_weights(source_of_stage_1(settings.fusion, run.directory)))
        epochs = settings.fusion.more_epochs
    torch.manual_seed(stream(settings.run.seed, "stage 1"))
    shuffle = torch.Generator().manual_seed(stream(settings.run.seed, "order in stage 1"))
    loader = batches(dialogues, settings.run.batch_size, shuffle)
    weights = fusion.loss_weights(settings.fusion.weight)
    average = AveragedWeights(fusion.generators, EMA_DECAY)
    generating = nn.ModuleList([fusion.generators, fusion.decoders, fusion.translators])
    lr, weight_decay = settings.fusion.lr, settings.classifier.weight_decay
    generator_optimizer = utils.AdamW(generating.parameters(), lr, weight_decay=weight_decay)
    steps = max(2, epochs * len(loader))
    rise = max(WARM_UP, 1.5 / steps)  # of ten steps torch divides by 10 * 0.1 - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        generator_optimizer, lr, total_steps=steps, pct_start=rise, cycle_momentum=False
    )
    ratio = 1.0 if fusion.relativistic else REFERENCE_DISCRIMINATOR_LR_RATIO
    discriminator_optimizer = optimizer_of_discriminators(fusion, ratio * lr)
    parts = {
        "fusion": fusion,
        "average": average,
        "generator_optimizer": generator_optimizer,
        "discriminator_optimizer": discriminator_optimizer,
        "schedule": schedule,
        "shuffle": shuffle,
    }
    done = run.restore("adversarial", parts)
    for epoch in run.epochs("stage 1", done, epochs):
        started = time.perf_counter()
        fusion.train()
        losses, norms = [], []
        for step, (_, batch) in enumerate(parallel.deal(loader, replace(settings.augmentation, noise=0.0)), 1):
            batch = batch.to(settings.run.device)

            discriminator_losses, generator_losses, norm = adversarial_step(
                fusion, batch, fusion(batch), weights, discriminator_optimizer, generator_optimizer
            )
            schedule.step()
            average.update_parameters(fusion.generators)

            losses.append(
                {f"{m}_G_loss": terms["adversarial"] for m, terms in generator_losses.items()}
                | {f"{k}_D_loss": loss for k, loss in discriminator_losses.items()}
                | {
                    f"{m}_{name}": terms[name]
                    for name in weights
                    if name != "adversarial"
                    for m, terms in generator_losses.items()
                }
            )
            norms.append(
                {"D_gradient_norm": utils.gradient_norm(fusion.discriminators.parameters()), "G_gradient_norm": norm}
            )
            where = f"epoch {epoch} of stage 1, step {step}"
            run.stop_here(where)
        means = utils.means_of_steps(losses, norms, f"epoch {epoch} of stage 1")
        finite_weights(fusion, where)
        means |= discriminators_right(fusion, batch) | {"learning_rate": schedule.get_last_lr()[0]}
        run.log("adversarial", {"epoch": epoch, **means, "seconds": time.perf_counter() - started})
        run.save("adversarial", epoch, parts)
    if epochs:
        fusion.generators.load_state_dict(average.module.state_dict())
        fusion.settle(batch.to(settings.run.device) for batch in batches(dialogues, settings.run.batch_size))


def optimizer_of_discriminators(fusion: AdversarialFusion, lr: float) -> torch.optim.Optimizer:
    """Adam without decay, as R3GAN's discriminators have it; the momentum is 0.5, theirs is 0."""
    return utils.AdamW(fusion.discriminators.parameters(), lr, betas=(0.5, 0.99), weight_decay=0)


def adversarial_step(
    fusion: AdversarialFusion,
    batch: Batch,
    fused: Mapping[str, Tensor],
    weights: Mapping[str, float],
    discriminator_optimizer: torch.optim.Optimizer,
    generator_optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], Tensor]:
    """A step of the discriminators, then one of the generators.

    Returns:
        The losses of the discriminators by modality, those of the generators by modality and name, both detached, and
        the norm of the generators' gradients before they are clipped.
    """
    # Discriminators: tell a modality's fused features from the others'.
    discriminator_losses = fusion.discriminator_losses(batch, fused, gamma=GRADIENT_PENALTY)
    discriminator_optimizer.zero_grad()
    sum(discriminator_losses.values()).backward()
    parallel.sum_gradients(fusion.discriminators.parameters())
    discriminator_optimizer.step()

    # Generators: pass for the other modalities and, unlike the reference's, keep to the utterance.
    generator_losses = fusion.generator_losses(batch, fused)
    loss = sum(weights[name] * term for terms in generator_losses.values() for name, term in terms.items())
    generator_optimizer.zero_grad()
    generating = [p for group in generator_optimizer.param_groups for p in group["params"]]
    loss.backward(inputs=generating)  # the discriminators get no gradient from this half
    parallel.sum_gradients(generating)
    norm = nn.utils.clip_grad_norm_(generating, CLIP_GRADIENT)
    generator_optimizer.step()
    discriminator_losses = {k: loss.detach() for k, loss in discriminator_losses.items()}
    generator_losses = {m: {name: x.detach() for name, x in terms.items()} for m, terms in generator_losses.items()}
    return discriminator_losses, generator_losses, norm


def train_classifier(
    network: GANFFN,
    data: Mapping[str, Sequence[Dialogue]],
    run: Run,
    settings: Settings,
    label_names: Sequence[str] = (),
) -> None:
    """Stage 2: generators and graph classifier learn the emotions together; what stage 1 has fused stays fused.

    What is kept is an exponential moving average of the weights over the steps: that of the last epoch, where the
    schedule has come to rest, or with a validation split that of the epoch which scores best there.
    """
    flags, device, classes = settings.classifier, settings.run.device, network.classifier.num_classes
    torch.manual_seed(stream(settings.run.seed, "stage 2"))
    shuffle = torch.Generator().manual_seed(stream(settings.run.seed, "order in stage 2"))
    steps = max(2, flags.epochs * math.ceil(len(data["train"]) / settings.run.batch_size))
    weight = class_weights(data["train"], classes).to(device) if flags.class_weight else None
    adjustment = session_logit_adjustment(data["train"], classes) if flags.session_logit_adjustment else {}
    average = AveragedWeights(network, EMA_DECAY)
    at_rest = len(network.fusion.generators) > 1 and settings.fusion.takes_place
    if at_rest:
        for generator in network.fusion.generators.values():
            generator.rest()
    learning = nn.ModuleList([network.fusion.generators, network.speaker_encoders, network.classifier]).parameters()
    learning = [p for p in learning if p.requires_grad]
    network.requires_grad_(False)  # discriminators, decoders and translators rest
    for p in learning:
        p.requires_grad_()
    optimizer = utils.AdamW(learning, flags.lr, weight_decay=flags.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, flags.lr, total_steps=steps, cycle_momentum=False)
    parts = {"network": network, "average": average, "optimizer": optimizer, "schedule": schedule, "shuffle": shuffle}
    done = run.restore("classifier", parts)
    train = with_shared(network.fusion, data["train"]) if at_rest else data["train"]
    loader = batches(train, settings.run.batch_size, shuffle)
    glance = min(train, key=len).first(GLANCE)
    for epoch in run.epochs("stage 2", done, flags.epochs):
        started = time.perf_counter()
        network.train()
        losses, norms, labels, probabilities = [], [], [], []
        for step, (_, batch) in enumerate(parallel.deal(loader, settings.augmentation), 1):
            batch = batch.to(device)
            logits, *unimodal = network.readings(batch) if flags.unimodal_loss else [network(batch)]
            shift = 0.0
            if adjustment:
                shift = torch.stack([adjustment[i] for i in batch.ids]).unsqueeze(1).to(logits)
            loss, *others = (
                emotion_loss((read + shift)[batch.labelled], batch.labels[batch.labelled], weight, flags.focal)
                for read in (logits, *unimodal)
            )
            loss = (loss + flags.unimodal_loss * sum(others)) / (1 + flags.unimodal_loss * len(others))
            optimizer.zero_grad()
            loss.backward()
            parallel.sum_gradients(learning)
            norms.append({"gradient_norm": nn.utils.clip_grad_norm_(learning, CLIP_GRADIENT)})
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            losses.append({"train_loss": loss.detach()})
            labels.append(batch.labels[batch.labelled])
            probabilities.append(logits.detach()[batch.labelled].softmax(-1))
            where = f"epoch {epoch} of stage 2, step {step}"
            run.stop_here(where)
        means = utils.means_of_steps(losses, norms, f"epoch {epoch} of stage 2")
        finite_weights(network, where)
        every = (torch.cat(parallel.gathered([torch.cat(parts).cpu()])).numpy() for parts in (labels, probabilities))
        row = {"epoch": epoch, "train_loss": means["train_loss"], "train_weighted_f1": utils.weighted_f1(*every)}
        for split in ("valid", *(["test"] if settings.run.report_best_test else [])):
            if split in data:
                scored = utils.labelled(*evaluate(average.module, data[split]))
                row |= {f"{split}_loss": utils.loss(*scored), f"{split}_weighted_f1": utils.weighted_f1(*scored)}
                row |= {
                    f"{split}_f1_{name}": f1 for name, f1 in utils.per_class_f1(*scored, label_names[:WATCHED]).items()
                }
                finite(torch.tensor(row[f"{split}_loss"]), f"{where}, on {split}")
        # Without validation nothing else looks at what the averaged weights say before they are kept.
        finite(torch.from_numpy(evaluate(average.module, [glance])[1]).sum(), where, "output")
        if best_epoch([*run.history["classifier"], row]) == epoch:
            run.keep(average.module.state_dict())
        row |= {"gradient_norm": means["gradient_norm"], "learning_rate": schedule.get_last_lr()[0]}
        run.log("classifier", {**row, "seconds": time.perf_counter() - started})
        run.save("classifier", epoch, parts)


# Around the method ----------------------------------------------------------------------------------------------------


def evaluate_run(command: Command) -> None:
    """Score a finished run again, or those of several seeds as one, on its own feature file or on another alike."""
    directory, asked = Path(command.evaluate), command.settings
    config = read_config(directory)
    settings = from_json(config["settings"], str(directory / "config.json")).replace(run__device=asked.run.device)
    for name in ("missing", "label_names"):
        if f"data.{name}" in command.given:
            settings = settings.replace(**{f"data__{name}": getattr(asked.data, name)})
    if asked.data.features or asked.data.demo:
        settings = settings.replace(data__features=asked.data.features, data__demo=asked.data.demo, data__fold=None)
    if not (settings.data.features or settings.data.demo):
        raise InputError(f"{directory / 'config.json'}: data.features: names no file; say which with --features FILE")
    utils.choose_determinism(settings.run.deterministic)
    corpus = load_corpus(settings, needs=["test"])
    if command.export_fused:
        check_export(settings, corpus, command.export_fused)
    say(rescore(command, settings, corpus))
    if command.export_fused:
        export_fused(directory, corpus, settings, command.export_fused, command.export_stage)


def train(command: Command) -> int:
    """Train and report, once or for every seed and fold. Returns the exit status."""
    settings = command.settings
    corpus = load_corpus(settings)
    runs = plan(settings, corpus, command.seeds, command.folds, command.folds_over)
    check_before_writing(command, runs)
    data = "demo" if settings.data.demo else Path(settings.data.features).stem
    name = parallel.from_first(lambda: f"{printable(data, 80)}-{time.strftime('%Y%m%d-%H%M%S')}")
    check_alike(command, corpus)
    directory = Path(command.resume or command.out or f"runs/{name}")
    go_on = f"To go on: {parallel.launcher()} {Path(__file__).name} --resume {shlex.quote(str(directory))}"
    go_on += command.together
    try:
        with locked(directory):
            prepare_directory(directory, corpus, resume=bool(command.resume), overwrite=command.overwrite)
            if runs[0].name:
                several = {"seeds": command.seeds, "folds": command.folds, "folds_over": command.folds_over}
                for run in runs:  # before anything is written
                    if (directory / run.name / "config.json").exists():
                        check_same_run(directory / run.name, run.settings, run.corpus)
                write_config(directory, settings, corpus, several)
            figures = train_plan(runs, directory, run_seed, command.jobs, command.cluster)
            if runs[0].name:
                leave_a_look(directory, settings.run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped at once. {go_on}") from None
    except (WriteError, LostProcessError) as error:
        raise TrainingError(f"{error}. What was finished is kept. {go_on}") from None
    if "interrupted" in figures:
        complain(f"Interrupted at {figures['interrupted']}. {go_on}")
        return 130
    if command.export_fused:
        export_fused(directory, corpus, settings, command.export_fused, command.export_stage)
    say(f"Everything about this run is in {directory}.")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 1 if training failed, 2 for bad input, 130 if interrupted."""
    settings = Settings()
    try:
        command = parse_args(argv)
        if command.download:
            return feature_files.main(["download", command.download])
        settings = command.settings.replace(run__device=utils.choose_device(command.settings.run.device))
        settings = settings.replace(run__device=parallel.join(settings.run.device))
        command = replace(command, settings=settings)
        if command.evaluate:
            evaluate_run(command)
            return 0
        utils.choose_determinism(settings.run.deterministic)
        return train(command)
    except InputError as error:
        if str(error) == NO_DATA:
            with suppress(OSError):
                print(f"error: {NO_DATA}", file=sys.stderr)
        else:
            complain(f"error: {error}")
        parallel.leave_word()
        return 2
    except TrainingError as error:
        complain(f"error: {error}")
        return 1
    except KeyboardInterrupt as stop:
        complain(str(stop) or "Stopped.")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not utils.out_of_memory(error):
            raise
        complain(
            f"error: out of memory on {settings.run.device}; what was finished is kept; lower --batch-size "
            f"({settings.run.batch_size} now), use fewer --modalities, or --resume where there is more memory"
        )
        return 1


if __name__ == "__main__":
    ready()
    leave(main())
