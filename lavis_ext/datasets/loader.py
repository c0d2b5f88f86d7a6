"""Samples are loaded here: in the calling thread or in threads, with the same results."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch

from lavis_ext.common.errors import ConfigError, LavisExtError, PartialError, TrainingError
from lavis_ext.common.types import Batch
from lavis_ext.datasets.order import BatchPlan, BatchSpec
from lavis_ext.datasets.readers.faults import FaultLog, SampleError

T = TypeVar("T")
Items = Sequence[Any]
CHUNK = 8


def load_samples(source: Any, items: Items, seeds: Sequence[int], stop: Callable[[], bool] | None = None) -> list[Any]:
    """Each sample, or the SampleError that it raised, until `stop()` says so.

    Errors that are not about one sample are raised: those of ours as they are, others as TrainingError naming the
    sample.
    """
    loaded: list[Any] = []
    for item, seed in zip(items, seeds, strict=True):
        if stop is not None and stop():
            break
        if isinstance(item, SampleError):
            loaded.append(item)
            continue
        try:
            loaded.append(source.load(item, torch.Generator().manual_seed(seed)))
        except SampleError as error:
            loaded.append(error)
        except LavisExtError:
            raise
        except Exception as error:
            where = f"sample {source.name}/{source.split}#{item if isinstance(item, int) else '?'}"
            what = f"loading failed with {type(error).__name__}: {error}"
            raise TrainingError(where, what, "this is a fault of a processor or data set, not of the file") from error
    return loaded


class LazyExecutor(Executor):
    """Does the work in the thread that asks for the result, when it asks."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """A future whose `result()` does the work."""
        return Lazy(partial(work, *args, **kwargs))


class Lazy(Future[T]):
    """What LazyExecutor gives."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> T:
        """Do the work."""
        return self._work()


class Loader:
    """Loads samples in `count` threads of this process, or with 0 in the thread that asks for them.

    Decoders and resizing leave the interpreter free, and nothing is copied. Each thread uses one core for its own
    tensor operations. Part of that setting is torch's as a whole, so all threads start here, and it is put back before
    the first batch: kernels round by the number of threads.
    """

    def __init__(self, sources: Mapping[str, Any], count: int) -> None:
        self._sources, self._stop, self.lazy = sources, threading.Event(), count == 0
        self._pool: Executor = LazyExecutor() if self.lazy else _started_threads(count)

    def submit(self, name: str, items: Items, seeds: Sequence[int]) -> Future[list[Any]]:
        """Begin to load samples of one data set: a SampleError stands in the place of each that failed.

        `items` are indices, or what a stream's `load` takes.
        """
        return self._pool.submit(load_samples, self._sources[name], items, seeds, self._stop.is_set)

    def close(self) -> None:
        """Stop after the sample in hand of each thread."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _started_threads(count: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(count, thread_name_prefix="lavis_ext-load", initializer=partial(torch.set_num_threads, 1))
    before, started = torch.get_num_threads(), threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(before)
    return pool


# A stream as the mixture draws from it: so many samples at a time, lap after lap, with the state after each draw.


class StreamCursor:
    """Draws from one stream for one rank.

    `iterate(rank, world, state)` is one lap from `state` on; after a lap the next begins from the stream's
    `state_dict()`, or from None if that gives nothing. What it yields may be SampleErrors in the place of samples. A
    stream that has a method `load(item, rng)` yields raw items, which workers then load in parallel.
    """

    def __init__(self, stream: Any, rank: int, world: int, state: Mapping[str, Any] | None) -> None:
        self._stream, self._rank, self._world = stream, rank, world
        self._items: Iterator[Any] = iter(stream.iterate(rank, world, state))

    def draw(self, count: int, again: bool = True) -> tuple[list[Any], dict[str, Any]]:
        """The next `count` items (fewer at the end of the lap if not `again`) and the state after them.

        Raises TrainingError for whatever the stream raises that is not an error of ours.
        """
        try:
            items = list(islice(self._items, count))
            while again and len(items) < count:
                items.append(self._first_of_next_lap())
                items += islice(self._items, count - len(items))
            return items, dict(self._stream.state_dict())
        except LavisExtError:
            raise
        except Exception as error:
            what = f"reading failed with {type(error).__name__}: {error}"
            raise TrainingError(f"stream '{self._stream.name}'", what, "see the log for the traceback") from error

    def _first_of_next_lap(self) -> Any:
        for state in (self._stream.state_dict(), None):
            self._items = iter(self._stream.iterate(self._rank, self._world, state))
            for item in self._items:
                return item
        raise ConfigError(
            f"stream '{self._stream.name}'", "holds no samples for this rank", "give it at least one shard a rank"
        )


# Batches on their way: a bounded number is loaded ahead and handed out in order, and what failed is counted then.


Chunk = Future[list[Any]]
Drawn = tuple[list[Chunk], dict[str, Any]]


@dataclass
class PendingBatch:
    """One batch on its way: its slot and the chunks being loaded, or for a stream the draw that will begin them."""

    slot: BatchSpec
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

    order: BatchPlan
    datasets: Mapping[str, Any]
    loader: Loader
    prefetch: int
    faults: FaultLog
    streams: dict[str, dict[str, Any]]
    _feeds: dict[str, StreamCursor] = field(default_factory=dict)
    _readers: dict[str, Executor] = field(default_factory=dict)
    _pending: deque[PendingBatch] = field(default_factory=deque)

    def run(self, slots: Iterator[BatchSpec]) -> Iterator[tuple[BatchSpec, Batch | None]]:
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

    def _name(self, slot: BatchSpec) -> str:
        return self.order.sources[slot.source].name

    def _begin(self, slot: BatchSpec) -> PendingBatch:
        name = self._name(slot)
        if not self.order.sources[slot.source].stream:
            return PendingBatch(slot, chunks=self._submit(name, slot.indices, self.order.seeds(slot)))
        if name not in self._feeds:
            self._feeds[name] = self._feed(name)
            self._readers[name] = LazyExecutor() if self.loader.lazy else ThreadPoolExecutor(1)
        return PendingBatch(slot, draw=self._readers[name].submit(self._draw, slot))

    def _feed(self, name: str) -> StreamCursor:
        return StreamCursor(self.datasets[name], self.order.rank, self.order.world, self.streams.get(name))

    def _draw(self, slot: BatchSpec) -> Drawn:
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

    def _finish(self) -> tuple[BatchSpec, Batch | None]:
        job = self._pending.popleft()
        name = self._name(job.slot)
        samples = self._collect(job)
        if not samples and self.order.parts > 1 and not self.order.exact:
            samples = self._replace(job.slot)
        if not samples:
            return job.slot, None
        batch = self.datasets[name].collater(samples)
        return job.slot, {**batch, "dataset": name}

    def _collect(self, job: PendingBatch) -> list[Any]:
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

    def _replace(self, slot: BatchSpec) -> list[Any]:
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

    def _others(self, slot: BatchSpec) -> Iterator[list[Any]]:
        """What can be loaded of as many spare samples as the slot has, time and again."""
        for indices in zip(*[iter(self.order.spares(slot))] * len(slot.indices), strict=False):
            yield self._collect(self._begin(replace(slot, indices=indices)))

    def _rewind(self, name: str, jobs: Sequence[PendingBatch]) -> None:
        """Put a stream back to where the last batch of it that came out ended."""
        for job in jobs:
            job.cancel()
        wait([job.draw for job in jobs if job.draw is not None])
        self._feeds[name] = self._feed(name)
