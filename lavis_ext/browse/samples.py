"""The samples of a split with their pictures, and figures over its rows; both up to a maximum."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image

from lavis_ext.browse.html import histogram, ranked_list
from lavis_ext.browse.views import Item, SampleText, View, counted, first
from lavis_ext.common.wording import shorten
from lavis_ext.datasets.readers.decode import FORMATS, MAX_PIXELS
from lavis_ext.datasets.readers.faults import SampleError

EDGE_PIXELS = 360
QUALITY = 78
MAX_TRUTHS = 4
MAX_CHARACTERS = 400
MAX_ROWS = 50_000
MAX_SIZES = 300
TOP = 20
_UNSHOWN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Shot:
    """A sample on a page: pictures as data URIs, or why there is none (`lost`); a text, and lines below it."""

    name: str
    said: str
    under: list[str]
    label: str = ""
    sources: list[str] = field(default_factory=list)
    lost: str = ""


@dataclass(frozen=True)
class Grid:
    """Some samples, and why pictures among them could not be read."""

    shots: list[Shot]
    faults: Counter[str]

    def note(self, total: int, chosen: str) -> str:
        """`24 of 7,500 samples, evenly chosen; 2 without a picture: image is missing (2)`."""
        how = f", {chosen}" if len(self.shots) < total else ""
        why = ", ".join(f"{reason} ({count})" for reason, count in self.faults.most_common())
        lost = f"; {self.faults.total():,} without a picture: {why}" if self.faults else ""
        return f"{len(self.shots):,} of {total:,} samples{how}{lost}."


def sample_grid(view: View, wanted: int, seed: int | None) -> Grid:
    """Read some samples of a split, evenly chosen or drawn by a seed."""
    faults: Counter[str] = Counter()
    return Grid([_shot(view, item, faults) for item in view.items(wanted, seed)], faults)


def _shot(view: View, item: Item, faults: Counter[str]) -> Shot:
    text: SampleText = item.text
    said, *others = text.texts or ("",)
    under = [*text.more, *first(others, MAX_TRUTHS), *counted(text.answers)]
    under += [f"choices: {', '.join(text.choices)}"] if text.choices else []
    sources, lost = [], ""
    try:
        edge = getattr(view, "edge", EDGE_PIXELS)
        sources = [thumbnail(pixels, edge) for pixels in view.pictures(item)]
    except SampleError as error:
        faults[error.reason] += 1
        lost = shorten(error.why, 120)
    return Shot(item.name, printable(said), [printable(one) for one in under], printable(text.label), sources, lost)


def printable(text: str) -> str:
    """A text of a row, cut; lone surrogates and control characters are made visible."""
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", shorten(text, MAX_CHARACTERS))


def thumbnail(pixels: Any, edge: int = EDGE_PIXELS) -> str:
    """uint8 [H,W,3] → a small JPEG as a data URI, its longer edge at most `edge`."""
    image = Image.fromarray(pixels)
    image.thumbnail((edge, edge))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


@dataclass
class Survey:
    """What was counted in one split."""

    scope: str = ""
    total: int = 0
    rows: int = 0
    kind: str = "text"
    words: list[int] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    sized: int = 0
    """Pictures of which the header was asked for."""


def survey(view: View, max_rows: int = MAX_ROWS, max_sizes: int = MAX_SIZES) -> Survey:
    """Count the rows of a split, at most `max_rows` of them, and the sizes of at most `max_sizes` pictures."""
    found = Survey(view.scope, view.total)
    for text in view.survey(max_rows):
        found.rows += 1
        found.words += [len(one.split()) for one in text.texts]
        found.answers.update(text.answers)
        found.labels.update([text.label] if text.label else [])
        found.kind = text.kind if text.texts else found.kind
    items = view.items(max_sizes, None) if getattr(view, "pictured", True) else []
    found.sized = len(items)
    found.sizes = [size for item in items if (size := size_of(view, item))]
    return found


def size_of(view: View, item: Item) -> tuple[int, int] | None:
    """Width and height from a picture's header; None where there is none to read."""
    try:
        data = view.data(item)
    except SampleError:
        return None
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Exception:  # decoders of damaged data raise whatever their libraries do; the grid counts them
        return None
    return (width, height) if 0 < width * height <= MAX_PIXELS else None


def charts(surveys: Mapping[str, Survey]) -> list[str]:
    """Histograms of all splits together, the most frequent answers and labels; none of what was not counted."""
    kind = next((one.kind for one in surveys.values() if one.words), "text")
    words = {split: one.words for split, one in surveys.items()}
    longer = {split: [max(size) for size in one.sizes] for split, one in surveys.items()}
    shapes = {split: [round(w / h, 2) for w, h in one.sizes] for split, one in surveys.items()}
    drawn = [
        histogram(f"Words in a {kind}", words, "words", whole=True),
        _ranks("Answers given most", sum((one.answers for one in surveys.values()), Counter())),
        _ranks("Labels", sum((one.labels for one in surveys.values()), Counter())),
        histogram("Longer side of a picture", longer, "pixels"),
        histogram("Shape of a picture", shapes, "width / height"),
    ]
    return [chart for chart in drawn if chart]


def _ranks(title: str, counts: Counter[str]) -> str:
    note = f"{len(counts):,} different" if len(counts) > TOP else ""
    return ranked_list(title, dict(counts.most_common(TOP)), counts.total(), note)


def scope_note(surveys: Mapping[str, Survey]) -> str:
    """Over what the figures were taken, split by split; the size of pictures where all have the same."""
    scopes = [
        f"{split}: all {one.total:,} {one.scope}"
        if one.rows == one.total
        else f"{split}: {one.rows:,} of {one.total:,} {one.scope}, evenly chosen"
        for split, one in surveys.items()
    ]
    note = f"Counted in {'; '.join(scopes)}. "
    sizes = [size for one in surveys.values() for size in one.sizes]
    looked = sum(one.sized for one in surveys.values())
    if not looked:
        return note
    lost = f" {looked - len(sizes):,} more could not be read." if looked > len(sizes) else ""
    if len(set(sizes)) == 1:
        return f"{note}All of {len(sizes):,} pictures looked at are {sizes[0][0]} × {sizes[0][1]} pixels.{lost}"
    return f"{note}Sizes are those of {len(sizes):,} pictures.{lost}"
