"""Region features as the published tools write them, made here independently of the readers and writers under test."""

from __future__ import annotations

import base64
import csv
import json
import pickle
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.features import PIXELS, FeatureRow

BUTD = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
LXMERT = [
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
]
VOLTA = [*LXMERT, "cls_prob", "attrs", "classes"]


@dataclass
class Image:
    """One image's regions; `boxes` in pixels."""

    image_id: str
    features: np.ndarray
    boxes: np.ndarray
    height: int = 480
    width: int = 640
    more: dict[str, np.ndarray] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """All columns under all names, arrays as they are."""
        ids = {"img_id": self.image_id, "image_id": self.image_id, "num_boxes": len(self.features)}
        sizes = {"img_h": self.height, "img_w": self.width, "image_h": self.height, "image_w": self.width}
        return {**ids, **sizes, "boxes": self.boxes, "features": self.features, **self.more}

    def row(self, line: int = 1) -> FeatureRow:
        """The image as a row for a store."""
        return FeatureRow(
            self.image_id, self.features, self.boxes, PIXELS, self.height, self.width, dict(self.more), line, line
        )


def make_image(image_id: str, count: int, columns: int = 2048, seed: int = 0) -> Image:
    """Post-ReLU features, boxes, and what a detector says of them; 2054 columns end in the box as fractions."""
    rng = np.random.default_rng([seed, count])
    features = np.maximum(rng.normal(size=(count, columns)), 0).astype("<f4")
    corners = rng.random((count, 2, 2)) * [640, 480]
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype("<f4")
    if columns == 2054:
        scaled = boxes / np.array([640, 480, 640, 480], "<f4")
        features[:, 2048:] = np.concatenate([scaled, scaled[:, 2:] - scaled[:, :2]], 1)
    more = {
        "objects_id": rng.integers(0, 1600, count).astype("<i8"),
        "objects_conf": rng.random(count).astype("<f4"),
        "attrs_id": rng.integers(0, 400, count).astype("<i8"),
        "attrs_conf": rng.random(count).astype("<f4"),
        "cls_prob": rng.random((count, 7)).astype("<f4"),
        "attrs": rng.random((count, 5)).astype("<f4"),
        "classes": rng.random((count, 6)).astype("<f4"),
    }
    return Image(image_id, features, boxes, more=more)


def make_images(count: int, columns: int = 2048, name: str = "COCO_val2014_{:012d}") -> list[Image]:
    """Images of 1 to 9 boxes; the third has none."""
    return [make_image(name.format(i * 7 + 1), 0 if i == 2 else 1 + i % 9, columns, seed=i) for i in range(count)]


def b64(array: np.ndarray) -> str:
    """As every one of the tools writes an array."""
    return base64.b64encode(np.ascontiguousarray(array)).decode()


def oscar_tsv(path: Path, images: list[Image]) -> Path:
    """`id, n, base64`."""
    lines = [f"{i.image_id}\t{len(i.features)}\t{b64(i.features)}\n" for i in images]
    path.write_bytes("".join(lines).encode())
    return path


def caption_tsv(path: Path, images: list[Image]) -> Path:
    """`id, {"num_boxes", "features"}`, as the captioning data has it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for image in images:
            value = json.dumps({"num_boxes": len(image.features), "features": b64(image.features)})
            file.write(f"{image.image_id}\t{value}\n")
    return path


def csv_tsv(path: Path, images: list[Image], columns: list[str], literals: bool = False) -> Path:
    """Rows through `csv`, as bottom-up attention, LXMERT and volta write them."""
    out = StringIO(newline="")
    writer = csv.DictWriter(out, columns, delimiter="\t", extrasaction="ignore")
    for image in images:
        cells = {k: b64(v) if isinstance(v, np.ndarray) else v for k, v in image.fields().items()}
        if literals:
            cells = {k: f"b'{v}'" if isinstance(image.fields()[k], np.ndarray) else v for k, v in cells.items()}
        writer.writerow(cells)
    path.write_bytes(out.getvalue().encode())
    return path


def volta_lmdb(path: Path, images: list[Image], arrays: bool = False, spoil: bytes | None = None) -> Path:
    """volta's LMDB: pickled rows of base64 text (or of arrays), and `keys`; `spoil` replaces the first value."""
    import lmdb

    keys = [str(int(image.image_id.rsplit("_", 1)[-1])).encode() for image in images]
    with lmdb.open(str(path), map_size=1 << 30) as environment, environment.begin(write=True) as writing:
        for number, (key, image) in enumerate(zip(keys, images, strict=True)):
            fields = {name: image.fields()[name] for name in VOLTA}
            if not arrays:
                fields = {k: b64(v) if isinstance(v, np.ndarray) else str(v) for k, v in fields.items()}
            writing.put(key, spoil if spoil and number == 0 else pickle.dumps(fields))
        writing.put(b"keys", pickle.dumps(keys))
    return path


def image_h5(path: Path, images: list[Image]) -> Path:
    """One group an image, under the short names."""
    import h5py

    short = {"objects_id": "obj_id", "objects_conf": "obj_conf", "attrs_id": "attr_id", "attrs_conf": "attr_conf"}
    with h5py.File(path, "w") as file:
        for image in images:
            group = file.create_group(image.image_id)
            for name in ("features", "boxes", "img_h", "img_w", *short):
                group[short.get(name, name)] = image.fields()[name]
    return path


def same(record: Any, image: Image, half: bool = False) -> bool:
    """Whether a record of a store holds just the numbers of an image."""
    features = image.features.astype("<f2") if half else image.features
    equal = np.array_equal(record.features, features) and record.image_id == image.image_id
    return equal and (record.boxes is None or np.allclose(record.boxes, image.boxes, atol=1e-3))
