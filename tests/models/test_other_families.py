"""Language models and towers beside the well-known: what transformers makes by a configuration, read or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import log_softmax

from lavis_ext.common.errors import ConfigError
from lavis_ext.models.settings import LoraConfig
from lavis_ext.models.text import IGNORED
from tests.models.test_any_language import TALK, hand_rows, joined_loss
from tests.support.blip2 import small_batch, small_stage1
from tests.support.speakers import decoder_sizes, speaker

GROUPED = decoder_sizes(num_key_value_heads=2)
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
GEMMA = {**GROUPED, "head_dim": 8}
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
STATES = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8,
          "mamba_n_groups": 1, "head_dim": 8}  # fmt: skip
SEEING = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8,
          "image_size": 32}  # fmt: skip
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("phi", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}),
    "bloom": ("opt", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}),
    "mpt": ("gpt_neox", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256, "initializer_range": 0.2}),
    "stablelm": ("gpt_neox", GROUPED),
    "gpt_bigcode": ("gpt2", GPT2),
    "granite": ("qwen2", GROUPED),
    "olmo2": ("qwen2", GROUPED),
    "cohere": ("qwen3", GROUPED),
    "phi3": ("llama3", GROUPED),
    "gemma2": ("gemma", GEMMA),
    "gemma3_text": ("gemma", GEMMA),
    "gemma3": ("gemma", {"text_config": {**GEMMA, "vocab_size": 420}, "vision_config": SEEING}),
    "glm4": ("qwen2", {**GROUPED, "head_dim": 8}),
    "qwen3_moe": ("qwen3", {**GROUPED, **MOE}),
    "falcon_h1": ("qwen2", {**GROUPED, **STATES}),
    "mamba": ("gpt_neox", {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}),
}


def other(kind: str, like: str, folder: Path, sizes: dict[str, Any], **changes: Any) -> Any:
    """A random model of a kind, with the tokenizer of another family."""
    return speaker(like, folder, llm={"model_type": kind, **sizes}, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speakers")


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_learns_what_stands_there_and_no_pad(kind: str, folder: Path) -> None:
    like, sizes = DECODERS[kind]
    model, batch = other(kind, like, folder, sizes, prompt="a photo of"), small_batch(2)
    short = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "yes"}]
    talk = {"conversations": [TALK, short], "image": small_batch(3)["image"], "image_counts": [2, 1]}
    sides = []
    for side in ("left", "right"):
        tokens, labels = model.text.padded(model.rows(talk), side)
        with torch.no_grad():
            logits = model._predict_tokens(talk, tokens, labels).logits
        sides.append(logits[:, :-1][labels[:, 1:] != IGNORED].log_softmax(-1))
    torch.testing.assert_close(*sides, atol=5e-4, rtol=1e-4)
    alone = []
    for turns, images in ((TALK, talk["image"][:2]), (short, talk["image"][2:])):
        one = {"conversations": [turns], "image": images, "image_counts": [len(images)]}
        alone += model.generate(one, num_beams=2, max_length=4)
    assert model.generate(talk, num_beams=2, max_length=4) == alone
    found, rows = model(batch)["loss"].item(), model.rows(batch)
    model.net.language_model.set_experts_implementation("eager")  # the others have no float64
    assert found == pytest.approx(joined_loss(model, hand_rows(rows, 4), batch["image"]), abs=2e-4)


ENCODING = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.2, "dropout": 0.0}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
ENCODERS = {
    "mbart": ("bart", ENCODING), "plbart": ("bart", ENCODING), "pegasus": ("t5", ENCODING), "m2m_100": ("t5", ENCODING),
    "umt5": ("t5", T5), "longt5": ("t5", T5),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_decoder_behind_an_encoder_begins_to_learn_where_it_begins_to_write(kind: str, folder: Path) -> None:
    like, sizes = ENCODERS[kind]
    model, batch = other(kind, like, folder, sizes), small_batch(2, text_output=["a red circle", "three yes no"])
    found = model(batch)["loss"].item()
    speaks = model.net.language_model
    tokens, labels = model.learnt(batch)
    assert len(model.generate(batch, num_beams=2, max_length=4)) == 2
    images = batch["image"].double()
    embeds = model.double().embed({"image": images}, tokens)
    total, count = 0.0, 0
    for row, mask, ids in zip(embeds, tokens.attention_mask.bool(), labels, strict=True):
        wanted = [one for one in ids.tolist() if one != IGNORED]
        start = torch.tensor([[speaks.config.decoder_start_token_id, *wanted[:-1]]])
        logits = speaks(inputs_embeds=row[mask][None], decoder_input_ids=start, use_cache=False).logits[0]
        total -= log_softmax(logits, -1)[range(len(wanted)), wanted].sum().item()
        count += len(wanted)
    assert found == pytest.approx(total / count, abs=1e-4)


BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "it reads backwards": ("bert", BERT),
    "its positions are not from 0": ("roberta", {**BERT, "is_decoder": True}),
    "it has no cache": ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "it reads pads": ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}),
    "a size that is none of its": ("falcon", {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8}),
    "sizes that do not fit": ("deepseek_v3", {**GROUPED, "head_dim": 4, "qk_rope_head_dim": 8}),
    "heads of no width": ("llama", {**GROUPED, "num_attention_heads": 0}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_speak_is_refused_before_it_is_trained(name: str, folder: Path) -> None:
    kind, sizes = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        other(kind, "qwen2", folder, sizes)
    assert caught.value.problems[0].where == "model.llm"


def test_an_unknown_kind_and_the_other_arch_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        other("qwen33", "qwen2", folder, {})
    assert caught.value.problems[0].where == "model.llm.model_type" and "qwen3" in str(caught.value)
    for kind, named in (("t5", True), ("clip", False)):
        with pytest.raises(ConfigError) as caught:
            other(kind, "qwen2", folder, {})
        assert ("blip2_seq2seq" in str(caught.value)) is named


def test_a_published_encoder_is_refused_too(folder: Path, tmp_path: Path) -> None:
    settings = transformers.BertConfig(**BERT, vocab_size=400)
    transformers.BertLMHeadModel(settings).save_pretrained(tmp_path / "bert")
    speaker("qwen2", folder)
    with pytest.raises(ConfigError):
        speaker("qwen2", folder, llm=str(tmp_path / "bert"))
    settings.is_decoder = True
    transformers.BertLMHeadModel(settings).save_pretrained(tmp_path / "decoder")
    assert torch.isfinite(speaker("qwen2", folder, llm=str(tmp_path / "decoder"))(small_batch(2))["loss"])


def test_of_a_model_that_sees_the_words_alone_are_taken(folder: Path, tmp_path: Path) -> None:
    settings = transformers.Gemma3Config(**DECODERS["gemma3"][1])
    torch.manual_seed(3)
    whole = transformers.Gemma3ForConditionalGeneration(settings).eval()
    whole.save_pretrained(tmp_path / "gemma")
    model = speaker("gemma", folder, llm=str(tmp_path / "gemma"), freeze_llm=True, lora=LoraConfig(r=2))
    ids = torch.arange(6)[None]
    torch.testing.assert_close(model.net.language_model(ids).logits, whole(ids).logits)
    model.train()(small_batch(2))["loss"].backward()
    assert not any(one.requires_grad and one.grad is None for one in model.parameters())
    assert not any("vision" in name for name, _ in model.net.language_model.named_parameters())
    assert model.position_count == 256


SEEN = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
TOWERS: dict[str, dict[str, Any]] = {
    "beit": SEEN,
    "dinov3_vit": SEEN,
    "dinov2_with_registers": SEEN,
    "aimv2_vision_model": SEEN,
    "internvl_vision": {**SEEN, "image_size": [16, 16], "patch_size": [8, 8]},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 2},
}


@pytest.mark.parametrize("kind", TOWERS)
def test_both_stages_see_through_other_towers(kind: str, folder: Path) -> None:
    vision, batch = {"model_type": kind, **TOWERS[kind]}, small_batch(2)
    for model in (small_stage1(vision=vision), speaker("qwen2", folder, vision=vision)):
        assert torch.isfinite(model(batch)["loss"])
        alone = model.net.vision_model(batch["image"][1:]).last_hidden_state
        torch.testing.assert_close(model.net.vision_model(batch["image"]).last_hidden_state[1:], alone)


BLIND: dict[str, dict[str, Any]] = {
    "bert": BERT,  # reads words
    "videomae": SEEN,  # films
    "pixtral": SEEN,  # joins the pictures of a batch
    "vit_mae": SEEN,  # masks
    "convnextv2": {"hidden_sizes": [8, 8], "depths": [1, 1, 1, 1]},
    "sam_vision_model": {**SEEN, "output_channels": 16},  # of another width than it says
}


@pytest.mark.parametrize("kind", BLIND)
def test_what_sees_no_pictures_as_a_q_former_needs_them_is_refused(kind: str, folder: Path) -> None:
    vision = {"model_type": kind, **BLIND[kind]}
    with pytest.raises(ConfigError) as caught:
        speaker("qwen2", folder, vision=vision)
    assert caught.value.problems[0].where == "model.vision"
