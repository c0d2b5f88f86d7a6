"""Line charts as inline SVG: axes with round ticks, a grid, points that tell their values when pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 36
MAX_POINTS = 400
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A named line of (x, y) points in the order of x."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels linearly; `ticks` are round values inside."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def round_step(span: float, wanted: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that cuts `span` into about `wanted` parts."""
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return float(next(step * power for step in (1, 2, 5, 10) if raw <= step * power * 1.0001))


def scale(values: Sequence[float], start: float, stop: float, wanted: int = 5, whole: bool = False) -> Scale:
    """A scale that holds all values and begins and ends at its first and last tick; `whole` keeps ticks integers."""
    low, high = min(values), max(values)
    if low == high:
        pad = 0.5 if whole else abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = round_step(high - low, wanted)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    if whole:  # steps fill the width; the round ticks inside are enough
        return Scale(low, high, start, stop, tuple(t for t in ticks if low <= t <= high))
    return Scale(ticks[0], ticks[-1], start, stop, ticks)


def shown(value: float) -> str:
    """A number as short as it can be read: `0.25`, `1.2k`, `3e-05`."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about `MAX_POINTS` finite points, evenly chosen; the last one is always there."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    every = -(-len(finite) // MAX_POINTS) or 1
    return finite[::-1][::every][::-1]


def line_chart(title: str, series: Sequence[Series], x_name: str = "step") -> str:
    """A `<figure>` with a legend if there are several lines; "" if no series has a finite point."""
    drawn = [Series(s.name, kept) for s in series if (kept := thinned(s.points))]
    if not drawn:
        return ""
    points = [point for s in drawn for point in s.points]
    x = scale([p[0] for p in points], LEFT, WIDTH - RIGHT, 6, whole=True)
    y = scale([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    parts = [grid(x, y, x_name), *(_line(s, i, x, y) for i, s in enumerate(drawn))]
    label = f"{title}: {', '.join(s.name for s in drawn)}"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{escape(title)}{_legend(drawn)}</figcaption>{svg}</figure>'


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        last = series[0].points[-1][1]
        return f'<span class="last">{shown(last)}</span>'
    items = (f'<span class="key s{i % 6}">{escape(s.name)}</span>' for i, s in enumerate(series))
    return f'<span class="legend">{"".join(items)}</span>'


def grid(x: Scale, y: Scale, x_name: str, unit: str = "") -> str:
    """Lines at the ticks of `y` (in `unit`), marks at those of `x`, their figures, and the name of the axis."""
    rows = (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y(t) + 3.5:.1f}" text-anchor="end">{shown(t)}{unit}</text>'
        for t in y.ticks
    )
    columns = (
        f'<line class="mark" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        f'<text class="tick" x="{x(t):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{shown(t)}</text>'
        for t in x.ticks
    )
    base = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
    name = f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_name)}</text>'
    return "".join((*rows, *columns, base, name))


def _line(series: Series, index: int, x: Scale, y: Scale) -> str:
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in series.points)
    name = escape(series.name)
    radius = 3 if len(series.points) <= 40 else 2
    dots = "".join(
        f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="{radius}"><title>{name} · step {a:g}: {b:.6g}</title></circle>'
        for a, b in series.points
    )
    few = " few" if len(series.points) <= 40 else ""
    return f'<g class="s{index % 6}{few}"><polyline points="{path}"/>{dots}</g>'
