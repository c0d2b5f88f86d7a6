"""Questions about scenes, each with one true answer; what ten people answer; what needs knowledge, not eyes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from lavis_ext.demo.language import PHRASES, article, named, plural, the
from lavis_ext.demo.things import BACKGROUNDS, COLOURS, SHAPES, Relation, Thing, relation
from lavis_ext.demo.world import Scene, pick_several

AnswerType = Literal["yes/no", "number", "other"]
INVERSE: dict[Relation, Relation] = {"left": "right", "right": "left", "above": "below", "below": "above"}
PEOPLE = 10
MOST_DISSENTERS = 3
"""So few that the truth always scores 1 (three matches among nine others), and a dissenter's answer less."""
MIXTURES = {"orange": "red and yellow", "green": "blue and yellow", "purple": "red and blue", "pink": "red and white"}
SOURCES = {"paper": "trees", "wood": "trees", "stone": "mountains"}
POOLS: tuple[Sequence[str], ...] = (
    ("yes", "no"),
    tuple(COLOURS),
    tuple(SHAPES),
    (*BACKGROUNDS, "glass"),
    tuple(MIXTURES.values()),
    ("trees", "mountains", "animals", "the sea"),
)


@dataclass(frozen=True)
class Question:
    """A question, its one true answer, and VQA's `answer_type`."""

    text: str
    answer: str
    answer_type: AnswerType = "other"


def questions(scene: Scene) -> list[Question]:
    """All questions of the small grammar that have exactly one true answer for a scene, without repeats."""
    things = scene.things
    asked = [
        Question("How many shapes are there?", str(len(things)), "number"),
        Question("What is the background?", scene.background),
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


def count(things: Sequence[Thing], shape: str | None = None, colour: str | None = None) -> int:
    """How many things have that shape and that colour; None: any."""
    return sum(shape in (None, t.shape) and colour in (None, t.colour) for t in things)


def pool_of(answer: str) -> list[str]:
    """All answers of the kind of one: colours, numbers, shapes …; that one is among them."""
    if answer.isdigit():
        return [str(number) for number in range(int(answer) // 4 * 4, int(answer) // 4 * 4 + 4)]
    for pool in POOLS:
        if answer in pool:
            return list(pool)
    shape = answer.rpartition(" ")[2]
    return [f"{colour} {shape}" for colour in COLOURS]


def poll(answer: str, key: object) -> list[str]:
    """Ten answers to a question, none to three of them another one; the same for the same key."""
    rng = Random(f"poll/{key}")
    pool = pool_of(answer)
    other = pool[(pool.index(answer) + 1) % len(pool)]
    dissenters = int(rng.random() * (MOST_DISSENTERS + 1))
    return pick_several(rng, [answer] * (PEOPLE - dissenters) + [other] * dissenters, PEOPLE)


def choose(answer: str, key: object, number: int = 4) -> list[str]:
    """The answer among others of its kind, in random order."""
    rng = Random(f"choices/{key}")
    wrong = pick_several(rng, [other for other in pool_of(answer) if other != answer], number - 1)
    return pick_several(rng, [answer, *wrong], number)


def ask(scene: Scene, family: str, number: int) -> list[Question]:
    """Some of the questions about a scene, others for each family."""
    return pick_several(Random(f"questions/{family}/{scene.id}"), questions(scene), number)


def question_id(scene: Scene, number: int) -> int:
    """The number of a question, as in VQA: that of its image, then three digits."""
    return scene.id * 1000 + number


def vocabulary(answers: Iterable[str]) -> list[str]:
    """Every answer once, the most frequent first."""
    found: dict[str, int] = {}
    for answer in answers:
        found[answer] = found.get(answer, 0) + 1
    return sorted(found, key=found.__getitem__, reverse=True)


ROUND = ("circle", "ring")
CORNERS = {shape: 0 if shape in ROUND else len(curve) for shape, curve in SHAPES.items()}


def knowledge(scene: Scene) -> list[Question]:
    """All such questions about a scene, each with one true answer."""
    asked = [Question("Where does the material of the background come from?", SOURCES[scene.background])]
    for thing in scene.things:
        if count(scene.things, colour=thing.colour) == 1:
            asked += ask_of_shape(thing)
        if count(scene.things, shape=thing.shape) == 1 and thing.colour in MIXTURES:
            asked.append(Question(f"Which two paints make the color of the {thing.shape}?", MIXTURES[thing.colour]))
    return asked


def ask_of_shape(thing: Thing) -> Iterator[Question]:
    """Questions about a thing that is told by its colour."""
    yield Question(f"How many corners does the {thing.colour} shape have?", str(CORNERS[thing.shape]), "number")
    yield Question(f"Could the {thing.colour} shape roll?", "yes" if thing.shape in ROUND else "no", "yes/no")
