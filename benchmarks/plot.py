"""How time and memory grow with a data set, as an SVG that is light or dark as the reader's screen is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.harness import Runs, short

WIDTH, HEIGHT, LEFT, TOP, GAP = 340, 260, 48, 34, 140
STYLE = """
text { font: 12px sans-serif; fill: #24292f } .axis { stroke: #8c959f; fill: none } .grid { stroke: #d0d7de }
.s0 { stroke: #0969da; fill: #0969da } .s1 { stroke: #bc4c00; fill: #bc4c00 } .s2 { stroke: #1a7f37; fill: #1a7f37 }
.s3 { stroke: #8250df; fill: #8250df } .s4 { stroke: #6e7781; fill: #6e7781 }
polyline.line { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .grid { stroke: #30363d }
.s0 { stroke: #58a6ff; fill: #58a6ff } .s1 { stroke: #f0883e; fill: #f0883e } .s2 { stroke: #3fb950; fill: #3fb950 }
.s3 { stroke: #bc8cff; fill: #bc8cff } .s4 { stroke: #8b949e; fill: #8b949e } }
"""
Series = Mapping[str, Sequence[tuple[float, float]]]


def growth(runs: Runs, figure: str, whole: int) -> dict[str, list[tuple[float, float]]]:
    """(pictures, figure) of each command of ours, smallest first; those measured at one size are left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, rounds in runs.items():
        what, _, size = name.removeprefix("ours, ").partition(" of ")
        if name.startswith("ours, "):
            pictures = int(size.replace(",", "")) if size else whole
            found.setdefault(what, []).append((pictures, sorted(run[figure] for run in rounds)[len(rounds) // 2]))
    return {what: sorted(points) for what, points in found.items() if len(points) > 1}


def drawing(panels: Mapping[str, Series], says: str) -> str:
    """The SVG: one panel for each figure, both axes logarithmic, one line a command."""
    width, height = len(panels) * (LEFT + WIDTH + GAP), TOP + HEIGHT + 52
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">']
    lines += [f"<title>{says}</title>", f"<style>{STYLE}</style>"]
    for number, (title, series) in enumerate(panels.items()):
        lines.append(f'<g transform="translate({LEFT + number * (LEFT + WIDTH + GAP)},{TOP})">')
        lines += [*panel(title, series), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def panel(title: str, series: Series) -> list[str]:
    """One pair of axes with its lines; names stand at the last points, moved apart where they would meet."""
    points = [point for line in series.values() for point in line]
    x = scale([px for px, _ in points], 0, WIDTH)
    y = scale([py for _, py in points], HEIGHT, 0)
    lines = [f'<text x="0" y="-14">{title}</text>', f'<path class="axis" d="M0 0V{HEIGHT}H{WIDTH}"/>']
    for value in sorted({px for px, _ in points}):
        lines.append(f'<text x="{x(value):.0f}" y="{HEIGHT + 18}" text-anchor="middle">{value:,.0f}</text>')
    lines.append(f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT + 38}" text-anchor="middle">pictures</text>')
    low, high = (bound([py for _, py in points]) for bound in (min, max))
    round_ones = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
    for value in [one for one in round_ones if low / 1.3 <= one <= high * 1.3]:
        lines.append(f'<path class="grid" d="M0 {y(value):.1f}H{WIDTH}"/>')
        lines.append(f'<text x="-6" y="{y(value) + 4:.1f}" text-anchor="end">{short(value)}</text>')
    below = -math.inf
    order = sorted(enumerate(series.items()), key=lambda one: y(one[1][1][-1][1]))
    for number, (name, line) in order:
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line)
        lines.append(f'<polyline class="s{number % 5} line" points="{path}"/>')
        dots = (f'<circle class="s{number % 5}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="3"/>' for px, py in line)
        below = max(y(line[-1][1]) + 4, below + 14)
        lines += [*dots, f'<text x="{WIDTH + 8}" y="{below:.1f}">{name} {short(line[-1][1])}</text>']
    return lines


class scale:  # noqa: N801 - a function with two numbers of its own
    """Values onto pixels, logarithmically, with a little room."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self.low, self.high = math.log10(min(values)) - 0.15, math.log10(max(values)) + 0.15
        self.first, self.last = first, last

    def __call__(self, value: float) -> float:
        return self.first + (math.log10(value) - self.low) / (self.high - self.low) * (self.last - self.first)
