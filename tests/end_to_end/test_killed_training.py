"""A BLIP-2 whose training is killed and started again ends with the weights, to the bit, of one that was left alone."""

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
KILLS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment with a small prepared world."""
    base = tmp_path_factory.mktemp("killed")
    mirror = base / "mirror"
    export_world(World(seed=3, train=48, val=2, test=2, hidden=1), mirror, ["coco"])
    own = {"LAVIS_EXT_MIRROR": str(mirror), "LAVIS_EXT_CACHE_ROOT": str(base / "data"), "BASE": str(base)}
    environment = {**os.environ, **own, "HF_HUB_OFFLINE": "1"}
    prepared = start_command(["prepare", "coco_caption", "--quiet"], environment)
    prepared.join(120)
    assert prepared.exitcode == 0
    return environment


def start(world: dict[str, str], job: str, held: int) -> Any:
    """One training of thirty steps that saves every second one."""
    options = ["run.max_epoch=1", "run.batch_size_train=8", "run.save_steps=2", "run.valid_splits=[]"]
    options += ["run.test_splits=[]", "run.report=false", f"run.output_dir={world['BASE']}/runs", f"run.job_id={job}"]
    words = ["train", "--cfg-path", "configs/projects/demo/train/caption.yaml", "--options", *options]
    return start_command(words, world, held)


@pytest.mark.fault("K06")
def test_killed_and_resumed_is_left_alone(world: dict[str, str]) -> None:
    require_killed_is_left_alone(partial(start, world), Path(world["BASE"]) / "runs", KILLS)
