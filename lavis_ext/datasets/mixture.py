"""The mixture: data sets and weights become batches. It owns order, ranks, workers and the state of a resume."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any
from weakref import ReferenceType, ref

from lavis_ext.common.errors import ConfigError, nearest
from lavis_ext.common.types import Batch, Dataset, Stream
from lavis_ext.datasets.loader import Loader, Pipeline
from lavis_ext.datasets.order import BatchPlan, BatchSpec, MixtureSource, lengths_of
from lavis_ext.datasets.readers.faults import FaultLog
from lavis_ext.processors.image import Normalizer

log = logging.getLogger(__name__)
Weights = Mapping[str, float | None] | Sequence[float]


class Mixture:
    """Batches from data sets and streams, each of one data set, in an order that depends only on `seed` and the epoch.

    Iterating gives the rest of one epoch from the state on, or epoch after epoch with `repeat`. `shuffle=False,
    repeat=False, drop_last=False` is evaluation: each sample exactly once over all ranks. Otherwise all ranks get
    equally many batches (see BatchPlan). Samples that cannot be loaded are left out of their batch and counted in
    `faults`; an empty batch is skipped, or with several ranks filled with other samples, so that all ranks have equally
    many. Batches carry the name of their data set under `dataset`. `num_workers=0` loads in the calling thread.
    `group_by_length` puts samples of similar length in one batch, for shuffled data sets with lengths (see Measured).
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset | Stream],
        weights: Weights | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        repeat: bool = False,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 2,
        drop_last: bool = False,
        prefetch: int = 4,
        faults: FaultLog | None = None,
        group_by_length: bool = False,
    ) -> None:
        self.datasets, self.repeat, self.num_workers = dict(datasets), repeat, num_workers
        self.prefetch = max(1, prefetch) if num_workers else 1
        tolerances = {name: one.tolerance for name, one in datasets.items() if hasattr(one, "tolerance")}
        self.faults = FaultLog(tolerances=tolerances) if faults is None else faults
        self.normalizer = shared_normalizer(datasets)
        self.order = BatchPlan(
            sources=_sources(datasets, group_by_length and shuffle),
            batch_size=batch_size,
            seed=seed,
            weights=_shares(weights, list(datasets)),
            shuffle=shuffle,
            rank=rank,
            world=world,
            drop_last=drop_last,
            exact=not (shuffle or repeat or drop_last),
        )
        self.epoch, self._turn = 0, 0
        self._streams: dict[str, dict[str, Any]] = {}
        # Weak, so that an iterator is closed as soon as its last reference is dropped. In a reference cycle with the
        # mixture it would wait for the garbage collector, which runs in any thread; not every one can join the workers.
        self._running: ReferenceType[Generator[Batch, None, None]] | None = None

    def __len__(self) -> int:
        """Batches of this rank in an epoch, skipped ones included."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the state on; an iterator that is still open is closed first, a dropped one at once."""
        self.close()
        batches = self._batches()
        self._running = ref(batches)
        return batches

    def close(self) -> None:
        """Stop the workers; the state stays at the last batch that was handed out."""
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()
        self._running = None

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of an epoch; in the present epoch nothing changes."""
        if epoch != self.epoch:
            self.close()
            self.epoch, self._turn = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out, as plain values; equal on all ranks except streams and faults.

        After the last batch of an epoch it is that epoch's end: a resume ends the epoch at once, as going on would.
        """
        batches = self._turn * self.order.concurrent // self.order.parts_per_rank
        # `slot` is a key of existing checkpoints
        place = {"epoch": self.epoch, "slot": batches, "of": self._shape()}
        return {**place, "streams": dict(self._streams), "faults": self.faults.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; raises ConfigError if data, seed, batch size, weights or ranks differ."""
        self.close()
        now = self._shape()
        was = state["of"]
        for key in {**was, **now}:
            if now.get(key) != was.get(key):
                what = f"was {was.get(key)} and is {now.get(key)}"
                raise ConfigError(f"resume: {key} of the mixture", what, "resume with the same, or start a new run")
        self.epoch, self._streams = state["epoch"], dict(state["streams"])
        self._turn = state["slot"] * self.order.parts_per_rank // self.order.concurrent
        self.faults.load_state_dict(state["faults"])

    def reshard(self, parts_per_rank: int, concurrent: int) -> None:
        """Keep the order of a run with another number of ranks (see BatchPlan), whose state can then be loaded.

        Raises ConfigError for streams, which divide their shards by rank, and for a number that does not divide.
        """
        self.close()
        streamed = [source.name for source in self.order.sources if source.stream]
        order = replace(self.order, parts_per_rank=parts_per_rank, concurrent=concurrent)
        if streamed or order.total % concurrent:
            what = (
                f"'{streamed[0]}' is a stream" if streamed else f"{order.total} batches do not divide by {concurrent}"
            )
            raise ConfigError("resume with another number of processes", what, "resume with as many as before")
        self.order = order

    def _shape(self) -> dict[str, Any]:
        """What must be equal for a resume to continue with the same batches."""
        order = self.order
        lengths = {source.name: source.digest for source in order.sources if source.digest}
        return {
            "sizes": {source.name: source.size for source in order.sources},
            "weights": None if order.weights is None else list(order.weights),
            "batch_size": order.batch_size,
            "seed": order.seed,
            "world": order.parts,
            "shuffle": order.shuffle,
            "drop_last": order.drop_last,
            "exact": [source.name for source in order.sources if source.exact] or None,
            "group_by_length": {"window": order.window, "lengths": lengths} if lengths else None,
        }

    def _batches(self) -> Generator[Batch, None, None]:
        loader = Loader(self.datasets, self.num_workers)
        pipeline = Pipeline(self.order, self.datasets, loader, self.prefetch, self.faults, self._streams)
        with closing(pipeline):
            for spec, batch in pipeline.run(self._specs()):
                if spec.epoch != self.epoch:
                    self.faults.check(final=True)
                self.epoch, self._turn = spec.epoch, spec.turn + 1
                if batch is not None:
                    yield batch
            self.faults.check(final=True)
            self.epoch, self._turn = self.epoch + 1, 0

    def _specs(self) -> Iterator[BatchSpec]:
        """Specs from the state on, to the end of the epoch or with `repeat` without end."""
        epoch = self.epoch
        yield from self.order.specs(epoch, self._turn)
        while self.repeat:
            epoch += 1
            yield from self.order.specs(epoch)


def shared_normalizer(datasets: Mapping[str, Any]) -> Normalizer:
    """The normaliser of all data sets; raises ConfigError where their processors differ in mean, std or image size."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, dataset in datasets.items():
        processor = getattr(dataset, "vis_processor", None)
        if processor is not None and hasattr(processor, "image_size"):
            seen.setdefault((tuple(processor.mean), tuple(processor.std), processor.image_size), name)
    if len(seen) > 1:
        found = "; ".join(
            f"{name}: image_size {size}, mean {mean}, std {std}" for (mean, std, size), name in seen.items()
        )
        raise ConfigError(
            "mixture", f"image processors differ ({found})", "give all data sets the same image_size, mean and std"
        )
    return Normalizer(*next(iter(seen))[:2]) if seen else Normalizer()


def _sources(datasets: Mapping[str, Any], grouped: bool) -> tuple[MixtureSource, ...]:
    """The data sets as sources of the plan, with their lengths if `grouped`; a warning if none has lengths."""
    found = tuple(_source(name, dataset, grouped) for name, dataset in datasets.items())
    if grouped and found and all(source.lengths is None for source in found):
        log.warning("group_by_length: %s: no data set has lengths; batches are made without them", ", ".join(datasets))
    return found


def _source(name: str, dataset: Any, grouped: bool) -> MixtureSource:
    streamed = hasattr(dataset, "iterate")
    size = dataset.epoch_size if streamed else len(dataset)
    exact = streamed and bool(getattr(dataset, "exact", False))
    return MixtureSource(name, size, streamed, lengths_of(name, dataset) if grouped else None, exact)


def _shares(weights: Weights | None, names: list[str]) -> tuple[float, ...] | None:
    """The weights in the order of the data sets; None if none is given. Raises ConfigError for a wrong name."""
    if not isinstance(weights, Mapping):
        return None if weights is None else tuple(weights)
    for name in weights:
        if name not in names:
            raise ConfigError(f"mixture weights.{name}", "no such data set in the mixture", nearest(name, names))
    given = [weights.get(name) for name in names]
    if all(weight is None for weight in given):
        return None
    if any(weight is None for weight in given):
        lacking = ", ".join(name for name, weight in zip(names, given, strict=True) if weight is None)
        raise ConfigError("mixture weights", f"none for {lacking}", "give every data set a weight, or none")
    return tuple(float(weight) for weight in given if weight is not None)
