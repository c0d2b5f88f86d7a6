"""mgskd: how tokens, and how samples, lie to one another in the teacher's hidden states, not where they lie."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.objectives.settings import MgskdKeys
from lavis_ext.objectives.terms import Moment, Term, Views, paired_hidden
from lavis_ext.registry import objectives

HEADS = 64
TOKEN_WEIGHT, SAMPLE_WEIGHT = 1.0, 4.0


def relation_heads(width: int, heads: int = HEADS) -> int:
    """The largest number of at most `heads` equal parts that a hidden state of `width` can be cut into."""
    return next(count for count in range(min(heads, width), 0, -1) if width % count == 0)


def split_heads(hidden: Tensor, heads: int) -> Tensor:
    """[..., N, H] → [..., heads, N, H / heads]."""
    return hidden.reshape(*hidden.shape[:-1], heads, -1).transpose(-2, -3)


def angles(points: Tensor, centres: Tensor) -> Tensor:
    """[..., C, P, P]: cosines of the angle at each of [..., C, D] `centres` between any two of [..., C, P, D]."""
    ways = F.normalize(points - centres.unsqueeze(-2), dim=-1)
    return ways @ ways.transpose(-1, -2)


def sample_structure(hidden: Tensor, mask: Tensor, heads: int) -> Tensor:
    """[heads, B, B, B]: angles between samples, each the mean of its visible tokens, [B, S, H] and [B, S]."""
    seen = mask.to(hidden.dtype)
    pooled = (hidden * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1)
    parts = split_heads(pooled, heads)
    return angles(parts.unsqueeze(1).expand(-1, parts.shape[1], -1, -1), parts)


def token_scores(hidden: Tensor, mask: Tensor, heads: int) -> Tensor:
    """[B, heads, S, S]: scaled products of tokens, 0 where one of the two is not visible."""
    parts = split_heads(hidden, heads)
    scores = parts @ parts.transpose(-1, -2) / math.sqrt(parts.shape[-1])
    return scores * both_seen(mask)[:, None]


def both_seen(mask: Tensor) -> Tensor:
    """bool [B, S, S]."""
    return mask[:, :, None] & mask[:, None, :]


def salient(scores: Tensor, mask: Tensor, k1: int, k2: int) -> tuple[Tensor, Tensor]:
    """The k1 tokens that others attend to most, [B, k1], and the k2 that each of them attends to most, [B, k1, k2].

    By the softmax of `token_scores`, summed over heads.
    """
    seen = both_seen(mask)
    shares = (scores.masked_fill(~seen[:, None], -1e4).softmax(-1) * seen[:, None]).sum(1)
    central = shares.sum(1).topk(min(k1, shares.shape[-1]), dim=1).indices
    eye = torch.eye(shares.shape[-1], dtype=torch.bool, device=shares.device)
    near = shares.masked_fill(eye, 0.0).topk(min(k2, shares.shape[-1]), dim=2).indices
    return central, near.gather(1, central[..., None].expand(-1, -1, near.shape[-1]))


def triplets(hidden: Tensor, mask: Tensor, central: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Angles at the central tokens between any two of their near ones, [B, k1, k2, k2], and which of them count."""
    rows = torch.arange(len(hidden), device=hidden.device)
    found = angles(hidden[rows[:, None, None], near], hidden[rows[:, None], central])
    seen = mask[rows[:, None, None], near] & mask[rows[:, None], central][..., None]
    seen = seen & (near != central[..., None])
    different = ~torch.eye(near.shape[-1], dtype=torch.bool, device=hidden.device)
    return found, seen[..., :, None] & seen[..., None, :] & different


def token_loss(student: Tensor, teacher: Tensor, mask: Tensor, heads: int, k1: int, k2: int) -> Tensor:
    """MSE of `token_scores` + smooth L1 of `triplets`, both at the teacher's choice of tokens."""
    mine, theirs = token_scores(student, mask, heads), token_scores(teacher, mask, heads)
    pairs = (mine - theirs).square().sum() / (both_seen(mask).sum() * heads).clamp(min=1)
    chosen = salient(theirs, mask, k1, k2)
    found, counted = triplets(student, mask, *chosen)
    wanted, _ = triplets(teacher, mask, *chosen)
    bent = F.smooth_l1_loss(found, wanted, reduction="none").masked_fill(~counted, 0.0).sum()
    return pairs + bent / counted.sum().clamp(min=1)


@objectives.register("mgskd")
class StructuredKd(Term):
    """Multi-granularity structural KD (MGSKD, Liu et al., ACL 2022), at the granularities of tokens and samples.

    The lowest `token_layers` of the paired states (embeddings among them) learn the structure of tokens: products of
    pairs and angles of triplets. All above learn that of samples, with 4 times the weight. Phrases, the paper's middle
    granularity, need a parser; the MMKD code leaves them out as well. The weight .01 is its β.
    """

    Keys = MgskdKeys
    weight = 0.01

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """The weighted sum over paired layers."""
        keys: MgskdKeys = self.keys
        pairs = paired_hidden(student["full"], teacher["full"])
        mask = student["full"].mask
        if mask is None:
            mask = torch.ones(pairs[0][0].shape[:2], dtype=torch.bool, device=pairs[0][0].device)
        heads = relation_heads(pairs[0][0].shape[-1], keys.heads)
        tokens = [token_loss(s, t, mask, heads, keys.central, keys.near) for s, t in pairs[: keys.token_layers]]
        samples = [
            F.smooth_l1_loss(sample_structure(s, mask, heads), sample_structure(t, mask, heads))
            for s, t in pairs[keys.token_layers :]
        ]
        weighted = [TOKEN_WEIGHT * loss for loss in tokens] + [SAMPLE_WEIGHT * loss for loss in samples]
        return torch.stack(weighted).sum()
