"""One batch's share of each loss: which terms count at this point of the run, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lavis_ext.models.base import Outputs
from lavis_ext.objectives.terms import Moment, Term
from lavis_ext.tasks.distill.views import Need

Terms = Mapping[str, tuple[float, Term]]
"""Name → weight and term."""


@dataclass(frozen=True)
class Lesson:
    """The terms that count and the share `alpha` of all of them; without a term, or a share, the task's loss is all."""

    terms: Terms
    alpha: float
    progress: float
    silent: tuple[str, ...] = ()
    """Terms that do not count (any more)."""

    @classmethod
    def at(cls, terms: Terms, alpha: float, progress: float) -> Lesson:
        """What counts after a share `progress` of the run."""
        active = {name: pair for name, pair in terms.items() if alpha and not pair[1].over(progress)}
        silent = tuple(name for name in terms if name not in active)
        return cls(active, alpha if active else 0.0, progress, silent)

    def need(self, task: bool) -> Need:
        """What is to be looked at; with `task` for the task's loss too."""
        return Need.of((term for _, term in self.terms.values()), task)

    def loss(
        self, task: Tensor, student: Mapping[str, Outputs], teacher: Mapping[str, Outputs], moves: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(1 − α)·`task` + α·Σ w·term, and each term by itself; `moves` lets terms move what they remember."""
        if not self.terms:
            return task, {name: torch.zeros_like(task, requires_grad=False) for name in self.silent}
        moment = Moment(self.progress, moves)
        values = {name: term(student, teacher, moment) for name, (_, term) in self.terms.items()}
        taught = torch.stack([weight * values[name] for name, (weight, _) in self.terms.items()]).sum()
        parts = {**values, **{name: torch.zeros_like(taught, requires_grad=False) for name in self.silent}}
        return (1 - self.alpha) * task + self.alpha * taught, parts
