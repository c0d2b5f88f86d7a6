"""Captions from an Oscar with a word head: a batch of an evaluation split → texts with their confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.types import Batch
from lavis_ext.oscar.constrained import Constraint, build_machine, join_machines, search_constrained
from lavis_ext.oscar.generation import (
    CaptionState,
    Choice,
    Context,
    Ends,
    GeneratedCaptions,
    draw_captions,
    search_beams,
)
from lavis_ext.oscar.network import OscarNetwork
from lavis_ext.oscar.wordpiece import WordPiece

Texts = list[list[tuple[str, float]]]
"""For each image its captions with their confidence, the best first."""


class CaptionWriter:
    """Writes captions with a network, its tokenizer, and the position at which tags begin."""

    def __init__(self, network: OscarNetwork, words: WordPiece, tag_start: int) -> None:
        self.network, self.words, self.tag_start = network, words, tag_start
        self.ends = Ends(words.cls, words.sep, words.pad)

    def context(self, batch: Batch, max_length: int) -> Context:
        """Tags and regions of a batch, as `od_ids`, `od_mask`, `img_feats` and `img_mask`; raises ConfigError.

        Tags have positions behind the longest caption, and where they had them in training.
        """
        device = self.network.img_embedding.weight.device
        lacking = [name for name in ("od_ids", "od_mask", "img_feats", "img_mask") if name not in batch]
        if lacking:
            raise ConfigError("batch", f"has no {', '.join(lacking)}", "caption the eval split of a region_caption set")
        ids, tags_seen, regions, regions_seen = (
            batch[name].to(device) for name in ("od_ids", "od_mask", "img_feats", "img_mask")
        )
        return Context(ids, tags_seen.bool(), regions, regions_seen.bool(), max(self.tag_start, max_length))

    @torch.no_grad()
    def write(self, batch: Batch, choice: Choice, num_beams: int = 5, keep: int = 1) -> Texts:
        """The `keep` best captions of each image by beam search, or the greedy one where `num_beams` is 1."""
        writer = self._writer(self.context(batch, choice.max_length), num_beams)
        images = len(batch["img_feats"])
        if num_beams == 1:
            return self.texts(draw_captions(writer, images, self.ends, choice))
        return self.texts(search_beams(writer, images, self.ends, choice, keep))

    @torch.no_grad()
    def write_constrained(self, batch: Batch, choice: Choice, num_beams: int = 5, least: int = 2) -> Texts:
        """One caption of each image that names at least `least` of its `constraints` (all, where they are fewer).

        `constraints` of the batch: for each image up to three things, each as the list of words that name it.
        """
        if "constraints" not in batch:
            what = "use_cbs needs the `constraints` of each image, which the batch has not"
            raise ConfigError("batch", what, "use a data set that gives them, or set use_cbs: False")
        machines = [build_machine([self.forms(thing) for thing in things]) for things in batch["constraints"]]
        joined = join_machines(machines, least, self.network.img_embedding.weight.device)
        writer = self._writer(self.context(batch, choice.max_length), joined.rest.shape[1] * num_beams)
        return self.texts(search_constrained(writer, joined, num_beams, self.ends, choice))

    @torch.no_grad()
    def sample(self, batch: Batch, choice: Choice, count: int, rng: torch.Generator | None = None) -> GeneratedCaptions:
        """`count` sampled captions of each image: ids [B, count, max_length]."""
        writer = self._writer(self.context(batch, choice.max_length), count)
        return draw_captions(writer, len(batch["img_feats"]), self.ends, choice, rng, sample=True)

    def forms(self, words: Sequence[str]) -> Constraint:
        """The token ids of words that name one thing; raises ConfigError for one without any."""
        found = [tuple(ids) for ids in self.words.encode_all(list(words)) if ids]
        if not found:
            raise ConfigError("constraints", f"{list(words)} name nothing", "give at least one word for a thing")
        return found

    def texts(self, captions: GeneratedCaptions) -> Texts:
        """Ids as texts, with the exponential of their score."""
        pairs = zip(captions.ids.tolist(), captions.scores.exp().tolist(), strict=True)
        return [[(self.text(ids), conf) for ids, conf in zip(rows, confs, strict=True)] for rows, confs in pairs]

    def text(self, ids: Sequence[int]) -> str:
        """The words of one caption, up to its [SEP]."""
        own = list(ids)
        return self.words.decode(own[: own.index(self.ends.sep)] if self.ends.sep in own else own)

    def _writer(self, context: Context, rows: int) -> CaptionState:
        return CaptionState(self.network, context, self.words.mask, rows)


def caption_mask(captions: Tensor, ends: Any) -> Tensor:
    """bool [B, L] of the words of captions [B, 1 + L] behind [CLS] that were chosen, the first [SEP] among them."""
    chosen: Tensor = captions[:, 1:]
    before = (chosen == ends.sep).cumsum(1) - (chosen == ends.sep).long()
    wanted: Tensor = (before == 0) & (chosen != ends.pad)
    return wanted
