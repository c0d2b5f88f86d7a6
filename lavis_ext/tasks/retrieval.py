"""retrieval: rank captions for pictures and the reverse, by cosine, then the best `k_test` by the matching head."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import tasks
from lavis_ext.common.types import Batch
from lavis_ext.metrics import measure
from lavis_ext.metrics.retrieval import leading
from lavis_ext.models.losses import similarities
from lavis_ext.tasks.base_task import BaseTask, Row, write_result
from lavis_ext.tasks.settings import RetrievalConfig

log = logging.getLogger(__name__)
UNRANKED = -100.0
"""LAVIS' score of pairs that the matching head did not score."""
KEPT = 10
"""Candidates of each row in the result file."""


@dataclass(frozen=True)
class Ranked:
    """The best candidates of some rows: their columns int64 [R, K] and scores [R, K]."""

    rows: range
    columns: Tensor
    scores: Tensor


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
        net = self.network
        embeds = net.encode_image(batch)
        features = F.normalize(net.net.vision_projection(net.query_image(embeds)), dim=-1).float().cpu()
        kept = embeds.half() if embeds.is_cuda else embeds
        rows = zip(batch["index"], features, kept.cpu(), strict=True)
        return [{"index": int(index), "features": own, "embeds": seen} for index, own, seen in rows]

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
            return self._rankings(pictures, texts, rank, world)

    def _rankings(self, pictures: Sequence[Row], texts: Sequence[str], rank: int, world: int) -> tuple[Ranked, Ranked]:
        net, size = self.network, self.run.batch_size_eval
        encoded = [net.encode(texts[at : at + size]) for at in range(0, len(texts), size)]
        words = torch.cat([net.project_text(net.encode_text(part)[:, 0]).float() for part in encoded])
        features = torch.stack([row["features"] for row in pictures])
        cosines = torch.cat([similarities(part.to(words.device), words) for part in torch.split(features, size)]).cpu()
        both = (torch.cat([part.ids for part in encoded]), torch.cat([part.mask for part in encoded]))
        of_pictures, of_texts = (range(rank, count, world) for count in (len(pictures), len(texts)))
        to_text = self._ranked(cosines, of_pictures, lambda i, best: ([i] * len(best), best), pictures, both)
        to_image = self._ranked(cosines.T, of_texts, lambda t, best: (best, [t] * len(best)), pictures, both)
        return to_text, to_image

    def _ranked(
        self, cosines: Tensor, own: range, pairs: Any, pictures: Sequence[Row], texts: tuple[Tensor, Tensor]
    ) -> Ranked:
        """Cosine plus matching logit for the best `k_test` of each row in `own`; with `k_test` 0 the cosines of all."""
        count = min(self.run.k_test, cosines.shape[1]) if self.run.k_test > 0 else cosines.shape[1]
        found = Ranked(own, torch.zeros(len(own), count, dtype=torch.int64), torch.zeros(len(own), count))
        for place, row in enumerate(own):
            best = cosines[row].topk(count)
            found.columns[place], found.scores[place] = best.indices, best.values
            if self.run.k_test > 0:
                images, words = pairs(row, best.indices.tolist())
                found.scores[place] += self._match(images, words, pictures, texts)
        return found

    def _match(
        self, images: Sequence[int], words: Sequence[int], pictures: Sequence[Row], texts: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The logit of a match for each pair of picture and text."""
        net, size = self.network, self.run.batch_size_eval
        found = []
        for at in range(0, len(images), size):
            embeds = torch.stack([pictures[index]["embeds"] for index in images[at : at + size]])
            chosen = torch.tensor(words[at : at + size], device=texts[0].device)
            pair = net.texts(texts[0][chosen], texts[1][chosen])
            found.append(net.match(embeds.to(net.device).float(), pair)[:, 1].float().cpu())
        return torch.cat(found)


def merged(parts: Sequence[tuple[Ranked, Ranked]], images: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores [I, T] and [T, I] of the rankings of all ranks; `UNRANKED` for pairs that were not ranked."""
    found = []
    for way, shape in enumerate(((images, texts), (texts, images))):
        scores = torch.full(shape, UNRANKED)
        for part in parts:
            rows = torch.tensor(list(part[way].rows), dtype=torch.int64)
            scores[rows] = scores[rows].scatter(1, part[way].columns, part[way].scores)
        found.append(scores.numpy())
    return found[0], found[1]


def captions_of(dataset: Any, indices: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """The captions of some pictures, and the numbers of each picture's captions among them."""
    numbered = [[dataset.text[number] for number in dataset.img2txt[index]] for index in indices]
    if len(indices) < len(dataset):
        log.warning("%d of %d pictures were read; the recalls are theirs", len(indices), len(dataset))
    stops = np.cumsum([0, *map(len, numbered)]).tolist()
    spans = [list(range(start, stop)) for start, stop in pairwise(stops)]
    return [text for texts in numbered for text in texts], spans


@contextmanager
def eval_mode(network: Any) -> Iterator[None]:
    """The network in eval mode for the block."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


RetrievalTask = Retrieval
"""LAVIS' name."""
