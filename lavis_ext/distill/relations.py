"""Terms of relations: `mgskd` (between tokens and between samples) and `emd` (between all layers of both models)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.common.registry import objectives
from lavis_ext.distill.terms import (
    Common,
    Moment,
    Term,
    Views,
    of_one_width,
    paired_hidden,
    same_heads,
    score_mse,
    states,
    token_mse,
)
from lavis_ext.models.settings import EmdKeys, MgskdKeys

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
    directions = F.normalize(points - centres.unsqueeze(-2), dim=-1)
    return directions @ directions.transpose(-1, -2)


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
    """bool [B, S, S]: whether both of two tokens are visible, from bool [B, S]."""
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
    errors = F.smooth_l1_loss(found, wanted, reduction="none").masked_fill(~counted, 0.0).sum()
    return pairs + errors / counted.sum().clamp(min=1)


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


TINY = 1e-12
Distance = Callable[[Tensor, Tensor], Tensor]


def transport(supply: np.ndarray, demand: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """float64 [K, L]: the flow F ≥ 0 of least Σ F·cost whose rows sum to `supply` and whose columns to `demand`.

    Both sum to 1. The linear programme of the earth mover's distance, solved exactly by SciPy's HiGHS.
    """
    from scipy.optimize import linprog

    rows, columns = cost.shape
    leaving, arriving = np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))
    # the last equation follows from the others; with it, rounding may leave no solution
    sums = np.concatenate([leaving, arriving])[:-1]
    solved = linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate([supply, demand])[:-1], method="highs")
    flow: np.ndarray = solved.x.reshape(rows, columns)
    return flow


def attend(weights: np.ndarray, flow: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """New layer weights [K] for rows of `flow` and `cost` [K, L]: in inverse proportion to a layer's cost of transport.

    The cost attention of BERT-EMD §3.3: w'_i ∝ 1 / (Σ_j F_ij D_ij / w_i).
    """
    spent = (flow * cost).sum(1) / np.maximum(weights, TINY)
    inverse = 1.0 / np.maximum(spent, TINY * max(spent.max(), 1.0))
    shares: np.ndarray = inverse / inverse.sum()
    return shares


@objectives.register("emd")
class EarthMover(Term):
    """BERT-EMD (Li et al., arXiv:2010.06133): MSE of the embeddings + EMD of hidden states + EMD of attention scores.

    EMD = Σ F_ij D_ij with D_ij the MSE of student layer i and teacher layer j, and F the cheapest flow between the
    layers' weights; no gradient passes through F. The weights begin equal, and follow the cost of each batch
    (`attend`), as the mean over states and scores. The weight .01 is the published script's β.
    """

    Keys = EmdKeys
    weight = 0.01
    remembers = True

    def __init__(self, common: Common, keys: EmdKeys | None = None) -> None:
        super().__init__(common, keys)
        self.layers: tuple[np.ndarray, np.ndarray] | None = None
        """Weights of the student's and of the teacher's layers."""

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """The sum of the three; layer weights are updated where `moment.moves`."""
        mine, theirs = student["full"], teacher["full"]
        mask = mine.mask

        def hidden(s: Tensor, t: Tensor) -> Tensor:
            return token_mse(*of_one_width(s.float(), t.float()), mask)

        def score(s: Tensor, t: Tensor) -> Tensor:
            s_heads, t_heads = same_heads((s, t))
            return score_mse(s_heads.float(), t_heads.float(), mask)

        embedded, *s_states = states(mine.hidden)
        t_embedded, *t_states = states(theirs.hidden)
        costs = [
            distances(s_states, t_states, hidden),
            distances(states(mine.attentions), states(theirs.attentions), score),
        ]
        supply, demand = self.layers or uniform(len(s_states), len(t_states))
        plain = [cost.detach().double().cpu().numpy() for cost in costs]
        flows = [transport(supply, demand, cost) for cost in plain]
        if moment.moves and self.keys.learn_weights:
            rows = np.mean([attend(supply, f, c) for f, c in zip(flows, plain, strict=True)], axis=0)
            columns = np.mean([attend(demand, f.T, c.T) for f, c in zip(flows, plain, strict=True)], axis=0)
            self.layers = rows, columns
        moved = [(cost * torch.from_numpy(f).to(cost)).sum() for cost, f in zip(costs, flows, strict=True)]
        return hidden(embedded, t_embedded) + moved[0] + moved[1]

    def state_dict(self) -> dict[str, Any]:
        """The weights of the layers."""
        return {} if self.layers is None else {"student": self.layers[0].tolist(), "teacher": self.layers[1].tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.layers = (np.array(state["student"]), np.array(state["teacher"])) if state else None


def uniform(student: int, teacher: int) -> tuple[np.ndarray, np.ndarray]:
    """Equal weights for both."""
    return np.full(student, 1 / student), np.full(teacher, 1 / teacher)


def distances(student: Sequence[Tensor], teacher: Sequence[Tensor], of: Distance) -> Tensor:
    """[K, L] distances of every layer to every layer."""
    return torch.stack([torch.stack([of(s, t) for t in teacher]) for s in student])
