"""What data sets of annotation rows share, whatever else a sample holds: names, counts, rows, and faults with ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavis_ext.builders.context import Parts
from lavis_ext.collate import collate
from lavis_ext.readers.faults import SampleError
from lavis_ext.readers.parse import Row
from lavis_ext.types import Batch, Sample


@dataclass(frozen=True, eq=False)
class RowsDataset:
    """Rows of one split. Picklable."""

    parts: Parts

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.parts.config.name

    @property
    def split(self) -> str:
        """The split."""
        return self.parts.split

    @property
    def rows(self) -> Any:
        """The annotation records, in the order of the files."""
        return self.parts.rows

    @property
    def annotation(self) -> Any:
        """The rows under LAVIS' name."""
        return self.parts.rows

    @property
    def tolerance(self) -> float:
        """Share of samples that may fail."""
        return self.parts.config.tolerance

    def __len__(self) -> int:
        count = self.count()
        return count if self.parts.limit is None else min(count, self.parts.limit)

    def count(self) -> int:
        """How many samples there are before `max_samples` cuts them."""
        return len(self.rows)

    def row(self, index: int) -> Row:
        """The annotation record of a sample; raises IndexError beyond the end."""
        row: Row = self.rows[self.position(index)]
        return row

    def position(self, index: int) -> int:
        """The number of a sample's row, counted from the first file's first; negative indices count from the end."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)} of {self.name}/{self.split}")
        return position

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch."""
        return collate(samples)

    def sample_id(self, index: int) -> str:
        """What a sample is called in fault reports: `coco_caption/train#17`."""
        return f"{self.name}/{self.split}#{index}"

    def fault(self, index: int, why: str) -> SampleError:
        """The error for a sample whose row cannot be used."""
        return SampleError(self.sample_id(index), ", ".join(map(str, self.parts.files_read)), why)
