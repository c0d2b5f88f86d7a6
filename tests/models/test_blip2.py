"""Blip2Opt: its loss by three roads, its masks by hand, and generation that does not depend on its neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import log_softmax

from lavis_ext.common.errors import ConfigError
from lavis_ext.models.language import Blip2Opt
from lavis_ext.models.text import IGNORED
from tests.support.blip2 import CAPTIONS, CONFIG, SIZES, small_batch, small_model


def by_hand(model: Blip2Opt, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, mask and labels of a right-padded batch, written out."""
    place, pad = model.net.config.image_token_index, model.text.tokenizer.pad_token_id
    rows = [model.text.tokenizer(text + "\n")["input_ids"] for text in captions]
    width = max(map(len, rows))
    ids = torch.tensor([[place] * 4 + row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * (4 + len(row)) + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([[IGNORED] * 4 + row + [IGNORED] * (width - len(row)) for row in rows])
    return ids, mask, labels


def test_the_loss_is_that_of_transformers_on_the_same_inputs() -> None:
    model, batch = small_model(), small_batch()
    ids, mask, labels = by_hand(model, CAPTIONS)
    expected = model.net(pixel_values=batch["image"], input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(model(batch)["loss"], expected, rtol=0, atol=1e-6)


def test_the_loss_is_the_mean_cross_entropy_of_the_caption_tokens_in_float64() -> None:
    model, batch = small_model(), small_batch()
    found = model(batch)["loss"].item()
    ids, mask, labels = by_hand(model, CAPTIONS)
    model.double()
    logits = model.net(batch["image"].double(), ids, mask).logits
    wanted = labels[:, 1:] != IGNORED
    picked = log_softmax(logits[:, :-1], dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    assert found == pytest.approx(-picked[wanted].mean().item(), abs=1e-5)


def test_a_batch_of_one_has_the_loss_of_its_sample() -> None:
    model, batch = small_model(), small_batch()
    counts = [len(model.text.tokenizer(text + "\n")["input_ids"]) for text in CAPTIONS]
    single = []
    for i in range(3):
        one = {"image": batch["image"][i : i + 1], "text_input": CAPTIONS[i : i + 1]}
        single.append(model(one)["loss"].item() * counts[i])
    assert model(batch)["loss"].item() == pytest.approx(sum(single) / sum(counts), abs=1e-5)


def test_text_output_is_learnt_behind_text_input() -> None:
    model, batch = small_model(), small_batch()
    split = {
        **batch,
        "text_input": ["a red", "two green triangles", ""],
        "text_output": ["circle", "above a yellow star", ""],
    }
    assert model(split)["loss"].item() == model(batch)["loss"].item()


def test_a_prompt_is_not_learnt() -> None:
    model = small_model(prompt="a red")
    tokens = model.text.encode(["a red circle\n"], "right")
    labels = model.text.labels(tokens, model.prompt_length)
    assert labels[0, : 4 + 3].tolist() == [IGNORED] * 7
    assert model.text.tokenizer.decode(labels[0, 7:]) == " circle\n"


def test_a_long_caption_is_cut_and_an_image_token_in_a_caption_is_no_image() -> None:
    model = small_model(max_txt_len=6)
    tokens = model.text.encode(["a red circle " * 10, "<image> a <image> dog"], "right")
    assert tokens.input_ids.shape == (2, 4 + 6)
    assert (tokens.input_ids == model.net.config.image_token_index).sum(1).tolist() == [4, 4]
    loss = model({**small_batch(2), "text_input": ["<image>", "a <image> dog"]})["loss"]
    assert torch.isfinite(loss)


def test_every_weight_that_trains_gets_a_gradient() -> None:
    model = small_model().train()
    model(small_batch())["loss"].backward()
    missing = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    # a key bias shifts all scores of a row alike, which softmax does not see; unused positions and words stay unread
    assert all(name.endswith("key.bias") or "k_proj.bias" in name for name in missing), missing


def test_the_queries_start_apart() -> None:
    queries = small_model().net.query_tokens[0]
    assert torch.pdist(queries).min() > 0.01


def test_generation_in_a_batch_is_generation_one_by_one() -> None:
    model, batch = small_model(), small_batch()
    prompts = ["a red", "there are three shapes, a", ""]
    for beams in (1, 3):
        together = model.generate({**batch, "prompt": prompts}, num_beams=beams, max_length=8)
        alone = [
            model.generate({"image": batch["image"][i : i + 1], "prompt": prompts[i]}, num_beams=beams, max_length=8)[0]
            for i in range(3)
        ]
        assert together == alone
    assert len(set(together)) > 1


def test_greedy_generation_is_the_argmax_step_by_step() -> None:
    model, batch = small_model(seed=3), small_batch(1)
    image, place = batch["image"], model.net.config.image_token_index
    ids = [place] * 4 + model.text.tokenizer("a red")["input_ids"]
    start = len(ids)
    for _ in range(6):
        logits = model.net(image, torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == model.end_id:
            break
    expected = model.text.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
    # upstream's max_length counts the start token
    assert model.generate({"image": image, "prompt": "a red"}, num_beams=1, max_length=7, min_length=0) == [expected]


def test_lengths_captions_and_sampling() -> None:
    model, batch = small_model(), small_batch(2)
    assert len(model.generate(batch, num_beams=3, num_captions=3, max_length=4)) == 6
    torch.manual_seed(0)
    first = model.generate(batch, use_nucleus_sampling=True, num_beams=1, num_captions=2, max_length=8, temperature=2.0)
    torch.manual_seed(0)
    assert first == model.generate(
        batch, use_nucleus_sampling=True, num_beams=1, num_captions=2, max_length=8, temperature=2.0
    )
    with pytest.raises(ConfigError, match="captions from 1 beams"):
        model.generate(batch, num_beams=1, num_captions=2)
    with pytest.raises(ConfigError, match="min_len"):
        model.generate(batch, max_length=4, min_length=5)
    with pytest.raises(ConfigError, match="beams"):
        model.generate(batch, num_beams=0)


def test_answers_follow_the_prompt_with_the_question_in_it() -> None:
    model, batch = small_model(), small_batch(2)
    asked = {**batch, "text_input": ["what colour is it?", "how many?"]}
    answers = model.predict_answers(asked, prompt="Question: {} Answer:", num_beams=2, max_len=5)
    prompts = ["Question: what colour is it? Answer:", "Question: how many? Answer:"]
    assert answers == model.generate({**batch, "prompt": prompts}, num_beams=2, max_length=6, length_penalty=0.0)
    one = {"image": batch["image"][:1], "text_input": "how many?"}
    assert model.predict_answers(one) == model.predict_answers({**one, "text_input": ["how many?"]})
    with pytest.raises(ConfigError, match="rank"):
        model.predict_answers(asked, inference_method="guess")


def test_images_and_prompts_that_do_not_fit_are_told() -> None:
    model = small_model()
    with pytest.raises(ConfigError, match="3×32×32"):
        model({"image": torch.zeros(1, 3, 32, 32), "text_input": ["a"]})
    with pytest.raises(ConfigError, match="2 prompts for 3 images"):
        model.generate({**small_batch(), "prompt": ["a", "b"]})


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (small_model(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["net.query_tokens"], other["net.query_tokens"])


def test_settings_that_cannot_be_meant() -> None:
    for changes, where in [
        ({"vit_precision": "fp16", "freeze_vit": False}, "vit_precision"),
        ({"llm_precision": "bf16", "freeze_llm": False}, "llm_precision"),
        ({"vit_model": "clip_L", "pretrained": "some/blip2"}, "vit_model"),
        ({"sizes": {}}, "model.pretrained"),
        ({"tokenizer": None}, "model.pretrained"),
        ({"sizes": {**SIZES, "text_config": {"hidden_size": 30, "num_attention_heads": 4}}}, "model.sizes"),
    ]:
        with pytest.raises(ConfigError, match=where):
            Blip2Opt.from_config(replace(CONFIG, **changes))  # type: ignore[arg-type]


def test_gradient_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        model = small_model(use_grad_checkpoint=checkpointing).train()
        model.net.qformer.eval()
        model.net.language_model.eval()
        model(small_batch())["loss"].backward()
        grads.append(model.net.vision_model.embeddings.patch_embedding.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])
