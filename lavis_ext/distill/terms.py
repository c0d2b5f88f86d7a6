"""Terms of distillation losses: their base class, terms of logits (KD, annealing), of hidden states and attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import objectives
from lavis_ext.models.settings import AkdKeys, HiddenKeys, LayerKeys, TermKeys

if TYPE_CHECKING:
    from lavis_ext.models.base_model import Outputs

Views = Mapping[str, "Outputs"]
"""View → a model's outputs for a batch."""
Pairs = Sequence[tuple[int, int]]
"""(student, teacher) indices."""


@dataclass(frozen=True)
class Common:
    """Settings that all terms of a run share."""

    temperature: float = 5.0
    kd_weights: Mapping[str, float] = field(default_factory=dict)
    """View → share, for terms of several views."""


@dataclass(frozen=True)
class Moment:
    """The share of the run that is done, and whether a term may update its state."""

    progress: float = 0.0
    moves: bool = True


class Term:
    """A registered term; `keys` are those of the run file beside `name` and `weight`."""

    Keys: ClassVar[type[TermKeys]] = TermKeys

    weight: ClassVar[float] = 1.0
    """The published weight, where the run file gives none."""
    views: tuple[str, ...] = ("full",)
    remembers: ClassVar[bool] = False
    """Whether it has state that changes with the batches."""

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
        """Whether the term no longer counts after a share `progress` of the run."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """The state that an exact resume needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""


def mean_of_rows(values: Tensor, *outputs: Outputs) -> Tensor:
    """The mean of `values` [N] over the rows that are `valid` in all `outputs`; 0 without any."""
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
    """Hidden states by `hidden_pairs`, [B, S, H], the narrower padded with zeros."""
    mine, theirs = states(student.hidden), states(teacher.hidden)
    pairs = hidden_pairs(len(mine) - 1, len(theirs) - 1)
    return [of_one_width(mine[i].float(), theirs[j].float()) for i, j in pairs]


def paired_attentions(student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Attention scores of the layers that give the paired hidden states, [B, heads, S, S]: 1, 3, …, 11 of 12 for 6.

    Where the numbers of heads differ both are averaged over them.
    """
    mine, theirs = states(student.attentions), states(teacher.attentions)
    chosen = [(mine[i - 1].float(), theirs[j - 1].float()) for i, j in hidden_pairs(len(mine), len(theirs)) if i]
    return [same_heads(pair) for pair in chosen]


def states(found: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """`found`, not None; raises ConfigError where the model gives no hidden states or attention scores."""
    if found is None:
        what = "a term reads hidden states or attention scores, which the model does not give"
        raise ConfigError("run.distill.terms", what, "use terms of logits: vanilla_kd, mkd, akd")
    return found


def of_one_width(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with one last axis, the narrower padded with zeros (as the MMKD code does, without a learnt projection)."""
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


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """[N]: T² · Σ_c p_c (log p_c − log q_c), p = softmax(teacher / T), q = softmax(student / T), of logits [N, C].

    Hinton et al., arXiv:1503.02531 §2; in float32. Raises ConfigError where the numbers of classes differ.
    """
    if student.shape != teacher.shape:
        what = f"logits of {list(student.shape)} for a teacher's of {list(teacher.shape)}"
        raise ConfigError("run.distill.teacher", what, "teach a student of the same labels")
    p = F.log_softmax(teacher.float() / temperature, dim=-1)
    q = F.log_softmax(student.float() / temperature, dim=-1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1) * temperature**2


def kd(student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
    """`divergence`, averaged over valid rows."""
    return mean_of_rows(divergence(student.logits, teacher.logits, temperature), student, teacher)


@objectives.register("vanilla_kd")
class VanillaKd(Term):
    """KD of the logits of the whole input."""

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """KD of the full view."""
        return kd(student["full"], teacher["full"], self.common.temperature)


@objectives.register("mkd")
class Mkd(Term):
    """Modality-specific KD: Σ_v w_v KD_v, by default ½ full + ¼ text only + ¼ image only.

    Ma, Wang and Zhang, Knowledge-Based Systems 2025 (doi 10.1016/j.knosys.2025.113300). A row that sees no token under
    a view does not count there; a view of weight 0 is not run.
    """

    def __init__(self, common: Common, keys: TermKeys | None = None) -> None:
        super().__init__(common, keys)
        self.shares = {view: share for view, share in common.kd_weights.items() if share}
        self.views = tuple(self.shares)

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """The weighted sum; raises KeyError if a view is not there."""
        parts = [share * kd(student[v], teacher[v], self.common.temperature) for v, share in self.shares.items()]
        total: Tensor = sum(parts[1:], start=parts[0])
        return total


@objectives.register("soft_ce")
class SoftCrossEntropy(Term):
    """−mean over rows and classes of p_c log q_c: what the published scripts add to td, emd and mgskd.

    Its gradient is that of `vanilla_kd` / (C · T²).
    """

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """Of the whole input."""
        t = self.common.temperature
        p = F.softmax(teacher["full"].logits.float() / t, dim=-1)
        q = F.log_softmax(student["full"].logits.float() / t, dim=-1)
        return mean_of_rows(-(p * q).mean(-1), student["full"], teacher["full"])


@objectives.register("akd")
class AnnealingKd(Term):
    """Annealing-KD (Jafari et al., arXiv:2104.07163): MSE(z_s, z_t · τ/τ_max), τ = 1 … τ_max over the first `phase`.

    The MMKD code's `akd`. With `alpha: 1` the loss is this term alone in its phase, and the task's alone afterwards.
    The published script trains 15 and then 10 epochs.
    """

    Keys = AkdKeys
    remembers = True

    def over(self, progress: float) -> bool:
        """After its phase."""
        return bool(progress >= self.keys.phase)

    def annealed(self, progress: float) -> float:
        """τ/τ_max."""
        most: int = self.keys.max_temperature
        return min(int(progress / self.keys.phase * most) + 1, most) / most

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """Of the whole input, averaged over rows and classes."""
        mine, theirs = student["full"], teacher["full"]
        squares = (mine.logits.float() - theirs.logits.float() * self.annealed(moment.progress)).square().mean(-1)
        return mean_of_rows(squares, mine, theirs)


@objectives.register("ft")
class FineTuning(Term):
    """Nothing: `ft` of the MMKD code is a small model that is fine-tuned without a teacher, the baseline of all others.

    As the only term it makes the loss that of the task, whatever `alpha` is.
    """

    views = ()

    def over(self, progress: float) -> bool:
        """Always: it is no part of the loss."""
        return True

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """Never called, as it is over."""
        raise NotImplementedError


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
