"""The shape `paired_images`: two pictures, a sentence about both, and whether it holds; NLVR2."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lavis_ext.builders.base import draw_below
from lavis_ext.builders.context import BuildContext, build_splits
from lavis_ext.builders.labels import LabelDataset
from lavis_ext.builders.settings import PairKeys
from lavis_ext.collate import Rule, collate, stack_images
from lavis_ext.readers.parse import Row
from lavis_ext.registry import builders
from lavis_ext.schema import DatasetConfig
from lavis_ext.types import Batch, Dataset, Sample

SIDES = ("image0", "image1")


@builders.register("paired_images", config=PairKeys)
def paired_images(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Every split gives `image0`, `image1`, `text_input`, `label`, `instance_id`.

    In `train` the two pictures are swapped half of the time, and the words "left" and "right" with them (LAVIS).
    """
    return build_splits(config, context, PairDataset)


@dataclass(frozen=True, eq=False)
class PairDataset(LabelDataset):
    """Two pictures and a sentence about them; `images` of a row names the left and the right one."""

    def __getitem__(self, index: int) -> Sample:
        """LAVIS' sample, both pictures as in `image_caption`. Raises SampleError."""
        processor = self.vis_processor
        return self._sample(index, processor if hasattr(processor, "uint8") else self._other, None)

    def load(self, index: int, rng: torch.Generator) -> Sample:
        """The sample with uint8 pictures and all randomness from `rng`. Raises SampleError."""
        uint8 = getattr(self.vis_processor, "uint8", None)

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
