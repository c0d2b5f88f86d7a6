"""The samples of a split with their pictures, and figures over its rows; both up to a maximum."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

from PIL import Image

from lavis_ext.browse.html import histogram, ranked_list
from lavis_ext.browse.views import Item, SampleText, View, counted, first
from lavis_ext.common.wording import shorten
from lavis_ext.datasets.readers.decode import FORMATS, MAX_PIXELS, without_texts
from lavis_ext.datasets.readers.faults import SampleError

EDGE_PIXELS = 400
QUALITY = 78
MAX_TRUTHS = 4
MAX_TURNS = 12
MAX_CHARACTERS = 400
MAX_ROWS = 50_000
MAX_SIZES = 300
TOP = 12
"""Rows of a ranked list: about as tall as the chart beside it."""
WORD = re.compile(r"[^\W\d_][\w'’-]*")
_UNSHOWN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Shot:
    """A sample on a page: pictures as data URIs, or why there is none (`lost`); a text, and lines below it."""

    name: str
    said: str
    under: list[str]
    label: str = ""
    sources: Sequence[str] = ()
    lost: str = ""
    files: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    """Role and text of the first turns of a conversation, which are shown in place of `said`."""
    words: int = 0
    marks: tuple[str, ...] = ()
    """What a filter asks for: `missing`, `corrupt`, `duplicate`, `leak`, `textless`."""
    drawn: Sequence[str] = ()
    """The pictures as training draws them, as data URIs."""
    large: str = ""
    """Where a larger picture is, on a served page."""

    @property
    def alt(self) -> str:
        """What stands for its picture where it is not seen."""
        return self.said or " ".join(self.files) or f"sample {self.name}"


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


def sample_grid(view: View, items: Sequence[Item], faults: Counter[str] | None = None) -> Grid:
    """Samples with their pictures."""
    counted: Counter[str] = Counter() if faults is None else faults
    return Grid([shot_of(view, item, counted) for item in items], counted)


def shot_of(view: View, item: Item, faults: Counter[str], augment: int | None = None) -> Shot:
    """A sample with its pictures, also as training draws them by the seed `augment`; a fault is counted."""
    shot, edge = texts_of(item), view.edge or EDGE_PIXELS
    try:
        sources = [thumbnail(pixels, edge) for pixels in view.pictures(item)]
        drawn = [] if augment is None else [thumbnail(one, edge) for one in view.augmented(item.index, augment)]
    except SampleError as error:
        faults[error.reason] += 1
        return without_picture(shot, error.why)
    return replace(shot, sources=sources, drawn=drawn)


def without_picture(shot: Shot, why: str) -> Shot:
    """A sample whose picture cannot be shown."""
    mark = "missing" if "missing" in why.partition(":")[0] else "corrupt"
    return replace(shot, lost=shorten(why, 120), marks=(*shot.marks, mark))


def texts_of(item: Item) -> Shot:
    """A sample without its pictures."""
    text: SampleText = item.text
    said, *others = text.texts or ("",)
    under = [*text.more, *first(others, MAX_TRUTHS), *counted(text.answers)]
    under += [f"and {len(text.turns) - MAX_TURNS} more turns"] if len(text.turns) > MAX_TURNS else []
    under += [f"choices: {', '.join(text.choices)}"] if text.choices else []
    words = [len(one.split()) for one in text.texts]
    return Shot(
        name=item.name,
        said=printable(said),
        under=[printable(one) for one in under],
        label=printable(text.label),
        files=tuple(printable(one) for one in item.files),
        ids=tuple(printable(one) for one in item.ids),
        answers=tuple(printable(one) for one in dict.fromkeys([*text.answers, *([text.label] if text.label else [])])),
        turns=tuple((role, printable(said)) for role, said in text.turns[:MAX_TURNS]),
        words=round(sum(words) / len(words)) if words else 0,
        marks=() if any(text.texts) else ("textless",),
    )


def printable(text: str) -> str:
    """A text of a row, cut; lone surrogates and control characters are made visible."""
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", shorten(text, MAX_CHARACTERS))


def thumbnail(pixels: Any, edge: int = EDGE_PIXELS) -> str:
    """uint8 [H,W,3] → a small JPEG as a data URI, its longer edge at most `edge`."""
    return f"data:image/jpeg;base64,{base64.b64encode(small_jpeg(pixels, edge)).decode('ascii')}"


def small_jpeg(pixels: Any, edge: int) -> bytes:
    """uint8 [H,W,3] → a JPEG, its longer edge at most `edge`."""
    image = Image.fromarray(pixels)
    image.thumbnail((edge, edge))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


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
    vocabulary: Counter[str] = field(default_factory=Counter)
    textless: int = 0
    """Rows without a text."""


def survey(view: View, max_rows: int = MAX_ROWS, max_sizes: int = MAX_SIZES) -> Survey:
    """Count the rows of a split, at most `max_rows` of them, and the sizes of at most `max_sizes` pictures."""
    found = Survey(view.scope, view.total)
    for text in view.survey(max_rows):
        found.rows += 1
        found.words += [len(one.split()) for one in text.texts]
        found.vocabulary.update(word for one in text.texts for word in WORD.findall(one.lower()))
        found.textless += not any(text.texts)
        found.answers.update(text.answers)
        found.labels.update([text.label] if text.label else [])
        found.kind = text.kind if text.texts else found.kind
    items = view.items(max_sizes, None) if view.pictured else []
    found.sized = len(items)
    found.sizes = [size for item in items if (size := size_of(view, item))]
    return found


def counted_answers(views: Iterable[View], most: int) -> Counter[str]:
    """Answers and labels in at most `most` rows of each split."""
    found: Counter[str] = Counter()
    for view in views:
        for text in view.survey(most):
            found.update([*text.answers, *([text.label] if text.label else [])])
    return found


def size_of(view: View, item: Item) -> tuple[int, int] | None:
    """Width and height from a picture's header; None where there is none to read."""
    try:
        data = view.data(item)
    except SampleError:
        return None
    try:
        with Image.open(BytesIO(without_texts(data)), formats=FORMATS) as image:
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
        _ranks("Words used most", sum((one.vocabulary for one in surveys.values()), Counter())),
        _ranks("Answers given most", sum((one.answers for one in surveys.values()), Counter())),
        _ranks("Labels", sum((one.labels for one in surveys.values()), Counter())),
        histogram("Longer side of a picture", longer, "pixels"),
        histogram("Shape of a picture", shapes, "width / height"),
    ]
    return [chart for chart in drawn if chart]


def _ranks(title: str, counts: Counter[str]) -> str:
    note = f"{len(counts):,} different" if len(counts) > TOP else ""
    return ranked_list(title, dict(counts.most_common(TOP)), counts.total(), note)


def vocabulary_rows(surveys: Mapping[str, Survey]) -> list[list[str]]:
    """For each split with texts: words, different ones, those used once, and the share that training never shows."""
    rows = []
    trained = next((one.vocabulary for split, one in surveys.items() if split.rpartition(" ")[2] == "train"), None)
    for split, one in surveys.items():
        if total := one.vocabulary.total():
            once = sum(count == 1 for count in one.vocabulary.values())
            new = None if trained is None else sum(n for word, n in one.vocabulary.items() if word not in trained)
            unseen = "–" if new is None or one.vocabulary is trained else f"{new / total:.1%}"
            rows.append([split, f"{total:,}", f"{len(one.vocabulary):,}", f"{once:,}", unseen, f"{one.textless:,}"])
    return rows


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
