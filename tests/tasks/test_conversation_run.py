"""A tiny model is trained on conversations of the drawn world, killed, and resumed to the same numbers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lavis_ext.cli import main
from lavis_ext.common.config.check import check_file
from tests.support import families
from tests.support.processes import start_command
from tests.support.server import wait_until

CFG = "configs/projects/demo/train/conversation.yaml"
QUICK = ["run.max_epoch=4", "run.batch_size_train=1", "run.batch_size_eval=2", "run.num_workers=0", "run.log_freq=1"]
QUICK += ["run.save_freq=1", "run.warmup_steps=2", "run.num_beams=1", "run.max_len=4", "run.max_generated=2"]


def options(tmp_path: Path, job: str) -> list[str]:
    out = f"run.output_dir={tmp_path / 'runs'}"
    return ["--cfg-path", CFG, "--options", *QUICK, f"env.cache_root={tmp_path}", out, f"run.job_id={job}"]


def log_of(folder: Path) -> list[dict[str, object]]:
    clocked = {"samples_per_s", "data_wait", "peak_memory_mb"}
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in clocked} for line in lines]


def test_killed_and_resumed_it_ends_the_same(tmp_path: Path) -> None:
    assert check_file(Path(CFG)) == []
    families.vqav2(tmp_path)
    assert main(["train", *options(tmp_path, "whole")]) == 0
    whole, cut = tmp_path / "runs/whole", tmp_path / "runs/cut"
    process = start_command(["train", *options(tmp_path, "cut")], os.environ, held=1)
    assert wait_until(lambda: not process.is_alive() or (cut / "latest.json").exists(), 120)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert main(["train", *options(tmp_path, "cut")]) == 0
    assert log_of(cut) == log_of(whole)
    names = [json.loads((folder / "latest.json").read_text())["checkpoint"] for folder in (whole, cut)]
    one, other = (
        load_file(folder / name / "model.safetensors") for folder, name in zip((whole, cut), names, strict=True)
    )
    assert one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)

    losses = [line["metrics"]["loss"] for line in log_of(whole) if line["kind"] == "eval"]  # type: ignore[index]
    assert len(losses) == 4 and losses[-1] < losses[0]
    said = json.loads((whole / "result/val_epoch3.json").read_text())
    assert [one["sample_id"] for one in said] == ["coco_vqa/val#0", "coco_vqa/val#1"]
    assert all(one["conversations"][-1]["role"] == "user" and one["reference"] == "net" for one in said)
    page = (whole / "report.html").read_text()
    assert page.count('<ol class="chat">') == 2


def test_a_model_of_single_questions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families.vqav2(tmp_path)
    model = ["model.arch=blip2_opt", "model.model_type=tiny"]
    words = options(tmp_path, "other")
    assert main(["train", *words, *model]) == 3
    assert "run.task" in capsys.readouterr().err
