"""Figures and tables for people: bytes with a unit, texts cut to a width, aligned columns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def human(size: float) -> str:
    """Bytes with a decimal unit, as disks and hosts count: `900 B`, `13.5 GB`."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:  # what rounds to 1000 goes to the next unit
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def counted(number: int, what: str) -> str:
    """How many of what: `1 file`, `2,000 files`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


ROUNDING = 1e-9
"""A metric or a loss smaller than this is what sums of ones in floating point leave of 0."""


def measured(value: float, digits: int = 4) -> str:
    """A measured number as a person writes it: `0.6223`, `3e-5`, `12,346`; `0` for what is 0 but for rounding."""
    if math.isfinite(value) and abs(value) < ROUNDING:
        return "0"
    if 10**digits <= abs(value) < 1e7:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


NO_SCORE = 5e-5
"""A score below this is 0.00 % as papers print it: what the smoothing of BLEU leaves where no n-gram was right."""
NOT_SCORES = re.compile(r"loss|distance|moved|perplexity|nll|(?:^|_)lr(?:_|$)", re.IGNORECASE)
"""Names of what may be that small and real."""


def displayed(name: str, value: float) -> float:
    """A metric as it is shown: 0.0 for a score that is 0 in the digits that a person reads; a loss stays as it is."""
    least = ROUNDING if NOT_SCORES.search(name) else NO_SCORE
    return 0.0 if abs(value) < least else value


def shorten(text: str, width: int) -> str:
    """The first `width` characters, cut with an ellipsis."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


LEAST = 12
"""Characters of a last column below which it is left out rather than cut."""


def fitted(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Aligned columns in `width` characters (None: as they are): the last columns are cut, then left out."""
    rows = [list(row) for row in rows]
    while width is not None and rows and len(rows[0]) > 1:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        room = width - sum(widths[:-1]) - 2 * (len(widths) - 1)
        if widths[-1] <= room or room >= LEAST:
            rows = [[*row[:-1], shorten(row[-1], max(room, 1))] for row in rows]
            break
        rows = [row[:-1] for row in rows]
    lines = columns(rows)
    return lines if width is None else [shorten(line, width) for line in lines]
