"""Small figures as inline SVG: colours come from the page's style, numbers are rounded, names are escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from experiment.palette import MARKERS, colour, marker, number, plain

SHAPES = {
    "circle": '<circle r="3"/>',
    "square": '<rect x="-2.7" y="-2.7" width="5.4" height="5.4"/>',
    "triangle": '<path d="M0-3.6 3.3 2.6H-3.3Z"/>',
    "diamond": '<path d="M0-4 4 0 0 4-4 0Z"/>',
    "plus": '<path d="M-1-3.6H1V-1H3.6V1H1V3.6H-1V1H-3.6V-1H-1Z"/>',
    "cross": '<path d="M-3.3-2-2-3.3 0-1.3 2-3.3 3.3-2 1.3 0 3.3 2 2 3.3 0 1.3-2 3.3-3.3 2-1.3 0Z"/>',
    "pentagon": '<path d="M0-3.6 3.5-1.1 2.2 3H-2.2L-3.5-1.1Z"/>',
    "bar": '<rect x="-3.6" y="-1.4" width="7.2" height="2.8"/>',
    "down": '<path d="M0 3.6 3.3-2.6H-3.3Z"/>',
}
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 10, 40


def symbols() -> Markup:
    """The markers, once a page, for `<use>`."""
    each = "".join(f'<g id="m-{m}">{SHAPES[m]}</g>' for m in MARKERS)
    return Markup(f'<svg width="0" height="0" aria-hidden="true" class="away"><defs>{each}</defs></svg>')


def swatch(i: int) -> Markup:
    """The colour and marker of a class; its name stands beside it."""
    shape = f'<use href="#m-{marker(i)}" fill="{colour(i)}"/>'
    return Markup(f'<svg class="swatch" viewBox="-5 -5 10 10" aria-hidden="true">{shape}</svg>')


def _number(x: float) -> str:
    return f"{x:.1f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from low to high."""
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if span / s <= most)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Axes:
    """A frame with two axes.

    Args:
        x: Lowest and highest value across.
        y: Lowest and highest value upwards.
        labels: What is across and what is upwards.
        size: Width and height.
        whole: Whether only whole numbers are marked across.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        labels: tuple[str, str],
        size: tuple[int, int] = (440, 260),
        *,
        whole: bool = False,
    ):
        self.x, self.y, self.size = x, y, size
        self.parts: list[str] = []
        width, height = size
        for value in ticks(*y):
            at = _number(self.up(value))
            self.parts.append(f'<path class="grid" d="M{LEFT} {at}H{width - RIGHT}"/>')
            self.parts.append(f'<text x="{LEFT - 6}" y="{at}" dy=".35em" text-anchor="end">{value:g}</text>')
        for value in ticks(*x, whole=whole):
            at = _number(self.across(value))
            self.parts.append(f'<text x="{at}" y="{height - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
        self.parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{height - BOTTOM}H{width - RIGHT}"/>')
        middle = (LEFT + width - RIGHT) / 2
        self.parts.append(f'<text x="{middle:g}" y="{height - 6}" text-anchor="middle">{escape(labels[0])}</text>')
        upright = (TOP + height - BOTTOM) / 2
        self.parts.append(
            f'<text transform="translate(12 {upright:g}) rotate(-90)" text-anchor="middle">{escape(labels[1])}</text>'
        )

    def across(self, value: float) -> float:
        """Where a value is, from the left."""
        low, high = self.x
        return LEFT + (value - low) / ((high - low) or 1) * (self.size[0] - LEFT - RIGHT)

    def up(self, value: float) -> float:
        """Where a value is, from the top."""
        low, high = self.y
        return self.size[1] - BOTTOM - (value - low) / ((high - low) or 1) * (self.size[1] - TOP - BOTTOM)

    def svg(self, title: str) -> Markup:
        """The figure, with what it shows in words."""
        width, height = self.size
        return Markup(
            f'<svg class="figure" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
            + "".join(self.parts)
            + "</svg>"
        )


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    labels: tuple[str, str],
    title: str,
    *,
    level: tuple[float, str] | None = None,
    upright: tuple[float, str] | None = None,
) -> Markup:
    """Lines by epoch, each with a marker and a legend below.

    Args:
        series: Name to points; those that are not finite are left out.
        labels: Of the axes.
        title: What the figure shows.
        level: A value to mark with a dotted line, and what it is.
        upright: An epoch to mark, and what it is.
    """
    drawn = {n: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for n, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return Markup("")
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points] + ([level[0]] if level else [])
    low, high = min(ys), max(ys)
    pad = 0.06 * (high - low) or 0.5
    axes = Axes((min(xs), max(max(xs), min(xs) + 1)), (low - pad, high + pad), labels, whole=True)
    if level:
        axes.parts.append(f'<path class="level" d="M{LEFT} {axes.up(level[0]):.1f}H{axes.size[0] - RIGHT}"/>')
    if upright:
        axes.parts.append(f'<path class="level" d="M{axes.across(upright[0]):.1f} {TOP}V{axes.size[1] - BOTTOM}"/>')
    legend = []
    for place, (name, points) in enumerate(drawn.items()):
        i = number(name, place)
        path = "L".join(f"{_number(axes.across(x))} {_number(axes.up(y))}" for x, y in points)
        axes.parts.append(f'<path class="curve" stroke="{colour(i)}" d="M{path}"/>')
        for x, y in points[:: max(1, len(points) // 12)]:
            axes.parts.append(_point(i, axes.across(x), axes.up(y)))
        legend.append(f"<li>{swatch(i)} {escape(name)}</li>")
    legend += [f'<li><span class="dots"></span> {escape(mark[1])}</li>' for mark in (level, upright) if mark]
    return axes.svg(title) + Markup(f'<ul class="legend">{"".join(legend)}</ul>')


def _point(i: int, x: float, y: float, shape: str | None = None) -> str:
    return f'<use href="#m-{shape or marker(i)}" x="{_number(x)}" y="{_number(y)}" fill="{colour(i)}"/>'


def scatter(points: Sequence[Sequence[float]], group: Sequence[int], names: Sequence[str], title: str) -> Markup:
    """A map: points from 0 to 1, coloured and marked by group, and a legend below."""
    size, each = 400, {}
    for (x, y), g in zip(points, group, strict=True):
        at = f'<use href="#m-{marker(g)}" x="{8 + 384 * x:.0f}" y="{8 + 384 * (1 - y):.0f}"/>'
        each.setdefault(int(g), []).append(at)
    parts = [f'<g fill="{colour(g)}">{"".join(uses)}</g>' for g, uses in sorted(each.items())]
    legend = "".join(f"<li>{swatch(g)} {escape(plain(names[g]))}</li>" for g in sorted(each)[:40])
    return Markup(
        f'<svg class="figure map" viewBox="0 0 {size} {size}" role="img" aria-label="{escape(title)}">{"".join(parts)}'
        f'</svg><ul class="legend">{legend}</ul>'
    )


def reliability(bins: Mapping[str, np.ndarray]) -> Markup:
    """How often the answer is right by how sure it is, by bin; the diagonal is what should be.

    Args:
        bins: Of `calibration.reliability`.
    """
    axes = Axes((0, 100), (0, 100), ("confidence (%)", "right (%)"), (360, 320))
    diagonal = f"M{axes.across(0):.0f} {axes.up(0):.0f}L{axes.across(100):.0f} {axes.up(100):.0f}"
    axes.parts.append(f'<path class="level" d="{diagonal}"/>')
    most = bins["utterances"].max()
    for confidence, right, count in zip(
        100 * bins["confidence"], 100 * bins["accuracy"], bins["utterances"], strict=True
    ):
        if not count:
            continue
        x, y, base = axes.across(confidence), axes.up(right), axes.up(confidence)
        axes.parts.append(f'<path class="gap" d="M{x:.1f} {base:.1f}V{y:.1f}"/>')
        radius = 3 + 7 * math.sqrt(count / most)
        said = f"confidence {confidence:.0f} %: right {right:.0f} %, {count} utterances"
        axes.parts.append(
            f'<circle class="bin" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{said}</title></circle>'
        )
    return axes.svg("Reliability: share of right answers by confidence; the dotted line is where they agree")


def dots(values: Mapping[str, float], mean: float, interval: Sequence[float] | None, label: str, title: str) -> Markup:
    """One dot a run, folds of a seed above each other, the mean, and its interval as a band."""
    every = [*values.values(), *(interval or [])]
    low, high = min(every), max(every)
    pad = 0.15 * (high - low) or 1.0
    places = list(dict.fromkeys(name.partition("/")[0] for name in values))
    axes = Axes((0, len(places) + 1), (low - pad, high + pad), ("", label), (440, 240), whole=True)
    axes.parts = [p for p in axes.parts if 'text-anchor="middle">' not in p or "rotate" in p]
    width = axes.size[0] - RIGHT - LEFT
    if interval:
        top, foot = axes.up(interval[1]), axes.up(interval[0])
        axes.parts.append(f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{width}" height="{foot - top:.1f}"/>')
    axes.parts.append(f'<path class="curve" stroke="currentColor" d="M{LEFT} {axes.up(mean):.1f}h{width}"/>')
    for name, value in values.items():
        x = axes.across(1 + places.index(name.partition("/")[0]))
        axes.parts.append(f"<g>{_point(1, x, axes.up(value))}<title>{escape(name)}: {value:.2f}</title></g>")
    names = [plain(place, 10) for place in places]
    if sum(map(len, names)) <= 60:  # or they would run into each other
        foot = axes.size[1] - BOTTOM + 16
        for i, name in enumerate(names, 1):
            axes.parts.append(f'<text x="{axes.across(i):.0f}" y="{foot}" text-anchor="middle">{escape(name)}</text>')
    return axes.svg(title)
