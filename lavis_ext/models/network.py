"""Transformers' BLIP-2 network: built from sizes, fitted to a tokenizer and an image size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from lavis_ext.errors import ConfigError
from lavis_ext.models import clip_tower

IMAGE_TOKEN = "<image>"  # noqa: S105
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def build_network(config: Any, tokenizer: Any, language: str) -> Any:
    """A network from scratch by `sizes`; `sizes` may leave out what the tokenizer and `image_size` tell.

    `language` is transformers' name of the kind of language model.
    """
    ends = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    first = {"decoder_start_token_id": ends["pad_token_id"]} if language == "t5" else {}
    own = config.sizes.get("text_config", {})
    settings = blip2_config(config, {"model_type": language, "vocab_size": len(tokenizer), **ends, **first, **own})
    return initialised(transformers.Blip2ForConditionalGeneration, settings, config)


def blip2_config(config: Any, text: dict[str, Any] | None = None) -> Any:
    """transformers' configuration by `sizes`; raises ConfigError for sizes that cannot be."""
    tower = clip_tower.SIZES if config.vit_model == "clip_L" else {}
    given = config.sizes.get("vision_config", {})
    vision = {"image_size": config.image_size, "initializer_range": 0.02, **tower, **given}
    with told_of_sizes():
        return transformers.Blip2Config(
            vision_config=vision,
            qformer_config=dict(config.sizes.get("qformer_config", {})),
            **({"text_config": text} if text else {}),
            num_query_tokens=config.num_query_token,
            image_text_hidden_size=getattr(config, "embed_dim", 256),  # the first stage alone has one
        )


def stub_config(found: Any, width: int) -> Any:
    """The configuration `found` with a language model of that width and no layers, so that no time goes into one."""
    layers = {"num_hidden_layers": 0, "ffn_dim": 8, "num_attention_heads": 1, "vocab_size": 8, "pad_token_id": 1}
    return transformers.Blip2Config(
        vision_config=found.vision_config.to_dict(),
        qformer_config={**found.qformer_config.to_dict(), "use_qformer_text_input": False},
        text_config={"model_type": "opt", "hidden_size": width, "word_embed_proj_dim": width, **layers},
        num_query_tokens=found.num_query_tokens,
    )


def build_retriever(settings: Any, words: int, pad: int | None, config: Any) -> Any:
    """A first-stage network from scratch: a Q-Former that reads `words` words as well."""
    queries = settings.qformer_config
    queries.use_qformer_text_input, queries.vocab_size, queries.pad_token_id = True, words, pad
    queries.cross_attention_frequency = config.cross_attention_freq
    return initialised(transformers.Blip2ForImageTextRetrieval, settings, config)


def initialised(kind: Any, settings: Any, config: Any) -> Any:
    """A network with random weights and the tower of `vit_model`; raises ConfigError for sizes that cannot be."""
    with told_of_sizes():
        network = kind(settings)
    # transformers leaves the queries at zero, where all of them would stay the same for ever
    nn.init.normal_(network.query_tokens, std=settings.qformer_config.initializer_range)
    return clip_tower.add_pre_norm(network) if config.vit_model == "clip_L" else network


@contextmanager
def told_of_sizes() -> Iterator[None]:
    """What transformers says against sizes becomes a ConfigError."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError("model.sizes", " ".join(str(error).split()), "see transformers' Blip2Config") from error
    except Exception as error:
        # the checks of configuration classes raise exceptions of the hub client's own
        if "Validation" not in type(error).__name__:
            raise
        raise ConfigError("model.sizes", " ".join(str(error).split()), "see transformers' Blip2Config") from error


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
