"""Bars: how often each value occurs, as inline SVG; and the most frequent words, as rows of a list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from lavis_ext.browse.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, grid, round_step, scale, shown

BINS = 24
TAIL = 0.995
"""Values beyond this share of all are counted in the last bin: one caption of 900 words must not flatten the rest."""


def histogram(title: str, values: Mapping[str, Sequence[float]], x_name: str, whole: bool = False) -> str:
    """A `<figure>` of the share of each bin, one colour a series; `whole` values are counts.

    "" where the finite values are not at least two different ones.
    """
    finite = {name: kept for name, some in values.items() if (kept := [v for v in some if math.isfinite(v)])}
    if len({v for some in finite.values() for v in some}) < 2:
        return ""
    edges = bin_edges([v for some in finite.values() for v in some], whole)
    shares = {name: bin_shares(some, edges) for name, some in finite.items()}
    ticks = tuple(t for t in scale([edges[0], edges[-1]], 0, 1, 6, whole=True).ticks)
    x = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT, ticks if whole else _plain_ticks(edges))
    y = scale([0.0, 100 * max(max(some) for some in shares.values())], HEIGHT - BOTTOM, TOP)
    drawn = "".join(_bars(i, name, shares, edges, x, y) for i, name in enumerate(shares))
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"'
    svg = f"<svg {frame}>{grid(x, y, x_name, '%')}{drawn}</svg>"
    return f'<figure class="chart"><figcaption>{escape(title)}{_legend(finite)}</figcaption>{svg}</figure>'


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
    if not counts or not total:
        return ""
    most = max(counts.values())
    rows = "".join(_ranked(name, count, count / most, count / total) for name, count in counts.items())
    aside = f'<span class="last">{escape(note)}</span>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{aside}</figcaption><ol class="ranks">{rows}</ol></figure>'
    )


def _ranked(name: str, count: int, width: float, share: float) -> str:
    bar = f'<span class="bar" style="width:{width:.1%}"></span>'
    return f'<li><span class="word">{escape(name)}</span>{bar}<span class="share">{share:.1%} · {count:,}</span></li>'


def _plain_ticks(edges: Sequence[float]) -> tuple[float, ...]:
    step = round_step(edges[-1] - edges[0], 6)
    first, last = math.ceil(edges[0] / step - 1e-9), math.floor(edges[-1] / step + 1e-9)
    return tuple(i * step for i in range(first, last + 1))


def _bars(index: int, name: str, shares: Mapping[str, list[float]], edges: Sequence[float], x: Scale, y: Scale) -> str:
    """The bars of one series beside those of the others in each bin."""
    cell = x(edges[1]) - x(edges[0])
    gap = min(cell * 0.14, 3.0)
    width = (cell - gap) / len(shares)
    found = []
    for left, right, share in zip(edges, edges[1:], shares[name], strict=False):
        if share:
            at, top = x(left) + gap / 2 + index * width, y(100 * share)
            told = f"{name} · {shown(left)} to {shown(right)}: {share:.1%}"
            found.append(
                f'<rect x="{at:.1f}" y="{top:.1f}" width="{max(width, 0.5):.1f}" height="{HEIGHT - BOTTOM - top:.1f}">'
                f"<title>{escape(told)}</title></rect>"
            )
    return f'<g class="s{index % 6}">{"".join(found)}</g>'


def _legend(values: Mapping[str, Sequence[float]]) -> str:
    medians = {name: sorted(some)[len(some) // 2] for name, some in values.items()}
    keys = (f'<span class="key s{i % 6}">{escape(n)} {shown(m)}</span>' for i, (n, m) in enumerate(medians.items()))
    return f'<span class="legend">median {"".join(keys)}</span>'
