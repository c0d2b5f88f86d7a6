"""retrieval: which caption belongs to which picture, by cosine first, the best `k_test` then by the matching head."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.errors import ConfigError
from lavis_ext.metrics.retrieval import recalls
from lavis_ext.objectives import similarities
from lavis_ext.registry import tasks
from lavis_ext.tasks.base import Row, Task, write_result
from lavis_ext.types import Batch

log = logging.getLogger(__name__)
UNRANKED = -100.0
"""LAVIS' score of pairs that the matching head was not asked about."""
KEPT = 10
"""Candidates that the result file keeps of each ranking."""


@tasks.register("retrieval")
class Retrieval(Task):
    """Recall of a first-stage model; `run.k_test` candidates of each row are ranked again (0: none).

    Pictures that could not be read are left out with their captions. Rank 0 compares; it holds the tower's output of
    every picture (5000 pictures of a ViT-g at 364 pixels: about 10 GB in half precision).
    """

    evaluates = True
    needs = ("see", "match")

    def valid_step(self, batch: Batch) -> list[Row]:
        """`image` [B,3,S,S], `index` [B] → per picture `features` [Q, D] and `embeds` [P, W]."""
        net = self.network
        embeds = net.see(batch)
        features = F.normalize(net.net.vision_projection(net.ask(embeds)), dim=-1).float().cpu()
        kept = embeds.half() if embeds.is_cuda else embeds
        rows = zip(batch["index"], features, kept.cpu(), strict=True)
        return [{"index": int(index), "features": own, "embeds": seen} for index, own, seen in rows]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Rank, write `{split}_epoch{epoch}_retrieval.json` and return the recalls in per cent."""
        if len(datasets) != 1:
            raise ConfigError("datasets", f"{len(datasets)} data sets have '{split}'", "evaluate one at a time")
        by_index = {int(row["index"]): row for row in rows}
        pictures = [by_index[index] for index in sorted(by_index)]
        texts, captions = captions_of(datasets[0], sorted(by_index))
        device = self.network.device.type
        halved = torch.autocast(device, enabled=self.run.amp and device == "cuda")
        with judging(self.network), torch.no_grad(), halved:
            found = self._scores(pictures, texts)
        metrics = recalls(*found, captions)
        names = [datasets[0].image[index] for index in sorted(by_index)]
        best = [np.argsort(-way, axis=1)[:, :KEPT].tolist() for way in found]
        recipe = {"k_test": self.run.k_test, "images": len(names), "texts": len(texts), "metrics": metrics}
        tables = {"image": names, "text": texts, "texts_of_image": best[0], "images_of_text": best[1]}
        write_result(out_dir / f"{split}_epoch{epoch}_retrieval.json", {**recipe, **tables})
        return metrics

    def _scores(self, pictures: Sequence[Row], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Scores [I, T] and [T, I]."""
        net, size = self.network, self.run.batch_size_eval
        encoded = [net.encode(texts[at : at + size]) for at in range(0, len(texts), size)]
        words = torch.cat([net.project_text(net.read(part)[:, 0]).float() for part in encoded])
        features = torch.stack([row["features"] for row in pictures])
        cosines = torch.cat([similarities(part.to(words.device), words) for part in torch.split(features, size)]).cpu()
        if self.run.k_test < 1:
            return cosines.numpy(), cosines.T.numpy()
        ids = torch.cat([part.ids for part in encoded])
        mask = torch.cat([part.mask for part in encoded])
        to_text = self._ranked(cosines, lambda i, best: ([i] * len(best), best), pictures, (ids, mask))
        to_image = self._ranked(cosines.T, lambda t, best: (best, [t] * len(best)), pictures, (ids, mask))
        return to_text, to_image

    def _ranked(self, cosines: Tensor, pairs: Any, pictures: Sequence[Row], texts: tuple[Tensor, Tensor]) -> np.ndarray:
        """Cosine plus matching logit for the best `k_test` of each row, `UNRANKED` for the others."""
        scores = torch.full_like(cosines, UNRANKED)
        for row, line in enumerate(cosines):
            best = line.topk(min(self.run.k_test, len(line))).indices
            images, words = pairs(row, best.tolist())
            scores[row, best] = line[best] + self._match(images, words, pictures, texts)
        found: np.ndarray = scores.numpy()
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


def captions_of(dataset: Any, indices: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """The captions of some pictures, and the numbers of each picture's captions among them."""
    numbered = [[dataset.text[number] for number in dataset.img2txt[index]] for index in indices]
    if len(indices) < len(dataset):
        log.warning("%d of %d pictures were read; the recalls are theirs", len(indices), len(dataset))
    stops = np.cumsum([0, *map(len, numbered)]).tolist()
    spans = [list(range(start, stop)) for start, stop in pairwise(stops)]
    return [text for texts in numbered for text in texts], spans


@contextmanager
def judging(network: Any) -> Iterator[None]:
    """The network in eval mode for the block."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
