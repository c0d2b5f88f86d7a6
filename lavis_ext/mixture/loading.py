"""Samples are loaded here: in the calling thread or in threads, with the same results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

from lavis_ext.errors import LavisExtError, TrainingError
from lavis_ext.readers.faults import SampleError

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
