"""What ten people answer: nearly all of them the truth, a few another thing of the same kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from lavis_ext.demo.language import Question
from lavis_ext.demo.things import BACKGROUNDS, COLOURS, SHAPES
from lavis_ext.demo.world import Scene, pick_several

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
    return pick_several(Random(f"questions/{family}/{scene.id}"), scene.questions(), number)


def question_id(scene: Scene, number: int) -> int:
    """The number of a question, as in VQA: that of its image, then three digits."""
    return scene.id * 1000 + number


def vocabulary(answers: Iterable[str]) -> list[str]:
    """Every answer once, the most frequent first."""
    found: dict[str, int] = {}
    for answer in answers:
        found[answer] = found.get(answer, 0) + 1
    return sorted(found, key=found.__getitem__, reverse=True)
