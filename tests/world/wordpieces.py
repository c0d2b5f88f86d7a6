"""A vocabulary of word pieces in BERT's form: every word of the demo world, and letters for all others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from random import Random
from string import ascii_lowercase, digits, punctuation

from lavis_ext.demo.language import NUMBERS, plural
from lavis_ext.demo.things import BACKGROUNDS, COLOURS, SHAPES, SIZES
from lavis_ext.demo.world import Scene, World
from tests.world.answers import POOLS, questions
from tests.world.descriptions import describe
from tests.world.flickr import sentences
from tests.world.knowledge import knowledge
from tests.world.nlvr import Pair, claims
from tests.world.novel import ten_captions

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPOKEN = World(seed=1, train=240, val=0, test=0, hidden=0)
"""Scenes enough that the demo's grammar says all of its words; what they do not say is spelled in letters."""
WORD = re.compile("[a-z]{2,}")


@cache
def vocab_txt() -> bytes:
    """`vocab.txt`, one piece a line: the special ones, signs, digits and letters (both again with `##`), words."""
    letters = [*digits, *ascii_lowercase]
    pieces = [*SPECIAL, *punctuation, *letters, *(f"##{letter}" for letter in letters), *sorted(words())]
    return "".join(f"{piece}\n" for piece in pieces).encode()


def words() -> set[str]:
    """The lower-case words of two letters or more that the demo says, asks, answers or puts on a box."""
    return {word for text in (*NOUNS, *said()) for word in WORD.findall(text.lower())}


def said() -> Iterator[str]:
    """What is said about the scenes of a fixed world, by every grammar of the demo."""
    scenes = list(SPOKEN.scenes("train"))
    for scene, other in pairwise(scenes):
        yield from about(scene)
        yield from (text for text, _ in claims(Pair("train", 0, scene, other), Random(scene.id)))


def about(scene: Scene) -> Iterator[str]:
    """Captions, descriptions, questions and answers about one scene."""
    yield from ten_captions(scene)
    yield describe(scene)
    yield from (text for text, _ in sentences(scene))
    for question in (*questions(scene), *knowledge(scene)):
        yield from (question.text, question.answer)


def flat(pools: Iterable[Iterable[str]]) -> list[str]:
    """All entries of all pools."""
    return [entry for pool in pools for entry in pool]


NOUNS = (*COLOURS, *SHAPES, *map(plural, SHAPES), *SIZES, *BACKGROUNDS, *NUMBERS.values(), *flat(POOLS))
"""What may be named, whether or not the fixed world names it."""
