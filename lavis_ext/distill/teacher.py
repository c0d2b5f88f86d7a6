"""The teacher of a run: building it, checking that it fits, pairing its parameters with the student's, initialising.

`MultiView` runs a model under the views that the terms of a run need (`OutputSpec`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lavis_ext.common.config.schema import ModelConfig
from lavis_ext.common.errors import ConfigError, LavisExtError, Problem
from lavis_ext.common.files import expanded
from lavis_ext.common.types import Batch
from lavis_ext.distill.settings import DistillConfig, Pairs, layer_pairs, whole
from lavis_ext.distill.terms import Term
from lavis_ext.models.base_model import BaseModel, Outputs, listed
from lavis_ext.models.weights import own_checkpoint
from lavis_ext.models.zoo import build_model, section_of_run

TINY = 1e-12


@dataclass(frozen=True)
class Partner:
    """A parameter of the teacher and its counterpart in the student, by name."""

    teacher: str
    student: str


def partners(student: BaseModel, teacher: BaseModel, pairs: Pairs) -> list[Partner]:
    """Partners of the teacher's parameters: of those in paired layers, and of those outside the layers.

    Left out: parameters outside the layers that the student has not, and layers that no pair names. Raises ConfigError
    where partners differ in shape, or a paired layer has no partner.
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


def layers_prefix(model: BaseModel) -> str:
    """What the names of parameters in `model.encoder_layers()` begin with, up to the number of the layer."""
    layers = model.encoder_layers()
    name = next((name for name, module in model.named_modules() if module is layers), None)
    if name is None:
        what = f"the layers of a {type(model).__name__} are no part of it"
        raise ConfigError("model.arch", what, "name an architecture that can be distilled, as oscar")
    return f"{name}." if name else ""


@torch.no_grad()
def start_from(student: BaseModel, source: BaseModel, pairs: Pairs, everything: bool) -> None:
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


TEACHER_KEY = "run.distill.teacher"


def build_teacher(config: DistillConfig, student: ModelConfig) -> BaseModel:
    """The teacher without gradients, in eval mode. Raises RegistryError, and what reading its weights raises."""
    section = teacher_section(config.teacher, student)
    try:
        teacher = build_model(section)
    except LavisExtError as error:
        raise type(error).of([Problem(of_teacher(p.where), p.what, p.way_out) for p in error.problems]) from error
    return teacher.requires_grad_(False).eval()


def of_teacher(where: str) -> str:
    """A key of a model section as one of the teacher's: `model.pretrained x` → `run.distill.teacher.pretrained x`."""
    return where.replace("model", TEACHER_KEY, 1) if where.startswith("model") else f"{TEACHER_KEY} {where}"


def teacher_section(teacher: ModelConfig | str, student: ModelConfig) -> ModelConfig:
    """The model section of the teacher; one that names only a folder has the student's, or that of the folder's run."""
    if isinstance(teacher, ModelConfig):
        return with_labels(teacher, student)
    checkpoint = own_checkpoint(expanded(teacher))
    if checkpoint is None:
        return replace(whole(student), load_finetuned=False, finetuned=None, load_pretrained=True, pretrained=teacher)
    found = replace(section_of_run(checkpoint.parent, TEACHER_KEY), load_finetuned=True, finetuned=str(checkpoint))
    return with_labels(found, student)


def with_labels(teacher: ModelConfig, student: ModelConfig) -> ModelConfig:
    """The teacher's section with as many classes as its student has, where classes count and it says no other."""
    if getattr(teacher, "num_labels", 0) is not None:
        return teacher
    labels: dict[str, Any] = {"num_labels": getattr(student, "num_labels", None)}
    return replace(teacher, **labels)


def misfits(student: BaseModel, teacher: BaseModel, terms: list[Term]) -> Iterator[Problem]:
    """Why this teacher cannot teach this student by these terms."""
    for who, model in (("student", student), ("teacher", teacher)):
        if type(model).outputs is BaseModel.outputs:
            yield Problem("model.arch", f"a {type(model).__name__} cannot be distilled", "name one that can, as oscar")
        lacking = sorted({view for term in terms for view in term.views} - set(model.views))
        if lacking:
            what = f"the {who}, a {type(model).__name__}, has no view '{lacking[0]}'"
            yield Problem("run.distill.kd_weights", what, f"its views: {', '.join(model.views)}; or use vanilla_kd")
    mine, theirs = (getattr(model, "config", None) for model in (student, teacher))
    labels = [getattr(config, "num_labels", None) for config in (mine, theirs)]
    if None not in labels and labels[0] != labels[1]:
        what = f"knows {labels[1]} labels, the student {labels[0]}"
        yield Problem(TEACHER_KEY, what, "take a teacher that was trained for this data set")


def start_student(student: BaseModel, teacher: BaseModel, config: DistillConfig) -> None:
    """Copy the layers of `student_init` into the student: the teacher's (and all outside), or the pretrained ones."""
    kind = config.student_init
    if kind == "none":
        return
    origin, _, strategy = kind.rpartition("-")
    source = teacher if origin == "teacher" else whole_pretrained(student)
    pairs = layer_pairs(strategy, len(student.encoder_layers()), len(source.encoder_layers()))
    start_from(student, source, pairs, everything=origin == "teacher")


def whole_pretrained(student: BaseModel) -> BaseModel:
    """The student's pretrained model with all of its layers."""
    section: ModelConfig = student.config  # type: ignore[assignment]
    return build_model(replace(whole(section), load_finetuned=False, finetuned=None))


@torch.no_grad()
def digest(model: BaseModel) -> str:
    """SHA-256 over the names, types, shapes and bytes of all tensors of a model."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(raw(tensor))
    return found.hexdigest()


def raw(tensor: Tensor) -> Any:
    """The bytes of a tensor, in C order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class OutputSpec:
    """The views to run, and whether hidden states and attention scores of the full one are needed."""

    views: tuple[str, ...] = ("full",)
    hidden: bool = False
    attentions: bool = False

    @classmethod
    def of(cls, terms: Iterable[Term], task: bool = False) -> OutputSpec:
        """What terms need; with `task` also the full view for the task's loss, as the first."""
        known = list(terms)
        views = [view for term in known for view in term.views]
        ordered = dict.fromkeys([*(["full"] if task or "full" in views else []), *views])
        return cls(tuple(ordered), any(term.hidden for term in known), any(term.attentions for term in known))


class MultiView(nn.Module):
    """A model's outputs under several views in one call, so that `functional_call` can replace its parameters."""

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, need: OutputSpec) -> dict[str, Outputs]:
        """View → outputs; views run in the order of `need.views`, which decides their dropout masks."""
        hidden, attentions = (("full",) * wanted for wanted in (need.hidden, need.attentions))
        return self.model.outputs_by_view(batch, need.views, hidden, attentions)

    def under(self, parameters: Mapping[str, Tensor], batch: Batch, need: OutputSpec) -> dict[str, Outputs]:
        """The same with other parameters, by the model's own names."""
        lent = {f"model.{name}": tensor for name, tensor in parameters.items()}
        found: dict[str, Outputs] = functional_call(self, lent, (batch, need))
        return found
