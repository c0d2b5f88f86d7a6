"""Which samples make up which batch on which rank: a pure function of seed and epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from lavis_ext.common.errors import ConfigError

# Samples of like length in one batch: the order of a lap, rearranged window by window, so that padding is less.


WINDOW = 50
"""Batches of each rank whose samples are sorted together: more pad less, fewer are drawn more freely."""
WINDOWS = 4
"""A lap has at least so many, as in transformers' LengthGroupedSampler: of one, all epochs would have like batches."""
LIMIT = 1 << 31


class Measured(Protocol):
    """A data set that knows how long its samples are without loading them; every data set on region features does.

    `lengths` is worth having beside `length` where there are many samples: it is asked for all of them at once.
    """

    lengths: np.ndarray | None
    """Whole numbers [len] or [len, axes], one for each part that a batch pads by itself; None: not known."""

    def length(self, index: int) -> int:
        """About how long one sample is."""


def lengths_of(name: str, dataset: Any) -> np.ndarray | None:
    """int32 [len, axes] of a data set that has `lengths` or `length(index)`, None of others and of streams.

    Axes on which all samples are alike are left out; None too where none is left. Raises ConfigError where there are
    not as many as samples, or where one is no length.
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
    """A short checksum of lengths: the order of a run hangs on them."""
    return blake2b(np.ascontiguousarray(lengths).data, digest_size=8).hexdigest()


def grouped(order: np.ndarray, lengths: np.ndarray, span: int, window: int, rng: np.random.Generator) -> np.ndarray:
    """The order int64 [n] with samples of like length beside each other; the same samples in each window as before.

    Slots of `span` samples are made anew within windows of `window` slots (of fewer in a short lap). With two axes a
    window is sorted by the first and cut into about √window strips, each of which is sorted by the second, and so on
    for more. Then the slots of a window are shuffled, and the samples within each slot, so that all ranks get alike
    ones. What is left over after the last whole slot stays at the end as it was: no length is likelier than another to
    be left out.
    """
    slots = len(order) // span
    window = max(min(window, slots // WINDOWS), 1)
    numbers, axes = np.arange(slots), lengths.shape[1]
    windows, within = numbers // window, numbers % window
    strips, kept = windows, order[: slots * span]
    for axis in range(axes):
        kept = _sorted_within(np.repeat(strips, span), kept, lengths[:, axis])
        count = round(window ** ((axis + 1) / axes))
        strips = windows * count + within * count // window
    batches = rng.permuted(kept.reshape(slots, span), axis=1)
    shuffled = np.lexsort((rng.random(slots), windows))
    return np.concatenate([batches[shuffled].reshape(-1), order[slots * span :]])


def _sorted_within(groups: np.ndarray, order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The order sorted by length within each run of equal groups; ties stay as they are, on every machine alike."""
    mine = lengths[order].astype(np.int64)
    return order[np.argsort(groups * (int(mine.max(initial=0)) + 1) + mine, kind="stable")]


@dataclass(frozen=True)
class MixtureSource:
    """A data set (or stream) as the order sees it: its name and how many samples one lap has.

    `lengths`, whole numbers [size, axes], are those of samples that are to be batched with their like.
    """

    name: str
    size: int
    stream: bool = False
    lengths: np.ndarray | None = field(default=None, compare=False, repr=False)

    @cached_property
    def digest(self) -> str:
        """A checksum of the lengths, empty without."""
        return "" if self.lengths is None else digest(self.lengths)


@dataclass(frozen=True)
class BatchSpec:
    """One batch of one rank: which source, in which of its laps, which samples (for a stream: how many).

    `turn` counts the batches of this rank in the epoch, `part` says which of the slot's parts it is: the slot's number
    and the rank, unless the order is that of a run with another number of ranks.
    """

    epoch: int
    number: int
    source: int
    lap: int
    indices: tuple[int, ...]
    turn: int = 0
    part: int = 0


@dataclass(frozen=True)
class BatchPlan:
    """Cuts sources into batches and puts the batches in a row; slot n is the same source on every rank.

    A slot takes `batch_size` samples for each of `world` ranks from one source. Without `weights` an epoch has every
    slot of every source once, shuffled; with them each slot's source is drawn by weight, an epoch has as many slots,
    and a source that is used up begins a new lap in a new permutation (laps go on over epochs).

    What a source leaves over (fewer than `batch_size * world` samples) is a smaller slot, split over the ranks as
    evenly as it goes. `exact` (evaluation) keeps it whatever its size, so that each sample comes exactly once on one
    rank and ranks may differ by one batch. Otherwise all ranks get equally many batches: a rest smaller than `world` is
    left out, with `drop_last` every rest is, unless the source has nothing else.

    The order of a run with more ranks goes on with fewer where each takes `split` parts of a slot, one after the other;
    that of one with fewer ranks goes on with more where `joint` slots are taken at once, by different ranks.

    A shuffled source with `lengths` has its lap cut into windows of `window` slots, in each of which slots are made
    anew of samples of like length (see `grouped`).
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
    split: int = 1
    joint: int = 1
    window: int = WINDOW

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world or not self.sources:
            what = f"batch_size {self.batch_size}, rank {self.rank} of {self.world}, {len(self.sources)} data sets"
            raise ConfigError("mixture", what, "each must be at least one, and rank below world")
        if self.weights is not None:
            _check_weights(self.weights, len(self.sources), self.exact)
        for source, slots in zip(self.sources, self.laps, strict=True):
            if slots == 0:
                what = f"has {source.size} samples for {self.parts} ranks"
                raise ConfigError(f"data set '{source.name}'", what, "use fewer ranks, or leave the data set out")

    @property
    def parts(self) -> int:
        """Into how many batches a slot is cut: the ranks of the run that it was made for."""
        return self.world * self.split // self.joint

    @cached_property
    def laps(self) -> tuple[int, ...]:
        """Slots in one lap of each source."""
        return tuple(self._slots_of(source) for source in self.sources)

    @property
    def total(self) -> int:
        """Slots in an epoch, over all sources."""
        return sum(self.laps)

    def __len__(self) -> int:
        """Batches that this rank gets in an epoch."""
        if not self.exact:
            return self.total * self.split // self.joint
        span = self.batch_size * self.world
        rests = (source.size % span for source in self.sources if not source.stream)
        return self.total - sum(0 < rest <= self.rank for rest in rests)

    def slots(self, epoch: int, start: int = 0) -> Iterator[BatchSpec]:
        """The batches of this rank from its turn `start` of an epoch on."""
        sources, parts, laps = self._row(epoch)
        group, place = divmod(self.rank, self.world // self.joint)
        for turn in range(start, self.total * self.split // self.joint):
            number, piece = turn // self.split * self.joint + group, turn % self.split
            source, lap, part = int(sources[number]), int(laps[number]), place * self.split + piece
            indices = self._part(source, lap, int(parts[number]), part)
            if len(indices):
                yield BatchSpec(epoch, number, source, lap, tuple(indices.tolist()), turn, part)

    def seeds(self, slot: BatchSpec) -> list[int]:
        """The seed of each sample's augmentation; for a data set it depends on sample and lap, not on batch or rank."""
        source = self.sources[slot.source]
        lap = f"{slot.epoch}.{slot.number}.{slot.part}" if source.stream else str(slot.lap)
        return [_hash(self.seed, source.name, lap, index, size=8) >> 1 for index in slot.indices]

    def spares(self, slot: BatchSpec) -> tuple[int, ...]:
        """Samples of the slot's source to try where all of its own failed, in an order of the rank's own."""
        size = self.sources[slot.source].size
        rng = generator(self.seed, "spare", slot.epoch, slot.number, slot.part)
        return tuple(rng.integers(size, size=8 * self.batch_size).tolist())

    def _slots_of(self, source: MixtureSource) -> int:
        full, rest = divmod(source.size, self.batch_size * self.parts)
        if self.exact:
            return full + (rest > 0)
        return full + (rest >= self.parts and (full == 0 or not self.drop_last))

    def _row(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per slot of an epoch: source, number of the slot within its lap, lap."""
        if self.weights is None:
            sources = np.repeat(np.arange(len(self.laps)), self.laps)
            parts = np.concatenate([np.arange(slots) for slots in self.laps])
            order = generator(self.seed, "slots", epoch).permutation(self.total) if self.shuffle else slice(None)
            return sources[order], parts[order], np.full(self.total, epoch)
        sources = self._draw(epoch)
        count = np.zeros(self.total, dtype=np.int64)
        for number, before in enumerate(self._drawn_before(epoch)):
            mine = sources == number
            count[mine] = before + np.arange(mine.sum())
        laps, parts = np.divmod(count, np.array(self.laps)[sources])
        return sources, parts, laps

    def _draw(self, epoch: int) -> np.ndarray:
        shares = np.array(self.weights, dtype=np.float64)
        return generator(self.seed, "draw", epoch).choice(len(shares), size=self.total, p=shares / shares.sum())

    def _drawn_before(self, epoch: int) -> np.ndarray:
        """How often each source was drawn in all earlier epochs, by drawing those again that are not known yet."""
        known = max(e for e in self._drawn if e <= epoch)
        count = self._drawn[known]
        for earlier in range(known, epoch):
            count = count + np.bincount(self._draw(earlier), minlength=len(count))
        self._drawn[epoch] = count
        return count

    @cached_property
    def _drawn(self) -> dict[int, np.ndarray]:
        return {0: np.zeros(len(self.sources), dtype=np.int64)}

    def _part(self, number: int, lap: int, slot: int, part: int) -> np.ndarray:
        """Indices of one part of one slot of a lap; for a stream only their count means something."""
        source, span = self.sources[number], self.batch_size * self.parts
        if source.stream:
            return np.arange(self.batch_size)
        first, last = slot * span, min((slot + 1) * span, source.size)
        base, extra = divmod(last - first, self.parts)
        begin = first + part * base + min(part, extra)
        end = begin + base + (part < extra)
        return self._lap(number, lap)[begin:end] if self.shuffle else np.arange(begin, end)

    def _lap(self, number: int, lap: int) -> np.ndarray:
        """The order of a source's samples in one lap, int64 [size]; of each source the last one asked for is kept."""
        known = self._orders.get(number)
        if known is None or known[0] != lap:
            source = self.sources[number]
            found = permutation(self.seed, source.name, lap, source.size)
            if source.lengths is not None:
                rng = generator(self.seed, "lengths", source.name, lap)
                found = grouped(found, source.lengths, self.batch_size * self.parts, self.window, rng)
            self._orders[number] = known = (lap, found)
        return known[1]

    @cached_property
    def _orders(self) -> dict[int, tuple[int, np.ndarray]]:
        return {}


def generator(seed: int, *words: str | int) -> np.random.Generator:
    """A generator of its own for each purpose that `words` name."""
    return np.random.Generator(np.random.Philox(key=_hash(seed, *words, size=16)))


def _hash(*words: str | int, size: int) -> int:
    return int.from_bytes(blake2b("/".join(map(str, words)).encode(), digest_size=size).digest(), "little")


def permutation(seed: int, name: str, lap: int, size: int) -> np.ndarray:
    """The order of a source's samples in one lap, int64 [size]."""
    return generator(seed, "samples", name, lap).permutation(size)


def _check_weights(weights: tuple[float, ...], count: int, exact: bool) -> None:
    if exact:
        raise ConfigError(
            "mixture", "weights with neither shuffle nor repeat", "leave the weights out of an evaluation"
        )
    if len(weights) != count or not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise ConfigError(
            "mixture weights", f"{list(weights)} for {count} data sets", "give each a number of at least 0, not all 0"
        )
