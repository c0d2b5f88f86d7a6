"""Recall at 1, 5 and 10 of pictures and captions that look for each other, under LAVIS' names."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

DEPTHS = (1, 5, 10)


def first_ranks(scores: np.ndarray, truth: Sequence[Collection[int]]) -> np.ndarray:
    """int64 [N]: for each row of scores [N, C], how many candidates come before the best of its true ones.

    A tie counts against the row: nothing is gained by scoring all alike.
    """
    best = np.array([max(row[list(right)]) for row, right in zip(scores, truth, strict=True)])
    false = scores.copy()
    for row, right in zip(false, truth, strict=True):
        row[list(right)] = -np.inf
    ranks: np.ndarray = (false >= best[:, None]).sum(1)
    return ranks


def recalls(
    image_to_text: np.ndarray, text_to_image: np.ndarray, captions: Sequence[Collection[int]]
) -> dict[str, float]:
    """Recalls in per cent of scores [I, T] and [T, I]; `captions[i]` are the numbers of picture i's captions.

    `txt_r*` is looking for texts, `img_r*` for images; `r_mean` is the mean of both, `agg_metrics` of the texts.
    """
    picture = {text: image for image, texts in enumerate(captions) for text in texts}
    ways = {
        "txt": first_ranks(image_to_text, captions),
        "img": first_ranks(text_to_image, [[picture[text]] for text in range(len(text_to_image))]),
    }
    found: dict[str, float] = {}
    for way, ranks in ways.items():
        values = [100 * float((ranks < depth).mean()) for depth in DEPTHS]
        found |= {f"{way}_r{depth}": value for depth, value in zip(DEPTHS, values, strict=True)}
        found[f"{way}_r_mean"] = sum(values) / len(values)
    return {**found, "r_mean": (found["txt_r_mean"] + found["img_r_mean"]) / 2, "agg_metrics": found["txt_r_mean"]}
