"""Terms of logits: plain and modality-specific knowledge distillation, annealing, and no distillation at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from lavis_ext.errors import ConfigError
from lavis_ext.objectives.settings import AkdKeys, TermKeys
from lavis_ext.objectives.terms import Common, Moment, Term, Views, mean_of_rows
from lavis_ext.registry import objectives

if TYPE_CHECKING:
    from lavis_ext.models.base import Outputs


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
    """`divergence`, averaged over the rows that saw something under the view."""
    return mean_of_rows(divergence(student.logits, teacher.logits, temperature), student, teacher)


@objectives.register("vanilla_kd")
class VanillaKd(Term):
    """KD of the logits of the whole input."""

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """Σ over one view."""
        return kd(student["full"], teacher["full"], self.common.temperature)


@objectives.register("mkd")
class Mkd(Term):
    """Modality-specific KD: Σ_v w_v KD_v, by default ½ full + ¼ text only + ¼ image only.

    Ma, Wang and Zhang, Knowledge-Based Systems 2025 (doi 10.1016/j.knosys.2025.113300). A row that sees no token under
    a view does not count there; a weight of 0 spares the view's forward passes.
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

    It is what the MMKD code means by `akd`. With `alpha: 1` its first phase is this term alone; once it is over, the
    loss of the task alone. The published script trains 15 and then 10 epochs.
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
        """Always: it has no part in the loss."""
        return True

    def __call__(self, student: Views, teacher: Views, moment: Moment) -> Tensor:
        """Never asked, as it is over."""
        raise NotImplementedError
