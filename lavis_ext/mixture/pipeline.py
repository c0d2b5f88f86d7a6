"""Batches on their way: a bounded number is loaded ahead and handed out in order, and what failed is counted then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from lavis_ext.errors import PartialError
from lavis_ext.mixture.feed import Feed
from lavis_ext.mixture.loading import CHUNK, LazyExecutor, Loader
from lavis_ext.mixture.order import Order, Slot
from lavis_ext.readers.faults import FaultLog, SampleError
from lavis_ext.types import Batch

Chunk = Future[list[Any]]
Drawn = tuple[list[Chunk], dict[str, Any]]


@dataclass
class Job:
    """One batch on its way: its slot and the chunks being loaded, or for a stream the draw that will begin them."""

    slot: Slot
    chunks: list[Chunk] = field(default_factory=list)
    draw: Future[Drawn] | None = None

    def cancel(self) -> None:
        """Give up what has not begun."""
        for chunk in self.chunks:
            chunk.cancel()
        if self.draw is not None:
            self.draw.cancel()


@dataclass
class Pipeline:
    """Keeps up to `prefetch` batches on their way; `streams` holds the streams' states after the last one out."""

    order: Order
    datasets: Mapping[str, Any]
    loader: Loader
    prefetch: int
    faults: FaultLog
    streams: dict[str, dict[str, Any]]
    _feeds: dict[str, Feed] = field(default_factory=dict)
    _readers: dict[str, Executor] = field(default_factory=dict)
    _pending: deque[Job] = field(default_factory=deque)

    def run(self, slots: Iterator[Slot]) -> Iterator[tuple[Slot, Batch | None]]:
        """Each slot in order with its batch, or None where nothing of it could be loaded."""
        for slot in slots:
            self._pending.append(self._begin(slot))
            if len(self._pending) >= self.prefetch:
                yield self._finish()
        while self._pending:
            yield self._finish()

    def close(self) -> None:
        """Give up what is on its way and stop the workers."""
        for job in self._pending:
            job.cancel()
        for reader in self._readers.values():
            reader.shutdown(wait=True, cancel_futures=True)
        self.loader.close()

    def _name(self, slot: Slot) -> str:
        return self.order.sources[slot.source].name

    def _begin(self, slot: Slot) -> Job:
        name = self._name(slot)
        if not self.order.sources[slot.source].stream:
            return Job(slot, chunks=self._submit(name, slot.indices, self.order.seeds(slot)))
        if name not in self._feeds:
            self._feeds[name] = self._feed(name)
            self._readers[name] = LazyExecutor() if self.loader.lazy else ThreadPoolExecutor(1)
        return Job(slot, draw=self._readers[name].submit(self._draw, slot))

    def _feed(self, name: str) -> Feed:
        return Feed(self.datasets[name], self.order.rank, self.order.world, self.streams.get(name))

    def _draw(self, slot: Slot) -> Drawn:
        """Draw the items of a stream's slot and have them loaded, where they are not samples already."""
        name = self._name(slot)
        items, state = self._feeds[name].draw(len(slot.indices), again=not self.order.exact)
        if hasattr(self.datasets[name], "load"):
            return self._submit(name, items, self.order.seeds(slot)[: len(items)]), state
        done: Chunk = Future()
        done.set_result(items)
        return [done], state

    def _submit(self, name: str, items: Sequence[Any], seeds: Sequence[int]) -> list[Chunk]:
        return [
            self.loader.submit(name, items[i : i + CHUNK], seeds[i : i + CHUNK]) for i in range(0, len(items), CHUNK)
        ]

    def _finish(self) -> tuple[Slot, Batch | None]:
        job = self._pending.popleft()
        name = self._name(job.slot)
        samples = self._collect(job)
        if not samples and self.order.parts > 1 and not self.order.exact:
            samples = self._replace(job.slot)
        if not samples:
            return job.slot, None
        batch = self.datasets[name].collater(samples)
        return job.slot, {**batch, "dataset": name}

    def _collect(self, job: Job) -> list[Any]:
        """Wait for a job; its samples without those that failed, which are counted."""
        name = self._name(job.slot)
        if job.draw is not None:
            job.chunks, self.streams[name] = job.draw.result()
        return self._count(name, [item for chunk in job.chunks for item in chunk.result()])

    def _count(self, name: str, items: list[Any]) -> list[Any]:
        split = self.datasets[name].split
        self.faults.seen(name, split, len(items))
        for item in items:
            if isinstance(item, SampleError):
                self.faults.record(name, split, item)
        self.faults.check()
        return [item for item in items if not isinstance(item, SampleError)]

    def _replace(self, slot: Slot) -> list[Any]:
        """Other samples for a batch that failed as a whole, so that this rank stays in step with the others.

        Of a stream they are the next after its own, so what was drawn ahead for later batches is drawn anew behind
        them: the state after each batch then is where a resume goes on with the same ones.
        """
        name = self._name(slot)
        later = [job for job in self._pending if job.draw is not None and self._name(job.slot) == name]
        if later:
            self._rewind(name, later)
        samples = next(filter(None, self._others(slot)), None)
        if samples is None:
            raise PartialError(
                name, "not one sample of many tried could be loaded", f"run `lavis-ext verify {name} --repair`"
            )
        for job in later:
            job.draw = self._begin(job.slot).draw
        return samples

    def _others(self, slot: Slot) -> Iterator[list[Any]]:
        """What can be loaded of as many spare samples as the slot has, time and again."""
        for indices in zip(*[iter(self.order.spares(slot))] * len(slot.indices), strict=False):
            yield self._collect(self._begin(replace(slot, indices=indices)))

    def _rewind(self, name: str, jobs: Sequence[Job]) -> None:
        """Put a stream back to where the last batch of it that came out ended."""
        for job in jobs:
            job.cancel()
        wait([job.draw for job in jobs if job.draw is not None])
        self._feeds[name] = self._feed(name)
