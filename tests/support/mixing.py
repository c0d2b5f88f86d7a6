"""Data sets and streams for tests of the mixture: they draw their pictures from the generator they are handed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lavis_ext.datasets.collate import collate
from lavis_ext.datasets.readers import SampleError


@dataclass
class Numbers:
    """`size` samples whose picture depends on index and generator; some are missing, one may raise."""

    size: int
    name: str = "numbers"
    split: str = "train"
    bad: frozenset[int] = frozenset()
    broken: int | None = None
    delay_s: float = 0.0

    def __len__(self) -> int:
        return self.size

    def load(self, index: int, rng: torch.Generator) -> dict[str, Any]:
        """uint8 [1,2,2] of noise and the index."""
        time.sleep(self.delay_s)
        if index in self.bad:
            raise SampleError(f"{self.name}/{self.split}#{index}", f"/x/{index}.jpg", "image is missing")
        if index == self.broken:
            raise ZeroDivisionError("a bug")
        image = torch.randint(0, 256, (1, 2, 2), dtype=torch.uint8, generator=rng)
        return {"image": image, "key": index, "thread": threading.current_thread().name}

    def collater(self, samples: Sequence[Any]) -> dict[str, Any]:
        """A batch."""
        return collate(samples)


@dataclass
class Shards:
    """A stream of `epoch_size` numbers, every `world`th for each rank; raw ones get their picture from `load`."""

    epoch_size: int
    name: str = "shards"
    split: str = "train"
    bad: frozenset[int] = frozenset()
    state: dict[str, int] = field(default_factory=lambda: {"lap": 0, "done": 0})

    def iterate(self, rank: int, world: int, state: Mapping[str, Any] | None) -> Iterator[Any]:
        """The rest of one pass."""
        lap, done = (state["lap"], state["done"]) if state else (0, 0)
        for position, number in enumerate(range(rank, self.epoch_size, world)):
            if position >= done:
                self.state = {"lap": lap, "done": position + 1}
                yield self.item(number, lap)
        self.state = {"lap": lap + 1, "done": 0}

    def item(self, number: int, lap: int) -> Any:
        """A sample, or the fault of one."""
        if number in self.bad:
            return SampleError(f"{self.name}#{number}", "/x.tar", "image is missing")
        return {"key": number, "lap": lap, "image": torch.full((1, 2, 2), number % 256, dtype=torch.uint8)}

    def state_dict(self) -> dict[str, int]:
        """Where the last item stood."""
        return dict(self.state)

    def collater(self, samples: Sequence[Any]) -> dict[str, Any]:
        """A batch."""
        return collate(samples)


class RawShards(Shards):
    """A stream whose items workers turn into samples."""

    def item(self, number: int, lap: int) -> Any:
        """The number alone."""
        return number

    def load(self, item: int, rng: torch.Generator) -> dict[str, Any]:
        """The sample of a number; a bad one fails here."""
        if item in self.bad:
            raise SampleError(f"{self.name}#{item}", "/x.tar", "image is missing")
        return {"key": item, "image": torch.randint(0, 256, (1, 2, 2), dtype=torch.uint8, generator=rng)}


def seen(batch: Mapping[str, Any]) -> tuple[str, tuple[Any, ...], bytes]:
    """What makes two batches the same: data set, keys, pixels."""
    return batch["dataset"], tuple(batch["key"]), batch["image"].numpy().tobytes()
