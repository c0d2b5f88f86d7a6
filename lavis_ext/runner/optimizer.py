"""Which parameters are trained, in which groups of AdamW, and at which share of the learning rate."""

from __future__ import annotations

import re
from typing import Any

import torch

from lavis_ext.models.base import Model
from lavis_ext.schema import RunConfig

BLOCK = re.compile(r"\b(?:vision_model|visual_encoder|visual)\..*\b(?:layers|blocks)\.(\d+)\.")
EMBEDDING = re.compile(r"\b(?:vision_model|visual_encoder|visual)\..*(?:embed|cls_token)")


def layer_scales(names: list[str], decay: float) -> dict[str, float]:
    """Share of the learning rate of each parameter: `decay ** (depth - layer)` in the image encoder, 1 elsewhere.

    Layer 0 is the embeddings, n+1 the n-th block, and the top block has share 1 (the rule of BEiT and EVA).
    """
    layers = {name: int(found[1]) + 1 for name in names if (found := BLOCK.search(name))}
    layers |= {name: 0 for name in names if name not in layers and EMBEDDING.search(name)}
    depth = max(layers.values(), default=0)
    return {name: decay ** (depth - layers.get(name, depth)) for name in names}


def parameter_groups(model: Model, run: RunConfig) -> list[dict[str, Any]]:
    """`model.optimizer_params` with each group split by the parameters' share of the learning rate (`lr_scale`)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = layer_scales(list(names.values()), run.lr_layer_decay)
    groups: list[dict[str, Any]] = []
    for whole in model.optimizer_params(run.weight_decay):
        parts: dict[float, dict[str, Any]] = {}
        for parameter in whole["params"]:
            scale = scales[names[id(parameter)]]
            parts.setdefault(scale, {**whole, "params": [], "lr_scale": scale})["params"].append(parameter)
        groups += parts.values()
    return groups


def build_optimizer(model: Model, run: RunConfig) -> torch.optim.Optimizer:
    """`run.optimizer` with betas (0.9, beta2) over `parameter_groups`; raises ConfigError if nothing is left to train.

    Adamax adds the decay to the gradient, AdamW takes it off the weight: so both are defined, and so Oscar used them.
    """
    model.require_trainable()
    kind = {"adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}[run.optimizer]
    settings: dict[str, Any] = {"lr": run.init_lr, "betas": (0.9, run.beta2), "eps": run.adam_epsilon}
    optimizer: torch.optim.Optimizer = kind(parameter_groups(model, run), **settings)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
