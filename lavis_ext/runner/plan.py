"""How many steps a run takes, and where it stands: epochs and iterations are two ways to say the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lavis_ext.errors import ConfigError
from lavis_ext.runner.schedules import Position
from lavis_ext.schema import RunConfig


@dataclass(frozen=True)
class Plan:
    """The length of a run in micro-batches.

    `total` micro-batches in (inner) epochs of `per_epoch`; the last epoch is shorter where it does not divide. An
    optimizer step takes `window` micro-batches; the last window of an epoch holds what is left of it, and its losses
    are averaged over that many, so that no gradient is carried into the next epoch or left unused.
    """

    per_epoch: int
    total: int
    window: int = 1

    @classmethod
    def of(cls, run: RunConfig, batches: int) -> Plan:
        """The plan of a run whose data hold `batches` batches an epoch on this rank; raises ConfigError."""
        if batches < 1:
            raise ConfigError(
                "datasets", "the training splits hold no batch", "add samples or lower run.batch_size_train"
            )
        if run.accum_grad_iters < 1:
            raise ConfigError("run.accum_grad_iters", f"is {run.accum_grad_iters}", "give at least 1")
        per_epoch = run.iters_per_inner_epoch or batches
        total = run.max_iters if run.max_iters is not None else (run.max_epoch or 0) * per_epoch
        if total < 1 or per_epoch < 1:
            raise ConfigError("run", "does not say how long to train", "set run.max_epoch, or run.max_iters")
        return cls(per_epoch, total, run.accum_grad_iters)

    @property
    def epochs(self) -> int:
        """(Inner) epochs, the last one perhaps shorter."""
        return -(-self.total // self.per_epoch)

    @property
    def max_epoch(self) -> int:
        """The number that LAVIS' schedules divide by: whole epochs, at least 1."""
        return max(self.total // self.per_epoch, 1)

    def length(self, epoch: int) -> int:
        """Micro-batches of one epoch."""
        return min(self.per_epoch, self.total - epoch * self.per_epoch)

    def next_window(self, progress: Progress) -> int:
        """Micro-batches of the next optimizer step; 0 at the end of an epoch."""
        return min(self.window, self.length(progress.epoch) - progress.batch)

    def position(self, progress: Progress) -> Position:
        """Where the learning rate is asked for: at the last micro-batch that was seen."""
        return Position(progress.epoch, max(progress.batch - 1, 0), self.per_epoch, self.max_epoch, self.total)


@dataclass
class Progress:
    """Where a run stands: `step` optimizer steps in all, `batch` micro-batches of `epoch`, and its best evaluation."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    skipped: int = 0
    """Steps that the fp16 loss scaler left out because of an overflow."""
    best: dict[str, Any] = field(default_factory=dict)
    """`metric`, `step`, `epoch` and `split` of the best evaluation; empty before the first."""

    def next_epoch(self) -> Progress:
        """The same run at the start of the next epoch."""
        return replace(self, epoch=self.epoch + 1, batch=0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
