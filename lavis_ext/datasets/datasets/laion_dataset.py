"""LAVIS' module name: pictures and texts in shards, by their place; the shape is `image_text_shards`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch.utils.data import IterableDataset

from lavis_ext.common.registry import registry
from lavis_ext.common.types import Sample
from lavis_ext.datasets.builders.image_text_shards import SPLIT, ImageTextStream
from lavis_ext.datasets.datasets.base_dataset import draw_below
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.shards import RawSample
from lavis_ext.processors import current_rng, drawing_from


class LaionDataset(ImageTextStream):
    """`location` names shards as `build_info.storage` does: `folder/{00000..01743}.tar`, or several of them.

    `inner_dataset` gives samples without end. Raises NotPreparedError where there are no shards.
    """

    card: ClassVar[str] = "laion2B_multi"

    def __init__(
        self, vis_processor: Any = None, text_processor: Any = None, location: str | Sequence[str] = ""
    ) -> None:
        builder: Any = registry.get_builder_class(self.card)()
        builder.config.build_info.storage = location if isinstance(location, str) else list(location)
        found = builder.build_datasets()[SPLIT]
        super().__init__(found.config, found.reader, vis_processor, text_processor, found.args)

    def to_dict(self, sample: tuple[Any, Mapping[str, Any]]) -> Sample | None:
        """A picture and the record of its shard → the sample; one of a subclass is called, and None is a fault."""
        image, record = sample
        caption = record["caption"]
        if isinstance(caption, list):
            caption = caption[draw_below(min(2, len(caption)), current_rng())]
        clean = caption if self.text_processor is None else self.text_processor(caption)
        return {"image": image, **self._texts(clean, current_rng())}

    def _finish(self, item: RawSample, rng: torch.Generator | None) -> Sample:
        if type(self).to_dict is LaionDataset.to_dict:
            return super()._finish(item, rng)
        item.check()
        image = self._image(item.pixels(), rng)
        try:
            with drawing_from(rng):
                made = self.to_dict((image, item.record()))
        except SampleError:
            raise
        except Exception as error:  # as LAVIS, which warns and goes on; here it is counted
            raise item.fault(f"to_dict ends with {type(error).__name__}: {error}") from error
        if made is None:
            raise item.fault("to_dict gives None")
        return {**made, "instance_id": item.name}

    @property
    def inner_dataset(self) -> Endless:
        """Pass after pass, each in another order, for a DataLoader."""
        return Endless(self)


class LaionInstructDataset(LaionDataset):
    """Captions to learn after an instruction."""

    card = "laion400M_instruct"


class Endless(IterableDataset[Sample]):
    """The samples of a stream, pass after pass."""

    def __init__(self, stream: ImageTextStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Sample]:
        return self.stream.passes()


__all__ = ["LaionDataset", "LaionInstructDataset"]
