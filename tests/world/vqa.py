"""VQA v2, OK-VQA, A-OKVQA and GQA about the scenes, in the form of their authors and in that of LAVIS."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from lavis_ext.demo.coco import coco_folders, draw_jpeg, image_path
from lavis_ext.demo.mirror import MirrorWriter, url_of
from lavis_ext.demo.world import Scene, World, pick, pick_several
from tests.world.questions import Question, ask, choose, knowledge, poll, pool_of, question_id, questions, vocabulary

QUESTIONS = 3
ABOUT = {"info": {"description": "a drawn world", "version": "2.0"}, "data_type": "mscoco", "license": {"name": "none"}}
Row = dict[str, Any]
Asker = Callable[[Scene], list[Question]]


@dataclass(frozen=True)
class Asked:
    """A question about a scene in one of COCO's folders."""

    scene: Scene
    folder: str
    number: int
    question: Question

    @property
    def id(self) -> int:
        """Its number."""
        return question_id(self.scene, self.number)

    @property
    def image(self) -> str:
        """The name of the picture below coco/images."""
        return image_path(self.folder, self.scene.id)

    def answers(self) -> list[str]:
        """What ten people said."""
        return poll(self.question.answer, self.id)


def ask_all(world: World, folder: str, asker: Asker) -> list[Asked]:
    """The questions about every scene of a folder."""
    scenes = coco_folders(world)[folder]
    return [Asked(scene, folder, i, question) for scene in scenes for i, question in enumerate(asker(scene))]


def export_vqav2(world: World, mirror: MirrorWriter) -> None:
    """Five official archives, and what LAVIS hosts in their place; the answers of test2015 are not published."""
    asker = partial(ask, family="vqav2", number=QUESTIONS)
    train, val, test = (ask_all(world, folder, asker) for folder in ("train2014", "val2014", "test2015"))
    add_official(mirror, "vqav2", {"train": train, "val": val}, "v2_")
    name = "v2_OpenEnded_mscoco_{}_questions.json"
    development = test[: len(test) // 4]
    members = [
        (name.format(subset), json.dumps(official_questions(some, subset)).encode())
        for subset, some in (("test2015", test), ("test-dev2015", development))
    ]
    mirror.add_zip(url_of("vqav2/questions_test"), members)
    mirror.add_json(url_of("vqav2/lavis_val"), lavis_rows(val))
    mirror.add_json(url_of("vqav2/lavis_test"), lavis_rows(test, answered=False))
    add_lavis(mirror, "vqav2", train, val)


def export_okvqa(world: World, mirror: MirrorWriter) -> None:
    """Questions that need knowledge, about train2014 and, as its test, val2014."""
    train, val = (ask_all(world, folder, ask_knowledge) for folder in ("train2014", "val2014"))
    add_official(mirror, "okvqa", {"train": train, "val": val}, "")
    add_lavis(mirror, "okvqa", train, val)


def ask_knowledge(scene: Scene) -> list[Question]:
    """One or two questions."""
    found = knowledge(scene)
    return pick_several(Random(f"questions/okvqa/{scene.id}"), found, min(2, len(found)))


def add_official(mirror: MirrorWriter, family: str, splits: dict[str, list[Asked]], prefix: str) -> None:
    """Questions and answers of each split, every file in an archive of its own."""
    for split, asked in splits.items():
        subset = f"{split}2014"
        questions, answers = official_questions(asked, subset), official_answers(asked, subset)
        for kind, middle, content in (("questions", "OpenEnded_", questions), ("annotations", "", answers)):
            name = f"{prefix}{middle}mscoco_{subset}_{kind}.json"
            mirror.add_zip(url_of(f"{family}/{kind}_{split}"), [(name, json.dumps(content).encode())])


def add_lavis(mirror: MirrorWriter, family: str, train: Sequence[Asked], val: Sequence[Asked]) -> None:
    """LAVIS' form of training and validation, with the official files that its evaluation reads."""
    mirror.add_json(url_of(f"{family}/lavis_train"), lavis_rows(train))
    mirror.add_json(url_of(f"{family}/lavis_val_eval"), lavis_rows(val))
    said = [answer for one in (*train, *val) for answer in one.answers()]
    mirror.add_json(url_of(f"{family}/lavis_answer_list"), vocabulary(said))
    mirror.add_json(url_of(f"{family}/lavis_questions_val"), official_questions(val, "val2014"))
    mirror.add_json(url_of(f"{family}/lavis_annotations_val"), official_answers(val, "val2014"))


def official_questions(asked: Sequence[Asked], subset: str) -> Row:
    """The form of visualqa.org: a head, and `questions` with image_id, question, question_id."""
    rows = [{"image_id": a.scene.id, "question": a.question.text, "question_id": a.id} for a in asked]
    return {**ABOUT, "task_type": "Open-Ended", "data_subtype": subset, "questions": rows}


def official_answers(asked: Sequence[Asked], subset: str) -> Row:
    """The form of visualqa.org: a head, and `annotations` with ten answers each."""
    return {**ABOUT, "data_subtype": subset, "annotations": [official_answer(one) for one in asked]}


def official_answer(asked: Asked) -> Row:
    """The record of one question; an answer that differs was given with less confidence."""
    said = asked.answers()
    truth = Counter(said).most_common(1)[0][0]
    answers = [
        {"answer": one, "raw_answer": one, "answer_confidence": "yes" if one == truth else "maybe", "answer_id": i}
        for i, one in enumerate(said, 1)
    ]
    return {
        "question_id": asked.id,
        "image_id": asked.scene.id,
        "question_type": " ".join(asked.question.text.lower().split()[:2]),
        "answer_type": asked.question.answer_type,
        "multiple_choice_answer": truth,
        "answers": answers,
    }


def lavis_rows(asked: Sequence[Asked], answered: bool = True) -> list[Row]:
    """LAVIS' list: question_id, question, image, dataset and, where published, the ten answers."""
    return [
        {
            "question_id": one.id,
            "question": one.question.text,
            **({"answer": one.answers()} if answered else {}),
            "image": one.image,
            "dataset": "vqa",
        }
        for one in asked
    ]


def export_aokvqa(world: World, mirror: MirrorWriter) -> None:
    """One question a scene with four choices; the official archive names images by number, LAVIS' files by path."""
    members: list[tuple[str, bytes]] = []
    said: list[str] = []
    for split, folder in (("train", "train2014"), ("val", "val2014"), ("test", "test2015")):
        asked = ask_all(world, folder, ask_with_choices)
        rows = [choice_row(one, split) for one in asked]
        named = [{**row, "image": one.image} for row, one in zip(rows, asked, strict=True)]
        mirror.add_json(url_of(f"aokvqa/{split}"), named)
        members.append((f"aokvqa_v1p0_{split}.json", json.dumps(rows).encode()))
        said += [answer for one in asked if split == "train" for answer in one.answers()]
    mirror.add_json(url_of("aokvqa/vocabulary"), vocabulary(said))
    mirror.add_tar_gz(url_of("aokvqa/official"), members)


def ask_with_choices(scene: Scene) -> list[Question]:
    """One question that has at least four possible answers."""
    found = [question for question in knowledge(scene) + questions(scene) if len(pool_of(question.answer)) > 3]
    return [pick(Random(f"questions/aokvqa/{scene.id}"), found)]


def choice_row(asked: Asked, split: str) -> Row:
    """The authors' record; that of test holds neither the right choice nor answers nor rationales."""
    choices = choose(asked.question.answer, asked.id)
    row: Row = {
        "split": split,
        "image_id": asked.scene.id,
        "question_id": f"drawn{asked.id:017d}",
        "question": asked.question.text,
        "choices": choices,
    }
    if split == "test":
        return row
    answers = {"correct_choice_idx": choices.index(asked.question.answer), "direct_answers": asked.answers()}
    return {**row, **answers, "difficult_direct_answer": False, "rationales": asked.scene.captions()[:3]}


GQA_SPLITS = {"train": "train", "val": "val", "testdev": "test", "test": "hidden"}
"""GQA's splits, and whose scenes they are about."""
Balanced = tuple[Scene, int, Question]


def export_gqa(world: World, mirror: MirrorWriter) -> None:
    """Images, balanced questions in both forms, and all questions of train and val; answers of test are left out."""
    members = [("images/", b""), *((f"images/{scene.id}.jpg", draw_jpeg(scene)) for scene in world)]
    mirror.add_zip(url_of("gqa/images"), members)
    archive: list[tuple[str, bytes]] = []
    for split, scenes in GQA_SPLITS.items():
        asked = [one for scene in world.scenes(scenes) for one in ask_balanced(scene)]
        mirror.add_json(url_of(f"gqa/{split}_balanced"), [lavis_row(*one, split != "test") for one in asked])
        official = official_dict(asked, split != "test")
        archive.append((f"{split}_balanced_questions.json", json.dumps(official).encode()))
    mirror.add_zip(url_of("gqa/questions"), archive)
    for name, split in (("train_all_0", "train"), ("val_all", "val")):
        every = [(scene, i, q) for scene in world.scenes(split) for i, q in enumerate(questions(scene))]
        mirror.add_json(url_of(f"gqa/{name}"), official_dict(every))


def ask_balanced(scene: Scene) -> list[Balanced]:
    """Some questions about a scene, each with its place among all."""
    every, chosen = questions(scene), ask(scene, "gqa", QUESTIONS)
    return [(scene, i, question) for i, question in enumerate(every) if question in chosen]


def question_name(scene: Scene, number: int) -> str:
    """GQA's question ids are digits in a text, with leading zeros."""
    return f"{scene.id:07d}{number:02d}"


def lavis_row(scene: Scene, number: int, question: Question, answered: bool = True) -> Row:
    """LAVIS' record."""
    row = {"question_id": question_name(scene, number), "image": f"{scene.id}.jpg", "question": question.text}
    return {**row, "answer": question.answer} if answered else row


def official_dict(asked: Sequence[Balanced], answered: bool = True) -> dict[str, Row]:
    """The official records by question id."""
    return {question_name(scene, i): official_row(scene, question, answered) for scene, i, question in asked}


def official_row(scene: Scene, question: Question, answered: bool) -> Row:
    """The keys that the official records have, those of the scene graph left empty."""
    answer = {"answer": question.answer, "fullAnswer": f"The answer is {question.answer}."} if answered else {}
    kind = "verify" if question.answer_type == "yes/no" else "query"
    types = {"structural": kind, "semantic": "attr", "detailed": kind}
    return {
        "imageId": str(scene.id),
        "question": question.text,
        **answer,
        "isBalanced": True,
        "groups": {"global": None, "local": None},
        "entailed": [],
        "equivalent": [],
        "types": types,
        "semantic": [],
    }
