"""Low-rank adapters on a frozen language model, put in place by peft: they alone learn and are saved of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lavis_ext.errors import ConfigError
from lavis_ext.models.settings import LoraConfig

MARK = "lora_"
BASE = ".base_layer."
TARGETS = {"t5": ["q", "v"], "opt": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj"]}


def add_adapters(language_model: Any, settings: LoraConfig, kind: str) -> None:
    """Put adapters beside the layers that `settings` name, in place; at first they change nothing.

    `kind` is transformers' name of the language model. The adapted layer `x` becomes `x.base_layer`, with `x.lora_A`
    and `x.lora_B`. Raises ConfigError where peft is missing, or refuses.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("model.lora", "the package peft is not installed", "pip install 'lavis_ext[lora]'")
    import peft

    names = list(settings.target_modules) or TARGETS[kind]
    wanted = peft.LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names
    )
    try:
        peft.inject_adapter_in_model(wanted, language_model)
    except ValueError as error:
        what = " ".join(str(error).split())
        raise ConfigError("model.lora.target_modules", what, "name linear layers of the language model") from error


def adapter_parts(language_model: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold what the adapters learn, and their dropout."""
    for name, module in language_model.named_modules():
        if name.rpartition(".")[2].startswith(MARK):
            yield module


def release(language_model: nn.Module) -> None:
    """Let the adapters of a frozen language model learn, in fp32 whatever precision it has."""
    for part in adapter_parts(language_model):
        part.float().requires_grad_(True)


def merge_adapters(language_model: nn.Module) -> None:
    """Put what the adapters learnt into the layers beside them, and take the adapters out; in place."""
    for name, module in list(language_model.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(language_model.get_submodule(parent), last, module.get_base_layer())


def fit_names(state: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint from before there were adapters, for a model with them: base layers renamed, adapters left alone.

    `mine` are the tensors of the model. A checkpoint that has adapters, or a model without, is left as it is.
    """
    fresh = {name: tensor for name, tensor in mine.items() if f".{MARK}" in name}
    if not fresh or any(f".{MARK}" in name for name in state):
        return dict(state)
    moved = {name.replace(BASE, "."): name for name in mine if BASE in name}
    return {**fresh, **{moved.get(name, name): tensor for name, tensor in state.items()}}
