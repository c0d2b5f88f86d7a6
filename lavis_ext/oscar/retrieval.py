"""oscar_retrieval: score every pair of image and caption and rank both ways, or re-rank lists of candidates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.config.schema import MetricConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import metrics, tasks
from lavis_ext.common.types import Batch
from lavis_ext.metrics import measure
from lavis_ext.metrics.retrieval import DEPTHS, first_ranks, leading, percents, recalls
from lavis_ext.metrics.settings import MetricKeys
from lavis_ext.oscar.config import OscarRetrievalConfig
from lavis_ext.tasks.base_task import BaseTask, Row, write_result

log = logging.getLogger(__name__)
KEPT = 10
"""Candidates that the result file keeps of each ranking."""


@tasks.register("oscar_retrieval", config=OscarRetrievalConfig)
class OscarRetrieval(BaseTask):
    """Recall at 1, 5 and 10 by a model that scores pairs; `agg_metrics` is R@1 of captions (`txt_r1`).

    An image is ranked by its best own caption. A data set with `candidates` has them re-ranked and gives no way from
    captions to images; without, all pairs are scored: 5,000 × 25,000 take 125 million passes and 500 MB of scores.
    A pair's score is the logit of a match less that of none: the order of upstream's probabilities, without the ties
    that these have near 0 and 1. A tie counts against the ranked one. `run.batch_size_eval` counts images in a batch
    and pairs in a pass.
    """

    evaluates = True
    needs = ("outputs",)

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Take the captions of the split, in the order of their lengths; raises ConfigError for several data sets."""
        self.dataset = only_one(split, datasets)
        self.lengths = np.array([len(caption) for caption in self.dataset.captions], dtype=np.int64)
        self.everything = np.argsort(self.lengths, kind="stable")

    def valid_step(self, batch: Batch) -> list[Row]:
        """`img_feats` [B,R,D], `img_mask`, `tag_ids`, `index` → per image `scores` float32 of its captions in order."""
        rows: list[Row] = []
        for at, (index, name) in enumerate(zip(plain(batch["index"]), plain(batch["image_id"]), strict=True)):
            regions: Tensor = batch["img_feats"][at][batch["img_mask"][at].bool()]
            scores = self._scores(index, regions, batch["tag_ids"][at])
            rows.append({"index": index, "image_id": name, "scores": scores})
        return rows

    def _scores(self, index: int, regions: Tensor, tags: Sequence[int]) -> np.ndarray:
        """float32, one for each candidate of an image [R, D], in the candidates' order."""
        listed = self.dataset.candidates(index)
        # captions of like length share a pass, so that little of it is padding
        order = self.everything if listed is None else np.argsort(self.lengths[listed], kind="stable")
        asked = order if listed is None else np.asarray(listed)[order]
        size, found = self.run.batch_size_eval, []
        for at in range(0, len(asked), size):
            pairs = [self.dataset.encode_pair(self.dataset.captions[c], tags) for c in asked[at : at + size]]
            found.append(match_score(self.network.outputs(pair_batch(pairs, regions)).logits))
        scores = np.empty(len(asked), np.float32)
        scores[order] = torch.cat(found).cpu().numpy() if found else []
        return scores

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Rank; write `….eval.json` with upstream's keys and `….ranking.json`; return the recalls in per cent.

        File names have the split, the file of image keys and that of candidates, so that no two evaluations share one.
        """
        dataset = only_one(split, datasets)
        by_index = {int(row["index"]): row for row in rows}
        if len(by_index) < len(dataset):
            log.warning("%d of %d images were read; the recalls are theirs", len(by_index), len(dataset))
        rank = reranked if dataset.candidates(min(by_index)) is not None else ranked_both_ways
        found = rank(dataset, {index: by_index[index] for index in sorted(by_index)})
        named = self.run.metrics or [MetricConfig(name="oscar_retrieval")]
        values = measure(named, found.image_to_text, found.text_to_image, found.captions)
        stem = ".".join([split, *marks_of(dataset), f"epoch{epoch}"])
        write_result(out_dir / f"{stem}.eval.json", upstream_form(values))
        write_result(out_dir / f"{stem}.ranking.json", {"images": len(by_index), "metrics": values, **found.tables})
        return values


@dataclass(frozen=True)
class Ranking:
    """The scores of a split, and the tables of the ranking file."""

    image_to_text: np.ndarray
    """[I, T]; of candidates [I, most candidates], padded with -inf."""
    text_to_image: np.ndarray | None
    """[T, I]; None where images have lists of candidates."""
    captions: list[list[int]]
    """The columns of each image's own captions."""
    tables: dict[str, Any]


@metrics.register("oscar_retrieval", config=MetricKeys)
def pair_recalls(
    image_to_text: np.ndarray, text_to_image: np.ndarray | None, captions: Sequence[Sequence[int]], keys: MetricKeys
) -> dict[str, float]:
    """Recalls in per cent, of both ways or of texts alone; `agg_metrics` is `txt_r1`."""
    if text_to_image is None:
        found = percents("txt", first_ranks(image_to_text, captions))
    else:
        found = recalls(image_to_text, text_to_image, captions)
    return {**found, "agg_metrics": found["txt_r1"]}


def ranked_both_ways(dataset: Any, rows: Mapping[int, Row]) -> Ranking:
    """Every image against every caption of the images that were read. `scores` are taken out of the rows.

    Scores [I, T] are held once: 500 MB for 5,000 × 25,000.
    """
    owner = np.asarray(dataset.caption_image)
    place = {index: at for at, index in enumerate(rows)}
    kept = np.flatnonzero(np.isin(owner, list(rows)))
    scores = np.empty((len(rows), len(kept)), np.float32)
    for at, row in enumerate(rows.values()):
        scores[at] = row.pop("scores")[kept]
    truth: list[list[int]] = [[] for _ in rows]
    for column, caption in enumerate(kept.tolist()):
        truth[place[int(owner[caption])]].append(column)
    tables = {
        "image": [row["image_id"] for row in rows.values()],
        "caption": [list(dataset.caption_keys[caption]) for caption in kept],
        "captions_of_image": leading(scores, KEPT),
        "images_of_caption": leading(scores.T, KEPT),
    }
    return Ranking(scores, scores.T, truth, tables)


def reranked(dataset: Any, rows: Mapping[int, Row]) -> Ranking:
    """Every image against its own list of candidates; an image whose captions are not in its list is a miss."""
    owner = np.asarray(dataset.caption_image)
    lists = [np.asarray(dataset.candidates(index)) for index in rows]
    scores = np.full((len(rows), max(map(len, lists))), -np.inf, np.float32)
    for at, (row, listed) in enumerate(zip(rows.values(), lists, strict=True)):
        scores[at, : len(listed)] = row["scores"]
    truth = [np.flatnonzero(owner[listed] == index).tolist() for index, listed in zip(rows, lists, strict=True)]
    keys = dataset.caption_keys
    best = zip(lists, leading(scores, KEPT), strict=True)
    tables = {
        "image": [row["image_id"] for row in rows.values()],
        "captions_of_image": [[list(keys[listed[at]]) for at in top if at < len(listed)] for listed, top in best],
    }
    return Ranking(scores, None, truth, tables)


def upstream_form(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Shares from 0 to 1 under the keys of upstream's `.eval.json`."""
    ways = {"i2t_retrieval": "txt", "t2i_retrieval": "img"}
    return {
        name: {f"R@{depth}": round(metrics[f"{way}_r{depth}"] / 100, 12) for depth in DEPTHS}
        for name, way in ways.items()
        if f"{way}_r1" in metrics
    }


def match_score(logits: Tensor) -> Tensor:
    """float32 [N] that grows with the probability of a match: of two classes the difference, of one its logit."""
    wide = logits.float()
    return wide[:, 1] - wide[:, 0] if wide.shape[1] > 1 else wide[:, 0]


def pair_batch(pairs: Sequence[Mapping[str, Sequence[int]]], regions: Tensor) -> Batch:
    """N encoded captions with the regions [R, D] of one image: [N,T], [N,T+R] and [N,R,D] on the regions' device."""
    longest = max(len(pair["input_ids"]) for pair in pairs)
    rows = {key: [[*pair[key], *[0] * (longest - len(pair[key]))] for pair in pairs] for key in pairs[0]}
    batch: Batch = {key: torch.tensor(values, device=regions.device) for key, values in rows.items()}
    words = torch.tensor([len(pair["input_ids"]) for pair in pairs], device=regions.device)
    text = (torch.arange(longest, device=regions.device) < words[:, None]).long()
    seen = text.new_ones(len(pairs), len(regions))
    return {**batch, "attention_mask": torch.cat([text, seen], 1), "img_feats": regions.expand(len(pairs), -1, -1)}


def marks_of(dataset: Any) -> list[str]:
    """The stems of the files that choose images and candidates; `all` where none does."""
    files = [getattr(dataset, name, None) for name in ("img_keys_file", "caption_index_file")]
    return [Path(str(file)).stem for file in files if file] or ["all"]


def only_one(split: str, datasets: Sequence[Any]) -> Any:
    """The one data set of a split; raises ConfigError for several."""
    if len(datasets) != 1:
        raise ConfigError("datasets", f"{len(datasets)} data sets have '{split}'", "evaluate one at a time")
    return datasets[0]


def plain(values: Any) -> list[Any]:
    """A tensor or a list as a list."""
    return values.tolist() if isinstance(values, Tensor) else list(values)
