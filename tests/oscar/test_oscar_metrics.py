"""The metrics of Oscar's tasks by name: what a run gets where it names none, and another metric in their place."""

from __future__ import annotations

import numpy as np
import pytest

from lavis_ext.common.config.schema import MetricConfig
from lavis_ext.metrics import measure
from lavis_ext.oscar.answering import ScoredInputs
from lavis_ext.tasks.answering import Truth


def test_scores_of_classes() -> None:
    found = ScoredInputs([1.0, 0.3, 0.0], best_scores=[1.0, 0.6, 0.9], sentences=["a", "a", "b"])
    assert measure([MetricConfig(name="oscar_gqa")], found) == {"overall": 43.33, "agg_metrics": 43.33}
    assert measure([MetricConfig(name="oscar_vqa")], found)["upper_bound"] == 83.33
    assert measure([MetricConfig(name="oscar_nlvr2")], found)["consistency"] == 15.0


def test_official_answers_count_where_there_are_some() -> None:
    truth = Truth({1: ["dog"] * 10}, {1: "other"})
    found = ScoredInputs([1.0, 0.0], [1.0, 1.0], said={1: "dog", 2: "cat"}, truth=truth)
    scores = measure([MetricConfig(name="oscar_vqa")], found)
    assert (scores["overall"], scores["official"], scores["official_other"]) == (50.0, 100.0, 100.0)


def test_an_unknown_sentence_leaves_consistency_out() -> None:
    found = ScoredInputs([1.0, 0.0], sentences=["a", ""])
    assert "consistency" not in measure([MetricConfig(name="oscar_nlvr2")], found)


def test_hidden_words_and_matching() -> None:
    scores = measure([MetricConfig(name="oscar_pretrain")], 8, 2, [1.0, 0.0])
    assert scores == {"words": 25.0, "matching": 50.0, "agg_metrics": 37.5}


@pytest.mark.parametrize("both", [True, False])
def test_recalls_of_one_way_or_two(both: bool) -> None:
    scores = np.array([[2.0, 1.0], [2.0, 1.0]], np.float32)
    found = measure([MetricConfig(name="oscar_retrieval")], scores, scores.T if both else None, [[0], [1]])
    assert found["agg_metrics"] == found["txt_r1"] == 50.0 and ("img_r1" in found) == both
