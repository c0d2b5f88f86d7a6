"""Transformers' BLIP-2 network: built from sizes, fitted to a tokenizer and an image size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from lavis_ext.errors import ConfigError
from lavis_ext.schema import ModelConfig

IMAGE_TOKEN = "<image>"  # noqa: S105
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def check_config(config: ModelConfig) -> None:
    """Raises ConfigError for settings that cannot work together."""
    for tower, precision, frozen in (
        ("vit", config.vit_precision, config.freeze_vit),
        ("llm", config.llm_precision, config.freeze_llm),
    ):
        if precision != "fp32" and not frozen:
            what = f"weights in {precision} cannot be trained: small updates are lost and gradients overflow"
            way_out = f"set {tower}_precision: fp32 (run.amp may stay on) or freeze_{tower}: True"
            raise ConfigError(f"model.{tower}_precision", what, way_out)
    unused = [key for key in ("apply_lemmatizer", "drop_path_rate", "t5_model", "llama_model") if getattr(config, key)]
    if unused:
        raise ConfigError(f"model.{unused[0]}", f"is not offered by {config.arch}", "remove the key")


def build_network(config: ModelConfig, tokenizer: Any) -> Any:
    """A network from scratch by `sizes`; `sizes` may leave out what the tokenizer and `image_size` tell."""
    ends = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    text = {"model_type": "opt", "vocab_size": len(tokenizer), **ends, **config.sizes.get("text_config", {})}
    vision = {"image_size": config.image_size, "initializer_range": 0.02, **config.sizes.get("vision_config", {})}
    try:
        settings = transformers.Blip2Config(
            vision_config=vision,
            qformer_config=dict(config.sizes.get("qformer_config", {})),
            text_config=text,
            num_query_tokens=config.num_query_token,
        )
        network = transformers.Blip2ForConditionalGeneration(settings)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError("model.sizes", " ".join(str(error).split()), "see transformers' Blip2Config") from error
    # transformers leaves the queries at zero, where all of them would stay the same for ever
    nn.init.normal_(network.query_tokens, std=settings.qformer_config.initializer_range)
    return network


def add_image_token(network: Any, tokenizer: Any) -> None:
    """See that `<image>` is a token, that the embedding has a row for it, and that the network knows its id."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if network.get_input_embeddings().num_embeddings < len(tokenizer):
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network.config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)


def fit_image_size(network: Any, size: int) -> Any:
    """The network for images of `size`: its positions are interpolated (bicubic) where it was made for another."""
    settings = network.config.vision_config
    if settings.image_size == size:
        return network
    if size % settings.patch_size:
        raise ConfigError(
            "model.image_size", f"{size} is no multiple of the patch size {settings.patch_size}", "round it"
        )
    embeddings = network.vision_model.embeddings
    grid = size // settings.patch_size
    embeddings.position_embedding = nn.Parameter(resize_positions(embeddings.position_embedding.data, grid))
    embeddings.image_size = settings.image_size = size
    embeddings.num_patches, embeddings.num_positions = grid**2, grid**2 + 1
    return network


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """[1, 1+n², D] → [1, 1+grid², D]: the class position stays, the others are interpolated as an image."""
    first, rest = positions[:, :1], positions[:, 1:]
    side = round(rest.shape[1] ** 0.5)
    image = rest.float().transpose(1, 2).reshape(1, -1, side, side)
    fitted = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([first, fitted.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)


def recompute(network: Any) -> None:
    """Gradient checkpointing: layers in training mode compute their activations again instead of keeping them."""
    # transformers 5.20 renamed the method
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False})
