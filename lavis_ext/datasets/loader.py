"""Loads the batches of a plan: prefetched in threads or in the calling thread, with the same results, in order."""

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
    """Each sample, or the SampleError that it raised, until `stop()` is true.

    Other errors are raised: a LavisExtError as it is, anything else as a TrainingError that names the sample.
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
            raise TrainingError(where, what, "correct the processor or data set: the file is not at fault") from error
    return loaded


class LazyExecutor(Executor):
    """Runs the work in the thread that asks for the result, when it asks."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """A future whose `result()` runs the work."""
        return Lazy(partial(work, *args, **kwargs))


class Lazy(Future[T]):
    """The future of a LazyExecutor."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> T:
        """Run the work."""
        return self._work()


class Loader:
    """Loads samples in `count` threads of this process, or with 0 in the thread that asks for them.

    Threads, not processes: decoders and resizing release the GIL and nothing is copied. In a prototype with the same
    decoding two threads gave 926 samples/s, two worker processes 677. Each thread uses one core for its tensor
    operations. torch keeps part of that setting for the whole process, so all threads start here and it is restored
    before the first batch: the rounding of kernels depends on the number of threads.
    """

    def __init__(self, sources: Mapping[str, Any], count: int) -> None:
        self._sources, self._stop, self.lazy = sources, threading.Event(), count == 0
        self._pool: Executor = LazyExecutor() if self.lazy else _started_threads(count)

    def submit(self, name: str, items: Items, seeds: Sequence[int]) -> Future[list[Any]]:
        """Begin to load samples of one data set; the result has a SampleError in place of each that failed.

        `items` are indices, or what a stream's `load` takes.
        """
        return self._pool.submit(load_samples, self._sources[name], items, seeds, self._stop.is_set)

    def close(self) -> None:
        """Stop each thread after its present sample."""
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


class StreamCursor:
    """Draws items from one stream for one rank, pass after pass, with the state after each draw.

    `iterate(rank, world, state)` is one pass from `state` on; the next pass begins from the stream's `state_dict()`, or
    from None if that yields nothing. The stream may yield a SampleError in place of a sample. A stream with a method
    `load(item, rng)` yields raw items, which workers then load in parallel.
    """

    def __init__(self, stream: Any, rank: int, world: int, state: Mapping[str, Any] | None) -> None:
        self._stream, self._rank, self._world = stream, rank, world
        self._items: Iterator[Any] = iter(stream.iterate(rank, world, state))

    def draw(self, count: int, again: bool = True) -> tuple[list[Any], dict[str, Any]]:
        """The next `count` items (fewer at the end of the pass if not `again`) and the state after them.

        Raises TrainingError for an error of the stream that is not a LavisExtError.
        """
        try:
            items = list(islice(self._items, count))
            while again and len(items) < count:
                items.append(self._first_of_next_pass())
                items += islice(self._items, count - len(items))
            return items, dict(self._stream.state_dict())
        except LavisExtError:
            raise
        except Exception as error:
            what = f"reading failed with {type(error).__name__}: {error}"
            raise TrainingError(f"stream '{self._stream.name}'", what, "see the log for the traceback") from error

    def _first_of_next_pass(self) -> Any:
        for state in (self._stream.state_dict(), None):
            self._items = iter(self._stream.iterate(self._rank, self._world, state))
            for item in self._items:
                return item
        raise ConfigError(
            f"stream '{self._stream.name}'", "holds no samples for this rank", "give it at least one shard a rank"
        )


Chunk = Future[list[Any]]
Drawn = tuple[list[Chunk], dict[str, Any]]


@dataclass
class PendingBatch:
    """A batch being loaded: its spec and its chunks, or for a stream the draw that will start them."""

    spec: BatchSpec
    chunks: list[Chunk] = field(default_factory=list)
    draw: Future[Drawn] | None = None

    def cancel(self) -> None:
        """Cancel what has not started."""
        for chunk in self.chunks:
            chunk.cancel()
        if self.draw is not None:
            self.draw.cancel()


@dataclass
class Pipeline:
    """Keeps up to `prefetch` batches loading; `streams` holds the streams' states after the last batch handed out.

    Samples that failed are counted in `faults` when their batch is handed out, not when it is loaded.
    """

    order: BatchPlan
    datasets: Mapping[str, Any]
    loader: Loader
    prefetch: int
    faults: FaultLog
    streams: dict[str, dict[str, Any]]
    _cursors: dict[str, StreamCursor] = field(default_factory=dict)
    _readers: dict[str, Executor] = field(default_factory=dict)
    _pending: deque[PendingBatch] = field(default_factory=deque)

    def run(self, specs: Iterator[BatchSpec]) -> Iterator[tuple[BatchSpec, Batch | None]]:
        """Each spec in order with its batch, or None where none of its samples could be loaded."""
        for spec in specs:
            self._pending.append(self._begin(spec))
            if len(self._pending) >= self.prefetch:
                yield self._finish()
        while self._pending:
            yield self._finish()

    def close(self) -> None:
        """Cancel the batches being loaded and stop the workers."""
        for job in self._pending:
            job.cancel()
        for reader in self._readers.values():
            reader.shutdown(wait=True, cancel_futures=True)
        self.loader.close()

    def _name(self, spec: BatchSpec) -> str:
        return self.order.sources[spec.source].name

    def _begin(self, spec: BatchSpec) -> PendingBatch:
        name = self._name(spec)
        if not self.order.sources[spec.source].stream:
            return PendingBatch(spec, chunks=self._submit(name, spec.indices, self.order.seeds(spec)))
        if name not in self._cursors:
            self._cursors[name] = self._cursor(name)
            self._readers[name] = LazyExecutor() if self.loader.lazy else ThreadPoolExecutor(1)
        return PendingBatch(spec, draw=self._readers[name].submit(self._draw, spec))

    def _cursor(self, name: str) -> StreamCursor:
        return StreamCursor(self.datasets[name], self.order.rank, self.order.world, self.streams.get(name))

    def _draw(self, spec: BatchSpec) -> Drawn:
        """Draw the items of a stream's batch and submit them for loading, unless they are samples already."""
        name = self._name(spec)
        items, state = self._cursors[name].draw(len(spec.indices), again=not self.order.exact)
        if hasattr(self.datasets[name], "load"):
            return self._submit(name, items, self.order.seeds(spec)[: len(items)]), state
        done: Chunk = Future()
        done.set_result(items)
        return [done], state

    def _submit(self, name: str, items: Sequence[Any], seeds: Sequence[int]) -> list[Chunk]:
        return [
            self.loader.submit(name, items[i : i + CHUNK], seeds[i : i + CHUNK]) for i in range(0, len(items), CHUNK)
        ]

    def _finish(self) -> tuple[BatchSpec, Batch | None]:
        job = self._pending.popleft()
        name = self._name(job.spec)
        samples = self._collect(job)
        if not samples and self.order.parts > 1 and not self.order.exact:
            samples = self._replace(job.spec)
        if not samples:
            return job.spec, None
        batch = self.datasets[name].collater(samples)
        return job.spec, {**batch, "dataset": name}

    def _collect(self, job: PendingBatch) -> list[Any]:
        """Wait for a batch; its samples without those that failed, which are counted."""
        name = self._name(job.spec)
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

    def _replace(self, spec: BatchSpec) -> list[Any]:
        """Other samples for a batch that failed as a whole, so that this rank has as many batches as the others.

        In a stream they are the next items, so the prefetched draws of later batches are re-issued after them: the
        state after each batch then lets a resume continue with the same items.
        """
        name = self._name(spec)
        later = [job for job in self._pending if job.draw is not None and self._name(job.spec) == name]
        if later:
            self._rewind(name, later)
        samples = next(filter(None, self._others(spec)), None)
        if samples is None:
            raise PartialError(
                name, "not one sample of many tried could be loaded", f"run `lavis-ext verify {name} --repair`"
            )
        for job in later:
            job.draw = self._begin(job.spec).draw
        return samples

    def _others(self, spec: BatchSpec) -> Iterator[list[Any]]:
        """Replacement batches of as many spare samples as the spec has, without those that failed."""
        for indices in zip(*[iter(self.order.spares(spec))] * len(spec.indices), strict=False):
            yield self._collect(self._begin(replace(spec, indices=indices)))

    def _rewind(self, name: str, jobs: Sequence[PendingBatch]) -> None:
        """Set a stream back to the end of its last batch that was handed out."""
        for job in jobs:
            job.cancel()
        wait([job.draw for job in jobs if job.draw is not None])
        self._cursors[name] = self._cursor(name)
