"""BLIP-2 as student and teacher: the tokens to learn are the rows that are compared."""

from __future__ import annotations

import pytest
import torch

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import models
from lavis_ext.distill.task import Distill
from lavis_ext.models.base_model import BaseModel
from tests.support.blip2 import small_batch, small_model, small_of
from tests.support.distilling import run_section


def distilled(student: BaseModel, teacher: BaseModel, **keys: object) -> Distill:
    section = {"task": "captioning", "terms": ["vanilla_kd"], "student_init": "none", **keys}
    return Distill(student.eval(), run_section(**section), teacher.requires_grad_(False).eval())


@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_llama", "blip2_t5"])
def test_losses_of_outputs_are_the_models_own(arch: str) -> None:
    model = small_of(arch)
    batch = small_batch()
    found = model.outputs(batch)
    assert found.logits.shape[0] == found.extra["labels"].shape[0]
    assert float(model.losses(found, batch)["loss"].detach()) == pytest.approx(
        float(model(batch)["loss"].detach()), rel=1e-5
    )


@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_t5"])
def test_a_step_is_half_its_own_loss_and_half_the_teachers(arch: str) -> None:
    student, teacher, batch = small_of(arch), small_of(arch, seed=1), small_batch()
    told = distilled(student, teacher, temperature=2.0).step(batch)
    with torch.no_grad():
        p = (teacher.outputs(batch).logits.double() / 2).softmax(-1)
        q = (student.outputs(batch).logits.double() / 2).softmax(-1)
        kd = 4 * float((p * (p / q).log()).sum(-1).mean())
        own = float(student.losses(student.outputs(batch), batch)["loss"])
    assert float(told["loss"].detach()) == pytest.approx(0.5 * own + 0.5 * kd, rel=1e-4)
    assert float(told["loss_vanilla_kd"].detach()) == pytest.approx(kd, rel=1e-4)
    assert "teacher_distance" in told


def test_a_teacher_moves_where_its_student_learns() -> None:
    student, teacher = small_model(freeze_llm=True), small_model(1, freeze_llm=True)
    task = distilled(student, teacher, teacher_update="reptile", strategy="first", meta_lr=1.0, inner_lr=0.0)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    task.step(small_batch())
    mine = dict(student.named_parameters())
    for name, parameter in teacher.named_parameters():
        assert torch.equal(parameter, mine[name] if mine[name].requires_grad else before[name]), name


def test_views_and_states_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match="no view 'image'"):
        distilled(small_model(), small_model(1), terms=["mkd"])
    with pytest.raises(ConfigError, match="the logits of the full view"):
        distilled(small_model(), small_model(1), terms=["tinybert"]).step(small_batch())


def test_a_model_without_outputs_is_refused() -> None:
    stage1 = models.get("blip2")
    assert stage1.outputs is BaseModel.outputs
