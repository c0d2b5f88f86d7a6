"""What a caption of NoCaps must name (Agrawal et al., arXiv:1812.08658): detected things, with their word forms.

Upstream's rules: things that are too common or too rare are passed over, a box of a general thing gives way to one of a
special thing in the same place (a "dog" to an "animal"), and the most certain ones are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from lavis_ext.errors import IntegrityError

Box = tuple[float, float, float, float]
GIVEN = 3
OVERLAP = 0.85
MOST_WAYS = 64
SEPARATOR = ","
PASSED_OVER = frozenset(
    (
        "auto part,bathroom accessory,bicycle wheel,boy,building,clothing,door handle,fashion accessory,footwear,girl,"
        "hiking equipment,human arm,human beard,human body,human ear,human eye,human face,human foot,human hair,"
        "human hand,human head,human leg,human mouth,human nose,land vehicle,mammal,man,person,personal care,plant,"
        "plumbing fixture,seat belt,skull,sports equipment,tire,tree,vehicle registration plate,wheel,woman,"
        "__background__"
    ).split(SEPARATOR)
)
SPELT = {
    "band-aid": "bandaid",
    "wood-burning stove": "wood burning stove",
    "kitchen & dining room table": "table",
    "salt and pepper shakers": "salt and pepper",
    "power plugs and sockets": "power plugs",
    "luggage and bags": "luggage",
}
"""What is said for a class of Open Images."""


@dataclass(frozen=True)
class Seen:
    """A detected thing: its class in lower case, how certain it is, and its box (x1, y1, x2, y2)."""

    name: str
    conf: float
    box: Box


def detected(labels: Iterable[Mapping[str, Any]], where: str) -> list[Seen]:
    """Things from a row of labels, `[{class, conf, rect}]`; raises IntegrityError for other rows."""
    try:
        rows = [(str(row["class"]).lower(), float(row["conf"]), row["rect"]) for row in labels]
        return [Seen(name, conf, (float(a), float(b), float(c), float(d))) for name, conf, (a, b, c, d) in rows]
    except (KeyError, TypeError, ValueError) as error:
        what = f"has labels without class, conf or rect ({type(error).__name__}: {error})"
        raise IntegrityError(where, what, "name the detections of Open Images") from error


def choose_names(things: Sequence[Seen], heights: Mapping[str, int] | None = None, given: int = GIVEN) -> list[str]:
    """The names of up to `given` things that a caption must name, the most certain first.

    `heights` tells how far a class stands above the most special ones (see `read_heights`).
    """
    kept = [thing for thing in things if thing.conf > 0 and thing.name not in PASSED_OVER]
    kept = suppress_general(kept, heights or {})
    kept.sort(key=_certainty)
    return list(dict.fromkeys(SPELT.get(thing.name, thing.name) for thing in kept[:given]))


def _certainty(thing: Seen) -> float:
    return -thing.conf


def suppress_general(things: Sequence[Seen], heights: Mapping[str, int]) -> list[Seen]:
    """Without boxes that cover a box of a more special thing by more than 0.85 (intersection over union)."""
    special = [heights.get(thing.name, 0) for thing in things]
    return [
        thing
        for thing, height in zip(things, special, strict=True)
        if not any(
            lower < height and overlap(thing.box, other.box) > OVERLAP
            for other, lower in zip(things, special, strict=True)
        )
    ]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, with upstream's one pixel more in every direction."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    inside = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return inside / (sum(areas) - inside)


def words_for(name: str, pieces: Mapping[str, Sequence[str]], forms: Mapping[str, Sequence[str]]) -> list[str]:
    """All ways to say a name: each of its words as its `pieces`, and each piece in one of its `forms`.

    A word that neither lists stands for itself.
    """
    parts = [piece for word in name.split() for piece in pieces.get(word) or [word]]
    ways = product(*(forms.get(part) or [part] for part in parts))
    return list(dict.fromkeys(" ".join(way).replace(" ##", "") for way in islice(ways, MOST_WAYS)))


def read_forms(path: Path) -> dict[str, list[str]]:
    """The rows of a TSV: a word, and the words that stand for it, parted by commas; raises IntegrityError."""
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {name.strip(): [word.strip() for word in words.split(",") if word.strip()] for name, words in rows}
    except (OSError, ValueError) as error:
        raise IntegrityError(str(path), f"is no table of names and words: {error}", "fetch it again") from error


def read_heights(tree: Mapping[str, Any]) -> dict[str, int]:
    """Class in lower case → how many levels lie below it, from Open Images' hierarchy (`LabelName`, `Subcategory`)."""
    found: dict[str, int] = {}

    def visit(node: Mapping[str, Any]) -> int:
        height = 1 + max((visit(child) for child in node.get("Subcategory", ())), default=-1)
        name = str(node.get("LabelName", "")).lower()
        found[name] = max(height, found.get(name, 0))
        return height

    visit(tree)
    return found
