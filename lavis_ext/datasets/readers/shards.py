"""Samples of tar shards in webdataset's form, in an exact order that can be resumed; every lost sample is reported.

Names and grouping are webdataset's, the reader is not. webdataset reads a shard from its first byte to its last, so
that a resume within a pass reads everything before it again, and it takes a shard that was cut between two members for
a whole one. Here the headers of a shard are read once, several times as fast as the shard is expanded, and each sample
is then one read at a known offset, in any order and from any thread. `ImageTextStream.as_pipeline` makes a webdataset
pipeline of such samples.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from lavis_ext.common.errors import ConfigError, PartialError
from lavis_ext.common.files import decode_json
from lavis_ext.datasets.readers.decode import decode_rgb
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.shard_index import Extent, Shard, ShardIndex, ShardSample, sample_crc, sample_fault

log = logging.getLogger(__name__)

Place = tuple[int, int]
"""Number of a shard, number of an entry in it."""


@dataclass(frozen=True)
class ShardOrder:
    """The order of samples, a pure function of seed, pass, rank and world.

    Each pass puts the shards in a new order and cuts the sequence of their samples into one part for each rank. Parts
    are disjoint and differ by at most one sample, however few shards there are. Each part is shuffled in windows of
    `buffer` samples (0 or 1: not at all). Unlike with a shuffle buffer, a window needs none of those before it, so that
    a resume is exact and immediate.
    """

    counts: tuple[int, ...]
    seed: int = 0
    buffer: int = 10_000
    shuffle_shards: bool = True

    @cached_property
    def total(self) -> int:
        """Samples in a pass over all ranks."""
        return sum(self.counts)

    def windows(self, pass_index: int, rank: int, world: int, start: int = 0) -> Iterator[Sequence[Place]]:
        """The places of a rank's samples from number `start` of its part on, window by window."""
        shards = self._shards(pass_index)
        bounds = np.concatenate([[0], np.cumsum(np.array(self.counts, dtype=np.int64)[shards])])
        first, last = self.total * rank // world, self.total * (rank + 1) // world
        step = max(self.buffer, 1) if self.buffer > 1 else 1024
        for begin in range(first + start // step * step, last, step):
            positions = np.arange(begin, min(begin + step, last))
            if self.buffer > 1:
                positions = np.random.default_rng((self.seed, pass_index, begin)).permutation(positions)
            positions = positions[max(first + start - begin, 0) :]
            chosen = np.searchsorted(bounds, positions, side="right") - 1
            yield list(zip(shards[chosen].tolist(), (positions - bounds[chosen]).tolist(), strict=True))

    def parts(self, pass_index: int, rank: int, world: int, start: int = 0) -> list[int]:
        """The shards that a rank's part lies in from its sample number `start` on, in the order of the pass."""
        shards = self._shards(pass_index)
        bounds = np.concatenate([[0], np.cumsum(np.array(self.counts, dtype=np.int64)[shards])])
        first, last = self.total * rank // world + start, self.total * (rank + 1) // world
        if first >= last:
            return []
        begin, end = np.searchsorted(bounds, first, side="right") - 1, np.searchsorted(bounds, last, side="left")
        return [int(number) for number in shards[begin:end] if self.counts[number]]

    def _shards(self, pass_index: int) -> np.ndarray:
        if not self.shuffle_shards:
            return np.arange(len(self.counts))
        return np.random.default_rng((self.seed, pass_index)).permutation(len(self.counts))


MAX_BYTES = {"image": 1 << 28, "json": 1 << 24, "txt": 1 << 24}
COUNT_THREADS = 8
KEPT = 20_000
"""Entries of shards that were counted by reading them, kept until they are first opened: 15 MB."""


class RawSample(NamedTuple):
    """A sample whose bytes are still in its shard."""

    shard: Shard
    entry: ShardSample

    @property
    def name(self) -> str:
        """Its name in fault reports: `00003.tar!000030017`."""
        return f"{self.shard.path.name}!{self.entry.key}"

    def fault(self, why: str) -> SampleError:
        """The error for a sample that cannot be used."""
        return SampleError(self.name, self.shard.where, why)

    def read(self, kind: str) -> bytes:
        """The bytes of its `image`, `json` or `txt`; raises SampleError if they cannot be read."""
        offset, size = self.entry.members.get(kind, Extent(0, 0))
        if size > MAX_BYTES[kind]:
            raise self.fault(f"{kind} is too large: {size:,} bytes")
        try:
            data = self.shard.read_at(offset, size)
        except OSError as error:
            raise self.fault(f"shard cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise self.fault("shard became shorter while it was read")
        return data

    def check(self) -> None:
        """Compare its bytes with the manifest of its shard, where that was asked for; raises SampleError."""
        if self.entry.crc is None:
            return
        try:
            crc = sample_crc(self.shard, self.entry.members)
        except OSError as error:
            raise self.fault(f"shard cannot be read: {error.strerror}") from error
        if crc != self.entry.crc:
            raise self.fault("sample is not what its shard's manifest says")

    def pixels(self) -> Any:
        """The picture, uint8 [H,W,3]; raises SampleError."""
        return decode_rgb(self.read("image"), self.name, self.shard.where)

    def record(self) -> dict[str, Any]:
        """The JSON object; raises SampleError."""
        try:
            value = decode_json(self.read("json"))
        except (ValueError, RecursionError) as error:
            raise self.fault(f"json is damaged: {error}") from error
        if not isinstance(value, dict):
            raise self.fault("json is no object")
        return value

    def text(self) -> str:
        """The text of the `txt` member; raises SampleError where it is not UTF-8."""
        try:
            return self.read("txt").decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault("txt is not UTF-8") from error


class Bucket(Protocol):
    """Shards in an object store: opened with what is declared of them, and fetched before they are needed."""

    @property
    def limit(self) -> int:
        """Bytes of the cache."""

    @property
    def ahead(self) -> int:
        """Shards that are fetched before they are needed."""

    @property
    def identity(self) -> str:
        """What names the versions of all shards."""

    def open(self, check: bool) -> Sequence[Shard]:
        """The shards, in order."""

    def begin(self, shards: Sequence[Shard]) -> None:
        """Begin to fetch these, in this order, unless enough are on their way."""


@dataclass(eq=False)
class ShardReader:
    """The samples of a list of shards. Picklable.

    `needs` are the members that a sample must have; `limit` keeps the first samples only; `check` has each sample
    compared with the manifest of its shard. Raises PartialError where the shards hold no sample.
    """

    paths: Sequence[Path]
    """The shards' files; of a `bucket` where they will lie."""
    needs: tuple[str, ...] = ("image", "json")
    seed: int = 0
    buffer: int = 10_000
    limit: int | None = None
    check: bool = False
    unknown: Counter[str] = field(default_factory=Counter)
    """Members of other kinds in the shards read so far, which are skipped: kind → count."""
    bucket: Bucket | None = None
    _noted: set[Path] = field(default_factory=set)
    _counted: dict[int, tuple[ShardIndex, tuple[ShardSample, ...]]] = field(default_factory=dict)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The shards with their declared counts; one that differs from its manifest is logged."""
        if self.bucket is None:
            shards = tuple(Shard.open(path, self.check) for path in self.paths)
        else:
            shards = tuple(self.bucket.open(self.check))
        for shard in shards:
            if shard.fault:
                log.warning("%s %s", shard.where, shard.fault)
        return shards

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Entries of each shard, up to the limit; a shard without a declared count is indexed."""
        with ThreadPoolExecutor(COUNT_THREADS) as pool:
            counts = list(pool.map(self._count, range(len(self.shards))))
        if not sum(counts):
            where = self.shards[0].where.rpartition("/")[0] if self.shards else "shards"
            kinds = self.shards[0].entries(self.needs)[0].unknown if self.shards else {}
            others = f", but members that end in {', '.join(f'.{kind}' for kind in sorted(kinds))}" if kinds else ""
            raise PartialError(where, f"not one sample in {len(counts)} shards{others}", "prepare them again")
        for shard, count in zip(self.shards, counts, strict=True):
            if not count:
                log.warning("%s holds no samples", shard.where)
        if self.limit is None:
            return tuple(counts)
        before = (0, *accumulate(counts))
        return tuple(max(0, min(count, self.limit - done)) for count, done in zip(counts, before, strict=False))

    def _count(self, number: int) -> int:
        shard = self.shards[number]
        if self.bucket is not None or shard.promised is not None:
            return shard.count_entries(self.needs)
        found = shard.entries(self.needs)
        if sum(len(entries) for _, entries in list(self._counted.values())) < KEPT:
            self._counted[number] = found
        return len(found[1])

    @cached_property
    def order(self) -> ShardOrder:
        """The order of the samples."""
        return ShardOrder(self.counts, self.seed, self.buffer, shuffle_shards=self.buffer > 1)

    def __len__(self) -> int:
        return self.order.total

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "unknown": Counter(), "_noted": set(), "_counted": {}}

    def iterate(self, rank: int, world: int, pass_index: int = 0, start: int = 0) -> Iterator[RawSample | SampleError]:
        """A rank's part of a pass from its sample number `start` on; an entry that is not a sample is its error.

        Raises UnsafeError for a shard with a pickle in it, IntegrityError for one with more samples than declared.
        """
        opened: dict[int, tuple[ShardSample, ...]] = {}
        coming = deque(self.order.parts(pass_index, rank, world, start) if self.bucket else ())
        for window in self._windows(pass_index, rank, world, start):
            used = {number for number, _ in window}
            if self.bucket is not None:
                first = [number for number in coming if number in used]
                while coming and coming[0] in used:
                    coming.popleft()
                self._begin(self.bucket, first, coming or self.order.parts(pass_index + 1, rank, world))
            opened = {number: opened.get(number) or self._open(number) for number in sorted(used)}
            for number, place in window:
                shard, entry = self.shards[number], opened[number][place]
                yield sample_fault(shard, entry) if entry.fault else RawSample(shard, entry)

    def _windows(self, pass_index: int, rank: int, world: int, start: int) -> Iterator[Sequence[Place]]:
        """The windows of the order; where nothing is shuffled each shard is one, so that no other has to be there."""
        for window in self.order.windows(pass_index, rank, world, start):
            if self.buffer > 1:
                yield window
            else:
                yield from (list(places) for _, places in groupby(window, lambda place: place[0]))

    def _begin(self, bucket: Bucket, used: Sequence[int], coming: Sequence[int]) -> None:
        """Begin to fetch the shards of a window, and those after it as far as the cache holds them all.

        Raises ConfigError where the windows of this machine's processes together are larger than the cache: each sample
        would have its shard fetched again.
        """
        limit = bucket.limit // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
        sizes = {number: shard.remote.size for number, shard in enumerate(self.shards) if shard.remote is not None}
        need = sum(sizes[number] for number in used)
        if need > limit:
            what = f"{self.buffer:,} samples lie in {len(used)} shards of {need:,} bytes, and the cache has {limit:,}"
            raise ConfigError(self.shards[used[0]].where, what, "raise `cache_gb`, or lower `shuffle_buffer`")
        wanted = list(used)
        for number in islice(coming, bucket.ahead):
            need += sizes[number]
            if need > limit:
                break
            wanted.append(number)
        bucket.begin([self.shards[number] for number in wanted])

    def _open(self, number: int) -> tuple[ShardSample, ...]:
        # a shard without a declared count was read when it was counted, and is read again in later passes only
        known = number in self._counted
        index, entries = self._counted.pop(number) if known else self.shards[number].entries(self.needs)
        faults = Counter(entry.fault for entry in entries if entry.fault)
        if faults:
            reasons = ", ".join(f"{why} {count}x" for why, count in faults.most_common(3))
            where = self.shards[number].where
            log.warning("%s: %d of %d samples are faulty: %s", where, faults.total(), len(entries), reasons)
        self._note(index.unknown, index.path)
        return entries

    def _note(self, unknown: Mapping[str, int], path: Path) -> None:
        if path in self._noted:
            return
        self._noted.add(path)
        fresh = sorted(f".{kind}" if kind else "no suffix" for kind in set(unknown) - set(self.unknown))
        if fresh:
            log.warning("%s: members of other kinds are left out: %s", path, ", ".join(fresh))
        self.unknown.update(unknown)
