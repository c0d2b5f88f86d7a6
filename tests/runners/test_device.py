"""What a run section and accelerate's configuration say about devices, precision and FSDP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.runners.device import build_accelerator, choose_cpu, choose_precision
from lavis_ext.runners.distributed import (
    blocks,
    clip_gradients,
    full_state_dict,
    gradient_norm,
    unsharded,
    wants_fsdp,
    wrap,
)
from lavis_ext.runners.microbatch import StepModule
from tests.support.toys import ToyModel, ToyTask, toy_run


def run(**keys: Any) -> RunConfig:
    return toy_run(Path("out"), **keys)


@pytest.mark.parametrize(
    ("keys", "use_cpu", "precision"),
    [
        ({}, True, "no"),
        ({"amp": True}, True, "bf16"),
        ({"amp": True}, False, "fp16"),
        ({"amp": True, "parallel": "fsdp"}, False, "bf16"),
        ({"precision": "bf16"}, False, "bf16"),
    ],
)
def test_precision(keys: dict[str, Any], use_cpu: bool, precision: str) -> None:
    assert choose_precision(run(**keys), use_cpu) == precision


def test_accelerate_is_asked_where_the_run_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert choose_precision(run(), False) == "bf16"
    assert choose_precision(run(precision="no"), False) == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ConfigError, match="fp8"):
        choose_precision(run(), False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert choose_cpu("auto")


@pytest.mark.parametrize("keys", [{"precision": "fp16", "parallel": "fsdp"}])
def test_fp16_is_refused_under_fsdp(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="bf16"):
        choose_precision(run(**keys), False)


def test_fsdp_is_asked_for_by_the_run_or_by_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wants_fsdp(run(parallel="fsdp"))
    assert not wants_fsdp(run())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert wants_fsdp(run())
    assert not wants_fsdp(run(parallel="ddp"))
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ConfigError, match="OFFLOAD"):
        wants_fsdp(run())


def test_accelerates_accumulation_does_not_divide_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    accelerator = build_accelerator(run())
    weight = nn.Parameter(torch.ones(1))
    accelerator.backward(weight.sum())
    assert weight.grad is not None
    assert weight.grad.item() == 1.0


def test_every_rank_loads_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    build_accelerator(run())
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_gradients_of_parts_and_of_the_rest_are_one_norm() -> None:
    def with_gradient(value: float) -> nn.Parameter:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.full((2,), value)
        return parameter

    parameters = [with_gradient(3.0), with_gradient(4.0), nn.Parameter(torch.zeros(5))]
    norm = gradient_norm(parameters)
    assert norm.item() == pytest.approx((2 * 9 + 2 * 16) ** 0.5)
    parameters[1].device_mesh = None  # as a sharded one has: the two kinds are added up by themselves
    assert gradient_norm(parameters).item() == pytest.approx((2 * 9 + 2 * 16) ** 0.5)
    clip_gradients(parameters, 1.0, norm.item())
    assert gradient_norm(parameters).item() == pytest.approx(1.0, rel=1e-4)
    assert gradient_norm(parameters[2:]).item() == 0.0


def test_one_process_shards_nothing() -> None:
    accelerator = build_accelerator(run())
    module = StepModule(ToyTask(ToyModel(), run()))
    wrapped = wrap(module, run(parallel="fsdp"), accelerator)
    with unsharded(wrapped):
        assert all(type(p) is nn.Parameter for p in wrapped.parameters())
    assert module(None) == {}


def test_blocks_are_the_members_of_the_outermost_lists() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    tree = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"tower": nn.ModuleList([Block(), nn.ReLU(), Block()])}))
    assert [type(block).__name__ for block in blocks(tree)] == ["Block", "Block"]


def test_state_that_is_not_kept_is_not_copied() -> None:
    tree = {"state": {0: {"exp_avg": torch.ones(3), "step": 2}}, "groups": [{"lr": 0.1}]}
    kept, left = full_state_dict(tree, keep=True), full_state_dict(tree, keep=False)
    assert kept["state"][0]["exp_avg"].tolist() == [1, 1, 1]
    assert left["state"][0]["exp_avg"].numel() == 0
    assert left["groups"] == [{"lr": 0.1}]
