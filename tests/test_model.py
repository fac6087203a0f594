"""The networks on small dialogues: padding, edges, gradients, and fast forms against obvious ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import model
from dataloader import Batch, Standardiser, collate
from model import (
    GANFFN,
    GENERATORS,
    SHARED_CHANNELS,
    AdversarialFusion,
    Dropout,
    GraphEmotionClassifier,
    SpeakerEncoder,
    SpeakerEncoders,
    SpeakerRecurrence,
    SpeakerTurns,
    dialogue_edges,
    padded,
    speaker_relative,
)
from synthetic import synthetic_corpus

DIMS = {"text": 8, "visual": 6, "acoustic": 5}


@pytest.fixture
def dialogues():
    corpus = synthetic_corpus(train=3, test=1, mean_length=12, dims=DIMS)
    standardise = Standardiser.fit(corpus.split("train"))
    return [standardise(d) for d in corpus.split("train")]


@pytest.fixture
def network():
    torch.manual_seed(0)
    fusion = AdversarialFusion(DIMS, fused_channels=16)
    return GANFFN(fusion, GraphEmotionClassifier(16, num_classes=6, num_speakers=2, attention=True)).eval()


@pytest.mark.parametrize("turns", [13, 14, 150])
def test_recurrence_equals_a_loop_over_time(turns, monkeypatch):
    """Also where it is taken in chunks, of chunks, which a long dialogue is."""
    monkeypatch.setattr(model, "LONG", 13)
    torch.manual_seed(0)
    keep, update = torch.rand(turns, 2, 3), torch.randn(turns, 2, 3)
    for reverse in (False, True):
        state, states = torch.zeros(2, 3), {}
        for t in reversed(range(turns)) if reverse else range(turns):
            state = (keep[(t + reverse) % turns]) * state + update[t]
            states[t] = state
        expected = torch.stack([states[t] for t in range(turns)])
        assert torch.allclose(model.scan(keep, update.clone(), reverse), expected, atol=1e-5)


@pytest.mark.parametrize("long", [128, 4], ids=["at once", "in chunks"])
@pytest.mark.parametrize("num_speakers", [1, 2, 3])
def test_the_gradient_of_speakers_states_is_that_of_their_numbers(num_speakers, long, monkeypatch):
    monkeypatch.setattr(model, "LONG", long)
    torch.manual_seed(0)
    layers = [SpeakerRecurrence(4).double() for _ in DIMS]
    mask = torch.arange(11) < torch.tensor([[11], [4]])
    speakers = torch.randint(num_speakers, mask.shape)
    speakers[0, num_speakers - 1] = num_speakers - 1
    batch = Batch(("a", "b"), {}, mask, speakers, torch.zeros_like(speakers))
    turns = SpeakerTurns.of(batch, list(DIMS), causal=False)
    x = torch.randn(len(DIMS), int(mask.sum()), 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: SpeakerRecurrence.each(layers, x, turns), [x], fast_mode=True)


@pytest.mark.parametrize("num_speakers", [1, 2, 3])
def test_the_graph_convolution_is_that_of_pytorch_geometric(num_speakers):
    """Its first values and gradients too; where more speak than it knows, the last of them counts for the others."""
    from torch_geometric.nn import RGCNConv

    torch.manual_seed(0)
    theirs = RGCNConv(8, 8, num_relations=2 * num_speakers**2)
    torch.manual_seed(0)
    ours = model.RelationalConvolution(8, 8, num_speakers)
    first = theirs.state_dict(), ours.state_dict()
    assert all(torch.equal(first[1].pop(name), value) for name, value in first[0].items()) and not first[1]
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    speakers = torch.randint(0, 4, mask.shape)
    edges = model.dialogue_edges(mask, speakers, 2, 3, num_speakers)
    x = torch.randn(int(mask.sum()), 8)
    known = speakers[mask].clamp(max=num_speakers - 1)
    given = [x.clone().requires_grad_() for _ in range(2)]
    neighbours = model.Neighbours.of(*edges, known, num_speakers)
    results = theirs(given[0], *edges), ours(given[1], neighbours)
    assert torch.allclose(*results, atol=1e-5)
    for result in results:
        result.square().sum().backward()
    for one, other in zip([given[0], *theirs.parameters()], [given[1], *ours.parameters()], strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_speakers_states_are_those_of_their_own_turns_and_the_others_sum(causal):
    torch.manual_seed(0)
    layers = {m: SpeakerRecurrence(4) for m in DIMS}
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    has = {m: mask.clone() for m in DIMS}
    has["text"][0, 2] = False  # a turn that lacks the modality
    speakers = torch.randint(3, mask.shape)
    batch = Batch(("a", "b"), {}, mask, speakers, torch.zeros_like(speakers), has)
    x = torch.randn(len(DIMS), int(mask.sum()), 4)
    found = SpeakerRecurrence.each(list(layers.values()), x, SpeakerTurns.of(batch, list(DIMS), causal))
    for m, rows, result in zip(DIMS, x, found, strict=True):
        gates = padded(layers[m].gate(rows).sigmoid(), mask)
        updates = gates * padded(layers[m].candidate(rows), mask)
        expected = torch.zeros(2, 9, 8)
        for b in range(2):
            for half, order in ((slice(0, 2), range(9)), (slice(2, 4), range(9) if causal else reversed(range(9)))):
                states = torch.zeros(3, 2)
                for t in order:
                    s = speakers[b, t]
                    if has[m][b, t]:
                        states[s] = (1 - gates[b, t, half]) * states[s] + updates[b, t, half]
                    expected[b, t, half] = states[s]
                    expected[b, t, 4:][half] = states.sum(0) - states[s]
        assert torch.allclose(result, expected[mask], atol=1e-6)


def test_each_layer_reads_its_own_part():
    torch.manual_seed(0)
    layers = [
        torch.nn.Sequential(
            torch.nn.LayerNorm(5), torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 3)
        ).double()
        for _ in range(3)
    ]
    for norm, *_ in layers:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    weights = [p for layer in layers for p in layer.parameters()]
    together, alone = model.each(layers, x), torch.stack([layer(part) for layer, part in zip(layers, x, strict=True)])
    assert torch.allclose(together, alone)
    found, expected = (torch.autograd.grad(y.square().sum(), [x, *weights]) for y in (together, alone))
    assert all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(999, 101, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert y.detach().unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (y == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(Dropout(0.3).eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any() and (Dropout(1 - 1e-9)(x) == 0).float().mean() > 0.99


def test_padding_and_company_change_no_output(network, dialogues):
    together = network(collate(dialogues))
    for i, dialogue in enumerate(dialogues):
        alone = network(collate([dialogue]))[0]
        assert torch.allclose(together[i, : len(dialogue)], alone, atol=1e-5)
        assert not together[i, len(dialogue) :].any()


def test_what_stands_in_the_padding_is_never_read(network, dialogues):
    batch = collate(dialogues)
    noise = {m: torch.where(batch.mask.unsqueeze(-1), x, 1e3) for m, x in batch.features.items()}
    noisy = Batch(batch.ids, noise, batch.mask, batch.speakers, batch.labels)
    assert torch.allclose(network(batch), network(noisy), atol=1e-5)

    def losses(given):
        torch.manual_seed(0)  # the directions of the sliced distance
        return network.fusion.generator_losses(given, network.fusion(given)).values()

    for of, of_noisy in zip(losses(batch), losses(noisy), strict=True):
        assert all(torch.allclose(of[term], of_noisy[term], atol=1e-5) for term in of)


def test_the_gradient_of_real_utterances_goes_back_to_their_places():
    x, mask = torch.randn(2, 3, 4, requires_grad=True), torch.tensor([[True, False, True], [False, True, False]])
    weight = torch.randn(3, 4)
    gradients = [torch.autograd.grad((rows * weight).sum(), x)[0] for rows in (model.real(x, mask), x[mask])]
    assert torch.equal(*gradients)


def test_shapes_are_those_documented(network, dialogues):
    batch = collate(dialogues)
    size = batch.mask.shape
    assert network(batch).shape == (*size, 6)
    assert {m: f.shape for m, f in network.fusion(batch).items()} == dict.fromkeys(DIMS, (*size, 16))
    shared = network.fusion.shared(batch, network.fusion(batch))
    assert {m: x.shape for m, x in shared.items()} == dict.fromkeys(DIMS, (batch.mask.sum(), SHARED_CHANNELS))


def test_speaker_relative_features_have_mean_zero_for_each_speaker(dialogues):
    batch = collate(dialogues)
    relative = speaker_relative(batch.features["text"], batch.mask, batch.speakers)
    for i in range(len(dialogues)):
        for speaker in (0, 1):
            turns = batch.mask[i] & (batch.speakers[i] == speaker)
            assert relative[i, turns].mean(0).abs().max() < 1e-5


def test_three_modalities_play_six_pairs_and_one_plays_none():
    assert len(AdversarialFusion(DIMS, 16).pairs) == 6
    assert len(AdversarialFusion({"text": 8, "acoustic": 5}, 16).pairs) == 2
    assert AdversarialFusion({"text": 8}, 16).pairs == []


def test_each_half_of_the_game_moves_its_own_players_only(network, dialogues):
    fusion, batch = network.fusion, collate(dialogues)
    sum(fusion.discriminator_losses(batch, fusion(batch), gamma=1.0).values()).backward()
    assert all(p.grad.abs().sum() > 0 for n, p in fusion.discriminators.named_parameters() if "4.bias" not in n)
    assert all(p.grad is None for p in [*fusion.generators.parameters(), *fusion.decoders.parameters()])
    losses = fusion.generator_losses(batch, fusion(batch))
    assert {m: sorted(terms) for m, terms in losses.items()} == {
        m: ["adversarial", "contrastive", "reconstruction", "translation"] for m in DIMS
    }
    sum(sum(terms.values()) for terms in losses.values()).backward()
    moved = [*fusion.generators.parameters(), *fusion.decoders.parameters()]
    assert all(p.grad.isfinite().all() and p.grad.any() for p in moved)


@pytest.mark.parametrize("relativistic", [True, False])
@pytest.mark.parametrize("missing", [False, True])
def test_losses_of_stage_1_equal_loops_over_pairs_and_the_utterances_that_have_both(dialogues, relativistic, missing):
    torch.manual_seed(0)
    fusion, batch = AdversarialFusion(DIMS, 16, relativistic=relativistic).double().eval(), collate(dialogues)
    batch = batch.map(lambda x: x.double() if x.is_floating_point() else x)
    if missing:
        batch = batch.drop_modality(dict.fromkeys(DIMS, 0.3))
    fused = {m: f.detach().requires_grad_() for m, f in fusion(batch).items()}

    def rows(m, *having):
        return batch.mask & torch.stack([batch.has(k) for k in (m, *having)]).all(0)

    def slope(k, x):
        (gradient,) = torch.autograd.grad(fusion.discriminators[k](x).sum(), x, create_graph=True)
        return gradient.square().sum(-1)

    def on(k, m, other):
        """Logits of D_k on s_m where both modalities are, and the squares of its slopes there."""
        x = fused[m][rows(m, other)][:, :SHARED_CHANNELS].detach().requires_grad_()
        return fusion.discriminators[k](x), slope(k, x)

    players, passes, translates = {}, {}, {}
    for k in DIMS:
        told, passed, translated = [], [], []
        for m in DIMS:
            if m == k:
                continue
            (own, own_slope), (other, other_slope) = on(k, k, m), on(k, m, k)
            penalty = (own_slope.mean() + other_slope.mean()) / 2
            apart = F.softplus(other - own).mean() + penalty
            told.append(apart if relativistic else F.softplus(-own).mean() + F.softplus(other).mean())
            (theirs, _), (mine, _) = on(m, m, k), on(m, k, m)  # G_k before D_m
            passed.append(F.softplus(theirs - mine).mean() if relativistic else F.softplus(-mine).mean())
            both = rows(k, m)
            made = fusion.translators[m](fused[k][both][:, :SHARED_CHANNELS])
            translated.append(F.smooth_l1_loss(made, batch.features[m][both]))
        players[k], passes[k], translates[k] = (torch.stack(x).mean() for x in (told, passed, translated))
    found = fusion.discriminator_losses(batch, fused, gamma=1.0)
    assert all(torch.allclose(found[k], players[k]) for k in DIMS)
    weights = list(fusion.discriminators.parameters())
    gradients = (torch.autograd.grad(sum(x.values()), weights, allow_unused=True) for x in (found, players))
    assert all(torch.allclose(*pair) for pair in zip(*gradients, strict=True) if None not in pair)

    terms = fusion.generator_losses(batch, fused)
    assert all(torch.allclose(terms[m]["adversarial"], passes[m]) for m in DIMS)
    for m in DIMS if relativistic else ():
        assert torch.allclose(terms[m]["translation"], translates[m])
        rebuilt = F.smooth_l1_loss(fusion.decoders[m](fused[m][rows(m)]), batch.features[m][rows(m)])
        assert torch.allclose(terms[m]["reconstruction"], rebuilt)


@pytest.mark.parametrize("negatives", [512, 5], ids=["whole dialogues", "long ones in parts"])
def test_contrastive_loss_equals_a_loop_over_utterances_that_have_both(network, dialogues, monkeypatch, negatives):
    monkeypatch.setattr(AdversarialFusion, "NEGATIVES", negatives)
    fusion, batch = network.fusion, collate(dialogues)
    has = batch.mask & (torch.rand(batch.mask.shape) < 0.7)
    batch = replace(batch, modality_mask={"text": has})
    fused = fusion(batch)
    rows = {m: f[batch.mask] for m, f in fused.items()}
    sphere = {
        m: f[..., :SHARED_CHANNELS] / f[..., :SHARED_CHANNELS].norm(dim=-1, keepdim=True) for m, f in fused.items()
    }
    means = []
    for k in ("visual", "acoustic"):
        losses = []
        for b, t in has.nonzero().tolist():
            first = t - t % negatives
            found = [i for i in range(first, min(first + negatives, has.shape[1])) if has[b, i]]
            cosines = torch.stack([sphere["text"][b, t] @ sphere[k][b, i] for i in found])
            losses.append(-(cosines / fusion.TEMPERATURE).log_softmax(0)[found.index(t)])
        means.append(torch.stack(losses).mean())
    assert fusion.contrastive_loss(batch, rows)[0].item() == pytest.approx(sum(means).item() / 2, abs=1e-5)


def test_the_task_reaches_every_weight_but_those_of_the_game(network, dialogues):
    batch = collate(dialogues)
    network(batch)[batch.mask].square().sum().backward()
    trained = [*network.fusion.generators.named_parameters(), *network.speaker_encoders.named_parameters()]
    trained += network.classifier.named_parameters()
    without = [name for name, p in trained if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert without == []
    fusion = network.fusion
    resting = [p for each in (fusion.discriminators, fusion.decoders, fusion.translators) for p in each.parameters()]
    assert all(p.grad is None for p in resting)


def obvious_edges(mask, speakers, past, future, num_speakers):
    edges, node = [], {}
    for b in range(len(mask)):
        for t in range(int(mask[b].sum())):
            node[b, t] = len(node)
    for b, t in node:
        for s in range(t - past, t + future + 1):
            if s != t and (b, s) in node:
                kind = 2 * (int(speakers[b, s]) * num_speakers + int(speakers[b, t])) + (s > t)
                edges.append((node[b, s], node[b, t], kind))
    return sorted(edges)


@pytest.mark.parametrize(("past", "future"), [(2, 1), (0, 3), (20, 20), (1, 0)])
def test_edges_equal_a_double_loop(dialogues, past, future):
    batch = collate(dialogues)
    edge_index, edge_type = dialogue_edges(batch.mask, batch.speakers, past, future, 2)
    edges = sorted(zip(*edge_index.tolist(), edge_type.tolist(), strict=True))
    assert edges == obvious_edges(batch.mask, batch.speakers, past, future, 2)


def test_edge_types_of_four_utterances_worked_by_hand():
    mask, speakers = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[0, 1, 1, 0]])
    edge_index, edge_type = dialogue_edges(mask, speakers, window_past=1, window_future=1, num_speakers=2)
    found = dict(zip(zip(*edge_index.tolist(), strict=True), edge_type.tolist(), strict=True))
    # From whom to whom: 0 to 0 is 0 and 1, 0 to 1 is 2 and 3, 1 to 0 is 4 and 5, 1 to 1 is 6 and 7; odd: the future.
    assert found == {(0, 1): 2, (1, 0): 5, (1, 2): 6, (2, 1): 7, (2, 3): 4, (3, 2): 3}


def test_windows_change_no_parameter_and_layers_and_attention_do():
    def size(**settings):
        return sum(p.numel() for p in GraphEmotionClassifier(16, 6, 2, **settings).parameters())

    assert size(window_past=0, window_future=0) == size(window_past=1) == size()
    assert size(layers=3) > size(layers=2) > size(layers=0)
    assert size(attention=True) > size()


@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS)
def test_without_a_graph_no_utterance_reads_another_in_either_stage(dialogues, generator):
    """Not through the speaker's mean either; the same network with a graph shows that there is something to see."""
    batch, moved = collate(dialogues), {}
    for context in (True, False):
        torch.manual_seed(0)
        window = 4 * context
        fusion = AdversarialFusion(DIMS, 16, generator=generator, context=context)
        classifier = GraphEmotionClassifier(16, 6, 2, window_past=window, window_future=window, attention=True)
        network = GANFFN(fusion, classifier).eval()
        other = replace(batch, features={m: x.clone() for m, x in batch.features.items()})
        for x in other.features.values():
            x[1, 3] += 1
        fused, fused_other = fusion(batch), fusion(other)
        apart = [(network(batch) - network(other)).abs().sum(-1) > 1e-6]
        apart += [(fused[m] - fused_other[m]).abs().sum(-1) > 1e-6 for m in DIMS]
        moved[context] = [x.nonzero().tolist() for x in apart]
        moved[context, "names"] = [*network.state_dict()]
    assert moved[False] == [[[1, 3]]] * 4
    assert all(len(each) > 2 and {i for i, _ in each} == {1} for each in moved[True])
    assert moved[True, "names"] == moved[False, "names"]


@pytest.mark.parametrize(
    ("window", "speaker_layers", "hearing"),
    [(1, 0, [2, 3, 4, 5, 6]), (1, 1, list(range(9)))],  # two convolutions: twice the window
    ids=["windows", "speakers"],
)
def test_an_utterance_is_heard_along_edges_only(window, speaker_layers, hearing):
    torch.manual_seed(0)
    fused = {m: torch.randn(1, 9, 16) for m in DIMS}
    fusion = AdversarialFusion(DIMS, fused_channels=16)
    fusion.forward = lambda batch: fused
    classifier = GraphEmotionClassifier(16, 6, 2, window_past=window, window_future=window)
    network = GANFFN(fusion, classifier, speaker_layers).eval()
    mask, speakers = torch.ones(1, 9, dtype=torch.bool), torch.arange(9).view(1, 9) % 2
    batch = Batch(("a",), fused, mask, speakers, torch.zeros(1, 9, dtype=torch.long))
    before = network(batch)[0]
    fused["text"][0, 4] += torch.randn(16)
    moved = (network(batch)[0] - before).abs().amax(-1) > 0
    assert moved.nonzero().flatten().tolist() == hearing


def test_more_speakers_than_the_network_knows_and_single_utterances_pass(network):
    features = {m: torch.randn(2, 5, d) for m, d in DIMS.items()}
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])
    batch = Batch(("a", "b"), features, mask, torch.arange(5).expand(2, 5) * mask, torch.zeros(2, 5, dtype=torch.long))
    assert network(batch)[mask].isfinite().all()


def test_a_long_dialogue_keeps_states_and_gradients_finite():
    graph = SpeakerEncoders({"text": SpeakerEncoder(8, 2, dropout=0.4)})
    x = torch.randn(1, 500, 8, requires_grad=True)
    zeros = torch.zeros(1, 500, dtype=torch.long)
    out = graph({"text": x}, Batch(("a",), {}, zeros == 0, zeros, zeros))["text"]
    out.square().sum().backward()
    assert out.isfinite().all()
    assert np.isfinite(x.grad.numpy()).all()
