"""A grid of samples: small pictures with what people said about them; a picture that cannot be read has its place."""

from __future__ import annotations

import base64
import re
from collections import Counter
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Any

from PIL import Image

from lavis_ext.browse.told import Item, Told
from lavis_ext.browse.views import View, counted, first
from lavis_ext.readers.faults import SampleError
from lavis_ext.wording import shorten

EDGE_PIXELS = 360
QUALITY = 78
MAX_TRUTHS = 4
MAX_CHARACTERS = 400
_UNSHOWN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Grid:
    """The HTML of some samples, and why pictures among them could not be read."""

    html: str
    shots: int
    faults: Counter[str]

    def note(self, total: int, chosen: str) -> str:
        """`24 of 7,500 samples, evenly chosen; 2 without a picture: image is missing (2)`."""
        how = f", {chosen}" if self.shots < total else ""
        why = ", ".join(f"{reason} ({count})" for reason, count in self.faults.most_common())
        lost = f"; {self.faults.total():,} without a picture: {why}" if self.faults else ""
        return f"{self.shots:,} of {total:,} samples{how}{lost}."


def sample_grid(view: View, wanted: int, seed: int | None) -> Grid:
    """Read and draw some samples of a split."""
    faults: Counter[str] = Counter()
    shots = [_shot(view, item, faults) for item in view.items(wanted, seed)]
    return Grid(f'<div class="shots">{"".join(shots)}</div>' if shots else "", len(shots), faults)


def _shot(view: View, item: Item, faults: Counter[str]) -> str:
    try:
        picture = _pictures([thumbnail(pixels) for pixels in view.pictures(item)], item.told)
    except SampleError as error:
        faults[error.reason] += 1
        picture = f'<div class="lost"><span>{escape(shorten(error.why, 120))}</span></div>'
    foot = f'<span class="foot"><span>{escape(item.name)}</span></span>'
    return f'<figure class="shot">{picture}<figcaption>{words(item.told)}{foot}</figcaption></figure>'


def words(told: Told) -> str:
    """The first text in bold, and below it the other captions, or answers, choices and label."""
    said, *others = told.texts or ("",)
    under = [*told.more, *first(others, MAX_TRUTHS), *counted(told.answers)]
    under += [f"choices: {', '.join(told.choices)}"] if told.choices else []
    items = "".join(f"<li>{_text(text)}</li>" for text in under)
    label = f'<span><span class="badge">{_text(told.label)}</span></span>' if told.label else ""
    head = f'<span class="said">{_text(said)}</span>' if said else '<span class="note">no text</span>'
    return f"{head}{label}" + (f'<ul class="true">{items}</ul>' if items else "")


def _text(text: str) -> str:
    """Text for a page: cut, lone surrogates and control characters made visible, escaped."""
    return escape(_UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", shorten(text, MAX_CHARACTERS)))


def thumbnail(pixels: Any) -> str:
    """uint8 [H,W,3] → a small JPEG as a data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((EDGE_PIXELS, EDGE_PIXELS))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _pictures(sources: list[str], told: Told) -> str:
    name = _text(told.texts[0]) if told.texts else ""
    drawn = "".join(f'<img alt="{name}" loading="lazy" src="{source}">' for source in sources)
    return drawn if len(sources) == 1 else f'<div class="pair">{drawn}</div>'
