"""An Oscar whose fine-tuning on VQA is killed and started again ends with the weights of one that was left alone."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.demo.world import World
from tests.support.killing import require_killed_is_left_alone
from tests.support.processes import start_command
from tests.world.export import export_world

pytestmark = pytest.mark.slow
KILLS = 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment with a small prepared world."""
    base = tmp_path_factory.mktemp("killed_oscar")
    export_world(World(seed=3, train=12, val=2, test=2, hidden=1), base / "mirror", ["oscar"])
    own = {"LAVIS_EXT_MIRROR": str(base / "mirror"), "LAVIS_EXT_CACHE_ROOT": str(base / "data"), "BASE": str(base)}
    environment = {**os.environ, **own, "HF_HUB_OFFLINE": "1"}
    prepared = start_command(["prepare", "oscar_vqa", "oscar/base-vg-labels", "--quiet"], environment)
    prepared.join(120)
    assert prepared.exitcode == 0
    return environment


def start(world: dict[str, str], job: str, held: int) -> Any:
    """One fine-tuning of some twenty steps, with dropout, that saves every second one."""
    options = ["model.model_type=tiny", "model.load_pretrained=false", "model.pretrained=null", "model.drop_out=0.1"]
    options += ["run.max_epoch=2", "run.batch_size_train=4", "run.save_steps=2", "run.valid_splits=[]"]
    options += ["run.test_splits=[]", "run.report=false", f"run.output_dir={world['BASE']}/runs", f"run.job_id={job}"]
    words = ["train", "--cfg-path", "configs/projects/oscar/finetune/vqa.yaml", "--options", *options]
    return start_command(words, world, held)


def test_killed_and_resumed_is_left_alone(world: dict[str, str]) -> None:
    require_killed_is_left_alone(partial(start, world), Path(world["BASE"]) / "runs", KILLS)
