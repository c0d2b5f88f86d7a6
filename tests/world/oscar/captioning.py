"""COCO captioning in Oscar's form: for each split a YAML, tables of features, tags and sizes, and captions twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from lavis_ext.demo.things import HEIGHT, WIDTH
from lavis_ext.demo.world import Scene, World
from tests.world.oscar.forms import (
    Images,
    Members,
    as_json,
    as_pickle,
    as_yaml,
    by_id,
    caption_rows,
    label_rows,
    size_rows,
    table,
    text_of,
)
from tests.world.regions import Detector

SPLITS = ("train", "val", "test")
LONGEST = 4
"""Words of the longest run that CIDEr-D counts."""
SIGN = re.compile(r"[^\w\s]")


def captioning_members(world: World, detector: Detector) -> Members:
    """Everything of the three splits, and the frequencies of words that CIDEr-D is trained with."""
    for split in SPLITS:
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
