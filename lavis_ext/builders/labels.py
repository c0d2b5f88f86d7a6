"""The shape `image_text_label`: a picture, a sentence and its class; SNLI-VE and its like."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lavis_ext.builders.base import ImageTextDataset
from lavis_ext.builders.context import BuildContext, build_splits
from lavis_ext.builders.settings import LabelKeys
from lavis_ext.readers.parse import Row
from lavis_ext.registry import builders
from lavis_ext.schema import DatasetConfig
from lavis_ext.types import Dataset, Sample


@builders.register("image_text_label", config=LabelKeys)
def image_text_label(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Every split gives `image`, `text_input`, `label`, `image_id`, `instance_id`."""
    return build_splits(config, context, LabelDataset)


@dataclass(frozen=True, eq=False)
class LabelDataset(ImageTextDataset):
    """A picture and a sentence with a class."""

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """Sentence, class and ids; a row without a class has no `label`."""
        named: Sample = {"image_id": row[key]} if (key := self.id_key(row)) else {}
        text = self.row_text(row, self.parts.args["text_key"], index)
        return {"text_input": text, **self.label(row, index), **named, "instance_id": row["instance_id"]}

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

    @property
    def classes(self) -> list[str]:
        """The names of the classes by number."""
        return [str(name) for name in self.parts.args["labels"]]

    @property
    def class_labels(self) -> dict[str, int]:
        """The number of each class (LAVIS' attribute)."""
        return {name: number for number, name in enumerate(self.classes)}
