"""What the weights of LAVIS' and VPGTrans' checkpoints are called here, there and back; nothing passes unexplained.

Here `net.` is transformers' network; stage 1 has `temp` and `lm_head.` beside it. The names of theirs:

    visual_encoder.{cls_token,pos_embed,patch_embed.proj.*}     net.vision_model.embeddings.*
    visual_encoder.blocks.N.{norm1,attn,norm2,mlp}.*            net.vision_model.encoder.layers.N.*
    visual_encoder.blocks.N.attn.{q_bias,v_bias}                …self_attn.qkv.bias, zeros between them for the keys
    ln_vision.*                                                 net.vision_model.post_layernorm.*
    query_tokens                                                net.query_tokens
    Qformer.bert.embeddings.LayerNorm.*                         net.qformer.layernorm.*
    Qformer.bert.embeddings.{word,position}_embeddings.*        net.embeddings.*                     (stage 1)
    Qformer.bert.encoder.layer.N.{attention,crossattention}.self.*    net.qformer.encoder.layer.N.….attention.*
    {opt,t5,llama}_proj.*                                       net.language_projection.*
    {opt,t5,llama}_model.*                                      net.language_model.*
    a CLIP tower                                                see clip_tower
    vision_proj.*, text_proj.*, itm_head.*, temp                net.vision_projection.*, …, temp      (stage 1)
    Qformer.cls.predictions.transform.{dense,LayerNorm}.*, .bias      lm_head.{dense,norm}.*, .bias   (stage 1)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lavis_ext.errors import IntegrityError
from lavis_ext.models.clip_tower import from_clip, to_clip

Tensors = dict[str, Tensor]
OURS = ("net.", "lm_head.", "temp")
TO_OURS = (
    (r"^visual_encoder\.cls_token$", "net.vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "net.vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "net.vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"net.vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"net.vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"net.vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"net.vision_model.encoder.layers.\1.mlp."),
    (r"^ln_vision\.", "net.vision_model.post_layernorm."),
    (r"^query_tokens$", "net.query_tokens"),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "net.qformer.layernorm."),
    (r"^Qformer\.bert\.embeddings\.(word|position)_embeddings\.", r"net.embeddings.\1_embeddings."),
    (
        r"^Qformer\.bert\.encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.",
        r"net.qformer.encoder.layer.\1.\2.attention.",
    ),
    (r"^Qformer\.bert\.encoder\.layer\.", "net.qformer.encoder.layer."),
    (r"^(?:opt|t5|llama)_proj\.", "net.language_projection."),
    (r"^(?:opt|t5|llama)_model\.", "net.language_model."),
    (r"^(vision|text)_proj\.", r"net.\1_projection."),
    (r"^itm_head\.", "net.itm_head."),
    (r"^Qformer\.cls\.predictions\.transform\.dense\.", "lm_head.dense."),
    (r"^Qformer\.cls\.predictions\.transform\.LayerNorm\.", "lm_head.norm."),
    (r"^Qformer\.cls\.predictions\.bias$", "lm_head.bias"),
    (r"^temp$", "temp"),
)
NOT_WEIGHTS = re.compile(r"^Qformer\.(bert\.embeddings\.position_ids|cls\.predictions\.decoder\.(weight|bias))$")
"""A counted buffer, and second names of weights that are shared."""
BIASES = re.compile(r"^visual_encoder\.blocks\.(\d+)\.attn\.([qv])_bias$")
STAGE1_ONLY = re.compile(
    r"^(net\.(embeddings|vision_projection|text_projection|itm_head)\.|temp$|lm_head\."
    r"|net\.qformer\.encoder\.layer\.\d+\.(intermediate|output)\.)"
)
"""What only the first stage has a use for, but checkpoints of both may hold."""


def translate(state: Mapping[str, Tensor], where: str = "checkpoint") -> Tensors:
    """A checkpoint of LAVIS or VPGTrans under our names; one of ours as it is.

    Raises IntegrityError for names that are in no list.
    """
    if any(name.startswith("net.") for name in state):
        return dict(state)
    tower, state = from_clip(state)
    found = {_ours(name): tensor for name, tensor in state.items() if _is_plain(name)}
    if "" in found:
        unknown = [name for name in state if _is_plain(name) and not _ours(name)]
        what = f"{len(unknown)} names that no BLIP-2 of LAVIS has: {', '.join(sorted(unknown)[:5])}"
        raise IntegrityError(where, what, "name a checkpoint of BLIP-2")
    return {**tower, **found, **_joined_biases(state, where)}


def to_upstream(state: Mapping[str, Tensor], language: str = "opt") -> Tensors:
    """Tensors of ours under LAVIS' names, as its `checkpoint["model"]`; `language` is `opt`, `t5` or `llama`.

    Raises IntegrityError for names that have no counterpart.
    """
    found, state = to_clip(state)
    for name, tensor in state.items():
        if layer := re.match(r"^net\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.bias$", name):
            queries, _, values = tensor.chunk(3)
            prefix = f"visual_encoder.blocks.{layer[1]}.attn."
            found |= {f"{prefix}q_bias": queries, f"{prefix}v_bias": values}
        else:
            found[_theirs(name, language)] = tensor
    return found


def _is_plain(name: str) -> bool:
    return not NOT_WEIGHTS.match(name) and not BIASES.match(name)


def _ours(name: str) -> str:
    """Our name for one of theirs; "" if it is not known."""
    for pattern, replacement in TO_OURS:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return ""


def _joined_biases(state: Mapping[str, Tensor], where: str) -> Tensors:
    """EVA's attention has biases for queries and values; the joint one of ours has zeros for the keys."""
    joined: Tensors = {}
    for number in sorted({match[1] for name in state if (match := BIASES.match(name))}):
        prefix = f"visual_encoder.blocks.{number}.attn."
        if f"{prefix}q_bias" not in state or f"{prefix}v_bias" not in state:
            raise IntegrityError(where, f"{prefix} has only one of q_bias and v_bias", "fetch or save it again")
        queries, values = state[f"{prefix}q_bias"], state[f"{prefix}v_bias"]
        name = f"net.vision_model.encoder.layers.{number}.self_attn.qkv.bias"
        joined[name] = torch.cat([queries, torch.zeros_like(queries), values])
    return joined


FROM_OURS = (
    (r"^net\.vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^net\.vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^net\.vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^net\.vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"^net\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"^net\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual_encoder.blocks.\1.attn.qkv."),
    (r"^net\.vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
    (r"^net\.vision_model\.post_layernorm\.", "ln_vision."),
    (r"^net\.query_tokens$", "query_tokens"),
    (r"^net\.qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
    (r"^net\.embeddings\.", "Qformer.bert.embeddings."),
    (
        r"^net\.qformer\.encoder\.layer\.(\d+)\.(attention|crossattention)\.attention\.",
        r"Qformer.bert.encoder.layer.\1.\2.self.",
    ),
    (r"^net\.qformer\.encoder\.layer\.", "Qformer.bert.encoder.layer."),
    (r"^net\.language_projection\.", "{}_proj."),
    (r"^net\.language_model\.", "{}_model."),
    (r"^net\.(vision|text)_projection\.", r"\1_proj."),
    (r"^net\.itm_head\.", "itm_head."),
    (r"^lm_head\.dense\.", "Qformer.cls.predictions.transform.dense."),
    (r"^lm_head\.norm\.", "Qformer.cls.predictions.transform.LayerNorm."),
    (r"^lm_head\.bias$", "Qformer.cls.predictions.bias"),
    (r"^temp$", "temp"),
)


def _theirs(name: str, language: str) -> str:
    for pattern, replacement in FROM_OURS:
        if re.match(pattern, name):
            return re.sub(pattern, replacement.replace("{}", language), name)
    raise IntegrityError(name, "has no name in LAVIS", "export a BLIP-2 of ours")
