"""multimodal_classification (classes of pictures with a text) and image_text_pretrain (the model's own loss)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lavis_ext.common.registry import tasks
from lavis_ext.common.types import Batch
from lavis_ext.metrics import measure
from lavis_ext.tasks.base_task import BaseTask, Row, write_result
from lavis_ext.tasks.settings import ClassificationConfig, PretrainConfig

log = logging.getLogger(__name__)


@tasks.register("multimodal_classification", config=ClassificationConfig)
class MultimodalClassification(BaseTask):
    """The class with the highest of `model.predict(samples)["predictions"]` [B, C], against `label` [B].

    InstructBLIP predicts texts, and the labels are texts too.

    `acc` and `agg_metrics` are in [0, 1], as in LAVIS; `{class}_acc` is the recall of a class.
    """

    evaluates = True
    needs = ("predict",)

    def valid_step(self, batch: Batch) -> list[Row]:
        """A batch → one {instance_id, prediction, target} a sample; `target` is None where the class is not known."""
        found = self.network.predict(batch)["predictions"]
        chosen = found.argmax(-1).tolist() if isinstance(found, Tensor) else list(found)
        targets = self.targets(batch, len(chosen))
        rows = zip(batch["instance_id"], chosen, targets, strict=True)
        return [{"instance_id": str(name), "prediction": found, "target": label} for name, found, label in rows]

    @staticmethod
    def targets(batch: Batch, count: int) -> list[int | str | None]:
        """The classes of a batch, as a tensor or a list with gaps."""
        labels: Any = batch.get("label")
        if labels is None:
            return [None] * count
        return [label if label is None or isinstance(label, str) else int(label) for label in labels]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write `{split}_epoch{epoch}.json` and score the samples whose class is known."""
        by_id: dict[str, Row] = {}
        for row in rows:
            by_id.setdefault(row["instance_id"], row)
        known = list(by_id.values())
        write_result(out_dir / f"{split}_epoch{epoch}.json", known)
        scored = [row for row in known if row["target"] is not None]
        if not scored or not self.run.report_metric:
            log.warning("split '%s' is not scored: the predictions are written", split)
            return {}
        classes = next((list(d.classes) for d in datasets if hasattr(d, "classes")), [])
        pairs = [[row["prediction"] for row in scored], [row["target"] for row in scored]]
        if isinstance(scored[0]["target"], str):
            names = next((list(d.classnames) for d in datasets if hasattr(d, "classnames")), sorted(set(pairs[1])))
            pairs = [[names.index(name) if name in names else len(names) for name in side] for side in pairs]
            classes = names
        return measure(self.run.metrics, *pairs, classes)


@tasks.register("image_text_pretrain", config=PretrainConfig)
class ImageTextPretrain(BaseTask):
    """Pre-training on image–text pairs: the model's own loss; `run.eval_task` (VPGTrans: `captioning`) validates."""

    def __init__(self, model: Any = None, run: Any = None, **given: Any) -> None:
        super().__init__(model, run, **given)
        self._evaluator: BaseTask | None = None
        if run is not None and run.eval_task:
            self._evaluator = tasks.get(run.eval_task).from_config(run, model)

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
        """As the task that validates."""
        return self._evaluator.share(rows, split, datasets, rank, world) if self._evaluator else None

    def receive(self, parts: list[Any]) -> None:
        """As the task that validates."""
        if self._evaluator:
            self._evaluator.receive(parts)

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """The metrics of the task that validates."""
        return self._evaluator.after_evaluation(rows, split, datasets, out_dir, epoch) if self._evaluator else {}
