"""The forms of Oscar's files: torch's and Python's pickles, JSON, and tab-separated rows with their side files."""

from __future__ import annotations

import io
import json
import pickle
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lavis_ext.demo.things import HEIGHT, WIDTH
from lavis_ext.demo.world import Scene
from tests.world.regions import MASK, Array, Detector, detect, features

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
