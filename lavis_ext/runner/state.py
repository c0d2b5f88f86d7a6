"""A tree of plain values and tensors ↔ JSON and a flat dict of tensors: what a checkpoint keeps, without pickle."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

TENSOR, TUPLE, PAIRS = "__tensor__", "__tuple__", "__pairs__"


def pack(tree: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """`tree` as JSON values; its tensors move into `tensors` under their path.

    Knows dicts (with keys of any JSON kind), lists, tuples, numbers, strings, None, numpy scalars and arrays; raises
    TypeError at anything else, so that no state is lost silently.
    """
    if isinstance(tree, Mapping):
        return _pack_mapping(tree, tensors, prefix)
    if isinstance(tree, (list, tuple)):
        packed = [pack(item, tensors, f"{prefix}.{index}") for index, item in enumerate(tree)]
        return packed if isinstance(tree, list) else {TUPLE: packed}
    if isinstance(tree, np.ndarray):
        return pack(tree.tolist(), tensors, prefix)
    if isinstance(tree, Tensor):
        tensors[prefix] = tree.detach().contiguous().cpu().clone()
        return {TENSOR: prefix}
    return _plain(tree, prefix)


def _pack_mapping(tree: Mapping[Any, Any], tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    items = {key: pack(value, tensors, f"{prefix}.{key}") for key, value in tree.items()}
    if all(isinstance(key, str) for key in items) and not {TENSOR, TUPLE, PAIRS} & items.keys():
        return items
    return {PAIRS: [[_plain(key, prefix), value] for key, value in items.items()]}


def _plain(value: Any, prefix: str) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{prefix or 'state'}: {type(value).__name__} cannot be kept in a checkpoint")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `pack` took apart; raises KeyError if a tensor is missing."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if TENSOR in packed:
        return tensors[packed[TENSOR]]
    if TUPLE in packed:
        return tuple(unpack(item, tensors) for item in packed[TUPLE])
    if PAIRS in packed:
        return {key: unpack(value, tensors) for key, value in packed[PAIRS]}
    return {key: unpack(value, tensors) for key, value in packed.items()}


def random_state() -> dict[str, Any]:
    """State of every generator that a training step may draw from: python, numpy, torch on the CPU and on this GPU."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators where `random_state` found them."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (CPU and GPUs)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
