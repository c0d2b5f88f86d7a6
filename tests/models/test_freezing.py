"""Frozen parts: no gradients, eval mode for good, and checkpoints that hold the rest and nothing but the rest."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavis_ext.common.errors import ConfigError, IntegrityError
from tests.support.blip2 import small_batch, small_model


def trained(**changes: bool) -> set[str]:
    """The parts with weights that train, by their first two names."""
    model = small_model(**changes)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {".".join(name.split(".")[1:3]).removesuffix(".weight").removesuffix(".bias") for name in names}


def test_what_each_key_freezes() -> None:
    rest = {
        "query_tokens",
        "qformer.layernorm",
        "qformer.encoder",
        "language_projection",
        "vision_model.post_layernorm",
    }
    assert trained(freeze_vit=True, freeze_llm=True) == rest
    assert trained(freeze_vit=True, freeze_llm=True, only_proj=True) == {"language_projection"}
    everything = rest | {"vision_model.embeddings", "vision_model.encoder", "language_model.model"}
    assert trained(freeze_vit=False, freeze_llm=False) == everything


def test_frozen_parts_stay_in_eval_mode_and_do_not_move() -> None:
    model = small_model(freeze_vit=True, freeze_llm=True, only_proj=True).train()
    for part in (model.net.vision_model, model.net.language_model, model.net.qformer):
        assert not any(module.training for module in part.modules())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.optimizer_params(0.5), lr=0.1)
    model(small_batch())["loss"].backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"net.language_projection.weight", "net.language_projection.bias"}


def test_a_thawed_part_has_dropout_in_training() -> None:
    model, batch = small_model(freeze_vit=True, freeze_llm=True).train(), small_batch()
    assert model.net.qformer.training
    assert model(batch)["loss"].item() != model(batch)["loss"].item()


def test_decay_is_for_matrices_without_a_norm_or_bias_in_their_name() -> None:
    model = small_model()
    decayed, plain = model.optimizer_params(0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(p.ndim >= 2 and "bias" not in names[id(p)] for p in decayed["params"])
    assert "net.query_tokens" in {names[id(p)] for p in decayed["params"]}
    assert any("norm" in names[id(p)] for p in plain["params"])
    frozen = small_model(freeze_vit=True, freeze_llm=True)
    held = sum(len(group["params"]) for group in frozen.optimizer_params(0.1))
    assert held == sum(p.requires_grad for p in frozen.parameters())


def test_a_checkpoint_goes_through_a_file_and_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for changes in ({"freeze_vit": False, "freeze_llm": False}, {"freeze_vit": True, "freeze_llm": True}):
        source, target = small_model(0, **changes), small_model(1, **changes)
        save_file(source.trainable_state(), tmp_path / "model.safetensors")
        state = load_file(tmp_path / "model.safetensors")
        target.load_trainable_state(state)
        assert all(torch.equal(target.trainable_state()[name], tensor) for name, tensor in state.items())
        assert not set(state) & source.frozen_names()
    assert target.net.language_model.lm_head.weight is target.net.get_input_embeddings().weight


@pytest.mark.fault("K07")
def test_frozen_names_may_be_absent_and_nothing_else() -> None:
    model = small_model(freeze_vit=True, freeze_llm=True)
    state = model.trainable_state()
    full = small_model(1).trainable_state()
    model.load_trainable_state(full)
    assert torch.equal(
        model.state_dict()["net.vision_model.embeddings.class_embedding"],
        full["net.vision_model.embeddings.class_embedding"],
    )
    for changed, word in [
        ({n: t for n, t in state.items() if n != "net.query_tokens"}, "1 missing: net.query_tokens"),
        ({**state, "net.extra": torch.zeros(1)}, "1 unexpected: net.extra"),
        ({**state, "net.query_tokens": torch.zeros(1, 9, 32)}, r"\[1, 9, 32\] for \[1, 4, 32\]"),
        ({}, "and .* more"),
    ]:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(IntegrityError, match=word):
            model.load_trainable_state(changed)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_with_nothing_to_train_says_so() -> None:
    model = small_model()
    model.require_trainable()
    model.freeze(model.net)
    with pytest.raises(ConfigError, match="frozen"):
        model.require_trainable()
    assert model.optimizer_params(0.1) == []


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_frozen_towers_in_half_precision(precision: str) -> None:
    model = small_model(freeze_vit=True, freeze_llm=True, vit_precision=precision, llm_precision=precision).train()
    assert (
        model.net.qformer.layernorm.weight.dtype == model.net.vision_model.post_layernorm.weight.dtype == torch.float32
    )
    model.net.qformer.eval()
    loss = model(small_batch())["loss"]
    loss.backward()
    exact = small_model(freeze_vit=True, freeze_llm=True)(small_batch())["loss"]
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert torch.isfinite(model.net.query_tokens.grad).all()
    assert len(model.eval().generate(small_batch(2), num_beams=2, max_length=4)) == 2
