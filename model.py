"""GAN-FFN's networks and their losses: generators against discriminators, then a graph over the dialogue.

Shapes use B dialogues, T utterances in the longest of them, N real utterances in all, and d features.
``mask [B, T]`` is True on real utterances; no encoder, loss or statistic sees the others. A generator's mask is True on
the real utterances that have its modality: the others take no part in it, nor in the losses that compare it.
``speakers [B, T]`` numbers the speakers of a dialogue from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch_geometric.nn import RGCNConv

from dataloader import Batch
from parallel import mean_of


class _Recurrence(torch.autograd.Function):
    """`gated_recurrence` with time first; its adjoint is the same recurrence run backwards."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, update: Tensor) -> Tensor:
        states = update.clone(memory_format=torch.contiguous_format)
        for state, gate, before in zip(states[1:].unbind(), keep[1:].unbind(), states[:-1].unbind(), strict=True):
            state.addcmul_(gate, before)
        ctx.save_for_backward(keep, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        keep, states = ctx.saved_tensors
        total = gradient.clone(memory_format=torch.contiguous_format)
        for here, gate, after in zip(
            reversed(total[:-1].unbind()), reversed(keep[1:].unbind()), reversed(total[1:].unbind()), strict=True
        ):
            here.addcmul_(gate, after)
        keeps = torch.zeros_like(keep)
        torch.mul(total[1:], states[:-1], out=keeps[1:])
        return keeps, total


def gated_recurrence(keep: Tensor, update: Tensor) -> Tensor:
    """All states of ``h_t = keep_t * h_{t-1} + update_t``, ``h_0 = 0``.

    Shapes:
        keep, update, result: ``[..., T, d]``.
    """
    # One fused operation a turn, written in place: at a dialogue's length faster than the log2(T) steps of a parallel
    # scan, each of which autograd would keep.
    return _Recurrence.apply(keep.movedim(-2, 0).contiguous(), update.movedim(-2, 0)).movedim(0, -2)


def _flip_half(x: Tensor) -> Tensor:
    """Reverse time in the second half of the channels."""
    forward, backward = x.chunk(2, dim=-1)
    return torch.cat([forward, backward.flip(-2)], dim=-1)


class SpeakerRecurrence(nn.Module):
    """One running state for each speaker of the dialogue, past and future, read by every utterance.

    A speaker's state changes only at their own turns, as DialogueRNN's party state does (arXiv 1811.00405); the gate
    looks at the turn alone, as minGRU's (arXiv 2410.01201), which makes the recurrence a scan that a CPU runs fast::

        h_t = (1 - z_t) * h_{t-1} + z_t * W x_t    at the speaker's turns, elsewhere h_{t-1}

    An utterance reads its own speaker's state beside the sum of the other speakers' states.

    Shapes:
        x: ``[N, d]``, the real utterances; mask, speakers: ``[B, T]``; result: ``[N, 2d]``.

    Args:
        channels: Width; even.
        causal: Whether all states run forward, so that no utterance hears what comes after it.
    """

    def __init__(self, channels: int, causal: bool = False):
        super().__init__()
        self.causal = causal
        self.gate = nn.Linear(channels, channels)
        self.candidate = nn.Linear(channels, channels)
        # Gates begin between closed and half open, so that memories of many lengths are there from the start.
        nn.init.uniform_(self.gate.bias, -3, 0)

    def forward(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """The states each utterance reads; see the class."""
        numbers = torch.arange(int(speakers.max()) + 1, device=x.device).view(-1, 1, 1)
        turns = (mask & (speakers == numbers)).unsqueeze(-1)  # [S, B, T, 1]
        gate = padded(torch.sigmoid(self.gate(x)), mask) * turns  # [S, B, T, d]
        update = gate * padded(self.candidate(x), mask)
        if self.causal:
            states = gated_recurrence(1 - gate, update)
        else:  # half of the channels remember the past; the other half, run backwards, the future
            states = _flip_half(gated_recurrence(_flip_half(1 - gate), _flip_half(update)))
        own = (states * turns).sum(0)
        return torch.cat([own, states.sum(0) - own], dim=-1)[mask]


class SpeakerLayer(nn.Module):
    """A residual layer: speakers' states, then a feed-forward layer, each behind layer normalisation and dropout.

    Shapes:
        x, result: ``[N, d]``, the real utterances; mask, speakers: ``[B, T]``.

    Args:
        channels: Width; even.
        dropout: Probability, between 0 and 1.
        causal: As `SpeakerRecurrence`.
    """

    def __init__(self, channels: int, dropout: float, causal: bool = False):
        super().__init__()
        self.norm_states = nn.LayerNorm(channels)
        self.states = SpeakerRecurrence(channels, causal)
        self.read = nn.Linear(2 * channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels, channels),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """The block; see the class."""
        x = x + self.dropout(self.read(self.states(self.norm_states(x), mask, speakers)))
        return x + self.feed_forward(x)


class SpeakerEncoder(nn.Module):
    """One modality's fused features, passed along the edges from turn to turn of every speaker, past and future.

    A directed acyclic graph each way, after DAG-ERC (arXiv 2105.12907): each speaker's last turn is a neighbour of an
    utterance, and through it all of that speaker's turns. `SpeakerRecurrence` says how.

    Shapes:
        x, result: ``[B, T, channels]``, the result normalised by layer, 0 where padded; mask, speakers: ``[B, T]``.

    Args:
        channels: Width; even.
        blocks: How many `SpeakerLayer` deep.
        dropout: Probability, between 0 and 1.
        causal: As `SpeakerRecurrence`.
    """

    def __init__(self, channels: int, blocks: int, dropout: float, causal: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(SpeakerLayer(channels, dropout, causal) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """The encoded features; see the class."""
        nodes = x[mask]
        for block in self.blocks:
            nodes = block(nodes, mask, speakers)
        return padded(self.norm(nodes), mask)


def padded(x: Tensor, mask: Tensor) -> Tensor:
    """Real utterances ``[N, d]`` at their places in dialogues, 0 elsewhere, ``[B, T, d]``."""
    result = x.new_zeros(*mask.shape, x.shape[-1])
    result[mask] = x
    return result


def speaker_relative(x: Tensor, mask: Tensor, speakers: Tensor, causal: bool = False) -> Tensor:
    """Features less the mean of the same speaker's features in the dialogue: how unlike themselves they sound.

    Shapes:
        x, result: ``[B, T, d]``; mask, speakers: ``[B, T]``.

    Args:
        x: Features.
        mask: Which of them count.
        speakers: Whose they are.
        causal: Whether the mean is that of the speaker's turns so far, this one included.
    """
    spoken = F.one_hot(speakers).to(x.dtype) * mask.unsqueeze(-1)  # [B, T, S]
    if causal:
        turns = spoken.cumsum(1).clamp(min=1).unsqueeze(-1)  # [B, T, S, 1]
        so_far = (spoken.unsqueeze(-1) * x.unsqueeze(2)).cumsum(1) / turns  # [B, T, S, d]
        return x - (spoken.unsqueeze(2) @ so_far).squeeze(2)
    turns = spoken.sum(1).clamp(min=1).unsqueeze(-1)  # [B, S, 1]
    return x - spoken @ (spoken.transpose(1, 2) @ x / turns)


class FusedFeatureGenerator(nn.Module):
    """G_m: one modality's features, beside the same less their speaker's mean, to fused features.

    A linear map: what utterances tell of each other is the graph's to find, and deeper generators scored no better.

    Shapes:
        x: ``[B, T, in_channels]``; mask, speakers: ``[B, T]``; result: ``[B, T, fused_channels]``, normalised by
            layer, 0 where padded.

    Args:
        in_channels: Width of the modality.
        fused_channels: Width of the fused features.
        dropout: Probability, between 0 and 1.
        causal: Whether a speaker's mean is that of the turns so far.
    """

    def __init__(self, in_channels: int, fused_channels: int, dropout: float = 0.4, causal: bool = False):
        super().__init__()
        self.causal = causal
        self.embed = nn.Linear(2 * in_channels, fused_channels)
        self.norm = nn.LayerNorm(fused_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """Fused features of the modality; see the class."""
        x = torch.cat([x, speaker_relative(x, mask, speakers, self.causal)], dim=-1)[mask]
        return padded(self.norm(self.dropout(self.embed(x))), mask)


class TransformerGenerator(nn.Module):
    """G_m as the reference has it: a transformer encoder over the dialogue's utterances (arXiv 1706.03762).

    Shapes:
        As `FusedFeatureGenerator`.

    Args:
        in_channels: Width of the modality.
        fused_channels: Width of the fused features; a multiple of `heads`.
        dropout: Probability, between 0 and 1.
        layers: How many encoder layers.
        heads: Of the attention.
        causal: Whether an utterance attends to nothing after it, and a speaker's mean is that of the turns so far.
    """

    def __init__(
        self,
        in_channels: int,
        fused_channels: int,
        dropout: float = 0.4,
        layers: int = 2,
        heads: int = 2,
        causal: bool = False,
    ):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.embed = nn.Linear(2 * in_channels, fused_channels)
        layer = nn.TransformerEncoderLayer(
            fused_channels, heads, 2 * fused_channels, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(fused_channels)

    def forward(self, x: Tensor, mask: Tensor, speakers: Tensor) -> Tensor:
        """Fused features of the modality; see the class."""
        x = self.embed(torch.cat([x, speaker_relative(x, mask, speakers, self.causal)], dim=-1))
        x = x + sinusoids(x.shape[1], x.shape[2], x.device)
        if self.causal:
            blocked = ~past(mask).repeat_interleave(self.heads, 0)
            return padded(self.norm(self.encoder(x, mask=blocked))[mask], mask)
        # A dialogue that lacks the modality throughout attends to its padding, or softmax would be of nothing.
        padding = ~mask & mask.any(1, keepdim=True)
        return padded(self.norm(self.encoder(x, src_key_padding_mask=padding))[mask], mask)


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
GENERATORS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "linear": FusedFeatureGenerator,
    "transformer": TransformerGenerator,
}


class ModalityDiscriminator(nn.Module):
    """D_k: are these the real features of modality k, or another modality's fused features?

    Shapes:
        x: ``[N, channels]``; result: one logit each, ``[N]``, high for real.
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
    """Three generators against three discriminators: every modality's fused features try to pass for the others.

    One generator and one discriminator a modality, for any number of modalities. Generator m is trained against the
    discriminator of every other modality k: six ordered pairs (m, k) for three modalities. The game is the
    regularised relativistic one of R3GAN (arXiv 2501.05441, equations 2 and 5), over real utterances only::

        D_k minimises  E softplus(D_k(f_m) - D_k(x_k)) + gamma/2 (E |grad D_k(x_k)|^2 + E |grad D_k(f_m)|^2)
        G_m minimises  E softplus(D_k(x_k) - D_k(f_m)) + matching + reconstruction

    The utterance is the same on both sides, so that the pairing of the modalities takes part. Two terms tie f_m to
    its utterance, which the reference lacked: matching, ``1 - cos(f_m, x_k)`` to the paired real features; and a linear
    reconstruction of x_m from f_m, as in ARGF (arXiv 1911.07848).

    The reference's losses, for comparison, are binary cross entropy without penalties::

        D_k minimises  E softplus(-D_k(x_k)) + E softplus(D_k(f_m))
        G_m minimises  E softplus(-D_k(f_m))

    Real features are brought to the fused width by a fixed random semi-orthogonal map, which keeps their geometry and
    which nothing trains.

    Args:
        dims: Modality to width.
        fused_channels: Width of the fused features.
        dropout: Of the generators.
        generator: Makes a generator of a modality's width, the fused width and the dropout; one of `GENERATORS`.
        relativistic: Whether the adversarial loss is R3GAN's or the reference's.
        context: Whether generators may read around an utterance; else each is a dialogue of its own to them.
    """

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
        self.generators = nn.ModuleDict({m: generator(d, fused_channels, dropout) for m, d in dims.items()})
        self.discriminators = nn.ModuleDict({m: ModalityDiscriminator(fused_channels) for m in dims})
        self.decoders = nn.ModuleDict({m: nn.Linear(fused_channels, d) for m, d in dims.items()})
        self.fused_channels = fused_channels
        for m, d in dims.items():
            self.register_buffer(f"bring_{m}", nn.init.orthogonal_(torch.empty(d, fused_channels)))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All (generator, discriminator) pairs: ordered, of different modalities."""
        return list(permutations(self.generators, 2))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Fused features of each modality, ``[B, T, fused_channels]``; they mean nothing where it is missing."""
        if self.context:
            return {m: g(batch.features[m], batch.has(m), batch.speakers) for m, g in self.generators.items()}
        alone = batch.isolated()
        fused = {m: g(alone.features[m], alone.has(m), alone.speakers) for m, g in self.generators.items()}
        return {m: padded(f.squeeze(1), batch.mask) for m, f in fused.items()}

    @property
    def even_losses(self) -> tuple[float, float]:
        """Adversarial loss of a generator and loss of a discriminator where all logits are equal, in nats."""
        return math.log(2), math.log(2) * (1 if self.relativistic else 2)

    def loss_weights(self, weight: float) -> dict[str, float]:
        """Weights of the generators' losses, by name: whatever is here is trained, logged and drawn.

        Args:
            weight: Of the adversarial loss and of matching, beside reconstruction.
        """
        if not self.relativistic:
            return {"adversarial": weight}
        return {"adversarial": weight, "matching": weight, "reconstruction": 1.0}

    def real(self, batch: Batch) -> dict[str, Tensor]:
        """Real features of each modality, brought to the fused width and normalised like the fused, ``[N, d]``.

        Of a missing modality they mean nothing; `having` leaves them out.
        """
        return {
            m: F.layer_norm(batch.features[m][batch.mask] @ self.get_buffer(f"bring_{m}"), (self.fused_channels,))
            for m in self.generators
        }

    def discriminator_losses(self, batch: Batch, fused: Mapping[str, Tensor], gamma: float) -> dict[str, Tensor]:
        """Loss of each discriminator, the mean over the other modalities' generators, which get no gradient.

        Args:
            batch: Where the real features are.
            fused: What `forward` made of the same batch.
            gamma: Weight of the gradient penalties R1 and R2, which only the relativistic game has.
        """
        real = self.real(batch)
        losses: dict[str, list[Tensor]] = {k: [] for k in self.generators}
        for m, k in self.pairs:
            x = having(real[k], batch, m, k).detach().requires_grad_()
            f = having(fused[m][batch.mask], batch, m, k).detach().requires_grad_()
            on_real, on_fake = self.discriminators[k](x), self.discriminators[k](f)
            if not self.relativistic:
                losses[k].append(mean(F.softplus(-on_real)) + mean(F.softplus(on_fake)))
                continue
            penalty = sum(
                mean(torch.autograd.grad(logits.sum(), at, create_graph=True)[0].square().sum(-1))
                for logits, at in ((on_real, x), (on_fake, f))
            )
            losses[k].append(mean(F.softplus(on_fake - on_real)) + gamma / 2 * penalty)
        return {k: torch.stack(each).mean() for k, each in losses.items()}

    def generator_losses(self, batch: Batch, fused: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Losses of each generator, by modality and by the names that `loss_weights` has.

        Args:
            batch: Where the real features are.
            fused: What `forward` made of the same batch.
        """
        real = self.real(batch)
        return {
            m: {name: getattr(self, f"{name}_loss")(m, batch, fused, real) for name in self.loss_weights(1.0)}
            for m in self.generators
        }

    def adversarial_loss(self, m: str, batch: Batch, fused: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """How badly f_m passes for the other modalities, the mean over their discriminators."""
        losses = []
        for k in self.generators:
            if k != m:
                f, x = having(fused[m][batch.mask], batch, m, k), having(real[k], batch, m, k)
                on_real = self.discriminators[k](x).detach() if self.relativistic else 0
                losses.append(mean(F.softplus(on_real - self.discriminators[k](f))))
        return torch.stack(losses).mean()

    def matching_loss(self, m: str, batch: Batch, fused: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """One less the cosine of f_m and the paired real features, the mean over the other modalities."""
        pairs = [
            (having(fused[m][batch.mask], batch, m, k), having(real[k], batch, m, k)) for k in self.generators if k != m
        ]
        return torch.stack([mean(1 - F.cosine_similarity(f, x, dim=-1)) for f, x in pairs]).mean()

    def reconstruction_loss(
        self, m: str, batch: Batch, fused: Mapping[str, Tensor], real: Mapping[str, Tensor]
    ) -> Tensor:
        """How far x_m is from what a linear map makes of f_m."""
        f, x = fused[m][batch.mask], batch.features[m][batch.mask]
        rebuilt, given = having(self.decoders[m](f), batch, m), having(x, batch, m)
        return mean(F.smooth_l1_loss(rebuilt, given, reduction="none"))


def having(x: Tensor, batch: Batch, *modalities: str) -> Tensor:
    """Those of the real utterances ``x [N, …]`` that have all these modalities."""
    if not batch.modality_mask:
        return x
    return x[torch.stack([batch.has(m)[batch.mask] for m in modalities]).all(0)]


def mean(x: Tensor) -> Tensor:
    """The mean of all elements over the batch, 0 of none; of several processes a part of it, see `parallel`."""
    return mean_of(x.sum(), x.numel())


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


class NodalAttention(nn.Module):
    """Attention of every utterance over its whole dialogue, as DialogueGCN's (arXiv 1908.11540, equations 10 to 12).

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
            RGCNConv(in_channels, in_channels, num_relations=2 * num_speakers**2) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(in_channels) for _ in range(layers))
        self.attention = NodalAttention(in_channels, causal) if attention else None
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Sequential(
            nn.Linear(in_channels * (1 + bool(layers) + attention), in_channels),
            nn.GELU(),
            nn.Dropout(dropout),
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
        nodes = self.dropout(x[mask])  # [N, d]
        views = [nodes]
        if self.convolutions:
            edge_index, edge_type = dialogue_edges(mask, speakers, *self.window, self.num_speakers)
            convolved = nodes
            for convolution, norm in zip(self.convolutions, self.norms, strict=True):
                convolved = convolved + self.dropout(F.gelu(norm(convolution(convolved, edge_index, edge_type))))
            views.append(convolved)
        if self.attention is not None:
            views.append(self.attention(padded(views[-1], mask), mask)[mask])
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
        self.speaker_encoders = nn.ModuleDict(
            {
                m: SpeakerEncoder(fusion.fused_channels, speaker_layers, dropout, causal)
                for m in fusion.generators
                if speaker_layers
            }
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits; see the class."""
        if not self.edges:
            return padded(self.classify(batch.isolated()).squeeze(1), batch.mask)
        return self.classify(batch)

    def last_layer(self, batch: Batch) -> Tensor:
        """What the classifier's last linear map reads of the real utterances, ``[N, fused_channels]``."""
        batch = batch if self.edges else batch.isolated()
        return self.classifier.last_layer(self.nodes(batch), batch.mask, batch.speakers)

    def classify(self, batch: Batch) -> Tensor:
        """Logits of the dialogues as they are given."""
        return self.classifier(self.nodes(batch), batch.mask, batch.speakers)

    def nodes(self, batch: Batch) -> Tensor:
        """All modalities of each utterance as one, ``[B, T, fused_channels]``."""
        fused = self.fusion(batch)
        nodes = {
            m: graph(fused[m], batch.has(m), batch.speakers) for m, graph in self.speaker_encoders.items()
        } or fused
        has = {m: batch.has(m).unsqueeze(-1) for m in nodes}
        total = sum(x.masked_fill(~has[m], 0) for m, x in nodes.items())
        scale = len(nodes) / sum(has.values()).clamp(min=1)  # 1 where nothing is missing
        return total * scale


LABEL_SMOOTHING = 0.1


def emotion_loss(logits: Tensor, labels: Tensor, weight: Tensor | None = None, focal: float = 0.0) -> Tensor:
    """Cross entropy of ``logits [N, C]``, weighted by class and by how wrong the utterance still is.

    The second weight is ``(1 - p)**focal`` of the label's probability p (focal loss, arXiv 1708.02002, equation 4).
    """
    if not len(labels):
        return mean_of(0 * logits.sum(), 0)  # a batch of dialogues without a label
    each = F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=LABEL_SMOOTHING)
    if focal:
        each = each * (1 - logits.softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)) ** focal
    return mean_of(each.sum(), len(labels) if weight is None else weight[labels].sum())
