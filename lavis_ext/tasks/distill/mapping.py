"""Which layer of a teacher goes with which of its student, and which parameters that makes partners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavis_ext.errors import ConfigError
from lavis_ext.models.base import Model, listed
from lavis_ext.tasks.distill.settings import Pairs

TINY = 1e-12


@dataclass(frozen=True)
class Partner:
    """One parameter of the teacher and the one of the student that it goes with, by name."""

    teacher: str
    student: str


def partners(student: Model, teacher: Model, pairs: Pairs) -> list[Partner]:
    """The teacher's parameters that go with one of the student's: those of paired layers, and all outside the layers.

    Parameters that the student has not are left out, layers that no pair names as well. Raises ConfigError where
    partners differ in shape, or a paired layer has no partner.
    """
    mine, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
    prefix_s, prefix_t = layers_prefix(student), layers_prefix(teacher)
    found = [Partner(name, name) for name in theirs if not name.startswith(prefix_t) and name in mine]
    for i, j in pairs:
        inside = f"{prefix_t}{j}."
        found += [
            Partner(name, f"{prefix_s}{i}.{name.removeprefix(inside)}") for name in theirs if name.startswith(inside)
        ]
    require_alike(found, mine, theirs)
    return found


def require_alike(found: Sequence[Partner], mine: dict[str, nn.Parameter], theirs: dict[str, nn.Parameter]) -> None:
    """Raise ConfigError unless every partner is there and has the other's shape."""
    where, way_out = "run.distill.teacher", "a teacher that moves has its student's sizes; or set teacher_update: none"
    absent = [pair.student for pair in found if pair.student not in mine]
    if absent:
        raise ConfigError(where, f"{len(absent)} parameters have no partner: {listed(absent)}", way_out)
    other = [
        f"{pair.teacher} {list(theirs[pair.teacher].shape)} for {list(mine[pair.student].shape)}"
        for pair in found
        if theirs[pair.teacher].shape != mine[pair.student].shape
    ]
    if other:
        raise ConfigError(where, f"{len(other)} parameters have another shape: {listed(other)}", way_out)


def layers_prefix(model: Model) -> str:
    """What the names of parameters in `model.encoder_layers()` begin with, up to the number of the layer."""
    layers = model.encoder_layers()
    name = next((name for name, module in model.named_modules() if module is layers), None)
    if name is None:
        what = f"the layers of a {type(model).__name__} are no part of it"
        raise ConfigError("model.arch", what, "name an architecture that can be distilled, as oscar")
    return f"{name}." if name else ""


@torch.no_grad()
def start_from(student: Model, source: Model, pairs: Pairs, everything: bool) -> None:
    """Copy the paired layers of `source` into the student; with `everything` all partners outside the layers too."""
    mine, theirs = dict(student.named_parameters()), dict(source.named_parameters())
    prefix = layers_prefix(source)
    for pair in partners(student, source, pairs):
        if everything or pair.teacher.startswith(prefix):
            mine[pair.student].copy_(theirs[pair.teacher])


def distance(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """‖θ_t − θ_s‖ / ‖θ_t‖ over partners, a scalar on their device."""
    pairs = [(t.detach().float(), s.detach().float()) for t, s in zip(teacher, student, strict=True)]
    apart = torch.stack([torch.dist(t, s) for t, s in pairs]).norm()
    length = torch.stack([t.norm() for t, _ in pairs]).norm()
    return torch.div(apart, length.clamp(min=TINY))
