"""Train GAN-FFN with another stage 1.

    python benchmarks/design.py "no game" --features IEMOCAP_features/IEMOCAP_features.pkl
    python benchmarks/design.py "one feed-forward layer" --demo --epochs 5

A design is the whole method with one part of stage 1 changed: by flags of ``train_IEMOCAP.py``, or where there is none,
in the networks. What follows its name are that script's flags. ``designs.py`` compares all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

import common  # first: it makes the project's modules found
from torch import nn

import model
from experiment import fused, fusion_quality
from experiment.flags import Parser
from model import AdversarialFusion, FeedForward, FusedFeatureGenerator

NONE = "none"


class Shallow(FusedFeatureGenerator):
    """G_m with one feed-forward layer."""

    def build(self, hidden: int) -> None:
        """Make the layers of `encode`."""
        self.layers = nn.Sequential(FeedForward(hidden))


class NeverAtRest(FusedFeatureGenerator):
    """G_m whose shared channels go on learning in stage 2."""

    def rest(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Design:
    """One way to make stage 1.

    Attributes:
        flags: Of ``train_IEMOCAP.py``.
        generator: In the place of the feed-forward kind.
        weights: Of the generators' losses, in the place of those that `AdversarialFusion` has.
        shared_channels: How many channels discriminators see.
        at_rest: Whether those are made once for stage 2, which is told them.
    """

    flags: str = ""
    generator: type[FusedFeatureGenerator] | partial = FusedFeatureGenerator
    weights: Mapping[str, float] = field(default_factory=dict)
    shared_channels: int = model.SHARED_CHANNELS
    at_rest: bool = True

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """The networks are so made within."""
        made = partial(self.generator, shared_channels=self.shared_channels)
        script = common.train_IEMOCAP
        known = script.with_shared if self.at_rest else lambda fusion, dialogues: dialogues
        with (
            mock.patch.dict(AdversarialFusion.WEIGHTS, self.weights),
            mock.patch.dict(model.GENERATORS, {"feed-forward": made}),
            mock.patch.object(model, "SHARED_CHANNELS", self.shared_channels),
            mock.patch.object(fusion_quality, "SHARED_CHANNELS", self.shared_channels),
            mock.patch.object(fused, "SHARED_CHANNELS", self.shared_channels),
            mock.patch.object(script, "with_shared", known),
        ):
            yield


DESIGNS = {
    "as it is": Design(),
    NONE: Design("--GAN-epochs 0"),
    "no game": Design(weights={"adversarial": 0.0}),
    "game of weight 30": Design(weights={"adversarial": 30.0}),
    "no InfoNCE": Design(weights={"contrastive": 0.0}),
    "the reference's loss": Design("--GAN-loss reference"),
    "linear": Design("--generator linear"),
    "transformer": Design("--generator transformer"),
    "32 shared channels": Design(shared_channels=32),
    "shared channels go on learning": Design(generator=NeverAtRest, at_rest=False),
    "128 wide": Design(generator=partial(FusedFeatureGenerator, hidden=128)),
    "one feed-forward layer": Design(generator=Shallow),
    "20 epochs": Design("--GAN-epochs 20"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status of ``train_IEMOCAP.py``."""
    parser = Parser(description="Train GAN-FFN with another stage 1.")
    parser.add_argument("design", choices=DESIGNS)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of train_IEMOCAP.py")
    own = parser.parse_args(argv)
    design = DESIGNS[own.design]
    with design():
        return common.train_IEMOCAP.main([*own.flags, *([] if "--resume" in own.flags else design.flags.split())])


if __name__ == "__main__":
    sys.exit(main())
