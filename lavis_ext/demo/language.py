"""What can truly be said about things in a picture: five captions, and questions with their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lavis_ext.demo.things import COLOURS, INVERSE, SHAPES, WIDTH, Relation, Thing, count, relation

PHRASES: dict[Relation, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
NUMBERS = {1: "one", 2: "two", 3: "three"}
AnswerType = Literal["yes/no", "number", "other"]


@dataclass(frozen=True)
class Question:
    """A question, its one true answer, and VQA's `answer_type`."""

    text: str
    answer: str
    answer_type: AnswerType = "other"


def article(words: str) -> str:
    """`a` or `an` before the words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def named(thing: Thing) -> str:
    """`a red circle`."""
    return article(f"{thing.colour} {thing.shape}")


def sized(thing: Thing) -> str:
    """`a big red circle`."""
    return article(f"{thing.size} {thing.colour} {thing.shape}")


def the(thing: Thing) -> str:
    """`the red circle`."""
    return f"the {thing.colour} {thing.shape}"


def plural(word: str) -> str:
    """`crosses`, `stars`."""
    return f"{word}es" if word.endswith("s") else f"{word}s"


def placed(thing: Thing) -> str:
    """Which third of the picture's width holds the centre."""
    return ("on the left", "in the middle", "on the right")[min(2, 3 * thing.x // WIDTH)]


def arrangement(things: Sequence[Thing]) -> str:
    """How related things stand together: beside or above each other, or all three in a row."""
    if relation(things[0], things[1]) in ("above", "below"):
        return "one above the other"
    return "side by side" if len(things) == 2 else "in a row"


def captions(things: Sequence[Thing], background: str) -> list[str]:
    """Five true sentences without capital or full stop; `things` in reading order, as World lays them out."""
    if len(things) > 1 and len({t.kind for t in things}) == 1:
        return say_group(things, background)
    return (say_one, say_two, say_three)[len(things) - 1](things, background)


def say_one(things: Sequence[Thing], background: str) -> list[str]:
    """Five captions of a single thing."""
    (a,) = things
    return [
        f"{sized(a)} on {background}",
        f"{named(a)} {placed(a)}",
        f"there is {sized(a)} {placed(a)}",
        f"{named(a)} on {background}",
        f"a picture of {sized(a)}",
    ]


def say_group(things: Sequence[Thing], background: str) -> list[str]:
    """Five captions of two or three things that look the same."""
    number, first, manner = NUMBERS[len(things)], things[0], arrangement(things)
    several = f"{first.colour} {plural(first.shape)}"
    return [
        f"{number} {several} {manner}",
        f"{number} {first.size} {several} on {background}",
        f"there are {number} {several} {manner}",
        f"{number} {several} on {background}",
        f"a picture of {number} {first.size} {several}",
    ]


def say_two(things: Sequence[Thing], background: str) -> list[str]:
    """Five captions of two different things of which one stands clearly beside or above the other."""
    a, b = things
    return [
        f"{named(a)} {between(a, b)} {named(b)}",
        f"{named(a)} and {named(b)} {arrangement(things)}",
        f"there is {named(a)} {between(a, b)} {named(b)}",
        f"{sized(a)} and {sized(b)} on {background}",
        f"{named(b)} {between(b, a)} {named(a)}",
    ]


def say_three(things: Sequence[Thing], background: str) -> list[str]:
    """Five captions of three different things in a row or round a corner."""
    a, b, c = things
    return [
        f"{named(a)}, {named(b)} and {named(c)}",
        f"{named(a)}, {named(b)} and {named(c)} on {background}",
        f"there are three shapes, {named(a)}, {named(b)} and {named(c)}",
        f"{sized(a)}, {sized(b)} and {sized(c)}",
        joint(a, b, c),
    ]


def joint(a: Thing, b: Thing, c: Thing) -> str:
    """The sentence that ties three things together by how they stand."""
    if relation(a, b) == relation(b, c) == "left":
        return f"{named(b)} between {named(a)} and {named(c)}"
    # Round a corner, one of the three is related to both others: the sentence hangs on that one.
    hub = next(t for t in (a, b, c) if all(relation(t, other) for other in (a, b, c) if other is not t))
    first, second = (t for t in (a, b, c) if t is not hub)
    return f"{named(first)} {between(first, hub)} {named(hub)} and {named(second)} {between(second, hub)} {the(hub)}"


def between(a: Thing, b: Thing) -> str:
    """`to the left of` and its like, for two things that are clearly related."""
    side = relation(a, b)
    if side is None:
        raise ValueError(f"no clear relation between {a} and {b}")
    return PHRASES[side]


def questions(things: Sequence[Thing], background: str) -> list[Question]:
    """All questions of the small grammar that have exactly one true answer for these things, without repeats."""
    asked = [
        Question("How many shapes are there?", str(len(things)), "number"),
        Question("What is the background?", background),
        *ask_counts(things),
        *ask_attributes(things),
        *ask_presence(things),
        *ask_relations(things),
    ]
    return list(dict.fromkeys(asked))


def ask_counts(things: Sequence[Thing]) -> Iterator[Question]:
    """How many of a shape, and how many of a colour."""
    for thing in things:
        yield Question(f"How many {plural(thing.shape)} are there?", str(count(things, shape=thing.shape)), "number")
        yield Question(f"How many {thing.colour} shapes are there?", str(count(things, colour=thing.colour)), "number")


def ask_attributes(things: Sequence[Thing]) -> Iterator[Question]:
    """Colour, shape and size, each only where the question points at one thing."""
    for thing in things:
        if count(things, shape=thing.shape) == 1:
            yield Question(f"What color is the {thing.shape}?", thing.colour)
        if count(things, colour=thing.colour) == 1:
            yield Question(f"What shape is {thing.colour}?", thing.shape)
        if count(things, thing.shape, thing.colour) == 1:
            yield Question(f"Is {the(thing)} big?", "yes" if thing.size == "big" else "no", "yes/no")


def ask_presence(things: Sequence[Thing]) -> Iterator[Question]:
    """For every thing one question whose answer is yes, and one about its shape in a colour that is absent: no."""
    colours = list(COLOURS)
    for thing in things:
        yield Question(f"Is there {named(thing)}?", "yes", "yes/no")
        start = colours.index(thing.colour) + list(SHAPES).index(thing.shape) + 1
        others = colours[start % len(colours) :] + colours[: start % len(colours)]
        absent = next(c for c in others if not count(things, thing.shape, c))
        yield Question(f"Is there {article(f'{absent} {thing.shape}')}?", "no", "yes/no")


def ask_relations(things: Sequence[Thing]) -> Iterator[Question]:
    """What stands on a side of a thing, where the thing is told by its kind and exactly one other stands there."""
    kinds = Counter(t.kind for t in things)
    for anchor in (t for t in things if kinds[t.kind] == 1):
        for side, phrase in PHRASES.items():
            there = [t for t in things if t is not anchor and relation(t, anchor) == side]
            if len(there) == 1 and kinds[there[0].kind] == 1:
                yield Question(f"What is {phrase} {the(anchor)}?", f"{there[0].colour} {there[0].shape}")
                yield Question(f"Is {the(anchor)} {phrase} {the(there[0])}?", "no", "yes/no")
                yield Question(f"Is {the(anchor)} {PHRASES[INVERSE[side]]} {the(there[0])}?", "yes", "yes/no")
