"""What several processes share in a forward: rows of all ranks in one tensor, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Rank and number of processes; 0 of 1 where nothing is distributed."""
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank holds a part, whole; any other as it is. All ranks must ask."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def part_like(like: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, or this rank's part of it where `like` is but a part; on its device and of its kind."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(device=like.device, dtype=like.dtype)
    placed: Any = like
    return distribute_tensor(moved, placed.device_mesh, placed.placements, src_data_rank=None)


def gather_rows(rows: Tensor) -> Tensor:
    """[n, …] of each rank → [Σn, …] in the order of ranks, on every rank; n may differ.

    A gradient of the result goes back to the rank that the row came from, summed over all ranks.
    """
    if world()[1] == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, count = world()
        sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(count)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
        lengths = [int(size) for size in sizes]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(count)]
        dist.all_gather(parts, padded)
        ctx.span = (sum(lengths[:rank]), sum(lengths[: rank + 1]))
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[slice(*ctx.span)]
