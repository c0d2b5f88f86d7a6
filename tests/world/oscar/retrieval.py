"""COCO retrieval in Oscar's form: features, captions and tags by image, candidates to rank again, lists of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

from lavis_ext.demo.world import Scene, World
from tests.world.oscar.forms import Members, as_torch, feature_dict, number_of
from tests.world.regions import Detector, detect, tags

SPLITS = {"train": "train", "minival": "val", "test": "test"}
"""Oscar's names of splits, and whose scenes they are about."""
CANDIDATES = 20


def retrieval_texts(world: World) -> Members:
    """Captions of each split (train as lists, the others as JSON), the candidates of minival, and the test images."""
    for split, scenes in SPLITS.items():
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
    for split, name in SPLITS.items():
        scenes = list(world.scenes(name))
        yield f"{split}_img_frcnn_feats.pt", feature_dict(scenes, detector, number_of)
        as_text = {scene.id: tags(scene, detector) for scene in scenes}
        as_list = {scene.id: [found.record() for found in detect(scene, detector)] for scene in scenes}
        yield f"{split}_vg_labels.pt", as_torch(as_list if split == "test" else as_text)
