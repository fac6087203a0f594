"""What is said to have decided: against the slow, obvious form, and by taking it away."""

import numpy as np
import pytest
import torch

import model
from dataloader import Standardiser, batches, collate
from experiment.attribution import attribute, edge_changes, without
from experiment.settings import ClassifierSettings, FusionSettings
from experiment.trained import build_network, shape_of
from synthetic import synthetic_corpus


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(train=6, test=3, mean_length=12, dims={"text": 8, "visual": 6, "acoustic": 5})


@pytest.fixture(scope="module")
def dialogues(corpus):
    standardise = Standardiser.fit(corpus.split("train"))
    return [standardise(d) for d in corpus.split("test")]


def network_of(corpus, **settings):
    torch.manual_seed(0)
    network = build_network(shape_of(corpus), FusionSettings(channels=16), ClassifierSettings(**settings)).eval()
    with torch.no_grad():  # an untrained network says nearly the same of all
        for p in network.classifier.parameters():
            p.mul_(3)
    return network


def answers_without(network, batch, edge):
    """The slow form: the whole network again, on a graph that lacks one edge."""
    real = model.dialogue_edges

    def fewer(*args):
        index, kinds = real(*args)
        kept = torch.ones(index.shape[1], dtype=bool)
        kept[edge] = False
        return index[:, kept], kinds[kept]

    model.dialogue_edges = fewer
    try:
        with torch.no_grad():
            return network(batch)[batch.mask].softmax(-1)
    finally:
        model.dialogue_edges = real


@pytest.mark.parametrize("layers", [1, 2])
def test_leaving_an_edge_out_is_what_the_whole_network_says_without_it(corpus, dialogues, layers):
    network = network_of(corpus, window_past=2, window_future=3, graph_layers=layers)
    batch = collate(dialogues)
    seen = []
    hook = network.classifier.register_forward_pre_hook(lambda _, given: seen.append(given))
    with torch.no_grad():
        whole = network(batch)[batch.mask].softmax(-1)
    hook.remove()
    answer = whole.argmax(-1)
    with torch.no_grad():
        index, changes = edge_changes(network, *seen[0], answer)
    for edge in range(0, index.shape[1], 7):
        t = index[1, edge]
        slow = answers_without(network, batch, edge)[t, answer[t]] - whole[t, answer[t]]
        assert changes[edge].item() == pytest.approx(slow.item(), abs=1e-5)


def test_removing_what_is_called_most_important_changes_the_answer_most(corpus, dialogues):
    network = network_of(corpus, window_past=3, window_future=3)
    found = attribute(network, dialogues[:1], most=6)
    batch = collate(dialogues[:1])
    index, _ = model.dialogue_edges(batch.mask, batch.speakers, 3, 3, network.classifier.num_speakers)
    with torch.no_grad():
        whole = network(batch)[batch.mask].softmax(-1)
    for t, ranked in enumerate(found.neighbours):
        k = whole[t].argmax()
        edges = [e for e in range(index.shape[1]) if index[1, e] == t]
        slow = {int(index[0, e]) - t: (answers_without(network, batch, e)[t, k] - whole[t, k]).item() for e in edges}
        assert [offset for offset, _ in ranked[:1]] == [max(slow, key=lambda o: abs(slow[o]))]
        assert len(ranked) == len(edges)
        assert dict(ranked) == pytest.approx(slow, abs=1e-5)


def test_a_modality_is_taken_from_the_whole_dialogue(corpus, dialogues):
    network = network_of(corpus)
    found = attribute(network, dialogues)
    assert list(found.modalities) == ["text", "visual", "acoustic"]
    with torch.no_grad():
        batch = next(iter(batches(dialogues, 16)))
        whole = network(batch)[batch.mask].softmax(-1)
        less = network(without(batch, "visual"))[batch.mask].softmax(-1)
    k = whole.argmax(-1, keepdim=True)
    assert np.allclose(found.modalities["visual"], (less - whole).gather(1, k).squeeze(1), atol=1e-6)
    assert found.last_layer.shape == (len(whole), 16)
    assert torch.allclose(network.classifier.classify[-1](torch.tensor(found.last_layer)).softmax(-1), whole, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"window_past": 0, "window_future": 0}, {"graph_layers": 0}, {"attention": True, "graph_layers": 3}]
)
def test_other_networks_are_read_too(corpus, dialogues, settings):
    found = attribute(network_of(corpus, **settings), dialogues)
    assert len(found.neighbours) == sum(map(len, dialogues))
    assert any(found.neighbours) == ("attention" in settings)


def test_one_modality_is_not_taken_away(corpus, dialogues):
    one = corpus.select_modalities(["text"])
    standardise = Standardiser.fit(one.split("train"))
    assert attribute(network_of(one), [standardise(d) for d in one.split("test")]).modalities == {}
