"""CIDEr-D (Vedantam et al., arXiv:1411.5726 §6) of single captions, with document frequencies that are counted once.

As a reward it is asked for thousands of captions of few images, so that references are cut into n-grams once an image.
Texts are tokenised as COCO's evaluation does, with `<eos>` behind the last word, as upstream's rewards are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lavis_ext.errors import ConfigError
from lavis_ext.metrics.ptb import clean_tokens

LONGEST = 4
SIGMA = 6.0
SCALE = 10.0
END = "<eos>"
KEPT = 4096
Gram = tuple[str, ...]


@dataclass(frozen=True)
class Vector:
    """The tf-idf weights of a caption's n-grams, and their norm, by n from 1; and how many words follow a word."""

    weights: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    length: int


class CiderD:
    """Scores of captions against the references of their image, on the scale of CIDEr / 100 · 10.

    `documents` is what n-grams are rare in: the references of the training images. Raises ConfigError if there are less
    than two images, as no n-gram is rarer than another then.
    """

    def __init__(self, documents: Mapping[Any, Sequence[str]]) -> None:
        if len(documents) < 2:
            what = f"{len(documents)} images have captions"
            raise ConfigError("CIDEr-D", what, "take a training split of at least two images with captions")
        self.documents = documents
        self.rarity = math.log(len(documents))
        self.frequency: Counter[Gram] = Counter()
        for texts in documents.values():
            self.frequency.update({gram for text in texts for gram in grams(text)})
        self._references = lru_cache(KEPT)(self._vectors)

    def score(self, image: Hashable, caption: str) -> float:
        """CIDEr-D of a caption of one of the images; raises ConfigError for an image without references."""
        references = self._references(image)
        own = self.vector(caption)
        return SCALE * sum(similarity(own, other) for other in references) / len(references)

    def vector(self, text: str) -> Vector:
        """The weights of a text: how often an n-gram stands there, times how rare it is."""
        found: tuple[dict[Gram, float], ...] = tuple({} for _ in range(LONGEST))
        for gram, count in grams(text).items():
            rare = self.rarity - math.log(max(1, self.frequency[gram]))
            found[len(gram) - 1][gram] = count * rare
        norms = tuple(math.sqrt(sum(weight * weight for weight in part.values())) for part in found)
        return Vector(found, norms, max(len(words(text)) - 1, 0))

    def _vectors(self, image: Hashable) -> list[Vector]:
        texts = self.documents.get(image)
        if not texts:
            raise ConfigError("CIDEr-D", f"image {image} has no captions to compare with", "train on a captioned split")
        return [self.vector(text) for text in texts]


def similarity(own: Vector, other: Vector) -> float:
    """The mean over n of clipped cosines, less the more the lengths differ."""
    total = 0.0
    for mine, theirs, norm, their_norm in zip(own.weights, other.weights, own.norms, other.norms, strict=True):
        product = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
        total += product / (norm * their_norm) if norm and their_norm else 0.0
    gap = own.length - other.length
    return total / LONGEST * math.exp(-(gap * gap) / (2 * SIGMA * SIGMA))


def grams(text: str) -> Counter[Gram]:
    """How often each run of 1 to 4 words stands in a text."""
    return Counter(_runs(words(text)))


def words(text: str) -> list[str]:
    """The words of a text and the sign of its end."""
    return [*clean_tokens(text).split(), END]


def _runs(tokens: Sequence[str]) -> Iterable[Gram]:
    for size in range(1, LONGEST + 1):
        for start in range(len(tokens) - size + 1):
            yield tuple(tokens[start : start + size])
