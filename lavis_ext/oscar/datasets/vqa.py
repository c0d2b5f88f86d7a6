"""The shapes `region_vqa` (Oscar's VQA and GQA) and `region_pair` (a sentence and two images; NLVR2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Batch, Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext
from lavis_ext.datasets.readers.annotations import Annotations
from lavis_ext.datasets.readers.parse import Row
from lavis_ext.features.vocabulary import LabelVocabulary
from lavis_ext.models.losses import IGNORED
from lavis_ext.oscar.datasets.base import RegionDataset, input_lengths, soft_targets, stacked
from lavis_ext.oscar.datasets.opening import Opening, RegionParts, region_splits
from lavis_ext.oscar.datasets.regions import tag_text
from lavis_ext.oscar.datasets.settings import RegionPairKeys, RegionVqaKeys

log = logging.getLogger(__name__)
TYPES = (None, "bal", "all")
DATA_TYPES = ("train_data_type", "eval_data_type", "test_data_type")


@builders.register("region_vqa", config=RegionVqaKeys)
def region_vqa(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Records `{q, o, img_id}` with `an` (label ids), `s` (scores) and `q_id` where they have them (Oscar's JSON).

    In `train` records without an answer are left out.
    """
    return region_splits(config, context, _make_vqa)


def _make_vqa(opening: Opening) -> Dataset:
    rows = Annotations(opening.files(partial(vqa_file, opening)))
    labels = opening.labels()
    parts = RegionParts(opening.config, opening.split, rows, opening.args, opening.regions(), opening.encoder(), labels)
    with_answer = np.flatnonzero(rows.lengths("an"))
    if not parts.training:
        return RegionVqaDataset(parts, len(with_answer) > 0)
    total, where = len(rows), f"{parts.config.name}/{parts.split}"
    if len(with_answer) < total:
        log.info("%s: %d of %d records have no answer and are left out", where, total - len(with_answer), total)
    return RegionVqaDataset(parts, True, with_answer)


def vqa_file(opening: Opening, name: str) -> str:
    """The name of the file that the arguments mean, from the one that the card declares."""
    side = {"train": 0, "val": 1}.get(opening.split, 2)
    every = opening.args["data_label_type"]
    own = opening.args[DATA_TYPES[side]]
    name = name.replace("_mrcnn.json", ".json") if every == "faster" else name
    wanted = own or (every if every in TYPES else None)
    return name if wanted is None else name.replace("_bal_", f"_{wanted}_").replace("_all_", f"_{wanted}_")


@dataclass(frozen=True, eq=False)
class RegionVqaDataset(RegionDataset):
    """A question about an image; `answered`: whether the split has answers; `kept`: the records in use (None: all)."""

    answered: bool = True
    kept: np.ndarray | None = None

    def count(self) -> int:
        """How many questions."""
        return len(self.rows) if self.kept is None else len(self.kept)

    def row(self, index: int) -> Row:
        """The record of a question."""
        position = self.position(index)
        row: Row = self.rows[position if self.kept is None else int(self.kept[position])]
        return row

    def measured(self) -> np.ndarray:
        """Regions and tokens of the records in use."""
        tags = self.rows.words("o") if self.parts.args["add_od_labels"] else 0
        found = input_lengths(self, self.rows.words("q") + tags)
        return found if self.kept is None else found[self.kept]

    @property
    def vocabulary(self) -> LabelVocabulary:
        """The answers by class."""
        labels = self.parts.labels
        return labels if labels is not None else LabelVocabulary([], [])

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """Question and tags, regions, ids, and where the record has answers `targets` (classes, scores) or `labels`.

        `question_id` is 0 where a record has none, as in upstream's files for training.
        """
        tags = tag_text(row.get("o")) if self.parts.args["add_od_labels"] else ""
        ids, types = self.parts.encoder.pair(self.text(row, "q", index), tags)
        image_id = self.image_id(row)
        named: Sample = {"image_id": image_id, "instance_id": row["instance_id"]}
        named["question_id"] = row.get("q_id", 0)
        place = self.place(image_id, index)
        return {"input_ids": ids, "token_type_ids": types, "regions": place, **named, **self.answer(row, index)}

    def answer(self, row: Row, index: int) -> Sample:
        """`targets`: classes and their scores, or `labels`: one class, -100 for none; nothing in a split without."""
        if not self.answered:
            return {}
        known = self.vocabulary.classes
        given = row.get("an") or []
        strange = [label for label in given if label not in known]
        if strange:
            raise self.fault(index, f"label id is not in the vocabulary: {strange[0]!r}")
        classes = [known[label] for label in given]
        if not self.parts.args["soft_targets"]:
            return {"labels": classes[0] if classes else IGNORED}
        scores = row.get("s") or []
        if len(scores) != len(classes):
            raise self.fault(index, f"scores do not fit the answers: {len(scores)} and {len(classes)}")
        return {"targets": (classes, [float(score) for score in scores])}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """The inputs, `question_id`, `image_id`, `instance_id`, and `targets` float32 [B,L] or `labels` int64 [B]."""
        batch = super().collater(samples)
        if all("targets" in sample for sample in samples):
            batch["targets"] = soft_targets(samples, len(self.vocabulary))
        elif all("labels" in sample for sample in samples):
            batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
        return batch


SIDES = ("left", "right")
PREFIX = {"all": "", "bal": "balanced_", "unbal": "unbalanced_"}


@builders.register("region_pair", config=RegionPairKeys)
def region_pair(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Records `{q, o: {left, right}, img_id: {left, right}}` with `label` 0 or 1 where they have it (Oscar's JSON)."""
    return region_splits(config, context, _make_pair)


def _make_pair(opening: Opening) -> Dataset:
    rows = Annotations(opening.files(partial(pair_file, opening)))
    parts = RegionParts(opening.config, opening.split, rows, opening.args, opening.regions(), opening.encoder())
    return RegionPairDataset(parts)


def pair_file(opening: Opening, name: str) -> str:
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

        The sentence is cut for each image's tags by itself; upstream cut it with the left tags, and kept that cut.
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
        """`labels`, 1 where the sentence is true; -100 where that is not known in a split where it mostly is."""
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
        # upstream's reader of NLVR2 leaves a `;` between tags where it is, unlike those of VQA and GQA
        return {side: tags[side] if isinstance(tags.get(side), str) else tag_text(tags.get(side)) for side in SIDES}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """The inputs with an axis of two behind the first, ids as lists, `labels` int64 [B] where they are known."""
        batch = super().collater(samples)
        shaped = ("input_ids", "token_type_ids", "attention_mask", "img_feats")
        batch |= {key: stacked(batch[key], len(SIDES)) for key in shaped}
        if all("labels" in sample for sample in samples):
            batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
        return batch
