"""A task: captions that should be short. It learns by the model's own loss and counts the words that are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.common.config.decode import Count
from lavis_ext.common.registry import registry
from lavis_ext.common.types import Batch
from lavis_ext.tasks.base_task import BaseTask, Row, write_result
from lavis_ext.tasks.settings import WritingConfig


@dataclass(frozen=True, kw_only=True)
class ShortConfig(WritingConfig):
    """The keys of `run:` beside those of all runs and of all tasks that write."""

    most_words: Count = 8


@registry.register_task("short_captions", config=ShortConfig)
class ShortCaptions(BaseTask):
    """`agg_metrics` is the share of captions of at most `most_words` words."""

    evaluates = True
    needs = ("generate",)

    def valid_step(self, batch: Batch) -> list[Row]:
        """One row a picture."""
        run: ShortConfig = self.run
        texts = self.network.generate(batch, num_beams=run.num_beams, max_length=run.max_len, min_length=run.min_len)
        names = [str(name) for name in batch["instance_id"]]
        return [{"name": name, "caption": text} for name, text in zip(names, texts, strict=True)]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write the captions, count the words."""
        write_result(out_dir / f"{split}_epoch{epoch}.json", list(rows))
        short = [len(row["caption"].split()) <= self.run.most_words for row in rows]
        return {"short": sum(short) / len(short), "agg_metrics": sum(short) / len(short)}
