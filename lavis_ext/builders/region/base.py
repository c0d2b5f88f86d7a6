"""What data sets on region features share: an image's regions are found by its id, read when the batch is made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lavis_ext.builders.region.batch import inputs, listed
from lavis_ext.builders.region.opening import RegionParts
from lavis_ext.builders.region.regions import Place
from lavis_ext.builders.rows import RowsDataset
from lavis_ext.errors import UsageError
from lavis_ext.features.vocabulary import LabelVocabulary
from lavis_ext.readers.faults import SampleError
from lavis_ext.readers.parse import Row
from lavis_ext.types import Batch, Sample


@dataclass(frozen=True, eq=False)
class RegionDataset(RowsDataset):
    """Rows of one split with regions; a shape says in `fields` what a sample holds. Picklable."""

    parts: RegionParts
    ids: ClassVar[tuple[str, ...]] = ("question_id", "image_id", "instance_id")
    """Keys of a sample that a batch has as lists."""

    @property
    def labels(self) -> LabelVocabulary | None:
        """The vocabulary of answers in the order of the classes; None where there is none."""
        return self.parts.labels

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """int32 [len, axes]: regions, and about how many tokens, by parts that are padded each by itself; or None.

        No features are read, and nothing is tokenised; shapes whose samples are drawn by chance have none.
        """
        found = self.measured()
        return None if found is None else found[: len(self)]

    def length(self, index: int) -> int:
        """Regions and tokens of a sample together, about; 0 where that is not known."""
        return 0 if self.lengths is None else int(self.lengths[self.position(index)].sum())

    def measured(self) -> np.ndarray | None:
        """`lengths` before `max_samples` cuts them; a shape that knows them gives them."""
        return None

    @property
    def pad(self) -> int:
        """What texts are filled up with."""
        return self.parts.encoder.words.pad

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """A sample: `input_ids`, `token_type_ids` (lists), `regions` (a Place, or two), and what the shape adds."""
        raise NotImplementedError

    def page_view(self) -> Any:
        """How `browse` shows a split: texts and tags, boxes drawn on the picture or on grey."""
        from lavis_ext.builders.region.pages import RegionView

        return RegionView(self)

    def load(self, index: int, rng: torch.Generator) -> Sample:
        """The sample with `regions`, the place of its features, all randomness from `rng`. Raises SampleError.

        Nothing is copied here: the system is told to fetch the rows, and `collater` reads them into the batch.
        """
        sample = self.fields(self.row(index), index, rng)
        for place in _places(sample):
            self.parts.regions.will_need(place)
        return sample

    def __getitem__(self, index: int) -> Sample:
        """The sample with `img_feats` float32 [n,D] (or two of them) in the place of `regions`. Raises SampleError."""
        sample = self.fields(self.row(index), index, None)
        feats = [torch.from_numpy(self.parts.regions.array(place)) for place in _places(sample)]
        several = "regions" in sample and not isinstance(sample.pop("regions"), Place)
        if feats:
            sample["img_feats"] = feats if several else feats[0]
        return sample

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch: inputs padded to the longest, ids as lists; see `batch.inputs`."""
        return {**inputs(samples, self.parts.regions, self.pad), **listed(samples, self.ids)}

    def place(self, image_id: Any, index: int, among: Sequence[int] | None = None) -> Place:
        """Where an image's regions lie (among some stores); raises SampleError where there are none, naming both."""
        if not isinstance(image_id, (str, int)):
            raise self.fault(index, f"image id is missing: {image_id!r}")
        try:
            return self.parts.regions.find(image_id, among)
        except UsageError as error:
            problem = error.problems[0]
            raise SampleError(self.sample_id(index), problem.where, f"no features: {problem.what}") from error

    def text(self, row: Row, key: str, index: int) -> str:
        """A text of a row; raises SampleError where there is none."""
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(index, f"{key} is missing or empty")
        return value

    def image_id(self, row: Row) -> Any:
        """The id of a row's image (of a pair, the left one's)."""
        return row.get("img_id", row.get("image_id"))

    def images_of(self, row: Row, index: int) -> list[tuple[Any, Place]]:
        """The images of a sample as they are asked for, and where their regions lie; raises SampleError."""
        named = self.image_id(row)
        return [(image_id, self.place(image_id, index)) for image_id in (named if isinstance(named, list) else [named])]

    def displ_item(self, index: int) -> OrderedDict[str, Any]:
        """What a browser shows of a sample: its record (LAVIS' method)."""
        return OrderedDict(self.row(index))


def _places(sample: Sample) -> list[Place]:
    found = sample.get("regions", ())
    return [found] if isinstance(found, Place) else list(found)


def stacked(tensor: Tensor, count: int) -> Tensor:
    """[N·count, …] as [N, count, …]: the inputs of each sample together."""
    return tensor.view(-1, count, *tensor.shape[1:])
