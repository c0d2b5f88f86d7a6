"""Oscar's network: the published forward pass number by number, its sizes, and what its masks hide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import ConfigError
from lavis_ext.oscar.convert import from_oscar
from lavis_ext.oscar.network import OscarNetwork
from lavis_ext.oscar.settings import OscarSettings, read_settings, write_settings
from tests.support.oscar import SMALL, Reference, oscar_batch, oscar_state

BASE = {**SMALL, "vocab_size": 30522, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
BASE |= {"max_position_embeddings": 512, "img_feature_dim": 2054}


def both(head: str, vinvl: bool = False, **changes: Any) -> tuple[OscarNetwork, Reference, dict[str, Any]]:
    config = {**SMALL, "cls_hidden_scale": 3, **changes}
    state = oscar_state(config, head, vinvl)
    return from_oscar(state, config).eval(), Reference(state, config), config


def near(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [12, 6])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("vinvl", [False, True])
def test_logits_are_those_of_the_published_forward(layers: int, head: str, vinvl: bool) -> None:
    network, reference, config = both(head, vinvl, num_hidden_layers=layers)
    batch = oscar_batch(config)
    near(network(**batch).logits, reference.classify(reference.pooled(batch)))


@pytest.mark.parametrize("layers", [12, 6])
def test_a_mask_for_every_query_and_given_positions(layers: int) -> None:
    network, reference, config = both("linear", num_hidden_layers=layers)
    batch = oscar_batch(config, texts=6)
    mask = torch.ones(4, 11, 11).tril().byte()
    mask[:, :, 8:] = 1
    batch |= {"attention_mask": mask, "position_ids": torch.tensor([[0, 1, 2, 20, 21, 22]]).expand(4, -1)}
    near(network(**batch).sequence, reference.sequence(batch))


def test_no_regions_and_no_mask() -> None:
    network, reference, config = both("linear")
    batch = oscar_batch(config, texts=6, regions=0)
    batch["attention_mask"] = torch.ones(4, 6)
    bare = {"input_ids": batch["input_ids"], "token_type_ids": batch["token_type_ids"]}
    near(network(**bare).pooled, reference.pooled({**bare, "attention_mask": batch["attention_mask"]}))
    near(network(**batch).pooled, reference.pooled(batch))


@pytest.mark.parametrize("vinvl", [False, True])
def test_a_pair_is_read_apart_and_judged_together(vinvl: bool) -> None:
    network, reference, config = both("pair", vinvl, num_labels=2)
    assert network.settings.head == "pair"
    one, two = oscar_batch(config, seed=1), oscar_batch(config, seed=2)
    pair = {name: torch.stack([one[name], two[name]], 1) for name in one}
    vectors = np.concatenate([reference.pooled(one), reference.pooled(two)], 1)
    near(network(**pair).logits, reference.classify(vectors))


@pytest.mark.parametrize("head", ["words", "pretrain"])
def test_words_are_predicted_for_the_text(head: str) -> None:
    network, reference, config = both(head)
    batch = oscar_batch(config)
    found = network(**batch)
    near(found.logits, reference.words(reference.sequence(batch)[:, :3]))
    if head == "pretrain":
        near(found.matching, reference.linear("cls.seq_relationship", reference.pooled(batch)))


def test_a_row_that_sees_nothing_gives_numbers_and_changes_no_other() -> None:
    network, _, config = both("linear")
    batch = oscar_batch(config)
    whole = network(**batch).logits
    mask = batch["attention_mask"].clone()
    mask[2] = 0
    found = network(**{**batch, "attention_mask": mask}).logits
    assert found.isfinite().all()
    torch.testing.assert_close(found[[0, 1, 3]], whole[[0, 1, 3]])
    half = network.half()(**{**batch, "attention_mask": mask, "img_feats": batch["img_feats"].half()})
    assert half.logits.isfinite().all()


def test_what_is_masked_does_not_matter() -> None:
    network, _, config = both("linear", vinvl=True)
    batch = oscar_batch(config)
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][0, 2], other["img_feats"][0, -2:] = 7, 1e3
    longer = {**batch, "img_feats": torch.cat([batch["img_feats"], torch.randn(4, 3, config["img_feature_dim"])], 1)}
    longer["attention_mask"] = torch.cat([batch["attention_mask"], torch.zeros(4, 3, dtype=torch.long)], 1)
    expected = network(**batch).logits
    torch.testing.assert_close(network(**other).logits, expected)
    torch.testing.assert_close(network(**longer).logits, expected, atol=1e-5, rtol=1e-5)


def test_states_and_scores_of_every_layer() -> None:
    network, reference, config = both("linear", num_hidden_layers=3)
    batch = oscar_batch(config)
    found = network(**batch, output_hidden_states=True, output_attentions=True)
    assert found.hidden_states is not None and found.attentions is not None
    assert (len(found.hidden_states), len(found.attentions)) == (4, 3)
    near(found.hidden_states[-1], reference.sequence(batch))
    near(found.hidden_states[1], Reference.sequence(_shallow(reference, 1), batch))
    layer, states = "bert.encoder.layer.1.attention.self", found.hidden_states[1].detach().double().numpy()
    q, k = (reference.linear(f"{layer}.{part}", states).reshape(4, 8, 4, 6) for part in ("query", "key"))
    near(found.attentions[1], np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(6))
    assert network(**batch).hidden_states is None


def _shallow(reference: Reference, layers: int) -> Reference:
    found = object.__new__(Reference)
    found.w, found.config = reference.w, {**reference.config, "num_hidden_layers": layers}
    return found


@pytest.mark.parametrize(
    ("changes", "whole", "student"),
    [
        ({"num_labels": 3129}, 113_466_681, 70_939_449),
        ({"num_labels": 1853}, 112_485_437, 69_958_205),
        ({"head": "pair", "classifier": "mlp", "cls_hidden_scale": 3, "num_labels": 2}, 114_606_338, 72_079_106),
        ({"num_labels": 3129, "use_img_layernorm": True}, 113_466_681 + 1536, 70_939_449 + 1536),
    ],
)
def test_parameters_are_as_many_as_upstreams(changes: dict[str, Any], whole: int, student: int) -> None:
    for layers, expected in ((12, whole), (6, student)):
        settings = replace(read_settings({**BASE, "num_hidden_layers": layers}, "base"), **changes)
        assert count(settings) == expected


def count(settings: OscarSettings) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in OscarNetwork(settings).parameters())


def test_inputs_that_do_not_fit_are_named() -> None:
    network, _, config = both("linear")
    batch = oscar_batch(config)
    with pytest.raises(ConfigError, match="regions are 9 wide, the model takes 14"):
        network(**{**batch, "img_feats": torch.zeros(4, 5, 9)})
    with pytest.raises(ConfigError, match="covers 6 tokens of 8"):
        network(**{**batch, "attention_mask": torch.ones(4, 6)})
    with pytest.raises(ConfigError, match="text of 41 tokens, the model has 40 positions"):
        network(torch.ones(1, 41, dtype=torch.long))
    pair, _, _ = both("pair", num_labels=2)
    with pytest.raises(ConfigError, match="3 members each, the head takes 2"):
        pair(torch.ones(2, 3, 4, dtype=torch.long))


def test_weights_that_start_anew_are_as_wide_as_bert_says() -> None:
    settings = replace(read_settings(BASE | {"num_hidden_layers": 1, "initializer_range": 0.07}, "x"), num_labels=500)
    network = OscarNetwork(settings)
    for weight in (network.img_embedding.weight, network.head.weight, network.bert.pooler.dense.weight):
        assert weight.std().item() == pytest.approx(0.07, rel=0.02)
    assert not network.img_embedding.bias.any()


def test_what_adds_to_a_layers_input_may_begin_narrow() -> None:
    sizes = {"num_hidden_layers": 2, "initializer_range": 0.07, "residual_range": 0.01}
    network = OscarNetwork(read_settings(BASE | sizes, "x"))
    for layer in network.layers:
        for weight in (layer.attention.output.dense.weight, layer.output.dense.weight):
            assert weight.std().item() == pytest.approx(0.01, rel=0.1)
        for weight in (layer.attention.self.query.weight, layer.intermediate.dense.weight):
            assert weight.std().item() == pytest.approx(0.07, rel=0.1)
    assert "residual_range" in write_settings(network.settings)
    assert "residual_range" not in write_settings(read_settings(BASE, "x"))
