"""Any language model of transformers' with its tokenizer: loaded or random, and able to go on from pictures."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError
from lavis_ext.models.network import (
    DTYPES,
    around,
    config_of,
    load_config,
    load_tokenizer,
    load_weights,
    size_errors,
)


def load_llm(
    named: str | dict[str, Any],
    tokenizer_name: str | None,
    causal: bool | None,
    key: str,
    precision: str,
    arch: str = "",
) -> tuple[Any, Any]:
    """Tokenizer and language model of a folder, a hub name or a configuration that the config key `key` names.

    Decoder-only if `causal`, with an encoder if not, either if None. A random one gets the vocabulary and the special
    tokens of its tokenizer; of a model that sees or hears itself, as Gemma 3, the part that reads words is taken.
    Raises ConfigError for another kind, and for one that cannot read or write behind pictures.
    """
    if isinstance(named, str):
        tokenizer = load_tokenizer(tokenizer_name or named, key)
        settings = load_config(named, key)
    else:
        tokenizer = load_tokenizer(str(tokenizer_name), "model.tokenizer")
        ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        ids["pad_token_id"] = ids["eos_token_id"] if ids["pad_token_id"] is None else ids["pad_token_id"]
        settings = config_of(named, key, vocab_size=len(tokenizer), **ids)
        if settings.is_encoder_decoder and "decoder_start_token_id" not in named:
            settings.decoder_start_token_id = ids["pad_token_id"]
    encoding = bool(getattr(settings, "is_encoder_decoder", False))
    auto = transformers.AutoModelForSeq2SeqLM if encoding else transformers.AutoModelForCausalLM
    if type(settings) not in auto._model_mapping or encoding is causal:
        others = type(settings) in auto._model_mapping and arch
        way_out = f"name another, or model.arch={'blip2_seq2seq' if causal else 'blip2_causal'}"
        what = f"is a '{settings.model_type}', with which {f'{arch} cannot' if arch else 'nothing here can'} speak"
        way_out = way_out if others else "name another"
        raise ConfigError(key, what, way_out)
    if isinstance(named, str):
        model = load_weights(auto, named, key, dtype=DTYPES[precision], config=settings)
    else:
        with size_errors(key):
            model = auto.from_config(settings)
    model = words_alone(model, auto)
    # others are known to read forwards and to leave pads out, and a pass through a large one takes seconds
    doubtful = getattr(settings, "is_decoder", True) is False or getattr(model, "_is_stateful", False)
    if doubtful or not isinstance(named, str):
        require_forward(model, key, encoding)
    if not encoding:
        require_writing(model, key)
    return tokenizer, model


def assemble_any(config: Any, causal: bool) -> tuple[Any, Any]:
    """Network and tokenizer of a second stage over any language model and tower."""
    tokenizer, model = load_llm(config.llm, config.tokenizer, causal, "model.llm", config.llm_precision, config.arch)
    network = around(model, config)
    network.config.use_decoder_only_language_model = causal  # transformers goes by the name, and BART has both forms
    network.config.is_encoder_decoder = not causal
    return network, tokenizer


def words_alone(model: Any, auto: Any) -> Any:
    """The decoder and head of a model with towers of its own, as transformers' class for words alone; others as is.

    The towers would get adapters, and no gradient, which DDP refuses; Gemma 3 as a whole writes from no embeddings.
    """
    settings = model.config.get_text_config()
    if settings is model.config or type(settings) not in auto._model_mapping:
        return model
    with torch.device("meta"):
        found = auto.from_config(settings)
    decoder = model.get_decoder()
    if type(found.base_model) is not type(decoder):
        return model
    setattr(found, found.base_model_prefix, decoder)
    found.set_output_embeddings(model.get_output_embeddings())
    found.generation_config = model.generation_config
    return found.train(model.training)


def require_forward(model: Any, key: str, encoding: bool) -> None:
    """Raise ConfigError for sizes with which a language model cannot run, and for a decoder that cannot be trained so.

    BERT and its like are trained on masks: behind their config's `is_decoder: False` each token sees those to predict.
    RWKV reads pads as words.
    """
    words: nn.Embedding = model.get_input_embeddings()
    learning, kind = model.training, model.config.model_type
    mask = torch.tensor([[1, 1], [1, 1], [0, 1]])
    with size_errors(key), torch.random.fork_rng(devices=[]), torch.no_grad():
        embeds = torch.randn(3, 2, words.embedding_dim).to(words.weight.dtype)
        embeds[1, 0] = embeds[2, 1] = embeds[0, 0]  # one token, before two others and behind a pad
        if encoding:
            given = {"decoder_input_ids": torch.zeros(3, 2, dtype=torch.int64)}
        else:
            counted = "position_ids" in inspect.signature(type(model).forward).parameters
            given = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if counted else {}
        logits = model.eval()(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **given).logits.float()
    model.train(learning)
    if encoding:
        return
    # of what another token changes: rounding is far less, what a random BERT sees of its neighbours a hundredth
    near = (1e-4 if words.weight.dtype == torch.float32 else 0.05) * float((logits[0, 0] - logits[0, 1]).abs().max())
    before, padded = ((logits[0, 0] - one).abs().max() for one in (logits[1, 0], logits[2, 1]))
    if before > near:
        what = f"is a '{kind}' that reads in both directions: it would see the words that it is to learn"
        raise ConfigError(key, what, "name a decoder, or set is_decoder: True in its configuration")
    if padded > near:
        raise ConfigError(key, f"is a '{kind}', which reads pads as words", "name another language model")
    places = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
    if any(getattr(part, "padding_idx", None) is not None for part in places):
        what = f"is a '{kind}', whose positions begin behind that of its pad token, where transformers' generate has 0"
        raise ConfigError(key, what, "name another language model")


def require_writing(model: Any, key: str) -> None:
    """Raise ConfigError for a decoder that cannot go on from embeddings.

    Falcon-H1, Bamba, Nemotron-H and others pass them on behind `**kwargs`, where transformers does not see it: they get
    a method that names them.
    """
    reads = inspect.signature(type(model).forward).parameters
    if "inputs_embeds" not in reads:
        raise ConfigError(key, f"is a '{model.config.model_type}', which reads no embeddings", "name another")
    if "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters:
        return
    if "past_key_values" not in reads:
        what = f"is a '{model.config.model_type}', which has no cache: it cannot write behind pictures"
        raise ConfigError(key, what, "name another")
    model.prepare_inputs_for_generation = MethodType(prepared, model)


def prepared(model: Any, input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
    """`prepare_inputs_for_generation` of the model's class, with its arguments by name."""
    own = type(model).prepare_inputs_for_generation
    found: dict[str, Any] = own(model, input_ids, inputs_embeds=inputs_embeds, **kwargs)
    return found
