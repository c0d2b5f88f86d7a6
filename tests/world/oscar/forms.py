"""The forms of Oscar's and VinVL's files: pickles, JSON, rows with their side files, feature folders, labels."""

from __future__ import annotations

import io
import json
import pickle
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from lavis_ext.demo.things import HEIGHT, WIDTH
from lavis_ext.demo.world import Scene, pick_several
from tests.world.regions import MASK, X152C4, Array, Detector, detect, features

PROTOCOL = 2
"""Of the pickles, as Python 2 wrote them."""
Members = Iterator[tuple[str, bytes]]
"""(relative name, content) of files."""
Images = Mapping[str, Scene]
"""Image id → scene."""


def as_json(value: Any) -> bytes:
    """A value as JSON."""
    return json.dumps(value).encode()


def as_pickle(value: Any) -> bytes:
    """Plain values as a pickle."""
    return pickle.dumps(value, PROTOCOL)


def as_torch(value: Any) -> bytes:
    """What `torch.save` writes."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=PROTOCOL)
    return buffer.getvalue()


def as_yaml(value: Mapping[str, Any]) -> bytes:
    """A flat mapping of text, or of mappings of text, as YAML."""
    lines: list[str] = []
    for key, entry in value.items():
        inner = entry.items() if isinstance(entry, Mapping) else ()
        lines += [f"{key}:" if inner else f"{key}: {entry}", *(f"  {name}: {text}" for name, text in inner)]
    return "".join(f"{line}\n" for line in lines).encode()


def feature_dict(scenes: Iterable[Scene], detector: Detector, key: Callable[[Scene], int | str]) -> bytes:
    """`*_feats.pt`: image id → float32 tensor [regions, 2054]."""
    return as_torch({key(scene): as_tensor(features(scene, detector)) for scene in scenes})


def as_tensor(array: Array) -> Any:
    """A tensor with the same numbers."""
    import torch

    return torch.from_numpy(array.copy())


def number_of(scene: Scene) -> int:
    """The id of an image as a number."""
    return scene.id


def text_of(scene: Scene) -> str:
    """The id of an image as text."""
    return str(scene.id)


def by_id(scenes: Iterable[Scene]) -> Images:
    """The scenes by their ids as text."""
    return {text_of(scene): scene for scene in scenes}


def encoded(scene: Scene, detector: Detector) -> str:
    """The features of an image in base64."""
    return b64encode(features(scene, detector).tobytes()).decode()


def wide_rows(images: Images, detector: Detector) -> Iterator[bytes]:
    """Rows of `features.tsv`: image id, number of boxes, base64."""
    for name, scene in images.items():
        yield row(name, str(len(detect(scene, detector))), encoded(scene, detector))


def caption_rows(images: Images, detector: Detector) -> Iterator[bytes]:
    """Rows of `*.feature.tsv`: image id, JSON with `num_boxes` and `features` in base64."""
    for name, scene in images.items():
        value = {"num_boxes": len(detect(scene, detector)), "features": encoded(scene, detector)}
        yield row(name, json.dumps(value))


def label_rows(images: Images, detector: Detector) -> Iterator[bytes]:
    """Rows of `*.label.tsv`: image id, JSON list of class, conf, rect."""
    for name, scene in images.items():
        yield row(name, json.dumps(objects(scene, detector)))


def prediction_rows(images: Images, detector: Detector, truth: bool = False) -> Iterator[bytes]:
    """Rows of `predictions.tsv`: image id, JSON with `image_h`, `image_w`, `objects`; with `gt_objects` if `truth`."""
    for name, scene in images.items():
        known = {"gt_objects": [found.truth() for found in detect(scene, MASK)]} if truth else {}
        value = {"image_h": HEIGHT, "image_w": WIDTH, "objects": objects(scene, detector), **known}
        yield row(name, json.dumps(value))


def objects(scene: Scene, detector: Detector) -> list[dict[str, Any]]:
    """The records of an image's regions."""
    return [found.record() for found in detect(scene, detector)]


def size_rows(images: Images) -> Iterator[bytes]:
    """Rows of `*.hw.tsv`: image id, JSON list with one height and width."""
    for name in images:
        yield row(name, json.dumps([{"height": HEIGHT, "width": WIDTH}]))


def row(*cells: str) -> bytes:
    """One line of tab-separated text."""
    return "\t".join(cells).encode() + b"\n"


def table(stem: str, rows: Iterable[bytes]) -> Members:
    """`STEM.tsv`, and `STEM.lineidx` with the byte offset of each row."""
    whole = list(rows)
    yield f"{stem}.tsv", b"".join(whole)
    yield f"{stem}.lineidx", "".join(f"{at}\n" for at in offsets(whole)).encode()


def offsets(rows: Sequence[bytes]) -> list[int]:
    """Where each row begins."""
    begins = [0]
    for one in rows:
        begins.append(begins[-1] + len(one))
    return begins[:-1]


def below(folder: str, members: Iterable[tuple[str, bytes]]) -> Members:
    """The same files inside a folder."""
    return ((f"{folder}/{name}", content) for name, content in members)


def archive(folder: str, members: Iterable[tuple[str, bytes]]) -> Members:
    """The members of a ZIP with one folder: its own entry, then its files."""
    yield f"{folder}/", b""
    yield from below(folder, members)


def feature_folder(images: Images, numbered: bool = True) -> Members:
    """`features.tsv` and `predictions.tsv` with their `.lineidx`; `imageid2idx.json` with row numbers if `numbered`."""
    yield from table("features", wide_rows(images, X152C4))
    yield from table("predictions", prediction_rows(images, X152C4))
    if numbered:
        yield "imageid2idx.json", row_numbers(images)


def row_numbers(ids: Iterable[str]) -> bytes:
    """`imageid2idx.json` or `QA_qaid2idx.json`: id → number of its row, from 0."""
    return as_json({name: number for number, name in enumerate(ids)})


def chunked_folder(images: Images, chunks: int) -> Members:
    """The images divided among folders `0`, `1` … of features."""
    for number, part in enumerate(shared(images, chunks)):
        yield from below(str(number), feature_folder(part))


def shared(images: Images, chunks: int) -> list[Images]:
    """Parts of the images, each a run of their order."""
    names = list(images)
    size = -(-len(names) // chunks)
    return [{name: images[name] for name in names[at * size : (at + 1) * size]} for at in range(chunks)]


def offset_table(stem: str, images: Images) -> Members:
    """`STEM.tsv` of features, and `STEM_offset_map.json`: image id → byte offset of its row."""
    rows = list(wide_rows(images, X152C4))
    yield f"{stem}.tsv", b"".join(rows)
    yield f"{stem}_offset_map.json", as_json(dict(zip(images, offsets(rows), strict=True)))


SCORES = {1: 0.3, 2: 0.6, 3: 0.9}
"""What an answer is worth by how many of ten people gave it; from four on it is 1."""


@dataclass(frozen=True)
class Labels:
    """`ids`: answer → label id, in the order in which the dict is pickled, which is not that of the ids."""

    ids: dict[str, int]

    @classmethod
    def of(cls, answers: Iterable[str], key: str) -> Labels:
        """The labels of these answers; `key` decides their order."""
        names = sorted(set(answers))
        order = pick_several(Random(f"labels/{key}"), names, len(names))
        numbers = {name: number for number, name in enumerate(names)}
        return cls({name: numbers[name] for name in (order if order != names else reversed(names))})

    @property
    def answers(self) -> list[str]:
        """The answers by label id."""
        return sorted(self.ids, key=self.ids.__getitem__)

    def scored(self, said: Iterable[str]) -> tuple[list[int], list[float]]:
        """Label ids of what people said, with soft scores; what is no label is left out."""
        counted = [(self.ids[name], number) for name, number in Counter(said).items() if name in self.ids]
        return [label for label, _ in counted], [SCORES.get(number, 1.0) for _, number in counted]
