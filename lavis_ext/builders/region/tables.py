"""Side files of images as rows: object tags of `x.label.tsv` or predictions, kept as text and found by image id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lavis_ext.builders.region.text import tag_text
from lavis_ext.errors import IntegrityError
from lavis_ext.features.formats.lines import lines_of
from lavis_ext.features.ids import key_of
from lavis_ext.readers.annotations import Annotations
from lavis_ext.readers.joined import OneFile
from lavis_ext.readers.parse import Row
from lavis_ext.readers.sequence import Rows

WAY_OUT = "fetch it again"


@dataclass(frozen=True)
class TagFile(OneFile):
    """Two columns, `image_id` and JSON: a list of labels, `{"objects": [labels]}`, or `{"labels": [texts]}`."""

    KIND = "tags"

    def parse(self) -> list[Row]:
        """`image_id` and `tags`, the classes as one text; raises IntegrityError."""
        return [{"image_id": image_id, "tags": tags} for image_id, tags in self._rows()]

    def _rows(self) -> Iterator[tuple[str, str]]:
        for number, line, _ in lines_of(self.path):
            image_id, _, text = line.partition(b"\t")
            try:
                yield image_id.decode(), tag_text(labels_in(json.loads(text)))
            except (ValueError, TypeError) as error:
                raise IntegrityError(f"{self.path}:{number}", f"has no labels as JSON: {error}", WAY_OUT) from error


def labels_in(value: Any) -> list[Any]:
    """The list of labels in the JSON of an image; raises TypeError where there is none."""
    if isinstance(value, dict):
        value = value.get("objects", value.get("labels"))
    if not isinstance(value, list):
        raise TypeError("no list of labels")
    return value


@dataclass(frozen=True, eq=False)
class TagTable:
    """The tags of images by id, mapped from the Arrow copy. Picklable."""

    rows: Annotations

    @cached_property
    def ids(self) -> list[str]:
        """All ids in the order of the files."""
        return [str(image_id) for image_id in self.rows.column("image_id")]

    @cached_property
    def _places(self) -> dict[str, int]:
        by_key = {key_of(image_id): number for number, image_id in enumerate(self.ids)}
        return by_key | {image_id: number for number, image_id in enumerate(self.ids)}

    def find(self, image_id: str | int) -> str | None:
        """The tags of an image as one text, None where there are none; by its id, else by its number."""
        text = str(image_id)
        number = self._places.get(text, self._places.get(key_of(text)))
        return None if number is None else str(self.rows[number]["tags"])


def tag_table(path: Path) -> TagTable:
    """The tags in one file."""
    return TagTable(Annotations([TagFile(path)]))


@dataclass(frozen=True, eq=False)
class ImageRows(Rows):
    """A row for each image, with what is known of it; they have no file of their own but `paths`."""

    ids: Sequence[str]
    paths: tuple[Path, ...]
    more: dict[str, Row]

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, position: int) -> Row:
        """The row of a number from 0 on."""
        image_id = self.ids[position]
        return {"image_id": image_id, **self.more.get(key_of(image_id), {}), "instance_id": str(position)}
