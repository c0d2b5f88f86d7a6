"""HTML documents from templates, with charts as inline SVG; a page loads nothing from elsewhere, and runs one script.

The style sheet and the script are inlined, and allowed by their hashes: nothing that a caption says can be either.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lavis_ext.common.files import disk_errors, write_atomic
from lavis_ext.common.secrets import redact
from lavis_ext.common.wording import measured

if TYPE_CHECKING:
    from jinja2 import Environment

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 36
MAX_POINTS = 400
COLOURS = 6
SHAPES = ("", "m-3.5,-3.5h7v7h-7z", "m0,-4.5l4.7,8h-9.4z", "m0,-5l5,5l-5,5l-5,-5z", "m-4,-4l8,8m0,-8l-8,8")
"""Circle, square, triangle, diamond, cross, drawn from the middle of a point."""
BINS = 24
TAIL = 0.995
"""Values beyond this share of all are counted in the last bin: one caption of 900 words must not flatten the rest."""
Point = tuple[float, float]


@cache
def environment() -> Environment:
    """The Jinja2 templates of this folder; all values are redacted and escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("lavis_ext.browse"),
        autoescape=True,
        finalize=lambda value: redact(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"px": lambda value: f"{value:.1f}", "shown": shown, "percent": lambda share: f"{share:.1%}"}
    found.filters |= {"figure": figure, "code": with_code, "look": LineStyle.of}
    found.globals |= {"WIDTH": WIDTH, "HEIGHT": HEIGHT, "LEFT": LEFT, "EDGE": WIDTH - RIGHT, "BASE": HEIGHT - BOTTOM}
    found.globals |= {"spots": spots, "served": False, "live": "", "back": False, "policy": policy}
    found.globals |= {name.partition(".")[0]: inlined(name) for name in ("style.css", "script.js")}
    return found


def with_code(text: str) -> Any:
    """A sentence as HTML, redacted and escaped; what stands `so` is set as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(redact(text)))))  # noqa: S704  escaped above


@cache
def inlined(name: str) -> str:
    """The style sheet or the script, as it stands between its tags."""
    text = (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
    if name.endswith(".css"):  # the width of a bar behind a figure, in steps of 5 %: pages have no `style` attributes
        text += "".join(f".h{share} {{ --h: {share}%; }}\n" for share in range(0, 101, 5))
    return f"\n{text}"


@cache
def policy(served: bool = False) -> str:
    """The Content-Security-Policy of a page: our style sheet and script by their hashes, pictures out of the page.

    A served page also loads pictures from, asks, and sends its form to where it came from.
    """
    style, script = (
        base64.b64encode(hashlib.sha256(inlined(name).encode()).digest()).decode()
        for name in ("style.css", "script.js")
    )
    own = "'self'" if served else "'none'"
    parts = [
        "default-src 'none'",
        f"img-src data:{' ' + own if served else ''}",
        f"style-src 'sha256-{style}'",
        f"script-src 'sha256-{script}'",
        f"connect-src {own}",
        f"form-action {own}",
        "base-uri 'none'",
    ]
    return "; ".join(parts)


def rendered(template: str, **values: Any) -> bytes:
    """A page. A lone surrogate, which UTF-8 cannot encode, becomes `?`."""
    return environment().get_template(template).render(values).encode("utf-8", "replace")


def write_document(path: Path, template: str, **values: Any) -> None:
    """Write a page atomically; raises DiskError."""
    page = rendered(template, **values)
    with disk_errors(path, "name another file with --out"):
        write_atomic(path, page)


class Link(str):
    """An address of a served page: the query of any other is taken for a secret, and left out."""


class Tile(NamedTuple):
    """One number with its name, and what it is of."""

    name: str
    value: str
    hint: str = ""


@dataclass(frozen=True)
class Series:
    """A named line of (x, y) points in the order of x, with the number of its look and its run, where it has one."""

    name: str
    points: Sequence[Point]
    run: int = -1


class LineStyle(NamedTuple):
    """How a line is told from others: by its colour, beyond six by its dashes and the shape of its points, too."""

    colour: int
    dash: int
    shape: int

    @classmethod
    def of(cls, number: int) -> LineStyle:
        """Of the first 120 numbers no two are alike: 4 dashes and 5 shapes meet again after 20 rounds."""
        turn, colour = divmod(number, COLOURS)
        return cls(colour, turn % 4, turn % len(SHAPES))

    @property
    def classes(self) -> str:
        """Its names in the style sheet."""
        return f"s{self.colour} d{self.dash}" if self.dash else f"s{self.colour}"

    def points(self, places: Sequence[Point]) -> str:
        """The path of its shape at some pixels; "" for the first, whose points are circles."""
        return " ".join(f"M{x:.1f},{y:.1f}{SHAPES[self.shape]}" for x, y in places) if SHAPES[self.shape] else ""


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


def scale(
    values: Sequence[float], start: float, stop: float, wanted: int = 5, whole: bool = False, least: float = 0.0
) -> Scale:
    """A scale that holds all values and begins and ends at its first and last tick; `whole` keeps ticks integers.

    It spans `least` at least, which of small values begins at 0.
    """
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # also what differs by rounding alone
        pad = 0.5 if whole else abs(low) * 0.1 or least / 2 or 1.0
        low, high = low - pad, high + pad
    if high - low <= least:
        low = (low + high - least) / 2
        low = 0.0 if low < 0 <= min(values) else low
        high = low + least
    step = round_step(high - low, wanted)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    if whole:  # steps fill the width; the round ticks inside are enough
        return Scale(low, high, start, stop, tuple(t for t in ticks if low <= t <= high))
    return Scale(ticks[0], ticks[-1], start, stop, ticks)


def shown(value: float) -> str:
    """A number as short as it can be read: `0.25`, `12.5k`, `3e-5`."""
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"


def figure(value: float) -> str:
    """A result as a person writes it, to three digits: `0.873`, `63.3`, `1,234`."""
    if not 1e-3 <= abs(value) < 1e7:
        return measured(value, 3)
    decimals = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{decimals}f}" if decimals < 3 else f"{value:.3f}"


def figures(values: Sequence[float | None]) -> list[str]:
    """A column of results with as many decimals each as the largest needs; `–` for what is none."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v)]
    top = max(known, default=0.0)
    decimals = 3 if top < 10 else 2 if top < 1000 else 0
    if top and top < 1e-2:
        return ["–" if v is None else measured(v, 3) for v in values]
    return ["–" if v is None else f"{v:,.{decimals}f}" for v in values]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about `MAX_POINTS` finite points, evenly chosen; the last one is always there."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    every = -(-len(finite) // MAX_POINTS) or 1
    return finite[::-1][::every][::-1]


def line_chart(title: str, series: Sequence[Series], x_name: str = "step", least: float = 0.0) -> str:
    """A `<figure>` with a legend if there are several lines; "" if no series has a finite point.

    Its values are drawn on a scale that spans `least` at least.
    """
    drawn = [replace(s, points=kept) for s in series if (kept := thinned(s.points))]
    if not drawn:
        return ""
    points = [point for s in drawn for point in s.points]
    x = scale([p[0] for p in points], LEFT, WIDTH - RIGHT, 6, whole=True)
    y = scale([p[1] for p in points], HEIGHT - BOTTOM, TOP, least=least)
    return _draw("line_chart", title, drawn, x, y, x_name)


def spots(points: Sequence[Point], x: Scale, y: Scale) -> list[Point]:
    """The pixels at which a line has its shape: of many points about ten, and always the last."""
    every = 1 if len(points) <= 40 else len(points) // 10
    return [(x(a), y(b)) for a, b in points[::-1][::every]]


def histogram(title: str, values: Mapping[str, Sequence[float]], x_name: str, whole: bool = False) -> str:
    """A `<figure>` of the share of each bin, one colour a series; `whole` values are counts.

    "" where the finite values are not at least two different ones.
    """
    finite = {name: kept for name, some in values.items() if (kept := [v for v in some if math.isfinite(v)])}
    every = [v for some in finite.values() for v in some]
    if len(set(every)) < 2:
        return ""
    edges = bin_edges(every, whole)
    shares = {name: bin_shares(some, edges) for name, some in finite.items()}
    step = round_step(edges[-1] - edges[0], 6)
    inside = range(math.ceil(edges[0] / step - 1e-9), math.floor(edges[-1] / step + 1e-9) + 1)
    ticks = scale([edges[0], edges[-1]], 0, 1, 6, whole=True).ticks if whole else tuple(i * step for i in inside)
    x = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT, ticks)
    y = scale([0.0, 100 * max(max(some) for some in shares.values())], HEIGHT - BOTTOM, TOP)
    cell = x(edges[1]) - x(edges[0])
    gap = min(cell * 0.14, 3.0)
    series = [
        {
            "name": name,
            "median": sorted(some)[len(some) // 2],
            "bins": list(zip(edges, edges[1:], shares[name], strict=False)),
        }
        for name, some in finite.items()
    ]
    return _draw("histogram", title, series, x, y, x_name, gap, (cell - gap) / len(series))


def bin_edges(values: Sequence[float], whole: bool) -> list[float]:
    """Round edges of at most about `BINS` bins that hold the values up to the tail; `whole` bins hold whole numbers."""
    ranked = sorted(values)
    low, high = ranked[0], ranked[min(int(len(ranked) * TAIL), len(ranked) - 1)]
    if whole:
        step = max(math.ceil((high - low + 1) / BINS), 1)
        first = math.floor(low)
        return [first - 0.5 + i * step for i in range(math.ceil((high - first + 1) / step) + 1)]
    width = round_step(high - low, BINS) if high > low else abs(low) / 10 or 1.0
    first, last = math.floor(low / width), math.floor(high / width + 1e-9) + 1
    return [i * width for i in range(first, last + 1)]


def bin_shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """The share of the values in each bin; those outside count in the first and the last."""
    counts, width = [0] * (len(edges) - 1), edges[1] - edges[0]
    for value in values:
        counts[min(max(int((value - edges[0]) / width + 1e-9), 0), len(counts) - 1)] += 1
    return [count / len(values) for count in counts]


def ranked_list(title: str, counts: Mapping[str, int], total: int, note: str = "") -> str:
    """A `<figure>` of words with a bar each, the most frequent first, and their share of `total`; "" without any."""
    return _draw("ranked_list", title, counts, total, note) if counts and total else ""


def _draw(macro: str, *arguments: Any) -> str:
    drawn: str = getattr(environment().get_template("charts.html").module, macro)(*arguments)
    return drawn
