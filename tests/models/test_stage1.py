"""The first stage: its three losses by a Q-Former written out in float64, its masks, negatives, and ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, normalize
from transformers import BertConfig, BertForMaskedLM

from lavis_ext.common.config.decode import ConfigDecoder
from lavis_ext.common.config.schema import ModelConfig, RunConfig, TermConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.registry import registry
from lavis_ext.models.losses import contrast_targets, draw_negatives
from lavis_ext.models.stage1 import identities, writing_mask
from lavis_ext.models.weights import to_upstream
from lavis_ext.runners.schedule import build_optimizer, parameter_groups, regrouped
from tests.support.blip2 import small_batch, small_model, small_stage1
from tests.support.processes import run_ranks

HEADS, QUERIES = 2, 4


class Straight:
    """A Q-Former in float64, one unpadded sample at a time, from the weights of `model`."""

    def __init__(self, model: Any) -> None:
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
        self.layers, self.bos = model.net.config.qformer_config.num_hidden_layers, model.tokenizer.bos_token_id

    def norm(self, x: Tensor, name: str, eps: float = 1e-12) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def dense(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def attend(self, x: Tensor, keys: Tensor, name: str, allowed: Tensor) -> Tensor:
        q, k, v = (self.dense(y, f"{name}.attention.{p}") for y, p in ((x, "query"), (keys, "key"), (keys, "value")))
        width = q.shape[-1] // HEADS
        found = []
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / math.sqrt(width)
            found.append(scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v[:, part])
        out = self.dense(torch.cat(found, -1), f"{name}.output.dense")
        return self.norm(out + x, f"{name}.output.LayerNorm")

    def feed(self, x: Tensor, layer: str, kind: str) -> Tensor:
        inner = gelu(self.dense(x, f"{layer}.intermediate{kind}.dense"))
        return self.norm(self.dense(inner, f"{layer}.output{kind}.dense") + x, f"{layer}.output{kind}.LayerNorm")

    def run(self, ids: list[int], allowed: Tensor, image: Tensor | None) -> Tensor:
        """[Q + L, C]: queries first, if there is an image."""
        words = self.weights["net.embeddings.word_embeddings.weight"][ids]
        x = words + self.weights["net.embeddings.position_embeddings.weight"][: len(ids)]
        count = 0 if image is None else QUERIES
        if image is not None:
            x = torch.cat([self.weights["net.query_tokens"][0], x])
        x = self.norm(x, "net.qformer.layernorm")
        for number in range(self.layers):
            layer = f"net.qformer.encoder.layer.{number}"
            x = self.attend(x, x, f"{layer}.attention", allowed)
            text, queries = self.feed(x[count:], layer, ""), x[:count]
            if image is not None:
                everything = torch.ones(count, len(image), dtype=torch.bool)
                queries = self.attend(queries, image, f"{layer}.crossattention", everything)
                queries = self.feed(queries, layer, "_query")
            x = torch.cat([queries, text])
        return x

    def see_all(self, count: int) -> Tensor:
        return torch.ones(count, count, dtype=torch.bool)

    def image(self, embeds: Tensor) -> Tensor:
        return normalize(self.dense(self.run([], self.see_all(QUERIES), embeds), "net.vision_projection"), dim=-1)

    def text(self, ids: list[int]) -> Tensor:
        return normalize(self.dense(self.run(ids, self.see_all(len(ids)), None)[0], "net.text_projection"), dim=-1)

    def match(self, embeds: Tensor, ids: list[int]) -> Tensor:
        hidden = self.run(ids, self.see_all(QUERIES + len(ids)), embeds)
        return self.dense(hidden[:QUERIES], "net.itm_head").mean(0)

    def write(self, embeds: Tensor, ids: list[int]) -> Tensor:
        """Log-probabilities [L, V] of the words behind the opening one."""
        total = QUERIES + len(ids)
        allowed = torch.tensor([[j < QUERIES or (i >= QUERIES and j <= i) for j in range(total)] for i in range(total)])
        hidden = self.run([self.bos, *ids[1:]], allowed, embeds)[QUERIES:]
        inner = self.norm(gelu(self.dense(hidden, "lm_head.dense")), "lm_head.norm")
        words = self.weights["net.embeddings.word_embeddings.weight"]
        return linear(inner, words, self.weights["lm_head.bias"]).log_softmax(-1)


def smoothed(log_probs: Tensor, target: int) -> float:
    """-(0.9 log p(target) + 0.1 mean log p)."""
    return -float(0.9 * log_probs[target] + 0.1 * log_probs.mean())


def expected(model: Any, batch: dict[str, Any], ids_of: list[Any], negatives: dict[str, list[int]]) -> dict[str, float]:
    """The three losses, sample by sample in float64."""
    straight, count = Straight(model), len(batch["text_input"])
    texts = model.encode(batch["text_input"])
    ids = [row[: int(mask.sum())].tolist() for row, mask in zip(texts.ids, texts.mask, strict=True)]
    embeds = model.double().encode_image({"image": batch["image"].double()})
    images, words = [straight.image(e) for e in embeds], [straight.text(i) for i in ids]
    temp = straight.weights["temp"]
    sim = torch.stack([torch.stack([(image @ word).max() / temp for word in words]) for image in images])
    same = torch.tensor([[float(a == b) for b in ids_of] for a in ids_of], dtype=torch.float64)
    targets = 0.9 * same / same.sum(1, keepdim=True) + 0.1 / count
    itc = [-(way.log_softmax(1) * targets).sum() / count for way in (sim, sim.T)]
    pairs = [(i, i, 1) for i in range(count)]
    pairs += [(negatives["images"][i], i, 0) for i in range(count)] + [
        (i, negatives["texts"][i], 0) for i in range(count)
    ]
    itm = [-float(straight.match(embeds[i], ids[t]).log_softmax(-1)[label]) for i, t, label in pairs]
    lm = [smoothed(straight.write(e, row)[t - 1], row[t]) for e, row in zip(embeds, ids, strict=True)
          for t in range(1, len(row))]  # fmt: skip
    return {"loss_itc": float(itc[0] + itc[1]) / 2, "loss_itm": sum(itm) / len(itm), "loss_lm": sum(lm) / len(lm)}


def fixed_negatives(monkeypatch: pytest.MonkeyPatch, texts: list[int], images: list[int]) -> None:
    drawn = iter([torch.tensor(texts), torch.tensor(images)])
    monkeypatch.setattr("lavis_ext.models.stage1.draw_negatives", lambda *_: next(drawn))


@pytest.mark.parametrize("ids", [None, ["coco_1", "coco_2", "coco_1"]])
def test_the_three_losses_in_float64(ids: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_stage1()
    batch = {"image": small_batch()["image"], "text_input": ["a red circle", "two green triangles", "x"]}
    batch |= {"image_id": ids} if ids else {}
    fixed_negatives(monkeypatch, texts=[1, 2, 1], images=[1, 0, 1])
    found = model(batch)
    wanted = expected(model, batch, ids or [0, 1, 2], {"texts": [1, 2, 1], "images": [1, 0, 1]})
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value, abs=1e-5), name
    assert found["loss"].item() == pytest.approx(sum(wanted.values()), abs=3e-5)


def test_queries_do_not_see_the_text_that_is_written() -> None:
    model, batch = small_stage1(), small_batch()
    embeds = model.encode_image(batch)
    hidden, logits = model.caption_logits(embeds, model.encode(["a red circle", "two", "three blue"]))
    torch.testing.assert_close(hidden, model.query_image(embeds))
    _, others = model.caption_logits(embeds, model.encode(["a red star", "two", "three"]))
    torch.testing.assert_close(logits[0, :3], others[0, :3])
    assert not torch.allclose(logits[0, 3], others[0, 3])


def test_the_mask_of_a_written_text() -> None:
    mask = writing_mask(torch.tensor([[1, 1, 0]]), 2, torch.float32)[0, 0] == 0
    rows = ["11000", "11000", "11100", "11110", "11110"]
    assert mask.int().tolist() == [[int(c) for c in row] for row in rows]


def test_negatives_never_show_the_same_picture() -> None:
    torch.manual_seed(0)
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    likely = torch.tensor([[9.0, 0, 9], [5, 9, -5], [0, 0, 0]])
    for _ in range(20):
        drawn = draw_negatives(likely, same)
        assert drawn[0] == drawn[2] == 1
        assert drawn[1] != 1
    assert draw_negatives(likely, torch.ones(3, 3, dtype=torch.bool)).tolist() == [-1, -1, -1]


def test_a_batch_of_one_and_a_batch_of_one_picture() -> None:
    model = small_stage1()
    for batch in (small_batch(1), {**small_batch(), "image_id": ["same"] * 3}):
        losses = model(batch)
        assert all(torch.isfinite(value) for value in losses.values())
    assert model(small_batch(1))["loss_itc"].item() == pytest.approx(0, abs=1e-6)


def test_ids_may_be_numbers_or_texts_or_none() -> None:
    base = {"text_input": ["a", "b", "c"]}
    cpu = torch.device("cpu")
    text = identities({**base, "image_id": ["7", "8", "7"]}, cpu)
    assert torch.equal(text, identities({**base, "image_id": torch.tensor([7, 8, 7])}, cpu))
    assert text[0] == text[2] != text[1]
    other = identities({**base, "image_id": ["7", "8", "7"], "dataset": "vg_caption"}, cpu)
    assert not set(other.tolist()) & set(text.tolist())
    assert len(set(identities(base, cpu).tolist())) == 3


def test_every_weight_learns() -> None:
    model = small_stage1().train()
    model(small_batch())["loss"].backward()
    still = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert still == []


def test_a_frozen_tower_in_half_precision() -> None:
    model = small_stage1(vit_precision="bf16", freeze_vit=True)
    assert model.net.vision_model.encoder.layers[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert not any("vision_model.encoder" in name for name in model.trainable_state())
    assert torch.isfinite(model(small_batch())["loss"])


def test_features_and_matching() -> None:
    model, batch = small_stage1(arch="blip2_feature_extractor"), small_batch()
    image, text = model.extract_features(batch, "image"), model.extract_features(batch, "text")
    both = model.extract_features(batch)
    assert image.image_embeds_proj.shape == (3, 4, 16)
    assert text.text_embeds_proj.shape == (3, 8, 16)  # padded to the longest, not to max_txt_len
    assert both.multimodal_embeds.shape == (3, 4, 32)
    with pytest.raises(ConfigError, match="no mode 'both'"):
        model.extract_features(batch, "both")
    matcher = small_stage1(arch="blip2_image_text_matching")
    cosines = matcher(batch, match_head="itc")
    expected_cosines = torch.einsum("bqd,nd->bqn", image.image_embeds_proj, text.text_embeds_proj[:, 0]).amax(1)
    torch.testing.assert_close(cosines, expected_cosines)
    torch.testing.assert_close(
        matcher(batch), model.match(model.encode_image(batch), model.encode(batch["text_input"]))
    )
    with pytest.raises(ConfigError, match="itm or itc"):
        matcher(batch, match_head="lm")


def test_the_second_stage_takes_the_queries_of_the_first(tmp_path: Path) -> None:
    first = small_stage1(3)
    torch.save({"model": first.trainable_state()}, tmp_path / "first.pth")
    sizes = {**small_model().config.sizes}
    sizes["qformer_config"] = {**sizes["qformer_config"], "cross_attention_frequency": 1}
    second = small_model(4, sizes=sizes, qformer_weight_path=str(tmp_path / "first.pth"))
    shared = {n for n in second.state_dict() if n.startswith(("net.query_tokens", "net.qformer."))}
    assert all(torch.equal(second.state_dict()[n], first.state_dict()[n]) for n in shared)


def test_a_checkpoint_of_lavis_there_and_back(tmp_path: Path) -> None:
    source = small_stage1(3, freeze_vit=True)
    torch.save({"model": to_upstream(source.trainable_state())}, tmp_path / "blip2.pth")
    found = small_stage1(5, freeze_vit=True, load_finetuned=True, finetuned=str(tmp_path / "blip2.pth"))
    assert all(torch.equal(found.state_dict()[n], t) for n, t in source.trainable_state().items())
    broken = {**to_upstream(source.trainable_state()), "momentum": torch.zeros(1)}
    torch.save({"model": broken}, tmp_path / "broken.pth")
    with pytest.raises(IntegrityError, match="momentum"):
        small_stage1(5, load_finetuned=True, finetuned=str(tmp_path / "broken.pth"))


def test_a_folder_in_transformers_form(tmp_path: Path) -> None:
    source = small_stage1(3)
    source.net.save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    found = small_stage1(6, pretrained=str(tmp_path), sizes={}, tokenizer=None)
    assert torch.equal(found.net.itm_head.weight, source.net.itm_head.weight)
    torch.testing.assert_close(
        found.extract_features(small_batch()).multimodal_embeds,
        source.extract_features(small_batch()).multimodal_embeds,
    )


def test_a_qformer_that_starts_from_bert(tmp_path: Path) -> None:
    model = small_stage1()
    words = len(model.tokenizer) - 1
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(9)
    bert = BertForMaskedLM(BertConfig(**sizes, vocab_size=words)).eval()
    bert.save_pretrained(tmp_path)
    found = small_stage1(1, bert_model=str(tmp_path))
    ids = torch.tensor([[1, 7, 9, 20]])
    plain = small_stage1(1).state_dict()
    hidden = bert.bert(ids).last_hidden_state
    texts = type(found.encode(["a"]))(ids, torch.ones_like(ids))
    # BERT adds the embedding of the first token type, which the Q-Former does not have
    bert.bert.embeddings.token_type_embeddings.weight.data.zero_()
    torch.testing.assert_close(found.encode_text(texts), bert.bert(ids).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert not torch.equal(hidden, found.encode_text(texts))
    layer = "net.qformer.encoder.layer.1"
    state = found.state_dict()
    assert torch.equal(state[f"{layer}.intermediate_query.dense.weight"], state[f"{layer}.intermediate.dense.weight"])
    assert torch.equal(state["net.vision_projection.weight"], plain["net.vision_projection.weight"])
    small = BertForMaskedLM(BertConfig(**{**sizes, "intermediate_size": 16}, vocab_size=words))
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ConfigError, match=r"bert_model .*does not fit"):
        small_stage1(1, bert_model=str(tmp_path / "small"))


@pytest.mark.parametrize(
    ("arch", "key", "reader"),
    [
        *(("blip2", key, "blip2_opt") for key in ("only_proj", "qformer_weight_path", "prompt", "opt_model")),
        ("blip2_opt", "bert_model", "blip2_feature_extractor"),
    ],
)
def test_keys_of_the_other_stage_are_refused(arch: str, key: str, reader: str) -> None:
    door = ConfigDecoder()
    door.build(ModelConfig, {"arch": arch, "model_type": "tiny", key: "x"}, "model")
    (problem,) = door.problems
    assert problem.where == f"model.{key}"
    assert reader in problem.way_out


def test_the_losses_have_names() -> None:
    assert {"itc", "itm", "lm"} <= set(registry.list_objectives())
    with pytest.raises(ConfigError):
        small_stage1(losses=[TermConfig(name="itx")])


def test_losses_are_weighted_and_left_out() -> None:
    torch.manual_seed(5)
    whole = small_stage1()(small_batch())
    torch.manual_seed(5)
    some = small_stage1(losses=[TermConfig(name="itc", weight=0.5), TermConfig(name="lm")])(small_batch())
    assert set(some) == {"loss", "loss_itc", "loss_lm"}
    assert torch.equal(some["loss"], 0.5 * whole["loss_itc"] + whole["loss_lm"])


def leave_identities(out: str) -> None:
    """The ids that a rank gives to pictures without `image_id`."""
    dist.init_process_group("gloo")
    found = identities({"text_input": ["a", "b", "c"]}, torch.device("cpu"))
    Path(f"{out}_{dist.get_rank()}").write_text(json.dumps(found.tolist()))


@pytest.mark.slow
def test_pictures_without_an_id_are_different_ones_on_every_rank(tmp_path: Path) -> None:
    done = run_ranks(leave_identities, 2, (str(tmp_path / "ids"),), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    mine, theirs = (json.loads((tmp_path / f"ids_{rank}").read_text()) for rank in (0, 1))
    assert len({*mine, *theirs}) == 6
    with_id = identities({"text_input": ["a"], "image_id": ["7"]}, torch.device("cpu"))
    assert not {*mine, *theirs} & set(with_id.tolist())


def one_of_two_ranks(out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, model, whole = dist.get_rank(), small_stage1(itc_gradient="both"), ranks_batch()
    span = slice(0, 1) if rank == 0 else slice(1, 3)
    losses = model({key: value[span] for key, value in whole.items()})
    # weighted as if the ranks had had the same number of samples each: the sum over samples of both
    (losses["loss_itc"] * (span.stop - span.start)).backward()
    grad = model.net.query_tokens.grad
    dist.all_reduce(grad)
    total = losses["loss_itc"].detach() * (span.stop - span.start)
    dist.all_reduce(total)
    if rank == 0:
        torch.save({"grad": grad, "loss": total, "all": {k: v.detach() for k, v in losses.items()}}, out)


def ranks_batch() -> dict[str, Any]:
    return {"image": small_batch()["image"], "text_input": ["a red circle", "two", "x"], "image_id": ["1", "2", "1"]}


@pytest.mark.slow
def test_two_ranks_contrast_as_one_with_all_samples(tmp_path: Path) -> None:
    done = run_ranks(one_of_two_ranks, 2, (str(tmp_path / "out.pt"),), tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    model = small_stage1(itc_gradient="both")
    loss = model(ranks_batch())["loss_itc"] * 3
    loss.backward()
    assert found["loss"].item() == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(found["grad"], model.net.query_tokens.grad, rtol=1e-4, atol=1e-5)
    assert all(torch.isfinite(value) for value in found["all"].values())


def test_the_temperature_decays_and_states_of_earlier_versions_are_regrouped() -> None:
    run = RunConfig(task="image_text_pretrain", lr_layer_decay=0.9, weight_decay=0.1)
    model = small_stage1(freeze_vit=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [([names[id(p)] for p in g["params"]], g["weight_decay"]) for g in parameter_groups(model, run)]
    assert [decay for inside, decay in groups if "temp" in inside] == [0.1]
    earlier = torch.optim.AdamW(parameter_groups(model, run, above=0), lr=1e-3)
    for number, parameter in enumerate(p for group in earlier.param_groups for p in group["params"]):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    earlier.step()
    moments = {names[id(parameter)]: values["exp_avg"].clone() for parameter, values in earlier.state.items()}
    optimizer = build_optimizer(model, run)
    optimizer.load_state_dict(regrouped(earlier.state_dict(), optimizer, model, run))
    assert {names[id(p)]: values["exp_avg"] for p, values in optimizer.state.items()}.keys() == moments.keys()
    assert all(torch.equal(values["exp_avg"], moments[names[id(p)]]) for p, values in optimizer.state.items())
    kept = {names[id(p)]: (g["weight_decay"], g["lr_scale"]) for g in optimizer.param_groups for p in g["params"]}
    assert kept["temp"] == (0.0, 1.0)
    assert {kept[name] for name in kept if ".layers.1." in name} == {(0.1, 1.0), (0.0, 1.0)}


def test_candidates_of_one_picture_share_what_is_sought() -> None:
    """Two rows of three candidates: 0.9 for the row's picture, shared by its texts, and 0.1 over all."""
    found = contrast_targets(torch.tensor([4, 7]), torch.tensor([4, 7, 4]))
    expected = [[0.45 + 0.1 / 3, 0.1 / 3, 0.45 + 0.1 / 3], [0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3]]
    assert torch.allclose(found, torch.tensor(expected))
