"""GAN-FFN's networks and their losses: generators against discriminators, then a graph over the dialogue.

Shapes use B dialogues, T utterances in the longest of them, N real utterances in all, and d features.
``mask [B, T]`` is True on real utterances; no encoder, loss or statistic sees the others. A generator's mask is True on
the real utterances that have its modality: the others take no part in it, nor in the losses that compare it.
``speakers [B, T]`` numbers the speakers of a dialogue from 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import permutations, product
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import parallel
from dataloader import Batch

SHARED_CHANNELS = 8  # of the fused features, those that the modalities share
OWN_SCALE = 0.1  # of the others in fused features that are exported
LONG, WIDE = 128, 2048  # `scan` takes more turns than these at once, unless a turn has more numbers than these


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, with masks that a CPU draws ten times as fast: one number of 64 bits for four elements.

    They are of NumPy's SFC64, with a seed that torch's generator draws.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.Dropout`."""
        if not self.training or x.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(x)
        seed = int(torch.randint(2**62, ()))
        numbers = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16))
        least = min(round(2**16 * self.p), 2**16 - 1) - 2**15
        kept = torch.ge(numbers[: x.numel()].view(x.shape), least, out=torch.empty_like(x))  # 1 or 0
        return x * kept.div_(1 - self.p)


def scan(keep: Tensor, update: Tensor, reverse: bool = False) -> Tensor:
    """All states of ``h_t = keep_t * h_{t-1} + update_t``, ``h_0 = update_0``, which may be written over the updates.

    Reversed, the adjoint: ``h_t = keep_{t+1} * h_{t+1} + update_t``.

    Shapes:
        keep, update, result: ``[T, ..., d]``.
    """
    length = len(update)
    if length <= LONG or update[0].numel() > WIDE:
        # One fused operation a turn, written in place: at most dialogues' length faster than any parallel scan.
        states, gates = update.unbind(), keep.unbind()
        states, gates = (states[::-1], gates[:0:-1]) if reverse else (states, gates[1:])
        for before, state, gate in zip(states, states[1:], gates, strict=False):
            state.addcmul_(gate, before)
        return update
    if reverse:
        return scan(keep.roll(-1, 0).flip(0), update.flip(0)).flip(0)
    # Chunks side by side as if each began anew, then what each is handed by those before it.
    chunk = math.isqrt(length)
    padding = (0, 0) * (update.dim() - 1) + (0, -length % chunk)
    keep, update = (F.pad(x, padding).unflatten(0, (-1, chunk)).transpose(0, 1).contiguous() for x in (keep, update))
    states, kept = scan(keep, update), keep.cumprod(0)
    handed = scan(kept[-1], states[-1].clone())[:-1]
    states[:, 1:] += kept[:, 1:] * handed
    return states.transpose(0, 1).flatten(0, 1)[:length]


@dataclass(frozen=True)
class SpeakerTurns:
    """Whose turn it is when, of M modalities at once: where each utterance's states are among those of a recurrence.

    Every way that states run (forward, and backward unless causal), dialogue, modality and speaker has a sequence of
    its own, of that speaker's turns alone, behind a row of zeros. It is the same for all layers.

    Attributes:
        steps: Length of the longest sequence, the row of zeros included.
        sequences: How many there are.
        own: Row of an utterance's own speaker's state, ``[M * N * ways]``, of the states ``[steps * sequences, …]``.
        others: Rows of the other speakers' states when it is said, so many of each.
        has: Which utterances have the modality, ``[M, N, 1]``; None if all have.
    """

    steps: int
    sequences: int
    own: Tensor
    others: list[Tensor]
    has: Tensor | None

    @classmethod
    def of(cls, batch: Batch, modalities: Sequence[str], causal: bool) -> SpeakerTurns:
        """Those of a batch."""
        mask, speakers = (x.repeat(len(modalities), 1) for x in (batch.mask, batch.speakers))
        dialogue, turn = mask.nonzero(as_tuple=True)
        spoken = F.one_hot(speakers) * mask.unsqueeze(-1)  # [M * B, T, S]
        so_far = spoken.cumsum(1)  # how many turns of each speaker a state has seen, this one included
        seen = [so_far] if causal else [so_far, so_far[:, -1:] - so_far + spoken]  # the second from the end
        step = torch.stack([turns[dialogue, turn] for turns in seen], 1)  # [M * N, ways, S]
        ways, num_speakers = step.shape[1:]
        way, speaker = (torch.arange(n, device=mask.device) for n in (ways, num_speakers))
        sequence = (dialogue.view(-1, 1, 1) * ways + way.view(-1, 1)) * num_speakers + speaker
        sequences = len(mask) * ways * num_speakers
        rows = step * sequences + sequence
        who = speakers[mask].view(-1, 1, 1).expand(-1, ways, 1)
        own, *others = (rows.gather(2, (who + i) % num_speakers).flatten() for i in range(num_speakers))
        has = None
        if batch.modality_mask:
            has = torch.stack([batch.has(m)[batch.mask] for m in modalities]).unsqueeze(-1)
        return cls(int(so_far.max()) + 1, sequences, own, others, has)

    def sequenced(self, x: Tensor) -> Tensor:
        """Rows ``[M * N * ways, d]`` where their own speaker's states are, 0 elsewhere: ``[steps, sequences, d]``."""
        rows = x.new_zeros(self.steps * self.sequences, x.shape[1]).index_copy_(0, self.own, x)
        return rows.view(self.steps, self.sequences, -1)


class _SpeakerStates(torch.autograd.Function):
    """What utterances read of speakers' states: their own speaker's, and the sum of the others', ``[M * N * ways, d]``.

    By gates ``keep`` and ``update`` of the same shape. Apart from the two scans nothing is done to all states, which
    are several times as many as the utterances.
    """

    @staticmethod
    def forward(ctx: Any, keep: Tensor, update: Tensor, turns: SpeakerTurns) -> tuple[Tensor, Tensor]:
        gates, updates = (turns.sequenced(x) for x in (keep, update))
        states = scan(gates, updates).flatten(0, 1)
        ctx.turns = turns
        ctx.save_for_backward(gates, states)
        own, *others = (states.index_select(0, rows) for rows in (turns.own, *turns.others))
        return own, reduce(torch.add, others) if others else torch.zeros_like(own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor, None]:
        (gates, states), turns = ctx.saved_tensors, ctx.turns
        gradient = turns.sequenced(own)
        for rows in turns.others:
            gradient.flatten(0, 1).index_add_(0, rows, others)
        of_update = scan(gates, gradient, reverse=True).flatten(0, 1).index_select(0, turns.own)
        before = states.index_select(0, turns.own - turns.sequences)
        return of_update * before, of_update, None


class SpeakerRecurrence(nn.Module):
    """One running state for each speaker of the dialogue, past and future, read by every utterance.

    A speaker's state changes only at their own turns, as DialogueRNN's party state does (arXiv 1811.00405); the gate
    looks at the turn alone, as minGRU's (arXiv 2410.01201), which makes the recurrence a scan that a CPU runs fast::

        h_t = (1 - z_t) * h_{t-1} + z_t * W x_t    at the speaker's turns, elsewhere h_{t-1}

    An utterance reads its own speaker's state beside the sum of the other speakers' states. Where it lacks the modality
    it changes no state.

    Args:
        channels: Width; even.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gate = nn.Linear(channels, channels)
        self.candidate = nn.Linear(channels, channels)
        # Gates begin between closed and half open, so that memories of many lengths are there from the start.
        nn.init.uniform_(self.gate.bias, -3, 0)

    @staticmethod
    def each(states: Sequence[SpeakerRecurrence], x: Tensor, turns: SpeakerTurns) -> Tensor:
        """The states that each utterance ``x [M, N, d]`` reads, ``[M, N, 2d]``, by M recurrences."""
        gate = torch.sigmoid(each([s.gate for s in states], x))
        keep, update = 1 - gate, gate * each([s.candidate for s in states], x)
        if turns.has is not None:
            keep, update = keep.masked_fill(~turns.has, 1), update.masked_fill(~turns.has, 0)
        own, others = _SpeakerStates.apply(*(y.view(len(turns.own), -1) for y in (keep, update)), turns)
        return torch.cat([own.view_as(x), others.view_as(x)], dim=-1)


class SpeakerLayer(nn.Module):
    """A residual layer: speakers' states, then a feed-forward layer, each behind layer normalisation and dropout.

    Args:
        channels: Width; even.
        dropout: Probability, between 0 and 1.
    """

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.norm_states = nn.LayerNorm(channels)
        self.states = SpeakerRecurrence(channels)
        self.read = nn.Linear(2 * channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * channels),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(2 * channels, channels),
            Dropout(dropout),
        )
        self.dropout = Dropout(dropout)

    @staticmethod
    def each(layers: Sequence[SpeakerLayer], x: Tensor, turns: SpeakerTurns) -> Tensor:
        """What M layers make of ``x [M, N, d]``, of the same shape; see the class."""
        heard = SpeakerRecurrence.each(
            [layer.states for layer in layers], each([layer.norm_states for layer in layers], x), turns
        )
        x = x + layers[0].dropout(each([layer.read for layer in layers], heard))
        return x + each([layer.feed_forward for layer in layers], x)


class SpeakerEncoder(nn.Module):
    """One modality's fused features, passed along the edges from turn to turn of every speaker, past and future.

    A directed acyclic graph each way, after DAG-ERC (arXiv 2105.12907): each speaker's last turn is a neighbour of an
    utterance, and through it all of that speaker's turns. `SpeakerRecurrence` says how.

    Args:
        channels: Width; even.
        blocks: How many `SpeakerLayer` deep.
        dropout: Probability, between 0 and 1.
    """

    def __init__(self, channels: int, blocks: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(SpeakerLayer(channels, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)


class SpeakerEncoders(nn.ModuleDict):
    """A `SpeakerEncoder` a modality, all of one shape, that run as one: fewer operations, each on more numbers.

    Args:
        encoders: By modality.
        causal: Whether all states run forward, so that no utterance hears what comes after it.
    """

    def __init__(self, encoders: Mapping[str, SpeakerEncoder], causal: bool = False):
        super().__init__(encoders)
        self.causal = causal

    def forward(self, fused: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Encoded features of each modality, normalised by layer; they mean nothing where it is missing.

        Shapes:
            fused, result: modality to ``[B, T, channels]``.
        """
        turns = SpeakerTurns.of(batch, tuple(self), self.causal)
        encoders = list(self.values())
        x = torch.stack([real(fused[m], batch.mask) for m in self])
        for layers in zip(*(encoder.blocks for encoder in encoders), strict=True):
            x = SpeakerLayer.each(layers, x, turns)
        x = each([encoder.norm for encoder in encoders], x)
        return {m: padded(rows, batch.mask) for m, rows in zip(self, x, strict=True)}


def each(layers: Sequence[nn.Module], x: Tensor, twice: bool = False) -> Tensor:
    """What M layers of one kind make of ``x [M, N, …]``, each of its own part, as one tensor.

    Args:
        layers: Linear, of layer normalisation, without parameters, or a sequence of these.
        x: What they are given.
        twice: Whether gradients are to have gradients.
    """
    first = layers[0]
    if isinstance(first, nn.Sequential):
        for parts in zip(*layers, strict=True):
            x = each(parts, x, twice)
        return x
    if isinstance(first, nn.Linear) and twice:
        weight, bias = (torch.stack(p) for p in zip(*((n.weight, n.bias) for n in layers), strict=True))
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
    if isinstance(first, nn.Linear):
        return _EachLinear.apply(x, *(layer.weight for layer in layers), *(layer.bias for layer in layers))
    if isinstance(first, nn.LayerNorm):
        weight, bias = (torch.stack(p).unsqueeze(1) for p in zip(*((n.weight, n.bias) for n in layers), strict=True))
        return torch.addcmul(bias, F.layer_norm(x, first.normalized_shape, eps=first.eps), weight)
    if next(first.parameters(), None) is not None:
        raise TypeError(f"{type(first).__name__}: not known here")
    return first(x)


class _EachLinear(torch.autograd.Function):
    """`each` of linear layers: a product for each, for `baddbmm` of so few shares them out badly among threads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[: len(x)], parameters[len(x) :]
        ctx.save_for_backward(x, *weights)
        result = x.new_empty(*x.shape[:2], len(biases[0]))
        for part, weight, bias, out in zip(x, weights, biases, result, strict=True):
            torch.addmm(bias, part, weight.t(), out=out)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, *weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        back = torch.empty_like(x)
        for part, weight, out in zip(gradient, weights, back, strict=True):
            torch.mm(part, weight, out=out)
        of_weights = [part.t() @ given for part, given in zip(gradient, x, strict=True)]
        return back, *of_weights, *gradient.sum(1)


class _Rows(torch.autograd.Function):
    """Rows of ``x``, none of them twice: their gradient is copied to where they were, which torch's own adds up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.length = len(x)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.length, *gradient.shape[1:]).index_copy_(0, index, gradient), None


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """The rows ``x[index]``, none of them twice."""
    return _Rows.apply(x, index) if x.requires_grad else x.index_select(0, index)


def real(x: Tensor, mask: Tensor) -> Tensor:
    """Real utterances ``[N, d]`` of ``[B, T, d]``: ``x[mask]``."""
    return rows_of(x.flatten(0, 1), places(mask))


def padded(x: Tensor, mask: Tensor) -> Tensor:
    """Real utterances ``[N, d]`` at their places in dialogues, 0 elsewhere, ``[B, T, d]``."""
    result = x.new_zeros(mask.numel(), x.shape[-1])
    return result.index_copy_(0, places(mask), x).view(*mask.shape, -1)


def places(mask: Tensor) -> Tensor:
    """Which turns of all dialogues, one after the other, are real utterances, ``[N]``."""
    return mask.flatten().nonzero().squeeze(1)


def speaker_means(x: Tensor, mask: Tensor, speakers: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Mean features of each speaker of each dialogue, ``[M, d]``, and whose an utterance is, a row of these, ``[N]``.

    Shapes:
        x: ``[B, T, d]``; mask, speakers: ``[B, T]``.

    Args:
        x: Features.
        mask: Which of them count.
        speakers: Whose they are.
        causal: Whether the mean is that of the speaker's turns so far, this one included: one for each utterance.
    """
    spoken = F.one_hot(speakers).to(x.dtype) * mask.unsqueeze(-1)  # [B, T, S]
    if causal:
        turns = spoken.cumsum(1).clamp(min=1).unsqueeze(-1)  # [B, T, S, 1]
        so_far = (spoken.unsqueeze(-1) * x.unsqueeze(2)).cumsum(1) / turns  # [B, T, S, d]
        means = (spoken.unsqueeze(2) @ so_far).squeeze(2)[mask]
        return means, torch.arange(len(means), device=x.device)
    means = spoken.transpose(1, 2) @ x / spoken.sum(1).clamp(min=1).unsqueeze(-1)  # [B, S, d]
    first = torch.arange(len(mask), device=x.device).unsqueeze(1) * means.shape[1]
    return means.flatten(0, 1), (first + speakers)[mask]


def speaker_relative(x: Tensor, mask: Tensor, speakers: Tensor, causal: bool = False) -> Tensor:
    """Features less the mean of the same speaker's features in the dialogue: how unlike themselves they sound.

    Shapes:
        x, result: ``[B, T, d]``; mask, speakers: ``[B, T]``. Arguments are those of `speaker_means`.
    """
    means, whose = speaker_means(x, mask, speakers, causal)
    return padded(real(x, mask) - means.index_select(0, whose), mask)


def relative_linear(layer: nn.Linear, x: Tensor, means: Tensor, whose: Tensor) -> Tensor:
    """A linear layer of features beside the same less their speaker's mean, at half the products.

    ``[W V] [x, x - mean]`` is ``(W + V) x - V mean``, and speakers are few.

    Shapes:
        x: ``[N, d]``; means, whose: as `speaker_means` has them; result: ``[N, layer.out_features]``.
    """
    plain, relative = layer.weight.chunk(2, dim=1)
    return F.linear(x, plain + relative, layer.bias) - F.linear(means, relative).index_select(0, whose)


class ChannelNorm(nn.BatchNorm1d):
    """Zero mean and unit variance for every channel over the utterances of one modality; nothing to learn.

    Each modality has statistics of its own (as domain-specific batch normalisation, arXiv 1906.03950), so that neither
    means nor variances tell the modalities apart. A single utterance has none: it takes those that are known so far.
    Of several processes each takes those of the whole batch.

    Shapes:
        x, result: ``[N, channels]``; where nothing is trained ``[…, channels]``.
    """

    def __init__(self, channels: int):
        super().__init__(channels, affine=False)
        self.rests = False  # whether its statistics stay as they are

    def forward(self, x: Tensor) -> Tensor:
        """Normalised channels; see the class."""
        if not self.training or self.rests:
            return self._known(x)  # without a look at how many there are, which would be a constant in an export
        dealt = parallel.dealt()
        every = parallel.counted(len(x)) if dealt else len(x)
        if every <= 1:
            return self._known(x)
        if not dealt:
            return super().forward(x)
        mean = parallel.together(parallel.mean_of(x.sum(0), len(x), of_all=True))
        variance = parallel.together(parallel.mean_of((x - mean).square().sum(0), len(x), of_all=True))
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(variance.detach() * every / (every - 1), self.momentum)  # as torch's own
        self.num_batches_tracked += 1
        return (x - mean) / (variance + self.eps).sqrt()

    def _known(self, x: Tensor) -> Tensor:
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt()


class FeedForward(nn.Module):
    """A residual feed-forward layer behind layer normalisation.

    Shapes:
        x, result: ``[N, channels]``.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The layer; see the class."""
        return x + self.layers(x)


class FusedFeatureGenerator(nn.Module):
    """G_m: one modality's features, beside the same less their speaker's mean, to fused features.

    Fused features have two parts. The shared channels are what the discriminators see, the same space for all
    modalities; they are few, so that narrow modalities can fill it. The own channels, a linear map, keep what is the
    modality's alone, in as many channels for every modality::

        f = [ChannelNorm(head(encode(embed(x)))), LayerNorm(dropout(own(x)))]

    What utterances tell of each other is the graph's to find: deeper maps to the own channels scored no better. A kind
    of generator is a class with another `encode`.

    Shapes:
        x: ``[B, T, in_channels]``; mask, speakers: ``[B, T]``; result: ``[B, T, fused_channels]``, 0 where padded.

    Args:
        in_channels: Width of the modality.
        fused_channels: Width of the fused features.
        dropout: Of the own channels, between 0 and 1.
        causal: Whether a speaker's mean is that of the turns so far.
        shared_channels: How many of the fused features are shared.
        hidden: Width of the encoder.
    """

    def __init__(
        self,
        in_channels: int,
        fused_channels: int,
        dropout: float = 0.4,
        causal: bool = False,
        shared_channels: int = SHARED_CHANNELS,
        hidden: int = 256,
    ):
        super().__init__()
        self.causal = causal
        self.embed = nn.Linear(2 * in_channels, hidden)
        self.head = nn.Linear(hidden, shared_channels, bias=False)  # the normalisation behind it would take it away
        self.own = nn.Sequential(
            nn.Linear(2 * in_channels, fused_channels - shared_channels),
            Dropout(dropout),
            nn.LayerNorm(fused_channels - shared_channels),
        )
        self.norm = ChannelNorm(shared_channels)
        self.build(hidden)

    def build(self, hidden: int) -> None:
        """Make the layers of `encode`."""
        self.layers = nn.Sequential(FeedForward(hidden), FeedForward(hidden))

    def rest(self) -> None:
        """Let the shared channels stay as they are, whatever the own ones learn."""
        self.norm.rests = True
        for part in self.children():
            if part is not self.own:
                part.requires_grad_(False)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """The utterances ``[N, hidden]`` encoded; the feed-forward kind reads each alone."""
        return self.layers(x)

    def read(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """What the layers read: the features beside the same less their speaker's mean, ``[B, T, 2 * in_channels]``."""
        return torch.cat([x, speaker_relative(x, mask, speakers, self.causal)], dim=-1)

    def forward(self, x: Tensor, mask: Tensor, speakers: Tensor, shared: Tensor | None = None) -> Tensor:
        """Fused features of the modality; see the class. Shared channels ``[B, T, …]`` that are known are taken."""
        given = real(x, mask), *speaker_means(x, mask, speakers, self.causal)
        own = relative_linear(self.own[0], *given)
        if shared is not None:
            return padded(torch.cat([real(shared, mask), self.own[1:](own)], dim=-1), mask)
        return padded(self.fuse(self.encode(relative_linear(self.embed, *given), mask), own), mask)

    def fuse(self, encoded: Tensor, own: Tensor) -> Tensor:
        """Fused features ``[N, fused_channels]`` of what `encode`, and the first layer to own channels, came to."""
        return torch.cat([self.norm(self.head(encoded)), self.own[1:](own)], dim=-1)


class LinearGenerator(FusedFeatureGenerator):
    """G_m as a linear map."""

    def build(self, hidden: int) -> None:
        """There are no layers."""

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """The utterances as they are."""
        return x


class TransformerGenerator(FusedFeatureGenerator):
    """G_m as the reference has it: a transformer encoder over the dialogue's utterances (arXiv 1706.03762).

    Two layers; causal ones attend to nothing ahead.
    """

    HEADS, LAYERS = 2, 2

    def build(self, hidden: int) -> None:
        """Make the encoder's layers."""
        layer = nn.TransformerEncoderLayer(
            hidden, self.HEADS, 2 * hidden, 0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, self.LAYERS, enable_nested_tensor=False)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """The utterances, each as its dialogue has it."""
        x = padded(x, mask)
        x = x + sinusoids(x.shape[1], x.shape[2], x.device)
        if self.causal:
            return self.encoder(x, mask=~past(mask).repeat_interleave(self.HEADS, 0))[mask]
        # A dialogue that lacks the modality throughout attends to its padding, or softmax would be of nothing.
        padding = ~mask & mask.any(1, keepdim=True)
        return self.encoder(x, src_key_padding_mask=padding)[mask]


def past(mask: Tensor) -> Tensor:
    """What a causal attention may look at, ``[B, T, T]``: itself, and the real utterances before it."""
    turns = torch.arange(mask.shape[1], device=mask.device)
    before, here = turns < turns.unsqueeze(1), turns == turns.unsqueeze(1)
    return (mask.unsqueeze(1) & before) | here


def sinusoids(length: int, channels: int, device: torch.device) -> Tensor:
    """The place of each utterance as sines and cosines, ``[length, channels]`` (arXiv 1706.03762, section 3.5)."""
    rate = 10_000 ** (-torch.arange(0, channels, 2, device=device) / channels)
    angle = torch.arange(length, device=device).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :channels]


# A generator by its name on the command line: a constructor of (in_channels, fused_channels, dropout).
GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "feed-forward": FusedFeatureGenerator,
    "linear": LinearGenerator,
    "transformer": TransformerGenerator,
}


class ModalityDiscriminator(nn.Module):
    """D_k: are these the shared channels of modality k's fused features, or of another modality's?

    Shapes:
        x: ``[N, channels]``; result: one logit each, ``[N]``, high for modality k.
    """

    def __init__(self, channels: int, hidden: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits; see the class."""
        return self.layers(x).squeeze(-1)


class AdversarialFusion(nn.Module):
    """Three generators against three discriminators: every modality's fused features try to pass for the others'.

    One generator and one discriminator a modality, for any number of modalities. Both sides of every game are fused
    features, in one space that all generators shape (after ARGF, arXiv 1911.07848): D_k tells the shared channels s_k
    of modality k from the s_m of every other modality m, six ordered pairs (m, k) for three modalities. The game is the
    regularised relativistic one of R3GAN (arXiv 2501.05441, equations 2 and 5), over real utterances only. There the
    two sides of a pair are drawn independently; here s_m and s_k are of one utterance::

        D_k minimises  E softplus(D_k(s_m) - D_k(s_k)) + gamma/2 (E |grad D_k(s_k)|^2 + E |grad D_k(s_m)|^2)
        G_m minimises  10 E softplus(D_k(s_k) - D_k(s_m))   adversarial; s_k rests
                     +  3 InfoNCE(s_m, s_k)                 contrastive: its own utterance, among all of the dialogue
                     +  1 smooth L1(translate(s_m), x_k)    translation
                     +  1 smooth L1(decode(f_m), x_m)       reconstruction

    The first makes modalities alike as a whole, the next two utterance by utterance, and the last keeps the features.
    InfoNCE is of arXiv 1807.03748, equation 4.

    The reference's losses, for comparison, are binary cross entropy without penalties and nothing else::

        D_k minimises  E softplus(-D_k(s_k)) + E softplus(D_k(s_m))
        G_m minimises  10 E softplus(-D_k(s_m))

    Args:
        dims: Modality to width.
        fused_channels: Width of the fused features, above `SHARED_CHANNELS`.
        dropout: Of the generators.
        generator: Makes a generator of a modality's width, the fused width and the dropout; one of `GENERATORS`.
        relativistic: Whether the adversarial loss is R3GAN's or the reference's.
        context: Whether generators may read around an utterance; else each is a dialogue of its own to them.
    """

    WEIGHTS: ClassVar = {"adversarial": 10.0, "contrastive": 3.0, "translation": 1.0}
    TEMPERATURE = 0.2  # of the cosines in InfoNCE
    NEGATIVES = 512  # turns of a dialogue at most among which InfoNCE looks for an utterance

    def __init__(
        self,
        dims: Mapping[str, int],
        fused_channels: int = 256,
        dropout: float = 0.4,
        generator: Callable[[int, int, float], nn.Module] = FusedFeatureGenerator,
        relativistic: bool = True,
        context: bool = True,
    ):
        super().__init__()
        self.relativistic = relativistic
        self.context = context
        self.fused_channels = fused_channels
        self.generators = nn.ModuleDict({m: generator(d, fused_channels, dropout) for m, d in dims.items()})
        self.own_norms = nn.ModuleDict({m: ChannelNorm(fused_channels - SHARED_CHANNELS) for m in dims})
        self.discriminators = nn.ModuleDict({m: ModalityDiscriminator(SHARED_CHANNELS) for m in dims})
        self.decoders = nn.ModuleDict({m: nn.Linear(fused_channels, d) for m, d in dims.items()})
        self.translators = nn.ModuleDict({m: nn.Linear(SHARED_CHANNELS, d) for m, d in dims.items()})

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All (generator, discriminator) pairs: ordered, of different modalities."""
        return list(permutations(self.generators, 2))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Fused features of each modality, ``[B, T, fused_channels]``; they mean nothing where it is missing."""
        return self.by_generator(batch, lambda generator, *given: generator(*given))

    def by_generator(self, batch: Batch, make: Callable[..., Tensor]) -> dict[str, Tensor]:
        """What ``make`` returns of each generator and what that is given: features, mask, speakers, what is known."""
        seen = batch if self.context else batch.isolated()
        made = {
            m: make(g, seen.features[m], seen.has(m), seen.speakers, *([seen.shared[m]] if seen.shared else []))
            for m, g in self.generators.items()
        }
        return made if self.context else {m: padded(x.squeeze(1), batch.mask) for m, x in made.items()}

    def normalised(self, batch: Batch) -> dict[str, Tensor]:
        """Fused features to compare with each other: as `forward`, every channel normalised over the modality.

        Own channels are smaller by `OWN_SCALE`, so that the cosine of two fused features speaks of what is shared.
        The classifier has them as `forward` gives them: it scores better where channels that vary little stay small.
        """
        split = {m: f.tensor_split([SHARED_CHANNELS], dim=-1) for m, f in self(batch).items()}
        return {m: torch.cat([s, OWN_SCALE * self.own_norms[m](own)], dim=-1) for m, (s, own) in split.items()}

    def export(self, batch: Batch) -> dict[str, Tensor]:
        """Fused features for other networks: the shared channels, then what the generator reads.

        The own channels of `forward` are a map of that to fewer channels, which the classifier goes on to learn. Other
        networks have a first layer of their own, and do worse behind this one. All modalities are as wide as the
        widest: the others are filled up with zeros. Own channels are smaller by `OWN_SCALE`, as above.
        """
        own = self.by_generator(batch, lambda generator, *given: OWN_SCALE * generator.read(*given))
        width = max(x.shape[-1] for x in own.values())
        own = {m: F.pad(x, (0, width - x.shape[-1])) for m, x in own.items()}
        return {m: torch.cat([f[..., :SHARED_CHANNELS], own[m]], dim=-1) for m, f in self(batch).items()}

    @torch.no_grad()
    def settle(self, loader: Iterable[Batch]) -> None:
        """Fix the statistics of every `ChannelNorm` at those of all utterances of these batches."""
        self.eval()
        count, total, squares = Counter(), Counter(), Counter()  # in one pass: a corpus may be larger than memory
        for batch in loader:
            for m, f in self(batch).items():
                rows = f[batch.has(m)].cpu().double()
                count[m] += len(rows)
                total[m] += rows.sum(0)
                squares[m] += rows.square().sum(0)
        for m, generator in self.generators.items():
            means = total[m] / count[m]
            variances = (squares[m] / count[m] - means.square()).clamp(min=0) * count[m] / max(1, count[m] - 1)
            shared, own = generator.norm, self.own_norms[m]
            mean, variance = (x.to(shared.running_mean).tensor_split([SHARED_CHANNELS]) for x in (means, variances))
            before = shared.running_var + shared.eps  # of what was normalised by statistics so far
            shared.running_mean += before.sqrt() * mean[0]
            shared.running_var = before * variance[0]
            own.running_mean, own.running_var = mean[1], variance[1]

    @property
    def even_losses(self) -> tuple[float, float]:
        """Adversarial loss of a generator and loss of a discriminator where all logits are equal, in nats."""
        return math.log(2), math.log(2) * (1 if self.relativistic else 2)

    def loss_weights(self, weight: float) -> dict[str, float]:
        """Weights of the generators' losses, by name: whatever is here is trained, logged and drawn.

        Args:
            weight: Multiplies all that ties modalities to each other; reconstruction keeps its own.
        """
        if not self.relativistic:
            return {"adversarial": weight * self.WEIGHTS["adversarial"]}
        return {**{name: weight * w for name, w in self.WEIGHTS.items()}, "reconstruction": 1.0}

    def shared(self, batch: Batch, fused: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The shared channels of the real utterances, ``[N, SHARED_CHANNELS]`` each."""
        return {m: real(f[..., :SHARED_CHANNELS], batch.mask) for m, f in fused.items()}

    def discriminator_losses(self, batch: Batch, fused: Mapping[str, Tensor], gamma: float) -> dict[str, Tensor]:
        """Loss of each discriminator, the mean over the other modalities' generators; no generator gets a gradient.

        Args:
            batch: Which utterances there are.
            fused: What `forward` made of the same utterances.
            gamma: Weight of the gradient penalties R1 and R2, which only the relativistic game has.
        """
        shared = torch.stack(list(self.shared(batch, fused).values())).detach()
        seen = shared.expand(len(shared), *shared.shape).requires_grad_()  # each discriminator has slopes of its own
        logits = self.logits(seen)
        on = self.by_pair(logits)
        own, other = (torch.stack(x) for x in zip(*((on[k, k], on[k, m]) for k, m in self.pairs), strict=True))
        if self.relativistic:
            (slopes,) = torch.autograd.grad(logits.sum(), seen, create_graph=True)
            squares = self.by_pair(slopes.square().sum(-1))
            penalty = torch.stack([squares[k, k] + squares[k, m] for k, m in self.pairs])
            loss = F.softplus(other - own) + gamma / 2 * penalty
        else:
            loss = F.softplus(-own) + F.softplus(other)
        return dict(zip(self.generators, self.over_others(loss, batch), strict=True))

    def logits(self, shared: Tensor) -> Tensor:
        """Of each D_k on each s_m, ``[M, M, N]``, k the first index, of ``shared [M, M, N, channels]``."""
        logits = each([d.layers for d in self.discriminators.values()], shared.flatten(1, 2), twice=True)
        return logits.view(shared.shape[:-1])

    def by_pair(self, x: Tensor) -> dict[tuple[str, str], Tensor]:
        """The rows of ``x [M, M, N]`` by the two modalities."""
        return dict(zip(product(self.generators, repeat=2), x.flatten(0, 1).unbind(), strict=True))

    def over_others(self, loss: Tensor, batch: Batch) -> Tensor:
        """The mean over the utterances that have both modalities of a pair, then over the second of them, ``[M]``.

        Args:
            loss: Of each of `pairs` and each real utterance, ``[M * (M - 1), N]``.
            batch: Which of them lack what.
        """
        there = self.there(batch)
        if there is not None:
            both = self.by_pair(there.unsqueeze(1) & there)
            there = torch.stack([both[pair] for pair in self.pairs])
        return means(loss, there).view(len(self.generators), -1).mean(1)

    def there(self, batch: Batch) -> Tensor | None:
        """Which real utterances have which modality, ``[M, N]``; None if all have all."""
        return torch.stack([batch.has(m)[batch.mask] for m in self.generators]) if batch.modality_mask else None

    def generator_losses(self, batch: Batch, fused: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Losses of each generator, by modality and by the names that `loss_weights` has.

        A loss called ``NAME`` is the method ``NAME_loss(batch, rows)``, its rows the fused features of the real
        utterances by modality, ``[N, fused_channels]`` each. It returns a number for each modality, ``[M]``; those
        between two modalities by `over_others`.

        Args:
            batch: Where the clean features are.
            fused: What `forward` made of the same utterances.
        """
        rows = {m: real(f, batch.mask) for m, f in fused.items()}
        losses = {name: getattr(self, f"{name}_loss")(batch, rows).unbind() for name in self.loss_weights(1.0)}
        return {m: {name: loss[i] for name, loss in losses.items()} for i, m in enumerate(self.generators)}

    def adversarial_loss(self, batch: Batch, rows: Mapping[str, Tensor]) -> Tensor:
        """How badly s_m passes for the other modalities."""
        shared = torch.stack([f[:, :SHARED_CHANNELS] for f in rows.values()])
        on = self.by_pair(self.logits(shared.expand(len(shared), *shared.shape)))
        loss = -torch.stack([on[k, m] for m, k in self.pairs])
        if self.relativistic:
            loss = loss + torch.stack([on[k, k] for _, k in self.pairs]).detach()
        return self.over_others(F.softplus(loss), batch)

    def contrastive_loss(self, batch: Batch, rows: Mapping[str, Tensor]) -> Tensor:
        """How hard it is to find an utterance by s_m among the s_k of its dialogue (InfoNCE).

        A dialogue of more than `NEGATIVES` turns counts as several, or memory would grow with its length squared.
        """
        sphere = {m: padded(F.normalize(f[:, :SHARED_CHANNELS], dim=-1), batch.mask) for m, f in rows.items()}
        of, among = (torch.stack(x) for x in zip(*((sphere[m], sphere[k]) for m, k in self.pairs), strict=True))
        there = torch.stack([batch.has(m) & batch.has(k) for m, k in self.pairs])  # [P, B, T]
        losses = []
        parts = (x.split(self.NEGATIVES, dim=2) for x in (of / self.TEMPERATURE, among, there))
        for s_m, s_k, both in zip(*parts, strict=True):
            length = both.shape[-1]
            absent = of.new_zeros(both.shape).masked_fill_(~both, -1e4).flatten(0, 1).unsqueeze(1)
            cosines = torch.baddbmm(absent, s_m.flatten(0, 1), s_k.flatten(0, 1).transpose(1, 2))  # [P * B, T, T]
            own = torch.arange(length, device=of.device).repeat(len(cosines))
            losses.append(F.cross_entropy(cosines.flatten(0, 1), own, reduction="none").view(both.shape))
        loss = torch.cat(losses, dim=2).flatten(1).index_select(1, places(batch.mask))
        return self.over_others(loss, batch)

    def translation_loss(self, batch: Batch, rows: Mapping[str, Tensor]) -> Tensor:
        """How far the other modalities' features are from what a linear map makes of s_m."""
        loss = {}
        for k, translator in self.translators.items():
            others = [m for m in rows if m != k]
            made = translator(torch.stack([rows[m][:, :SHARED_CHANNELS] for m in others]))
            given = real(batch.features[k], batch.mask).expand_as(made)
            apart = F.smooth_l1_loss(made, given, reduction="none").sum(-1) / given.shape[-1]
            loss |= {(m, k): row for m, row in zip(others, apart.unbind(), strict=True)}
        return self.over_others(torch.stack([loss[pair] for pair in self.pairs]), batch)

    def reconstruction_loss(self, batch: Batch, rows: Mapping[str, Tensor]) -> Tensor:
        """How far x_m is from what a linear map makes of f_m."""
        loss = []
        for m, decoder in self.decoders.items():
            given = real(batch.features[m], batch.mask)
            loss.append(F.smooth_l1_loss(decoder(rows[m]), given, reduction="none").sum(-1) / given.shape[-1])
        return means(torch.stack(loss), self.there(batch))


def means(loss: Tensor, there: Tensor | None) -> Tensor:
    """The mean of each row over the whole batch, 0 of none; of several processes a part of it, see `parallel`.

    Args:
        loss: Of the real utterances, ``[…, N]``.
        there: Which of them count, alike; None if all do.
    """
    if there is None:
        return parallel.mean_of(loss.sum(-1), loss.shape[-1], of_all=True)
    totals, counts = loss.masked_fill(~there, 0).sum(-1), there.sum(-1).tolist()
    return torch.stack([parallel.mean_of(*each, of_all=True) for each in zip(totals, counts, strict=True)])


def dialogue_edges(
    mask: Tensor, speakers: Tensor, window_past: int, window_future: int, num_speakers: int
) -> tuple[Tensor, Tensor]:
    """Edges between the utterances of each dialogue, typed as DialogueGCN's are (arXiv 1908.11540, section 3.4.2).

    The neighbours of utterance t are all others of its dialogue from ``t - window_past`` to ``t + window_future``.
    Nodes are the real utterances in the order of ``x[mask]``. An edge's type is the pair of speakers, from whom to
    whom, and whether the source lies in the past (0) or the future (1)::

        type = 2 * (speaker_source * num_speakers + speaker_target) + in_future

    Args:
        mask: ``[B, T]``.
        speakers: ``[B, T]``; numbers beyond the last known speaker count as that one.
        window_past: How many turns back, 0 or more.
        window_future: How many turns ahead, 0 or more.
        num_speakers: How many speakers types are made for.

    Returns:
        ``edge_index [2, E]``, sources above targets, and ``edge_type [E]``.
    """
    turns = torch.arange(mask.shape[1], device=mask.device)
    longest = mask.shape[1] - 1  # further than that there is no turn
    offsets = torch.arange(-min(window_past, longest), min(window_future, longest) + 1, device=mask.device)
    neighbours = turns.unsqueeze(1) + offsets[offsets != 0]  # [T, W]
    inside = (neighbours >= 0) & (neighbours < mask.shape[1])
    neighbours = neighbours.clamp(0, mask.shape[1] - 1)
    dialogue, turn, slot = (mask.unsqueeze(-1) & mask[:, neighbours] & inside).nonzero(as_tuple=True)
    source = neighbours[turn, slot]
    node = (mask.flatten().cumsum(0) - 1).view_as(mask)
    speaker = speakers.clamp(max=num_speakers - 1)
    edge_type = 2 * (speaker[dialogue, source] * num_speakers + speaker[dialogue, turn]) + (source > turn).long()
    return torch.stack([node[dialogue, source], node[dialogue, turn]]), edge_type


@dataclass(frozen=True)
class Neighbours:
    """Who hears whom by which relation, as means over neighbours need it; the same for all layers.

    A relation names the speaker of its target, so that an utterance has neighbours by ``2 * num_speakers`` of them:
    from whom, and in which direction. Each of these has a slot, those of an utterance one after the other.

    Attributes:
        sources: Of each edge, by slots ``[E]``.
        slot_begins: Where those of a slot begin, ``[N * 2 * num_speakers]``.
        counts: How many they are, or 1.
        slots: Of each edge, by sources ``[E]``.
        source_begins: Where those of a source begin, ``[N]``.
        said_by: The utterances of each speaker.
    """

    sources: Tensor
    slot_begins: Tensor
    counts: Tensor
    slots: Tensor
    source_begins: Tensor
    said_by: list[Tensor]

    @classmethod
    def of(cls, edge_index: Tensor, edge_type: Tensor, speakers: Tensor, num_speakers: int) -> Neighbours:
        """Those of `dialogue_edges` between utterances of ``speakers [N]``, all below ``num_speakers``."""
        (source, target), heard = edge_index, 2 * num_speakers
        slot = target * heard + edge_type // heard * 2 + edge_type % 2
        by_slot, at_slot = torch.sort(slot, stable=True)
        by_source, at_source = torch.sort(source, stable=True)
        numbers = torch.arange(len(speakers) * heard + 1, device=source.device)
        begins = torch.searchsorted(by_slot, numbers)
        return cls(
            sources=source[at_slot],
            slot_begins=begins[:-1],
            counts=begins.diff().clamp(min=1),
            slots=slot[at_source],
            source_begins=torch.searchsorted(by_source, numbers[: len(speakers)]),
            said_by=[(speakers == speaker).nonzero().squeeze(1) for speaker in range(num_speakers)],
        )


class _NeighbourMeans(torch.autograd.Function):
    """The mean of ``x [N, d]`` over the neighbours of each slot, 0 of none, ``[N * 2 * num_speakers, d]``.

    Its gradient is gathered by source, as the means are by slot; torch's own sorts the edges anew for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbours: Neighbours) -> Tensor:
        ctx.neighbours = neighbours
        return F.embedding_bag(neighbours.sources, x, neighbours.slot_begins, mode="mean")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        each = gradient / ctx.neighbours.counts.unsqueeze(1)
        return F.embedding_bag(ctx.neighbours.slots, each, ctx.neighbours.source_begins, mode="sum"), None


class RelationalConvolution(nn.Module):
    """A relational graph convolution (R-GCN, arXiv 1703.06103, equation 2), over the relations of `dialogue_edges`.

    Utterance t, by what it is and by its neighbours in each relation::

        h_t = W_0 x_t + b + sum over relations r of W_r times the mean of x_s over t's neighbours s by r

    The same as PyTorch Geometric's ``RGCNConv``, parameters and their first values included. Maps of relations by which
    an utterance can have no neighbour (`Neighbours`), which that layer multiplies too, are left out. Its package also
    takes seconds to import.

    Shapes:
        x: ``[N, in_channels]``; result: ``[N, out_channels]``.
    """

    def __init__(self, in_channels: int, out_channels: int, num_speakers: int):
        super().__init__()
        self.num_speakers, self.num_relations = num_speakers, 2 * num_speakers**2
        self.weight = nn.Parameter(torch.empty(self.num_relations, in_channels, out_channels))
        self.root = nn.Parameter(torch.empty(in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        for matrix in (*self.weight, self.root):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x: Tensor, neighbours: Neighbours) -> Tensor:
        """What each utterance makes of itself and its neighbours; see the class."""
        means = _NeighbourMeans.apply(x, neighbours).view(len(x), -1)
        maps = self.weight.view(self.num_speakers, self.num_speakers, 2, *self.root.shape).transpose(0, 1)
        result = torch.addmm(self.bias, x, self.root)
        for own, matrix in zip(
            neighbours.said_by, maps.reshape(self.num_speakers, -1, self.root.shape[1]), strict=True
        ):
            result = result.index_add(0, own, rows_of(means, own) @ matrix)
        return result


class NodalAttention(nn.Module):
    """Attention of every utterance over its whole dialogue, as DialogueGCN's (arXiv 1908.11540, equations 10 to 12).

    But for the scale: products are divided by the root of the width (arXiv 1706.03762, equation 1).

    Shapes:
        x, result: ``[B, T, d]``; mask: ``[B, T]``.
    """

    def __init__(self, channels: int, causal: bool = False):
        super().__init__()
        self.causal = causal
        self.query = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """What each utterance gathers from its dialogue, or of what was said so far; see the class."""
        seen = past(mask) if self.causal else mask.unsqueeze(1)
        return F.scaled_dot_product_attention(self.query(x), x, x, attn_mask=seen)


class GraphEmotionClassifier(nn.Module):
    """Emotion of every utterance, by relational graph convolutions over the dialogue.

    Shapes:
        x: ``[B, T, in_channels]``; mask, speakers: ``[B, T]``; result: logits ``[B, T, num_classes]``, 0 where padded.

    Args:
        in_channels: Width of the fused features.
        num_classes: How many emotions.
        num_speakers: How many speakers edge types are made for.
        window_past: How many turns back an utterance has neighbours; with `window_future` both 0 it has none.
        window_future: How many turns ahead.
        layers: How many graph convolutions.
        attention: Whether `NodalAttention` follows them.
        dropout: Probability, between 0 and 1.
        causal: Whether that attention looks at nothing ahead.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_speakers: int,
        window_past: int = 8,
        window_future: int = 8,
        layers: int = 2,
        attention: bool = False,
        dropout: float = 0.4,
        causal: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.window = (window_past, window_future)
        self.num_speakers = num_speakers
        self.convolutions = nn.ModuleList(
            RelationalConvolution(in_channels, in_channels, num_speakers) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(in_channels) for _ in range(layers))
        self.attention = NodalAttention(in_channels, causal) if attention else None
        self.dropout = Dropout(dropout)
        self.classify = nn.Sequential(
            nn.Linear(in_channels * (1 + bool(layers) + attention), in_channels),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(in_channels, num_classes),
        )

    def forward(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """Logits; see the class."""
        return padded(self.classify(self.views(x, mask, speakers)), mask)

    def last_layer(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """What the last linear map reads, ``[N, in_channels]``."""
        return self.classify[:-1](self.views(x, mask, speakers))

    def views(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """Each utterance beside what the graph says of it, ``[N, …]``."""
        nodes = self.dropout(real(x, mask))  # [N, d]
        views = [nodes]
        if self.convolutions:
            edges = dialogue_edges(mask, speakers, *self.window, self.num_speakers)
            known = speakers[mask].clamp(max=self.num_speakers - 1)
            neighbours, convolved = Neighbours.of(*edges, known, self.num_speakers), nodes
            for convolution, norm in zip(self.convolutions, self.norms, strict=True):
                heard = convolution(convolved, neighbours)
                convolved = convolved + self.dropout(F.gelu(norm(heard)))
            views.append(convolved)
        if self.attention is not None:
            views.append(real(self.attention(padded(views[-1], mask), mask), mask))
        return torch.cat(views, dim=-1)


class GANFFN(nn.Module):
    """The whole network: adversarially fused features, each modality's encoded by speaker, into the classifier.

    Modalities are summed before the classifier. A missing one takes no part in the sum, which is then scaled up to as
    many modalities as there are, so that the classifier sees it at the size it knows. An utterance that lacks all of
    them is a node of zeros: what it is given comes from its neighbours in the graph.

    With both windows 0 there is no edge: the same layers with the same parameters read every utterance as a dialogue of
    its own, so that the ablation takes away what the graph brings and nothing else.

    Shapes:
        result: logits ``[B, T, num_classes]``, 0 where padded.

    Args:
        fusion: The generators; its discriminators rest.
        classifier: The last layers, as wide as the fused features.
        speaker_layers: Depth of each modality's `SpeakerEncoder`; 0 leaves them out.
        dropout: Of these encoders.
        causal: Whether they read nothing ahead; fusion and classifier say so for themselves.
    """

    def __init__(
        self,
        fusion: AdversarialFusion,
        classifier: GraphEmotionClassifier,
        speaker_layers: int = 2,
        dropout: float = 0.4,
        causal: bool = False,
    ):
        super().__init__()
        self.fusion = fusion
        self.classifier = classifier
        self.edges = any(classifier.window)
        encoders = {m: SpeakerEncoder(fusion.fused_channels, speaker_layers, dropout) for m in fusion.generators}
        self.speaker_encoders = SpeakerEncoders(encoders if speaker_layers else {}, causal)

    def forward(self, batch: Batch) -> Tensor:
        """Logits; see the class."""
        return self.readings(batch, unimodal=False)[0]

    def readings(self, batch: Batch, unimodal: bool = True) -> list[Tensor]:
        """Logits by all modalities together, then, if ``unimodal``, by each as if the others were missing."""
        if not self.edges:
            read = self._readings(batch.isolated(), unimodal)
            return [padded(logits.squeeze(1), batch.mask) for logits in read]
        return self._readings(batch, unimodal)

    def _readings(self, batch: Batch, unimodal: bool) -> list[Tensor]:
        """As `readings`, of the dialogues as they are given."""
        encoded = self.encoded(batch)
        among = [tuple(encoded), *((m,) for m in encoded if unimodal and len(encoded) > 1)]
        return [self.classifier(self.nodes(batch, encoded, some), batch.mask, batch.speakers) for some in among]

    def last_layer(self, batch: Batch) -> Tensor:
        """What the classifier's last linear map reads of the real utterances, ``[N, fused_channels]``."""
        batch = batch if self.edges else batch.isolated()
        encoded = self.encoded(batch)
        return self.classifier.last_layer(self.nodes(batch, encoded, tuple(encoded)), batch.mask, batch.speakers)

    def encoded(self, batch: Batch) -> dict[str, Tensor]:
        """Each modality's fused features as its speaker encoder has them, ``[B, T, fused_channels]``."""
        fused = self.fusion(batch)
        return self.speaker_encoders(fused, batch) if self.speaker_encoders else fused

    def nodes(self, batch: Batch, encoded: Mapping[str, Tensor], modalities: Sequence[str]) -> Tensor:
        """These modalities of each utterance as one, ``[B, T, fused_channels]``."""
        if not batch.modality_mask:
            return sum(encoded[m] for m in modalities) * (len(encoded) / len(modalities))
        has = {m: batch.has(m).unsqueeze(-1) for m in modalities}
        total = sum(encoded[m].masked_fill(~has[m], 0) for m in modalities)
        scale = len(encoded) / sum(has.values()).clamp(min=1)  # 1 where nothing is missing
        return total * scale


LABEL_SMOOTHING = 0.1


def emotion_loss(logits: Tensor, labels: Tensor, weight: Tensor | None = None, focal: float = 0.0) -> Tensor:
    """Cross entropy of ``logits [N, C]``, weighted by class and by how wrong the utterance still is.

    The second weight is ``(1 - p)**focal`` of the label's probability p (focal loss, arXiv 1708.02002, equation 4).
    """
    if not len(labels):
        return parallel.mean_of(0 * logits.sum(), 0)  # a batch of dialogues without a label
    each = F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=LABEL_SMOOTHING)
    if focal:
        each = each * (1 - logits.softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)) ** focal
    return parallel.mean_of(each.sum(), len(labels) if weight is None else weight[labels].sum())
