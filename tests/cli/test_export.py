"""`lavis-ext export`: what it takes, what it refuses, what it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lavis_ext.cli import main
from lavis_ext.models import load_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with one checkpoint."""
    folder = tmp_path / "job"
    (folder / "checkpoint_7").mkdir(parents=True)
    model = load_model("blip2_opt", "tiny")
    state = {name: tensor.detach().clone() for name, tensor in model.trainable_state().items()}
    save_file(state, folder / "checkpoint_7" / "model.safetensors")
    (folder / "latest.json").write_text('{"checkpoint": "checkpoint_7", "step": 7}')
    (folder / "config.yaml").write_text("model:\n  arch: blip2_opt\n  model_type: tiny\nrun:\n  task: captioning\n")
    return folder


def test_a_run_is_exported_and_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), str(tmp_path / "out.pth"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[0])
    assert told["form"] == "lavis"
    assert told["arch"] == "blip2_opt"
    assert "opt_proj.weight" in torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert "opt_proj.weight" in told["tensors"]


@pytest.mark.parametrize("form", ["lavis", "transformers"])
def test_what_is_there_is_not_overwritten(form: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "out.pth").write_text("mine")
    assert main(["export", str(run), str(tmp_path / "out.pth"), "--form", form]) == 2
    assert (tmp_path / "out.pth").read_text() == "mine"


def test_without_a_config_one_is_asked_for(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").unlink()
    out = str(tmp_path / "out.pth")
    assert main(["export", str(run), out]) == 2
    assert "--cfg-path" in capsys.readouterr().err
    assert main(["export", str(run), out, "--cfg-path", "models/blip2_opt/tiny.yaml"]) == 0


@pytest.mark.parametrize("words", [["nowhere", "out.pth"], ["", "no/folder/out.pth"]])
def test_places_that_are_not_there(words: list[str], run: Path, tmp_path: Path) -> None:
    assert main(["export", words[0] or str(run), str(tmp_path / words[1])]) == 2
