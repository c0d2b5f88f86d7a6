"""CIDEr-D of single captions: as the corpus metric of the same captions has it, with frequencies of other images."""

from __future__ import annotations

import math

import pytest
from pycocoevalcap.cider.cider import Cider

from lavis_ext.common.errors import ConfigError
from lavis_ext.oscar.captioning import CiderD

REFERENCES = {
    1: ["A red circle above a blue square.", "a circle over a square", "The circle is red"],
    2: ["two green stars", "Two stars, both green.", "a pair of green stars"],
    "x": ["a yellow cross on wood", "wood with a cross"],
    4: ["a small red ring", "one ring"],
}
CAPTIONS = {1: "a red circle above a square", 2: "two green stars", "x": "a dog", 4: "ring ring ring ring red"}


def with_end(text: str) -> str:
    return text.lower().replace(".", "").replace(",", "") + " <eos>"


def test_as_the_corpus_metric_where_the_frequencies_are_the_same() -> None:
    scorer = CiderD(REFERENCES)
    gts = {key: [with_end(text) for text in texts] for key, texts in REFERENCES.items()}
    _, expected = Cider().compute_score(gts, {key: [with_end(text)] for key, text in CAPTIONS.items()})
    assert [scorer.score(key, text) for key, text in CAPTIONS.items()] == pytest.approx(list(expected), rel=1e-9)


def test_a_reference_itself_is_worth_ten_where_it_is_the_only_one() -> None:
    scorer = CiderD({1: ["a red circle in here"], 2: ["two green stars"], 3: ["nothing at all"]})
    assert scorer.score(1, "A red circle in here.") == pytest.approx(10)
    assert scorer.score(1, "unknown words of another world") < 0.01


def test_what_every_image_has_is_worth_nothing() -> None:
    scorer = CiderD({1: ["the dog"], 2: ["the cat"]})
    assert scorer.frequency["the",] == 2 and scorer.score(1, "the") == 0
    assert scorer.score(1, "dog") > 0
    assert scorer.vector("the dog").weights[0] == {("the",): 0.0, ("dog",): math.log(2), ("<eos>",): 0.0}


def test_the_end_counts() -> None:
    """A caption that stops in the middle has not the end that the reference has."""
    scorer = CiderD({1: ["a red dog"], 2: ["a blue cat"]})
    assert scorer.score(1, "a red dog") > scorer.score(1, "a red dog a red")


def test_references_that_are_missing_are_named() -> None:
    with pytest.raises(ConfigError, match="image 9 has no captions"):
        CiderD(REFERENCES).score(9, "a dog")
    with pytest.raises(ConfigError, match="1 images have captions"):
        CiderD({1: ["a"]})
