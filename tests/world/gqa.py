"""GQA about the scenes: LAVIS' lists of balanced questions, the official dicts, and the archive of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lavis_ext.demo.addresses import url_of
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.scenes import picture_of
from lavis_ext.demo.world import Scene, World
from tests.world.answers import Question, ask, questions

QUESTIONS = 3
SPLITS = {"train": "train", "val": "val", "testdev": "test", "test": "hidden"}
"""GQA's splits, and whose scenes they are about."""
Asked = tuple[Scene, int, Question]
Row = dict[str, Any]


def export_gqa(world: World, mirror: MirrorWriter) -> None:
    """Images, balanced questions in both forms, and all questions of train and val; answers of test are left out."""
    members = [("images/", b""), *((f"images/{scene.id}.jpg", picture_of(scene)) for scene in world)]
    mirror.add_zip(url_of("gqa/images"), members)
    archive: list[tuple[str, bytes]] = []
    for split, scenes in SPLITS.items():
        asked = [one for scene in world.scenes(scenes) for one in ask_balanced(scene)]
        mirror.add_json(url_of(f"gqa/{split}_balanced"), [lavis_row(*one, split != "test") for one in asked])
        official = official_dict(asked, split != "test")
        archive.append((f"{split}_balanced_questions.json", json.dumps(official).encode()))
    mirror.add_zip(url_of("gqa/questions"), archive)
    for name, split in (("train_all_0", "train"), ("val_all", "val")):
        every = [(scene, i, q) for scene in world.scenes(split) for i, q in enumerate(questions(scene))]
        mirror.add_json(url_of(f"gqa/{name}"), official_dict(every))


def ask_balanced(scene: Scene) -> list[Asked]:
    """Some questions about a scene, each with its place among all."""
    every, chosen = questions(scene), ask(scene, "gqa", QUESTIONS)
    return [(scene, i, question) for i, question in enumerate(every) if question in chosen]


def question_name(scene: Scene, number: int) -> str:
    """GQA's question ids are digits in a text, with leading zeros."""
    return f"{scene.id:07d}{number:02d}"


def lavis_row(scene: Scene, number: int, question: Question, answered: bool = True) -> Row:
    """LAVIS' record."""
    told = {"answer": question.answer} if answered else {}
    name = question_name(scene, number)
    return {"question_id": name, "image": f"{scene.id}.jpg", "question": question.text, **told}


def official_dict(asked: Sequence[Asked], answered: bool = True) -> dict[str, Row]:
    """The official records by question id."""
    return {question_name(scene, i): official_row(scene, question, answered) for scene, i, question in asked}


def official_row(scene: Scene, question: Question, answered: bool) -> Row:
    """The keys that the official records have, those of the scene graph left empty."""
    told = {"answer": question.answer, "fullAnswer": f"The answer is {question.answer}."} if answered else {}
    kind = "verify" if question.answer_type == "yes/no" else "query"
    types = {"structural": kind, "semantic": "attr", "detailed": kind}
    return {
        "imageId": str(scene.id),
        "question": question.text,
        **told,
        "isBalanced": True,
        "groups": {"global": None, "local": None},
        "entailed": [],
        "equivalent": [],
        "types": types,
        "semantic": [],
    }
