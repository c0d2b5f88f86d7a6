"""Any vision tower before the Q-Former: both stages see through it; its own processor is held against the YAML's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lavis_ext.cli import main
from lavis_ext.common.errors import ConfigError
from lavis_ext.models.towers import as_patches
from tests.support.blip2 import small_batch, small_of, small_stage1
from tests.support.speakers import speaker

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {**SMALL, "patch_size": 8},
    "siglip_vision_model": {**SMALL, "patch_size": 8},
    "siglip2_vision_model": {**SMALL, "patch_size": 8, "num_patches": 4},
    "dinov2": {**SMALL, "patch_size": 8},
    "vit": {**SMALL, "patch_size": 8},
    "convnext": {"hidden_sizes": [8, 8, 8, 24], "depths": [1, 1, 1, 1], "patch_size": 2, "image_size": 16},
}


@pytest.mark.parametrize("kind", TOWERS)
def test_both_stages_see_through_any_tower(kind: str, tmp_path: Path) -> None:
    vision = {"model_type": kind, **TOWERS[kind]}
    first, batch = small_stage1(vision=vision, freeze_vit=True), small_batch(2)
    second = speaker("qwen2", tmp_path, vision=vision, freeze_vit=True)
    for model in (first.train(), second.train()):
        loss = model(batch)["loss"]
        loss.backward()
        tower = model.net.vision_model
        assert torch.isfinite(loss)
        assert tower.post_layernorm.weight.grad is not None
        assert not any(one.requires_grad for one in tower.tower.parameters())
    own = second.net.vision_model.tower
    inputs = as_patches(batch["image"], 8) if kind == "siglip2_vision_model" else {"pixel_values": batch["image"]}
    seen = own(**inputs).last_hidden_state
    seen = seen.flatten(2).transpose(1, 2) if seen.dim() == 4 else seen
    normed = second.net.vision_model.post_layernorm(seen)
    torch.testing.assert_close(second.net.vision_model(batch["image"]).last_hidden_state, normed)
    state = first.trainable_state()
    second.load_part({**second.state_dict(), **state}, ("net.qformer.encoder.layer.0.attention.",), "here")


@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_t5", "blip2_vicuna_instruct"])
def test_every_second_stage_takes_a_tower(arch: str) -> None:
    model = small_of(arch, vision={"model_type": "siglip_vision_model", **TOWERS["siglip_vision_model"]})
    assert torch.isfinite(model(small_batch(2, text_output=["a", "b"]))["loss"])
    assert len(model.generate(small_batch(2), num_beams=1, max_length=4)) == 2


def test_a_trained_tower_of_the_first_stage_goes_to_the_second(tmp_path: Path) -> None:
    vision = {"model_type": "siglip_vision_model", **TOWERS["siglip_vision_model"]}
    first = small_stage1(3, vision=vision, cross_attention_freq=2)
    from safetensors.torch import save_file

    save_file(
        {name: one.contiguous().clone() for name, one in first.trainable_state().items()}, tmp_path / "a.safetensors"
    )
    second = speaker("qwen2", tmp_path, vision=vision, qformer_weight_path=str(tmp_path / "a.safetensors"))
    theirs, mine = first.net.state_dict(), second.net.state_dict()
    moved = [name for name in mine if name.startswith(("vision_model.", "query_tokens"))]
    assert any(name.startswith("vision_model.tower.") for name in moved)
    assert all(torch.equal(mine[name], theirs[name]) for name in moved)


def test_of_a_whole_clip_only_the_tower_is_taken(tmp_path: Path) -> None:
    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 8}
    settings = transformers.CLIPConfig(
        text_config=text, vision_config={**TOWERS["clip_vision_model"], "image_size": 16}, projection_dim=8
    )
    torch.manual_seed(0)
    whole = transformers.CLIPModel(settings)
    whole.save_pretrained(tmp_path / "clip")
    model = speaker("qwen2", tmp_path, vision=str(tmp_path / "clip"))
    images = small_batch(2)["image"]
    seen = whole.vision_model(images).last_hidden_state
    torch.testing.assert_close(model.net.vision_model.tower(images).last_hidden_state, seen)
    deeper = speaker("qwen2", tmp_path, vision=str(tmp_path / "clip"), vision_layer=-2)
    hidden = whole.vision_model(images, output_hidden_states=True).hidden_states[-2]
    wanted = deeper.net.vision_model.post_layernorm(hidden)
    torch.testing.assert_close(deeper.net.vision_model(images).last_hidden_state, wanted)


def test_pictures_of_another_size_need_to_be_wanted(tmp_path: Path) -> None:
    vision = {"model_type": "siglip_vision_model", **TOWERS["siglip_vision_model"], "image_size": 32}
    with pytest.raises(ConfigError) as caught:
        speaker("qwen2", tmp_path, vision=vision)
    assert caught.value.problems[0].where == "model.image_size"
    model = speaker("qwen2", tmp_path, vision=vision, vision_interpolate=True)
    assert torch.isfinite(model(small_batch(2))["loss"])


RUN = """
model: {{arch: blip2_causal, model_type: tiny, vision: {tower}, image_size: {size}}}
datasets:
  coco_caption:
    vis_processor:
      train: {{name: blip_image_eval, image_size: {size}}}
      eval: {{name: blip_image_eval, image_size: {size}, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}
    text_processor: {{train: {{name: blip_caption}}, eval: {{name: blip_caption}}}}
run: {{task: captioning, train_splits: [train], valid_splits: [val], max_epoch: 1}}
"""


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_the_towers_own_processor_is_held_against_the_yamls(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = [0.5, 0.5, 0.5]
    tower, path = tmp_path / "tower", tmp_path / "run.yaml"
    tower.mkdir()
    given = {"size": {"height": 64, "width": 64}, "image_mean": half, "image_std": half}
    whole = given if file == "preprocessor_config.json" else {"image_processor": given, "processor_class": "any"}
    (tower / file).write_text(json.dumps(whole))
    path.write_text(RUN.format(tower=tower, size=32))
    assert main(["check", str(path)]) == 3
    said = capsys.readouterr().out
    assert f"{path}:6 datasets.coco_caption.vis_processor.train.mean" in said
    assert "vis_processor.eval.mean" not in said
    assert "model.image_size" in said
