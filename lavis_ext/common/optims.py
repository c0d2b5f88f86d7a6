"""LAVIS' form of the schedules, `cls(optimizer, …).step(cur_epoch, cur_step)`, over the registered ones."""

from __future__ import annotations

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
        for group in self.optimizer.param_groups:
            group["lr"] = self._schedule(at)


class LinearWarmupCosineLRScheduler(SteppingScheduler):
    """`linear_warmup_cosine_lr`."""

    name = "linear_warmup_cosine_lr"


class LinearWarmupStepLRScheduler(SteppingScheduler):
    """`linear_warmup_step_lr`."""

    name = "linear_warmup_step_lr"


class ConstantLRScheduler(SteppingScheduler):
    """`constant_lr`."""

    name = "constant_lr"


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
