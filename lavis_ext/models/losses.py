"""The losses of BLIP-2's first stage as functions of features and logits: contrast, matching, language modelling."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.common.registry import objectives
from lavis_ext.models.settings import LossKeys

SMOOTHING = 0.1
IGNORED = -100
NONE = -1
"""The index of a negative for a row that has none."""


def contrast_targets(ids: Tensor, all_ids: Tensor, smoothing: float = SMOOTHING) -> Tensor:
    """[B, N] targets of N candidates for B rows: equal among candidates of the same id, smoothed over all."""
    same = (ids[:, None] == all_ids[None, :]).float()
    return (1 - smoothing) * same / same.sum(1, keepdim=True) + smoothing / len(all_ids)


def similarities(images: Tensor, texts: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """[B, N] of image queries [B, Q, D] and texts [N, D], both normalised: the maximum over the queries."""
    found: Tensor = torch.einsum("bqd,nd->bnq", images, texts).amax(-1)
    return found / temperature


def contrastive_loss(image_to_text: Tensor, text_to_image: Tensor, targets: Tensor) -> Tensor:
    """Image–text contrast (Li et al., arXiv:2301.12597 §3.1): cross entropy with soft `targets`, the mean of both ways.

    Similarities over the temperature and targets are [B, N].
    """
    ways = [-(F.log_softmax(logits, dim=1) * targets).sum(1).mean() for logits in (image_to_text, text_to_image)]
    return (ways[0] + ways[1]) / 2


def draw_negatives(similarity: Tensor, same: Tensor) -> Tensor:
    """[B] the index of a negative for each row of `similarity` [B, N], drawn by softmax, never one of the `same` id.

    NONE where there is no other. Drawn from torch's generator.
    """
    there = ~same.all(1)
    shares = similarity.detach().float().masked_fill(same, float("-inf")).masked_fill(~there[:, None], 0.0).softmax(1)
    drawn = torch.multinomial(shares, 1)[:, 0]
    return torch.where(there, drawn, torch.full_like(drawn, NONE))


def matching_loss(logits: Tensor, positives: int) -> Tensor:
    """Cross entropy of matching logits [n, 2] (no match, match) of which the first `positives` rows match."""
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[:positives] = 1
    return F.cross_entropy(logits, labels)


def language_loss(logits: Tensor, labels: Tensor, smoothing: float = SMOOTHING) -> Tensor:
    """Cross entropy of the next token: logits [B, L, V] and labels [B, L], of which IGNORED ones are skipped."""
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, label_smoothing=smoothing
    )


class Loss:
    """A registered loss of the first stage; `keys` are the keys of a model section beside `name` and `weight`.

    It is called with `stage1.FirstStageOutputs` and returns a scalar.
    """

    Keys: ClassVar[type[LossKeys]] = LossKeys

    def __init__(self, keys: Any = None) -> None:
        self.keys: Any = self.Keys() if keys is None else keys

    def __call__(self, seen: Any) -> Tensor:
        """A differentiable scalar."""
        raise NotImplementedError


@objectives.register("itc")
class Contrast(Loss):
    """Image–text contrast: each picture picks its text among all, and each text its picture."""

    def __call__(self, seen: Any) -> Tensor:
        """`contrastive_loss`; pairs of the same picture share the target equally."""
        return contrastive_loss(seen.to_text, seen.to_image, contrast_targets(seen.ids, seen.all_ids))


@objectives.register("itm")
class Matching(Loss):
    """Image–text matching: true pairs against a hard negative of each picture and of each text."""

    def __call__(self, seen: Any) -> Tensor:
        """`matching_loss`; the negatives are drawn from torch's generator."""
        return matching_loss(seen.match_logits, len(seen.texts.ids))


@objectives.register("lm")
class Words(Loss):
    """Language modelling: the text is predicted from the queries' view of the picture."""

    def __call__(self, seen: Any) -> Tensor:
        """`language_loss` of all tokens but pads."""
        return language_loss(seen.word_logits, seen.texts.ids.masked_fill(seen.texts.mask == 0, IGNORED))
