"""Recalls by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.metrics.retrieval import first_ranks, recalls


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
