"""The registered `oscar`: its views and losses, its configs, and settings that are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lavis_ext.common.config.decode import ConfigDecoder
from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.config.schema import ModelConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.models import default_config, load_model
from lavis_ext.models.base_model import BaseModel
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.oscar.model import Oscar
from lavis_ext.oscar.network import VIEWS
from tests.support.oscar import SMALL, TINY_VOCAB, Reference, oscar_batch, oscar_state, write_checkpoint

CONFIG = {**SMALL, "num_hidden_layers": 3, "cls_hidden_scale": 3, "attention_probs_dropout_prob": 0.0}


SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def model(folder: Path, weights: str = "linear", **changes: Any) -> Oscar:
    write_checkpoint(folder, oscar_state(CONFIG, weights), CONFIG)
    settings = {"pretrained": str(folder), "drop_out": 0.0, "tokenizer": str(TINY_VOCAB), **changes}
    return Oscar.from_config(OscarConfig(arch="oscar", model_type="base", **settings)).eval()


def tiny(**changes: Any) -> Oscar:
    settings = {"sizes": {"text_config": SIZES}, "tokenizer": str(TINY_VOCAB), "img_feature_dim": 14, **changes}
    return Oscar.from_config(OscarConfig(arch="oscar", model_type="tiny", **settings))


def pair_batch() -> dict[str, Tensor]:
    one, two = oscar_batch(CONFIG, seed=1), oscar_batch(CONFIG, seed=2)
    return {name: torch.stack([one[name], two[name]], 1) for name in one}


def word_batch(head: str) -> dict[str, Any]:
    batch = oscar_batch(CONFIG, texts=4)
    chosen = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    words = torch.tensor([9, 8, 7, 6])
    if head == "caption":
        mask = torch.ones(4, 9, 9).tril().byte()
        mask[..., 4:] = 1
        return {**batch, "attention_mask": mask, "masked_pos": chosen, "masked_ids": words}
    labels = torch.full((4, 4), -100).masked_scatter(chosen, words)
    return {**batch, "lm_labels": labels, "labels": torch.tensor([0, 1, 1, 0])}


def test_views_hide_one_modality_from_every_token(tmp_path: Path) -> None:
    oscar = model(tmp_path)
    reference, batch = Reference(oscar_state(CONFIG), CONFIG), oscar_batch(CONFIG)
    for view, hidden in (("full", slice(0, 0)), ("text", slice(3, None)), ("image", slice(0, 3))):
        mask = batch["attention_mask"].clone()
        mask[:, hidden] = 0
        expected = reference.classify(reference.pooled({**batch, "attention_mask": mask}))
        found = oscar.outputs(batch, view)
        np.testing.assert_allclose(found.logits.detach().numpy(), expected, atol=1e-5)
        assert found.hidden is None and found.attentions is None and found.valid.all()  # type: ignore[union-attr]
        whole = oscar.outputs(batch, view, hidden=True)
        torch.testing.assert_close(whole.logits, found.logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(whole.mask, mask.bool())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no 'both'; choose from full, text, image"):
        oscar.outputs(batch, "both")


def tokens_through(part: torch.nn.Module, run: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What `run` gives, and how many tokens (or regions) `part` was called with each time."""
    seen: list[int] = []
    handle = part.register_forward_hook(lambda module, given, found: seen.append(given[0].shape[1]))
    with handle:
        return run(), seen


@pytest.mark.parametrize("weights", ["linear", "pair"])
@pytest.mark.parametrize("training", [False, True])
def test_several_views_are_embedded_once_and_are_as_each_by_itself(
    weights: str, training: bool, tmp_path: Path
) -> None:
    oscar = model(tmp_path, weights, drop_out=0.3).train(training)
    batch = pair_batch() if weights == "pair" else oscar_batch(CONFIG)
    torch.manual_seed(0)
    alone = {view: oscar.outputs(batch, view) for view in VIEWS}
    torch.manual_seed(0)
    found, seen = tokens_through(oscar.network.img_embedding, lambda: oscar.outputs_by_view(batch, VIEWS))
    assert seen == [5] and list(found) == list(VIEWS)
    for view, one in alone.items():
        assert torch.equal(found[view].logits, one.logits)
        assert torch.equal(found[view].valid, one.valid)  # type: ignore[arg-type]


def test_a_subclass_with_outputs_of_its_own_gives_those_of_each_view(tmp_path: Path) -> None:
    class Doubled(Oscar):
        def outputs(self, batch: Any, view: str = "full", hidden: bool = False, attentions: bool = False) -> Any:
            found = super().outputs(batch, view, hidden, attentions)
            return replace(found, logits=2 * found.logits)

    oscar, batch = model(tmp_path), oscar_batch(CONFIG)
    plain = oscar.outputs_by_view(batch, VIEWS)
    oscar.__class__ = Doubled
    for view, found in oscar.outputs_by_view(batch, VIEWS).items():
        torch.testing.assert_close(found.logits, 2 * plain[view].logits)


def test_the_last_layer_of_a_classifier_that_is_not_trained_runs_for_one_token(tmp_path: Path) -> None:
    oscar, batch = model(tmp_path), oscar_batch(CONFIG)
    last = oscar.encoder_layers()[-1].intermediate
    found, seen = tokens_through(last, lambda: oscar.outputs(batch))
    whole, all_seen = tokens_through(last, lambda: oscar.outputs(batch, hidden=True))
    trained, too = tokens_through(last, lambda: oscar.train().outputs(batch))
    assert (seen, all_seen, too) == ([1], [8], [8])
    torch.testing.assert_close(found.logits, whole.logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.logits, trained.logits, atol=1e-6, rtol=1e-5)  # dropout is 0


def test_the_batch_is_left_as_it_was(tmp_path: Path) -> None:
    batch = oscar_batch(CONFIG)
    before = batch["attention_mask"].clone()
    model(tmp_path).outputs(batch, "text")
    assert torch.equal(batch["attention_mask"], before)


def test_an_image_without_regions_has_no_image_view(tmp_path: Path) -> None:
    batch = oscar_batch(CONFIG)
    batch["attention_mask"][1, 3:] = 0
    found = model(tmp_path).outputs(batch, "image")
    assert found.valid is not None and found.valid.tolist() == [True, False, True, True]
    assert found.logits.isfinite().all()


def test_hidden_states_and_scores_where_they_are_asked_for(tmp_path: Path) -> None:
    found = model(tmp_path).outputs(oscar_batch(CONFIG), hidden=True, attentions=True)
    assert found.hidden is not None and found.attentions is not None
    assert [t.shape for t in found.hidden] == [(4, 8, 24)] * 4 and [t.shape for t in found.attentions] == [
        (4, 4, 8, 8)
    ] * 3


def test_a_pair_counts_two_sequences_and_one_row(tmp_path: Path) -> None:
    oscar, batch = model(tmp_path, "pair"), pair_batch()
    batch["attention_mask"][2, 1] = 0
    found = oscar.outputs(batch, hidden=True)
    assert found.hidden is not None and found.mask is not None and found.valid is not None
    assert (found.logits.shape, found.hidden[0].shape, found.mask.shape) == ((4, 7), (8, 8, 24), (8, 8))
    assert found.valid.tolist() == [True, True, False, True]
    torch.testing.assert_close(found.logits, oscar.network(**batch).logits)


@pytest.mark.parametrize("head", ["caption", "pretrain"])
def test_word_heads_yield_the_rows_that_count(tmp_path: Path, head: str) -> None:
    oscar, batch = model(tmp_path, "pretrain", head=head), word_batch(head)
    found = oscar.outputs(batch)
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask", "img_feats")}
    whole = oscar.network(**inputs).logits
    torch.testing.assert_close(found.logits, whole[[0, 1, 1, 3], [1, 1, 2, 2]])
    assert found.valid is not None and found.valid.tolist() == [True] * 4
    image = oscar.outputs(batch, "image").logits
    assert not torch.allclose(image, found.logits)


def test_class_losses_are_those_of_their_formulae(tmp_path: Path) -> None:
    scores = torch.tensor([[0, 0.3, 0, 1, 0, 0, 0], [0.6, 0, 0, 0, 0, 0, 0], [0] * 7, [1.0] * 7])
    labels = torch.tensor([3, 0, 1, 6])
    batch = {**oscar_batch(CONFIG), "targets": scores, "labels": labels}
    plain = model(tmp_path)
    z = plain.outputs(batch).logits.detach().double().numpy()
    t, p = scores.double().numpy(), 1 / (1 + np.exp(-z))
    logs = z - np.log(np.exp(z).sum(1, keepdims=True))
    expected = {
        "bce": -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1).mean(),
        "kl": np.where(t > 0, t * (np.log(np.where(t > 0, t, 1)) - logs), 0).sum(1).mean(),
        "ce": -logs[range(4), labels].mean(),
    }
    for kind in ("bce", "kl", "ce", "xe", "sfmx"):
        found = model(tmp_path, loss_type=kind)(batch)["loss"].item()
        assert found == pytest.approx(expected.get(kind, expected["ce"]), rel=1e-5)
    one_hot = {**batch, "targets": torch.eye(7)[labels]}
    with_classes = {name: value for name, value in batch.items() if name != "targets"}
    bce = model(tmp_path, loss_type="bce")
    assert bce(with_classes)["loss"].item() == pytest.approx(bce(one_hot)["loss"].item())


def test_the_caption_loss_smooths_and_drops_the_worst(tmp_path: Path) -> None:
    oscar = model(tmp_path, "words", label_smoothing=0.1, drop_worst_ratio=0.5, drop_worst_after=2, head="caption")
    batch = word_batch("caption")
    logits = oscar.outputs(batch).logits.detach().double().numpy()
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = np.full(logs.shape, 0.1 / 52)
    target[range(4), batch["masked_ids"]] = 0.9
    each = (target * (np.log(target) - logs)).sum(1)
    oscar.train()
    assert [oscar(batch)["loss"].item() for _ in range(2)] == pytest.approx([each.mean()] * 2, rel=1e-5)
    assert oscar(batch)["loss"].item() == pytest.approx(np.sort(each)[:2].mean(), rel=1e-5)
    assert int(oscar.trainable_state()["batches"]) == 3
    oscar.eval()(batch)
    assert int(oscar.batches) == 3


def test_the_pretraining_loss_is_of_words_and_of_matching(tmp_path: Path) -> None:
    oscar, batch = model(tmp_path, "pretrain", head="pretrain"), word_batch("pretrain")
    found, outputs = oscar(batch), oscar.outputs(batch)
    words = -outputs.logits.log_softmax(-1)[range(4), [9, 8, 7, 6]].mean().item()
    match = -outputs.extra["matching"].log_softmax(-1)[range(4), [0, 1, 1, 0]].mean().item()
    assert found["loss_mlm"].item() == pytest.approx(words, rel=1e-5)
    assert found["loss_match"].item() == pytest.approx(match, rel=1e-5)
    assert found["loss"].item() == pytest.approx(words + match, rel=1e-5)
    nothing = {**batch, "lm_labels": torch.full((4, 4), -100)}
    assert oscar(nothing)["loss_mlm"].item() == 0 and math.isfinite(oscar(nothing)["loss"].item())


def test_targets_that_do_not_fit_are_named(tmp_path: Path) -> None:
    batch = oscar_batch(CONFIG)
    oscar = model(tmp_path)
    with pytest.raises(ConfigError, match="the model has 7 classes, the data set 9 or more"):
        oscar({**batch, "labels": torch.tensor([1, 2, 8, 0])})
    with pytest.raises(ConfigError, match=r"loss_type ce finds no targets in the batch \(attention_mask, "):
        oscar({**batch, "targets": torch.zeros(4, 7)})
    with pytest.raises(ConfigError, match="the model has 7 classes, the data set 3"):
        model(tmp_path, loss_type="bce")({**batch, "targets": torch.zeros(4, 3)})
    with pytest.raises(ConfigError, match=r"args\.vocab: the data set has the token 53, the model 53 words"):
        oscar({**batch, "input_ids": batch["input_ids"] + 53 - batch["input_ids"].max()})
    with pytest.raises(ConfigError, match="has no attention_mask"):
        oscar({"image": torch.zeros(1)})


def test_shipped_types() -> None:
    oscar = load_model("oscar", "tiny")
    assert isinstance(oscar, Oscar) and oscar.network.settings.sizes["vocab_size"] == len(
        TINY_VOCAB.read_text().split()
    )
    assert len(oscar.encoder_layers()) == 6
    student = Oscar.from_config(replace(default_config("oscar", "tiny"), num_hidden_layers=3))
    assert len(student.encoder_layers()) == 3
    for kind, folder in (("base", "base-vg-labels/ep_107_1192087"), ("large", "large-vg-labels/ep_55_1617000")):
        assert default_config("oscar", kind).pretrained == f"oscar/pretrained_models/{folder}"


def test_from_scratch_follows_the_seed() -> None:
    torch.manual_seed(3)
    one = tiny(num_labels=5)
    torch.manual_seed(3)
    two = tiny(num_labels=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.network.head.weight.shape == (5, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": {}}, "no weights to start from"),
        ({"sizes": {"vision_config": {}}}, "Oscar has no size 'vision_config'"),
        ({"sizes": {"text_config": {"hiden_size": 3}}}, "Oscar has no size 'hiden_size'"),
        ({"sizes": {"text_config": {"hidden_size": 8}}}, "lacks num_hidden_layers, num_attention_heads"),
        ({"sizes": {"text_config": {**SIZES, "num_attention_heads": 3}}}, "hidden size .16. is not a multiple"),
        ({"use_pair": True, "head": "caption"}, "model.use_pair: head is 'caption'"),
        ({"tokenizer": "nowhere"}, "model.tokenizer nowhere: no vocabulary"),
        ({"pretrained": "nowhere"}, "model.pretrained nowhere: no folder"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_frozen_embeddings_are_neither_trained_nor_saved() -> None:
    oscar = tiny(head="caption", freeze_embedding=True)
    name = "network.bert.embeddings.word_embeddings.weight"
    assert name in oscar.frozen_names() and name not in oscar.trainable_state()
    oscar.train()
    oscar({**word_batch("caption"), "img_feats": torch.randn(4, 5, 14)})["loss"].backward()
    assert oscar.network.bert.embeddings.word_embeddings.weight.grad is None


def test_every_parameter_that_is_trained_takes_part() -> None:
    """Ranks that train together wait for the gradient of each: the pooler of a captioner has none, so it is frozen."""
    given = {**oscar_batch(CONFIG), "labels": torch.tensor([0, 1, 0, 1])}
    for head, batch in (("sequence", given), ("caption", word_batch("caption")), ("pretrain", word_batch("pretrain"))):
        oscar = tiny(head=head, num_labels=2).train()
        oscar(batch)["loss"].backward()
        idle = [name for name, p in oscar.named_parameters() if p.requires_grad and p.grad is None]
        assert idle == [] and any("pooler" in name for name in oscar.frozen_names()) == (head == "caption")


@pytest.mark.parametrize(
    ("arch", "key", "value", "told"),
    [
        ("oscar", "opt_model", "x", "blip2_opt"),
        ("oscar", "drop_out", 1.0, "out of its range"),
        ("oscar", "label_smoothing", -0.1, "out of its range"),
        ("blip2_opt", "head", "caption", "oscar"),
        ("blip2_opt", "drop_worst_ratio", 0.3, "oscar"),
    ],
)
def test_keys_that_an_architecture_does_not_read(arch: str, key: str, value: Any, told: str) -> None:
    door = ConfigDecoder()
    door.build(ModelConfig, {"arch": arch, "model_type": "tiny", key: value}, "model")
    (problem,) = door.problems
    assert problem.where == f"model.{key}"
    assert told in str(problem)


def test_recomputed_activations_give_the_same_gradients() -> None:
    batch = {**oscar_batch(CONFIG), "labels": torch.tensor([0, 1, 0, 1])}
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        oscar = tiny(use_grad_checkpoint=recompute, drop_out=0.0, num_labels=2).train()
        oscar(batch)["loss"].backward()
        found.append([p.grad.clone() for p in oscar.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])


def test_half_precision_gives_numbers(tmp_path: Path) -> None:
    batch = oscar_batch(CONFIG)
    batch["attention_mask"][3] = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert model(tmp_path).outputs(batch).logits.isfinite().all()


def test_decay_is_left_off_biases_and_norms(tmp_path: Path) -> None:
    groups = model(tmp_path).optimizer_params(0.05)
    bare = {id(parameter) for parameter in groups[1]["params"]}
    for name, parameter in model(tmp_path).named_parameters():
        assert parameter.ndim > 0 and (parameter.ndim > 1 or name.endswith((".bias", ".weight")))
    named = dict(model(tmp_path).named_parameters())
    assert len(bare) == sum(name.endswith("bias") or "LayerNorm" in name for name in named)


def test_no_other_architecture_is_distilled_by_accident() -> None:
    plain = BaseModel()
    for call in (lambda: plain.outputs({}), lambda: plain.losses(None, {}), plain.encoder_layers):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="cannot be distilled"):
            call()


def test_only_a_caption_head_writes_captions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="head is 'sequence': it writes no captions"):
        model(tmp_path).generate({})


def test_weights_below_the_cache_root_of_a_run_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "root/weights", oscar_state(CONFIG), CONFIG)
    file = tmp_path / "run.yaml"
    file.write_text("model: {arch: oscar, model_type: base, pretrained: weights}\nrun: {task: oscar_vqa}\n")
    given = load_config(file, [f"env.cache_root={tmp_path / 'root'}"]).model
    assert given is not None and Oscar.from_config(given).head == "sequence"
    plain = load_config(file).model
    assert plain is not None and plain.pretrained == "weights"
