"""The recipe for one card of 24 GB: both its runs, with tiny parts in the place of Qwen 3 and SigLIP 2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lavis_ext.cli import main

RECIPE = "configs/projects/blip2/train/qwen3_siglip_{}.yaml"
TINY = ["model.model_type=tiny", "model.image_size=64", "model.attention=eager", "run.device=cpu", "run.precision=no"]
BRIEF = ["run.amp=False", "run.batch_size_train=2", "run.accum_grad_iters=1", "run.num_workers=0", "run.warmup_steps=0",
         "run.max_iters=2", "run.iters_per_inner_epoch=1", "run.runner=runner_iter", "run.log_freq=1",
         "run.max_epoch=null", "run.report=False", "run.tensorboard=False", "run.job_id=a",
         "run.lr_sched=constant_lr"]  # fmt: skip


def write_llava(root: Path, list_name: str, images: str) -> None:
    """Four conversations about four pictures, as LLaVA publishes them."""
    (root / images).mkdir(parents=True)
    (root / "llava" / "annotations").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (72, 72, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / images / f"{number}.jpg")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a red circle"}]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (root / "llava" / "annotations" / list_name).write_text(json.dumps(rows))


def train(name: str, dataset: str, out: Path, *options: str) -> Path:
    """One run of the recipe; its newest checkpoint."""
    size = [f"datasets.{dataset}.vis_processor.train.image_size=64"]
    words = ["train", "--cfg-path", RECIPE.format(name), "--options", *TINY, *BRIEF, *size, *options]
    assert main([*words, f"run.output_dir={out}"]) == 0
    return out / "a" / json.loads((out / "a" / "latest.json").read_text())["checkpoint"]


def test_both_runs_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cache"
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(root))
    write_llava(root, "blip_laion_cc_sbu_558k.json", "llava/pretrain")
    write_llava(root, "llava_instruct_150k.json", "coco/images/train2017")
    whole = ["model.freeze_vit=True", "model.freeze_llm=True"]
    first = train("pretrain", "llava_pretrain", tmp_path / "pretrain", *whole)
    names = set(load_file(first / "model.safetensors"))
    assert any(name.startswith("net.qformer.") for name in names)
    assert not any(name.startswith(("net.language_model.", "net.vision_model.tower.")) for name in names)
    follow = [*whole, f"model.finetuned={first}"]
    second = train("instruct", "llava_instruct_150k", tmp_path / "instruct", *follow)
    state = load_file(second / "model.safetensors")
    assert any("lora_" in name for name in state)
    # stopped after the first step, and gone on with: the same numbers
    train("instruct", "llava_instruct_150k", tmp_path / "resumed", *follow, "run.max_iters=1")
    resumed = train("instruct", "llava_instruct_150k", tmp_path / "resumed", *follow, "run.allow_config_drift=True")
    assert resumed.name == second.name
    again = load_file(resumed / "model.safetensors")
    assert all(torch.equal(again[name], state[name]) for name in state)
