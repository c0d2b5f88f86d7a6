"""Scores of whole splits of answers, by hand and by hypothesis."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.common.errors import ConfigError
from lavis_ext.metrics.settings import MetricKeys
from lavis_ext.metrics.vqa import (
    aok_vqa,
    class_accuracy,
    direct_answer_score,
    gqa,
    lemmatize,
    load_lemmatizer,
    vqa,
    vqa_accuracy,
    vqa_score,
)


def ten(*answers: str) -> list[str]:
    """Ten answers: those given, filled up with others that nobody predicts."""
    return [*answers, *(f"else {i}" for i in range(10 - len(answers)))]


def test_vqa_by_answer_type() -> None:
    references = {1: ten("yes", "yes"), 2: ["2"] * 10, 3: ten("red"), 4: ["cat"] * 10}
    types = {1: "yes/no", 2: "number", 3: "other", 4: "other"}
    found = vqa_accuracy({1: "Yes", 2: "two", 3: "blue", 4: "a cat."}, references, types)
    assert found == {"overall": 65.0, "yes/no": 60.0, "number": 100.0, "other": 50.0}
    assert vqa_accuracy({1: "Yes"}, references) == {"overall": 60.0}


def test_partial_predictions_are_scored_on_what_is_there() -> None:
    references = {1: ["yes"] * 10, 2: ["no"] * 10}
    assert vqa_accuracy({1: "yes"}, references) == {"overall": 100.0}
    assert vqa_accuracy({1: "yes", 9: "of another split"}, references) == {"overall": 100.0}
    for score in (vqa, gqa, aok_vqa):
        with pytest.raises(ConfigError, match="none of the 1 predicted questions"):
            score({9: "yes"}, references, MetricKeys())


@given(st.dictionaries(st.integers(), st.sampled_from(["red", "2", "no"]), min_size=1, max_size=8))
def test_overall_is_the_mean_of_the_scores(predictions: dict[Any, str]) -> None:
    references = {key: ten("red", "red", "no") for key in predictions}
    mean = sum(vqa_score(p, references[k]) for k, p in predictions.items()) / len(predictions)
    assert vqa_accuracy(predictions, references)["overall"] == pytest.approx(100 * mean, abs=0.006)


def test_gqa_is_the_share_of_equal_answers() -> None:
    references = {"05515938": ["yes"], "1": ["left"], "2": ["tennis racket"]}
    said = {"05515938": "Yes.", "1": "right", "2": "the tennis racket"}
    assert gqa(said, references, MetricKeys()) == {"overall": 66.67}


def test_classes_by_their_recall() -> None:
    found = class_accuracy([0, 1, 1, 2], [0, 1, 2, 3], ["cat", "dog", "owl"], MetricKeys())
    assert found == {"acc": 0.5, "cat_acc": 1.0, "dog_acc": 1.0, "owl_acc": 0.0, "3_acc": 0.0, "agg_metrics": 0.5}


@pytest.mark.parametrize(("agree", "score"), [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (10, 1.0)])
def test_a_direct_answer_needs_three(agree: int, score: float) -> None:
    assert direct_answer_score("ride", ten(*["ride"] * agree)) == pytest.approx(score)
    assert direct_answer_score("Ride", ["ride"] * 10) == 0
    found = aok_vqa({"a": "ride"}, {"a": ten(*["ride"] * agree)}, MetricKeys())["overall"]
    assert found == pytest.approx(100 * score, abs=0.005)


def spacy_like(words: dict[str, tuple[str, str]]) -> ModuleType:
    """A stand-in for spaCy that knows some words as (part of speech, lemma)."""
    module = ModuleType("spacy")

    def token(text: str) -> SimpleNamespace:
        kind, lemma = words.get(text, ("X", "?"))
        return SimpleNamespace(text=text, pos_=kind, lemma_=lemma)

    module.load = lambda name: lambda text: [token(word) for word in text.split()]  # type: ignore[attr-defined]
    return module


def test_nouns_and_verbs_lose_their_endings(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"dogs": ("NOUN", "dog"), "running": ("VERB", "run"), "better": ("ADJ", "good")}
    monkeypatch.setitem(sys.modules, "spacy", spacy_like(words))
    load_lemmatizer.cache_clear()
    assert lemmatize(["dogs running", "better", ""]) == ["dog run", "better", ""]
    load_lemmatizer.cache_clear()


def test_without_spacy_or_its_pipeline_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    load_lemmatizer.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigError, match=r"apply_lemmatizer: needs spaCy, .*pip install spacy"):
        lemmatize(["dogs"])
    broken = ModuleType("spacy")

    def load(name: str) -> Any:
        raise OSError(f"no {name}")

    broken.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", broken)
    with pytest.raises(ConfigError, match=r"en_core_web_sm, which is not installed"):
        lemmatize(["dogs"])
