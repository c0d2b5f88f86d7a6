"""The shape `image_text_retrieval`: pairs to train on; pictures and all their captions to rank against each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext, SplitParts, build_splits
from lavis_ext.datasets.builders.image_caption import CaptionDataset
from lavis_ext.datasets.builders.settings import CaptionKeys
from lavis_ext.datasets.datasets.base_dataset import PictureDataset, two_ways
from lavis_ext.datasets.readers.parse import Row


@builders.register("image_text_retrieval", config=CaptionKeys)
def image_text_retrieval(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """`train` is as in `image_caption`, with its arguments; other splits give one picture a sample, captions aside."""
    return build_splits(config, context, _make)


def _make(parts: SplitParts) -> Dataset:
    return CaptionDataset(parts) if parts.training else RetrievalEvalDataset(parts)


@two_ways
@dataclass(frozen=True, eq=False)
class RetrievalEvalDataset(PictureDataset):
    """One picture a sample: `image`, `index`. Captions are in `text`, their pictures in `txt2img` and `img2txt`."""

    Keys = CaptionKeys
    derived = ("captions", "text", "image", "img2txt", "txt2img")

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """The number of the picture."""
        return {"index": self.position(index)}

    @cached_property
    def captions(self) -> list[list[str]]:
        """Processed captions by picture."""
        key, codes = self.parts.args["caption_key"], self._pictures[1]
        found: list[list[str]] = [[] for _ in range(len(self))]
        for row, sample in zip(self.rows, codes.tolist(), strict=True):
            if sample < len(found):
                value = row.get(key)
                texts = value if isinstance(value, list) else [value]
                found[sample] += [self.processed(text, "caption", sample) for text in texts]
        return found

    @cached_property
    def text(self) -> list[str]:
        """All captions, by picture."""
        return [caption for captions in self.captions for caption in captions]

    @cached_property
    def image(self) -> list[str]:
        """The names of the pictures."""
        return [self.image_name(self.row(i)) for i in range(len(self))]

    @cached_property
    def img2txt(self) -> dict[int, list[int]]:
        """Picture → numbers of its captions in `text`."""
        numbers = iter(range(len(self.text)))
        return {i: [next(numbers) for _ in captions] for i, captions in enumerate(self.captions)}

    @cached_property
    def txt2img(self) -> dict[int, int]:
        """Caption → number of its picture in `image`."""
        return {text: image for image, texts in self.img2txt.items() for text in texts}
