"""Samples become a batch: pictures stacked, running ids as int64, all else lists; and its way to a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.types import Batch, Sample

Rule = Callable[[str, list[Any]], dict[str, Any]]
"""What becomes of one key: (key, its values) → the keys of the batch."""


def collate(samples: Sequence[Sample], rules: Mapping[str, Rule] | None = None) -> Batch:
    """A batch of the keys that all samples have.

    Tensors are stacked, `image_id`, `index` and `label` become int64 [B] where they are integers, all else a list of
    length B. `rules` replaces what happens to single keys. Raises ConfigError for pictures that cannot be stacked.
    """
    chosen = {**RULES, **(rules or {})}
    batch: Batch = {}
    for key in samples[0]:
        if all(key in sample for sample in samples):
            values = [sample[key] for sample in samples]  # type: ignore[literal-required]
            batch |= chosen.get(key, stack_or_list)(key, values)
    return batch


def stack_or_list(key: str, values: list[Any]) -> dict[str, Any]:
    """Tensors as one tensor, other values as they are; raises ConfigError for tensors of several shapes."""
    if not isinstance(values[0], Tensor):
        return {key: values}
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise ConfigError(
            f"'{key}' of a batch", f"has shapes {sorted(shapes)}", "let the processor give all the same size"
        )
    return {key: torch.stack(values)}


def stack_images(key: str, values: list[Any]) -> dict[str, Any]:
    """Pictures as one tensor [B,3,H,W]; raises ConfigError if no processor made them tensors."""
    if not all(isinstance(value, Tensor) for value in values):
        what = f"is a {type(values[0]).__name__}, which cannot be batched"
        raise ConfigError(
            f"'{key}' of a batch", what, "set `vis_processor: {train: {name: …}, eval: {name: …}}` of the data set"
        )
    return stack_or_list(key, values)


def long_or_list(key: str, values: list[Any]) -> dict[str, Any]:
    """Integers as int64 [B], anything else as a list; so are numbers beyond 64 bits."""
    if all(type(value) is int and -(2**63) <= value < 2**63 for value in values):
        return {key: torch.tensor(values, dtype=torch.int64)}
    return {key: values}


RULES: dict[str, Rule] = {"image": stack_images, "image_id": long_or_list, "index": long_or_list, "label": long_or_list}


def to_device(batch: Batch, device: Any, normalizer: Callable[[Tensor], Tensor] | None = None) -> Batch:
    """The batch with its tensors on `device`; uint8 pictures [B,3,H,W] cross as such and become float32 there."""
    moved: Batch = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
    for key, value in moved.items():
        if normalizer is not None and isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 4:
            moved[key] = normalizer(value)
    return moved
