"""Visual Genome about the scenes: a phrase for each thing, questions, and images in its two folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lavis_ext.demo.addresses import url_of
from lavis_ext.demo.language import sized
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.scenes import picture_of
from lavis_ext.demo.world import Scene, World
from tests.world.answers import ask

QUESTIONS = 3
ELSEWHERE = "/export/share/datasets/vision/visual-genome/image"
"""The private folder that LAVIS' list of captions names."""
FOLDERS = {"images": "VG_100K", "images2": "VG_100K_2"}
Row = dict[str, Any]


def export_vg(world: World, mirror: MirrorWriter) -> None:
    """Captions and questions about the training scenes; every third image lies in the second archive."""
    scenes = list(world.scenes("train"))
    parts = {"images": [s for i, s in enumerate(scenes) if i % 3 < 2], "images2": scenes[2::3]}
    for name, folder in FOLDERS.items():
        members = [(f"{folder}/", b""), *((f"{folder}/{s.id}.jpg", picture_of(s)) for s in parts[name])]
        mirror.add_zip(url_of(f"vg/{name}"), members)
    mirror.add_json(url_of("vg/caption"), [row for scene in scenes for row in caption_rows(scene)])
    mirror.add_json(url_of("vg/qa"), [row for scene in scenes for row in question_rows(scene)])
    members = [("question_answers.json", json.dumps(official_questions(scenes)).encode())]
    mirror.add_zip(url_of("vg/question_answers"), members)


def caption_rows(scene: Scene) -> list[Row]:
    """LAVIS' records of the regions of a scene."""
    named = {"image": f"{ELSEWHERE}/{scene.id}.jpg", "image_id": f"vg_{scene.id}", "dataset": "vg"}
    return [{**named, "caption": sized(thing)} for thing in scene.things]


def question_rows(scene: Scene) -> list[Row]:
    """LAVIS' records of the questions about a scene: another name for the same image."""
    return [
        {
            "question_id": qa["qa_id"],
            "question": qa["question"],
            "answer": qa["answer"],
            "image": f"image/{scene.id}.jpg",
            "dataset": "vg",
        }
        for qa in pairs(scene)
    ]


def official_questions(scenes: Sequence[Scene]) -> list[Row]:
    """The authors' `question_answers.json`: all questions about an image in one record."""
    return [{"id": scene.id, "qas": pairs(scene)} for scene in scenes]


def pairs(scene: Scene) -> list[Row]:
    """The authors' records of questions with their answers, which are sentences with a full stop."""
    asked = ask(scene, "vg", QUESTIONS)
    return [
        {
            "image_id": scene.id,
            "qa_id": scene.id * 100 + i,
            "question": question.text,
            "answer": f"{question.answer.capitalize()}.",
            "a_objects": [],
            "q_objects": [],
        }
        for i, question in enumerate(asked)
    ]
