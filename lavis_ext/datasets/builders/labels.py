"""The shapes `image_text_label` (picture, sentence, class; SNLI-VE) and `paired_images` (two pictures; NLVR2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Batch, Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext, build_splits
from lavis_ext.datasets.builders.settings import LabelKeys, PairKeys
from lavis_ext.datasets.collate import Rule, collate, stack_images
from lavis_ext.datasets.datasets.base_dataset import ImageTextDataset, draw_below, from_parts, two_ways
from lavis_ext.datasets.readers.parse import Row
from lavis_ext.processors import uint8_of


@builders.register("image_text_label", config=LabelKeys)
def image_text_label(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Every split gives `image`, `text_input`, `label`, `image_id`, `instance_id`."""
    return build_splits(config, context, LabelDataset)


@two_ways
@dataclass(frozen=True, eq=False)
class LabelDataset(ImageTextDataset):
    """A picture and a sentence with a class."""

    Keys = LabelKeys

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """Sentence, class and ids; a row without a class has no `label`."""
        named: Sample = {"image_id": row[key]} if (key := self.id_key(row)) else {}
        text = self.row_text(row, self.parts.args["text_key"], index)
        asked = self.asked(row, index) if self.parts.args["prompt"] else self.label(row, index)
        return {"text_input": text, **asked, **named, "instance_id": row["instance_id"]}

    def asked(self, row: Row, index: int) -> Sample:
        """LAVIS' sample of instructions: `prompt`, `answer` and `label` as text, `question_id` as `instance_id`."""
        prompt, known = self.processed(self.parts.args["prompt"], "prompt", index), self.label(row, index)
        name = self.classnames[known["label"]] if known else None
        answer: Any = {"answer": name, "label": name} if known else {}
        return {"prompt": prompt, **answer, "question_id": str(row["instance_id"])}

    def displ_item(self, index: int) -> OrderedDict[str, Any]:
        """What a browser shows of a sample: file, sentence, label, image (LAVIS' method)."""
        row, sample = self.row(index), self[index]
        name = str(row.get("image") or self.image_name(row))
        shown = {"file": PurePosixPath(name).name, "sentence": row.get("sentence")}
        return OrderedDict({**shown, "label": row.get("label"), "image": sample["image"]})

    def id_key(self, row: Row) -> str | None:
        """Where a row has the id of its picture: `image_id`, else LAVIS' `image`."""
        return next((key for key in ("image_id", "image") if key in row), None)

    def label(self, row: Row, index: int) -> Sample:
        """`label`, the number of the row's class; raises SampleError for one that `labels` does not name."""
        name = row.get(self.parts.args["label_key"])
        if name is None:
            return {}
        labels = self.classes
        if str(name) not in labels:
            raise self.fault(index, f"label {name!r} is none of {', '.join(labels)}")
        return {"label": labels.index(str(name))}

    @from_parts
    def classes(self) -> list[str]:
        """The names of the classes by number."""
        return [str(name) for name in self.parts.args["labels"]]

    @from_parts
    def classnames(self) -> list[str]:
        """What a model answers for each class (LAVIS' attribute)."""
        return [str(name) for name in self.parts.args["answers"]] or self.classes

    @from_parts
    def class_labels(self) -> dict[str, int]:
        """The number of each class (LAVIS' attribute)."""
        return {name: number for number, name in enumerate(self.classes)}


SIDES = ("image0", "image1")


@builders.register("paired_images", config=PairKeys)
def paired_images(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Every split gives `image0`, `image1`, `text_input`, `label`, `instance_id`.

    In `train` the two pictures are swapped half of the time, and the words "left" and "right" with them (LAVIS).
    """
    return build_splits(config, context, PairDataset)


@two_ways
@dataclass(frozen=True, eq=False)
class PairDataset(LabelDataset):
    """Two pictures and a sentence about them; `images` of a row names the left and the right one."""

    Keys = PairKeys

    def __getitem__(self, index: int) -> Sample:
        """LAVIS' sample, both pictures as in `image_caption`. Raises SampleError."""
        other = uint8_of(self.vis_processor) is None
        return self._sample(index, self._other if other else self.vis_processor, None)

    def load(self, index: int, rng: torch.Generator) -> Sample:
        """The sample with uint8 pictures and all randomness from `rng`. Raises SampleError."""
        uint8 = uint8_of(self.vis_processor)

        def process(pixels: Any) -> Any:
            return self._other(pixels) if uint8 is None else uint8(pixels, rng)

        return self._sample(index, process, rng)

    def _sample(self, index: int, process: Any, rng: torch.Generator | None) -> Sample:
        row = self.row(index)
        pictures = [process(self.pixels({**row, "image": name}, index)) for name in self.pair(row, index)]
        sample: Sample = {**self.fields(row, index, rng)}
        if self.parts.training and self.parts.args["swap"] and draw_below(2, rng):
            pictures.reverse()
            sample["text_input"] = swap_sides(sample["text_input"])
        return {"image0": pictures[0], "image1": pictures[1], **sample}

    def pair(self, row: Row, index: int) -> list[str]:
        """The names of the left and the right picture; raises SampleError where there are not two."""
        names = row.get("images")
        if not isinstance(names, list) or len(names) != len(SIDES):
            raise self.fault(index, "images are not two names")
        return [str(name) for name in names]

    def image_name(self, row: Row) -> str:
        """The picture under `image`, else both names in one."""
        return str(row.get("image") or " + ".join(map(str, row.get("images") or [])))

    def id_key(self, row: Row) -> str | None:
        """None: a pair has no id of its own."""
        return None

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch: `image0` and `image1` [B,3,H,W], `label` int64 [B]."""
        return collate(samples, RULES)

    def displ_item(self, index: int) -> OrderedDict[str, Any]:
        """What a browser shows of a sample: files, sentence, label, both pictures (LAVIS' method)."""
        row, sample = self.row(index), self[index]
        shown = {"file_L": row["images"][0], "file_R": row["images"][1], "sentence": row.get("sentence")}
        return OrderedDict({**shown, "label": row.get("label"), "image": [sample["image0"], sample["image1"]]})


def swap_sides(sentence: str) -> str:
    """The sentence about the pictures in the other order: "left" and "right" change places (LAVIS)."""
    return "right".join(part.replace("right", "left") for part in sentence.split("left"))


RULES: dict[str, Rule] = {"image0": stack_images, "image1": stack_images}
