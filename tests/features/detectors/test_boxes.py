"""Boxes against published tables, formulas written out in float64, and the loops of the published scripts."""

import math

import numpy as np
import pytest
import torch

from lavis_ext.features.detectors import ops as box


def some_boxes(count: int, seed: int = 0, side: float = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * side / 2], dim=1)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union as py-faster-rcnn's nms counts it, in float64."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return shared / (sum(areas) - shared)


def suppressed_slowly(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for candidate in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(overlap(boxes[k], boxes[candidate]) <= threshold for k in kept):
            kept.append(candidate)
    return kept


def test_anchors_are_those_of_the_published_table() -> None:
    # the table in the head of py-faster-rcnn's lib/rpn/generate_anchors.py, taken to pixels from 0
    expected = [
        *([-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199]),
        *([-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263]),
        *([-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359]),
    ]
    assert box.cell_anchors(16, (128, 256, 512), (0.5, 1, 2)).tolist() == expected


def test_anchors_may_be_numbered_by_size() -> None:
    by_ratio = box.cell_anchors(16, (64, 128), (0.5, 1, 2))
    by_size = box.cell_anchors(16, (64, 128), (0.5, 1, 2), by_size=True)
    assert torch.equal(by_size, by_ratio[[0, 2, 4, 1, 3, 5]])


def test_a_grid_repeats_the_cell_row_by_row() -> None:
    cells = torch.tensor([[0.0, 0, 15, 15], [-8, -8, 23, 23]])
    grid = box.grid_anchors(cells, 16, height=2, width=3)
    assert grid.shape == (12, 4)
    assert grid[0].tolist() == [0, 0, 15, 15]
    assert grid[3].tolist() == [8, -8, 39, 23]  # second anchor, one cell to the right
    assert grid[-2].tolist() == [32, 16, 47, 31]


@pytest.mark.parametrize(("end", "clamp"), [(0.0, math.inf), (-1.0, box.SIDE_CLAMP)])
def test_deltas_move_boxes_as_the_formula_says(end: float, clamp: float) -> None:
    boxes = some_boxes(50)
    deltas = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    deltas[0] = torch.tensor([0.0, 0, 9, 9])  # beyond the clamp
    moved = box.decode(deltas, boxes, end, clamp).double()
    for (x1, y1, x2, y2), (dx, dy, dw, dh), got in zip(boxes.tolist(), deltas.tolist(), moved, strict=True):
        width, height = x2 - x1 + 1, y2 - y1 + 1
        centre = x1 + width / 2 + dx * width, y1 + height / 2 + dy * height
        new = width * math.exp(min(dw, clamp)), height * math.exp(min(dh, clamp))
        expected = (centre[0] - new[0] / 2, centre[1] - new[1] / 2)
        expected += (centre[0] + new[0] / 2 + end, centre[1] + new[1] / 2 + end)
        assert got.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_no_deltas_leave_maskrcnns_boxes_alone() -> None:
    boxes = some_boxes(5)
    assert torch.allclose(box.decode(torch.zeros(5, 4), boxes, end=-1.0), boxes, atol=1e-4)


def test_clipping_ends_at_the_last_pixel() -> None:
    boxes = torch.tensor([[-5.0, -1, 700, 500], [3, 4, 5, 6]])
    assert box.clip(boxes, height=480, width=640).tolist() == [[0, 0, 639, 479], [3, 4, 5, 6]]


def test_sides_count_whole_pixels() -> None:
    boxes = torch.tensor([[0.0, 0, 15, 15], [0, 0, 14, 15], [0, 0, 15, 14]])
    assert box.large_enough(boxes, 16).tolist() == [True, False, False]


def test_overlaps_are_those_of_the_formula() -> None:
    one, other = some_boxes(20, seed=2), some_boxes(30, seed=3)
    found = box.overlaps(one, other)
    assert found.shape == (20, 30)
    expected = [[overlap(a, b) for b in other.double().numpy()] for a in one.double().numpy()]
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    # two of 3 × 3 pixels that share 2 × 3: 6 / 12
    assert box.overlaps(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])).item() == 0.5


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_keeps_what_the_slow_loop_keeps(threshold: float, seed: int) -> None:
    boxes = some_boxes(120, seed)
    scores = torch.rand(120, generator=torch.Generator().manual_seed(seed)).mul(20).round() / 20  # with many ties
    expected = suppressed_slowly(boxes.double().numpy(), scores.numpy(), threshold)
    assert box.suppress(boxes, scores, threshold).tolist() == expected
    assert box.suppress(boxes, scores, threshold, limit=7).tolist() == expected[:7]


def test_of_equal_boxes_the_first_stays() -> None:
    same = torch.tensor([[0.0, 0, 9, 9]]).repeat(3, 1)
    assert box.suppress(same, torch.tensor([0.5, 0.5, 0.5]), 0.5).tolist() == [0]
    assert box.suppress(same, torch.tensor([0.1, 0.5, 0.9]), 0.5).tolist() == [2]
    assert box.suppress(same, torch.ones(3), 1.0).tolist() == [0, 1, 2]  # an overlap of 1 is not more than 1


def test_an_overlap_equal_to_the_threshold_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]])  # they overlap by 0.5
    assert box.suppress(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert box.suppress(boxes, torch.tensor([0.9, 0.8]), 0.49).tolist() == [0]


def test_nothing_is_suppressed_among_nothing() -> None:
    assert box.suppress(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    best, classes = box.best_of_survivors(torch.zeros(0, 4), torch.zeros(0, 5), 0.3)
    assert (best.shape, classes.shape) == ((0,), (0,))
    best, _ = box.best_of_survivors(some_boxes(3), torch.zeros(3, 0), 0.3)
    assert best.tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_survivors_are_those_of_the_published_loop(seed: int) -> None:
    """The loop of volta's `extract_coco_image.py`, a class at a time."""
    boxes = some_boxes(60, seed, side=120)
    scores = torch.rand(60, 9, generator=torch.Generator().manual_seed(seed)).mul(50).round() / 50
    expected = np.zeros(60, np.float32)
    for number in range(9):
        column = scores[:, number].numpy()
        keep = suppressed_slowly(boxes.double().numpy(), column, 0.3)
        expected[keep] = np.where(column[keep] > expected[keep], column[keep], expected[keep])
    best, classes = box.best_of_survivors(boxes, scores, 0.3)
    assert np.array_equal(best.numpy(), expected)
    kept = best > 0
    assert torch.equal(scores[kept, classes[kept]], best[kept])


@pytest.mark.parametrize(
    ("conf", "least", "most", "expected"),
    [
        (0.5, 0, 10, [3, 1]),
        (0.5, 3, 10, [3, 1, 0]),  # the best of the others fill up
        (0.5, 0, 1, [3]),
        (0.0, 0, 10, [3, 1, 0, 2]),
        (0.9, 0, 10, []),
        (0.9, 9, 10, [3, 1, 0, 2]),  # there are no more
        (0.7, 0, 10, [3, 1]),  # a score equal to conf counts
    ],
)
def test_as_many_are_chosen_as_reach_conf_within_the_bounds(
    conf: float, least: int, most: int, expected: list[int]
) -> None:
    scores = torch.tensor([0.3, 0.7, 0.1, 0.8])
    assert box.choose(scores, conf, least, most).tolist() == expected


def test_ranking_keeps_the_order_of_ties() -> None:
    assert box.ranked(torch.tensor([0.5, 0.9, 0.5, 0.9])).tolist() == [1, 3, 0, 2]
