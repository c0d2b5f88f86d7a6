"""emd: every layer of the student learns from every layer of the teacher, by the cheapest transport between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.objectives.settings import EmdKeys
from lavis_ext.objectives.terms import (
    Common,
    Moment,
    Term,
    Views,
    of_one_width,
    same_heads,
    score_mse,
    states,
    token_mse,
)
from lavis_ext.registry import objectives

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
    (`attend`), the mean of what states and scores ask for. The weight .01 is the published script's β.
    """

    Keys = EmdKeys
    weight = 0.01
    remembers = True

    def __init__(self, common: Common, keys: EmdKeys | None = None) -> None:
        super().__init__(common, keys)
        self.layers: tuple[np.ndarray, np.ndarray] | None = None
        """Weights of the student's and of the teacher's layers."""

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """The sum of the three; layer weights move where `moment` says so."""
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
        """Take them back."""
        self.layers = (np.array(state["student"]), np.array(state["teacher"])) if state else None


def uniform(student: int, teacher: int) -> tuple[np.ndarray, np.ndarray]:
    """Equal weights for both."""
    return np.full(student, 1 / student), np.full(teacher, 1 / teacher)


def distances(student: Sequence[Tensor], teacher: Sequence[Tensor], of: Distance) -> Tensor:
    """[K, L] distances of every layer to every layer."""
    return torch.stack([torch.stack([of(s, t) for t in teacher]) for s in student])
