"""retrieval: rank captions for pictures and the reverse, by cosine, then the best `k_test` by the matching head."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import tasks
from lavis_ext.common.types import Batch
from lavis_ext.metrics import measure
from lavis_ext.metrics.retrieval import leading
from lavis_ext.models.matching import Ranked, eval_mode, merged, pictures_of, rankings
from lavis_ext.tasks.base_task import BaseTask, Row, write_result
from lavis_ext.tasks.settings import RetrievalConfig

log = logging.getLogger(__name__)
KEPT = 10
"""Candidates of each row in the result file."""


@tasks.register("retrieval", config=RetrievalConfig)
class Retrieval(BaseTask):
    """Recall of a first-stage model; `run.k_test` candidates of each row are re-ranked (0: none).

    Pictures that could not be read are left out with their captions. Ranks divide the rows; each holds the tower's
    output of every picture (5000 pictures of a ViT-g at 364 pixels: about 10 GB in half precision).
    """

    evaluates = True
    needs = ("encode_image", "match")

    def __init__(self, model: Any = None, run: Any = None, **given: Any) -> None:
        super().__init__(model, run, **given)
        self._parts: list[tuple[Ranked, Ranked]] = []

    def valid_step(self, batch: Batch) -> list[Row]:
        """`image` [B,3,S,S], `index` [B] → per picture `features` [Q, D] and `embeds` [P, W]."""
        rows = zip(batch["index"], pictures_of(self.network, batch), strict=True)
        return [{"index": int(index), **row} for index, row in rows]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Rank, write `{split}_epoch{epoch}_retrieval.json` and return the recalls in per cent."""
        if len(datasets) != 1:
            raise ConfigError("datasets", f"{len(datasets)} data sets have '{split}'", "evaluate one at a time")
        indices, pictures, texts, captions = self._sorted(rows, datasets[0])
        parts, self._parts = self._parts or [self._part(pictures, texts, 0, 1)], []
        found = merged(parts, len(pictures), len(texts))
        metrics = measure(self.run.metrics, *found, captions)
        names = [datasets[0].image[index] for index in indices]
        best = [leading(way, KEPT) for way in found]
        recipe = {"k_test": self.run.k_test, "images": len(names), "texts": len(texts), "metrics": metrics}
        tables = {"image": names, "text": texts, "texts_of_image": best[0], "images_of_text": best[1]}
        write_result(out_dir / f"{split}_epoch{epoch}_retrieval.json", {**recipe, **tables})
        return metrics

    def share(self, rows: Sequence[Row], split: str, datasets: Sequence[Any], rank: int, world: int) -> Any:
        """The rankings of every `world`-th picture and text."""
        if len(datasets) != 1:
            return None
        _, pictures, texts, _ = self._sorted(rows, datasets[0])
        return self._part(pictures, texts, rank, world)

    def receive(self, parts: list[Any]) -> None:
        """The rankings of all ranks."""
        self._parts = [part for part in parts if part is not None]

    def _sorted(self, rows: Sequence[Row], dataset: Any) -> tuple[list[int], list[Row], list[str], list[list[int]]]:
        """The pictures that were read: their indices, rows, texts, and the numbers of each picture's texts."""
        by_index = {int(row["index"]): row for row in rows}
        indices = sorted(by_index)
        return indices, [by_index[index] for index in indices], *captions_of(dataset, indices)

    def _part(self, pictures: Sequence[Row], texts: Sequence[str], rank: int, world: int) -> tuple[Ranked, Ranked]:
        """Texts of every `world`-th picture and pictures of every `world`-th text, from `rank` on."""
        device = self.network.device.type
        halved = torch.autocast(device, enabled=self.run.amp and device == "cuda")
        with eval_mode(self.network), torch.no_grad(), halved:
            return rankings(self.network, pictures, texts, self.run.k_test, self.run.batch_size_eval, rank, world)


def captions_of(dataset: Any, indices: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """The captions of some pictures, and the numbers of each picture's captions among them."""
    numbered = [[dataset.text[number] for number in dataset.img2txt[index]] for index in indices]
    if len(indices) < len(dataset):
        log.warning("%d of %d pictures were read; the recalls are theirs", len(indices), len(dataset))
    stops = np.cumsum([0, *map(len, numbered)]).tolist()
    spans = [list(range(start, stop)) for start, stop in pairwise(stops)]
    return [text for texts in numbered for text in texts], spans


RetrievalTask = Retrieval
"""LAVIS' name."""
