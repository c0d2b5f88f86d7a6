"""Samples of like length in one batch: the order of a lap, rearranged window by window, so that padding is less."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from lavis_ext.errors import ConfigError

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
