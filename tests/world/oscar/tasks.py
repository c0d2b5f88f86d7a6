"""VQA, GQA and NLVR2 in Oscar's form: rows with object tags and labels, features by image, and the pickled labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lavis_ext.demo.world import Scene, World
from tests.world.nlvr import NLVR_SPLITS, Pair, pairs, some_claims
from tests.world.oscar.forms import (
    Labels,
    Members,
    as_json,
    as_pickle,
    as_tensor,
    as_torch,
    feature_dict,
    number_of,
    text_of,
)
from tests.world.questions import Question, ask, question_id, questions
from tests.world.regions import MASK, Detector, features, tags
from tests.world.vqa import GQA_SPLITS, QUESTIONS, Asked, ask_all, ask_balanced, question_name

OFTEN = 2
"""How often an answer must be the truth to become a label: rows of rarer ones have none, and readers drop them."""
VG_NUMBER = 500
"""Questions of Visual Genome are numbered from here on, so that no id comes twice."""
Row = dict[str, Any]


@dataclass(frozen=True)
class VqaParts:
    """The questions by the published files' names; `vg` are about images of `train`, answered by one person each."""

    train: list[Asked]
    val: list[Asked]
    test: list[Asked]
    vg: list[Asked]

    @classmethod
    def of(cls, world: World) -> VqaParts:
        """Those of VQA v2's export: the scenes of val are held out, all others of train2014 and val2014 train."""
        asker = partial(ask, family="vqav2", number=QUESTIONS)
        known = [one for folder in ("train2014", "val2014") for one in ask_all(world, folder, asker)]
        held_out = {scene.id for scene in world.scenes("val")}
        return cls(
            train=[one for one in known if one.scene.id not in held_out],
            val=[one for one in known if one.scene.id in held_out],
            test=ask_all(world, "test2015", asker),
            vg=ask_all(world, "train2014", ask_vg),
        )

    def scenes(self, *names: str) -> list[Scene]:
        """The images of these parts, each once."""
        return list(dict.fromkeys(one.scene for name in names for one in getattr(self, name)))

    def labels(self) -> Labels:
        """Answers that are often the truth."""
        truths = Counter(one.question.answer for one in (*self.train, *self.val))
        return Labels.of((answer for answer, number in truths.items() if number >= OFTEN), "vqa")


def ask_vg(scene: Scene) -> list[Question]:
    """Visual Genome's questions about a scene."""
    return ask(scene, "vg", QUESTIONS)


def vqa_rows(parts: VqaParts, labels: Labels) -> Iterator[tuple[str, list[Row]]]:
    """(`…_qla_mrcnn.json` without that ending, its rows); answers of the test images are not published."""
    train, val = ([vqa_row(one, labels.scored(one.answers())) for one in part] for part in (parts.train, parts.val))
    vg = [vqa_row(one, labels.scored([one.question.answer] * 10), VG_NUMBER) for one in parts.vg]
    test = [vqa_row(one, ([], [])) for one in parts.test]
    yield "train2014", train
    yield "val2014", val
    yield "train+val2014", train + val
    yield "train2014_vg", train + vg
    yield "vg", vg
    yield "test2015", test
    yield "test-dev2015", test[: len(test) // 4]


def vqa_row(asked: Asked, answer: tuple[list[int], list[float]], offset: int = 0) -> Row:
    """Question, object tags, label ids, their scores, the image, and the question's number."""
    return {
        "q": asked.question.text,
        "o": tags(asked.scene, MASK, ";"),
        "an": answer[0],
        "s": answer[1],
        "img_id": asked.scene.id,
        "q_id": question_id(asked.scene, asked.number + offset),
    }


def vqa_texts(parts: VqaParts) -> Members:
    """The files of rows."""
    for name, rows in vqa_rows(parts, parts.labels()):
        yield f"{name}_qla_mrcnn.json", as_json(rows)


def vqa_features(parts: VqaParts, detector: Detector) -> Members:
    """The files of features."""
    for name, taken in (
        ("train", ["train"]),
        ("val", ["val"]),
        ("train+val", ["train", "val"]),
        ("test2015", ["test"]),
    ):
        yield f"{name}_img_frcnn_feats.pt", feature_dict(parts.scenes(*taken), detector, number_of)


def vqa_labels(parts: VqaParts) -> Members:
    """The two pickles: a dict in the order of the classes, and a list by label id."""
    labels = parts.labels()
    yield "trainval_ans2label.pkl", as_pickle(labels.ids)
    yield "trainval_label2ans.pkl", as_pickle(labels.answers)


def gqa_questions(world: World, split: str, balanced: bool) -> list[tuple[Scene, int, Question]]:
    """(scene, place among its questions, question) of one of GQA's splits."""
    scenes = list(world.scenes(GQA_SPLITS[split]))
    if balanced:
        return [one for scene in scenes for one in ask_balanced(scene)]
    return [(scene, i, question) for scene in scenes for i, question in enumerate(questions(scene))]


def gqa_labels(world: World) -> Labels:
    """All answers of train, val and testdev."""
    splits = ("train", "val", "testdev")
    return Labels.of((q.answer for split in splits for _, _, q in gqa_questions(world, split, False)), "gqa")


def gqa_texts(world: World, detector: Detector) -> Members:
    """The files of rows, balanced and all; those of the submission are without answers."""
    labels = gqa_labels(world)
    for kind in ("bal", "all"):
        for split in ("train", "val", "testdev"):
            asked = gqa_questions(world, split, kind == "bal")
            yield f"gqa_{kind}_qla_{split}.json", as_json(list(gqa_rows(asked, detector, labels)))
    yield "gqa_all_qla_submission.json", as_json(list(gqa_rows(gqa_questions(world, "test", False), detector)))


def gqa_rows(
    asked: Sequence[tuple[Scene, int, Question]], detector: Detector, labels: Labels | None = None
) -> Iterator[Row]:
    """Question, object tags, the label id of its one answer, the image, and the question's id as text."""
    for scene, number, question in asked:
        yield {
            "q": question.text,
            "o": tags(scene, detector, ";"),
            "an": [labels.ids[question.answer]] if labels else [],
            "img_id": text_of(scene),
            "q_id": question_name(scene, number),
        }


def gqa_features(world: Iterable[Scene], detector: Detector) -> Members:
    """One file of features for all splits."""
    yield "gqa_img_frcnn_feats.pt", feature_dict(world, detector, text_of)


def gqa_label_files(world: World) -> Members:
    """The two pickles, both of them dicts."""
    labels = gqa_labels(world)
    yield "trainval_testdev_all_ans2label.pkl", as_pickle(labels.ids)
    yield "trainval_testdev_all_label2ans.pkl", as_pickle(dict(enumerate(labels.answers)))


SIDES = {"left": 0, "right": 1}


def pair_texts(world: World, detector: Detector) -> Members:
    """The files of rows; every second pair counts as balanced."""
    by_split = {
        split: [(pair, row) for pair in pairs(world, split) for row in pair_rows(pair, detector)]
        for split in NLVR_SPLITS
    }
    rows = {split: [row for _, row in found] for split, found in by_split.items()}
    yield "nlvr2_train.json", as_json(rows["train"])
    for split in ("dev", "test1"):
        yield f"nlvr2_{split}.json", as_json(rows[split])
        for name, rest in (("balanced", 0), ("unbalanced", 1)):
            yield f"nlvr2_{name}_{split}.json", as_json([row for p, row in by_split[split] if p.number % 2 == rest])
    yield "nlvr2_dev_test1.json", as_json(rows["dev"] + rows["test1"])


def pair_rows(pair: Pair, detector: Detector) -> Iterator[Row]:
    """Sentence, tags and image of either side, and whether it holds: 1 or 0."""
    for sentence, truth in some_claims(pair):
        yield {
            "q": sentence,
            "o": {side: tags(scene_of(pair, side), detector) for side in SIDES},
            "img_id": {side: image_of(pair, side) for side in SIDES},
            "label": int(truth),
        }


def scene_of(pair: Pair, side: str) -> Scene:
    """The scene on one side."""
    return pair.left if side == "left" else pair.right


def image_of(pair: Pair, side: str) -> str:
    """`nlvr2_dev-850-0-img0`."""
    return f"nlvr2_{pair.name}-img{SIDES[side]}"


def pair_images(world: World) -> Iterator[tuple[str, Scene]]:
    """The id and the scene of every image of every split."""
    for split in NLVR_SPLITS:
        for pair in pairs(world, split):
            yield from ((image_of(pair, side), scene_of(pair, side)) for side in SIDES)


def pair_features(world: World, detector: Detector) -> Members:
    """The features of all splits by the image's name."""
    content = {name: as_tensor(features(scene, detector)) for name, scene in pair_images(world)}
    yield "nlvr2_img_frcnn_feats.pt", as_torch(content)
