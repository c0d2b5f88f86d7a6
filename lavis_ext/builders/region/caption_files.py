"""Oscar's retrieval data as rows: `{split}_captions.pt`, with the tags of `{split}_vg_labels.pt` beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.builders.region.text import tag_text
from lavis_ext.errors import IntegrityError
from lavis_ext.features.files import read_errors
from lavis_ext.features.formats.pt import load_tensors
from lavis_ext.readers.joined import OneFile
from lavis_ext.readers.parse import Row, parse_rows

SUFFIX = "_captions.pt"
WAY_OUT = "fetch it again"


@dataclass(frozen=True)
class CaptionFile:
    """`{image id: captions}` and, where they are published so (Oscar's zip), `{image id: tags}`; one row an image."""

    captions: Path
    tags: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Both files."""
        return (self.captions,) if self.tags is None else (self.captions, self.tags)

    @property
    def name(self) -> str:
        """Both names in one."""
        return "+".join(file.name for file in self.files)

    def parse(self) -> list[Row]:
        """`image_id`, `captions` (texts) and, with a file of tags, `tags`; raises IntegrityError, UnsafeError."""
        tags = None if self.tags is None else load_tensors(self.tags)
        rows: list[Row] = []
        for image_id, value in load_tensors(self.captions).items():
            row: Row = {"image_id": image_id, "captions": _texts(value, image_id, self.captions)}
            rows.append(row if tags is None else {**row, "tags": tag_text(tags.get(image_id))})
        return rows


@dataclass(frozen=True)
class AnnotationLines(OneFile):
    """volta's `{split}_ann.jsonl`: `{"sentences": […], "id": number}` a line; one row an image."""

    KIND = "captions"

    def parse(self) -> list[Row]:
        """`image_id` and `captions`, as `CaptionFile` has them; raises IntegrityError."""
        rows = parse_rows(self.path)
        for number, row in enumerate(rows, 1):
            if "id" not in row:
                raise IntegrityError(f"{self.path}:{number}", "has no id", WAY_OUT)
        return [{"image_id": row["id"], "captions": _texts(row.get("sentences"), row["id"], self.path)} for row in rows]


def caption_file(path: Path, label_type: str) -> CaptionFile | AnnotationLines:
    """A file of captions, Oscar's with the tags of one detector that lie beside it, if they do."""
    if path.suffix == ".jsonl":
        return AnnotationLines(path)
    tags = path.with_name(path.name.replace(SUFFIX, f"_{label_type}_labels.pt"))
    return CaptionFile(path, tags if tags != path and tags.is_file() else None)


def _texts(value: Any, image_id: Any, path: Path) -> list[str]:
    """A list of texts, or the JSON of one."""
    value = _loads(value, f"{path} image {image_id!r}") if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise IntegrityError(f"{path} image {image_id!r}", "has no list of captions", WAY_OUT)
    return list(value)


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise IntegrityError(where, f"is no JSON: {error}", WAY_OUT) from error


def read_keys(path: Path) -> list[str]:
    """The image ids of `test_img_keys.tsv`, one a line; raises IntegrityError where there is none."""
    with read_errors(path):
        lines = path.read_text("utf-8").splitlines()
    keys = [line.split("\t")[0].strip() for line in lines if line.strip()]
    if not keys:
        raise IntegrityError(str(path), "names no image", WAY_OUT)
    return keys


def read_candidates(path: Path) -> dict[str, list[tuple[str, int]]]:
    """Image id → the captions to be ranked again, as (image id, number); `minival_caption_indexs_top20.pt`."""
    found = {}
    for image_id, value in load_tensors(path).items():
        where = f"{path} image {image_id!r}"
        pairs = _loads(value, where) if isinstance(value, str) else value
        if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
            raise IntegrityError(where, "has no list of [image id, number of a caption]", WAY_OUT)
        found[str(image_id)] = [(str(key), number) for key, number in pairs]
    return found


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and type(value[1]) is int


def of_split(value: Any, split: str, meant: str) -> str | None:
    """An argument that is given by split, or as one text that is for the split `meant`; "" and None are none."""
    if isinstance(value, Mapping):
        value = value.get(split)
    elif split != meant:
        return None
    return str(value) if value else None
