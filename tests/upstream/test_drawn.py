"""LAVIS' and VPGTrans' code on weights that are drawn by their names: `drawn.json` has what it gave, and no weights.

Made with LAVIS main (506965b) and VPGTrans (32e885c) over transformers 4.33: tower of 2 blocks, 32 wide; Q-Former and
language models of 2 layers; the hardest negative in the place of a drawn one; pads of LLaMA on the left.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from lavis_ext.models import language, stage1
from lavis_ext.models.network import load_tokenizer
from lavis_ext.models.settings import Blip2Config, Blip2LlamaConfig, Blip2OptConfig, Blip2T5Config
from lavis_ext.models.weights import load_over, to_upstream
from lavis_ext.models.zoo import build_model
from tests.upstream.reference import SUMS
from tests.upstream.test_numbers import Record, compare

GIVEN: dict[str, Any] = json.loads((Path(__file__).parent / "drawn.json").read_text(encoding="utf-8"))
WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
EVEN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QFORMER = {**WIDE, **EVEN, "max_position_embeddings": 64, "cross_attention_frequency": 1}
OPT = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
LLAMA = {**WIDE, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False}
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "opt": (
        Blip2OptConfig,
        {"arch": "blip2_opt", "freeze_llm": False},
        {"text_config": {**OPT, "max_position_embeddings": 128, "dropout": 0.0, "attention_dropout": 0.0}},
    ),
    "t5": (
        Blip2T5Config,
        {"arch": "blip2_t5", "freeze_llm": False},
        {
            "text_config": {
                **T5,
                "feed_forward_proj": "gated-gelu",
                "dense_act_fn": "gelu",
                "tie_word_embeddings": False,
            }
        },
    ),
    "llama": (Blip2LlamaConfig, {"arch": "blip2_llama", "freeze_llm": False}, {"text_config": LLAMA}),
    "vicuna": (
        Blip2LlamaConfig,
        {"arch": "blip2_vicuna", "freeze_llm": False, "end_sym": "###"},
        {"text_config": LLAMA},
    ),
    "stage1": (Blip2Config, {"arch": "blip2", "cross_attention_freq": 1, "embed_dim": 16}, {}),
}
CAPTIONS = ["a red circle on a table", "two dogs and a small ball", "a"]
LONG = "a red circle and a blue square and a green star and a big moon"
QUESTIONS = ["what is it?", "how many dogs are there in the big picture?", "who"]
PLAIN = [("loss", {"text_input": CAPTIONS}), ("loss_long", {"text_input": [LONG, CAPTIONS[0], LONG]})]
TEXTS: dict[str, list[tuple[str, dict[str, list[str]]]]] = {
    **dict.fromkeys(("opt", "llama", "vicuna"), PLAIN),
    "t5": [
        (
            "loss",
            {
                "text_input": ["a", "two dogs", ""],
                "text_output": ["red circle on a table", "and a small ball", "a"],
            },
        ),
        ("loss_long", {"text_input": [LONG] * 3, "text_output": [LONG, "a", LONG]}),
    ],
}


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that upstream calls `name`: normal numbers from a seed that its name gives."""
    if name == "temp":
        return torch.tensor(0.07)
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    norm = ("norm" in name.lower() or "ln_vision" in name) and name.endswith("weight")
    return torch.from_numpy(np.asarray(1 + 0.1 * numbers if norm else 0.2 * numbers, dtype=np.float32))


def tokenizer_of(kind: Any, folder: Path) -> str:
    """The shipped tokenizer; for LLaMA with a start token of its own, and its end token for pads."""
    if kind is not Blip2LlamaConfig:
        return "models/blip2_opt/tokenizer-tiny"
    tokenizer = load_tokenizer("models/blip2_opt/tokenizer-tiny", "tokenizer")
    start = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
    tokenizer.backend_tokenizer.post_processor = start
    ends = {"bos_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **ends).save_pretrained(folder / "llama")
    return str(folder / "llama")


@cache
def model(name: str, folder: Path) -> Any:
    kind, own, text = KINDS[name]
    sizes = {"vision_config": {**WIDE, "patch_size": 8}, "qformer_config": QFORMER, **text}
    keys = {"model_type": "tiny", "load_pretrained": False, "image_size": 16, "num_query_token": 4, "max_txt_len": 12}
    places = {"tokenizer": tokenizer_of(kind, folder), "freeze_vit": False, "sizes": sizes}
    built: Any = build_model(kind(**keys, **places, **own)).eval()
    names = to_upstream(built.trainable_state(), "llama" if name == "vicuna" else name)
    torch.save({"model": {key: drawn(key, tuple(t.shape)) for key, t in names.items()}}, folder / f"{name}.pth")
    load_over(built, str(folder / f"{name}.pth"), "model.finetuned")
    return built


def images() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(1).standard_normal((3, 3, 16, 16)).astype(np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@pytest.mark.parametrize("name", TEXTS)
def test_losses(name: str, folder: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "INSTRUCTIONS", language.INSTRUCTIONS[:1])
    for key, texts in TEXTS[name]:
        with torch.no_grad():
            found = float(model(name, folder)({"image": images(), **texts})["loss"])
        compare(record_property, f"{key} of {name}", found, GIVEN[name][key], SUMS)


@pytest.mark.parametrize("name", TEXTS)
def test_captions_and_answers(name: str, folder: Path, record_property: Record) -> None:
    ours = model(name, folder)
    for keys, wanted in GIVEN[name]["gen"]:
        assert ours.generate({"image": images(), "prompt": "a photo of"}, **keys) == wanted
        record_property("texts", len(wanted))
    for keys, wanted in GIVEN[name]["ans"]:
        assert ours.predict_answers({"image": images(), "text_input": QUESTIONS}, **keys) == wanted
        record_property("texts", len(wanted))


def test_the_first_stage(folder: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def hardest(similarity: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        return similarity.detach().masked_fill(same, float("-inf")).argmax(1)

    monkeypatch.setattr(stage1, "draw_negatives", hardest)
    ours = model("stage1", folder)
    found = ours({"image": images(), "text_input": CAPTIONS, "image_id": torch.tensor([0, 1, 2])})
    found["loss"].backward()
    for key, value in found.items():
        compare(record_property, f"{key} of a drawn stage 1", float(value.detach()), GIVEN["stage1"][key], SUMS)
    grads = to_upstream({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    ours.zero_grad()
    for name, norm in GIVEN["stage1"]["grad"].items():
        compare(record_property, f"gradient norm of {name}", float(grads[name].norm()), norm, 1e-5)
