"""Caption scores: those of pycocoevalcap on the same tokens, whatever is predicted."""

from __future__ import annotations

import logging
import random
import shutil

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from lavis_ext.common.errors import ConfigError
from lavis_ext.demo.world import World
from lavis_ext.metrics.ptb import clean_tokens
from lavis_ext.metrics.scores import caption_scores, cider

REFERENCES = {scene.id: scene.captions() for scene in World(val=40).scenes("val")}
IDS = list(REFERENCES)


def predictions(seed: int) -> dict[int, str]:
    """For most images one of its captions, for some that of another image."""
    rng = random.Random(seed)
    return {i: rng.choice(REFERENCES[i if rng.random() < 0.7 else rng.choice(IDS)]) for i in IDS}


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_pycocoevalcap(seed: int) -> None:
    found = caption_scores(REFERENCES, predictions(seed))
    gts = {i: [clean_tokens(text) for text in REFERENCES[i]] for i in IDS}
    res = {i: [clean_tokens(text)] for i, text in predictions(seed).items()}
    bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
    expected = {f"Bleu_{n}": value for n, value in enumerate(bleu, 1)}
    expected |= {"ROUGE_L": Rouge().compute_score(gts, res)[0], "CIDEr": Cider().compute_score(gts, res)[0]}
    assert found == pytest.approx(expected, abs=1e-6)
    assert all(isinstance(value, float) for value in found.values())


def test_cider_by_hand_for_a_single_word() -> None:
    """One-word captions of two images: only the unigram term counts, cos = 1, so 10 · ¼ for the right image."""
    assert cider({1: ["cat"], 2: ["dog"]}, {1: ["cat"], 2: ["cow"]}) == pytest.approx((10 / 4 + 0) / 2)


def test_the_truth_scores_best_and_nonsense_scores_nothing() -> None:
    truth = caption_scores(REFERENCES, {i: texts[0] for i, texts in REFERENCES.items()})
    wrong = caption_scores(REFERENCES, dict.fromkeys(IDS, "zebras"))
    assert truth["Bleu_4"] == pytest.approx(1.0)
    assert truth["ROUGE_L"] == pytest.approx(1.0)
    assert truth["CIDEr"] > 2 > 0.01 > wrong["CIDEr"]


def test_images_without_prediction_are_left_out() -> None:
    some = {i: REFERENCES[i][0] for i in IDS[:10]}
    assert caption_scores(REFERENCES, some) == caption_scores({i: REFERENCES[i] for i in IDS[:10]}, some)


@pytest.mark.parametrize("empty", ["", " ", "...", "'"])
def test_empty_predictions_score_nothing_and_break_nothing(empty: str) -> None:
    every = caption_scores(REFERENCES, dict.fromkeys(IDS, empty))
    assert every == pytest.approx(dict.fromkeys(every, 0.0), abs=1e-6)
    one = caption_scores(REFERENCES, {**predictions(0), IDS[0]: empty})
    assert 0 < one["CIDEr"] < caption_scores(REFERENCES, {**predictions(0), IDS[0]: REFERENCES[IDS[0]][0]})["CIDEr"]


def test_references_without_a_word() -> None:
    found = caption_scores({1: ["..."], 2: [""]}, {1: "a dog", 2: "a cat"})
    assert found["CIDEr"] == 0
    assert all(value == value for value in found.values())


def test_one_image_is_worth_no_cider_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = caption_scores({1: ["a red dog"]}, {1: "a red dog"})
    assert found["CIDEr"] == 0
    assert found["Bleu_1"] == pytest.approx(1.0)
    assert "single image" in caplog.text
    caplog.clear()
    two = {1: ["a red dog"], 2: ["a cat"]}
    assert caption_scores(two, {1: "a red dog", 2: "a cat"})["CIDEr"] > 0
    assert not caplog.records


def test_ids_that_do_not_meet_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"share no image id \(predicted '1', referenced 1"):
        caption_scores({1: ["a"]}, {"1": "a"})
    with pytest.raises(ConfigError, match="predicted none"):
        caption_scores({1: ["a"]}, {})
    with pytest.raises(ConfigError, match=r"1 predictions have no reference \(2\)"):
        caption_scores({1: ["a"], 2: []}, {1: "a", 2: "b"})


def test_java_metrics_are_left_out_without_java(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    assert "METEOR" not in caption_scores(REFERENCES, predictions(0), extra=["METEOR"])
    assert "METEOR is left out" in caplog.text
    with pytest.raises(ConfigError, match="BLEURT"):
        caption_scores(REFERENCES, predictions(0), extra=["BLEURT"])


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_meteor_comes_where_java_is() -> None:
    references = {1: ["a man rides a horse"], 2: ["two dogs play in the snow"], 3: ["a red bus"]}
    said = {1: "a man rides a horse", 2: "two dogs play in the snow", 3: "a blue train station"}
    # what METEOR 1.5 gives for two of three that are right; its tables take seconds to load, so it is asked once
    assert caption_scores(references, said, extra=["METEOR"])["METEOR"] == pytest.approx(0.500478, abs=1e-6)
