"""A number for each input of a batch, the same however far the batch is padded, on any device."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.types import Batch

ID_KEYS = ("instance_id", "question_id", "image_id", "index")
ANSWERS = ("targets", "labels", "lm_labels", "label", "index", "image_id", "question_id")
"""What a teacher does not read."""
TEXTS = ("text_input", "text_output", "prompt")
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def ids_of(batch: Batch, key: str) -> list[Any]:
    """The samples of a batch under one of the ID_KEYS, as plain values."""
    values = batch[key]
    return values.tolist() if isinstance(values, Tensor) else list(values)


def fingerprints(batch: Batch, rows: int) -> Tensor:
    """int64 [rows]: what a model reads of each row as one number: sum of bits times fixed odd numbers of their places.

    Zeros do not count, so that padding does not either; masks, which padding moves, are left out.
    """
    total = torch.zeros(rows, dtype=torch.int64)
    for key in sorted(batch):
        value = batch[key]
        if key in ANSWERS or "mask" in key:
            continue
        if isinstance(value, Tensor) and value.dim() > 1 and len(value) == rows:
            total = total + summed(value, key).cpu()
        elif key in TEXTS and len(value) == rows:
            total = total + torch.tensor([of_text(f"{key} {text}") for text in value])
    return total


def summed(tensor: Tensor, key: str) -> Tensor:
    """int64 [N] of a tensor [N, …]; sums and products wrap around."""
    value = tensor.detach().contiguous()
    numbers = value.view(BITS[value.element_size()]).long() if value.is_floating_point() else value.long()
    for axis in range(value.dim() - 1, 0, -1):
        numbers = (numbers * factors(numbers.shape[-1], f"{key}{axis}").to(numbers.device)).sum(-1)
    return numbers


def factors(count: int, salt: str) -> Tensor:
    """int64 [count] odd numbers: splitmix64 (Steele et al., OOPSLA 2014) of salt and place; the first never change."""
    start = np.uint64(of_text(salt) & (2**64 - 1))
    with np.errstate(over="ignore"):
        mixed = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
    return torch.from_numpy(mixed.view(np.int64))


def of_text(text: str) -> int:
    """A signed 64-bit number of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
