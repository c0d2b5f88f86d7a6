"""`vit_model: clip_L`: CLIP's ViT-L/14 as LAVIS has it before the Q-Former, in transformers' BLIP-2 network.

LAVIS takes 22 of its 24 blocks and leaves out what follows them; the norm called `ln_vision` is BLIP-2's own. Unlike
the EVA tower it has a norm after the embeddings, no patch bias, and quick GELU. LAVIS' names → ours:

    visual_encoder.{class_embedding,positional_embedding}       net.vision_model.embeddings.*, with leading axes of 1
    visual_encoder.{conv1.weight,ln_pre.*}                      …embeddings.{patch_embedding.weight,pre_layernorm.*}
    visual_encoder.transformer.resblocks.N.{ln_1,ln_2}.*        net.vision_model.encoder.layers.N.layer_norm{1,2}.*
    …resblocks.N.attn.{in_proj_weight,in_proj_bias,out_proj.*}  …layers.N.self_attn.{qkv.weight,qkv.bias,projection.*}
    …resblocks.N.mlp.{c_fc,c_proj}.*                            …layers.N.mlp.{fc1,fc2}.*
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Tensors = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 22,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "qkv_bias": True,
}
"""transformers' `vision_config`."""
OURS, THEIRS = "net.vision_model.", "visual_encoder."
WHOLE = (
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding"),
    ("conv1.weight", "embeddings.patch_embedding.weight"),
    ("ln_pre.weight", "embeddings.pre_layernorm.weight"),
    ("ln_pre.bias", "embeddings.pre_layernorm.bias"),
)
BLOCK, LAYER = "transformer.resblocks", "encoder.layers"
IN_BLOCK = (
    ("ln_1.weight", "layer_norm1.weight"),
    ("ln_1.bias", "layer_norm1.bias"),
    ("ln_2.weight", "layer_norm2.weight"),
    ("ln_2.bias", "layer_norm2.bias"),
    ("attn.in_proj_weight", "self_attn.qkv.weight"),
    ("attn.in_proj_bias", "self_attn.qkv.bias"),
    ("attn.out_proj.weight", "self_attn.projection.weight"),
    ("attn.out_proj.bias", "self_attn.projection.bias"),
    ("mlp.c_fc.weight", "mlp.fc1.weight"),
    ("mlp.c_fc.bias", "mlp.fc1.bias"),
    ("mlp.c_proj.weight", "mlp.fc2.weight"),
    ("mlp.c_proj.bias", "mlp.fc2.bias"),
)
MARK = f"{OURS}embeddings.pre_layernorm.weight"
"""A tensor that only a CLIP tower has, not an EVA tower."""


def add_pre_norm(network: Any) -> Any:
    """Turn the tower of a network into CLIP's, in place: a norm after the embeddings, and no patch bias."""
    embeddings, settings = network.vision_model.embeddings, network.config.vision_config
    embeddings.pre_layernorm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)
    embeddings.patch_embedding.bias = None
    embeddings.register_forward_hook(normed)
    return network


def normed(embeddings: Any, _: Any, out: Tensor) -> Tensor:
    """Forward hook: apply the norm to the output of the embeddings."""
    found: Tensor = embeddings.pre_layernorm(out)
    return found


def from_clip(state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """Split a LAVIS checkpoint: the tensors of a CLIP tower under our names, and all others unchanged."""
    found, rest = {}, {}
    for name, tensor in state.items():
        mine = _renamed(name, THEIRS, OURS, 0)
        if mine:
            wide = mine.endswith((".class_embedding", ".position_embedding"))  # [D], [P, D] → [1, 1, D], [1, P, D]
            found[mine] = tensor.reshape(1, -1, tensor.shape[-1]) if wide else tensor
        else:
            rest[name] = tensor
    return found, rest


def to_clip(state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """Split our tensors: those of a CLIP tower under LAVIS' names, and all others unchanged."""
    if MARK not in state:
        return {}, dict(state)
    found, rest = {}, {}
    for name, tensor in state.items():
        if theirs := _renamed(name, OURS, THEIRS, 1):
            narrow = theirs.endswith(("class_embedding", "positional_embedding"))
            found[theirs] = tensor.reshape(-1, tensor.shape[-1]).squeeze(0) if narrow else tensor
        else:
            rest[name] = tensor
    return found, rest


def _renamed(name: str, before: str, after: str, side: int) -> str:
    """The other name of a tower tensor, "" if it is not one; `side` of the pairs is the given name's (ours: 1)."""
    if not name.startswith(before):
        return ""
    short = name.removeprefix(before)
    pairs = {pair[side]: pair[1 - side] for pair in WHOLE}
    if short in pairs:
        return after + pairs[short]
    lists = (BLOCK, LAYER)
    inner = re.fullmatch(re.escape(lists[side]) + r"\.(\d+)\.(.+)", short)
    parts = {pair[side]: pair[1 - side] for pair in IN_BLOCK}
    if inner is None or inner[2] not in parts:
        return ""
    return f"{after}{lists[1 - side]}.{inner[1]}.{parts[inner[2]]}"
