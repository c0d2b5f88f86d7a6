"""The teacher of a run: where it comes from, that it fits its student, and which layers the student starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_ext.errors import ConfigError, LavisExtError, Problem
from lavis_ext.models.base import Model
from lavis_ext.objectives.terms import Term
from lavis_ext.registry import models
from lavis_ext.schema import ModelConfig
from lavis_ext.tasks.distill.mapping import start_from
from lavis_ext.tasks.distill.settings import DistillConfig, layer_pairs, whole
from lavis_ext.typed import Door
from lavis_ext.yamlio import read_yaml

WHERE = "run.distill.teacher"
POINTERS = ("best.json", "latest.json")


def build_teacher(config: DistillConfig, student: ModelConfig) -> Model:
    """The teacher without gradients, in eval mode. Raises RegistryError, and what reading its weights raises."""
    section = teacher_section(config.teacher, student)
    try:
        teacher: Model = models.get(section.arch).from_config(section)
    except LavisExtError as error:
        raise type(error).of([Problem(of_teacher(p.where), p.what, p.way_out) for p in error.problems]) from error
    return teacher.requires_grad_(False).eval()


def of_teacher(where: str) -> str:
    """A key of a model section as one of the teacher's: `model.pretrained x` → `run.distill.teacher.pretrained x`."""
    return where.replace("model", WHERE, 1) if where.startswith("model") else f"{WHERE} {where}"


def teacher_section(teacher: ModelConfig | str, student: ModelConfig) -> ModelConfig:
    """The model section of the teacher; one that names only a folder has the student's, or that of the folder's run."""
    if isinstance(teacher, ModelConfig):
        return with_labels(teacher, student)
    checkpoint = own_checkpoint(Path(teacher).expanduser())
    if checkpoint is None:
        return replace(whole(student), load_finetuned=False, finetuned=None, load_pretrained=True, pretrained=teacher)
    found = replace(section_of_run(checkpoint.parent), load_finetuned=True, finetuned=str(checkpoint))
    return with_labels(found, student)


def with_labels(teacher: ModelConfig, student: ModelConfig) -> ModelConfig:
    """The teacher's section with as many classes as its student has, where classes count and it says no other."""
    if getattr(teacher, "num_labels", 0) is not None:
        return teacher
    labels: dict[str, Any] = {"num_labels": getattr(student, "num_labels", None)}
    return replace(teacher, **labels)


def own_checkpoint(place: Path) -> Path | None:
    """The checkpoint of ours that a folder is, or the best (else newest) of the run that it is; None: neither."""
    if (place / "manifest.json").is_file():
        return place
    for pointer in POINTERS:
        if (place / pointer).is_file():
            named = place / str(json.loads((place / pointer).read_text(encoding="utf-8")).get("checkpoint", ""))
            if (named / "manifest.json").is_file():
                return named
    return None


def section_of_run(folder: Path) -> ModelConfig:
    """The model section of a run's `config.yaml`; raises ConfigError."""
    path = folder / "config.yaml"
    if not path.is_file():
        what = f"{folder} has no config.yaml that says what model the checkpoint is of"
        raise ConfigError(WHERE, what, "give a model section with load_finetuned and finetuned")
    tree, places = read_yaml(path)
    door = Door(places, lenient=True)  # it was sound when it was written
    section = door.build(ModelConfig, tree.get("model") or {}, "model")
    door.close()
    assert section is not None
    return section


def misfits(student: Model, teacher: Model, terms: list[Term]) -> Iterator[Problem]:
    """Why this teacher cannot teach this student by these terms."""
    for who, model in (("student", student), ("teacher", teacher)):
        if type(model).outputs is Model.outputs:
            yield Problem("model.arch", f"a {type(model).__name__} cannot be distilled", "name one that can, as oscar")
        lacking = sorted({view for term in terms for view in term.views} - set(model.views))
        if lacking:
            what = f"the {who}, a {type(model).__name__}, has no view '{lacking[0]}'"
            yield Problem("run.distill.kd_weights", what, f"its views: {', '.join(model.views)}; or use vanilla_kd")
    mine, theirs = (getattr(model, "config", None) for model in (student, teacher))
    labels = [getattr(config, "num_labels", None) for config in (mine, theirs)]
    if None not in labels and labels[0] != labels[1]:
        what = f"knows {labels[1]} labels, the student {labels[0]}"
        yield Problem(WHERE, what, "take a teacher that was trained for this data set")


def start_student(student: Model, teacher: Model, config: DistillConfig) -> None:
    """Put layers that `student_init` names into the student: the teacher's, with all outside them, or pretrained's."""
    kind = config.student_init
    if kind == "none":
        return
    origin, _, strategy = kind.rpartition("-")
    source = teacher if origin == "teacher" else whole_pretrained(student)
    pairs = layer_pairs(strategy, len(student.encoder_layers()), len(source.encoder_layers()))
    start_from(student, source, pairs, everything=origin == "teacher")


def whole_pretrained(student: Model) -> Model:
    """The model that the student's pretrained weights are of, with all its layers."""
    section: ModelConfig = student.config  # type: ignore[assignment]
    found: Model = models.get(section.arch).from_config(replace(whole(section), load_finetuned=False, finetuned=None))
    return found


@torch.no_grad()
def digest(model: Model) -> str:
    """SHA-256 over the names, types, shapes and bytes of all tensors of a model."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(raw(tensor))
    return found.hexdigest()


def raw(tensor: Tensor) -> Any:
    """The bytes of a tensor, in C order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
