"""`vit_model: clip_L`: the tower computes what transformers' CLIP does, and its weights have LAVIS' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import layer_norm

from lavis_ext.common.errors import IntegrityError
from lavis_ext.models.clip_tower import MARK, SIZES, from_clip, to_clip
from lavis_ext.models.network import blip2_config
from lavis_ext.models.weights import load_over, to_upstream, translate
from lavis_ext.models.zoo import default_config
from tests.support.blip2 import SIZES as SMALL
from tests.support.blip2 import small_batch, small_model, small_stage1

WIDTH, HEADS, BLOCKS = 32, 2, 2
TOWER = {**SMALL["vision_config"], "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


def small_clip() -> Any:
    """transformers' CLIP tower of the small model's sizes."""
    torch.manual_seed(3)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS}
    settings = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8, hidden_act="quick_gelu")
    clip = transformers.CLIPVisionModel(settings).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.normal_(std=0.3)
    return clip


def lavis_names(clip: Any) -> dict[str, torch.Tensor]:
    """The weights of transformers' CLIP under OpenAI's names, which LAVIS keeps."""
    tower = getattr(clip, "vision_model", clip)
    ours = tower.state_dict()
    found = {
        "class_embedding": ours["embeddings.class_embedding"],
        "positional_embedding": ours["embeddings.position_embedding.weight"],
        "conv1.weight": ours["embeddings.patch_embedding.weight"],
        "ln_pre.weight": ours["pre_layrnorm.weight"],
        "ln_pre.bias": ours["pre_layrnorm.bias"],
    }
    for block in range(BLOCKS):
        theirs, mine = f"transformer.resblocks.{block}.", f"encoder.layers.{block}."
        for kind in ("weight", "bias"):
            joint = [ours[f"{mine}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{theirs}attn.in_proj_{kind}"] = torch.cat(joint)
            found[f"{theirs}attn.out_proj.{kind}"] = ours[f"{mine}self_attn.out_proj.{kind}"]
            for number in (1, 2):
                found[f"{theirs}ln_{number}.{kind}"] = ours[f"{mine}layer_norm{number}.{kind}"]
            found[f"{theirs}mlp.c_fc.{kind}"] = ours[f"{mine}mlp.fc1.{kind}"]
            found[f"{theirs}mlp.c_proj.{kind}"] = ours[f"{mine}mlp.fc2.{kind}"]
    return {f"visual_encoder.{name}": tensor for name, tensor in found.items()}


def with_clip(build: Any = small_model, **changes: Any) -> Any:
    return build(vit_model="clip_L", sizes={**SMALL, "vision_config": TOWER}, **changes)


def test_the_tower_computes_what_clip_does() -> None:
    clip, model = small_clip(), with_clip()
    model.load_part(translate(lavis_names(clip)), ("net.vision_model.embeddings.", "net.vision_model.encoder."), "clip")
    images = small_batch(2)["image"]
    with torch.no_grad():
        seen = model.net.vision_model(images).last_hidden_state
        norm = model.net.vision_model.post_layernorm
        expected = layer_norm(clip(images).last_hidden_state, (WIDTH,), norm.weight, norm.bias, 1e-5)
    assert torch.allclose(seen, expected, atol=1e-5)


@pytest.mark.parametrize("build", [small_model, small_stage1])
def test_there_and_back_under_lavis_names(build: Any) -> None:
    model = with_clip(build)
    state = model.trainable_state()
    theirs = to_upstream(state)
    assert theirs["visual_encoder.class_embedding"].shape == (WIDTH,)
    assert theirs["visual_encoder.positional_embedding"].shape == (5, WIDTH)
    assert not any("blocks.0.norm" in name for name in theirs)
    back = translate(theirs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_an_eva_tower_is_left_alone() -> None:
    state = small_model().trainable_state()
    assert to_clip(state) == ({}, dict(state))
    assert from_clip(to_upstream(state))[0] == {}


def test_a_block_with_an_unknown_part_is_refused() -> None:
    name = "visual_encoder.transformer.resblocks.0.attn.relative"
    with pytest.raises(IntegrityError, match="relative"):
        translate({name: torch.zeros(1)})


def test_a_checkpoint_without_a_tower_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = with_clip(freeze_vit=True)
    torch.save({"model": to_upstream(model.trainable_state())}, tmp_path / "a.pth")
    load_over(model, str(tmp_path / "a.pth"), "model.finetuned")
    assert "stays random" in caplog.text


def test_it_trains() -> None:
    model = with_clip(small_stage1)
    model(small_batch())["loss"].backward()
    assert model.net.vision_model.embeddings.pre_layernorm.weight.grad.abs().sum() > 0
    assert MARK in model.trainable_state()


def test_full_size_is_clips() -> None:
    config = blip2_config(default_config("blip2", "pretrain_vitL"))
    vision = config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size) == (1024, 22, 14)
    assert config.qformer_config.encoder_hidden_size == SIZES["hidden_size"]
