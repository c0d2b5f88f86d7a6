"""A term of distillation: what a student is to learn from its teacher, as a number that falls to 0 where it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from lavis_ext.errors import ConfigError
from lavis_ext.objectives.settings import TermKeys

if TYPE_CHECKING:
    from lavis_ext.models.base import Outputs

Views = Mapping[str, "Outputs"]
"""View → what one model made of a batch under it."""
Pairs = Sequence[tuple[int, int]]
"""(student, teacher) indices."""


@dataclass(frozen=True)
class Common:
    """What all terms of a run share."""

    temperature: float = 5.0
    kd_weights: Mapping[str, float] = field(default_factory=dict)
    """View → share, for terms that look at several."""


@dataclass(frozen=True)
class Moment:
    """When a term is asked: after which share of the run, and whether it may move what it remembers."""

    progress: float = 0.0
    moves: bool = True


class Term:
    """One registered term; `keys` is what a run file gives beside `name` and `weight`."""

    Keys: ClassVar[type[TermKeys]] = TermKeys

    weight: ClassVar[float] = 1.0
    """Where the run file gives none: the published one."""
    views: tuple[str, ...] = ("full",)
    remembers: ClassVar[bool] = False
    """Whether it changes with the batches that it has seen."""

    def __init__(self, common: Common, keys: Any = None) -> None:
        self.common = common
        self.keys: Any = self.Keys() if keys is None else keys

    @property
    def hidden(self) -> bool:
        """Whether it reads hidden states."""
        return bool(self.keys.hidden)

    @property
    def attentions(self) -> bool:
        """Whether it reads attention scores."""
        return bool(self.keys.attentions)

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """A scalar, differentiable in the student's outputs."""
        raise NotImplementedError

    def over(self, progress: float) -> bool:
        """Whether the term has done its part of the run."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def mean_of_rows(values: Tensor, *outputs: Outputs) -> Tensor:
    """The mean of `values` [N] over the rows that saw something under the view in all `outputs`; 0 if none did."""
    masks = [out.valid for out in outputs if out.valid is not None]
    if not masks:
        return values.mean()
    seen = masks[0]
    for mask in masks[1:]:
        seen = seen & mask
    return values.masked_fill(~seen, 0.0).sum() / seen.sum().clamp(min=1)


def hidden_pairs(student: int, teacher: int) -> list[tuple[int, int]]:
    """(i, ⌊i·L/K⌋) for hidden states 0 (embeddings) … K of a K-layer student and its L-layer teacher.

    0, 2, …, 12 of 12 layers for 6 (PKD-skip: Sun et al., arXiv:1908.09355; TinyBERT's uniform map). Raises ConfigError
    if the student is the deeper one.
    """
    if student > teacher:
        what = f"the student has {student} layers and its teacher {teacher}"
        raise ConfigError("run.distill", what, "compare hidden states with a teacher that is as deep, or deeper")
    return [(i, i * teacher // student) for i in range(student + 1)]


def paired_hidden(student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Hidden states by `hidden_pairs`, [B, S, H] of one width: zeros are put behind the narrower."""
    mine, theirs = states(student.hidden), states(teacher.hidden)
    pairs = hidden_pairs(len(mine) - 1, len(theirs) - 1)
    return [of_one_width(mine[i].float(), theirs[j].float()) for i, j in pairs]


def paired_attentions(student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Attention scores of the layers that make the paired hidden states, [B, heads, S, S]: 1, 3, …, 11 of 12 for 6.

    Where the numbers of heads differ both are averaged over them.
    """
    mine, theirs = states(student.attentions), states(teacher.attentions)
    chosen = [(mine[i - 1].float(), theirs[j - 1].float()) for i, j in hidden_pairs(len(mine), len(theirs)) if i]
    return [same_heads(pair) for pair in chosen]


def states(found: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """The tensors; raises ConfigError where the model gives none."""
    if found is None:
        what = "a term reads hidden states or attention scores, which the model does not give"
        raise ConfigError("run.distill.terms", what, "use terms of logits: vanilla_kd, mkd, akd")
    return found


def of_one_width(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with zeros behind the narrower last axis (the padding of the MMKD code; nothing is learnt for it)."""
    width = max(student.shape[-1], teacher.shape[-1])
    padded = [F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in (student, teacher)]
    return padded[0], padded[1]


def same_heads(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """[B, heads, S, S] twice, with the mean over heads where their numbers differ."""
    if pair[0].shape[1] == pair[1].shape[1]:
        return pair
    return pair[0].mean(1, keepdim=True), pair[1].mean(1, keepdim=True)


def token_mse(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of [B, S, H] over the tokens of `mask` [B, S] (None: all)."""
    squares = (student - teacher).square().mean(-1)
    if mask is None:
        return squares.mean()
    return squares.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def score_mse(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of scores [B, heads, S, S] over pairs of tokens of `mask` [B, S]."""
    squares = (student - teacher).square().mean(1)
    if mask is None:
        return squares.mean()
    both = mask[:, :, None] & mask[:, None, :]
    return squares.masked_fill(~both, 0.0).sum() / both.sum().clamp(min=1)
