"""Weights that leave: under upstream's names and in transformers' form, and back again without a difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lavis_ext.common.errors import ConfigError, DiskError, IntegrityError
from lavis_ext.models.base_model import BaseModel
from lavis_ext.models.export import export_transformers, export_upstream
from lavis_ext.models.settings import LoraConfig
from lavis_ext.models.weights import load_over
from lavis_ext.models.zoo import default_config
from tests.support.blip2 import CONFIG, small_batch, small_model


def kept(model: BaseModel, path: Path) -> str:
    """A checkpoint's tensors."""
    save_file({name: tensor.detach().clone() for name, tensor in model.trainable_state().items()}, path)
    return str(path)


@pytest.mark.parametrize("form", ["lavis", "vpgtrans"])
def test_upstream_and_back(form: str, tmp_path: Path) -> None:
    model = small_model(3)
    done = export_upstream(kept(model, tmp_path / "a.safetensors"), tmp_path / "out.pth", "blip2_opt", form)
    assert done.parts["opt_proj"] == (2, 32 * 32 + 32)
    assert done.left == []
    assert set(torch.load(tmp_path / "out.pth", weights_only=True)["model"]) == set(done.shapes)
    other = small_model(8)
    load_over(other, str(tmp_path / "out.pth"), "model.finetuned")
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_upstream_files_can_be_exported_again(tmp_path: Path) -> None:
    export_upstream(kept(small_model(3), tmp_path / "a.safetensors"), tmp_path / "one.pth", "blip2_opt", "lavis")
    export_upstream(str(tmp_path / "one.pth"), tmp_path / "two.pth", "blip2_llama", "vpgtrans")
    names = set(torch.load(tmp_path / "two.pth", weights_only=True)["model"])
    assert "llama_proj.weight" in names


def test_transformers_form_and_back(tmp_path: Path) -> None:
    model = small_model(3)
    weights = kept(model, tmp_path / "a.safetensors")
    done = export_transformers(replace(CONFIG, load_finetuned=True, finetuned=weights), tmp_path / "folder")
    assert done.left == []
    found = small_model(9, pretrained=str(tmp_path / "folder"), sizes={}, tokenizer=None)
    assert found(small_batch())["loss"].item() == pytest.approx(model(small_batch())["loss"].item(), abs=1e-6)
    assert not list(tmp_path.glob(".*.part"))


def test_a_first_stage_leaves_what_has_no_place(tmp_path: Path) -> None:
    done = export_transformers(default_config("blip2", "tiny"), tmp_path / "folder")
    assert "temp" in done.left
    assert "lm_head.bias" in done.left
    assert (tmp_path / "folder" / "model.safetensors").is_file()


def test_adapters_are_merged(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    changes = {"freeze_llm": True, "lora": LoraConfig(r=2, dropout=0.0)}
    model = small_model(3, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    weights = kept(model, tmp_path / "a.safetensors")
    with pytest.raises(IntegrityError, match="no name in LAVIS"):
        export_upstream(weights, tmp_path / "out.pth", "blip2_opt", "lavis")
    torch.manual_seed(3)  # the frozen language model of `model`
    export_transformers(replace(CONFIG, **changes, load_finetuned=True, finetuned=weights), tmp_path / "folder")
    found = small_model(9, pretrained=str(tmp_path / "folder"), sizes={}, tokenizer=None)
    assert found(small_batch())["loss"].item() == pytest.approx(model(small_batch())["loss"].item(), abs=1e-5)


def test_what_upstream_has_not_is_refused(tmp_path: Path) -> None:
    weights = kept(small_model(3), tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="VPGTrans has no blip2_t5"):
        export_upstream(weights, tmp_path / "out.pth", "blip2_t5", "vpgtrans")
    with pytest.raises(ConfigError, match="no network"):
        export_transformers(default_config("vpgtrans_projector", "tiny"), tmp_path / "folder")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    weights = kept(small_model(3), tmp_path / "a.safetensors")
    with pytest.raises(DiskError):
        export_upstream(weights, tmp_path / "no" / "out.pth", "blip2_opt", "lavis")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        export_transformers(replace(CONFIG, load_finetuned=True, finetuned=weights), tmp_path / "file" / "folder")
