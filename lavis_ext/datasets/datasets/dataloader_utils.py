"""LAVIS' loaders over loaders, for loops of one's own; a run of ours mixes and prefetches by `datasets/mixture.py`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.datasets.data_utils import move_to_cuda


class MultiIterLoader:
    """The next batch of one of several iterators, drawn by `ratios` (Python's `random`); it ends with the first.

    Raises ConfigError for what is no iterator, or other ratios than loaders.
    """

    def __init__(self, loaders: Sequence[Any], ratios: Sequence[float] | None = None) -> None:
        if wrong := [type(one).__name__ for one in loaders if not hasattr(one, "__next__")]:
            raise ConfigError("MultiIterLoader", f"{wrong[0]} is no iterator", "wrap it: IterLoader(loader)")
        shares = [1.0] * len(loaders) if ratios is None else [float(ratio) for ratio in ratios]
        if not loaders or len(shares) != len(loaders) or min(shares) < 0 or sum(shares) <= 0:
            what = f"{len(shares)} ratios of {len(loaders)} loaders"
            raise ConfigError("MultiIterLoader ratios", what, "give one ratio of at least 0 for each, not all 0")
        self.loaders, self.ratios = loaders, [share / sum(shares) for share in shares]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(random.choices(self.loaders, self.ratios)[0])


class IterLoader:
    """The batches of a loader without end; `epoch` counts the passes that ended. An empty loader ends it."""

    def __init__(self, dataloader: Any, use_distributed: bool = False) -> None:
        self._dataloader, self._use_distributed, self._epoch = dataloader, use_distributed, 0
        self.iter_loader = iter(dataloader)

    @property
    def epoch(self) -> int:
        """Passes that ended."""
        return self._epoch

    def __iter__(self) -> Iterator[Any]:
        return self

    def __len__(self) -> int:
        return len(self._dataloader)

    def __next__(self) -> Any:
        try:
            return next(self.iter_loader)
        except StopIteration:
            self._epoch += 1
        sampler: Any = getattr(self._dataloader, "sampler", None)
        if self._use_distributed and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self._epoch)
        self.iter_loader = iter(self._dataloader)
        return next(self.iter_loader)


class PrefetchLoader:
    """The batches of a loader on the CUDA device, each copied while the one before is used; without one as they are.

    Copies overlap where batches lie in pinned memory. Attributes are those of the loader.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.stream = torch.cuda.Stream() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        if self.stream is None:
            yield from self.loader
            return
        batches = iter(self.loader)
        ahead = self._copied(batches)
        while ahead:
            current = torch.cuda.current_stream()
            current.wait_stream(self.stream)
            record_cuda_stream(ahead[0])
            following = self._copied(batches)
            yield ahead[0]
            ahead = following

    def _copied(self, batches: Iterator[Any]) -> tuple[Any, ...]:
        """The next batch on the device, or nothing at the end."""
        for batch in batches:
            with torch.cuda.stream(self.stream):
                return (move_to_cuda(batch),)
        return ()


def record_cuda_stream(batch: Any) -> None:
    """Keep the memory of a batch until the present stream has used it."""
    if isinstance(batch, Tensor):
        if batch.is_cuda:
            batch.record_stream(torch.cuda.current_stream())
        return
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    for part in parts:
        record_cuda_stream(part)


__all__ = ["IterLoader", "MultiIterLoader", "PrefetchLoader", "record_cuda_stream"]
