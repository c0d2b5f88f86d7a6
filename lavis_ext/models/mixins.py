"""What LAVIS' `models.base_model` has for momentum encoders and queues (ALBEF, BLIP), for a model of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError
from lavis_ext.models.base_model import concat_all_gather


class BaseEncoder(nn.Module):
    """The base of an encoder that is part of a model."""

    def forward_features(self, samples: Any, **kwargs: Any) -> Any:
        """What it sees in a batch; a subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward_features")

    @property
    def device(self) -> torch.device:
        """Where its first parameter lies."""
        return next(self.parameters()).device


class SharedQueueMixin:
    """A ring of the last features of all ranks: `image_queue` and `text_queue` [C, K], `idx_queue` [1, K].

    A model registers these buffers, `queue_ptr` [1] and `queue_size` K.
    """

    image_queue: Tensor
    text_queue: Tensor
    idx_queue: Tensor
    queue_ptr: Tensor
    queue_size: int

    @torch.no_grad()
    def _dequeue_and_enqueue(self, image_feat: Tensor, text_feat: Tensor, idxs: Tensor | None = None) -> None:
        """Put features [B, C] of every rank, and their ids [B, 1], over the oldest.

        Raises ConfigError where K is no multiple of the rows of all ranks.
        """
        images, texts = concat_all_gather(image_feat), concat_all_gather(text_feat)
        rows, first = len(images), int(self.queue_ptr)
        if self.queue_size % rows:
            what = f"{self.queue_size} is no multiple of the {rows} rows of a batch over all processes"
            raise ConfigError("queue_size", what, "change either, and drop the last batch of an epoch")
        place = slice(first, first + rows)
        self.image_queue[:, place], self.text_queue[:, place] = images.T, texts.T
        if idxs is not None:
            self.idx_queue[:, place] = concat_all_gather(idxs).T
        self.queue_ptr[0] = (first + rows) % self.queue_size


class MomentumDistilationMixin:
    """Slow copies of parts: `model_pairs` of (part, its copy), `momentum` the share that a copy keeps in a step."""

    model_pairs: Sequence[Sequence[nn.Module]]
    momentum: float

    @torch.no_grad()
    def copy_params(self) -> None:
        """Set the copies to their parts; they get no gradient."""
        for part, copy in self.model_pairs:
            for own, slow in zip(part.parameters(), copy.parameters(), strict=True):
                slow.copy_(own)
                slow.requires_grad = False

    @torch.no_grad()
    def _momentum_update(self) -> None:
        """Move the copies towards their parts."""
        for part, copy in self.model_pairs:
            for own, slow in zip(part.parameters(), copy.parameters(), strict=True):
                slow.mul_(self.momentum).add_(own, alpha=1.0 - self.momentum)


def tile(x: Tensor, dim: int, n_tile: int) -> Tensor:
    """Each entry along `dim` `n_tile` times, the repeats side by side (torch's repeat_interleave)."""
    return x.repeat_interleave(n_tile, dim)
