"""The way without a stub: the real engine prepares what was exported, and the whole demo runs the real verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.resolve import load_config
from lavis_ext.demo.mirror import serve
from lavis_ext.demo.tour import EVALUATE, TRAIN, run_demo
from lavis_ext.demo.world import World
from lavis_ext.prepare import PrepareOptions, prepare
from tests.support.processes import verb_in_a_fork
from tests.world.export import export_world

SMALL = World(seed=1, train=12, val=4, test=4, hidden=2)


def test_prepare_takes_the_mirror_from_the_server(tmp_path: Path) -> None:
    export_world(SMALL, tmp_path / "mirror")
    with serve(tmp_path / "mirror") as url:
        report = prepare(["coco"], PrepareOptions(cache_root=tmp_path / "cache", mirror=url))
    assert report.exit_code == 0
    root = tmp_path / "cache" / "coco"
    rows = json.loads((root / "annotations" / "coco_karpathy_train.json").read_text())
    assert len(rows) == 12 * 5
    assert all((root / "images" / row["image"]).is_file() for row in rows)


@pytest.mark.parametrize("path", [TRAIN, EVALUATE])
def test_run_files_are_sound_and_never_mirror_a_picture(path: str) -> None:
    config = load_config(path)
    processors = config.datasets["coco_caption"].vis_processor
    assert config.run.task == "captioning" and config.run.test_splits == ["test"]
    assert processors.eval is not None and config.model is not None
    assert processors.eval.args["image_size"] == config.model.image_size
    if path == TRAIN:
        # blip2_image_train and blip_image_train flip: "to the left of" would become untrue.
        assert processors.train is not None and processors.train.name == "clip_image_train"


@pytest.mark.slow
def test_the_whole_demo_through_the_real_verbs(tmp_path: Path) -> None:
    how: dict[str, Any] = {"world": SMALL, "options": ("run.max_epoch=1",), "command": verb_in_a_fork}
    result = run_demo(tmp_path / "demo", **how)
    assert result.report.is_file() and len(result.examples) == 3
    assert result.trained["CIDEr"] >= 0
    again = run_demo(tmp_path / "demo", **how)
    assert [stage.name for stage in again.stages if stage.reused] == ["draw", "untrained", "train"]
    assert again.trained == result.trained
