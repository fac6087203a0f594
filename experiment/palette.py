"""Colours and markers of classes and modalities, the same in pictures and pages.

Near Okabe and Ito's palette, moved until every pair is at least 19 apart in CIELAB to a reader with deuteranopia or
protanopia (Machado et al. 2009). Where there are more classes, colours come again with other markers.
"""

from __future__ import annotations

import re

from experiment.settings import MODALITIES

COLOURS = ("#e69f00", "#207cbe", "#7a7f8a", "#c8102e", "#f5a1c5", "#1e9e6e", "#53b3e7", "#5b2a86")
MARKERS = ("circle", "square", "triangle", "diamond", "plus", "cross", "pentagon", "bar", "down")


def colour(i: int) -> str:
    """The colour of class i."""
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    """The marker of class i; no two classes below 72 share both colour and marker."""
    return MARKERS[i % len(MARKERS)]


def number(name: str, place: int) -> int:
    """By which number a curve is coloured: a modality's own, whatever others a run has; else its place among them."""
    return MODALITIES.index(name) if name in MODALITIES else place


def plain(text: object, most: int = 40) -> str:
    """A name on one short line, without characters that control or turn the writing."""
    shown = re.sub(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+", " ", str(text)).strip()
    return shown if len(shown) <= most else shown[: most - 1] + "…"
