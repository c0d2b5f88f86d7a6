"""`lavis-ext config show`: each value with the line, the option, the variable or the default that it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavis_ext.cli import main

RUN = """\
model:
  arch: blip2_opt
  model_type: tiny
datasets:
  coco_caption:
    weight: 2
run:
  task: captioning
  max_epoch: 3
  seed: 7
  train_splits: [train]
  output_dir: ${oc.env:WHERE_RUNS_GO}
"""


def origins(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[object, str]]:
    assert main(["config", "show", *words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]
    return {row["key"]: (row["value"], row["origin"]) for row in rows}


def test_each_value_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    monkeypatch.setenv("WHERE_RUNS_GO", "/secret/place")
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path))
    found = origins([str(file), "--options", "run.seed=9", "model.lora.r=4"], capsys)
    assert found["run.max_epoch"] == (3, f"{file}:9")
    assert found["run.seed"] == (9, "--options")
    assert found["model.lora.r"] == (4, "--options")
    assert found["run.init_lr"][1] == "default"
    assert found["datasets.coco_caption.weight"] == (2.0, f"{file}:6")
    assert "configs/datasets/coco" in found["datasets.coco_caption.builder"][1]
    assert any("configs/models/blip2_opt/tiny.yaml:" in origin for _, origin in found.values())
    assert found["run.output_dir"] == ("${oc.env:WHERE_RUNS_GO}", f"{file}:12, environment WHERE_RUNS_GO")
    assert found["env.cache_root"] == (str(tmp_path), "LAVIS_EXT_CACHE_ROOT")
    given = origins([str(file), "--given"], capsys)
    assert "run.max_epoch" in given and "default" not in {origin for _, origin in given.values()}


def test_the_settings_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("LAVIS_EXT_MIRROR", "http://user:CANARY@mirror.example")
    found = origins([], capsys)
    assert found["env.cache_root"] == (str(tmp_path), "LAVIS_EXT_CACHE_ROOT")
    assert "mirror.example" in str(found["LAVIS_EXT_MIRROR"][0]) and "CANARY" not in str(found)
    found = origins(["--options", "env.cache_root=/elsewhere"], capsys)
    assert found["env.cache_root"] == ("/elsewhere", "--options")


def test_mistakes_are_those_of_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(RUN.replace("max_epoch", "max_epohc").replace("${oc.env:WHERE_RUNS_GO}", "x"))
    assert main(["config", "show", str(tmp_path / "run.yaml")]) == 3
    assert "did you mean 'max_epoch'" in capsys.readouterr().err
    assert main(["config", "show", "absent.yaml"]) == 2
    assert main(["config"]) == 2
