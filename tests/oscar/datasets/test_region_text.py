"""Texts within a length: cut as Oscar cuts them, whole where they fit."""

import random
from pathlib import Path

import pytest

from lavis_ext.common.errors import ConfigError
from lavis_ext.oscar.datasets.regions import Encoder, cut_pair, tag_text
from lavis_ext.oscar.wordpiece import load_wordpiece
from tests.support.region_data import CLS, SEP, ids, write_vocab


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    """An encoder of at most twelve tokens."""
    return Encoder(load_wordpiece(write_vocab(tmp_path)), 12)


def upstream(first: list[int], second: list[int], most: int) -> tuple[list[int], list[int]]:
    """Oscar's `_truncate_seq_pair`, token by token."""
    first, second = list(first), list(second)
    while len(first) + len(second) > most:
        (first if len(first) > len(second) else second).pop()
    return first, second


def test_a_pair_is_cut_as_upstream_cuts_it() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        first, second = list(range(rng.randrange(40))), list(range(100, 100 + rng.randrange(40)))
        most = rng.randrange(60)
        assert cut_pair(first, second, most) == upstream(first, second, most)


def test_one_text_and_two(encoder: Encoder) -> None:
    assert encoder.pair("the cat", "") == ([CLS, *ids("the cat"), SEP], [0] * 4)
    assert encoder.pair("the cat", "dog ball") == (
        [CLS, *ids("the cat"), SEP, *ids("dog ball"), SEP],
        [0] * 4 + [1] * 3,
    )
    long = " ".join(["cat"] * 30)
    assert encoder.pair(long, "")[0] == [CLS, *ids("cat " * 10), SEP]
    both, types = encoder.pair(long, " ".join(["dog"] * 30))
    assert both == [CLS, *ids("cat " * 5), SEP, *ids("dog " * 4), SEP]
    assert types == [0] * 7 + [1] * 5


def test_an_encoding_never_passes_its_length(encoder: Encoder) -> None:
    rng = random.Random(1)
    for _ in range(500):
        first, second = (ids(" ".join(rng.choices(["cat", "dog", "red"], k=rng.randrange(0, 25)))) for _ in range(2))
        both, types = encoder.caption(first, second)
        assert len(both) == len(types) <= 12
        assert both[0] == CLS
        assert both.count(SEP) == 1 + (1 in types)
        assert both[1 : 1 + min(len(first), 10)] == first[:10]
        kept = types.count(1) - 1 if 1 in types else 0
        assert kept == min(len(second), max(12 - min(len(first), 10) - 3, 0))


def test_a_caption_goes_before_its_tags(encoder: Encoder) -> None:
    caption, tags = ids("cat " * 20), ids("dog ball")
    assert encoder.caption(caption, tags) == ([CLS, *caption[:10], SEP], [0] * 12)
    assert encoder.caption(caption[:8], tags) == ([CLS, *caption[:8], SEP, tags[0], SEP], [0] * 10 + [1] * 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cat;red ball;dog", "cat red ball dog"),
        ("cat dog", "cat dog"),
        ("", ""),
        (None, ""),
        (["cat", {"class": "red ball", "conf": 0.4}], "cat red ball"),
    ],
)
def test_tags(value: object, text: str) -> None:
    assert tag_text(value) == text


@pytest.mark.parametrize("length", [7, 0, "70", 12.0])
def test_a_length_that_holds_no_text(encoder: Encoder, length: object) -> None:
    with pytest.raises(ConfigError, match="max_seq_length"):
        Encoder(encoder.words, length)  # type: ignore[arg-type]
