"""Texts about images in Oscar's form: captioning, nocaps, retrieval, and Oscar+'s pre-training corpora."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random
from typing import Any

from lavis_ext.demo.language import plural
from lavis_ext.demo.things import HEIGHT, SHAPES, WIDTH
from lavis_ext.demo.world import Scene, World
from tests.world.families import NOVEL, image_row
from tests.world.oscar.forms import (
    Images,
    Members,
    as_json,
    as_pickle,
    as_torch,
    as_yaml,
    by_id,
    caption_rows,
    feature_dict,
    label_rows,
    number_of,
    prediction_rows,
    row,
    row_numbers,
    shared,
    size_rows,
    table,
    text_of,
)
from tests.world.regions import MASK, X152C4, Detector, detect, tags
from tests.world.vqa import ask_balanced, question_name

CAPTION_SPLITS = ("train", "val", "test")
LONGEST = 4
"""Words of the longest run that CIDEr-D counts."""
SIGN = re.compile(r"[^\w\s]")


def captioning_members(world: World, detector: Detector) -> Members:
    """Everything of the three splits, and the frequencies of words that CIDEr-D is trained with."""
    for split in CAPTION_SPLITS:
        scenes = list(world.scenes(split))
        names, files = split_files(split, by_id(scenes), detector)
        yield f"{split}.yaml", as_yaml({**names, "caption": f"{split}_caption.json"})
        yield from files
        yield f"{split}_caption.json", as_json([*captions_of(scenes)])
        yield f"{split}_caption_coco_format.json", as_json(coco_format(scenes))
    yield "coco-train-words.p", as_pickle(word_frequencies(list(world.scenes("train"))))


def split_files(split: str, images: Images, detector: Detector) -> tuple[dict[str, str], Members]:
    """A split's files by what its YAML calls them, and the tables; the one of the images themselves is nowhere."""
    names = {"img": f"{split}.img.tsv", **{key: f"{split}.{key}.tsv" for key in ("hw", "label", "feature")}}
    rows = {"hw": size_rows(images), "label": label_rows(images, detector), "feature": caption_rows(images, detector)}
    return names, chain.from_iterable(table(f"{split}.{key}", found) for key, found in rows.items())


def captions_of(scenes: Iterable[Scene]) -> Iterator[dict[str, Any]]:
    """One record a caption; images by the text that the tables hold."""
    said = ((scene, caption) for scene in scenes for caption in scene.captions())
    return ({"image_id": text_of(scene), "id": number, "caption": text} for number, (scene, text) in enumerate(said))


def coco_format(scenes: Iterable[Scene]) -> dict[str, Any]:
    """The same captions in COCO's form."""
    known = list(scenes)
    images = [{"id": text_of(s), "file_name": f"{s.id}.jpg", "height": HEIGHT, "width": WIDTH} for s in known]
    return {
        "annotations": [*captions_of(known)],
        "images": images,
        "type": "captions",
        "info": {"description": "a drawn world"},
        "licenses": [],
    }


def word_frequencies(scenes: Sequence[Scene]) -> dict[str, Any]:
    """`ref_len`: how many images; `document_frequency`: in how many of them a run of one to four words is said."""
    found: Counter[tuple[str, ...]] = Counter()
    for scene in scenes:
        found.update({run for caption in scene.captions() for run in runs(SIGN.sub(" ", caption.lower()).split())})
    return {"ref_len": float(len(scenes)), "document_frequency": {run: float(found[run]) for run in sorted(found)}}


def runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All runs of one to four words."""
    for length in range(1, LONGEST + 1):
        yield from (tuple(words[at : at + length]) for at in range(len(words) - length + 1))


CONSTRAINTS = {
    "cbs_constraint": "constraint2tokens.tsv",
    "cbs_tokenforms": "tokenforms.tsv",
    "cbs_hierarchy": "hierarchy.json",
}


def novel_members(world: World) -> Members:
    """Both splits, their lists of images, and the files of constraints; images go by nocaps' own number."""
    for split in ("val", "test"):
        images = {str(number): scene for number, scene in enumerate(world.scenes(split))}
        names, files = split_files(split, images, X152C4)
        yield f"{split}.yaml", as_yaml({**names, "cbs_box": f"{split}.cbs_box.tsv", **CONSTRAINTS})
        yield from files
        yield from table(f"{split}.cbs_box", label_rows(images, MASK))
        info = {"info": {"description": "a drawn world"}, "licenses": []}
        rows = [image_row(scene, number) for number, scene in enumerate(images.values())]
        yield f"nocaps_{split}_image_info.json", as_json({**info, "images": rows})
    yield CONSTRAINTS["cbs_constraint"], b"".join(row(shape, shape) for shape in SHAPES)
    yield CONSTRAINTS["cbs_tokenforms"], b"".join(row(shape, f"{shape},{plural(shape)}") for shape in SHAPES)
    yield CONSTRAINTS["cbs_hierarchy"], as_json(hierarchy())


def hierarchy() -> dict[str, object]:
    """Classes as a tree: shapes that COCO's captions know and those that they do not."""
    known = [{"LabelName": shape} for shape in SHAPES if shape not in NOVEL]
    novel = [{"LabelName": shape} for shape in SHAPES if shape in NOVEL]
    novel_shape = {"LabelName": "novel shape", "Subcategory": novel}
    return {"LabelName": "shape", "Subcategory": [*known, novel_shape]}


RETRIEVAL_SPLITS = {"train": "train", "minival": "val", "test": "test"}
"""Oscar's names of splits, and whose scenes they are about."""
CANDIDATES = 20


def retrieval_texts(world: World) -> Members:
    """Captions of each split (train as lists, the others as JSON), the candidates of minival, and the test images."""
    for split, scenes in RETRIEVAL_SPLITS.items():
        said = {scene.id: scene.captions() for scene in world.scenes(scenes)}
        yield f"{split}_captions.pt", as_torch(said if split == "train" else dict_of_json(said))
    minival, test = (list(world.scenes(name)) for name in ("val", "test"))
    yield "minival_caption_indexs_top20.pt", as_torch(dict_of_json(candidates(minival)))
    for name, taken in (("test_img_keys_1k", test[: -(-len(test) // 5)]), ("test_img_keys", test)):
        yield f"{name}.tsv", "".join(f"{scene.id}\n" for scene in taken).encode()


def dict_of_json(content: dict[int, list[str]] | dict[int, list[tuple[int, int]]]) -> dict[int, str]:
    """Each value as JSON text."""
    return {key: json.dumps(value) for key, value in content.items()}


def candidates(scenes: Sequence[Scene]) -> dict[int, list[tuple[int, int]]]:
    """For each image the captions (image, number) that share most words with its own: its own and those near to it."""
    bags = {(scene.id, i): bag(text) for scene in scenes for i, text in enumerate(scene.captions())}
    found = {}
    for scene in scenes:
        own = set().union(*(words for (image, _), words in bags.items() if image == scene.id))
        rng = Random(f"candidates/{scene.id}")
        shared = {key: len(words & own) / len(words) + 0.3 * rng.random() for key, words in bags.items()}
        found[scene.id] = sorted(shared, key=shared.__getitem__, reverse=True)[:CANDIDATES]
    return found


def reachable(scenes: Sequence[Scene]) -> float:
    """Recall at 1 of captions, in percent, of one who knows the scenes, expected over ties.

    Scenes look alike, so other images' captions say what an image's own say. Among candidates of the same words as an
    own caption there is nothing to choose by.
    """
    known, total = {scene.id: list(map(plain, scene.captions())) for scene in scenes}, 0.0
    for image, found in candidates(scenes).items():
        fitting = [other for other, number in found if known[other][number] in known[image]]
        total += fitting.count(image) / max(len(fitting), 1)
    return 100 * total / len(scenes)


def bag(caption: str) -> set[str]:
    """The words of a caption."""
    return set(plain(caption).replace(",", "").split())


def plain(caption: str) -> str:
    """A caption without what annotators do differently."""
    return caption.lower().rstrip(" .")


def retrieval_features(world: World, detector: Detector) -> Members:
    """Features and tags of each split; the tags as text, those of test as lists of objects."""
    for split, name in RETRIEVAL_SPLITS.items():
        scenes = list(world.scenes(name))
        yield f"{split}_img_frcnn_feats.pt", feature_dict(scenes, detector, number_of)
        as_text = {scene.id: tags(scene, detector) for scene in scenes}
        as_list = {scene.id: [found.record() for found in detect(scene, detector)] for scene in scenes}
        yield f"{split}_vg_labels.pt", as_torch(as_list if split == "test" else as_text)


SMALL = ("coco", "flickr30k", "gqa")
CORPORA = {"small": SMALL, "medium": (*SMALL, "oi"), "large": ("coco", "flickr30k", "googlecc", "gqa", "sbu", "oi")}
CHUNKS = 2
"""Into how many folders the images of `googlecc`, `sbu` and `oi` are divided (upstream: 12, 4 and 8)."""
PREFIX = {"googlecc": "cc"}
"""What a row calls a set of images that has another name elsewhere."""


@dataclass(frozen=True)
class Source:
    """A set of images: where its features lie below `vinvl/`, its images, and whether they are in chunks."""

    folder: str
    images: Images
    chunked: bool = False


def corpus(sources: Mapping[str, Source], names: Iterable[str]) -> bytes:
    """`{corpus}.tsv`: image key, label key, text; a label key with `qa` in it ends with the id of a question."""
    return b"".join(line for name in names for line in rows_of(name, sources[name]))


def rows_of(name: str, source: Source) -> Iterator[bytes]:
    """The rows of one set, about its training images alone: questions of GQA, captions of the others."""
    said = question_row if name == "gqa" else caption_row
    parts = shared(source.images, CHUNKS) if source.chunked else [source.images]
    for number, part in enumerate(parts):
        stem = f"{PREFIX.get(name, name)}_train" + (f"_{number}" if source.chunked else "")
        trained = {key: scene for key, scene in part.items() if scene.split == "train"}
        yield from (row(*cells) for key, scene in trained.items() for cells in said(stem, key, scene))


def caption_row(stem: str, key: str, scene: Scene) -> Iterator[tuple[str, str, str]]:
    """Each caption with the tags of its image."""
    yield from ((f"{stem}_{key}", f"{stem}_{key}", caption) for caption in scene.captions())


def question_row(stem: str, key: str, scene: Scene) -> Iterator[tuple[str, str, str]]:
    """Each question with its answer."""
    for owner, number, question in ask_balanced(scene):
        yield f"{stem}_{key}", f"{stem}_qa_{key}_{question_name(owner, number)}", question.text


def corpus_yaml(file: str, sources: Mapping[str, Source], names: tuple[str, ...]) -> bytes:
    """`{corpus}_x152c4big2exp168.yaml`; labels are found from its own folder, features from `vinvl/`."""
    return as_yaml(
        {
            "corpus": "_".join(names),
            "corpus_file": file,
            "image_label_path": {name: f"../{sources[name].folder}" for name in names},
            "image_feature_path": {name: sources[name].folder for name in names},
        }
    )


def label_folder(name: str, source: Source) -> Members:
    """What pre-training reads beside the features: predictions with the truth, row numbers, answers of questions."""
    yield from table("predictions_gt", prediction_rows(source.images, X152C4, truth=True))
    if source.chunked:
        yield "imageid2idx.json", row_numbers(list(source.images))
    if name == "gqa":
        yield from answer_table(source.images)


def answer_table(images: Images) -> Members:
    """`QA_fileB.tsv`: question id, JSON with `labels`; `QA_qaid2idx.json`: in which row."""
    asked = [one for scene in images.values() for one in ask_balanced(scene)]
    ids = [question_name(scene, number) for scene, number, _ in asked]
    rows = (row(name, as_json({"labels": [one[2].answer]}).decode()) for name, one in zip(ids, asked, strict=True))
    yield from table("QA_fileB", rows)
    yield "QA_qaid2idx.json", row_numbers(ids)
