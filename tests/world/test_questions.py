"""Questions: each has the one answer that geometry gives, recomputed here."""

from __future__ import annotations

from lavis_ext.demo.things import Thing
from lavis_ext.demo.world import World
from tests.support.geometry import answer
from tests.world.questions import count, questions

SCENES = list(World(seed=3, train=250, val=30, test=30, hidden=5))


def test_every_question_has_the_answer_that_geometry_gives() -> None:
    asked = [(scene, q) for scene in SCENES for q in questions(scene)]
    for scene, question in asked:
        assert answer(scene, question.text) == question.answer, (question, scene)
    assert {q.answer_type for _, q in asked} == {"yes/no", "number", "other"}
    assert len(asked) > 10 * len(SCENES)


def test_questions_do_not_repeat_and_both_answers_occur() -> None:
    closed = [q.answer for scene in SCENES for q in questions(scene) if q.answer_type == "yes/no"]
    assert 0.3 < closed.count("yes") / len(closed) < 0.7
    for scene in SCENES:
        texts = [q.text for q in questions(scene)]
        assert len(texts) == len(set(texts))


def test_counts_by_shape_and_colour() -> None:
    things = [
        Thing("circle", "red", "big", 0, 0),
        Thing("circle", "blue", "big", 0, 0),
        Thing("star", "red", "big", 0, 0),
    ]
    assert (count(things), count(things, "circle"), count(things, colour="red"), count(things, "star", "blue")) == (
        3,
        2,
        2,
        0,
    )
