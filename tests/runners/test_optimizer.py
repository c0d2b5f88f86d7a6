"""Which optimizer moves which weights, with and without decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.models.base_model import BaseModel
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.runners.schedule import build_optimizer


class Named(BaseModel):
    """Parameters under the names that Oscar's have."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.ModuleDict({"dense": nn.Linear(3, 3), "LayerNorm": nn.LayerNorm(3)})
        self.bert = nn.ModuleDict({"img_embedding": nn.Linear(4, 3), "layer": layer})
        self.classifier = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 2))


def decayed(model: BaseModel) -> set[str]:
    groups = model.optimizer_params(0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def test_biases_and_layer_norms_do_not_decay() -> None:
    """Upstream's rule, names with `bias` or `LayerNorm.weight`, and VinVL's LayerNorm within a classifier beside."""
    weights = {"bert.img_embedding.weight", "bert.layer.dense.weight", "classifier.0.weight", "classifier.3.weight"}
    assert decayed(Named()) == weights


@pytest.mark.parametrize("head", ["sequence", "pair"])
def test_the_rule_fits_the_names_of_a_whole_oscar(head: Any) -> None:
    from lavis_ext.oscar.model import Oscar

    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "intermediate_size": 8}
    config = OscarConfig(
        arch="oscar", model_type="tiny", load_pretrained=False, head=head, classifier="mlp", use_img_layernorm=True,
        num_labels=2, img_feature_dim=6, sizes={"text_config": text},
    )  # fmt: skip
    model = Oscar.from_config(config)
    upstream = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not any(word in name.lower() for word in ("bias", "norm"))
    }
    assert decayed(model) == upstream


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adamax", torch.optim.Adamax)])
def test_the_optimizer_is_the_one_asked_for(name: Any, kind: type) -> None:
    run = RunConfig(task="toy", optimizer=name, init_lr=3e-5, weight_decay=0.05, adam_epsilon=1e-6, beta2=0.98)
    found = build_optimizer(Named(), run)
    assert type(found) is kind
    assert (found.defaults["eps"], found.defaults["betas"], found.defaults["lr"]) == (1e-6, (0.9, 0.98), 3e-5)
    assert sorted(group["weight_decay"] for group in found.param_groups) == [0.0, 0.05]


def test_adamw_takes_the_decay_off_the_weight() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    model = Named()
    model.bert["layer"]["dense"].weight = weight
    optimizer = build_optimizer(model, RunConfig(task="toy", init_lr=0.1, weight_decay=0.5))
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert weight.tolist() == [[pytest.approx(0.95)] * 2] * 2
