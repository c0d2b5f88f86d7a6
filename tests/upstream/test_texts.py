"""How texts begin, end and are cut, as LAVIS and VPGTrans have it; with a tokenizer of Flan-T5's real form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from lavis_ext.common.errors import ConfigError
from lavis_ext.models.generation import Search, WrittenPenalty
from lavis_ext.models.text import IGNORED
from tests.support.blip2 import small_batch, small_model, small_of
from tests.support.processes import run_ranks

WORDS = "a the man red circle dog on of photo what is it ? Question: Answer:".split()  # noqa: SIM905


def unigram(folder: Path) -> str:
    """A tokenizer as T5's: unigrams, spaces as `▁`, `</s>` behind each text, no line break."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)
    return str(folder)


def ending_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A T5 that writes "dog", then its end token, then "man" for ever."""
    model = small_of("blip2_t5", tokenizer=unigram(tmp_path), max_txt_len=6)
    dog, man = (model.text.tokenizer.convert_tokens_to_ids(f"▁{word}") for word in ("dog", "man"))
    words = model.net.get_input_embeddings().num_embeddings

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        model.written_so_far += 1
        wanted = {1: dog, 2: 1}.get(model.written_so_far, man)
        logits = torch.zeros(*hidden.shape[:2], words)
        logits[..., wanted] = 9.0
        return logits

    model.written_so_far = 0
    monkeypatch.setattr(model.net.language_model.lm_head, "forward", forward)
    return model


def test_t5_ends_at_its_end_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ending_model(tmp_path, monkeypatch)
    assert model.end_id == 1
    assert model.generate(small_batch(1), num_beams=1, max_length=8) == ["dog"]
    assert model.written_so_far == 2


def test_t5_counts_its_start_token_in_min_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shortest, written in ((2, 2), (3, 3), (0, 2)):
        model = ending_model(tmp_path, monkeypatch)
        model.generate(small_batch(1), num_beams=1, max_length=3, min_length=shortest)
        assert model.written_so_far == written


def test_t5_learns_texts_of_max_txt_len_with_the_end_token(tmp_path: Path) -> None:
    model = small_of("blip2_t5", tokenizer=unigram(tmp_path), max_txt_len=6)
    long = "a man a man a man a man a man"
    labels = model.targets([long, "a man"])
    assert labels.shape == (2, 6)
    assert labels[0, -1] == labels[1, 2] == 1
    assert labels[1, 3:].tolist() == [IGNORED] * 3
    places = len(model.text.places)
    assert model._inputs([long], cut=True).input_ids.shape[1] == places + 6
    assert model.asking_tokens([long]).input_ids.shape[1] == places + 11


@pytest.mark.parametrize(("arch", "cut"), [("blip2_opt", True), ("blip2_llama", False), ("blip2_vicuna", False)])
def test_questions_are_cut_for_opt_only(arch: str, cut: bool) -> None:
    model = small_of(arch, max_txt_len=6)
    question = "what is in the picture of a red circle? Answer:"
    tokens = model.text.tokenizer.decode(model.asking_tokens([question]).input_ids[0])
    assert tokens.endswith("Answer:") is not cut


@pytest.mark.parametrize(
    ("arch", "longest", "shortest"), [("blip2_opt", 9, 3), ("blip2_t5", 10, 3), ("blip2_llama", 10, 0)]
)
def test_lengths_count_what_upstream_starts_from(arch: str, longest: int, shortest: int) -> None:
    model, seen = small_of(arch, prompt="a photo of"), {}

    def generate(*_: Any, **keys: Any) -> torch.Tensor:
        seen.update(keys)
        return torch.ones(1, 1, dtype=torch.long)

    model.net.language_model.generate = generate
    model.generate(small_batch(1), max_length=10, min_length=4)
    assert (seen["max_new_tokens"], seen["min_new_tokens"]) == (longest, shortest)
    model.predict_answers({**small_batch(1), "text_input": "what?"}, max_len=10, min_len=1)
    assert (seen["max_new_tokens"], seen["min_new_tokens"]) == (10, 0)  # so an answer may be ""


def test_a_length_that_the_start_token_fills_is_refused() -> None:
    with pytest.raises(ConfigError, match="the start token counts as one"):
        small_of("blip2_opt").generate(small_batch(1), max_length=1)
    assert Search(1, 5, 5, opening=1, counted=0).arguments()["min_new_tokens"] == 4


def test_the_penalty_of_repetitions_counts_the_prompt() -> None:
    scores = torch.tensor([[1.0, -1.0, 4.0, 2.0]]).repeat(2, 1)
    penalised = WrittenPenalty(2.0, torch.tensor([[2]]))(torch.tensor([[0], [1]]), scores.clone())
    assert penalised.tolist() == [[0.5, -1.0, 2.0, 2.0], [1.0, -2.0, 2.0, 2.0]]


def test_t5_cuts_plain_captions_in_training() -> None:
    torch.manual_seed(3)
    model = small_of("blip2_t5").train()
    inputs, targets = model._inputs, model.targets
    heads: list[str] = []
    tails: list[str] = []
    model._inputs = lambda texts, cut: heads.extend(texts) or inputs(texts, cut)
    model.targets = lambda texts: tails.extend(texts) or targets(texts)
    captions = ["a red circle on a table"] * 3
    for _ in range(8):
        model({**small_batch(), "text_input": captions})
    whole = [f"{head} {tail}".strip() for head, tail in zip(heads, tails, strict=True)]
    assert set(whole) == set(captions)
    assert {len(head.split()) for head in heads} == {0, 1, 2, 3}


def test_a_t5_of_its_own_gets_the_activation_that_lavis_gives_it(tmp_path: Path) -> None:
    small = small_model()
    small.net.save_pretrained(tmp_path / "blip2")
    small.text.tokenizer.save_pretrained(tmp_path / "blip2")
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    T5ForConditionalGeneration(T5Config(**sizes, feed_forward_proj="gated-gelu")).save_pretrained(tmp_path / "t5")
    unigram(tmp_path / "t5")
    places = {"pretrained": str(tmp_path / "blip2"), "t5_model": str(tmp_path / "t5")}
    model = small_of("blip2_t5", load_pretrained=True, tokenizer=None, sizes={}, **places)
    feed = model.net.language_model.encoder.block[0].layer[1].DenseReluDense
    at = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(feed.act(at), torch.nn.functional.gelu(at))
    assert model.net.config.text_config.dense_act_fn == "gelu"


def one_of_two(out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = small_of("blip2_opt", loss_mean="all").double()
    span = slice(0, 1) if rank == 0 else slice(1, 3)
    batch = small_batch()
    loss = model({"image": batch["image"][span].double(), "text_input": batch["text_input"][span]})["loss"]
    loss.backward()
    grad = model.net.query_tokens.grad
    dist.all_reduce(grad)
    if rank == 0:
        torch.save(grad / 2, out)


@pytest.mark.slow
def test_one_key_weighs_tokens_over_ranks(tmp_path: Path) -> None:
    done = run_ranks(one_of_two, 2, (str(tmp_path / "out.pt"),), tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    model, batch = small_of("blip2_opt").double(), small_batch()
    model({"image": batch["image"].double(), "text_input": batch["text_input"]})["loss"].backward()
    torch.testing.assert_close(
        torch.load(tmp_path / "out.pt", weights_only=True), model.net.query_tokens.grad, rtol=1e-6, atol=1e-9
    )
