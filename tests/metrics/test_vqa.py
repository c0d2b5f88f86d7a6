"""VQA answers: the official normalisation and score."""

from __future__ import annotations

import pytest

from lavis_ext.metrics.vqa import normalize_vqa_answer, strip_punctuation, vqa_score


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("1,000", "1000"),
        ("left-hand side", "left hand side"),
        ("a.b", "ab"),
        ("3.5", "3.5"),
        ("ten o'clock", "10 o'clock"),
        ("ten oclock", "10 o'clock"),
        ("The Dog.", "dog"),
        ("none", "0"),
        ("yes, sir", "yes sir"),
        ("red,blue", "red blue"),
        ("what?", "what"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("twas", "'twas"),
        ("yallll", "yallll"),
        ("Im here", "im here"),
        ("a\nb\tc ", "b c"),
        ("$5", "$5"),
        ("", ""),
        ("the", ""),
        ("an", ""),
        ("an apple", "apple"),
        ("An Apple and a pear", "apple and pear"),
        ("banana than another", "banana than another"),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalize_vqa_answer(text) == normal


def test_a_mark_beside_a_space_is_removed_everywhere() -> None:
    assert normalize_vqa_answer("t-shirt - red") == "tshirt red"
    assert normalize_vqa_answer("1,000-2") == "10002"


def test_the_official_code_removes_32_periods_and_no_more() -> None:
    """It passes `re.UNICODE`, which is 32, where the count belongs."""
    assert strip_punctuation("." * 32) == ""
    assert strip_punctuation("." * 40) == "." * 8


@pytest.mark.parametrize(("agree", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_the_mean_over_annotators(agree: int, score: float) -> None:
    """With n of 10 agreeing, each of them sees n - 1 others, the rest see n."""
    answers = ["red"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert vqa_score("Red", answers) == pytest.approx(score)


def test_annotators_lose_their_punctuation_only_where_they_differ() -> None:
    assert vqa_score("left hand", ["left-hand"] * 10) == 0
    assert vqa_score("left hand", ["left-hand"] * 9 + ["right"]) == 1
    assert vqa_score("anything", []) == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_annotators_score_by_exact_match(count: int) -> None:
    assert vqa_score("two", ["2"] * count) == vqa_score("A cat.", ["cat", *["dog"] * (count - 1)]) == 1
    assert vqa_score("red", ["2"] * count) == 0
    assert vqa_score("2", ["2", "other 1", "other 2", "other 3"]) < 0.5
