"""The recipe for one card of 24 GB: both its runs, with tiny parts in the place of Qwen 3 and SigLIP 2."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lavis_ext.cli import main
from tests.support.processes import run_ranks
from tests.support.runs import LINEAR, require_close_weights

RECIPE = "configs/projects/blip2/train/qwen3_siglip_{}.yaml"
TINY = ["model.model_type=tiny", "model.image_size=64", "model.attention=eager", "run.device=cpu", "run.precision=no"]
BRIEF = ["run.amp=False", "run.batch_size_train=2", "run.accum_grad_iters=1", "run.num_workers=0", "run.warmup_steps=0",
         "run.max_iters=2", "run.iters_per_inner_epoch=1", "run.runner=runner_iter", "run.log_freq=1",
         "run.max_epoch=null", "run.report=False", "run.tensorboard=False", "run.job_id=a",
         "run.lr_sched=constant_lr"]  # fmt: skip
WHOLE = ["model.freeze_vit=True", "model.freeze_llm=True"]
CLOSE = [*(f"run.{key}={value}" for key, value in LINEAR.items()), "run.min_lr=0"]
"""Under which runs that sum in another order have close weights."""


def write_llava(root: Path, list_name: str, images: str, pictures: int = 4) -> None:
    """Four conversations about so many pictures, as LLaVA publishes them."""
    (root / images).mkdir(parents=True)
    (root / "llava" / "annotations").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (72, 72, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / images / f"{number}.jpg")
        seen = number < pictures
        turns = [{"from": "human", "value": "<image>\n" * seen + "What is it?"}]
        turns += [{"from": "gpt", "value": "a red circle" + " and two" * number}]
        image = {"image": f"{number}.jpg"} if seen else {}
        rows.append({"id": str(number), **image, "conversations": turns})
    (root / "llava" / "annotations" / list_name).write_text(json.dumps(rows))


def words_of(name: str, dataset: str, out: Path, *options: str) -> list[str]:
    """The command of one run of the recipe."""
    own = [f"datasets.{dataset}.vis_processor.train.image_size=64", f"run.output_dir={out}"]
    return ["train", "--cfg-path", RECIPE.format(name), "--options", *TINY, *BRIEF, *own, *options]


def train(name: str, dataset: str, out: Path, *options: str) -> Path:
    """One run of the recipe; its newest checkpoint."""
    assert main(words_of(name, dataset, out, *options)) == 0
    return newest(out)


def newest(out: Path) -> Path:
    return out / "a" / json.loads((out / "a" / "latest.json").read_text())["checkpoint"]


def one_rank(words: list[str], root: str) -> None:
    """What each of several ranks does."""
    torch.set_num_threads(1)
    os.environ["LAVIS_EXT_CACHE_ROOT"] = root
    assert main(words) == 0


def test_both_runs_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cache"
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(root))
    write_llava(root, "blip_laion_cc_sbu_558k.json", "llava/pretrain")
    write_llava(root, "llava_instruct_150k.json", "coco/images/train2017")
    first = train("pretrain", "llava_pretrain", tmp_path / "pretrain", *WHOLE)
    names = set(load_file(first / "model.safetensors"))
    assert any(name.startswith("net.qformer.") for name in names)
    assert not any(name.startswith(("net.language_model.", "net.vision_model.tower.")) for name in names)
    follow = [*WHOLE, f"model.finetuned={first}"]
    second = train("instruct", "llava_instruct_150k", tmp_path / "instruct", *follow)
    state = load_file(second / "model.safetensors")
    assert any("lora_" in name for name in state)
    # stopped after the first step, and gone on with: the same numbers
    train("instruct", "llava_instruct_150k", tmp_path / "resumed", *follow, "run.max_iters=1")
    resumed = train("instruct", "llava_instruct_150k", tmp_path / "resumed", *follow, "run.allow_config_drift=True")
    assert resumed.name == second.name
    again = load_file(resumed / "model.safetensors")
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["blip2_causal", "blip2_seq2seq"])
def test_two_ranks_are_one_with_twice_the_batch(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four conversations of other lengths one has a picture: a rank has none, and its visual parts no gradients."""
    root = tmp_path / "cache"
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(root))
    write_llava(root, "llava_instruct_150k.json", "coco/images/train2017", pictures=1)
    keys = [*CLOSE, f"model.arch={arch}", "model.lora=null", "model.freeze_llm=False", "model.loss_mean=all"]
    keys += ["model.load_finetuned=False"]
    one, two = ("instruct", "llava_instruct_150k", tmp_path / "one"), ("instruct", "llava_instruct_150k", tmp_path)
    alone = load_file(train(*one, *keys, "run.batch_size_train=4") / "model.safetensors")
    done = run_ranks(one_rank, 2, (words_of(*two, *keys, "run.batch_size_train=2"), str(root)), tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    require_close_weights(alone, load_file(newest(tmp_path) / "model.safetensors"))
