"""Ranking of captions for pictures and the reverse by a first stage: by cosine, then the best by its matching head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.common.types import Batch
from lavis_ext.models.losses import similarities

UNRANKED = -100.0
"""LAVIS' score of pairs that the matching head did not score."""
Picture = Mapping[str, Any]
"""`features` [Q, D] and `embeds` [P, W] of one picture."""


@dataclass(frozen=True)
class Ranked:
    """The best candidates of some rows: their columns int64 [R, K] and scores [R, K]."""

    rows: range
    columns: Tensor
    scores: Tensor


def pictures_of(net: Any, batch: Batch) -> list[dict[str, Tensor]]:
    """What `rankings` needs of each picture of `image` [B,3,S,S], on the CPU; embeddings of a GPU in half precision."""
    embeds = net.encode_image(batch)
    features = F.normalize(net.net.vision_projection(net.query_image(embeds)), dim=-1).float().cpu()
    kept = embeds.half() if embeds.is_cuda else embeds
    return [{"features": own, "embeds": seen} for own, seen in zip(features, kept.cpu(), strict=True)]


def rankings(
    net: Any, pictures: Sequence[Picture], texts: Sequence[str], k_test: int, size: int, rank: int = 0, world: int = 1
) -> tuple[Ranked, Ranked]:
    """Texts of every `world`-th picture and pictures of every `world`-th text, from `rank` on; `size` at a time.

    Cosine plus matching logit for the best `k_test` of each; with `k_test` 0 the cosines of all.
    """
    encoded = [net.encode(texts[at : at + size]) for at in range(0, len(texts), size)]
    words = torch.cat([net.project_text(net.encode_text(part)[:, 0]).float() for part in encoded])
    features = torch.stack([row["features"] for row in pictures])
    cosines = torch.cat([similarities(part.to(words.device), words) for part in torch.split(features, size)]).cpu()
    ids, mask = (torch.cat([getattr(part, name) for part in encoded]) for name in ("ids", "mask"))

    def matched(images: Sequence[int], chosen: Sequence[int]) -> Tensor:
        """The logit of a match for each pair of picture and text."""
        found = []
        for at in range(0, len(images), size):
            embeds = torch.stack([pictures[index]["embeds"] for index in images[at : at + size]])
            some = torch.tensor(chosen[at : at + size], device=ids.device)
            found.append(net.match(embeds.to(net.device).float(), net.texts(ids[some], mask[some]))[:, 1].float().cpu())
        return torch.cat(found)

    def ranked(scores: Tensor, pairs: Any) -> Ranked:
        own = range(rank, len(scores), world)
        count = min(k_test, scores.shape[1]) if k_test > 0 else scores.shape[1]
        found = Ranked(own, torch.zeros(len(own), count, dtype=torch.int64), torch.zeros(len(own), count))
        for place, row in enumerate(own):
            best = scores[row].topk(count)
            found.columns[place], found.scores[place] = best.indices, best.values
            if k_test > 0:
                found.scores[place] += matched(*pairs(row, best.indices.tolist()))
        return found

    to_text = ranked(cosines, lambda picture, best: ([picture] * len(best), best))
    return to_text, ranked(cosines.T, lambda text, best: (best, [text] * len(best)))


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


@torch.no_grad()
def compute_sim_matrix(model: Any, data_loader: Any, k_test: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """LAVIS' function: scores [I, T] and [T, I] of a loader's pictures and the texts of its data set.

    Pairs beyond the best `k_test` of a row have `UNRANKED`. All processes compute all of it.
    """
    with eval_mode(model):
        pictures = [row for batch in data_loader for row in pictures_of(model, batch)]
        texts = list(data_loader.dataset.text)
        return merged([rankings(model, pictures, texts, k_test, size)], len(pictures), len(texts))


@contextmanager
def eval_mode(network: Any) -> Iterator[None]:
    """The network in eval mode for the block."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
