"""RoIAlign and RoIPool against published vectors and against loops in float64 over every bin."""

import math

import numpy as np
import pytest
import torch

from lavis_ext.features.detectors.ops import roi_align, roi_pool

SQUARE = torch.arange(25, dtype=torch.float32).reshape(1, 5, 5)


def some_regions(count: int, seed: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 4, generator=generator) * torch.tensor([width, height, width, height]) * 16
    low, high = torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])
    return torch.cat([low, high], dim=1)


def sampled(plane: np.ndarray, y: float, x: float) -> float:
    """Bilinear sample as RoIAlign_cpu.cpp of maskrcnn-benchmark takes it."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = int(y), int(x)
    if y0 >= height - 1:
        y0 = y1 = height - 1
        y = float(y0)
    else:
        y1 = y0 + 1
    if x0 >= width - 1:
        x0 = x1 = width - 1
        x = float(x0)
    else:
        x1 = x0 + 1
    down, right = y - y0, x - x0
    top = plane[y0, x0] * (1 - right) + plane[y0, x1] * right
    bottom = plane[y1, x0] * (1 - right) + plane[y1, x1] * right
    return float(top * (1 - down) + bottom * down)


def aligned_slowly(features: torch.Tensor, boxes: torch.Tensor, size: int, scale: float, samples: int) -> np.ndarray:
    maps = features.double().numpy()
    out = np.zeros((len(boxes), len(maps), size, size))
    for n, (x1, y1, x2, y2) in enumerate((boxes * scale).double().tolist()):
        height, width = max(y2 - y1, 1.0) / size, max(x2 - x1, 1.0) / size
        rows, columns = samples or math.ceil(height), samples or math.ceil(width)
        for c, plane in enumerate(maps):
            for i in range(size):
                for j in range(size):
                    total = 0.0
                    for a in range(rows):
                        for b in range(columns):
                            y = y1 + i * height + (a + 0.5) * height / rows
                            x = x1 + j * width + (b + 0.5) * width / columns
                            total += sampled(plane, y, x)
                    out[n, c, i, j] = total / (rows * columns)
    return out


def pooled_slowly(features: torch.Tensor, boxes: torch.Tensor, size: int, scale: float) -> np.ndarray:
    """Caffe's roi_pooling_layer.cpp; edges of bins in float32 as there."""
    maps = features.numpy()
    height, width = maps.shape[1:]
    out = np.zeros((len(boxes), len(maps), size, size), np.float32)
    for n, corners in enumerate(boxes.numpy() * np.float32(scale)):
        x1, y1, x2, y2 = (math.floor(c + 0.5) for c in corners)
        tall, wide = (np.float32(max(b - a + 1, 1)) / np.float32(size) for a, b in ((y1, y2), (x1, x2)))
        for i in range(size):
            for j in range(size):
                top, left = math.floor(np.float32(i) * tall) + y1, math.floor(np.float32(j) * wide) + x1
                bottom = math.ceil(np.float32(i + 1) * tall) + y1
                right = math.ceil(np.float32(j + 1) * wide) + x1
                rows = slice(min(max(top, 0), height), min(max(bottom, 0), height))
                columns = slice(min(max(left, 0), width), min(max(right, 0), width))
                if rows.stop > rows.start and columns.stop > columns.start:
                    out[n, :, i, j] = maps[:, rows, columns].max(axis=(1, 2))
    return out


def test_roi_align_gives_the_published_vector() -> None:
    # detectron2, tests/layers/test_roi_align.py: the result of the form without the shift by half a cell
    expected = [[7.5, 8, 8.5, 9], [10, 10.5, 11, 11.5], [12.5, 13, 13.5, 14], [15, 15.5, 16, 16.5]]
    assert roi_align(SQUARE, torch.tensor([[1.0, 1, 3, 3]]), 4, 1.0)[0, 0].tolist() == expected


@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_roi_align_is_the_mean_of_its_samples(samples: int) -> None:
    features = torch.randn(2, 9, 13, generator=torch.Generator().manual_seed(4))
    boxes = torch.cat(
        [
            some_regions(8, samples, 9, 13),
            torch.tensor([[0.0, 0, 207, 143], [5, 5, 5, 5], [-40, -40, 30, 30], [190, 120, 400, 300]]),
        ]
    )
    expected = aligned_slowly(features, boxes, 5, 1 / 16, samples)
    assert np.allclose(roi_align(features, boxes, 5, 1 / 16, samples).numpy(), expected, atol=1e-5)


def test_roi_align_of_a_constant_is_that_constant() -> None:
    pooled = roi_align(torch.full((3, 8, 8), 2.5), some_regions(20, 0, 7, 7), 14, 1 / 16)
    assert torch.allclose(pooled, torch.full_like(pooled, 2.5), atol=1e-5)


def test_roi_align_beyond_the_map_is_nothing() -> None:
    assert not roi_align(torch.ones(2, 4, 4), torch.tensor([[200.0, 200, 300, 300]]), 3, 1 / 16).any()


def test_roi_pool_gives_maxima_of_hand_counted_bins() -> None:
    pooled = roi_pool(SQUARE, torch.tensor([[0.0, 0, 3, 3], [1, 1, 1, 1]]), 2, 1.0)
    assert pooled[0, 0].tolist() == [[6, 8], [16, 18]]
    assert pooled[1, 0].tolist() == [[6, 6], [6, 6]]  # one cell, in every bin


@pytest.mark.parametrize("size", [1, 3, 7, 14])
def test_roi_pool_equals_the_loop_bit_by_bit(size: int) -> None:
    features = torch.randn(3, 19, 33, generator=torch.Generator().manual_seed(5))
    boxes = torch.cat(
        [
            some_regions(30, size, 19, 33),
            torch.tensor([[0.0, 0, 527, 303], [8, 8, 8, 8], [24, 40, 24, 90], [500, 290, 900, 900]]),
        ]
    )
    assert np.array_equal(roi_pool(features, boxes, size, 1 / 16).numpy(), pooled_slowly(features, boxes, size, 1 / 16))


def test_roi_pool_of_a_bin_beyond_the_map_is_zero() -> None:
    pooled = roi_pool(torch.full((1, 2, 2), -3.0), torch.tensor([[0.0, 0, 7, 7]]), 4, 1.0)
    assert pooled[0, 0].tolist() == [[-3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_halves_are_rounded_away_from_zero() -> None:
    # 2.5 becomes 3 as C's round does, not 2 as numpy's
    assert roi_pool(SQUARE, torch.tensor([[2.5, 0, 2.5, 0]]), 1, 1.0).item() == 3


@pytest.mark.parametrize("pool", [roi_align, roi_pool])
def test_no_regions_give_an_empty_result(pool: object) -> None:
    assert pool(torch.ones(6, 4, 5), torch.zeros(0, 4), 14, 1 / 16).shape == (0, 6, 14, 14)


@pytest.mark.parametrize("pool", [roi_align, roi_pool])
def test_a_region_does_not_depend_on_the_others(pool: object) -> None:
    features = torch.randn(8, 12, 12, generator=torch.Generator().manual_seed(6))
    boxes = some_regions(21, 7, 12, 12)
    together = pool(features, boxes, 7, 1 / 16)
    alone = torch.cat([pool(features, one[None], 7, 1 / 16) for one in boxes])
    torch.testing.assert_close(together, alone)  # not to the bit: a product's operands begin elsewhere in memory


def test_the_same_as_torchvision_where_it_is_installed() -> None:
    try:
        from torchvision import ops
    except (ImportError, RuntimeError):
        pytest.skip("torchvision does not import here")
    features = torch.randn(4, 20, 30, generator=torch.Generator().manual_seed(8))
    boxes = some_regions(40, 9, 20, 30)
    rows = torch.cat([torch.zeros(40, 1), boxes], dim=1)
    assert torch.equal(roi_pool(features, boxes, 14, 1 / 16), ops.roi_pool(features[None], rows, 14, 1 / 16))
    theirs = ops.roi_align(features[None], rows, 14, 1 / 16, sampling_ratio=-1, aligned=False)
    assert torch.allclose(roi_align(features, boxes, 14, 1 / 16), theirs, atol=1e-5)
