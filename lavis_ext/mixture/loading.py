"""Samples are loaded here: in the calling thread, in threads, or in processes, with the same results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from lavis_ext.errors import ConfigError, LavisExtError, TrainingError
from lavis_ext.readers.faults import SampleError

T = TypeVar("T")
Workers = Literal["thread", "process"]
Items = Sequence[Any]
CHUNK = 8


class Engine(Protocol):
    """Runs loads; what `submit` gives has a `result()`: samples, and a SampleError in the place of each that failed."""

    def submit(self, name: str, items: Items, seeds: Sequence[int]) -> Future[list[Any]]:
        """Begin to load samples of one data set; `items` are indices, or what a stream's `load` takes."""

    def close(self) -> None:
        """Stop, waiting for no more than the samples in hand."""


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


class Inline:
    """Loads when the result is asked for."""

    def __init__(self, sources: Mapping[str, Any]) -> None:
        self._sources = sources

    def submit(self, name: str, items: Items, seeds: Sequence[int]) -> Future[list[Any]]:
        """Load at `result()`."""
        return LazyExecutor().submit(load_samples, self._sources[name], items, seeds)

    def close(self) -> None:
        """Nothing to stop."""


class Threads:
    """Loads in threads of this process: decoders and resizing leave the interpreter free, and nothing is copied.

    Each uses one core for its own tensor operations. Part of that setting is torch's as a whole, so all threads start
    here, and it is put back before the first batch: kernels round by the number of threads.
    """

    def __init__(self, sources: Mapping[str, Any], count: int) -> None:
        self._sources, self._stop = sources, threading.Event()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lavis_ext-load", initializer=_quieten)
        before, started = torch.get_num_threads(), threading.Barrier(count + 1)
        for _ in range(count):
            self._pool.submit(started.wait)
        started.wait()
        torch.set_num_threads(before)

    def submit(self, name: str, items: Items, seeds: Sequence[int]) -> Future[list[Any]]:
        """Load in the next free thread."""
        return self._pool.submit(load_samples, self._sources[name], items, seeds, self._stop.is_set)

    def close(self) -> None:
        """Stop after the sample in hand of each thread."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


class Processes:
    """Loads in processes, for processors that hold the interpreter; data sets must be picklable.

    Processes are started fresh, so a program that uses them needs the usual `if __name__ == "__main__":`.
    """

    def __init__(self, sources: Mapping[str, Any], count: int) -> None:
        context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
        self._pool = ProcessPoolExecutor(count, context, initializer=_install, initargs=(dict(sources),))

    def submit(self, name: str, items: Items, seeds: Sequence[int]) -> Future[list[Any]]:
        """Load in the next free process."""
        try:
            return Unpacked(self._pool.submit(_load_packed, name, items, seeds))
        except BrokenProcessPool as error:
            raise _worker_died(error) from error

    def close(self) -> None:
        """Stop after the chunks in hand."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Unpacked(Future[list[Any]]):
    """The result of a worker process with its arrays as tensors again."""

    def __init__(self, packed: Future[list[Any]]) -> None:
        super().__init__()
        self._packed = packed

    def cancel(self) -> bool:
        """Cancel the work if it has not begun."""
        return self._packed.cancel()

    def result(self, timeout: float | None = None) -> list[Any]:
        """Wait for the worker; raises TrainingError if it died."""
        try:
            return [_unpack(sample) for sample in self._packed.result(timeout)]
        except BrokenProcessPool as error:
            raise _worker_died(error) from error


def make_engine(workers: Workers, sources: Mapping[str, Any], count: int) -> Engine:
    """The engine for a kind of workers; `count` 0 loads in the calling thread. Raises ConfigError."""
    if workers not in ("thread", "process"):
        raise ConfigError("mixture workers", f"'{workers}'", "choose 'thread' or 'process'")
    if count == 0:
        return Inline(sources)
    return Threads(sources, count) if workers == "thread" else Processes(sources, count)


def _worker_died(error: Exception) -> TrainingError:
    return TrainingError(
        "loader", f"a worker process died ({error})", "look for the out-of-memory killer, or use fewer workers"
    )


_installed: dict[str, Any] = {}


def _quieten() -> None:
    torch.set_num_threads(1)


def _install(sources: dict[str, Any]) -> None:
    _quieten()
    _installed.update(sources)


def _load_packed(name: str, items: Items, seeds: Sequence[int]) -> list[Any]:
    return [_pack(sample) for sample in load_samples(_installed[name], items, seeds)]


def _pack(sample: Any) -> Any:
    """A sample with its tensors as arrays, which cross to the parent as bytes and not as shared-memory handles."""
    if isinstance(sample, SampleError):
        return sample
    tensors = {key: value.numpy() for key, value in sample.items() if isinstance(value, Tensor)}
    return {key: None if key in tensors else value for key, value in sample.items()}, tensors


def _unpack(packed: Any) -> Any:
    if isinstance(packed, SampleError):
        return packed
    sample, arrays = packed
    return {key: torch.from_numpy(arrays[key]) if key in arrays else value for key, value in sample.items()}
