"""A Q-Former that starts from BERT, as LAVIS' does: text layers, word head and, as copies, the queries' layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lavis_ext.errors import ConfigError
from lavis_ext.models.hub import load_masked_language_model

COPIES = (("intermediate.", "intermediate_query."), ("output.", "output_query."))


def start_from_bert(model: Any, name: str, key: str) -> None:
    """Put the weights of a BERT (folder or hub name) into a first-stage model; queries and cross-attention start anew.

    Raises ConfigError where sizes differ.
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
    """A weight of a text layer, and its copy for the queries where they have one of their own."""
    head, _, rest = name.partition(".layer.")
    number, _, part = rest.partition(".")
    copies = {
        f"{head}.layer.{number}.{copy}{part.removeprefix(own)}": tensor for own, copy in COPIES if part.startswith(own)
    }
    return {name: tensor, **copies}
