"""The outer step on the teacher: towards the student that has taken its inner step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lavis_ext.schema import RunConfig
from lavis_ext.tasks.distill.settings import DistillConfig


class TeacherStep:
    """θ_t ← θ_t − μ·(θ_t − θ'), or AdamW with θ_t − θ' for a gradient, of the parameters that have a partner.

    Reptile (Nichol et al., arXiv:1803.02999) with the teacher in the place of the initialisation.
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
        """What `meta_schedule` leaves of the rate."""
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
        """The factor that brings the way from teacher to target down to `meta_clip`."""
        if self.config.meta_clip is None:
            return 1.0
        parts = [torch.dist(a.detach(), b.detach().to(a.dtype)) for a, b in zip(self.teacher, target, strict=True)]
        norm = float(torch.stack(parts).norm())
        return min(1.0, self.config.meta_clip / norm) if norm else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The moments of AdamW."""
        return {} if self.optimizer is None else {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        if self.optimizer is not None and "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
