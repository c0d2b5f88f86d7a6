"""The shape `region_vqa`: a question, an image's tags and regions, and answers by class; Oscar's VQA and GQA."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lavis_ext.builders.context import BuildContext
from lavis_ext.builders.region.base import RegionDataset
from lavis_ext.builders.region.batch import soft_targets
from lavis_ext.builders.region.lengths import input_lengths
from lavis_ext.builders.region.opening import Opening, RegionParts, region_splits
from lavis_ext.builders.region.settings import RegionVqaKeys
from lavis_ext.builders.region.text import tag_text
from lavis_ext.features.vocabulary import LabelVocabulary
from lavis_ext.objectives.blip2 import IGNORED
from lavis_ext.readers.annotations import Annotations
from lavis_ext.readers.parse import Row
from lavis_ext.registry import builders
from lavis_ext.schema import DatasetConfig
from lavis_ext.types import Batch, Dataset, Sample

log = logging.getLogger(__name__)
TYPES = (None, "bal", "all")
DATA_TYPES = ("train_data_type", "eval_data_type", "test_data_type")


@builders.register("region_vqa", config=RegionVqaKeys)
def region_vqa(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Records `{q, o, img_id}` with `an` (label ids), `s` (scores) and `q_id` where they have them (Oscar's JSON).

    In `train` records without an answer are left out.
    """
    return region_splits(config, context, _make)


def _make(opening: Opening) -> Dataset:
    rows = Annotations(opening.files(partial(data_file, opening)))
    labels = opening.labels()
    parts = RegionParts(opening.config, opening.split, rows, opening.args, opening.regions(), opening.encoder(), labels)
    with_answer = np.flatnonzero(rows.lengths("an"))
    if not parts.training:
        return RegionVqaDataset(parts, len(with_answer) > 0)
    total, where = len(rows), f"{parts.config.name}/{parts.split}"
    if len(with_answer) < total:
        log.info("%s: %d of %d records have no answer and are left out", where, total - len(with_answer), total)
    return RegionVqaDataset(parts, True, with_answer)


def data_file(opening: Opening, name: str) -> str:
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
