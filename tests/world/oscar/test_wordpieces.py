"""The tiny vocabulary: shipped as it is made, and whole for all that the demo says, asks, answers and tags."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from tokenizers import BertWordPieceTokenizer

from lavis_ext.demo.things import BACKGROUNDS, COLOURS, SHAPES
from lavis_ext.demo.world import Scene, World
from tests.world.nlvr import Pair, claims
from tests.world.oscar.checkpoints import SPECIAL, vocab_txt
from tests.world.questions import knowledge, poll, questions

SHIPPED = Path(__file__).parents[3] / "configs/models/oscar/tokenizer-tiny/vocab.txt"
WORLD = World(seed=31, train=120, val=20, test=20, hidden=10)


@pytest.fixture(scope="module")
def tokenizer() -> BertWordPieceTokenizer:
    return BertWordPieceTokenizer(str(SHIPPED), lowercase=True)


def sentences(scene: Scene, other: Scene) -> list[str]:
    """All that the exports say about a scene of another world than the one that the words are taken from."""
    asked = [*questions(scene), *knowledge(scene)]
    answers = [answer for question in asked for answer in poll(question.answer, question.text)]
    pair = Pair("train", 0, scene, other)
    claimed = [text for text, _ in claims(pair, Random(0))]
    return [*scene.captions(), *(question.text for question in asked), *answers, *claimed]


def test_the_shipped_file_is_what_the_function_makes() -> None:
    assert SHIPPED.read_bytes() == vocab_txt() and len(vocab_txt()) <= 6000


def test_its_first_rows_are_berts_own_and_none_comes_twice() -> None:
    rows = vocab_txt().decode().splitlines()
    assert tuple(rows[:5]) == SPECIAL and rows.index("[PAD]") == 0
    assert len(set(rows)) == len(rows)


def test_everything_that_is_said_is_known_word_by_word(tokenizer: BertWordPieceTokenizer) -> None:
    scenes = list(WORLD)
    for scene, other in pairwise(scenes):
        for text in sentences(scene, other):
            tokens = tokenizer.encode(text, add_special_tokens=False).tokens
            assert tokens and "[UNK]" not in tokens, text
            assert not any(token.startswith("##") and token[2:].isalpha() for token in tokens), (text, tokens)


def test_tags_are_single_pieces(tokenizer: BertWordPieceTokenizer) -> None:
    for tag in (*COLOURS, *SHAPES, *BACKGROUNDS):
        assert tokenizer.encode(tag, add_special_tokens=False).tokens == [tag]


def test_any_other_word_and_number_is_spelled(tokenizer: BertWordPieceTokenizer) -> None:
    assert tokenizer.encode("Zebra 1907!", add_special_tokens=False).tokens == [
        *("z", "##e", "##b", "##r", "##a"),
        *("1", "##9", "##0", "##7", "!"),
    ]
