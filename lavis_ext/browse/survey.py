"""Figures over a split: lengths of texts, answers, labels, sizes of pictures; bounded, and it says by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image

from lavis_ext.browse.bars import histogram, ranked_list
from lavis_ext.browse.told import Item
from lavis_ext.browse.views import View
from lavis_ext.readers.decode import FORMATS, MAX_PIXELS
from lavis_ext.readers.faults import SampleError

MAX_ROWS = 50_000
MAX_SIZES = 300
TOP = 20


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
    for told in view.survey(max_rows):
        found.rows += 1
        found.words += [len(text.split()) for text in told.texts]
        found.answers.update(told.answers)
        found.labels.update([told.label] if told.label else [])
        found.kind = told.kind if told.texts else found.kind
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


def charts(surveys: Mapping[str, Survey]) -> str:
    """Histograms of all splits together, the most frequent answers and labels; "" where nothing was counted."""
    kind = next((one.kind for one in surveys.values() if one.words), "text")
    sizes = {split: one.sizes for split, one in surveys.items()}
    drawn = [
        histogram(f"Words in a {kind}", {s: one.words for s, one in surveys.items()}, "words", whole=True),
        ranks("Answers given most", {split: one.answers for split, one in surveys.items()}),
        ranks("Labels", {split: one.labels for split, one in surveys.items()}),
        histogram("Longer side of a picture", {s: [max(two) for two in some] for s, some in sizes.items()}, "pixels"),
        histogram(
            "Shape of a picture", {s: [round(w / h, 2) for w, h in some] for s, some in sizes.items()}, "width / height"
        ),
    ]
    shown = "".join(drawn)
    return f'<div class="charts">{shown}</div>' if shown else ""


def ranks(title: str, counts: Mapping[str, Counter[str]]) -> str:
    """The most frequent words of all splits together; "" where there is none."""
    total: Counter[str] = sum(counts.values(), Counter())
    note = f"{len(total):,} different" if len(total) > TOP else ""
    return ranked_list(title, dict(total.most_common(TOP)), total.total(), note)


def scope_note(surveys: Mapping[str, Survey]) -> str:
    """Over what the figures were taken, split by split."""
    told = [f"{split}: {_share(one.rows, one.total, one.scope)}" for split, one in surveys.items()]
    return f"Counted in {'; '.join(told)}. {size_note(surveys)}"


def size_note(surveys: Mapping[str, Survey]) -> str:
    """How many pictures' sizes were read, and the size where all have the same; how many could not be read."""
    sizes = [size for one in surveys.values() for size in one.sizes]
    looked = sum(one.sized for one in surveys.values())
    lost = looked - len(sizes)
    if not looked:
        return ""
    more = f" {lost:,} more could not be read." if lost else ""
    if len(set(sizes)) == 1:
        return f"All of {len(sizes):,} pictures looked at are {sizes[0][0]} × {sizes[0][1]} pixels.{more}"
    return f"Sizes are those of {len(sizes):,} pictures.{more}"


def _share(rows: int, total: int, scope: str) -> str:
    return f"all {total:,} {scope}" if rows == total else f"{rows:,} of {total:,} {scope}, evenly chosen"
