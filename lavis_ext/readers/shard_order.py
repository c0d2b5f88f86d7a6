"""In which order the samples of shards come on which rank: a pure function of seed, lap, rank and world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Place = tuple[int, int]
"""Number of a shard, number of an entry in it."""


@dataclass(frozen=True)
class ShardOrder:
    """Shards in a new order each lap, their samples in one row, the row cut into equal parts for the ranks.

    Parts differ by at most one sample, whatever the shards hold and however few they are, and no sample is in two.
    Each part is shuffled in windows of `buffer` samples (0 or 1: as they stand), which is what a shuffle buffer does to
    a stream, but any window can be had without those before it: that makes a resume exact and immediate.
    """

    counts: tuple[int, ...]
    seed: int = 0
    buffer: int = 10_000
    shuffle_shards: bool = True

    @cached_property
    def total(self) -> int:
        """Samples in a lap over all ranks."""
        return sum(self.counts)

    def windows(self, lap: int, rank: int, world: int, start: int = 0) -> Iterator[Sequence[Place]]:
        """The places of a rank's samples from number `start` of its part on, window by window."""
        shards = self._shards(lap)
        bounds = np.concatenate([[0], np.cumsum(np.array(self.counts, dtype=np.int64)[shards])])
        first, last = self.total * rank // world, self.total * (rank + 1) // world
        step = max(self.buffer, 1) if self.buffer > 1 else 1024
        for begin in range(first + start // step * step, last, step):
            positions = np.arange(begin, min(begin + step, last))
            if self.buffer > 1:
                positions = np.random.default_rng((self.seed, lap, begin)).permutation(positions)
            positions = positions[max(first + start - begin, 0) :]
            chosen = np.searchsorted(bounds, positions, side="right") - 1
            yield list(zip(shards[chosen].tolist(), (positions - bounds[chosen]).tolist(), strict=True))

    def _shards(self, lap: int) -> np.ndarray:
        if not self.shuffle_shards:
            return np.arange(len(self.counts))
        return np.random.default_rng((self.seed, lap)).permutation(len(self.counts))
