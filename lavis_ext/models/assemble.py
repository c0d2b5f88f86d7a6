"""A BLIP-2 network and its tokenizer as a model section describes them: whole, from scratch, or put together."""

from __future__ import annotations

from typing import Any

import transformers

from lavis_ext.errors import ConfigError
from lavis_ext.models.hub import load_config, load_language_model, load_network, load_tokenizer
from lavis_ext.models.network import build_network, fit_image_size, stub_config

RETRIEVER = "Blip2ForImageTextRetrieval"


def assemble(config: Any, language: str, language_key: str) -> tuple[Any, Any]:
    """Network and tokenizer; `language` is the kind of language model, `language_key` the config key of its weights.

    Raises ConfigError where nothing says what to start from.
    """
    if config.load_pretrained and config.pretrained:
        found = load_config(config.pretrained, "model.pretrained")
        if kind_of(found) == language:
            tokenizer = load_tokenizer(config.tokenizer or config.pretrained, "model.pretrained")
            network = load_network(config.pretrained, "model.pretrained", config)
        else:
            network, tokenizer = transfer(config, found, language, language_key)
        return fit_image_size(network, config.image_size), tokenizer
    if config.sizes and config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer, "model.tokenizer")
        return build_network(config, tokenizer, language), tokenizer
    way_out = "name a folder or hub model, or give model.sizes and model.tokenizer"
    raise ConfigError("model.pretrained", "no weights to start from", way_out)


def kind_of(settings: Any) -> str:
    """transformers' name of the language model of a BLIP-2 configuration; "" if it has none, as in the first stage."""
    if RETRIEVER in (getattr(settings, "architectures", None) or ()):
        return ""
    return str(getattr(getattr(settings, "text_config", None), "model_type", ""))


def transfer(config: Any, found: Any, language: str, language_key: str) -> tuple[Any, Any]:
    """The visual parts of `pretrained` before another language model; the projection between them starts random.

    The language model that `pretrained` came with is not built, and its weights are not kept.
    """
    name = getattr(config, language_key)
    if not name:
        what = f"its language model is '{kind_of(found) or 'none'}', {config.arch} needs '{language}'"
        raise ConfigError("model.pretrained", what, f"name the new one in model.{language_key}")
    key = f"model.{language_key}"
    tokenizer, model = load_tokenizer(config.tokenizer or name, key), load_language_model(name, key, config, language)
    if not hasattr(found, "qformer_config"):
        raise ConfigError(f"model.pretrained {config.pretrained}", "is no BLIP-2", "name one in transformers' form")
    settings = stub_config(found, model.config.hidden_size)
    network = load_network(str(config.pretrained), "model.pretrained", config, settings)
    network.language_model = model
    network.config = transformers.Blip2Config(
        vision_config=settings.vision_config.to_dict(),
        qformer_config=settings.qformer_config.to_dict(),
        text_config=model.config.to_dict(),
        num_query_tokens=found.num_query_tokens,
    )
    return network, tokenizer
