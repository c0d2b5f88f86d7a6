"""Captions for tests: a writer whose words follow a table, and the plain searches that fast ones must agree with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.oscar.generation import Ends

ENDS = Ends(cls=2, sep=3, pad=0)
Prefix = tuple[int, ...]


class Table:
    """Logits of the next word for every image and prefix, drawn once; [PAD] and [CLS] are never likely."""

    def __init__(self, seed: int, words: int = 7, images: int = 2) -> None:
        self.seed, self.words, self.images = seed, words, images

    def logits(self, image: int, prefix: Prefix) -> np.ndarray:
        found = np.random.default_rng([self.seed, image, *prefix]).normal(size=self.words) * 1.5
        found[[ENDS.cls, ENDS.pad]] = -30.0
        return found

    def logs(self, image: int, prefix: Prefix) -> np.ndarray:
        values = self.logits(image, prefix)
        return values - np.log(np.exp(values).sum())


class TableWriter:
    """Stands where `Writer` does; it remembers what was written to look the next logits up."""

    def __init__(self, table: Table, rows: int) -> None:
        self.table, self.rows = table, rows
        self.bias = torch.zeros(1)
        self.before: list[list[Prefix]] = [[() for _ in range(rows)] for _ in range(table.images)]

    def step(self, last: Tensor) -> Tensor:
        self.before = [
            [(*prefix, word) for prefix, word in zip(prefixes, words, strict=True)]
            for prefixes, words in zip(self.before, last.tolist(), strict=True)
        ]
        rows = [[self.table.logits(image, prefix) for prefix in found] for image, found in enumerate(self.before)]
        return torch.tensor(np.array(rows))

    def follow(self, beams: Tensor) -> None:
        self.before = [[old[row] for row in rows] for old, rows in zip(self.before, beams.tolist(), strict=True)]


def every_caption(table: Table, image: int, max_length: int) -> Iterator[tuple[Prefix, float, bool]]:
    """All captions from [CLS] on with the sum of their log probabilities: those that end, and those that are cut."""
    todo: list[tuple[Prefix, float]] = [((ENDS.cls,), 0.0)]
    while todo:
        prefix, total = todo.pop()
        for word, log in enumerate(table.logs(image, prefix)):
            if word == ENDS.sep:
                yield (*prefix, word), total + log, True
            elif len(prefix) + 1 == max_length:
                yield (*prefix, word), total + log, False
            else:
                todo.append(((*prefix, word), total + log))


def plain_beam_search(
    logs: Callable[[Prefix], np.ndarray], beams: int, max_length: int, penalty: float, keep: int
) -> list[tuple[float, Prefix]]:
    """Upstream's beam search, one image and one candidate at a time."""
    alive: list[tuple[float, Prefix]] = [(0.0, (ENDS.cls,))]
    ended: list[tuple[float, Prefix]] = []
    for length in range(1, max_length):
        candidates = [(s + log, p, w) for s, p in alive for w, log in enumerate(logs(p))]
        candidates.sort(key=lambda found: -found[0])
        candidates = candidates[: 2 * beams]
        if len(ended) >= keep and min(ended)[0] >= candidates[0][0] / (max_length - 1) ** penalty:
            break
        alive = []
        for total, prefix, word in candidates:
            if word == ENDS.sep or length + 1 == max_length:
                ended = sorted([*ended, (total / length**penalty, prefix)], reverse=True)[:keep]
            else:
                alive.append((total, (*prefix, word)))
            if len(alive) == beams:
                break
    return ended


def best_constrained(
    table: Table, image: int, max_length: int, constraints: list[list[Prefix]], least: int
) -> tuple[Prefix, float]:
    """Upstream's choice among all captions: of those that meet the same constraints the best by its sum, of these the
    best by its mean over words and [SEP]; a cut caption in which a form has begun does not count."""
    best: dict[frozenset[int], tuple[float, float, Prefix]] = {}
    for caption, total, ended in every_caption(table, image, max_length):
        words = caption[1:-1] if ended else caption[1:]
        spans = {words[a:b] for a in range(len(words)) for b in range(a + 1, len(words) + 1)}
        met = frozenset(i for i, forms in enumerate(constraints) if any(form in spans for form in forms))
        unmet = [form for i, forms in enumerate(constraints) if i not in met for form in forms]
        begun = not ended and any(words[-n:] == form[:n] for form in unmet for n in range(1, len(form)))
        if len(met) >= min(least, len(constraints)) and not begun:
            found = (total, total / (len(caption) - ended), caption)
            best[met] = max(best.get(met, found), found)
    _, score, caption = max(best.values(), key=lambda found: found[1])
    return caption, score


def words_of(ids: Any) -> Prefix:
    """A row of ids up to its [SEP]."""
    row = [int(number) for number in ids]
    return tuple(row[: row.index(ENDS.sep)] if ENDS.sep in row else row)


def close(found: float, expected: float) -> bool:
    return math.isclose(found, expected, abs_tol=1e-4)
