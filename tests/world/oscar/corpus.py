"""Oscar+'s pre-training corpora: rows of image, label and text, and a YAML that says where labels and features lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lavis_ext.demo.world import Scene
from tests.world.gqa import ask_balanced, question_name
from tests.world.oscar.forms import Images, Members, as_json, as_yaml, prediction_rows, row, table
from tests.world.oscar.tables import row_numbers, shared
from tests.world.regions import X152C4

SMALL = ("coco", "flickr30k", "gqa")
CORPORA = {"small": SMALL, "medium": (*SMALL, "oi"), "large": ("coco", "flickr30k", "googlecc", "gqa", "sbu", "oi")}
CHUNKS = 2
"""Into how many folders the images of `googlecc`, `sbu` and `oi` are shared out (upstream: 12, 4 and 8)."""
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
