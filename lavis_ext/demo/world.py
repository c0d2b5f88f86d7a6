"""A small world of scenes: things and their places, drawn from a seed alone and the same on every platform."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from random import Random
from typing import TypeVar

from lavis_ext.common.errors import UsageError
from lavis_ext.demo import language
from lavis_ext.demo.things import BACKGROUNDS, COLOURS, HEIGHT, SHAPES, SIZES, Thing

T = TypeVar("T")
SPLITS = ("train", "val", "test", "hidden")
SPLIT_LIMIT = 100_000
ID_PRIME = 581_929
"""The largest image id of COCO; ids are spread below it, so that they have the same one to six digits."""
COLUMNS, ROWS, JITTER = (110, 320, 530), (132, 348), 14
"""Centres of the cells in pixels, and how far a thing may be off: neighbours never touch."""
LAYOUTS = ("one", "two", "two", "group", "three")


@dataclass(frozen=True)
class Scene:
    """One picture before it is drawn: an id, its split, things in reading order, and what they lie on."""

    id: int
    split: str
    things: tuple[Thing, ...]
    background: str

    def captions(self) -> list[str]:
        """Five true captions in the manner of COCO: mostly a capital and a full stop, sometimes neither."""
        rng = Random(f"captions/{self.id}")
        said = language.captions(self.things, self.background)
        return [styled(sentence, rng) for sentence in said]


@dataclass(frozen=True)
class World:
    """Scenes per split; scene i of a split depends on the seed and on i alone, so a smaller world begins a larger one.

    `hidden` are pictures without published captions, such as COCO's test images.
    """

    seed: int = 7
    train: int = 1500
    val: int = 100
    test: int = 100
    hidden: int = 20
    sizes: dict[str, int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        sizes = {split: getattr(self, split) for split in SPLITS}
        for split, size in sizes.items():
            if not 0 <= size <= SPLIT_LIMIT:
                raise UsageError(f"world.{split}", f"{size} scenes", f"ask for 0 to {SPLIT_LIMIT}")
        object.__setattr__(self, "sizes", sizes)

    def scenes(self, split: str) -> Iterator[Scene]:
        """The scenes of one split, in order."""
        return (self.scene(split, i) for i in range(self.sizes[split]))

    def __iter__(self) -> Iterator[Scene]:
        return chain.from_iterable(self.scenes(split) for split in SPLITS)

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def scene(self, split: str, index: int) -> Scene:
        """Scene `index` of a split, drawn from its own stream of random numbers."""
        rng = Random(f"scene/{self.seed}/{split}/{index}")
        return Scene(
            id=self.identify(split, index),
            split=split,
            things=place_things(rng),
            background=pick(rng, BACKGROUNDS),
        )

    def identify(self, split: str, index: int) -> int:
        """A number from 1 to ID_PRIME that no other scene of this world has (multiplying modulo a prime permutes)."""
        place = SPLITS.index(split) * SPLIT_LIMIT + index
        return (place * 7919 + self.seed * 104_729) % ID_PRIME + 1


def pick(rng: Random, items: Sequence[T]) -> T:
    """One item; built on `random()`, the one method whose sequence Python promises to keep."""
    return items[int(rng.random() * len(items))]


def pick_several(rng: Random, items: Sequence[T], number: int) -> list[T]:
    """Different items, in the order they were drawn."""
    rest = list(items)
    return [rest.pop(int(rng.random() * len(rest))) for _ in range(number)]


def styled(sentence: str, rng: Random) -> str:
    """The sentence as one annotator would type it."""
    draw = rng.random()
    if draw < 0.15:
        return sentence
    text = sentence[0].upper() + sentence[1:]
    return text if draw < 0.3 else f"{text} ." if draw < 0.35 else f"{text}."


def place_things(rng: Random) -> tuple[Thing, ...]:
    """Things for one scene, left to right and top to bottom."""
    layout = pick(rng, LAYOUTS)
    cells = pick(rng, PLACES[layout])
    if layout == "group":
        kinds, sizes = [pick(rng, KINDS)] * len(cells), [pick(rng, tuple(SIZES))] * len(cells)
    else:
        kinds, sizes = pick_several(rng, KINDS, len(cells)), [pick(rng, tuple(SIZES)) for _ in cells]
    return tuple(put_near(rng, *each) for each in zip(kinds, sizes, cells, strict=True))


def put_near(rng: Random, kind: tuple[str, str], size: str, cell: Cell) -> Thing:
    """A thing near the centre of a cell."""
    colour, shape = kind
    dx, dy = (int(rng.random() * (2 * JITTER + 1)) - JITTER for _ in range(2))
    return Thing(shape, colour, size, cell[0] + dx, cell[1] + dy)


Cell = tuple[int, int]
KINDS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
SINGLES: list[list[Cell]] = [[(x, HEIGHT // 2)] for x in COLUMNS]
TRIPLES: list[list[Cell]] = [[(x, y) for x in COLUMNS] for y in ROWS]
PAIRS: list[list[Cell]] = [[(x, y) for y in ROWS] for x in COLUMNS] + [
    list(two) for row in TRIPLES for two in pairwise(row)
]


def corners() -> list[list[Cell]]:
    """Three of four cells that form a square, in reading order: one is beside one and above or below the other."""
    squares = [[(x, y) for y in ROWS for x in two] for two in pairwise(COLUMNS)]
    return [[cell for cell in square if cell != left_out] for square in squares for left_out in square]


PLACES: dict[str, list[list[Cell]]] = {
    "one": SINGLES,
    "two": PAIRS,
    "group": PAIRS + TRIPLES,
    "three": TRIPLES * 4 + corners(),
}
