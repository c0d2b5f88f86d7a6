"""`evaluate` with `inference_method: rank` on the drawn world: every answer is one of the data set's list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavis_ext.cli import main
from lavis_ext.demo.world import World
from tests.world.export import export_world

WORLD = World(seed=5, train=8, val=4, test=2, hidden=2)
RUN = """
model: {arch: blip2_opt, model_type: tiny}
datasets:
  aok_vqa:
    vis_processor:
      train: {name: blip_image_eval, image_size: 64}
      eval: {name: blip_image_eval, image_size: 64}
    text_processor:
      train: {name: blip_question}
      eval: {name: blip_question}
run:
  task: aok_vqa
  test_splits: [val]
  device: cpu
  num_workers: 0
  batch_size_eval: 8
  prompt: "Question: {} Short answer:"
  inference_method: rank
  num_ans_candidates: 4
"""


@pytest.mark.slow
def test_answers_come_from_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_world(WORLD, tmp_path / "mirror", ["aokvqa", "coco"])
    monkeypatch.setenv("LAVIS_EXT_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "cache"))
    assert main(["prepare", "aokvqa", "--split", "val", "--quiet"]) == 0
    (tmp_path / "run.yaml").write_text(RUN)
    options = [f"run.output_dir={tmp_path / 'out'}", "run.job_id=job"]
    assert main(["evaluate", "--cfg-path", str(tmp_path / "run.yaml"), "--options", *options]) == 0
    job = tmp_path / "out" / "job"
    said = json.loads((job / "result" / "val_vqa_result.json").read_text())
    lists = [json.loads(file.read_text()) for file in (tmp_path / "cache").rglob("*vocab*.json")]
    assert lists
    assert said
    assert {row["pred_ans"] for row in said} <= set(lists[0])
    assert json.loads((job / "result" / "val_epochtest_recipe.json").read_text())["inference_method"] == "rank"
    assert set(json.loads((job / "evaluate.json").read_text())["val"]) >= {"overall", "agg_metrics"}
    assert "Answers on val" in (job / "report.html").read_text()
