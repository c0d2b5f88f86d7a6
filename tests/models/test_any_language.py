"""BLIP-2 over any language model: each family's tokens by hand, its losses by another road, and where it stops."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import log_softmax

from lavis_ext.common.config.decode import ConfigDecoder, read_sections
from lavis_ext.common.config.schema import ModelConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.models import build_model
from lavis_ext.models.chat import PLACE
from lavis_ext.models.export import export_transformers, export_upstream
from lavis_ext.models.lora import adapter_parts
from lavis_ext.models.settings import LoraConfig
from lavis_ext.models.text import IGNORED
from tests.support.blip2 import small_batch
from tests.support.speakers import DECODERS, FAMILIES, speaker

TALK = [
    {"role": "system", "content": "You are helpful"},
    {"role": "user", "content": "<image>\nwhat is it?"},
    {"role": "assistant", "content": "a red circle"},
    {"role": "user", "content": "how many things are there? <image>"},
    {"role": "assistant", "content": "two"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speakers")


def seen_by(model: Any, images: torch.Tensor) -> torch.Tensor:
    """What the language model reads of each picture."""
    found: torch.Tensor = model.net.language_projection(model.query_image({"image": images}))
    return found


def joined_loss(model: Any, rows: list[list[tuple[list[int], bool]]], images: torch.Tensor | None) -> float:
    """The mean of -log p in float64, row by row without pads, over the tokens of the parts that are learnt.

    A row is parts of tokens, each with whether it is learnt; PLACE stands for a whole picture.
    """
    whole = model.double()
    seen = [] if images is None else list(seen_by(whole, images.double()))
    speaker, total, count = whole.net.language_model, 0.0, 0
    words = speaker.get_input_embeddings()
    for row in rows:
        parts, wanted = [], []
        for ids, learnt in row:
            for one in ids:
                part = seen.pop(0) if one == PLACE else words(torch.tensor([one]))
                parts.append(part)
                wanted += [one if learnt else IGNORED] * len(part)
        logits = speaker(inputs_embeds=torch.cat(parts)[None]).logits[0]
        for place, one in enumerate(wanted[1:]):
            if one != IGNORED:
                total, count = total - log_softmax(logits[place], -1)[one].item(), count + 1
    return total / count


# What each family's own convention says, as literal text: the start token, and the end of a text.
OPENINGS = {"llama3": ["<|begin_of_text|>"], "mistral": ["<s>"], "gemma": ["<bos>"], "opt": ["</s>"]}


@pytest.mark.parametrize("name", DECODERS)
def test_a_caption_is_learnt_as_the_family_writes_it(name: str, folder: Path) -> None:
    model, batch = speaker(name, folder, prompt="a photo of"), small_batch(2)
    found, tokenizer = model(batch)["loss"].item(), model.text.tokenizer
    head = tokenizer.convert_tokens_to_ids(OPENINGS.get(name, []))
    start = tokenizer("a photo of", add_special_tokens=False)["input_ids"]
    rows = []
    for text in batch["text_input"]:
        whole = tokenizer(f"a photo of {text}", add_special_tokens=False)["input_ids"]
        assert whole[: len(start)] == start
        end = tokenizer.convert_tokens_to_ids(FAMILIES[name].eos)
        rows.append([(head, False), ([PLACE], False), (start, False), ([*whole[len(start) :], end], True)])
    assert found == pytest.approx(joined_loss(model, rows, batch["image"]), abs=1e-4)


def hand_rows(found: list[tuple[list[int], list[int]]], queries: int) -> list[list[tuple[list[int], bool]]]:
    """Rows of ids and labels as parts for `joined_loss`."""
    rows = []
    for ids, labels in found:
        parts, at = [], 0
        while at < len(ids):
            parts.append(([ids[at]], labels[at] != IGNORED))
            at += queries if ids[at] == PLACE else 1
        rows.append(parts)
    return rows


@pytest.mark.parametrize("name", DECODERS)
def test_a_conversation_is_learnt_as_its_template_writes_it(name: str, folder: Path) -> None:
    model, family = speaker(name, folder), FAMILIES[name]
    talk = TALK[1:] if name in ("mistral", "gemma") else TALK
    short = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "yes"}]
    reader, image = model.text.reader, model.text.image_id
    kind = {"tokenize": True, "return_dict": False, "enable_thinking": False}
    for turns, pictures in ((talk, 2), (short, 0)):
        ids, labels = model.text.conversation(turns, pictures, "here")
        once = [
            image if one == PLACE else one
            for at, one in enumerate(ids)
            if one != PLACE or ids[at - 4 : at].count(PLACE) % 4 == 0
        ]
        opened = model.text.opened(turns, pictures, "here")
        assert ids[: len(opened)] == opened
        learnt = [one for one in labels if one != IGNORED]
        end = {"gemma": "<end_of_turn>"}.get(name, family.eos)
        said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        assert "".join(reader.decode(learnt).split()) == "".join(f"{text}{end}" for text in said).replace(" ", "")
        assert learnt[-1] == model.text.turn_end == reader.convert_tokens_to_ids(end)
        if family.template:
            assert once == reader.apply_chat_template(turns, **kind)
            asked = [one for one in opened if one != PLACE]
            wanted = reader.apply_chat_template(turns[:-1], add_generation_prompt=True, **kind)
            assert asked == [one for one in wanted if one != image]
    batch = {"conversations": [talk, short], "image": small_batch(2)["image"], "image_counts": [2, 0]}
    found, rows = model(batch)["loss"].item(), model.rows(batch)
    assert found == pytest.approx(joined_loss(model, hand_rows(rows, 4), batch["image"]), abs=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_no_number_depends_on_the_side_of_the_pads(name: str, folder: Path) -> None:
    model = speaker(name, folder)
    short = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "yes"}]
    batch = {"conversations": [TALK, short], "image": small_batch(3)["image"], "image_counts": [2, 1]}
    picked = []
    for side in ("left", "right"):
        tokens, labels = model.text.padded(model.rows(batch), side)
        logits = model._predict_tokens(batch, tokens, labels).logits
        picked.append(logits[:, :-1][labels[:, 1:] != IGNORED].log_softmax(-1))
    torch.testing.assert_close(*picked, atol=2e-4, rtol=1e-4)
    together = model.generate(batch, num_beams=2, max_length=6)
    alone = []
    for turns, images in ((TALK, batch["image"][:2]), (short, batch["image"][2:])):
        one = {"conversations": [turns], "image": images, "image_counts": [len(images)]}
        model.text.tokenizer.padding_side = model.text.reader.padding_side = "left"
        alone += model.generate(one, num_beams=2, max_length=6)
    assert together == alone


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_reads_the_prompt_and_the_decoder_learns_the_text(name: str, folder: Path) -> None:
    model, batch = speaker(name, folder), small_batch(2)
    batch = {**batch, "text_input": ["what is it?", "how many"], "text_output": ["a red circle", "three yes no"]}
    found, tokenizer = model(batch)["loss"].item(), model.text.tokenizer
    model.double()
    total, count, seen = 0.0, 0, list(seen_by(model, batch["image"].double()))
    words = model.net.language_model.get_input_embeddings()
    for asked, said, picture in zip(batch["text_input"], batch["text_output"], seen, strict=True):
        read, wanted = torch.tensor(tokenizer(asked)["input_ids"]), tokenizer(said)["input_ids"]
        start = 1 if name == "bart" else 0  # BART's texts begin with <s>, which stands before the picture
        embeds = torch.cat([words(read[:start]), picture, words(read[start:])])
        first = model.net.language_model.config.decoder_start_token_id
        decoded = torch.tensor([[first, *wanted[:-1]]])
        logits = model.net.language_model(inputs_embeds=embeds[None], decoder_input_ids=decoded).logits[0]
        total -= float(log_softmax(logits, -1)[range(len(wanted)), wanted].sum())
        count += len(wanted)
    assert wanted[-1] == tokenizer.eos_token_id
    assert found == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_reads_what_stands_before_each_turn_and_the_decoder_learns_it(name: str, folder: Path) -> None:
    model, images = speaker(name, folder), small_batch(3)["image"]
    short = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "yes"}]
    batch = {"conversations": [TALK, short, short], "image": images, "image_counts": [2, 0, 1]}
    found, tokenizer = model(batch)["loss"].item(), model.text.tokenizer
    outputs = model.outputs(batch)
    model.double()
    seen, words = list(seen_by(model, images.double())), model.net.language_model.get_input_embeddings()
    system, end = "You are helpful USER:", "</s>"
    first = f"{system} <image>\nwhat is it? ASSISTANT:"
    rows = [
        (first, "a red circle", seen[:1]),
        (f"{first} a red circle{end}USER: how many things are there? <image> ASSISTANT:", "two", seen[:2]),
        ("USER: what is it? ASSISTANT:", "yes", []),
        ("USER: <image>\nwhat is it? ASSISTANT:", "yes", seen[2:]),  # unmarked: before the user's first text
    ]
    losses, wanted_all = [], []
    for head, said, pictures in rows:
        whole = model.text.reader(head)["input_ids"]
        parts = [pictures.pop(0) if one == model.text.image_id else words(torch.tensor([one])) for one in whole]
        wanted = tokenizer(said)["input_ids"]
        start = model.net.language_model.config.decoder_start_token_id
        decoded = torch.tensor([[start, *wanted[:-1]]])
        logits = model.net.language_model(inputs_embeds=torch.cat(parts)[None], decoder_input_ids=decoded).logits[0]
        losses.append(-float(log_softmax(logits, -1)[range(len(wanted)), wanted].sum()))
        wanted_all += wanted
    assert outputs.extra["labels"].tolist() == wanted_all
    assert found == pytest.approx(sum(losses) / len(wanted_all), abs=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_reads_to_answer_what_it_read_to_learn(name: str, folder: Path) -> None:
    model, images = speaker(name, folder), small_batch(3)["image"]
    read, learnt, pictures = model.rows({"conversations": [TALK], "image": images[:2], "image_counts": [2]})
    asked = model.opened_tokens({"conversations": [TALK[:-1]], "image": images[:2], "image_counts": [2]})
    assert asked.input_ids.tolist() == read[1:] and pictures == [0, 0, 1]
    assert [row[-1] for row in learnt] == [model.text.turn_end] * 2
    short = [{"role": "user", "content": "<image>"}]
    batch = {"conversations": [TALK[:-1], short], "image": images, "image_counts": [2, 1]}
    alone = [
        model.generate({"conversations": [turns], "image": some, "image_counts": [len(some)]}, num_beams=2)[0]
        for turns, some in ((TALK[:-1], images[:2]), (short, images[2:]))
    ]
    assert model.generate(batch, num_beams=2) == alone
    begun = [{"role": "assistant", "content": "yes"}, *short, {"role": "assistant", "content": "two"}]
    begun[1] = {
        "role": "user",
        "content": "what is it?",
    }  # its pictures are read before this text, not before the first
    assert model.rows({"conversations": [begun], "image": images[:1], "image_counts": [1]})[2] == [0]
    said = {**batch, "conversations": [[*TALK[:-1], {"role": "assistant", "content": "<image>"}], short]}
    with pytest.raises(ConfigError):  # a decoder reads words alone
        model({**said, "image": torch.cat([images, images[:1]]), "image_counts": [3, 1]})


@pytest.mark.parametrize("name", ["qwen3", "t5", "bart"])
def test_prompts_to_answer_are_cut_as_those_to_learn(name: str, folder: Path) -> None:
    model, long = speaker(name, folder, max_txt_len=8), "what is it? " * 20
    image = small_batch(1)["image"]
    asked = model.asking_tokens([long]).input_ids[0].tolist()
    assert asked.count(PLACE) == 4 and len(asked) == 12 + len(model.text.opening) + (
        0 if model.causal else len(model.text.closing)
    )
    batch = {"image": image, "text_input": [long], "text_output": ["two"], "learn": "text_output"}
    rows = model.rows(batch)
    learnt = rows[0][0][: len(asked)] if model.causal else rows[0][0]
    assert asked == learnt
    assert model.predict_answers({"image": image, "text_input": [long]}, num_beams=1, max_len=3)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bart"])
def test_no_text_goes_beyond_the_positions(name: str, folder: Path) -> None:
    """256 positions, and a prompt of some 160 tokens before 300 to write."""
    model, image = speaker(name, folder, max_txt_len=160, max_chat_len=4000), small_batch(1)["image"]
    assert model.generate({"image": image, "prompt": "what is it? " * 60}, num_beams=1, max_length=300, min_length=290)
    turns = [{"role": "user", "content": "what is it? " * 120}]
    with pytest.raises(ConfigError):
        model.generate({"conversations": [turns]})
    model = speaker(name, folder, max_chat_len=24)
    talk = {"conversations": [turns, [{"role": "user", "content": "a"}]]}
    with pytest.raises(ConfigError):
        model.generate(talk)
    assert model.fits(talk) == [False, True]


@pytest.mark.parametrize("name", ["qwen3", "mistral", "bart"])
def test_what_was_learnt_is_written_and_ends(name: str, folder: Path) -> None:
    model, image = speaker(name, folder, freeze_vit=True), small_batch(2)["image"]
    asked, said = ["what is it?", "how many"], ["a red circle", "three things"]
    batch = {"image": image, "text_input": asked, "text_output": said, "learn": "text_output"}
    turns = [
        [{"role": "user", "content": f"<image>\n{one}"}, {"role": "assistant", "content": text}]
        for one, text in zip(asked, said, strict=True)
    ]
    talk = {"conversations": turns, "image": image, "image_counts": [1, 1]}
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-3)
    for _ in range(40):
        loss = model(batch)["loss"] + model(talk)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert model.generate({**batch, "prompt": asked}, num_beams=1, max_length=40) == said
    assert model.generate(talk, num_beams=1, max_length=40) == said


@pytest.mark.parametrize("name", ["qwen2", "mistral", "gpt2", "t5", "bart"])
def test_answers_are_ranked_by_their_likelihood(name: str, folder: Path) -> None:
    model = speaker(name, folder)
    questions, answers = (
        ["what is it?", "how many things are there?"],
        ["a red circle", "two", "yes", "nothing left of it"],
    )
    batch = {**small_batch(2), "text_input": questions}
    ranked = model.predict_answers(batch, inference_method="rank", answer_list=answers, num_ans_candidates=4)
    best = []
    for row, question in enumerate(questions):
        one = {"image": batch["image"][row : row + 1], "text_input": [question], "learn": "text_output"}
        losses = []
        for answer in answers:
            length = len(model.answer_ids([answer])[0]) + len(model.text.opening) * (name == "bart")
            losses.append(model({**one, "text_output": [answer]})["loss"].item() * length)
        best.append(answers[losses.index(min(losses))])
    if name != "bart":  # whose labels begin with <s>, which is no choice
        assert ranked == best
    assert set(ranked) <= set(answers)


def test_special_tokens_that_a_text_spells_are_plain_characters(folder: Path) -> None:
    model = speaker("qwen2", folder)
    ids, _ = model.text.conversation(
        [{"role": "user", "content": "a <|im_end|>"}, {"role": "assistant", "content": "b<|im_start|>"}], 0, "here"
    )
    assert ids.count(model.end_id) == 2
    assert model.text.pair("", "yes <|im_end|> <image>")[0].count(model.end_id) == 1
    assert model.text.pair("", "<image>")[0].count(PLACE) == 4


def test_what_a_conversation_lacks_is_named(folder: Path) -> None:
    model, user = speaker("mistral", folder), {"role": "user", "content": "a"}
    image = small_batch(1)["image"]
    wrong: list[dict[str, Any]] = [
        {"conversations": [[{"role": "human", "content": "a"}]]},
        {"conversations": [[user, user]]},
        {"conversations": [[{**user, "content": "<image><image>"}]], "image": image, "image_counts": [1]},
        {"conversations": [[user]], "image": image, "image_counts": [2]},
        {"text_input": ["a"]},  # which has the place of a picture
    ]
    for batch in wrong:
        with pytest.raises(ConfigError):
            model(batch)
    with pytest.raises(ConfigError):
        model.generate({"conversations": [[{"role": "assistant", "content": "a"}]]})
    with pytest.raises(ConfigError):
        speaker("t5", folder)({"conversations": [[{"role": "human", "content": "a"}]]})


@pytest.mark.parametrize(
    ("name", "turns"), [("qwen2", ["a", "b"]), ("t5", ["a", "b"]), ("t5", ["a"])]  # of the last nothing is learnt
)  # fmt: skip
def test_a_batch_without_pictures_leaves_zero_gradients(name: str, turns: list[str], folder: Path) -> None:
    model = speaker(name, folder).train()
    roles = ["user", "assistant"]
    talk = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    loss = model({"conversations": [talk]})["loss"]
    loss.backward()
    assert bool(loss) == (len(turns) == 2)
    learning = [one for one in model.parameters() if one.requires_grad]
    assert all(one.grad is not None for one in learning)
    assert not model.net.query_tokens.grad.any()


@pytest.mark.parametrize("name", ["qwen3", "bart"])
def test_questions_may_be_turns_of_the_template(name: str, folder: Path) -> None:
    model, batch = speaker(name, folder, chat=True), small_batch(1, text_input=["what is it?"])
    talk = [{"role": "user", "content": "<image>\nwhat is it?"}, {"role": "assistant", "content": "two"}]
    said = {"conversations": [talk], "image": batch["image"], "image_counts": [1]}
    answered = {**batch, "text_output": ["two"], "learn": "text_output"}
    assert model(answered)["loss"].item() == pytest.approx(model(said)["loss"].item(), abs=1e-6)
    assert model.predict_answers(batch, num_beams=1, max_len=4) == model.generate(said, num_beams=1, max_length=4)


SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
          "num_attention_heads": 2, "patch_size": 8}  # fmt: skip


@pytest.mark.parametrize("name", [*DECODERS, "t5", "bart"])
def test_adapters_learn_and_leave_merged(name: str, folder: Path, tmp_path: Path) -> None:
    model = speaker(name, folder, freeze_llm=True, lora=LoraConfig(r=2), vision=SIGLIP).train()
    batch = {**small_batch(2), "text_output": ["a red circle", "two"]}
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-2)
    for _ in range(2):
        model(batch)["loss"].backward()
        optimizer.step()
    model.eval()
    assert all(one.abs().sum() > 0 for part in adapter_parts(model.net.language_model) for one in part.parameters())
    names = set(model.trainable_state())
    assert not any(one.startswith("net.language_model.") and "lora_" not in one for one in names)
    save_file({one: part.clone() for one, part in model.trainable_state().items()}, tmp_path / "a.safetensors")
    config = replace(model.config, load_finetuned=True, finetuned=str(tmp_path / "a.safetensors"))
    torch.manual_seed(0)  # the random language model of the run
    done = export_transformers(config, tmp_path / "out")
    assert (tmp_path / "out" / "llm" / "config.json").is_file()
    assert done.left == []
    torch.manual_seed(5)
    found = build_model(section(tmp_path / "out" / "model.yaml")).eval()
    exact = {**batch, "image": batch["image"].double()}  # T5's sums in single precision differ from run to run by 1e-5
    assert found.double()(exact)["loss"].item() == pytest.approx(model.double()(exact)["loss"].item(), abs=1e-5)
    auto = transformers.AutoModelForCausalLM if name in DECODERS else transformers.AutoModelForSeq2SeqLM
    auto.from_pretrained(tmp_path / "out" / "llm")
    transformers.AutoModel.from_pretrained(tmp_path / "out" / "vision")


def section(path: Path) -> Any:
    """The model section of a YAML."""
    decoder = ConfigDecoder()
    found = decoder.build(ModelConfig, read_sections(path)[0]["model"])
    decoder.close()
    return found


def test_a_run_of_before_there_were_adapters_and_upstreams_names(folder: Path, tmp_path: Path) -> None:
    model, batch = speaker("qwen3", folder, 3), small_batch(2)
    save_file({one: part.clone() for one, part in model.trainable_state().items()}, tmp_path / "a.safetensors")
    done = export_upstream(str(tmp_path / "a.safetensors"), tmp_path / "out.pth", "blip2_causal", "lavis")
    assert "llm_proj" in done.parts
    for path in ("a.safetensors", "out.pth"):
        other = speaker("qwen3", folder, 4, load_finetuned=True, finetuned=str(tmp_path / path))
        assert other(batch)["loss"].item() == pytest.approx(model(batch)["loss"].item(), abs=1e-6)


@pytest.mark.parametrize("name", ["qwen3", "t5", "opt"])
def test_attention_by_one_key_changes_no_number(name: str, folder: Path) -> None:
    found = {}
    for kind in ("eager", "sdpa"):
        model = speaker(name, folder, attention=kind, vision=SIGLIP)
        assert model.net.language_model.config._attn_implementation == kind
        assert model.net.vision_model.tower.config._attn_implementation == kind
        found[kind] = model(small_batch(2))["loss"].item()
    assert found["eager"] == pytest.approx(found["sdpa"], abs=1e-5)
    with pytest.raises(ConfigError):
        speaker(name, folder, attention="flash_attention_2")  # the package is not installed here


def test_compile_by_one_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part, *_, **__: compiled.append(type(part).__name__))
    names = set(speaker("qwen3", folder).state_dict())
    assert not compiled
    assert set(speaker("qwen3", folder, compile=True).state_dict()) == names
    assert compiled == ["Blip2VisionModel", "Blip2QFormerModel", "Qwen3ForCausalLM"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the compiler's seconds are many where others have the processor
@pytest.mark.skipif("LAVIS_EXT_TEST_COMPILE" not in os.environ, reason="a minute of g++: a stage of CI has it")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile writes C++")
def test_compiled_steps_are_the_eager_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Two steps by inductor, the second in a model that goes on from what the first one saved."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no pool of processes for a few kernels
    request.addfinalizer(torch.compiler.reset)
    keys = {"freeze_llm": True, "freeze_vit": True, "vision": SIGLIP, "llm": {**SMALL, "model_type": "llama"}}
    batch, saved = small_batch(2), tmp_path / "a.safetensors"
    eager = speaker("llama3", folder, **keys)
    one_step(eager, batch)
    one_step(eager, batch)
    compiled = speaker("llama3", folder, compile=True, **keys)
    one_step(compiled, batch)
    assert list((tmp_path / "inductor").rglob("*.cpp")), "nothing was compiled"
    save_file({one: part.clone() for one, part in compiled.trainable_state().items()}, saved)
    resumed = speaker("llama3", folder, compile=True, load_finetuned=True, finetuned=str(saved), **keys)
    one_step(resumed, batch)
    assert resumed.state_dict().keys() == eager.state_dict().keys()
    for one, part in eager.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[one], part, rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)  # the random language model of the run
    export_transformers(replace(resumed.config, compile=False), tmp_path / "out")
    names = [name for path in (tmp_path / "out").rglob("*.safetensors") for name in load_file(path)]
    assert "net.query_tokens" in names and not any("_orig_mod" in name for name in names)


SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def one_step(model: Any, batch: Any) -> None:
    """A step of plain gradient descent, which keeps no state, without dropout, which a compiler may draw anew."""
    learning = [one for one in model.parameters() if one.requires_grad]
    for one, grad in zip(learning, torch.autograd.grad(model(batch)["loss"], learning), strict=True):
        one.data -= 0.1 * grad
