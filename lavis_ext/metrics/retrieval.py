"""Image–text retrieval: recall at 1, 5 and 10 in both directions, under LAVIS' names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from lavis_ext.common.registry import metrics
from lavis_ext.metrics.settings import MetricKeys

DEPTHS = (1, 5, 10)
CHUNK = 2**22
"""Scores that are compared at a time; bounds the memory."""
LAST = 2**31
"""The rank of a row without a true candidate."""


def first_ranks(scores: np.ndarray, truth: Sequence[Collection[int]]) -> np.ndarray:
    """int64 [N]: for each row of scores [N, C], how many candidates come before the best of its true ones.

    A tie counts against the row, so that equal scores for all gain nothing; nan comes last. A row without a true
    candidate has rank LAST. Rows are compared a chunk at a time, which takes 20 MB beside `scores`.
    """
    rows = np.repeat(np.arange(len(scores)), [len(right) for right in truth])
    columns = np.array([column for right in truth for column in right], dtype=np.int64)
    own = np.nan_to_num(scores[rows, columns], nan=-np.inf, neginf=-np.inf, posinf=np.inf)
    best = np.full(len(scores), -np.inf, own.dtype)
    np.maximum.at(best, rows, own)
    ranks = np.empty(len(scores), np.int64)
    for part in chunks(scores):
        ranks[part] = np.count_nonzero(scores[part] >= best[part, None], axis=1)
    itself = np.bincount(rows, weights=own >= best[rows], minlength=len(scores)).astype(np.int64)
    found: np.ndarray = np.where(best == -np.inf, LAST, ranks - itself)
    return found


def leading(scores: np.ndarray, count: int) -> list[list[int]]:
    """The columns of the `count` highest scores of each row of [N, C], the highest first, ties by their number."""
    found: list[list[int]] = []
    for part in chunks(scores):
        block = np.nan_to_num(scores[part], nan=-np.inf, neginf=-np.inf, posinf=np.inf)
        kept = min(count, block.shape[1])
        for line, least in zip(block, np.partition(block, -kept, axis=1)[:, -kept], strict=True):
            near = np.flatnonzero(line >= least)
            found.append(near[np.argsort(-line[near], kind="stable")][:kept].tolist())
    return found


def chunks(scores: np.ndarray) -> Iterator[slice]:
    """Slices of rows that hold about CHUNK scores each."""
    size = max(1, CHUNK // max(scores.shape[1], 1))
    return (slice(at, at + size) for at in range(0, len(scores), size))


def recalls(
    image_to_text: np.ndarray, text_to_image: np.ndarray, captions: Sequence[Collection[int]]
) -> dict[str, float]:
    """Recalls in per cent of scores [I, T] and [T, I]; `captions[i]` are the numbers of picture i's captions.

    `txt_r*` is image-to-text, `img_r*` text-to-image; `r_mean` is the mean of both, `agg_metrics` that of `txt_r*`.
    """
    picture = {text: image for image, texts in enumerate(captions) for text in texts}
    ways = {
        "txt": first_ranks(image_to_text, captions),
        "img": first_ranks(text_to_image, [[picture[text]] for text in range(len(text_to_image))]),
    }
    found = percents("txt", ways["txt"]) | percents("img", ways["img"])
    return {**found, "r_mean": (found["txt_r_mean"] + found["img_r_mean"]) / 2, "agg_metrics": found["txt_r_mean"]}


@metrics.register("recall", config=MetricKeys)
def recall(
    image_to_text: np.ndarray, text_to_image: np.ndarray, captions: Sequence[Collection[int]], keys: MetricKeys
) -> dict[str, float]:
    """`recalls` as a metric of a task."""
    return recalls(image_to_text, text_to_image, captions)


def percents(way: str, ranks: np.ndarray) -> dict[str, float]:
    """Recall at each depth and its mean, in per cent, of ranks [N] that begin at 0: `{way}_r1` …, `{way}_r_mean`."""
    values = [100 * float((ranks < depth).mean()) for depth in DEPTHS]
    found = {f"{way}_r{depth}": value for depth, value in zip(DEPTHS, values, strict=True)}
    return {**found, f"{way}_r_mean": sum(values) / len(values)}
