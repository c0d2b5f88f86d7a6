"""Low-rank adapters on a frozen language model by peft; and a Q-Former that starts from BERT, as in LAVIS."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError
from lavis_ext.models.network import load_masked_language_model
from lavis_ext.models.settings import LoraConfig

MARK = "lora_"
BASE = ".base_layer."
TARGETS = {"t5": ["q", "v"], "opt": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj"]}

PROJECTIONS = (("q_proj", "v_proj"), ("query", "value"), ("qkv_proj",), ("query_key_value",), ("q", "v"), ("c_attn",))
"""Names of the projections of queries and values, alone or with that of the keys, in models that peft's table lacks."""


def add_adapters(language_model: Any, settings: LoraConfig, kind: str) -> None:
    """Add adapters to the layers that `settings` name, in place; initially they change no output.

    `kind` is transformers' name of the language model. The adapted layer `x` becomes `x.base_layer`, with `x.lora_A`
    and `x.lora_B`. Raises ConfigError if peft is missing or refuses the target modules.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("model.lora", "the package peft is not installed", "pip install 'lavis_ext[lora]'")
    import peft

    names = list(settings.target_modules) or targets_of(language_model, kind)
    wanted = peft.LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names
    )
    try:
        peft.inject_adapter_in_model(wanted, language_model)
    except ValueError as error:
        what = " ".join(str(error).split())
        raise ConfigError("model.lora.target_modules", what, "name linear layers of the language model") from error


def targets_of(language_model: nn.Module, kind: str) -> list[str]:
    """The projections of queries and values, by peft's table where it has the kind, else by the layers' own names."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    if found := TARGETS.get(kind) or KNOWN.get(kind):
        return list(found)
    held = {name.rpartition(".")[2] for name, part in language_model.named_modules() if isinstance(part, nn.Linear)}
    for names in PROJECTIONS:
        if set(names) <= held:
            return list(names)
    what = f"nothing is known of the layers of a '{kind}'"
    raise ConfigError("model.lora.target_modules", what, f"name some of {', '.join(sorted(held))}")


def adapter_parts(language_model: nn.Module) -> Iterator[nn.Module]:
    """The modules of the adapters: their weights and dropout."""
    for name, module in language_model.named_modules():
        if name.rpartition(".")[2].startswith(MARK):
            yield module


def release(language_model: nn.Module) -> None:
    """Make the adapters of a frozen language model trainable, in fp32 whatever its precision."""
    for part in adapter_parts(language_model):
        part.float().requires_grad_(True)


def merge_adapters(language_model: nn.Module) -> None:
    """Merge the adapters into their base layers and remove them, in place."""
    for name, module in list(language_model.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(language_model.get_submodule(parent), last, module.get_base_layer())


def fit_names(state: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fit a checkpoint without adapters to a model with them: base layers are renamed, adapters keep their values.

    `mine` are the tensors of the model. If the checkpoint has adapters, or the model has none, nothing changes.
    """
    fresh = {name: tensor for name, tensor in mine.items() if f".{MARK}" in name}
    if not fresh or any(f".{MARK}" in name for name in state):
        return dict(state)
    moved = {name.replace(BASE, "."): name for name in mine if BASE in name}
    return {**fresh, **{moved.get(name, name): tensor for name, tensor in state.items()}}


COPIES = (("intermediate.", "intermediate_query."), ("output.", "output_query."))


def start_from_bert(model: Any, name: str, key: str) -> None:
    """Load the weights of a BERT (folder or hub name) into a first-stage model, as LAVIS does.

    Text layers and word head are BERT's, the queries' layers are copies; queries and cross-attention are random. Raises
    ConfigError where sizes differ.
    """
    bert = load_masked_language_model(name, key)
    state = qformer_state(bert.state_dict())
    mine: Mapping[str, Tensor] = dict(model.named_parameters())
    fresh = [*(p for n, p in mine.items() if "crossattention" in n and p.ndim > 1), model.net.query_tokens]
    with torch.no_grad():
        for parameter in fresh:
            parameter.normal_(std=bert.config.initializer_range)
        for target, tensor in state.items():
            place = mine.get(target)
            rows = None if place is None else place[: len(tensor)]
            if rows is None or rows.shape != tensor.shape:
                what = f"{target} does not fit ({list(tensor.shape)})"
                raise ConfigError(f"{key} {name}", what, "name a BERT of the Q-Former's sizes")
            rows.copy_(tensor)


def qformer_state(bert: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' BertForMaskedLM under the names of a first-stage model."""
    found: dict[str, Tensor] = {}
    for name, tensor in bert.items():
        if name.startswith("bert.embeddings.LayerNorm."):
            found[name.replace("bert.embeddings.LayerNorm.", "net.qformer.layernorm.")] = tensor
        elif name.startswith(("bert.embeddings.word_", "bert.embeddings.position_embeddings.")):
            found[name.replace("bert.embeddings.", "net.embeddings.")] = tensor
        elif name.startswith("bert.encoder.layer."):
            found |= _layer(
                name.replace("bert.", "net.qformer.").replace(".attention.self.", ".attention.attention."), tensor
            )
        elif name.startswith("cls.predictions.transform."):
            short = name.removeprefix("cls.predictions.transform.").replace("LayerNorm.", "norm.")
            found[f"lm_head.{short}"] = tensor
        elif name == "cls.predictions.bias":
            found["lm_head.bias"] = tensor
    return found


def _layer(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A weight of a text layer, and its copy for the queries where these have their own layer."""
    head, _, rest = name.partition(".layer.")
    number, _, part = rest.partition(".")
    copies = {
        f"{head}.layer.{number}.{copy}{part.removeprefix(own)}": tensor for own, copy in COPIES if part.startswith(own)
    }
    return {name: tensor, **copies}
