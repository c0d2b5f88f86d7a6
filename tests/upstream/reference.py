"""What the published code gives on small seeded models, and ours with the same weights.

The folder that `LAVIS_EXT_UPSTREAM` names holds `ptb.json` and `blip2/`: the models that LAVIS main (506965b) and
VPGTrans (32e885c) saved, `{"model": tensors}` under their names, their tokenizers, and in `reference.json` and
`reference.npz` what their classes gave. The weights are too large for this repository: without the folder these tests
are skipped.
"""

from __future__ import annotations

import ast
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis_ext.models.settings import Blip2Config, Blip2LlamaConfig, Blip2OptConfig, Blip2T5Config
from lavis_ext.models.zoo import build_model

FOLDER = Path(os.environ.get("LAVIS_EXT_UPSTREAM") or "nowhere")
MISSING = not (FOLDER / "blip2" / "reference.json").is_file()
REASON = "LAVIS_EXT_UPSTREAM does not name the folder of upstream's weights and results"
SUMS = 2e-6
"""Relative difference of float32 sums of another order: 2⁻²⁴ times the root of some hundred terms."""

VISION = {
    "patch_size": 8,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
QFORMER = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "cross_attention_frequency": 2,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LLAMA = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT: dict[str, dict[str, Any]] = {
    "opt": {
        "hidden_size": 48,
        "word_embed_proj_dim": 48,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "t5": {
        "d_model": 48,
        "d_kv": 12,
        "d_ff": 96,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
        "tie_word_embeddings": False,
    },
    "llama": {**LLAMA, "num_key_value_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": False},
}
KEYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "stage1": (Blip2Config, {"arch": "blip2", "tokenizer": "bert", "embed_dim": 32, "max_txt_len": 16}),
    "opt": (Blip2OptConfig, {"arch": "blip2_opt", "tokenizer": "opt", "prompt": "a photo of", "max_txt_len": 16}),
    "t5": (Blip2T5Config, {"arch": "blip2_t5", "tokenizer": "t5", "max_txt_len": 16}),
    "llama": (Blip2LlamaConfig, {"arch": "blip2_llama", "tokenizer": "llama2", "max_txt_len": 16}),
    "vicuna": (
        Blip2LlamaConfig,
        {"arch": "blip2_vicuna", "tokenizer": "llama2", "max_txt_len": 40, "end_sym": "###"},
    ),
}


def config(name: str, **more: Any) -> Any:
    """The `model:` section of one of the reference models, with the weights that upstream saved."""
    kind, own = KEYS[name]
    language = "llama" if name == "vicuna" else name
    sizes = {"vision_config": VISION, "qformer_config": QFORMER}
    if language in TEXT:
        sizes["text_config"] = TEXT[language]
    keys = {
        "model_type": "tiny",
        "load_pretrained": False,
        "image_size": 32,
        "num_query_token": 6,
        "sizes": sizes,
        "load_finetuned": True,
        "finetuned": str(FOLDER / "blip2" / f"{name}.pth"),
        **own,
        "tokenizer": str(FOLDER / "blip2" / "tokenizers" / own["tokenizer"]),
    }
    return kind(**{**keys, **more})


@cache
def model(name: str) -> Any:
    """One of the reference models, in eval mode; shared by tests, which must not change it."""
    torch.manual_seed(0)
    return build_model(config(name)).eval()


@cache
def results() -> dict[str, Any]:
    """`reference.json`."""
    tree: dict[str, Any] = json.loads((FOLDER / "blip2" / "reference.json").read_text(encoding="utf-8"))
    return tree


@cache
def arrays() -> dict[str, np.ndarray[Any, Any]]:
    """`reference.npz`."""
    with np.load(FOLDER / "blip2" / "reference.npz") as file:
        return {name: file[name] for name in file.files}


def images() -> torch.Tensor:
    """The six images [6, 3, 32, 32]."""
    return torch.from_numpy(arrays()["imgs"])


def calls(name: str, kind: str) -> list[tuple[dict[str, Any], list[str]]]:
    """The arguments and results of `gen` or `ans`."""
    return [(ast.literal_eval(key), texts) for key, texts in results()[name][kind].items()]
