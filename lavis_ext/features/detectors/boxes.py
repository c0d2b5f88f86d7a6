"""Boxes x1, y1, x2, y2 as the published detectors count them: anchors, deltas, clipping, overlaps, suppression.

Caffe and maskrcnn-benchmark count whole pixels: a box from 3 to 5 is 3 wide. Every function here does so (`+ 1`); the
networks were trained with it. Numbers do not depend on an installed torchvision: there is one implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SIDE_CLAMP = math.log(1000 / 16)
"""Where maskrcnn-benchmark stops a box from growing: 16 pixels to 1000."""


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
    the square of those given. Runs on the processor, where its numbers are the same everywhere.
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
