"""The method: what is random, what is compared with what, whose weights move, what is kept, and that it learns."""

import copy
import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from small import BARE, DIMS, SHORT, copied, corpus, features, moved, same, small_corpus, train, weights, write
from torch import nn

import dataloader
import model
import train_IEMOCAP
import utils
from dataloader import Standardiser, collate
from experiment import insight, plan, plots, settings, trained
from experiment.evaluation import evaluate
from experiment.fused import extract_fused
from experiment.settings import Settings
from model import GANFFN, AdversarialFusion, FusedFeatureGenerator, GraphEmotionClassifier

__all__ = ["corpus", "features"]  # fixtures
BRIEF = [*SHORT, "--epochs", "1", "--GAN-epochs", "1"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return GANFFN(AdversarialFusion(DIMS, 16), GraphEmotionClassifier(16, 6, 2))


@pytest.fixture
def batch(corpus):
    standardise = Standardiser.fit(corpus.split("train"))
    return collate([standardise(d) for d in corpus.split("train")])


@pytest.fixture
def watch(monkeypatch):
    """Replace a function of a module by one that also tells what it was given and what it gave."""

    def watch(module, name, tell):
        real = getattr(module, name)

        def watched(*args, **kwargs):
            result = real(*args, **kwargs)
            tell(args, result)
            return result

        monkeypatch.setattr(module, name, watched)

    return watch


# Random numbers -------------------------------------------------------------------------------------------------------


def random_states():
    return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]


def test_looking_touches_no_random_state(network, corpus):
    network.train()
    before = random_states()
    evaluate(network, corpus.split("train"))
    extract_fused(network.fusion, corpus.split("train"))
    assert random_states() == before
    torch.rand(1)
    assert random_states() != before


@pytest.mark.parametrize("shuffled", [True, False], ids=["shuffled", "in order"])
def test_scoring_the_test_split_at_every_epoch_changes_no_weight(shuffled, features, tmp_path, monkeypatch):
    if not shuffled:
        monkeypatch.setattr(train_IEMOCAP, "batches", lambda some, size, _=None: dataloader.batches(some, size))
    run = ["--features", features, *SHORT, "--GAN-epochs", "0", "--epochs", "3"]
    blind, seeing = train(tmp_path / "a", *run), train(tmp_path / "b", *run, "--report-best-test")
    assert "test_weighted_f1" in pd.read_csv(seeing / "history.csv")
    assert same(weights(blind), weights(seeing))
    assert pd.read_csv(blind / "history.csv")["train_loss"].equals(pd.read_csv(seeing / "history.csv")["train_loss"])


def test_epochs_of_stage_1_change_neither_first_weights_nor_order_nor_noise_of_stage_2(
    features, tmp_path, monkeypatch, watch
):
    first, seen = [], []
    watch(train_IEMOCAP, "build_network", lambda _, network: first.append(copied(network)))
    forward = GANFFN.forward

    def forward_and_tell(network, batch):
        if network.training:
            seen[-1].append((batch.ids, batch.mask.tolist()))
        return forward(network, batch)

    monkeypatch.setattr(GANFFN, "forward", forward_and_tell)
    for epochs in ("0", "2"):
        seen.append([])
        train(tmp_path / epochs, "--features", features, *SHORT, "--GAN-epochs", epochs)
    assert same(*first)
    assert seen[0] == seen[1]
    ids = [[i for i, _ in seen[0][k : k + 2]] for k in (0, 2)]
    assert ids[0] != ids[1]  # another order at every epoch


def test_streams_differ_by_name_and_seed_and_are_always_the_same():
    names = ("weights", "stage 1", "stage 2", "order in stage 1", "order in stage 2")
    seeds = [utils.stream(seed, name) for seed in (0, 1, 2**32 - 1) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [utils.stream(seed, name) for seed in (0, 1, 2**32 - 1) for name in names]


# Stage 1 --------------------------------------------------------------------------------------------------------------


def test_stage_1_reads_clean_features_and_compares_with_them_and_stage_2_reads_noisy_ones(
    corpus, features, tmp_path, monkeypatch
):
    standardise = Standardiser.fit(corpus.split("train"))
    clean = {d.id: standardise(d).features for d in corpus.split("train")}
    step, forward, read, compared = train_IEMOCAP.adversarial_step, AdversarialFusion.forward, [], []

    def forward_and_tell(fusion, batch):
        if fusion.training:
            read.append(batch)
        return forward(fusion, batch)

    def step_and_tell(fusion, real, *others):
        compared.append((real, read[-1]))
        return step(fusion, real, *others)

    monkeypatch.setattr(AdversarialFusion, "forward", forward_and_tell)
    monkeypatch.setattr(train_IEMOCAP, "adversarial_step", step_and_tell)
    train(tmp_path / "a", "--features", features, *SHORT, "--drop-modality", "visual:0.4")
    assert len(compared) == 4 and len(read) == 8
    thinned = 0
    for batch in [each for pair in compared for each in pair]:
        for i, name in enumerate(batch.ids):
            for m in DIMS:
                there = batch.has(m)[i]
                expected = torch.from_numpy(clean[name][m])[there[: len(clean[name][m])]]
                assert torch.equal(batch.features[m][i, there], expected)
            thinned += len(clean[name]["text"]) - int(batch.mask[i].sum())
    assert thinned
    noise = []
    for batch in read[-4:]:
        for i, name in enumerate(batch.ids):
            there = batch.has("text")[i]
            noise.append(
                batch.features["text"][i, there]
                - torch.from_numpy(clean[name]["text"])[there[: len(clean[name]["text"])]]
            )
    assert torch.cat(noise).std().item() == pytest.approx(0.5, rel=0.15)


def test_each_step_leaves_the_weights_of_the_other_side_alone(network, batch):
    fusion = network.fusion.train()
    generating = nn.ModuleList([fusion.generators, fusion.decoders, fusion.translators])
    optimizers = {
        "discriminators": utils.AdamW(fusion.discriminators.parameters(), lr=1e-2, weight_decay=0),
        "generators": utils.AdamW(generating.parameters(), lr=1e-2, weight_decay=0),
    }
    changed, gradients = {}, []

    def telling(name, step):
        def step_and_tell():
            before = copied(fusion)
            step()
            changed[name] = moved(before, copied(fusion))
            gradients.append([p.grad.clone() for p in fusion.discriminators.parameters()])

        return step_and_tell

    for name, optimizer in optimizers.items():
        optimizer.step = telling(name, optimizer.step)
    train_IEMOCAP.adversarial_step(fusion, batch, fusion(batch), fusion.loss_weights(0.1), *optimizers.values())
    # A relativistic discriminator's last bias cancels out of its loss: what moves it is rounding.
    names = {f"discriminators.{n}" for n, _ in fusion.discriminators.named_parameters() if "4.bias" not in n}
    assert {n for n in changed["discriminators"] if "4.bias" not in n} == names
    names = {n for n, _ in fusion.named_parameters() if n.startswith(("generators", "decoders", "translators"))}
    assert changed["generators"] == names
    after_their_own, at_the_end = gradients
    assert all(map(torch.equal, after_their_own, at_the_end)) and all(g.any() for g in after_their_own[:-1:2])


def test_the_norm_that_is_logged_is_that_before_clipping(network, batch, monkeypatch):
    norms = []
    for most in (1e9, 1e-3):
        monkeypatch.setattr(train_IEMOCAP, "CLIP_GRADIENT", most)
        fusion = copy.deepcopy(network.fusion).eval()
        generating = nn.ModuleList([fusion.generators, fusion.decoders])
        optimizers = train_IEMOCAP.optimizer_of_discriminators(fusion, 0.0), torch.optim.SGD(generating.parameters(), 0)
        weights = fusion.loss_weights(0.1)
        norms.append(train_IEMOCAP.adversarial_step(fusion, batch, fusion(batch), weights, *optimizers)[2])
        held = utils.gradient_norm(generating.parameters())
    assert norms[0] == pytest.approx(norms[1]) and held == pytest.approx(1e-3, rel=1e-3) and norms[1] > 1e-2


class Own(FusedFeatureGenerator):
    """A stranger's generator."""

    def __init__(self, in_channels, fused_channels, dropout):  # it need not know of --causal
        super().__init__(in_channels, fused_channels, dropout)

    def build(self, hidden):
        self.mine = nn.Linear(hidden, hidden)

    def encode(self, x, mask):
        return self.mine(x)


def test_a_generator_of_one_s_own_is_a_constructor(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(model.GENERATORS, "linear", Own)
    short = {"fusion__epochs": 1, "fusion__channels": 16, "classifier__epochs": 1, "run__device": "cpu"}
    chosen = Settings().replace(**short, fusion__generator="linear", run__pictures=False, run__tensorboard=False)
    report = train_IEMOCAP.run_seed(chosen, corpus, tmp_path)
    assert np.isfinite(report["test"]["loss"])
    initial = AdversarialFusion(DIMS, 16, generator=Own)
    own = {f"generators.{m}.mine.{part}" for m in DIMS for part in ("weight", "bias")}
    assert own <= moved(copied(initial), weights(tmp_path, "fusion"))


class Sized(AdversarialFusion):
    """A stranger's loss of stage 1."""

    weight = 1.0

    def loss_weights(self, weight):
        return {**super().loss_weights(weight), "size": self.weight}

    def size_loss(self, batch, rows):
        return torch.stack([(f.abs().mean() - 3) ** 2 for f in rows.values()])


@pytest.fixture
def drawn(monkeypatch):
    """Every picture's panels: title to names of the lines and, where there is one, the height of the even line."""
    pictures = {}

    def look(figure, path, formats=()):
        panels = {}
        for axis in figure.axes:
            lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
            panels[axis.get_title()] = lines
        pictures[path.name] = panels
        plots.plt.close(figure)
        return []

    monkeypatch.setattr(plots, "save", look)
    monkeypatch.setattr(insight, "plane", lambda points: points[:, :2])  # maps take a second, and are not looked at
    return pictures


def test_a_loss_of_one_s_own_is_trained_logged_and_drawn(features, tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(trained, "AdversarialFusion", Sized)
    run = ["--features", features, *SHORT]
    with_it = train(tmp_path / "with", *run, "--pictures")
    losses = pd.read_csv(with_it / "GAN_loss.csv")
    assert np.isfinite(losses[[f"{m}_size" for m in DIMS]]).all(axis=None)
    assert set(drawn["fusion_losses"]["Size"]) == set(DIMS)
    assert drawn["fusion_losses"]["Size"]["text"] == pytest.approx(losses["text_size"].tolist())
    monkeypatch.setattr(Sized, "weight", 0.0)
    without = train(tmp_path / "without", *run)
    changed = moved(weights(with_it, "fusion"), weights(without, "fusion"))
    assert {f"generators.{m}.embed.weight" for m in DIMS} <= changed


@pytest.mark.parametrize(("loss", "discriminator"), [("relativistic", math.log(2)), ("reference", 2 * math.log(2))])
def test_the_even_line_is_where_neither_side_wins(loss, discriminator, features, tmp_path, batch, drawn, monkeypatch):
    train(tmp_path / "a", "--features", features, *BRIEF, "--pictures", "--GAN-loss", loss)
    panels = drawn["GAN_loss"]
    even = {t: [y[0] for n, y in panels[t].items() if "neither" in n] for t in ("Generators", "Discriminators")}
    assert even == {"Generators": [pytest.approx(math.log(2))], "Discriminators": [pytest.approx(discriminator)]}
    # And so the losses are where no logit differs from another.
    fusion = AdversarialFusion(DIMS, 16, relativistic=loss == "relativistic")
    for each in fusion.discriminators.values():
        nn.init.zeros_(each.layers[-1].weight)
        nn.init.zeros_(each.layers[-1].bias)
    fused = fusion(batch)
    assert fusion.discriminator_losses(batch, fused, gamma=1.0)["text"].item() == pytest.approx(discriminator)
    assert fusion.generator_losses(batch, fused)["text"]["adversarial"].item() == pytest.approx(math.log(2))


# What is kept, and learning -------------------------------------------------------------------------------------------


def test_the_average_is_corrected_for_its_first_steps():
    module, decay, steps = nn.Linear(3, 2), 0.9, []
    average = utils.AveragedWeights(module, decay)
    for _ in range(7):
        nn.init.normal_(module.weight)
        steps.append(module.weight.detach().clone())
        average.update_parameters(module)
        t = len(steps)
        shares = [decay ** (t - i) * (1 - decay) / (1 - decay**t) for i in range(1, t + 1)]
        assert sum(shares) == pytest.approx(1)
        expected = sum(share * weight for share, weight in zip(shares, steps, strict=True))
        assert torch.allclose(average.module.weight, expected, atol=1e-6)


def test_what_is_kept_of_both_stages_is_the_average(features, tmp_path, monkeypatch, watch):
    averages, last = [], {}
    watch(train_IEMOCAP, "AveragedWeights", lambda _, average: averages.append(average))
    watch(train_IEMOCAP, "train_classifier", lambda args, _: last.update(network=copied(args[0])))
    watch(train_IEMOCAP, "adversarial_step", lambda args, _: last.update(fusion=copied(args[0].generators)))
    run = train(tmp_path / "a", "--features", features, *SHORT)
    of_fusion, of_network = (copied(average.module) for average in averages)
    kept = {n.removeprefix("generators."): x for n, x in weights(run, "fusion").items() if n.startswith("generators.")}
    averaged = {n for n in kept if ".norm." not in n}  # statistics are taken once more when stage 1 is done
    assert {n: kept[n].tolist() for n in averaged} == {n: of_fusion[n].tolist() for n in averaged}
    assert moved(kept, last["fusion"]) >= {n for n in averaged if n.endswith("weight")}
    assert same(weights(run), of_network)
    # Of the generators, what makes the own channels learns in stage 2; what stage 1 has fused stays as it is.
    generators = {n for n in of_network if n.startswith("fusion.generators")}
    rests = {n for n in generators if ".own." not in n}
    assert same(
        {n: weights(run)[n] for n in rests}, {n: weights(run, "fusion")[n.removeprefix("fusion.")] for n in rests}
    )
    learnt = (generators - rests) | {n for n in of_network if n.startswith(("speaker_encoders", "classifier"))}
    assert moved(weights(run), last["network"]) >= {n for n in learnt if n.endswith("weight")}


@pytest.mark.parametrize("steps", [1, 10])
def test_a_stage_1_of_few_steps_has_a_schedule(steps, features, tmp_path):
    run = train(tmp_path / "a", "--features", features, *BRIEF, "--batch-size", "10", "--GAN-epochs", steps)
    rates = pd.read_csv(run / "GAN_loss.csv")["learning_rate"]
    assert len(rates) == steps and rates.between(0, Settings().fusion.lr).all()


def test_training_learns(tmp_path):
    """On a small separable corpus; a network that says the largest class has a quarter of it."""
    corpus = small_corpus(train=16, test=8)
    rng = np.random.default_rng(0)
    ways = {m: 3 * np.linalg.qr(rng.normal(size=(8, 8)))[0][:6] for m in DIMS}
    dialogues = {
        i: replace(d, features={m: (ways[m][d.labels] + rng.normal(size=(len(d), 8))).astype(np.float32) for m in DIMS})
        for i, d in corpus.dialogues.items()
    }
    path = write(replace(corpus, dialogues=dialogues), tmp_path / "easy.pkl")
    run = ["--features", path, "--fused-channels", "32", *BARE, "--lr", "5e-3", "--epochs", "10", "--GAN-epochs", "8"]
    directory = train(tmp_path / "a", *run)
    labels = np.concatenate([d.labels for d in corpus.split("test")])
    majority = np.full_like(labels, np.bincount(np.concatenate([d.labels for d in corpus.split("train")])).argmax())
    floor = 100 * f1_score(labels, majority, average="weighted", zero_division=0)
    report = json.loads((directory / "report.json").read_text())
    assert report["test"]["weighted_f1"] > floor + 40
    losses = pd.read_csv(directory / "history.csv")["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0] - 0.3
    rebuilding = pd.read_csv(directory / "GAN_loss.csv")[[f"{m}_reconstruction" for m in DIMS]]
    assert (rebuilding.iloc[-1] < rebuilding.iloc[0]).all()


def test_a_metric_of_one_s_own_is_reported_and_summarised(features, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(utils.METRICS, "share_right", lambda labels, p: float((p.argmax(1) == labels).mean()))
    run = train(tmp_path / "a", "--features", features, *BRIEF, "--seeds", "0,1")
    each = [json.loads((run / f"seed{s}" / "report.json").read_text())["test"] for s in (0, 1)]
    assert all(one["share_right"] == pytest.approx(one["accuracy"] / 100) for one in each)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["mean"]["test"]["share_right"] == pytest.approx(np.mean([one["share_right"] for one in each]))
    assert "share_right" in capsys.readouterr().out


def test_without_a_graph_the_network_has_as_many_parameters(features, tmp_path):
    run = ["--features", features, *BRIEF]
    reports = [
        json.loads((train(tmp_path / name, *run, *flags) / "report.json").read_text())
        for name, flags in (("graph", []), ("none", ["--window-past", "0", "--window-future", "0"]))
    ]
    assert reports[0]["parameters"] == reports[1]["parameters"]
    changed = moved(weights(tmp_path / "graph"), weights(tmp_path / "none"))
    assert {f"fusion.generators.{m}.embed.weight" for m in DIMS} <= changed


def test_names_of_the_settings_are_those_of_the_rooms_they_are_for():
    assert settings.MODALITIES == dataloader.MODALITIES
    assert tuple(model.GENERATORS) == settings.GENERATORS
    assert plan.utils.METRICS is utils.METRICS


STEPS = """
import sys, types, torch, utils
torch.manual_seed(0)
x = torch.randn(3, 5, 4)
weights = {}
for make in (utils.AdamW, torch.optim.AdamW):
    torch.manual_seed(1)
    network = torch.nn.Linear(4, 3)
    optimizer = make(network.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.5, 0.99))
    utils.choose_determinism(False)
    for rows in x:
        optimizer.zero_grad()
        network(rows).square().sum().backward()
        optimizer.step()
    weights[make] = network.weight.detach()
    if make is utils.AdamW:
        assert "torch._dynamo" not in sys.modules, "torch's compiler was imported"
        # Torch's own asks it for no more than this; to import it takes longer than all else here.
        stand_in = {"disable": lambda function, *_, **__: function, "graph_break": lambda: None}
        sys.modules["torch._dynamo"] = torch._dynamo = types.SimpleNamespace(**stand_in)
assert torch.allclose(*weights.values()), weights
"""


def test_the_optimizer_is_torch_s_less_the_import_of_its_compiler():
    process = subprocess.run(
        [sys.executable, "-c", STEPS], cwd=Path(utils.__file__).parent, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
