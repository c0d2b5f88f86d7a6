"""Learning rates as pure functions of the position in a run: nothing to advance, nothing to save."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lavis_ext.errors import ConfigError
from lavis_ext.registry import lr_schedulers
from lavis_ext.schema import RunConfig


@dataclass(frozen=True)
class Position:
    """Where a run stands: the (inner) epoch, the micro-batch in it, and the number of both in the whole run."""

    epoch: int
    batch: int
    batches_per_epoch: int
    max_epoch: int
    length: int | None = None
    """Micro-batches of the whole run; None: whole epochs."""

    @property
    def total(self) -> int:
        """Micro-batches of the whole run."""
        return self.max_epoch * self.batches_per_epoch if self.length is None else self.length

    @property
    def seen(self) -> int:
        """Micro-batches since the start of the run."""
        return self.epoch * self.batches_per_epoch + self.batch

    @property
    def elapsed(self) -> float:
        """Epochs since the start of the run, with their fraction."""
        return self.seen / max(self.batches_per_epoch, 1)


Schedule = Callable[[Position], float]


def warmup(run: RunConfig, batch: int) -> float:
    """`min(init_lr, warmup_lr + (init_lr - warmup_lr) * batch / warmup_steps)`; LAVIS counts micro-batches."""
    start = run.init_lr if run.warmup_lr < 0 else run.warmup_lr
    return min(run.init_lr, start + (run.init_lr - start) * batch / max(run.warmup_steps, 1))


def after_warmup(run: RunConfig, decayed: Callable[[float], float]) -> Schedule:
    """A schedule that warms up and then follows `decayed(epochs elapsed)`.

    `run.lr_granularity` "epoch" is LAVIS' rule: the whole of (inner) epoch 0 belongs to the warm-up, even where
    `warmup_steps` is longer or shorter than it, and the rate changes once an epoch. "iter" warms up for exactly
    `warmup_steps` micro-batches and then moves with every micro-batch.
    """

    def by_epoch(at: Position) -> float:
        return warmup(run, at.batch) if at.epoch == 0 else decayed(at.epoch)

    def by_batch(at: Position) -> float:
        return warmup(run, at.seen) if at.seen < run.warmup_steps else decayed(at.elapsed)

    return by_batch if run.lr_granularity == "iter" else by_epoch


@lr_schedulers.register("linear_warmup_cosine_lr")
def linear_warmup_cosine(run: RunConfig, max_epoch: int) -> Schedule:
    """`(init_lr - min_lr) * 0.5 * (1 + cos(pi * e / max_epoch)) + min_lr` after the warm-up, as LAVIS."""

    def decayed(epoch: float) -> float:
        return (run.init_lr - run.min_lr) * 0.5 * (1 + math.cos(math.pi * epoch / max_epoch)) + run.min_lr

    return after_warmup(run, decayed)


@lr_schedulers.register("linear_warmup_linear_lr")
def linear_warmup_linear(run: RunConfig, max_epoch: int) -> Schedule:
    """Oscar's: up to `init_lr` over `warmup_steps` micro-batches, then straight down to `min_lr` at the run's end.

    It moves with every optimizer step, whatever `run.lr_granularity` says; each has the rate of its first micro-batch.
    Oscar's warm-up starts at 0, which is `warmup_lr: 0`. The first step has the rate of position 0: upstream advanced
    its schedule before the optimizer.
    """

    def rate(at: Position) -> float:
        begun = at.seen - at.batch % run.accum_grad_iters
        if begun < run.warmup_steps:
            return warmup(run, begun)
        left = (at.total - begun) / max(at.total - run.warmup_steps, 1)
        return run.min_lr + (run.init_lr - run.min_lr) * max(left, 0.0)

    return rate


@lr_schedulers.register("linear_warmup_step_lr")
def linear_warmup_step(run: RunConfig, max_epoch: int) -> Schedule:
    """`max(min_lr, init_lr * lr_decay_rate ** e)` after the warm-up; raises ConfigError without `lr_decay_rate`."""
    if run.lr_decay_rate is None:
        raise ConfigError("run.lr_decay_rate", "linear_warmup_step_lr needs it", "set e.g. 0.9")
    rate = run.lr_decay_rate

    def decayed(epoch: float) -> float:
        return max(run.min_lr, run.init_lr * math.pow(rate, epoch))

    return after_warmup(run, decayed)


@lr_schedulers.register("constant_lr")
def constant(run: RunConfig, max_epoch: int) -> Schedule:
    """`init_lr` after the warm-up."""

    def decayed(epoch: float) -> float:
        return run.init_lr

    return after_warmup(run, decayed)
