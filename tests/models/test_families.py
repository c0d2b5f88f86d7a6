"""The other language models: their texts by hand, their losses by another road, and the change from one to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from lavis_ext.common.config.schema import run_config
from lavis_ext.common.errors import ConfigError
from lavis_ext.models.language import INSTRUCTIONS
from lavis_ext.models.text import IGNORED
from lavis_ext.tasks import setup_task
from tests.support.blip2 import CAPTIONS, TEXT_SIZES, small_batch, small_model, small_of, small_stage1

FAMILIES = ["blip2_opt", "blip2_llama", "blip2_vicuna", "blip2_t5"]


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_learns_and_speaks(arch: str) -> None:
    model = small_of(arch).train()
    torch.manual_seed(1)
    loss = model(small_batch())["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert model.net.query_tokens.grad.abs().sum() > 0
    model.eval()
    said = model.generate(small_batch(), num_beams=2, max_length=6)
    assert len(said) == 3
    assert all(isinstance(text, str) for text in said)
    answers = model.predict_answers({**small_batch(2), "text_input": ["what?", "how many things?"]}, prompt="Q: {} A:")
    assert len(answers) == 2


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_image_is_seen(arch: str) -> None:
    model, batch = small_of(arch), small_batch()
    torch.manual_seed(1)
    loss = model(batch)["loss"]
    torch.manual_seed(1)
    assert model({**batch, "image": -batch["image"]})["loss"].item() != pytest.approx(loss.item(), abs=1e-7)


@pytest.mark.parametrize("arch", FAMILIES)
def test_in_a_batch_as_one_by_one(arch: str) -> None:
    model, batch = small_of(arch), small_batch()
    prompts = ["a red", "there are three shapes, a", "b"]
    together = model.generate({**batch, "prompt": prompts}, num_beams=2, max_length=6)
    alone = [
        model.generate({"image": batch["image"][i : i + 1], "prompt": prompts[i]}, num_beams=2, max_length=6)[0]
        for i in range(3)
    ]
    assert together == alone


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The mean of -log p over the targets that count; logits [B,L,V] are those of the same places."""
    wanted = targets != IGNORED
    picked = log_softmax(logits.double(), dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return -float(picked[wanted].mean())


@pytest.mark.parametrize(
    ("arch", "penalty"),
    [("blip2_opt", 0.0), ("blip2_t5", -1.0), ("blip2_vicuna_instruct", 0.0), ("blip2_t5_instruct", -1.0)],
)
def test_the_length_penalty_of_answers_is_that_of_the_model(
    arch: str, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, searches = small_of(arch), small_batch(1, text_input=["what?"]), []
    monkeypatch.setattr(model, "_continue", lambda samples, tokens, search, end: searches.append(search) or ["a"])
    model.predict_answers(batch)
    model.predict_answers(batch, length_penalty=0.5)
    assert [search.length_penalty for search in searches] == [penalty, 0.5]
    assert setup_task(run_config(task="vqa"), model).length_penalty == penalty


def test_the_loss_of_t5_in_float64() -> None:
    model = small_of("blip2_t5")
    texts = {"text_input": ["a red", "two green", "x"], "text_output": ["circle", "triangles above it", "y z"]}
    batch = {**small_batch(), **texts}
    found = model(batch)["loss"].item()
    tokenizer, place = model.text.tokenizer, model.net.config.image_token_index

    def rows(texts: list[str], head: list[int], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [[*head, *tokenizer(text, add_special_tokens=False)["input_ids"], 1] for text in texts]
        width = max(map(len, ids))
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
        return torch.tensor([row + [pad] * (width - len(row)) for row in ids]), torch.tensor(mask)

    ids, mask = rows(texts["text_input"], [place] * 4, 0)
    labels, _ = rows(texts["text_output"], [], IGNORED)
    shifted = torch.cat([torch.zeros(3, 1, dtype=torch.long), labels[:, :-1].clamp(min=0)], dim=1)
    model.double()
    logits = model.net(batch["image"].double(), ids, mask, decoder_input_ids=shifted).logits
    assert found == pytest.approx(cross_entropy(logits, labels), abs=1e-5)


def test_t5_learns_plain_captions_behind_its_prompt() -> None:
    model = small_of("blip2_t5", prompt="a photo of")
    plain, split = small_batch(2), {**small_batch(2), "text_input": ["a photo of"] * 2, "text_output": CAPTIONS[:2]}
    assert model(plain)["loss"].item() == model(split)["loss"].item()


def test_the_frame_of_vicuna() -> None:
    model = small_of("blip2_vicuna", max_txt_len=160)
    tokens = model.text.frame(["a red circle###"], ["What is it?"], "right")
    head, labels = tokens.starts[0], model.text.labels(tokens)[0]
    ids = tokens.input_ids[0].tolist()
    opening = ids[: ids.index(model.text.places[0])]
    assert ids[0] == model.text.tokenizer.bos_token_id
    assert model.text.tokenizer.decode(opening[1:]) == "###Human: <Img>"
    assert ids.count(model.text.places[0]) == 4
    assert model.text.tokenizer.decode(ids[len(opening) + 4 : head]) == "</Img> What is it? ###Assistant: "
    assert model.text.tokenizer.decode(ids[head:]) == "a red circle###"
    assert labels.tolist() == [IGNORED] * head + ids[head:]


def test_vicuna_draws_one_instruction_for_each_batch() -> None:
    model = small_of("blip2_vicuna", max_txt_len=160)
    torch.manual_seed(0)
    drawn = [model.learning_tokens({"text_input": ["x"] * 3})[0].starts for _ in range(32)]
    assert all(len(set(starts)) == 1 for starts in drawn)
    assert len(set(drawn)) == len({len(model.text.ids([one], cut=False)[0]) for one in INSTRUCTIONS})


def test_vicuna_reads_prompts_as_they_are_and_learns_questions_as_it_reads_them() -> None:
    model = small_of("blip2_vicuna", max_txt_len=4)
    tokenizer, start = model.text.tokenizer, "</s>"  # the shipped tokenizer starts texts with it
    said = [tokenizer.decode(row) for row in model.caption_tokens(["what is in the picture?", ""]).input_ids]
    places = "<image>" * 4
    assert said[0].endswith(f"###Human: <Img>{places}</Img> {start}what is in the picture?")
    assert said[1].endswith(f"###Human: <Img>{places}</Img> {start}{INSTRUCTIONS[0]} ###Assistant: ")
    asked = {"text_input": ["what?"], "text_output": ["a"], "learn": "text_output"}
    learnt = tokenizer.decode(small_of("blip2_vicuna", max_txt_len=9).learning_tokens(asked)[0].input_ids[0])
    assert learnt == f"{tokenizer.decode(model.asking_tokens(['what?']).input_ids[0])} a###"


def test_vicuna_stops_at_the_text_of_its_end() -> None:
    model = small_of("blip2_vicuna")
    stop = model.endings()["stopping_criteria"][0]
    rows = model.text.ids(["circle###", "a red #", "##### x"], special=False)
    ended = [bool(stop(torch.tensor([row]), torch.empty(0))) for row in rows]
    assert ended == [True, False, False]


def test_what_comes_behind_the_end_is_cut() -> None:
    model = small_of("blip2_vicuna")
    said = torch.tensor(model.text.ids(["a red circle### and more"], special=False))
    model.net.language_model.generate = lambda *_, **__: said
    assert model.generate(small_batch(1)) == ["a red circle"]


def test_a_question_is_read_and_not_learnt() -> None:
    model = small_of("blip2_llama")
    batch = {**small_batch(2), "text_input": ["what is it?", "how?"], "text_output": ["a red circle", "so"]}
    tokens, unlearnt = model.learning_tokens({**batch, "learn": "text_output"})
    labels = model.text.labels(tokens, unlearnt)
    learnt = [model.text.tokenizer.decode(row[row != IGNORED]) for row in labels]
    assert learnt == [" a red circle\n", " so\n"]
    assert model.learning_tokens(batch)[1] == 0


def test_pads_may_be_closing_tokens() -> None:
    model = small_of("blip2_llama")
    pad = model.text.tokenizer.pad_token
    loss = model(small_batch())["loss"].item()
    model.text.tokenizer.pad_token = None
    assert model.text.pad_id == model.text.tokenizer.eos_token_id
    assert model(small_batch())["loss"].item() == pytest.approx(loss, abs=1e-6)
    model.text.tokenizer.pad_token = pad


def save_source(folder: Path) -> Any:
    """A BLIP-2 with OPT, saved whole in transformers' form."""
    model = small_model(5)
    model.net.save_pretrained(folder)
    model.text.tokenizer.save_pretrained(folder)
    return model


def save_llama(folder: Path, tokenizer: Any) -> LlamaForCausalLM:
    """A language model by itself, of another width than OPT's."""
    sizes = {**TEXT_SIZES["blip2_llama"], "hidden_size": 48}
    torch.manual_seed(7)
    llama = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), eos_token_id=1, bos_token_id=1))
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return llama


def test_the_visual_parts_move_before_another_language_model(tmp_path: Path) -> None:
    source = save_source(tmp_path / "opt")
    llama = save_llama(tmp_path / "llama", source.text.tokenizer)
    places = {"pretrained": str(tmp_path / "opt"), "llama_model": str(tmp_path / "llama")}
    model = small_of("blip2_llama", 1, sizes={}, tokenizer=None, freeze_llm=True, freeze_vit=True, **places)
    mine, theirs = model.net.state_dict(), source.net.state_dict()
    visual = [n for n in theirs if n.startswith(("vision_model.", "qformer.", "query_tokens"))]
    assert all(torch.equal(mine[name], theirs[name]) for name in visual)
    assert all(torch.equal(mine[f"language_model.{name}"], tensor) for name, tensor in llama.state_dict().items())
    assert model.net.language_projection.weight.shape == (48, 32)
    loss = model.train()(small_batch())["loss"]
    loss.backward()
    assert model.net.language_projection.weight.grad.abs().sum() > 0
    assert len(model.eval().generate(small_batch(2), num_beams=2, max_length=4)) == 2


def test_pictures_are_as_wide_as_words_that_are_narrower_than_the_layers(tmp_path: Path) -> None:
    """OPT-350m has words of 512 before layers of 1024."""
    source = small_of("blip2_llama")
    source.net.save_pretrained(tmp_path / "llama")
    sizes = {**TEXT_SIZES["blip2_opt"], "word_embed_proj_dim": 16}
    OPTForCausalLM(OPTConfig(**sizes, vocab_size=len(source.text.tokenizer))).save_pretrained(tmp_path / "opt")
    source.text.tokenizer.save_pretrained(tmp_path / "opt")
    places = {"pretrained": str(tmp_path / "llama"), "opt_model": str(tmp_path / "opt")}
    model = small_of("blip2_opt", sizes={}, tokenizer=None, **places)
    assert model.net.language_projection.weight.shape == (16, 32)
    assert torch.isfinite(model(small_batch())["loss"])


def test_a_transfer_without_a_language_model_says_which_key(tmp_path: Path) -> None:
    save_source(tmp_path / "opt")
    keys: dict[str, Any] = {"sizes": {}, "tokenizer": None, "pretrained": str(tmp_path / "opt")}
    with pytest.raises(ConfigError, match=r"'opt', blip2_llama needs 'llama'; .*model\.llama_model"):
        small_of("blip2_llama", **keys)
    with pytest.raises(ConfigError, match=r"t5_model .*is a '|t5_model"):
        small_of("blip2_t5", t5_model=str(tmp_path / "opt"), **keys)


def test_vpgtrans_with_tiny_models(tmp_path: Path) -> None:
    """Step 1 trains the projection alone behind the Q-Former of another run; step 2 starts from its projection."""
    source = small_model(5)
    torch.save({"model": source.trainable_state()}, tmp_path / "opt.pth")
    first = small_of("blip2_llama", 1, only_proj=True, freeze_llm=True, qformer_weight_path=str(tmp_path / "opt.pth"),
                     freeze_vit=True)  # fmt: skip
    trained = {name for name, parameter in first.named_parameters() if parameter.requires_grad}
    assert trained == {"net.language_projection.weight", "net.language_projection.bias"}
    for name in ("net.query_tokens", "net.vision_model.embeddings.class_embedding"):
        assert torch.equal(first.state_dict()[name], source.state_dict()[name])
    torch.save({"model": first.trainable_state()}, tmp_path / "step1.pth")
    paths = {"qformer_weight_path": str(tmp_path / "opt.pth"), "proj_weight_path": str(tmp_path / "step1.pth")}
    second = small_of("blip2_llama", 2, **paths)
    assert torch.equal(second.net.language_projection.weight, first.net.language_projection.weight)
    assert second.net.query_tokens.requires_grad


@pytest.mark.parametrize("arch", [*FAMILIES, "blip2"])
def test_mixed_precision_gives_nearly_the_same(arch: str) -> None:
    """As `run.amp` has it: autocast around the step, weights in fp32, gradients too."""
    model = small_stage1() if arch == "blip2" else small_of(arch)
    torch.manual_seed(1)
    exact = model(small_batch())["loss"].item()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(small_batch())["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.1)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
