"""InstructBLIP: what learns, transformers' network as another road to the loss, and weights in and out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.models.export import export_transformers, export_upstream
from lavis_ext.models.settings import Blip2T5InstructConfig, LoraConfig
from lavis_ext.models.weights import load_over, to_upstream
from lavis_ext.models.zoo import build_model
from tests.support.blip2 import CONFIG, TEXT_SIZES, of_arch, small_batch, small_of, small_stage1

ARCHS = ["blip2_vicuna_instruct", "blip2_t5_instruct"]
ANSWERS = ["red", "two of them", "a circle"]


def batch(count: int = 3, **more: Any) -> Any:
    asked = ["what is it?", "how many dogs are in the picture?", "why"][:count]
    return {**small_batch(count), "text_input": asked, "text_output": ANSWERS[:count], **more}


def kept(model: Any, path: Path) -> str:
    save_file({name: tensor.detach().clone() for name, tensor in model.trainable_state().items()}, path)
    return str(path)


@pytest.mark.parametrize("arch", ARCHS)
def test_only_the_qformer_learns_where_the_rest_is_frozen(arch: str) -> None:
    model = small_of(arch, freeze_vit=True, freeze_llm=True).train()
    model(batch())["loss"].backward()
    learnt = {name.removeprefix("net.") for name, p in model.named_parameters() if p.grad is not None}
    assert all(
        name.startswith(("query_tokens", "qformer.", "language_projection.", "vision_model.post")) for name in learnt
    )
    assert {"qformer.embeddings.word_embeddings.weight", "qformer.embeddings.position_embeddings.weight"} <= learnt
    assert not any(name.startswith("net.language_model") for name in model.trainable_state())


@pytest.mark.parametrize("arch", ARCHS)
def test_the_instruction_is_seen_by_the_queries(arch: str) -> None:
    model = small_of(arch)
    pictures = {"image": small_batch(2)["image"]}
    one, other = (model.query_image({**pictures, "prompt": text}) for text in ("what is it?", "how many?"))
    assert (one - other).abs().max() > 1e-4
    long = "word " * 300  # of a long one the last tokens: the position embeddings are no more
    assert torch.equal(*(model.query_image({**pictures, "prompt": text}) for text in (long + "end", long * 2 + "end")))
    blind = small_of(arch, qformer_text_input=False)
    assert torch.equal(*(blind.query_image({**pictures, "prompt": text}) for text in ("what is it?", "how many?")))


@pytest.mark.parametrize("arch", ARCHS)
def test_transformers_network_gives_the_same_loss(arch: str) -> None:
    model, asked = small_of(arch), batch()
    tokens, labels = model.learning(asked["text_input"], asked["text_output"], 1)
    text = model.reader(asked["text_input"], padding="longest", return_tensors="pt")
    found = model.net(
        asked["image"],
        text["input_ids"],
        text["attention_mask"],
        tokens.input_ids,
        tokens.attention_mask,
        labels=labels,
    )
    assert found.loss.item() == pytest.approx(model(asked)["loss"].item(), abs=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_in_a_batch_as_one_by_one(arch: str) -> None:
    model, asked = small_of(arch), batch()
    keys: dict[str, Any] = {"num_beams": 2, "max_length": 6}
    prompts = asked["text_input"]
    together = model.generate({"image": asked["image"], "prompt": prompts}, **keys)
    alone = [model.generate({"image": asked["image"][i : i + 1], "prompt": prompts[i]}, **keys)[0] for i in range(3)]
    assert together == alone
    one = model.predict_answers({"image": asked["image"][:1], "text_input": prompts[0]}, num_beams=2)
    assert one == model.predict_answers({"image": asked["image"], "text_input": prompts}, num_beams=2)[:1]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_video_of_one_frame_is_a_picture(arch: str) -> None:
    model, asked = small_of(arch), batch()
    video = {**asked, "image": asked["image"].unsqueeze(2)}
    assert model(video)["loss"].item() == model(asked)["loss"].item()
    frames = {**asked, "image": torch.stack([asked["image"], -asked["image"]], dim=2)}
    assert model(frames)["loss"].item() != pytest.approx(model(asked)["loss"].item(), abs=1e-6)
    with pytest.raises(ConfigError, match="set it to 16"):
        model({**asked, "image": torch.zeros(3, 3, 2, 8, 8)})


def test_prompts_and_classes_that_cannot_be_are_refused() -> None:
    model = small_of("blip2_vicuna_instruct")
    with pytest.raises(ConfigError, match=r"two \{\}"):
        model.predict_answers(batch(), prompt="{} or {}?")
    with pytest.raises(ConfigError, match="no candidates"):
        model.predict({**batch(), "prompt": "what?"})
    found = model.predict({**batch(), "prompt": "what?", "label": ["a", "b", "a"]}, candidates=["a", "b"])
    assert set(found["predictions"]) <= {"a", "b"} and found["targets"] == ["a", "b", "a"]
    asked = {**batch(), "prompt": "is it {}?"}
    wrong: list[tuple[dict[str, Any], list[Any]]] = [
        (asked, []),
        (asked, ["a", ""]),
        (asked, [["a"], ["b"]]),
        ({**asked, "prompt": "{x}"}, ["a"]),
        ({**asked, "prompt": "{} {}"}, ["a"]),
        ({**asked, "history": ["one"]}, ["a"]),
    ]
    for samples, candidates in wrong:
        with pytest.raises(ConfigError):
            model.predict_class(samples, candidates)
    for samples, prompt in (
        ({"choices": [["a"]]}, "{} {}"),
        ({"ocr_tokens": [["a"]]}, "{} {}"),
        ({}, "{"),
        ({}, "{} {} {}"),
    ):
        with pytest.raises(ConfigError):
            model.predict_answers({**batch(), **samples}, prompt=prompt)
    where = [problem.where for problem in of_arch("blip2_t5_instruct", few_shot_prob=0.5).problems()]
    assert where == ["model.few_shot_prob"]


def test_examples_are_drawn_as_often_as_they_are_asked_for() -> None:
    model = small_of("blip2_t5_instruct", few_shot_prob=0.6, num_few_shot_examples=2)
    torch.manual_seed(0)
    counts = torch.tensor([model._shots() for _ in range(2000)]).bincount(minlength=3) / 2000
    assert counts.tolist() == pytest.approx([0.4, 0.3, 0.3], abs=0.04)
    assert type(model.config) is Blip2T5InstructConfig
    shots = [{"image": torch.zeros(1, 3, 16, 16), "text_input": ["a"]}] * 3
    with pytest.raises(ConfigError, match="few_shot_samples"):
        for _ in range(50):
            model({**batch(), "few_shot_samples": shots})


@pytest.mark.parametrize("arch", ARCHS)
def test_activations_that_are_recomputed_and_adapters(arch: str) -> None:
    plain, thrifty = small_of(arch).train(), small_of(arch, use_grad_checkpoint=True).train()
    grads = []
    for model in (plain, thrifty):
        torch.manual_seed(4)
        model(batch())["loss"].backward()
        grads.append(model.net.qformer.embeddings.word_embeddings.weight.grad)
    assert torch.allclose(*grads, atol=1e-6)
    pytest.importorskip("peft")
    adapted = small_of(arch, freeze_llm=True, lora=LoraConfig(r=2)).train()
    adapted(batch())["loss"].backward()
    assert any("lora_" in name and p.grad is not None for name, p in adapted.named_parameters())


@pytest.mark.parametrize("arch", ARCHS)
def test_weights_of_lavis_there_and_back(arch: str, tmp_path: Path) -> None:
    model, prefix = small_of(arch, 3), "llm" if "vicuna" in arch else "t5"
    done = export_upstream(kept(model, tmp_path / "a.safetensors"), tmp_path / "out.pth", arch, "lavis")
    names = {f"{prefix}_proj.weight", "Qformer.bert.embeddings.LayerNorm.weight"}
    assert names | {"Qformer.bert.embeddings.word_embeddings.weight"} <= set(done.shapes) and done.left == []
    other = small_of(arch, 8)
    load_over(other, str(tmp_path / "out.pth"), "model.finetuned")
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("arch", ARCHS)
def test_a_checkpoint_of_the_learnt_parts_is_put_over_the_others(arch: str, tmp_path: Path) -> None:
    """LAVIS' `instruct_blip_*_trimmed.pth` hold what learns, and the index of positions."""
    model = small_of(arch, 3, freeze_vit=True, freeze_llm=True)
    state = to_upstream(model.trainable_state(), "llm" if "vicuna" in arch else "t5")
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state}, tmp_path / "trimmed.pth")
    found = small_of(
        arch, 8, freeze_vit=True, freeze_llm=True, pretrained=str(tmp_path / "trimmed.pth"), vit_weights=None
    )
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in model.trainable_state().items())


def test_the_qformer_of_the_first_stage_is_a_start(tmp_path: Path) -> None:
    first = small_stage1(5)
    torch.save({"model": to_upstream(first.trainable_state())}, tmp_path / "stage1.pth")
    sizes = {"qformer_config": {**CONFIG.sizes["qformer_config"], "cross_attention_frequency": 1}}
    made = of_arch("blip2_t5_instruct", qformer_tokenizer=CONFIG.tokenizer)
    made = replace(made, sizes={**CONFIG.sizes, **sizes, "text_config": TEXT_SIZES["blip2_t5"]})
    found: Any = build_model(replace(made, pretrained=str(tmp_path / "stage1.pth")))
    words = first.net.embeddings.word_embeddings.weight
    assert torch.equal(found.net.qformer.embeddings.word_embeddings.weight, words)
    assert torch.equal(found.net.qformer.embeddings.layernorm.weight, first.net.qformer.layernorm.weight)
    own = build_model(replace(made, qformer_weight_path=str(tmp_path / "stage1.pth")))
    assert torch.equal(own.state_dict()["net.qformer.embeddings.word_embeddings.weight"], words)
    with pytest.raises(IntegrityError, match="no Q-Former"):
        torch.save({"model": {"llm_proj.bias": torch.zeros(32)}}, tmp_path / "other.pth")
        build_model(replace(made, pretrained=str(tmp_path / "other.pth")))


@pytest.mark.parametrize("arch", ARCHS)
def test_transformers_form_and_back(arch: str, tmp_path: Path) -> None:
    model = small_of(arch, 3)
    section = replace(model.config, load_finetuned=True, finetuned=kept(model, tmp_path / "a.safetensors"))
    assert export_transformers(section, tmp_path / "folder").left == []
    keys: dict[str, Any] = {"sizes": {}, "tokenizer": None, "qformer_tokenizer": None}
    found = small_of(arch, 9, pretrained=str(tmp_path / "folder"), **keys)
    assert found(batch())["loss"].item() == pytest.approx(model(batch())["loss"].item(), abs=1e-6)
    with pytest.raises(ConfigError, match="is an InstructBLIP"):
        small_of(arch.removesuffix("_instruct"), pretrained=str(tmp_path / "folder"), sizes={}, tokenizer=None)


def test_a_blip2_in_transformers_form_has_no_reader(tmp_path: Path) -> None:
    plain = small_of("blip2_vicuna")
    plain.net.save_pretrained(tmp_path)
    plain.text.tokenizer.save_pretrained(tmp_path)
    keys: dict[str, Any] = {"pretrained": str(tmp_path), "sizes": {}, "tokenizer": None}
    with pytest.raises(ConfigError, match="is no InstructBLIP"):
        small_of("blip2_vicuna_instruct", **keys)
    blind = small_of("blip2_vicuna_instruct", qformer_text_input=False, **keys)
    assert torch.equal(blind.net.query_tokens, plain.net.query_tokens)
    assert torch.isfinite(blind(batch())["loss"])
