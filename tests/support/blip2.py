"""A BLIP-2 of a few thousand weights, and batches for it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from lavis_ext.common.registry import models
from lavis_ext.common.types import Batch
from lavis_ext.models.language import Blip2Opt
from lavis_ext.models.settings import Blip2OptConfig

SIZES: dict[str, dict[str, Any]] = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "initializer_range": 0.2,
    },
    "qformer_config": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
    },
    "text_config": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "init_std": 0.2,
    },
}
CONFIG = Blip2OptConfig(
    arch="blip2_opt",
    model_type="tiny",
    image_size=16,
    num_query_token=4,
    tokenizer="models/blip2_opt/tokenizer-tiny",
    freeze_vit=False,
    freeze_llm=False,
    sizes=SIZES,
)
CAPTIONS = ["a red circle", "two green triangles above a yellow star", ""]


def small_model(seed: int = 0, **changes: Any) -> Blip2Opt:
    """The model of CONFIG with some keys changed; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return Blip2Opt.from_config(replace(CONFIG, **changes)).eval()


def small_batch(count: int = 3, **extra: Any) -> Batch:
    """`count` images of noise with captions of different lengths."""
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"image": images, "text_input": CAPTIONS[:count], "image_id": list(range(count)), **extra}


TEXT_SIZES: dict[str, dict[str, Any]] = {
    "blip2_opt": SIZES["text_config"],
    "blip2_llama": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    },
    "blip2_t5": {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.1,
        "initializer_factor": 2.0,
    },
}
TEXT_SIZES["blip2_vicuna"] = TEXT_SIZES["blip2_vicuna_instruct"] = TEXT_SIZES["blip2_llama"]
TEXT_SIZES["blip2_t5_instruct"] = TEXT_SIZES["blip2_t5"]


def of_arch(arch: str, **changes: Any) -> Any:
    """CONFIG as another architecture reads it."""
    kind = models.config(arch)
    own = {one.name: getattr(CONFIG, one.name) for one in fields(kind) if hasattr(CONFIG, one.name)}
    return kind(**{**own, "arch": arch, **changes})


def small_of(arch: str, seed: int = 0, **changes: Any) -> Any:
    """The model of CONFIG with another language model."""
    torch.manual_seed(seed)
    sizes = {**SIZES, "text_config": TEXT_SIZES[arch]}
    reader = {"qformer_tokenizer": CONFIG.tokenizer} if arch.endswith("_instruct") else {}
    keys = {"sizes": sizes, **({"end_sym": "###"} if arch == "blip2_vicuna" else {}), **reader, **changes}
    return models.get(arch).from_config(of_arch(arch, **keys)).eval()


def small_stage1(seed: int = 0, arch: str = "blip2", **changes: Any) -> Any:
    """A first stage of a few thousand weights, in eval mode."""
    torch.manual_seed(seed)
    keys = {"cross_attention_freq": 1, "embed_dim": 16, "max_txt_len": 12, **changes}
    return models.get(arch).from_config(of_arch(arch, **keys)).eval()
