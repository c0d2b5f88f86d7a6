"""Recalls by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.metrics import retrieval
from lavis_ext.metrics.retrieval import LAST, first_ranks, leading, percents, recalls


def test_the_best_of_the_true_ones_counts_and_ties_count_against() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2], [0.1, 0.9, 0.8]])
    assert first_ranks(scores, [[1, 2], [0], [1]]).tolist() == [1, 2, 0]


def test_both_ways_under_their_names() -> None:
    to_text = np.array([[0.9, 0.8, 0.1, 0.1], [0.9, 0.1, 0.2, 0.1]])
    found = recalls(to_text, to_text.T, [[0, 1], [2, 3]])
    assert (found["txt_r1"], found["txt_r5"], found["img_r1"]) == (50.0, 100.0, 50.0)
    assert found["agg_metrics"] == found["txt_r_mean"] == pytest.approx((50 + 100 + 100) / 3)
    assert found["r_mean"] == pytest.approx((found["txt_r_mean"] + found["img_r_mean"]) / 2)


@given(st.permutations(range(12)))
def test_a_true_score_above_all_others_is_recalled(order: list[int]) -> None:
    scores = np.zeros((12, 12))
    scores[np.arange(12), order] = 1.0
    assert recalls(scores, scores.T, [[text] for text in order])["r_mean"] == 100.0


def slowly(scores: np.ndarray, truth: list[list[int]]) -> list[int]:
    """Ranks one number at a time: all false candidates that are not below the best true one."""
    found = []
    for row, right in zip(scores.tolist(), truth, strict=True):
        best = max(row[column] for column in right)
        found.append(sum(value >= best for column, value in enumerate(row) if column not in right))
    return found


@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 40), st.randoms(use_true_random=False))
def test_ranks_by_chunks_are_those_of_a_loop(rows: int, columns: int, chunk: int, chance: random.Random) -> None:
    scores = np.array([[chance.randrange(4) for _ in range(columns)] for _ in range(rows)], np.float32)
    truth = [chance.sample(range(columns), chance.randint(1, columns)) for _ in range(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "CHUNK", chunk)
        assert first_ranks(scores, truth).tolist() == slowly(scores, truth)
        best = leading(scores, 3)
        other_way = leading(scores.T, 3)
    assert best == [sorted(range(columns), key=lambda c, row=row: (-row[c], c))[:3] for row in scores.tolist()]
    assert other_way == [sorted(range(rows), key=lambda r, row=row: (-row[r], r))[:3] for row in scores.T.tolist()]


def test_what_is_no_number_or_not_there_comes_last() -> None:
    scores = np.array([[np.nan, 0.5], [0.5, np.nan], [0.5, 0.1]])
    assert first_ranks(scores, [[0], [0], []]).tolist() == [LAST, 0, LAST]
    assert leading(scores[:2], 2) == [[1, 0], [0, 1]]
    low = np.array([[-0.5, np.nan, -0.1, -np.inf, np.inf]])
    assert leading(low, 3) == [[4, 2, 0]]
    assert first_ranks(low, [[1]]).tolist() == [LAST]
    assert first_ranks(low, [[0]]).tolist() == [2]


def test_the_depths_are_one_five_and_ten() -> None:
    """Row r has r candidates before its own."""
    scores = np.array([[1.0] * place + [0.5] + [0.0] * (11 - place) for place in range(12)])
    found = percents("txt", first_ranks(scores, [[place] for place in range(12)]))
    expected = [100 * depth / 12 for depth in (1, 5, 10)]
    assert [found[f"txt_r{depth}"] for depth in (1, 5, 10)] == pytest.approx(expected)
    assert found["txt_r_mean"] == pytest.approx(sum(expected) / 3)
    assert LAST > 2**30
