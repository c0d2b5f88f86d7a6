"""The inner step: where the student would go from here, in one set of buffers that every batch uses again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lavis_ext.models.base import Model
from lavis_ext.models.ranks import world
from lavis_ext.schema import RunConfig
from lavis_ext.tasks.distill.settings import DistillConfig

Gradient = Callable[[Mapping[str, Tensor]], Sequence[Tensor | None]]
"""Parameters by name → the gradient of the loss at them, in their order."""


class InnerStep:
    """θ' = θ_s after `inner_steps` steps of a fresh optimizer; `shadow` holds θ' by the student's names.

    sgd: θ' ← θ' − λ·∇L, without decay; adamw: a fresh AdamW with the run's decay. Nothing is copied anew: shadow and
    optimizer are made once and filled in place.
    """

    def __init__(self, student: Model, run: RunConfig, config: DistillConfig) -> None:
        self.config = config
        self.mine = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self.shadow = {name: torch.empty_like(p).requires_grad_() for name, p in self.mine.items()}
        rate = run.init_lr if config.inner_lr is None else config.inner_lr
        self.optimizer: torch.optim.Optimizer
        if config.inner_optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.shadow.values(), lr=rate)
        else:
            groups = shadow_groups(student, run, self.mine, self.shadow)
            self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, run.beta2))

    def take(self, first: Sequence[Tensor | None], gradient: Gradient) -> None:
        """Put the shadow where `first`, the gradient at the student, leads, and then `gradient`, that at the shadow."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.shadow.values()), list(self.mine.values()))
        restart(self.optimizer)
        self._step(first)
        for _ in range(self.config.inner_steps - 1):
            self._step(gradient(self.shadow))

    def _step(self, gradients: Sequence[Tensor | None]) -> None:
        shared = mean_of_ranks(list(gradients))
        for target, grad in zip(self.shadow.values(), shared, strict=True):
            target.grad = grad
        if self.config.inner_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.shadow.values(), self.config.inner_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def shadow_groups(
    student: Model, run: RunConfig, mine: Mapping[str, nn.Parameter], shadow: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """The student's parameter groups with the shadow's tensors."""
    of = {id(parameter): shadow[name] for name, parameter in mine.items()}
    groups = student.optimizer_params(run.weight_decay)
    return [{**group, "params": [of[id(p)] for p in group["params"]]} for group in groups]


@torch.no_grad()
def restart(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer a fresh one in place."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def mean_of_ranks(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """The mean over ranks, so that all of them move their teacher alike; the gradients themselves on one rank."""
    count = world()[1]
    if count > 1:
        for grad in gradients:
            if grad is not None:
                dist.all_reduce(grad)
                grad.div_(count)
    return gradients
