"""Terms of hidden states and attention scores, layer by layer: PKD and TinyBERT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.objectives.settings import HiddenKeys, LayerKeys
from lavis_ext.objectives.terms import (
    Moment,
    Term,
    Views,
    mean_of_rows,
    paired_attentions,
    paired_hidden,
    score_mse,
    token_mse,
)
from lavis_ext.registry import objectives


@objectives.register("pkd")
class PatientKd(Term):
    """Patient KD (Sun et al., arXiv:1908.09355): MSE of L2-normalised [CLS] states of paired layers.

    Of all but the last pair: with 6 layers of 12 the states 0, 2, …, 10, as in the published script. Goes with
    `vanilla_kd`; the weight 500 is the script's β.
    """

    Keys = HiddenKeys
    weight = 500.0

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """Mean over rows, layers and width."""
        mine, theirs = student["full"], teacher["full"]
        found = [
            (F.normalize(s[:, 0], dim=-1) - F.normalize(t[:, 0], dim=-1)).square().mean(-1)
            for s, t in paired_hidden(mine, theirs)[:-1]
        ]
        squares = torch.stack(found).mean(0)
        return mean_of_rows(squares, mine, theirs) if len(squares) == len(mine.logits) else squares.mean()


@objectives.register("td")
@objectives.register("tinybert")
class TinyBert(Term):
    """TinyBERT (Jiao et al., arXiv:1909.10351 §3.1): Σ MSE of attention scores + Σ MSE of hidden states.

    Scores before the softmax of layers 1, 3, …, 11 and states 0, 2, …, 12 for 6 layers of 12; the weight .01 is the
    published script's β. Padding does not count, which the script lets count. `td` is what the MMKD code calls it.
    """

    Keys = LayerKeys
    weight = 0.01

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """The sum over layers of means over visible tokens."""
        mine, theirs = student["full"], teacher["full"]
        states = [token_mse(s, t, mine.mask) for s, t in paired_hidden(mine, theirs)]
        scores = [score_mse(s, t, mine.mask) for s, t in paired_attentions(mine, theirs)]
        return torch.stack([*states, *scores]).sum()
