"""What is asked of a list of images, and the folders in which the work on it is remembered."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lavis_ext.cards import ImageList
from lavis_ext.fetch import MirrorMap, Policy

Distributor = Literal["multiprocessing", "pyspark", "ray"]
MOST_PROCESSES = 16


@dataclass(frozen=True, kw_only=True)
class ListJob:
    """One list: annotation files, what their keys mean, where images and bookkeeping go, and how hard to try.

    Times are seconds, sizes bytes.
    """

    name: str
    annotations: tuple[Path, ...]
    target: Path
    """Folder of the images or shards."""
    work: Path
    """Folder of the bookkeeping, on the same file system as the target."""
    spec: ImageList
    threshold: float = 1.0
    max_samples: int | None = None
    only: frozenset[str] | None = None
    """File names of the images that are wanted, in place of the first `max_samples` (engine `fetch`)."""
    mirrors: MirrorMap = field(default_factory=MirrorMap)
    policy: Policy = field(default_factory=Policy)
    distributor: Distributor = "multiprocessing"
    processes: int = 0
    """0: one per core, at most 16."""
    threads: int = 64
    """Downloads at a time, in each process."""
    timeout: float = 10.0
    """Without a byte from a host."""
    deadline: float = 60.0
    """For one body."""
    max_bytes: int = 64 << 20
    """Of one body."""
    passes: int = 2
    """Further passes over rows that failed for reasons that may pass."""
    backoff: float = 5.0
    """Before the first of them; doubled before each next one."""
    stall: float = 300.0
    """Without any progress for this long the process that downloads is killed."""
    restarts: int = 1
    """How often it is started again after that."""

    @property
    def shards(self) -> bool:
        """Whether the images go into tar shards."""
        return self.spec.output == "shards"

    @property
    def process_count(self) -> int:
        """Processes that download."""
        return self.processes or min(MOST_PROCESSES, os.cpu_count() or 1)

    @property
    def allow_private(self) -> bool:
        """Whether addresses inside this network are fine: asked for, or the user named a mirror."""
        return self.policy.allow_private or bool(self.mirrors)


@dataclass(frozen=True)
class Pass:
    """The folders of one pass: URL tables, and what img2dataset leaves for each of them; shards count from `first`."""

    folder: Path
    tables: Path
    first: int
    hashes: tuple[str, ...]
    """Of the rows of each table."""

    @property
    def count(self) -> int:
        """How many shards it has."""
        return len(self.hashes)

    @property
    def out(self) -> Path:
        """Where img2dataset works: statistics, status tables, unpublished shards."""
        return self.folder / "out"

    @property
    def shards(self) -> range:
        """The numbers of its shards."""
        return range(self.first, self.first + self.count)

    def input_hash(self, shard: int) -> str:
        """The hash of the rows of a shard."""
        return self.hashes[shard - self.first]

    def table(self, shard: int) -> Path:
        """The URL table of a shard."""
        return self.tables / f"{shard - self.first:05d}.parquet"

    def stats(self, shard: int) -> Path:
        """The statistics of a shard, which img2dataset writes last."""
        return self.out / f"{shard:05d}_stats.json"

    def status(self, shard: int) -> Path:
        """What became of each row of a shard."""
        return self.out / f"{shard:05d}.parquet"

    def pulse(self, shard: int) -> Path:
        """Rows and bytes so far."""
        return self.out / f"{shard:05d}.pulse"

    def tar(self, shard: int) -> Path:
        """The shard, before it is published."""
        return self.out / f"{shard:05d}.tar"

    def forget(self, shard: int) -> None:
        """Have a shard done anew: bookkeeping goes, published data stays where it is."""
        for path in (self.stats(shard), self.status(shard), self.pulse(shard), self.tar(shard)):
            path.unlink(missing_ok=True)
