"""LAVIS' loading functions, and the YAML of every model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lavis_ext.common.config.resolve import config_roots, model_defaults, model_files
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import models
from lavis_ext.models import default_config, load_model, load_model_and_preprocess, load_preprocess, model_zoo
from lavis_ext.models.network import is_offline

TYPES = [(arch, kind) for arch, types in model_files().items() for kind in types]


@pytest.mark.parametrize(("arch", "kind"), TYPES)
def test_every_model_yaml_is_typed_and_its_names_resolve(arch: str, kind: str) -> None:
    config = default_config(arch, kind)
    assert (config.arch, config.model_type) == (arch, kind)
    assert arch in models
    named = config.get("llm") or config.get("source_llm")
    assert bool(config.pretrained) or bool(config.sizes and config.tokenizer) or bool(named)
    preprocess = model_defaults(arch, kind)[1]
    if arch == "oscar":  # its data sets encode texts and have features for images
        assert not preprocess
        return
    vis, text = load_preprocess(preprocess)
    assert all(vis[split].image_size == config.image_size for split in ("train", "eval"))
    assert text["train"]("A Dog.") == "a dog"


def test_the_tiny_model_with_its_processors() -> None:
    torch.manual_seed(0)
    model, vis, text = load_model_and_preprocess("blip2_opt", "tiny", is_eval=True)
    assert not model.training
    image = torch.zeros(1, 3, 64, 64)
    assert len(model.generate({"image": image}, num_beams=2, max_length=4)) == 1
    assert set(vis) == set(text) == {"train", "eval"}


def test_a_checkpoint_over_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = load_model("blip2_opt", "tiny")
    save_file(source.trainable_state(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    found = load_model("blip2_opt", "tiny", checkpoint=str(tmp_path))
    assert all(torch.equal(t, found.state_dict()[n]) for n, t in source.state_dict().items())


def test_unknown_names_say_the_nearest() -> None:
    with pytest.raises(ConfigError, match="blip2_opt"):
        load_model("blip2_op", "tiny")
    with pytest.raises(ConfigError, match="tiny"):
        load_model("blip2_opt", "tinny")


def test_without_processors_items_stay_as_they_are() -> None:
    vis, text = load_preprocess({"vis_processor": None})
    assert vis["train"]("x") == text["eval"]("x") == "x"


def test_the_zoo_lists_without_torch() -> None:
    assert ("blip2_opt", sorted(model_files()["blip2_opt"])) in list(model_zoo)
    assert len(model_zoo) == len(TYPES)
    lines = str(model_zoo).splitlines()
    assert lines[0].startswith("Architectures")
    assert any("blip2_opt" in line and "tiny" in line for line in lines)
    code = "import sys; from lavis_ext import model_zoo; str(model_zoo); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=config_roots()[-1].parent).returncode == 0


def test_the_tiny_tokenizer_reads_any_text_and_knows_its_marks() -> None:
    tokenizer = load_model("blip2_opt", "tiny").text.tokenizer
    for text in ("a red circle\n", "Привет, 日本 🙂", "naïve\tcafé"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer(" a red circle to the left of a blue square", add_special_tokens=False)["input_ids"]) == 10


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("yes", True), ("0", False), ("false", False), ("", False)]
)
def test_the_hub_is_offline_as_fetching_is(value: str, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAVIS_EXT_MIRROR", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAVIS_EXT_OFFLINE", value)
    assert is_offline() is offline
