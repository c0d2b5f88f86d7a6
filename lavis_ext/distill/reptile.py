"""How a teacher follows its student (Reptile): an inner step of the student, then a step of the teacher towards it.

All buffers are made once and filled in place by every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.distill.settings import DistillConfig
from lavis_ext.distill.teacher import Partner, distance
from lavis_ext.models.base_model import BaseModel, fit, world

Gradient = Callable[[Mapping[str, Tensor]], Sequence[Tensor | None]]
"""Parameters by name → the gradient of the loss at them, in their order."""


class InnerStep:
    """θ' = θ_s after `inner_steps` steps of a fresh optimizer; `shadow` holds θ' by the student's names.

    sgd: θ' ← θ' − λ·∇L, without decay; adamw: a fresh AdamW with the run's decay.
    """

    def __init__(self, student: BaseModel, run: RunConfig, config: DistillConfig) -> None:
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
        """Set the shadow: step by `first`, the gradient at the student, then by `gradient` at the shadow itself."""
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
    student: BaseModel, run: RunConfig, mine: Mapping[str, nn.Parameter], shadow: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """The student's parameter groups with the shadow's tensors."""
    of = {id(parameter): shadow[name] for name, parameter in mine.items()}
    groups = student.optimizer_params(run.weight_decay)
    return [{**group, "params": [of[id(p)] for p in group["params"]]} for group in groups]


@torch.no_grad()
def restart(optimizer: torch.optim.Optimizer) -> None:
    """Reset an optimizer's state to zeros in place."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def mean_of_ranks(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """The mean over ranks, in place, so that all ranks move their teacher by the same step."""
    count = world()[1]
    if count > 1:
        for grad in gradients:
            if grad is not None:
                dist.all_reduce(grad)
                grad.div_(count)
    return gradients


class TeacherStep:
    """θ_t ← θ_t − μ·(θ_t − θ'), or AdamW with θ_t − θ' for a gradient, of the parameters that have a partner.

    Reptile (Nichol et al., arXiv:1803.02999), where the teacher replaces the initialisation.
    """

    def __init__(self, teacher: Sequence[Tensor], run: RunConfig, config: DistillConfig) -> None:
        self.teacher, self.config = list(teacher), config
        self.lr = run.init_lr if config.teacher_lr is None else config.teacher_lr
        self.mu = self.lr if config.meta_lr is None else config.meta_lr
        self.optimizer: torch.optim.AdamW | None = None
        if config.teacher_update == "reptile_adamw":
            groups = [
                {"params": [p for p in self.teacher if p.ndim > 1], "weight_decay": run.weight_decay},
                {"params": [p for p in self.teacher if p.ndim < 2], "weight_decay": 0.0},
            ]
            self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr, betas=(0.9, run.beta2))

    def share(self, progress: float) -> float:
        """The factor of the rate under `meta_schedule`."""
        return 1.0 - progress if self.config.meta_schedule == "linear" else 1.0

    @torch.no_grad()
    def take(self, target: Sequence[Tensor], progress: float) -> None:
        """One step towards `target`, the partners' values θ'."""
        if self.optimizer is None:
            step = self.mu * self.share(progress) * self._clipping(target)
            for mine, theirs in zip(self.teacher, target, strict=True):
                mine.lerp_(theirs.detach().to(mine.dtype), step)  # exactly theirs at 1, exactly mine at 0
            return
        for mine, theirs in zip(self.teacher, target, strict=True):
            mine.grad = mine.detach() - theirs.detach().to(mine.dtype)
        if self.config.meta_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.teacher, self.config.meta_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.share(progress)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _clipping(self, target: Sequence[Tensor]) -> float:
        """The factor that bounds the norm of the difference from teacher to target by `meta_clip`."""
        if self.config.meta_clip is None:
            return 1.0
        parts = [torch.dist(a.detach(), b.detach().to(a.dtype)) for a, b in zip(self.teacher, target, strict=True)]
        norm = float(torch.stack(parts).norm())
        return min(1.0, self.config.meta_clip / norm) if norm else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The moments of AdamW."""
        return {} if self.optimizer is None else {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        if self.optimizer is not None and "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])


class TeacherUpdate:
    """Both steps: θ' from the student, then the teacher's parameters that have a partner towards θ'."""

    def __init__(
        self, student: BaseModel, teacher: BaseModel, pairs: Sequence[Partner], run: RunConfig, config: DistillConfig
    ) -> None:
        self.inner = InnerStep(student, run, config)
        theirs = dict(teacher.named_parameters())
        self.moved = {pair.teacher: theirs[pair.teacher] for pair in pairs if pair.student in self.inner.shadow}
        self.target = [self.inner.shadow[pair.student] for pair in pairs if pair.student in self.inner.shadow]
        self.start = [parameter.detach().clone() for parameter in self.moved.values()]
        self.outer = TeacherStep(list(self.moved.values()), run, config)

    def take(self, first: Sequence[Tensor | None], gradient: Gradient, progress: float) -> None:
        """Both steps; `first` is the gradient of the loss at the student, `gradient` gives it at other parameters."""
        self.inner.take(first, gradient)
        self.outer.take(self.target, progress)

    def way(self) -> Tensor:
        """‖θ_t − θ_0‖ / ‖θ_0‖ over the moved parameters, from where the teacher began."""
        return distance(self.start, list(self.moved.values()))

    def state_dict(self) -> dict[str, Any]:
        """The moved parameters and the state of the teacher's optimizer."""
        return {"moved": dict(self.moved), **self.outer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them; raises IntegrityError where the checkpoint moved other parameters."""
        fit("the teacher in the checkpoint", self.moved, state["moved"])
        self.outer.load_state_dict(state)
