"""What can truly be said about things in a picture: five captions."""

from __future__ import annotations

from collections.abc import Sequence

from lavis_ext.demo.things import WIDTH, Relation, Thing, relation

PHRASES: dict[Relation, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
NUMBERS = {1: "one", 2: "two", 3: "three"}


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
    """The arrangement of related things: beside or above each other, or all three in a row."""
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
    """Five captions of two different things of which one is clearly beside or above the other."""
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
    """A sentence that relates three things by their places."""
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
