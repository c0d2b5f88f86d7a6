"""How a teacher follows its student: the inner step, the step towards it, and what both need to go on after a stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lavis_ext.models.base import Model, fit
from lavis_ext.schema import RunConfig
from lavis_ext.tasks.distill.inner import Gradient, InnerStep
from lavis_ext.tasks.distill.mapping import Partner, distance
from lavis_ext.tasks.distill.meta import TeacherStep
from lavis_ext.tasks.distill.settings import DistillConfig


class TeacherUpdate:
    """θ' from the student, then the teacher's parameters that have a partner towards θ'; all of it in place."""

    def __init__(
        self, student: Model, teacher: Model, pairs: Sequence[Partner], run: RunConfig, config: DistillConfig
    ) -> None:
        self.inner = InnerStep(student, run, config)
        theirs = dict(teacher.named_parameters())
        self.moved = {pair.teacher: theirs[pair.teacher] for pair in pairs if pair.student in self.inner.shadow}
        self.target = [self.inner.shadow[pair.student] for pair in pairs if pair.student in self.inner.shadow]
        self.start = [parameter.detach().clone() for parameter in self.moved.values()]
        self.outer = TeacherStep(list(self.moved.values()), run, config)

    def take(self, first: Sequence[Tensor | None], gradient: Gradient, progress: float) -> None:
        """Both steps; `first` is the gradient of the loss at the student, `gradient` gives it at other parameters."""
        self.inner.take(first, gradient)
        self.outer.take(self.target, progress)

    def way(self) -> Tensor:
        """‖θ_t − θ_0‖ / ‖θ_0‖ over the moved parameters: how far the teacher is from where it began."""
        return distance(self.start, list(self.moved.values()))

    def state_dict(self) -> dict[str, Any]:
        """The moved parameters and the state of the teacher's optimizer."""
        return {"moved": dict(self.moved), **self.outer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back; raises IntegrityError where the parameters are others."""
        fit("the teacher in the checkpoint", self.moved, state["moved"])
        self.outer.load_state_dict(state)
