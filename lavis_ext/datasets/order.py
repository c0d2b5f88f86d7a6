"""Which samples make up which batch on which rank: a pure function of seed and epoch.

A global batch takes its samples from one source and is cut into one batch for each rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from lavis_ext.common.errors import ConfigError

WINDOW = 50
"""Global batches that are sorted by length together: more of them pad less, fewer are more random.

50 cut the mean padded width of VQA records from 81 to 59 at batch size 32 (benchmarks/oscar_loading.md).
"""
WINDOWS = 4
"""Least windows in a pass, as in transformers' LengthGroupedSampler: with one, all epochs have similar batches."""
LIMIT = 1 << 31
"""Lengths are kept as int32."""


@dataclass(frozen=True)
class MixtureSource:
    """A data set (or stream) of a plan: its name and how many samples one pass over it has.

    `lengths`, whole numbers [size, axes], are given where samples of similar length share a batch. An `exact` stream
    gives each sample once a pass, over all ranks.
    """

    name: str
    size: int
    stream: bool = False
    lengths: np.ndarray | None = field(default=None, compare=False, repr=False)
    exact: bool = False

    @cached_property
    def digest(self) -> str:
        """A checksum of the lengths, empty without."""
        return "" if self.lengths is None else digest(self.lengths)


@dataclass(frozen=True)
class BatchSpec:
    """One batch of one rank: which source, which pass over it, which samples (for a stream: how many).

    `number` is that of the global batch in the epoch, `part` says which of its parts this is, `turn` counts the batches
    of this rank in the epoch. `turn` is `number` and `part` the rank unless the run was started with other ranks.
    """

    epoch: int
    number: int
    source: int
    pass_index: int
    indices: tuple[int, ...]
    turn: int = 0
    part: int = 0


@dataclass(frozen=True)
class BatchPlan:
    """Cuts sources into global batches and orders them; global batch n is of the same source on every rank.

    A global batch takes `batch_size` samples for each of `world` ranks from one source. Without `weights` an epoch has
    every global batch of every source once, shuffled. With `weights` the source of each is drawn by weight, an epoch
    has equally many, and a source that is used up begins a new pass in a new permutation (passes go on over epochs).

    The rest of a source (fewer than `batch_size * world` samples) is a smaller global batch, divided over the ranks as
    evenly as possible. `exact` (evaluation) keeps it whatever its size, so that each sample comes exactly once on one
    rank and ranks may differ by one batch. Otherwise all ranks get equally many batches: a rest smaller than `world` is
    left out, with `drop_last` every rest is, unless the source has nothing else. A stream has whole batches only, the
    last of which goes on into the next pass; an exact one ends its pass with smaller ones, equally many on every rank.

    A resume with fewer ranks keeps the order if each rank takes `parts_per_rank` parts of a global batch, in turn; one
    with more ranks keeps it if `concurrent` global batches are taken at once, by different ranks.

    A shuffled source with `lengths` is rearranged in windows of `window` global batches (see `grouped`).
    """

    sources: tuple[MixtureSource, ...]
    batch_size: int
    seed: int = 0
    weights: tuple[float, ...] | None = None
    shuffle: bool = True
    rank: int = 0
    world: int = 1
    drop_last: bool = False
    exact: bool = False
    parts_per_rank: int = 1
    concurrent: int = 1
    window: int = WINDOW

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world or not self.sources:
            what = f"batch_size {self.batch_size}, rank {self.rank} of {self.world}, {len(self.sources)} data sets"
            raise ConfigError("mixture", what, "each must be at least one, and rank below world")
        if self.weights is not None:
            _check_weights(self.weights, len(self.sources), self.exact)
        for source, batches in zip(self.sources, self.batches_per_pass, strict=True):
            if batches == 0:
                what = f"has {source.size} samples for {self.parts} ranks"
                raise ConfigError(f"data set '{source.name}'", what, "use fewer ranks, or leave the data set out")
            if source.exact and self.batch_size == 1 and source.size % self.parts and not self.exact:
                what = f"{source.size} samples do not divide by {self.parts} ranks, and no batch can be smaller than 1"
                raise ConfigError(f"data set '{source.name}'", what, "use batches of 2, or leave out exact")

    @property
    def parts(self) -> int:
        """Parts of a global batch: the number of ranks that the run was started with."""
        return self.world * self.parts_per_rank // self.concurrent

    @cached_property
    def batches_per_pass(self) -> tuple[int, ...]:
        """Global batches in one pass over each source."""
        return tuple(self._batches_of(source) for source in self.sources)

    @property
    def total(self) -> int:
        """Global batches in an epoch, over all sources."""
        return sum(self.batches_per_pass)

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        if not self.exact:
            return self.total * self.parts_per_rank // self.concurrent
        span = self.batch_size * self.world
        rests = (source.size % span for source in self.sources if not source.stream)
        return self.total - sum(0 < rest <= self.rank for rest in rests)

    def specs(self, epoch: int, start: int = 0) -> Iterator[BatchSpec]:
        """The batches of this rank in an epoch, from its batch number `start` on."""
        sources, places, passes = self._epoch_order(epoch)
        group, place = divmod(self.rank, self.world // self.concurrent)
        for turn in range(start, self.total * self.parts_per_rank // self.concurrent):
            number, piece = turn // self.parts_per_rank * self.concurrent + group, turn % self.parts_per_rank
            source, pass_index, part = int(sources[number]), int(passes[number]), place * self.parts_per_rank + piece
            indices = self._part(source, pass_index, int(places[number]), part)
            if len(indices):
                yield BatchSpec(epoch, number, source, pass_index, tuple(indices.tolist()), turn, part)

    def seeds(self, spec: BatchSpec) -> list[int]:
        """The seed of each sample's augmentation; for a data set it depends on sample and pass, not on the rank."""
        source = self.sources[spec.source]
        once = f"{spec.epoch}.{spec.number}.{spec.part}" if source.stream else str(spec.pass_index)
        return [_hash(self.seed, source.name, once, index, size=8) >> 1 for index in spec.indices]

    def spares(self, spec: BatchSpec) -> tuple[int, ...]:
        """Samples of the same source to try where all of a batch failed, in a random order that differs by rank."""
        size = self.sources[spec.source].size
        rng = generator(self.seed, "spare", spec.epoch, spec.number, spec.part)
        return tuple(rng.integers(size, size=8 * self.batch_size).tolist())

    def _batches_of(self, source: MixtureSource) -> int:
        full, rest = divmod(source.size, self.batch_size * self.parts)
        if self.exact:
            return full + (rest > 0)
        if source.exact:
            return full + (rest > 0) if source.size >= self.parts else 0
        return full + (rest >= self.parts and (full == 0 or not self.drop_last))

    def _epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each global batch of an epoch: its source, its number within the pass, the pass; int64 [total] each."""
        if self.weights is None:
            sources = np.repeat(np.arange(len(self.sources)), self.batches_per_pass)
            places = np.concatenate([np.arange(count) for count in self.batches_per_pass])
            # the word "slots" is part of the seed: another one would change the order of every run
            order = generator(self.seed, "slots", epoch).permutation(self.total) if self.shuffle else slice(None)
            return sources[order], places[order], np.full(self.total, epoch)
        sources = self._draw(epoch)
        count = np.zeros(self.total, dtype=np.int64)
        for number, before in enumerate(self._drawn_before(epoch)):
            mine = sources == number
            count[mine] = before + np.arange(mine.sum())
        passes, places = np.divmod(count, np.array(self.batches_per_pass)[sources])
        return sources, places, passes

    def _draw(self, epoch: int) -> np.ndarray:
        shares = np.array(self.weights, dtype=np.float64)
        return generator(self.seed, "draw", epoch).choice(len(shares), size=self.total, p=shares / shares.sum())

    def _drawn_before(self, epoch: int) -> np.ndarray:
        """How often each source was drawn in all earlier epochs; epochs that are not cached are drawn again."""
        known = max(e for e in self._drawn if e <= epoch)
        count = self._drawn[known]
        for earlier in range(known, epoch):
            count = count + np.bincount(self._draw(earlier), minlength=len(count))
        self._drawn[epoch] = count
        return count

    @cached_property
    def _drawn(self) -> dict[int, np.ndarray]:
        return {0: np.zeros(len(self.sources), dtype=np.int64)}

    def _part(self, number: int, pass_index: int, place: int, part: int) -> np.ndarray:
        """Indices of one part of global batch `place` of a pass; for a stream only their count has a meaning."""
        source, span = self.sources[number], self.batch_size * self.parts
        if source.stream:
            return np.arange(self._exact_size(source, place, part) if source.exact else self.batch_size)
        first, last = place * span, min((place + 1) * span, source.size)
        base, extra = divmod(last - first, self.parts)
        begin = first + part * base + min(part, extra)
        end = begin + base + (part < extra)
        return self._pass_order(number, pass_index)[begin:end] if self.shuffle else np.arange(begin, end)

    def _exact_size(self, source: MixtureSource, place: int, part: int) -> int:
        """Samples in batch `place` of a rank's pass over an exact stream: whole ones, then what is left of its part.

        Where other ranks have one sample more, and with it one batch, the last but one of this rank gives a sample.
        """
        share = source.size * (part + 1) // self.parts - source.size * part // self.parts
        left, after = share - place * self.batch_size, self._batches_of(source) - place - 1
        return min(self.batch_size, left - after) if left > after else 1

    def _pass_order(self, number: int, pass_index: int) -> np.ndarray:
        """The order of a source's samples in one pass, int64 [size]; the last one of each source is cached."""
        known = self._orders.get(number)
        if known is None or known[0] != pass_index:
            source = self.sources[number]
            found = permutation(self.seed, source.name, pass_index, source.size)
            if source.lengths is not None:
                rng = generator(self.seed, "lengths", source.name, pass_index)
                found = grouped(found, source.lengths, self.batch_size * self.parts, self.window, rng)
            self._orders[number] = known = (pass_index, found)
        return known[1]

    @cached_property
    def _orders(self) -> dict[int, tuple[int, np.ndarray]]:
        return {}


def _check_weights(weights: tuple[float, ...], count: int, exact: bool) -> None:
    if exact:
        raise ConfigError(
            "mixture", "weights with neither shuffle nor repeat", "leave the weights out of an evaluation"
        )
    if len(weights) != count or not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise ConfigError(
            "mixture weights", f"{list(weights)} for {count} data sets", "give each a number of at least 0, not all 0"
        )


def generator(seed: int, *words: str | int) -> np.random.Generator:
    """An independent generator for the purpose that `words` name."""
    return np.random.Generator(np.random.Philox(key=_hash(seed, *words, size=16)))


def _hash(*words: str | int, size: int) -> int:
    return int.from_bytes(blake2b("/".join(map(str, words)).encode(), digest_size=size).digest(), "little")


def permutation(seed: int, name: str, pass_index: int, size: int) -> np.ndarray:
    """The shuffled order of a source's samples in one pass, int64 [size]."""
    return generator(seed, "samples", name, pass_index).permutation(size)


def grouped(order: np.ndarray, lengths: np.ndarray, span: int, window: int, rng: np.random.Generator) -> np.ndarray:
    """Rearrange the order int64 [n] so that samples of similar length share a global batch.

    Each window of `window` global batches (fewer in a short pass) of `span` samples keeps its samples. With one axis of
    lengths it is sorted by it; with two it is sorted by the first, cut into about √window strips, and each strip is
    sorted by the second; and so on. Then the batches of a window are shuffled, and the samples of each batch, so that
    all ranks get similar ones. The rest after the last whole batch stays at the end, so that no length is more likely
    than another to be left out.
    """
    count = len(order) // span
    window = max(min(window, count // WINDOWS), 1)
    numbers, axes = np.arange(count), lengths.shape[1]
    windows, within = numbers // window, numbers % window
    strips, kept = windows, order[: count * span]
    for axis in range(axes):
        kept = _sorted_within(np.repeat(strips, span), kept, lengths[:, axis])
        cuts = round(window ** ((axis + 1) / axes))
        strips = windows * cuts + within * cuts // window
    batches = rng.permuted(kept.reshape(count, span), axis=1)
    shuffled = np.lexsort((rng.random(count), windows))
    return np.concatenate([batches[shuffled].reshape(-1), order[count * span :]])


def _sorted_within(groups: np.ndarray, order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The order sorted by length within each run of equal groups; stable, so the same on every machine."""
    mine = lengths[order].astype(np.int64)
    return order[np.argsort(groups * (int(mine.max(initial=0)) + 1) + mine, kind="stable")]


class Measured(Protocol):
    """A data set that knows the length of its samples without loading them, as every data set of region features does.

    `lengths` gives all of them at once, which is faster than `length` for each of many samples.
    """

    lengths: np.ndarray | None
    """Whole numbers [len] or [len, axes], one for each part that a batch pads by itself; None: not known."""

    def length(self, index: int) -> int:
        """About how long one sample is."""


def lengths_of(name: str, dataset: Any) -> np.ndarray | None:
    """int32 [len, axes] of a data set that has `lengths` or `length(index)`, None of others and of streams.

    Axes on which all samples have the same length are left out; None if no axis remains. Raises ConfigError for a wrong
    number of lengths, or for values that are no lengths.
    """
    kind = type(dataset)
    if hasattr(dataset, "iterate") or not (hasattr(kind, "lengths") or hasattr(kind, "length")):
        return None
    count = len(dataset)
    found = dataset.lengths if hasattr(kind, "lengths") else [dataset.length(index) for index in range(count)]
    if found is None:
        return None
    array = np.asarray(found)
    array = array[:, None] if array.ndim == 1 else array
    fits = array.ndim == 2 and len(array) == count and array.shape[1] and array.dtype.kind in "iu"
    if not fits or (count and not 0 <= array.min() <= array.max() < LIMIT):
        what = f"{array.dtype} of shape {list(np.shape(found))} for {count} samples"
        raise ConfigError(f"lengths of data set '{name}'", what, "give whole numbers from 0 on, one row a sample")
    differing = (array != array[:1]).any(0)
    return array[:, differing].astype(np.int32) if differing.any() else None


def digest(lengths: np.ndarray) -> str:
    """A short checksum of lengths, which a resume compares: the order of the samples depends on them."""
    return blake2b(np.ascontiguousarray(lengths).data, digest_size=8).hexdigest()
