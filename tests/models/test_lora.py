"""Adapters on the language model: nothing changes at first, they alone learn and are saved of it, and come back."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.errors import ConfigError
from lavis_ext.models.settings import LoraConfig
from lavis_ext.models.weights import load_over
from tests.support.blip2 import small_batch, small_model, small_of

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
LORA = LoraConfig(r=2, alpha=4, dropout=0.5)
FAMILIES = ["blip2_opt", "blip2_llama", "blip2_vicuna", "blip2_t5"]


def adapted(arch: str = "blip2_opt", **keys: Any) -> Any:
    return small_of(arch, **{"freeze_llm": True, "lora": LORA, **keys})


def adapters(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if "lora_" in name}


def saved(model: Any, folder: Path) -> str:
    folder.mkdir()
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.trainable_state().items()}
    save_file(state, folder / "model.safetensors")
    return str(folder)


@needs_peft
@pytest.mark.parametrize("arch", FAMILIES)
def test_of_the_language_model_they_alone_learn(arch: str) -> None:
    model = adapted(arch).train()
    torch.manual_seed(0)
    model(small_batch())["loss"].backward()
    language = {n: p for n, p in model.named_parameters() if n.startswith("net.language_model.")}
    learning = {name for name, parameter in language.items() if parameter.requires_grad}
    assert learning == set(adapters(model))
    assert learning
    assert any(language[name].grad.abs().sum() > 0 for name in learning if "lora_B" in name)
    kept = {name for name in model.trainable_state() if name.startswith("net.language_model.")}
    assert kept == learning
    assert isinstance(model.eval().generate(small_batch(1), num_beams=2, max_length=4)[0], str)


@needs_peft
def test_at_first_nothing_changes() -> None:
    plain, model = small_model(freeze_llm=True), adapted()
    names = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, names[name]) for name, tensor in plain.state_dict().items())
    with torch.no_grad():
        assert model(small_batch())["loss"].item() == pytest.approx(plain(small_batch())["loss"].item(), abs=1e-6)


@needs_peft
def test_their_dropout_follows_train_and_nothing_else_of_the_language_model() -> None:
    model = adapted().train()
    training = [name for name, part in model.net.language_model.named_modules() if part.training]
    assert training
    assert all("lora_" in name for name in training)
    model.eval()
    assert not any(part.training for part in model.modules())


@needs_peft
def test_in_fp32_on_a_half_precision_language_model() -> None:
    model = adapted(llm_precision="bf16").train()
    assert {tensor.dtype for tensor in adapters(model).values()} == {torch.float32}
    model(small_batch())["loss"].backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in adapters(model).values())


@needs_peft
def test_a_checkpoint_brings_them_back(tmp_path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        for tensor in adapters(model).values():
            tensor.normal_()
    path, other = saved(model, tmp_path / "checkpoint_1"), adapted()
    load_over(other, path, "model.finetuned")
    assert all(torch.equal(tensor, adapters(other)[name]) for name, tensor in adapters(model).items())


@needs_peft
@pytest.mark.parametrize("freeze", [True, False])
def test_a_checkpoint_from_before_there_were_any(freeze: bool, tmp_path: Path) -> None:
    before = small_model(seed=3, freeze_llm=freeze)
    model = adapted()
    fresh = {name: tensor.clone() for name, tensor in adapters(model).items()}
    load_over(model, saved(before, tmp_path / "checkpoint_1"), "model.finetuned")
    assert torch.equal(model.net.query_tokens, before.net.query_tokens)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in adapters(model).items())
    if not freeze:
        with torch.no_grad():
            assert model(small_batch())["loss"].item() == pytest.approx(before(small_batch())["loss"].item(), abs=1e-6)


@needs_peft
def test_layers_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="nothing"):
        adapted(lora=LoraConfig(target_modules=["nothing"]))


@pytest.mark.parametrize(("key", "value"), [("r", 0), ("dropout", 1.0), ("alpha", -1)])
def test_what_cannot_be(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"model\.lora\.{key}: {value} is out of its range"):
        load_config("projects/blip2/train/caption_coco_ft.yaml", [f"model.lora.{key}={value}"])


def test_only_on_a_frozen_language_model_of_the_second_stage() -> None:
    with pytest.raises(ConfigError, match="freeze_llm is False"):
        small_model(freeze_llm=False, lora=LORA)
    with pytest.raises(ConfigError, match=r"model\.lora: is not read here; .*blip2_opt"):
        load_config("projects/blip2/train/pretrain_stage1.yaml", ["model.lora.r=4"])


def test_peft_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", {}.get)
    with pytest.raises(ConfigError, match=r"lavis_ext\[lora\]"):
        small_model(freeze_llm=True, lora=LORA)


def test_from_the_options_of_a_run() -> None:
    run = "blip2/train/caption_coco_ft.yaml"
    config = load_config(f"projects/{run}", ["model.lora.r=4", "model.lora.target_modules=[fc1]"])
    assert config.model
    assert config.model.lora == LoraConfig(r=4, target_modules=["fc1"])
    with pytest.raises(ConfigError, match="alpha"):
        load_config(f"projects/{run}", ["model.lora.alpa=4"])
