"""A shape: rows with `species` and `place` become captions by a template that the data set's YAML gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.registry import registry
from lavis_ext.common.types import Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext, build_splits
from lavis_ext.datasets.builders.settings import ImageKeys
from lavis_ext.datasets.datasets.base_dataset import ImageTextDataset
from lavis_ext.datasets.readers.parse import Row


@dataclass(frozen=True, kw_only=True)
class TemplateKeys(ImageKeys):
    """The keys of `args:` of a data set of this shape."""

    template: str = "a {species}"


@registry.register_builder("template_caption", config=TemplateKeys)
def template_caption(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Every split gives `image`, `text_input`, `image_id`, `instance_id`."""
    return build_splits(config, context, TemplateDataset)


@dataclass(frozen=True, eq=False)
class TemplateDataset(ImageTextDataset):
    """One picture a row."""

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """What a sample holds beside its picture."""
        text = self.processed(self.parts.args["template"].format_map(row), "template", index)
        return {"text_input": text, "image_id": index, "instance_id": self.sample_id(index)}
