"""oscar_pretrain: Oscar+ learns hidden words and whether text and tags match, validated by how often it is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lavis_ext.metrics.answers import percent
from lavis_ext.objectives.blip2 import IGNORED
from lavis_ext.registry import tasks
from lavis_ext.tasks.base import Row, Task, write_result
from lavis_ext.tasks.oscar_settings import OscarPretrainConfig
from lavis_ext.types import Batch


@tasks.register("oscar_pretrain", config=OscarPretrainConfig)
class OscarPretrain(Task):
    """The loss of words and of matching (Zhang et al., arXiv:2101.00529 §3); `agg_metrics` is the mean of both."""

    evaluates = True
    needs = ("outputs",)

    def valid_step(self, batch: Batch) -> list[Row]:
        """`lm_labels` [B, T] and `labels` [B] → per input its hidden words, the right ones, and whether it was told."""
        found = self.network.outputs(batch)
        labels: Tensor = batch["lm_labels"].to(found.logits.device)
        hidden = labels != IGNORED
        right = hidden.clone()
        right[hidden] = found.logits.argmax(-1) == labels[hidden]
        told = found.extra["matching"].argmax(-1) == batch["labels"].to(found.logits.device)
        counts = zip(hidden.sum(1).tolist(), right.sum(1).tolist(), told.tolist(), strict=True)
        named = zip(batch["instance_id"], counts, strict=True)
        return [{"instance_id": name, "hidden": n, "right": k, "told": float(t)} for name, (n, k, t) in named]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Per cent: `words` of the hidden words, `matching` of the inputs; written as `{split}_epoch{epoch}.json`."""
        known = {row["instance_id"]: row for row in reversed(rows)}.values()
        if not known:
            return {}
        hidden = sum(row["hidden"] for row in known)
        words = 100.0 * sum(row["right"] for row in known) / max(1, hidden)
        matching = percent([row["told"] for row in known])
        metrics = {"words": words, "matching": matching, "agg_metrics": (words + matching) / 2}
        write_result(out_dir / f"{split}_epoch{epoch}.json", {"inputs": len(known), "hidden": hidden, **metrics})
        return metrics
