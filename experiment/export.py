"""A run written for elsewhere, as ONNX or for `torch.export`: one file that takes raw features and gives probabilities.

`PortableNetwork` is the network of a run once more, of plain tensor operations on padded dialogues: no selecting of
rows, no loops over turns or speakers, so that dialogues, turns and speakers may be as many as one likes. That both come
to the same is tested. Shapes use B dialogues, T turns, d features, C classes.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataloader import MOST_SPEAKERS
from experiment.prediction import Member, Model
from files import InputError, replacing
from model import (
    GANFFN,
    GENERATORS,
    NodalAttention,
    SpeakerEncoders,
    SpeakerLayer,
    TransformerGenerator,
    sinusoids,
)
from model import past as past_of

DOUBLINGS = 14
MOST_TURNS = 2**DOUBLINGS  # of a dialogue; further back than that no state reaches
REQUIREMENTS = "requirements-predict.txt"


class PortableNetwork(nn.Module):
    """Raw features to calibrated probabilities, the mean over the networks of a model.

    Shapes:
        inputs: each modality's features, float32 ``[B, T, d_modality]``, a row of NaN where it is missing; ``mask``,
            bool ``[B, T]``, True on real turns; ``speakers``, int64 ``[B, T]``, numbered from 0 by first turn.
        result: probabilities, float32 ``[B, T, C]``, 0 where padded.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.modalities = tuple(model.dims)
        self.members = nn.ModuleList(PortableMember(member) for member in model.members)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Probabilities; see the class."""
        *rows, mask, speakers = inputs
        speakers = speakers.clamp(max=MOST_SPEAKERS - 1)  # as `Dialogue.speaker_index` has them
        features = dict(zip(self.modalities, rows, strict=True))
        has = {m: mask & ~x.isnan().any(-1) for m, x in features.items()}
        each = torch.stack([member(features, has, mask, speakers) for member in self.members])
        return each.mean(0) * mask.unsqueeze(-1)


class PortableMember(nn.Module):
    """One network of a `PortableNetwork`, with its standardisation and temperature."""

    def __init__(self, member: Member):
        super().__init__()
        self.network = member.network
        self.temperature = member.calibration.temperature if member.calibration else 1.0
        for m in member.standardise.mean:
            self.register_buffer(f"mean_{m}", torch.from_numpy(member.standardise.mean[m]).double())
            self.register_buffer(f"scale_{m}", torch.from_numpy(member.standardise.scale[m]).double())

    def forward(
        self, features: Mapping[str, Tensor], has: Mapping[str, Tensor], mask: Tensor, speakers: Tensor
    ) -> Tensor:
        """Probabilities ``[B, T, C]``."""
        network = self.network
        turn = torch.arange(mask.shape[1], device=mask.device)
        here, there = turn.unsqueeze(1), turn.unsqueeze(0)  # who hears, and what
        # Without edges every turn is a dialogue of its own.
        linked = mask.unsqueeze(2) & (mask.unsqueeze(1) if network.edges else here == there)  # [B, T, T]
        same = linked & (speakers.unsqueeze(1) == speakers.unsqueeze(2))
        total, count = 0, 0
        for m, generator in network.fusion.generators.items():
            x = (features[m].double() - self.get_buffer(f"mean_{m}")) / self.get_buffer(f"scale_{m}")
            x = x.float().masked_fill(~has[m].unsqueeze(-1), 0)
            x = generate(generator, x, same & has[m].unsqueeze(1), has[m], network.edges)
            if m in network.speaker_encoders:
                x = encode(network.speaker_encoders, m, x, same & has[m].unsqueeze(1), has[m], network.edges)
            total = total + x * has[m].unsqueeze(-1)
            count = count + has[m].long()
        nodes = total * (len(has) / count.clamp(min=1)).unsqueeze(-1)
        logits = classify(network, nodes, linked, speakers, mask)
        return (logits / self.temperature).softmax(-1)


def generate(generator: nn.Module, x: Tensor, same: Tensor, has: Tensor, edges: bool) -> Tensor:
    """What a generator makes of standardised features.

    Args:
        generator: One of `model.GENERATORS`.
        x: ``[B, T, d]``, 0 where missing.
        same: Which turns ``[B, T, T]`` are of the same speaker and have the modality.
        has: Which turns have it, ``[B, T]``.
        edges: Whether turns are heard beside each other.
    """
    turn = torch.arange(x.shape[1], device=x.device)
    if generator.causal:
        same = same & (turn <= turn.unsqueeze(1))
    heard = same.to(x.dtype)
    mean = heard @ x / heard.sum(-1, keepdim=True).clamp(min=1)
    given = torch.cat([x, x - mean], dim=-1)
    x = generator.embed(given)
    if not isinstance(generator, TransformerGenerator):
        return generator.fuse(generator.encode(x, has), generator.own[0](given))
    here = turn == turn.unsqueeze(1)
    place = sinusoids(x.shape[1], x.shape[2], x.device)
    x = x + (place if edges else place[:1])
    if not edges:
        seen = here.unsqueeze(0).expand(x.shape[0], -1, -1)
    else:
        # What attends to nothing, as padding does, attends to itself: softmax is of something.
        seen = past_of(has) if generator.causal else has.unsqueeze(1) | here
    for layer in generator.encoder.layers:
        x = x + attend(layer.self_attn, layer.norm1(x), seen)
        x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
    return generator.fuse(x, generator.own[0](given))


def attend(attention: nn.MultiheadAttention, x: Tensor, seen: Tensor) -> Tensor:
    """Self-attention ``[B, T, d]`` over what is seen, ``[B, T, T]``."""
    width = x.shape[-1] // attention.num_heads
    parts = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    query, key, value = (p.unflatten(-1, (attention.num_heads, width)).transpose(1, 2) for p in parts)  # [B, H, T, w]
    scores = (query @ key.transpose(-1, -2) / width**0.5).masked_fill(~seen.unsqueeze(1), -torch.inf)
    return attention.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def encode(encoders: SpeakerEncoders, m: str, x: Tensor, same: Tensor, has: Tensor, edges: bool) -> Tensor:
    """Encoded features of modality m from fused ones, ``[B, T, d]``; ``same`` and ``has`` as `generate` takes them."""
    turn = torch.arange(x.shape[1], device=x.device)
    here, there = turn.unsqueeze(1), turn.unsqueeze(0)
    none = x.shape[1]  # the number of a row of zeros behind the turns
    before = torch.where(same & (there < here), there, -1).amax(-1)
    before = torch.where(before < 0, none, before)
    after = torch.where(same & (there > here), there, none).amin(-1)
    for layer in encoders[m].blocks:
        x = speaker_layer(layer, x, (before,) if encoders.causal else (before, after), has, edges)
    return encoders[m].norm(x)


def speaker_layer(layer: SpeakerLayer, x: Tensor, pointers: Sequence[Tensor], has: Tensor, edges: bool) -> Tensor:
    """What a `SpeakerLayer` makes of turns.

    Args:
        layer: The layer.
        x: ``[B, T, d]``.
        pointers: The same speaker's last turn, ``[B, T]``, and unless causal the next; T where there is none.
        has: Which turns count, ``[B, T]``.
        edges: Whether turns are heard beside each other.
    """
    normed = layer.norm_states(x)
    gate = torch.sigmoid(layer.states.gate(normed)) * has.unsqueeze(-1)
    keep, update = (1 - gate) * has.unsqueeze(-1), gate * layer.states.candidate(normed)
    own, all_states = states(keep, update, pointers, has)
    others = all_states - own if edges else torch.zeros_like(own)
    x = x + layer.read(torch.cat([own, others], -1))
    return x + layer.feed_forward(x)


def states(keep: Tensor, update: Tensor, pointers: Sequence[Tensor], has: Tensor) -> tuple[Tensor, Tensor]:
    """Each turn's own speaker's state, and the sum of all speakers' states then, both ``[B, T, d]``.

    ``h_t = keep_t * h_pointer(t) + update_t`` by doubling: after k steps a turn knows what 2**k turns of its speaker
    come to.

    Args:
        keep: ``[B, T, d]``.
        update: ``[B, T, d]``.
        pointers: Of equal parts of the channels, ``[B, T]`` each: to the turn before or, of a second part, after.
        has: Which turns count, ``[B, T]``.
    """
    zeros = torch.zeros_like(keep[:, :1])
    width = keep.shape[-1] // len(pointers)
    end = torch.zeros_like(pointers[0][:, :1]) + has.shape[1]
    jump = torch.cat([torch.cat([p, end], 1).unsqueeze(-1).expand(-1, -1, width) for p in pointers], -1)
    keep, update, first = torch.cat([keep, zeros], 1), torch.cat([update, zeros], 1), jump
    for _ in range(DOUBLINGS):
        update = update + keep * update.gather(1, jump)
        keep = keep * keep.gather(1, jump)
        jump = jump.gather(1, jump)
    change = (update - update.gather(1, first))[:, :-1] * has.unsqueeze(-1)
    parts = change.double().chunk(len(pointers), -1)
    totals = [parts[0].cumsum(1), *(part.flip(1).cumsum(1).flip(1) for part in parts[1:])]
    return update[:, :-1], torch.cat(totals, -1).float()


def classify(network: GANFFN, nodes: Tensor, linked: Tensor, speakers: Tensor, mask: Tensor) -> Tensor:
    """What `GraphEmotionClassifier` makes of nodes ``[B, T, d]``: logits ``[B, T, C]``."""
    classifier = network.classifier
    views = [nodes]
    if classifier.convolutions:
        turn = torch.arange(nodes.shape[1], device=nodes.device)
        distance = turn.unsqueeze(0) - turn.unsqueeze(1)  # [T, T], of what is heard from who hears
        past, future = classifier.window
        windows = ((distance < 0) & (distance >= -past), (distance > 0) & (distance <= future))
        count = classifier.num_speakers
        party = F.one_hot(speakers.clamp(max=count - 1), count).to(nodes.dtype)  # [B, T, S]
        heard = nodes
        for convolution, norm in zip(classifier.convolutions, classifier.norms, strict=True):
            d = heard.shape[-1]
            weight = convolution.weight.view(count, count, 2, d, -1)
            total = heard @ convolution.root + convolution.bias
            for direction, window in enumerate(windows):
                if (past, future)[direction]:
                    for source in range(count):
                        edge = (linked & window).to(nodes.dtype) * party[:, :, source].unsqueeze(1)
                        mean = edge @ heard / edge.sum(-1, keepdim=True).clamp(min=1)
                        by_target = (party.unsqueeze(-1) * mean.unsqueeze(2)).flatten(2)  # [B, T, S * d]
                        total = total + by_target @ weight[source, :, direction].flatten(0, 1)
            heard = heard + F.gelu(norm(total))
        views.append(heard)
    if classifier.attention is not None:
        views.append(nodal(classifier.attention, views[-1], linked, mask))
    return classifier.classify(torch.cat(views, -1))


def nodal(attention: NodalAttention, x: Tensor, linked: Tensor, mask: Tensor) -> Tensor:
    """What `NodalAttention` gathers."""
    turn = torch.arange(x.shape[1], device=x.device)
    seen = linked & (turn <= turn.unsqueeze(1)) if attention.causal else linked
    seen = seen | (turn == turn.unsqueeze(1))
    scores = attention.query(x) @ x.transpose(1, 2) / x.shape[-1] ** 0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ x


# Writing --------------------------------------------------------------------------------------------------------------


def example(model: Model, dialogues: int = 2, turns: int = 5) -> tuple[Tensor, ...]:
    """Inputs of `PortableNetwork` of some size."""
    features = [torch.zeros(dialogues, turns, d) for d in model.dims.values()]
    speakers = (torch.arange(turns) % 2).repeat(dialogues, 1)
    return *features, torch.ones(dialogues, turns, dtype=torch.bool), speakers


def trace(model: Model) -> torch.export.ExportedProgram:
    """The network as a graph of tensor operations for any number of dialogues and turns."""
    for member in model.members:
        for generator in member.network.fusion.generators.values():
            if type(generator) not in GENERATORS.values():
                kind = type(generator).__name__
                raise InputError(f"{model.directory}: --export: not known how to write a {kind}; use another run")
    network = copy.deepcopy(PortableNetwork(model)).cpu().eval()  # the model's own stay where they compute
    inputs = example(model)
    sizes = {0: torch.export.Dim("dialogues", min=1, max=2**20), 1: torch.export.Dim("turns", min=1, max=MOST_TURNS)}
    return torch.export.export(network, inputs, dynamic_shapes=((dict(sizes),) * len(inputs),))


def export(model: Model, path: Path) -> str:
    """Write a model as ``.onnx`` or ``.pt2``.

    Args:
        model: Of one or several runs.
        path: The file, replaced whole or not at all.

    Returns:
        What to say of it.

    Raises:
        InputError: If the ending is neither, the folder is not there, or a library is missing.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise InputError(f"--export {path}: neither .onnx nor .pt2; name it as one of these")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise InputError(f"--export {path}: cannot be written there; name a file in a folder that exists")
    about = {
        "inputs": [*model.dims, "mask", "speakers"],
        "label_names": list(model.label_names),
        "dims": dict(model.dims),
        "calibrated": model.calibrated,
    }
    if path.suffix == ".onnx":
        _need("onnx", "onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = trace(model)
        content = _onnx(program, about) if path.suffix == ".onnx" else _pt2(program, about)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    inputs = ", ".join(f"{m} [B, T, {d}]" for m, d in model.dims.items())
    return (
        f"Written to {path}: {inputs}, mask [B, T], speakers [B, T] to probabilities [B, T, {len(model.label_names)}] "
        f"of {', '.join(model.label_names)}{'' if model.calibrated else ', uncalibrated'}."
    )


def _pt2(program: torch.export.ExportedProgram, about: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"about.json": json.dumps(about)})
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, about: Mapping[str, Any]) -> bytes:
    names: Sequence[str] = about["inputs"]
    for name in ("onnxscript", "torch.onnx"):  # they warn of packages that nobody needs here
        logging.getLogger(name).setLevel(logging.ERROR)
    written = torch.onnx.export(program, input_names=names, output_names=["probabilities"], dynamo=True, verbose=False)
    proto = written.model_proto
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    return proto.SerializeToString()


def _need(*packages: str) -> None:
    """Refuse where a library is missing."""
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise InputError(
                f"--export: {package} is not installed; python -m pip install -r {REQUIREMENTS}, or write a .pt2"
            ) from None
