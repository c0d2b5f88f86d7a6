"""LAVIS' helpers for batches and groups of data sets. A run of ours mixes by `mixture.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lavis_ext.common.lavis import refusing
from lavis_ext.datasets.datasets.base_dataset import ConcatDataset


def apply_to_sample(f: Callable[[Tensor], Any], sample: Any) -> Any:
    """`f` of every tensor in nested dicts, lists and tuples; {} for an empty sample, as in LAVIS."""
    return _applied(f, sample) if len(sample) else {}


def _applied(f: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Mapping):
        return {key: _applied(f, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_applied(f, item) for item in value)
    return value


def move_to_cuda(sample: Any) -> Any:
    """The sample with its tensors on the present CUDA device."""
    return apply_to_sample(lambda tensor: tensor.cuda(), sample)


def prepare_sample(samples: Any, cuda_enabled: bool = True) -> Any:
    """A batch for the model: on the CUDA device, where there is one and it is wanted."""
    return move_to_cuda(samples) if cuda_enabled and torch.cuda.is_available() else samples


def reorg_datasets_by_split(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{data set: {split: rows}} → {split: [rows of each data set]}."""
    by_split: dict[str, list[Any]] = {}
    for splits in datasets.values():
        for split, dataset in splits.items():
            by_split.setdefault(split, []).append(dataset)
    return by_split


def concat_datasets(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """The training data sets of each split as one; those of other splits are one already, the first is taken.

    Raises ValueError for streams, which have no length: a run of ours mixes them.
    """
    found: dict[str, Any] = {}
    for split, given in datasets.items():
        several = list(given) if isinstance(given, list | tuple) else [given]
        if split == "train" and any(not hasattr(one, "__len__") for one in several):
            raise ValueError("a stream cannot be concatenated: give the data sets to the runner, which mixes them")
        found[split] = ConcatDataset(several) if split == "train" else several[0]
    return found


_VIDEOS = "videos are LAVIS'; several pictures of a sample are frames here"
__getattr__ = refusing(
    __name__,
    **dict.fromkeys(("load_video", "load_clip", "uniform_frame_sampling", "head_tail_frame_sampling"), _VIDEOS),
    save_frames_grid=_VIDEOS,
    extract_archive="`unpack` of a card does it, safely",
)
