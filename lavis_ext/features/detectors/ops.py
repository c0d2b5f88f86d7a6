"""RoIAlign, RoIPool, anchors, box deltas, overlaps and suppression in plain torch, as in the published detectors.

Caffe and maskrcnn-benchmark count whole pixels: a box from 3 to 5 is 3 wide, hence the `+ 1` in the box functions; the
networks were trained with it. There is one implementation, so that numbers do not depend on an installed torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TOGETHER = 8
"""Regions that RoIPool takes at a time: as many as stay in a CPU's cache."""


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


SIDE_CLAMP = math.log(1000 / 16)
"""maskrcnn-benchmark's bound of dw and dh: a side of 16 pixels grows to at most 1000."""


def cell_anchors(stride: int, sizes: Sequence[int], ratios: Sequence[float], by_size: bool = False) -> Tensor:
    """The anchors of the first cell, float32 [ratios × sizes, 4], as py-faster-rcnn's `generate_anchors` rounds them.

    A square of `stride` pixels takes each ratio (height to width, its sides rounded) and then grows to each size. All
    sizes of a ratio follow each other, or with `by_size` all ratios of a size, as detectron2 numbers its anchors.
    """
    centre = (stride - 1) / 2
    shapes = []
    for ratio in ratios:
        width = round(math.sqrt(stride * stride / ratio))  # to even at .5, as numpy's
        shapes.append((width, round(width * ratio)))
    pairs = [(shape, size) for shape in shapes for size in sizes]
    if by_size:
        pairs = [(shape, size) for size in sizes for shape in shapes]
    rows = []
    for (width, height), size in pairs:
        half_width, half_height = (width * size / stride - 1) / 2, (height * size / stride - 1) / 2
        rows.append((centre - half_width, centre - half_height, centre + half_width, centre + half_height))
    return torch.tensor(rows, dtype=torch.float32)


def grid_anchors(cells: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Anchors [height × width × A, 4] of a feature map, the cell's own anchors [A, 4] the fastest to change."""
    xs = torch.arange(width, dtype=cells.dtype, device=cells.device) * stride
    ys = torch.arange(height, dtype=cells.dtype, device=cells.device) * stride
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (shifts + cells).reshape(-1, 4)


def decode(deltas: Tensor, boxes: Tensor, end: float = 0.0, clamp: float = math.inf) -> Tensor:
    """Boxes [n, 4] moved by deltas [n, 4] (dx, dy, dw, dh): centre + d × side, side × exp(d), Fast R-CNN's equations.

    `end` is added to x2 and y2: 0 in Caffe, −1 in maskrcnn-benchmark, where it takes back the pixel that was counted.
    dw and dh are bounded by `clamp`.
    """
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    centres = boxes[:, :2] + 0.5 * sides + deltas[:, :2] * sides
    half = 0.5 * torch.exp(deltas[:, 2:].clamp(max=clamp)) * sides
    return torch.cat([centres - half, centres + half + end], dim=1)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes [n, 4] held inside an image: x in [0, width − 1], y in [0, height − 1]."""
    highest = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), highest)


def large_enough(boxes: Tensor, least: float) -> Tensor:
    """Which boxes [n, 4] have both sides ≥ `least` pixels, bool [n]."""
    return (boxes[:, 2:] - boxes[:, :2] + 1 >= least).all(dim=1)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union [n, m] of boxes [n, 4] and [m, 4]."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low + 1).clamp(min=0).prod(dim=2)
    areas = [(b[:, 2:] - b[:, :2] + 1).prod(dim=1) for b in (one, other)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def ranked(scores: Tensor) -> Tensor:
    """Indices from the highest score to the lowest along the last axis; of equal ones the first stays first."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices


def suppress(boxes: Tensor, scores: Tensor, threshold: float, limit: int | None = None) -> Tensor:
    """Greedy non-maximum suppression: indices int64 of the boxes kept, best first, at most `limit`.

    A box goes if it overlaps one kept before it by more than `threshold`. The work grows with the boxes kept, not with
    the square of those given. Runs on the CPU, where its numbers are the same everywhere.
    """
    order = ranked(scores).cpu()
    left = boxes.cpu()[order]
    places = torch.arange(len(order))
    kept: list[int] = []
    while len(places) and (limit is None or len(kept) < limit):
        kept.append(int(places[0]))
        apart = overlaps(left[:1], left[1:])[0] <= threshold
        left, places = left[1:][apart], places[1:][apart]
    return order[torch.tensor(kept, dtype=torch.int64)].to(boxes.device)


def best_of_survivors(boxes: Tensor, scores: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The rule that chooses regions: per class suppression, then each box's best score among classes that kept it.

    `boxes` [n, 4] are shared by all classes, `scores` [n, c] without background. Gives the score float [n] (0 where no
    class kept the box) and its class int64 [n]. Source: bottom-up-attention's `tools/generate_tsv.py`; the same as
    `NMS_FILTER 1` of scene_graph_benchmark. All classes are walked through at once.
    """
    if not len(boxes) or not scores.shape[1]:
        return scores.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=scores.device)
    near = overlaps(boxes, boxes) > threshold
    order = ranked(scores.T)
    gone = torch.zeros_like(order, dtype=torch.bool)
    classes = torch.arange(len(order), device=order.device)
    for place in range(len(boxes)):
        box = order[:, place]
        stays = ~gone[classes, box]
        gone |= near[box] & stays[:, None]
        gone[classes, box] = ~stays
    best = scores.masked_fill(gone.T, 0).max(dim=1)
    return best.values, best.indices


def choose(scores: Tensor, conf: float, least: int, most: int) -> Tensor:
    """Indices of the regions kept, best first: those with a score ≥ `conf`, at least `least` and at most `most`.

    Where fewer reach `conf` the best of the others fill up, as far as there are any.
    """
    count = int((scores >= conf).sum())
    return ranked(scores)[: min(max(count, least), most)]
