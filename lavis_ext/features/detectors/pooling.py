"""Regions of a feature map brought to one size: RoIAlign and RoIPool in plain torch, channels last in memory."""

from __future__ import annotations

import torch
from torch import Tensor

TOGETHER = 8
"""Regions that RoIPool takes at a time: as many as stay in a processor's cache."""


def roi_align(features: Tensor, boxes: Tensor, size: int, scale: float, samples: int = 0) -> Tensor:
    """RoIAlign of one image: features [C, H, W], boxes [n, 4] in pixels → [n, C, size, size].

    Each bin is the mean of bilinear samples at `samples` × `samples` places (0: as many as the bin has cells, rounded
    up). It is maskrcnn-benchmark's form, torchvision's with `aligned=False`: no shift by half a cell, regions at least
    one cell wide, and samples beyond the map by more than a cell count as 0.

    A bilinear sample and the mean over a grid both are products of one weight for the row and one for the column, so
    that a region is two matrix products, rows × its cells × columns.
    """
    scaled = boxes.to(features.dtype) * scale
    starts, sides = scaled[:, :2], (scaled[:, 2:] - scaled[:, :2]).clamp(min=1)
    rows = _bin_weights(starts[:, 1], sides[:, 1], size, features.shape[1], samples)
    columns = _bin_weights(starts[:, 0], sides[:, 0], size, features.shape[2], samples)
    spans = torch.cat([_span(rows), _span(columns)], dim=1).tolist()
    cells = features.permute(1, 2, 0).contiguous()
    pooled = cells.new_empty(len(boxes), size, size, cells.shape[2])
    for region, (top, bottom, left, right) in enumerate(spans):
        part = cells[top:bottom, left:right].reshape(bottom - top, -1)
        across = (rows[region, :, top:bottom] @ part).view(size, right - left, -1)
        torch.matmul(columns[region, :, left:right], across, out=pooled[region])
    return pooled.permute(0, 3, 1, 2)


def _span(weights: Tensor) -> Tensor:
    """First cell and the cell behind the last one that weights [n, size, cells] touch, int64 [n, 2]."""
    touched = (weights != 0).any(dim=1).to(torch.uint8)
    first = touched.argmax(dim=1)
    behind = touched.shape[1] - touched.flip(1).argmax(dim=1)
    return torch.stack([first, behind], dim=1)


def _bin_weights(start: Tensor, side: Tensor, size: int, cells: int, samples: int) -> Tensor:
    """Weight [n, size, cells] of each cell of an axis in the mean of each bin."""
    width = side / size
    counts = torch.full_like(side, samples) if samples else torch.ceil(width)
    most = int(counts.max()) if len(counts) else 1
    steps = torch.arange(most, dtype=start.dtype, device=start.device)
    bins = torch.arange(size, dtype=start.dtype, device=start.device)
    inside = steps[None] < counts[:, None]  # [n, most]
    within = (steps[None] + 0.5) * (width / counts)[:, None]
    at = start[:, None, None] + bins[None, :, None] * width[:, None, None] + within[:, None, :]  # [n, size, most]
    share = (inside / counts[:, None])[:, None, :] * ((at >= -1) & (at <= cells))
    at = at.clamp(min=0)
    low = at.floor().clamp(max=cells - 1)
    high = (low + 1).clamp(max=cells - 1)
    above = torch.where(low == cells - 1, 0.0, at - low).to(at.dtype)
    weights = start.new_zeros(len(start), size, cells)
    weights.scatter_add_(2, low.long(), share * (1 - above))
    return weights.scatter_add_(2, high.long(), share * above)


def roi_pool(features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """RoIPool of one image: features [C, H, W], boxes [n, 4] in pixels → [n, C, size, size].

    Corners are rounded to cells (halves away from 0), a bin is the maximum of the cells it touches, an empty one is 0:
    Caffe's ROIPooling layer, and torchvision's. Bins share a table of maxima over 2^i × 2^j cells, of which any
    rectangle needs four.
    """
    corners = torch.floor(boxes.to(torch.float32) * scale + 0.5)
    sides = (corners[:, 2:] - corners[:, :2] + 1).clamp(min=1)
    y1, y2 = _bin_edges(corners[:, 1], sides[:, 1], size, features.shape[1])
    x1, x2 = _bin_edges(corners[:, 0], sides[:, 0], size, features.shape[2])
    table = _Maxima(features, int((y2 - y1).amax()) if len(boxes) else 1, int((x2 - x1).amax()) if len(boxes) else 1)
    pooled = features.new_empty(len(boxes), size, size, features.shape[0])
    for at in range(0, len(boxes), TOGETHER):
        part = slice(at, at + TOGETHER)
        table.into(pooled[part], y1[part, :, None], y2[part, :, None], x1[part, None, :], x2[part, None, :])
    return pooled.permute(0, 3, 1, 2)


def _bin_edges(start: Tensor, side: Tensor, size: int, cells: int) -> tuple[Tensor, Tensor]:
    """First cell and the cell behind the last one of each bin, int64 [n, size], inside the map."""
    bins = torch.arange(size, dtype=start.dtype, device=start.device)
    width = (side / size)[:, None]
    first = torch.floor(bins * width) + start[:, None]
    behind = torch.ceil((bins + 1) * width) + start[:, None]
    return first.clamp(0, cells).long(), behind.clamp(0, cells).long()


class _Maxima:
    """Maxima of all rectangles of 2^i × 2^j cells of a map, as rows of channels in one table."""

    def __init__(self, features: Tensor, tallest: int, widest: int) -> None:
        self.height, self.width = features.shape[1:]
        self.tall, self.wide = _levels(tallest), _levels(widest)
        across = [features]
        for level in range(1, self.wide):
            across.append(_doubled(across[-1], 2, 1 << (level - 1)))
        levels = across
        for level in range(1, self.tall):
            levels = levels + [_doubled(one, 1, 1 << (level - 1)) for one in levels[-self.wide :]]
        self.table = torch.stack(levels).permute(0, 2, 3, 1).reshape(-1, features.shape[0])

    def into(self, out: Tensor, y1: Tensor, y2: Tensor, x1: Tensor, x2: Tensor) -> None:
        """Write maxima [..., C] of the rectangles [y1, y2) × [x1, x2) to `out`, 0 where one is empty."""
        empty = (y2 <= y1) | (x2 <= x1)
        tall, wide = _power(y2 - y1), _power(x2 - x1)
        level = (tall * self.wide + wide) * self.height
        rows = (y1.clamp(max=self.height - 1), (y2 - (1 << tall)).clamp(min=0))
        columns = (x1.clamp(max=self.width - 1), (x2 - (1 << wide)).clamp(min=0))
        corners = [(level + y) * self.width + x for y in rows for x in columns]
        out.copy_(self.table[corners[0]])
        for corner in corners[1:]:
            torch.maximum(out, self.table[corner], out=out)
        if empty.any():
            out.masked_fill_(empty[..., None], 0)


def _doubled(maxima: Tensor, axis: int, step: int) -> Tensor:
    """Maxima over twice as many cells along an axis; those that reach beyond the map keep what they had."""
    size = maxima.shape[axis]
    if step >= size:
        return maxima
    ahead = torch.cat([maxima.narrow(axis, step, size - step), maxima.narrow(axis, size - step, step)], dim=axis)
    return torch.maximum(maxima, ahead)


def _levels(longest: int) -> int:
    return max(longest, 1).bit_length()


def _power(lengths: Tensor) -> Tensor:
    """The exponent of the largest power of two ≤ each length (0 for lengths below 2), int64."""
    return torch.log2(lengths.clamp(min=1).double()).floor().long()
