"""What decided: how the answer for an utterance changes without a modality, or without a neighbour in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dataloader import Batch, Dialogue, batches
from experiment.evaluation import BATCH_SIZE
from model import GANFFN, Neighbours, dialogue_edges, padded

EDGES_AT_ONCE = 20_000


@dataclass(frozen=True)
class Attribution:
    """What decided the class predicted for each of N utterances. All changes are of that class's probability.

    Attributes:
        modalities: Modality to the change without it in the whole dialogue, ``[N]``, NaN where it is missing anyway;
            empty where there is one modality only.
        neighbours: For each utterance its neighbours that weigh most, each as how many turns ahead of the utterance it
            is (negative: back) and the change without the edge; empty where the graph has no edge.
        last_layer: What the classifier's last linear layer reads, ``[N, d]``.
    """

    modalities: Mapping[str, np.ndarray]
    neighbours: list[list[tuple[int, float]]]
    last_layer: np.ndarray


def without(batch: Batch, modality: str) -> Batch:
    """The batch as it would be had nobody recorded a modality."""
    there = {m: batch.has(m) for m in batch.features}
    there[modality] = torch.zeros_like(batch.mask)
    features = {**batch.features, modality: torch.zeros_like(batch.features[modality])}
    return replace(batch, features=features, modality_mask=there)


@torch.no_grad()
def attribute(network: GANFFN, dialogues: Sequence[Dialogue], most: int = 3) -> Attribution:
    """See `Attribution`; the utterances are in the order of the dialogues.

    Nothing random is touched, and the network is left in evaluation mode.

    Args:
        network: As trained.
        dialogues: Standardised.
        most: How many neighbours of an utterance are named.
    """
    network.eval()
    device = next(network.parameters()).device
    names = list(dialogues[0].features)
    changes: dict[str, list[Tensor]] = {m: [] for m in names if len(names) > 1}
    neighbours: list[list[tuple[int, float]]] = []
    last = []
    for batch in batches(dialogues, BATCH_SIZE):
        batch = batch.to(device)
        batch = batch if network.edges else batch.isolated()
        encoded = network.encoded(batch)

        def answers(heard: Batch, encoded: Mapping[str, Tensor] = encoded) -> tuple[Tensor, Tensor, Tensor]:
            nodes = network.nodes(heard, encoded, tuple(encoded))
            read = network.classifier.last_layer(nodes, heard.mask, heard.speakers)
            return nodes, read, network.classifier.classify[-1](read).softmax(-1)

        x, read, probabilities = answers(batch)
        last.append(read.cpu())
        answer = probabilities.argmax(-1, keepdim=True)
        for m, parts in changes.items():
            change = (answers(without(batch, m))[2] - probabilities).gather(1, answer).squeeze(1)
            parts.append(change.masked_fill(~batch.has(m)[batch.mask], torch.nan).cpu())
        if network.edges and network.classifier.convolutions:
            edges, change = edge_changes(network, x, batch.mask, batch.speakers, answer.squeeze(1))
            neighbours += _most(edges, change, len(read), most)
        else:
            neighbours += [[] for _ in range(len(read))]
    modalities = {m: torch.cat(parts).double().numpy() for m, parts in changes.items()}
    return Attribution(modalities, neighbours, torch.cat(last).numpy())


def edge_changes(network: GANFFN, x: Tensor, mask: Tensor, speakers: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """For every edge, the change of what its target is said to be when the target no longer hears its source.

    Exact for two graph convolutions and fewer, without `NodalAttention`. With more, or with it, the states of the
    other utterances are taken to stay as they are.

    Args:
        network: As trained, in evaluation mode.
        x: What the classifier is given, ``[B, T, d]``.
        mask: ``[B, T]``.
        speakers: ``[B, T]``.
        answer: The class of each real utterance whose probability is asked for, ``[N]``.

    Returns:
        ``edge_index [2, E]``, sources above targets, and the changes ``[E]``.
    """
    classifier = network.classifier
    edge_index, edge_type = dialogue_edges(mask, speakers, *classifier.window, classifier.num_speakers)
    nodes, known = x[mask], speakers[mask].clamp(max=classifier.num_speakers - 1)
    neighbours = Neighbours.of(edge_index, edge_type, known, classifier.num_speakers)
    source, target = edge_index
    groups, group = torch.unique(target * 2 * classifier.num_speakers**2 + edge_type, return_inverse=True)
    count = torch.bincount(group, minlength=len(groups)).to(x).unsqueeze(1)
    states, heard, totals = [nodes], [], []
    for convolution, norm in zip(classifier.convolutions, classifier.norms, strict=True):
        said = convolution(states[-1], neighbours)
        heard.append(said - states[-1] @ convolution.root - convolution.bias)
        totals.append(nodes.new_zeros(len(groups), nodes.shape[1]).index_add_(0, group, states[-1][source]))
        states.append(states[-1] + F.gelu(norm(said)))
    views = [nodes, states[-1]]
    if classifier.attention is not None:
        views.append(classifier.attention(padded(states[-1], mask), mask)[mask])
    whole = classifier.classify(torch.cat(views, -1)).softmax(-1)
    changes = []
    for chosen in torch.arange(edge_index.shape[1], device=x.device).split(EDGES_AT_ONCE):
        at, g = target[chosen], group[chosen]
        own = nodes[at]
        for k, (convolution, norm) in enumerate(zip(classifier.convolutions, classifier.norms, strict=True)):
            less = _without_one(totals[k][g], count[g], states[k][source[chosen]])
            rest = heard[k][at] + _by_relation(less, edge_type[chosen], convolution.weight)
            own = own + F.gelu(norm(rest + own @ convolution.root + convolution.bias))
        p = classifier.classify(torch.cat([nodes[at], own, *(view[at] for view in views[2:])], -1)).softmax(-1)
        rows = torch.arange(len(at), device=x.device)
        changes.append(p[rows, answer[at]] - whole[at, answer[at]])
    return edge_index, torch.cat(changes) if changes else x.new_zeros(0)


def _without_one(total: Tensor, count: Tensor, one: Tensor) -> Tensor:
    """By how much a mean changes without one of its terms; that of no term is 0."""
    return ((total - one) / (count - 1).clamp(min=1)).masked_fill(count < 2, 0) - total / count


def _by_relation(x: Tensor, relation: Tensor, weight: Tensor) -> Tensor:
    """Each row times the matrix of its relation."""
    result = x.new_zeros(len(x), weight.shape[2])
    for r in relation.unique().tolist():
        rows = relation == r
        result[rows] = x[rows] @ weight[r]
    return result


def _most(edges: Tensor, change: Tensor, count: int, most: int) -> list[list[tuple[int, float]]]:
    """For each target its sources of the greatest changes, those first, as turns ahead and change."""
    order = change.abs().argsort(descending=True, stable=True).tolist()
    source, target, value = edges[0].tolist(), edges[1].tolist(), change.tolist()
    found: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    for e in order:
        if len(found[target[e]]) < most:
            # Nodes are numbered along their dialogue, so that a difference of numbers is one of turns.
            found[target[e]].append((source[e] - target[e], value[e]))
    return found
