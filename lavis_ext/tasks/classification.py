"""multimodal_classification: one of some classes for pictures and a text (LAVIS' task of that name)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavis_ext.metrics.answers import percent
from lavis_ext.registry import tasks
from lavis_ext.tasks.base import Row, Task, write_result
from lavis_ext.types import Batch

log = logging.getLogger(__name__)


@tasks.register("multimodal_classification")
class MultimodalClassification(Task):
    """The class with the highest of `model.predict(samples)["predictions"]` [B, C], against `label` [B].

    `acc` and `agg_metrics` are in [0, 1], as in LAVIS; `{class}_acc` is the share of the samples of a class.
    """

    evaluates = True
    needs = ("predict",)

    def valid_step(self, batch: Batch) -> list[Row]:
        """A batch → one {instance_id, prediction, target} a sample; `target` is None where the class is not known."""
        chosen = self.network.predict(batch)["predictions"].argmax(-1).tolist()
        targets = self.targets(batch, len(chosen))
        rows = zip(batch["instance_id"], chosen, targets, strict=True)
        return [{"instance_id": str(name), "prediction": found, "target": label} for name, found, label in rows]

    @staticmethod
    def targets(batch: Batch, count: int) -> list[int | None]:
        """The classes of a batch, as a tensor or a list with gaps."""
        labels: Any = batch.get("label")
        if labels is None:
            return [None] * count
        return [None if label is None else int(label) for label in labels]

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
        return scores(scored, next((list(d.classes) for d in datasets if hasattr(d, "classes")), []))


def scores(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, float]:
    """`acc`, `agg_metrics` and the share of each class that was found, all in [0, 1]."""
    hits = Counter(row["target"] for row in rows if row["target"] == row["prediction"])
    totals = Counter(row["target"] for row in rows)
    overall = percent([float(row["target"] == row["prediction"]) for row in rows]) / 100
    named = {number: classes[number] if number < len(classes) else str(number) for number in sorted(totals)}
    return {
        "acc": overall,
        **{f"{name}_acc": round(hits[number] / totals[number], 4) for number, name in named.items()},
        "agg_metrics": overall,
    }
