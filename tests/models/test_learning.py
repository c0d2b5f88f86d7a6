"""The tiny model learns what it is shown, under the schedule-free half of what a run does."""

from __future__ import annotations

import pytest
import torch

from lavis_ext.demo.coco import draw
from lavis_ext.demo.world import World
from lavis_ext.models import load_model_and_preprocess


@pytest.mark.slow
def test_four_pictures_are_learnt_by_heart() -> None:
    torch.manual_seed(0)
    model, vis, text = load_model_and_preprocess("blip2_opt", "tiny")
    scenes = list(World(train=4).scenes("train"))
    batch = {
        "image": torch.stack([vis["train"](draw(scene)) for scene in scenes]),
        "text_input": [text["train"](scene.captions()[0]) for scene in scenes],
    }
    optimizer = torch.optim.AdamW(model.train().optimizer_params(0.05), lr=1.5e-3)
    for _ in range(70):
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert model.eval().generate(batch, num_beams=3, max_length=24) == batch["text_input"]
