"""The shape `region_pair`: a sentence and two images with their tags and regions; Oscar's NLVR2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from lavis_ext.builders.context import BuildContext
from lavis_ext.builders.region.base import RegionDataset, stacked
from lavis_ext.builders.region.lengths import input_lengths
from lavis_ext.builders.region.opening import Opening, RegionParts, region_splits
from lavis_ext.builders.region.settings import RegionPairKeys
from lavis_ext.builders.region.text import tag_text
from lavis_ext.objectives.blip2 import IGNORED
from lavis_ext.readers.annotations import Annotations
from lavis_ext.readers.parse import Row
from lavis_ext.registry import builders
from lavis_ext.schema import DatasetConfig
from lavis_ext.types import Batch, Dataset, Sample

SIDES = ("left", "right")
PREFIX = {"all": "", "bal": "balanced_", "unbal": "unbalanced_"}


@builders.register("region_pair", config=RegionPairKeys)
def region_pair(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Records `{q, o: {left, right}, img_id: {left, right}}` with `label` 0 or 1 where they have it (Oscar's JSON)."""
    return region_splits(config, context, _make)


def _make(opening: Opening) -> Dataset:
    rows = Annotations(opening.files(partial(data_file, opening)))
    parts = RegionParts(opening.config, opening.split, rows, opening.args, opening.regions(), opening.encoder())
    return RegionPairDataset(parts)


def data_file(opening: Opening, name: str) -> str:
    """`nlvr2_balanced_dev.json` for `bal`, from `nlvr2_dev.json`."""
    if opening.split == "train":
        return name
    key = "eval_data_type" if opening.split in ("val", "dev") else "test_data_type"
    wanted = PREFIX[opening.args[key]]
    start, _, rest = name.rpartition("_")
    return f"{start}_{wanted}{rest}" if start else name


@dataclass(frozen=True, eq=False)
class RegionPairDataset(RegionDataset):
    """A sentence about two images: one input with each, both with the whole sentence."""

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """Lists of two: `input_ids`, `token_type_ids`, `regions`, `image_id`; `labels` and ids.

        The sentence is cut anew beside each image's tags; upstream cut it with the left ones and went on with the rest.
        """
        sentence = self.text(row, "q", index)
        names, tags = self.sides(row, "img_id", index), self._tags(row)
        encoded = [self.parts.encoder.pair(sentence, tags[side]) for side in SIDES]
        sample: Sample = {
            "input_ids": [ids for ids, _ in encoded],
            "token_type_ids": [types for _, types in encoded],
            "regions": [self.place(names[side], index) for side in SIDES],
            "question_id": self.identifier(row, index),
            "instance_id": row["instance_id"],
        }
        sample["image_id"] = [names[side] for side in SIDES]  # type: ignore[typeddict-item]  # two images, two ids
        return {**sample, **self.label(row, index)}

    def measured(self) -> np.ndarray:
        """Regions of the image that has more, and tokens with half of the tags of both."""
        tags = self.rows.words("o") // 2 if self.parts.args["add_od_labels"] else 0
        return input_lengths(self, self.rows.words("q") + tags)

    def label(self, row: Row, index: int) -> Sample:
        """`labels`, 1 where the sentence holds; -100 where that is not known in a split where it mostly is."""
        if not self.rows.has("label"):
            return {}
        label = row.get("label")
        if label is None:
            return {"labels": IGNORED}
        if str(label).lower() not in ("0", "1", "true", "false"):
            raise self.fault(index, f"label is neither 0 nor 1: {label!r}")
        return {"labels": int(str(label).lower() in ("1", "true"))}

    def identifier(self, row: Row, index: int) -> int | str:
        """NLVR2's identifier where the record has one, else a name that only this split knows."""
        return row.get("identifier") or row.get("q_id") or f"{self.split}_{row['instance_id']}"

    def sides(self, row: Row, key: str, index: int) -> Mapping[str, Any]:
        """What a record has under `left` and `right`; raises SampleError where one lacks."""
        value = row.get(key)
        if not isinstance(value, dict) or not all(side in value for side in SIDES):
            raise self.fault(index, f"{key} has no left and right")
        return value

    def image_id(self, row: Row) -> Any:
        """The ids of the images, left and right."""
        value = row.get("img_id")
        return [value.get(side) for side in SIDES] if isinstance(value, dict) else value

    def _tags(self, row: Row) -> dict[str, str]:
        value = row.get("o") if self.parts.args["add_od_labels"] else None
        tags: Mapping[str, Any] = value if isinstance(value, dict) else {}
        return {side: tag_text(tags.get(side)) for side in SIDES}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """The inputs with an axis of two behind the first, ids as lists, `labels` int64 [B] where they are known."""
        batch = super().collater(samples)
        shaped = ("input_ids", "token_type_ids", "attention_mask", "img_feats")
        batch |= {key: stacked(batch[key], len(SIDES)) for key in shaped}
        if all("labels" in sample for sample in samples):
            batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
        return batch
