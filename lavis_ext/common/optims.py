"""LAVIS' form of the schedules, `cls(optimizer, …).step(cur_epoch, cur_step)`, over the registered ones."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

from lavis_ext.common.registry import lr_schedulers


class SteppingScheduler:
    """Sets the rate of an optimizer at each `step`, by the registered schedule `name` and LAVIS' rule for epochs."""

    name: ClassVar[str] = ""

    def __init__(
        self,
        optimizer: Any,
        max_epoch: int = 1,
        min_lr: float = 0.0,
        init_lr: float = 0.0,
        decay_rate: float | None = None,
        warmup_start_lr: float = -1,
        warmup_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        self.optimizer, self.max_epoch = optimizer, max_epoch
        run = SimpleNamespace(init_lr=init_lr, min_lr=min_lr, warmup_lr=warmup_start_lr, warmup_steps=warmup_steps)
        run.lr_decay_rate, run.lr_granularity, run.accum_grad_iters = decay_rate, "epoch", 1
        self._schedule = lr_schedulers.get(self.name)(run, max_epoch)

    def step(self, cur_epoch: int, cur_step: int) -> None:
        """Set every group to the rate of that (inner) epoch and step of it; `lr_scale` is not used, as in LAVIS."""
        at = SimpleNamespace(epoch=cur_epoch, batch=cur_step, seen=cur_step, elapsed=cur_epoch, total=self.max_epoch)
        set_rate(self.optimizer, self._schedule(at))


class LinearWarmupCosineLRScheduler(SteppingScheduler):
    """`linear_warmup_cosine_lr`."""

    name = "linear_warmup_cosine_lr"


class LinearWarmupStepLRScheduler(SteppingScheduler):
    """`linear_warmup_step_lr`."""

    name = "linear_warmup_step_lr"


class ConstantLRScheduler(SteppingScheduler):
    """`constant_lr`."""

    name = "constant_lr"


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine_lr_schedule(optimizer: Any, epoch: int, max_epoch: int, init_lr: float, min_lr: float) -> None:
    """Set the rate of half a cosine from `init_lr` at epoch 0 to `min_lr` at `max_epoch`."""
    set_rate(optimizer, (init_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * epoch / max_epoch)) + min_lr)


def warmup_lr_schedule(optimizer: Any, step: int, max_step: int, init_lr: float, max_lr: float) -> None:
    """Set the rate of a straight line from `init_lr` at step 0 to `max_lr` at `max_step`, and `max_lr` after it."""
    set_rate(optimizer, min(max_lr, init_lr + (max_lr - init_lr) * step / max(max_step, 1)))


def step_lr_schedule(optimizer: Any, epoch: int, init_lr: float, min_lr: float, decay_rate: float) -> None:
    """Set the rate `init_lr` × `decay_rate` to the power of the epoch, at least `min_lr`."""
    set_rate(optimizer, max(min_lr, init_lr * decay_rate**epoch))


@cache
def stepping(name: str) -> Any:
    """The class in LAVIS' form for a registered schedule: a plug-in's own class, else one over the function.

    Raises RegistryError with the nearest names.
    """
    held = lr_schedulers.get(name)
    if isinstance(held, type):
        return held
    ours = (LinearWarmupCosineLRScheduler, LinearWarmupStepLRScheduler, ConstantLRScheduler)
    known = {kind.name: kind for kind in ours}
    return known.get(name) or type("Scheduler", (SteppingScheduler,), {"name": name})
