"""image_text_pretrain: minimise the model's own loss; validation is another task's, if `run.eval_task` names one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lavis_ext.registry import tasks
from lavis_ext.tasks.base import Row, Task
from lavis_ext.tasks.settings import PretrainConfig
from lavis_ext.types import Batch


@tasks.register("image_text_pretrain", config=PretrainConfig)
class ImageTextPretrain(Task):
    """Pre-training on image–text pairs (LAVIS' name); with `eval_task: captioning` it validates as VPGTrans does."""

    def __init__(self, model: nn.Module, run: PretrainConfig) -> None:
        super().__init__(model, run)
        self._evaluator: Task | None = tasks.get(run.eval_task).from_config(run, model) if run.eval_task else None

    @property
    def evaluates(self) -> bool:  # type: ignore[override]
        """Whether another task validates."""
        return self._evaluator is not None

    def valid_step(self, batch: Batch) -> list[Row]:
        """The rows of the task that validates."""
        if self._evaluator is None:
            return []
        self._evaluator.model = self.model
        return self._evaluator.valid_step(batch)

    def share(self, rows: Sequence[Row], split: str, datasets: Sequence[Any], rank: int, world: int) -> Any:
        """The part of the task that validates."""
        return self._evaluator.share(rows, split, datasets, rank, world) if self._evaluator else None

    def receive(self, parts: list[Any]) -> None:
        """For the task that validates."""
        if self._evaluator:
            self._evaluator.receive(parts)

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """The metrics of the task that validates."""
        return self._evaluator.after_evaluation(rows, split, datasets, out_dir, epoch) if self._evaluator else {}
