"""What captions of NoCaps may be held to name: the detections and words that a split's YAML lists for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lavis_ext.builders.region.tables import labels_in
from lavis_ext.errors import IntegrityError
from lavis_ext.features.formats.lines import lines_of
from lavis_ext.features.ids import key_of
from lavis_ext.processors.constraints import Seen, choose_names, detected, read_forms, read_heights, words_for
from lavis_ext.readers.parse import parse_json, read_text

KEYS = ("cbs_box", "cbs_constraint", "cbs_tokenforms", "cbs_hierarchy")


@dataclass(frozen=True, eq=False)
class Naming:
    """The things to name, by image; `files` under upstream's keys are read when the first image is asked for."""

    files: Mapping[str, Path]

    def of(self, image_id: str | int) -> list[list[str]]:
        """Up to three things, each as the words that name it; none for an image without detections.

        Raises IntegrityError for files that are broken.
        """
        things = self._things.get(key_of(str(image_id)), [])
        return [words_for(name, self._pieces, self._forms) for name in choose_names(things, self._heights)]

    @cached_property
    def _things(self) -> dict[str, list[Seen]]:
        path = self.files["cbs_box"]
        found: dict[str, list[Seen]] = {}
        for number, line, _ in lines_of(path):
            image_id, _, text = line.partition(b"\t")
            where = f"{path}:{number}"
            try:
                found[key_of(image_id.decode())] = detected(labels_in(json.loads(text)), where)
            except (ValueError, TypeError) as error:
                raise IntegrityError(where, f"has no labels as JSON: {error}", "fetch it again") from error
        return found

    @cached_property
    def _pieces(self) -> dict[str, list[str]]:
        return read_forms(self.files["cbs_constraint"])

    @cached_property
    def _forms(self) -> dict[str, list[str]]:
        return read_forms(self.files["cbs_tokenforms"])

    @cached_property
    def _heights(self) -> dict[str, int]:
        path = self.files["cbs_hierarchy"]
        tree = parse_json(read_text(path), path)
        if not isinstance(tree, dict):
            raise IntegrityError(str(path), "is no tree of classes", "fetch it again")
        return read_heights(tree)


def find_naming(home: Path, tree: Mapping[str, Any]) -> Naming | None:
    """The files that a split's YAML names beside it, where it names all of them and they are there."""
    files = {key: home.parent / str(tree[key]) for key in KEYS if tree.get(key)}
    return Naming(files) if len(files) == len(KEYS) and all(path.is_file() for path in files.values()) else None
