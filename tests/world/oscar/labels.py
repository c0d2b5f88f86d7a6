"""Answers as classes: label ids by the alphabet, and a pickled dict whose own order is the order of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from lavis_ext.demo.world import pick_several

SCORES = {1: 0.3, 2: 0.6, 3: 0.9}
"""What an answer is worth by how many of ten people gave it; from four on it is 1."""


@dataclass(frozen=True)
class Labels:
    """`ids`: answer → label id, in the order in which the dict is pickled, which is not that of the ids."""

    ids: dict[str, int]

    @classmethod
    def of(cls, answers: Iterable[str], key: str) -> Labels:
        """The labels of these answers; `key` decides their order."""
        names = sorted(set(answers))
        order = pick_several(Random(f"labels/{key}"), names, len(names))
        numbers = {name: number for number, name in enumerate(names)}
        return cls({name: numbers[name] for name in (order if order != names else reversed(names))})

    @property
    def answers(self) -> list[str]:
        """The answers by label id."""
        return sorted(self.ids, key=self.ids.__getitem__)

    def scored(self, said: Iterable[str]) -> tuple[list[int], list[float]]:
        """Label ids of what people said, with soft scores; what is no label is left out."""
        counted = [(self.ids[name], number) for name, number in Counter(said).items() if name in self.ids]
        return [label for label, _ in counted], [SCORES.get(number, 1.0) for _, number in counted]
