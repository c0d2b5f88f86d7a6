"""Answers sorted by kind: what counts as which, and the tables made of it."""

from __future__ import annotations

import pytest

from lavis_ext.metrics.vqa import breakdown, kind_of, opening_of, score_answers, vqa_score


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Yes", "yes/no"),
        ("no.", "yes/no"),
        ("yes it is", "other"),
        ("2", "number"),
        ("seven", "number"),
        ("10:30", "number"),
        ("1,000", "number"),
        ("2 dogs", "other"),
        ("", "other"),
        ("red", "other"),
    ],
)
def test_kind_of_an_answer(answer: str, kind: str) -> None:
    assert kind_of(answer) == kind


@pytest.mark.parametrize(
    ("question", "opening"),
    [
        ("How many dogs are there?", "how many"),
        ("What's on it?", "what's"),
        ("Is the dog wet?", "is the"),
        ("Where is it?", "where"),
        ("Why?", "why"),
        ("What", "what"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_opening_of_a_question(question: str, opening: str) -> None:
    assert opening_of(question) == opening


def test_the_truth_is_what_most_people_said() -> None:
    given = {1: ["two", "2", "2"], 2: ["red"], 3: []}
    found = score_answers({1: "3", 2: "red", 3: "x", 4: "y"}, given, {2: "colour"}, {1: "how many"}, vqa_score)
    assert [(one.truth, one.kind, one.opening) for one in found] == [("2", "number", "how many"), ("red", "colour", "")]
    assert [one.score for one in found] == [0.0, 1.0]


def test_tables() -> None:
    given = {i: ["yes"] * 10 for i in range(3)} | {i: ["2"] * 10 for i in range(3, 5)}
    said = {0: "yes", 1: "no", 2: "no", 3: "yes", 4: "2"}
    found = breakdown(score_answers(said, given, {}, dict.fromkeys(given, "is it"), vqa_score))
    assert found["questions"] == 5
    assert found["answer_types"] == [
        {"name": "yes/no", "questions": 3, "accuracy": 33.33},
        {"name": "number", "questions": 2, "accuracy": 50.0},
    ]
    assert found["question_types"] == [{"name": "is it", "questions": 5, "accuracy": 40.0}]
    assert found["confusion"] == {"yes/no": {"yes/no": 3}, "number": {"yes/no": 1, "number": 1}}
    assert found["mistakes"][0] == {"type": "yes/no", "truth": "yes", "said": "no", "questions": 2}
    assert len(found["mistakes"]) == 2


def test_nothing_gives_empty_tables() -> None:
    found = breakdown([])
    assert found["questions"] == 0
    assert not (found["answer_types"] or found["confusion"] or found["mistakes"])
