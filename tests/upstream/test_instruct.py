"""LAVIS' InstructBLIP on weights that are drawn by their names, as BLIP-2's are; `drawn.json` has what it gave.

Made with LAVIS main (506965b) over transformers 4.33, with Vicuna's tokenizer opened by `</s>` and padded by `[PAD]`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from lavis_ext.models.instruct import Blip2T5Instruct
from lavis_ext.models.network import load_tokenizer
from lavis_ext.models.settings import Blip2T5InstructConfig, Blip2VicunaInstructConfig
from lavis_ext.models.weights import load_over, to_upstream
from lavis_ext.models.zoo import build_model
from tests.upstream.reference import SUMS
from tests.upstream.test_drawn import GIVEN, KINDS, LONG, QFORMER, QUESTIONS, WIDE, drawn
from tests.upstream.test_numbers import Record, compare

TINY = "models/blip2_opt/tokenizer-tiny"
ANSWERS = ["a red circle on a table", "two dogs and a small ball", "a"]
CHOICES = ["yes", "no it is a dog", "a red circle", "maybe", "two"]
WORDS = ["dog", "cat", "ball", "red", "moon", "bird", "two", "a"]
OWN = [["yes", "no"], ["a dog", "two dogs", "a cat on a mat"], ["red"]]
NAMES = ["vicuna", "t5"]
PREFIX = {"vicuna": "llm", "t5": "t5"}


def images(seed: int = 1, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape or (3, 3, 16, 16)).astype(np.float32))


def vicuna_tokenizer(folder: Path) -> str:
    """As a LLaMA's that starts texts with a token of its own, which LAVIS replaces by the end token."""
    tokenizer = load_tokenizer(TINY, "tokenizer").backend_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
    ends = {"bos_token": "<unk>", "eos_token": "</s>", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder / "vicuna")
    return str(folder / "vicuna")


@cache
def model(name: str, folder: Path, reads: bool = True) -> Any:
    kind = Blip2VicunaInstructConfig if name == "vicuna" else Blip2T5InstructConfig
    sizes = {"vision_config": {**WIDE, "patch_size": 8}, "qformer_config": QFORMER, **KINDS[name][2]}
    texts: dict[str, Any] = {"max_txt_len": 12, "max_output_txt_len": 8, "prompt": "a photo of"}
    texts |= {"qformer_text_input": reads, "qformer_tokenizer": TINY}
    texts |= {"tokenizer": vicuna_tokenizer(folder) if name == "vicuna" else TINY}
    keys = {"arch": f"blip2_{name}_instruct", "model_type": "tiny", "image_size": 16, "num_query_token": 4}
    shots = {"num_few_shot_examples": 2, "few_shot_prob": 0.5} if name == "t5" else {}
    built: Any = build_model(kind(**keys, **texts, **shots, freeze_vit=False, freeze_llm=False, sizes=sizes)).eval()
    names = to_upstream(built.trainable_state(), PREFIX[name])
    path = folder / f"{name}{reads}.pth"
    torch.save({"model": {key: drawn(key, tuple(t.shape)) for key, t in names.items()}}, path)
    load_over(built, str(path), "model.finetuned")
    return built


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("instruct")


def given(name: str) -> dict[str, Any]:
    found: dict[str, Any] = GIVEN[f"{name}_instruct"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients(name: str, folder: Path, record_property: Record) -> None:
    ours, wanted = model(name, folder), given(name)
    batch = {"image": images(), "text_input": QUESTIONS, "text_output": ANSWERS}
    loss = ours(batch)["loss"]
    loss.backward()
    grads = to_upstream({key: p.grad for key, p in ours.named_parameters() if p.grad is not None}, PREFIX[name])
    ours.zero_grad()
    compare(record_property, f"loss of {name}_instruct", float(loss.detach()), wanted["loss"], SUMS)
    for key, norm in wanted["grad"].items():
        compare(record_property, f"gradient norm of {key}", float(grads[key].norm()), norm, 1e-5)
    with torch.no_grad():
        long = ours({**batch, "text_input": [LONG, QUESTIONS[0], LONG], "text_output": [LONG, "a", LONG]})["loss"]
        blind = model(name, folder, reads=False)(batch)["loss"]
    compare(record_property, f"loss of long texts of {name}_instruct", float(long), wanted["loss_long"], SUMS)
    compare(record_property, f"loss of {name} without text", float(blind), wanted["loss_blind"], SUMS)


@pytest.mark.parametrize("name", NAMES)
def test_texts(name: str, folder: Path, record_property: Record) -> None:
    ours, wanted, pictures = model(name, folder), given(name), {"image": images()}
    asked = {**pictures, "prompt": QUESTIONS}
    found = [(ours.generate(asked, **keys), texts) for keys, texts in wanted["gen"]]
    short: dict[str, Any] = {"num_beams": 1, "max_length": 6}
    words = [["a", "dog"], ["red"], ["x"] * 40]
    found += [
        (ours.generate(pictures, **short), wanted["gen_prompt"]),
        (
            ours.generate({**pictures, "prompt": "OCR tokens: {}. short", "ocr_tokens": words}, **short),
            wanted["gen_ocr"],
        ),
        (ours.generate({**pictures, "prompt": [LONG, "a", f"{LONG} {QUESTIONS[1]}"]}, **short), wanted["gen_long"]),
        (ours.generate({"image": images(3, 2, 3, 3, 16, 16), "prompt": QUESTIONS[:2]}, **short), wanted["gen_video"]),
        (model(name, folder, reads=False).generate(asked, **short), wanted["gen_blind"]),
    ]
    asked = {**pictures, "text_input": QUESTIONS}
    found += [(ours.predict_answers(asked, **keys), texts) for keys, texts in wanted["ans"]]
    lettered = {**asked, "choices": [["a", "b"], ["red", "blue", "green"], ["x"]]}
    prompt = "Question: {} Options: {}. Short answer:"
    found.append((ours.predict_answers(lettered, num_beams=1, max_len=5, prompt=prompt), wanted["ans_choices"]))
    for texts, theirs in found:
        assert texts == theirs
        record_property("texts", len(theirs))


@pytest.mark.parametrize("name", NAMES)
def test_classes(name: str, folder: Path) -> None:
    ours, wanted = model(name, folder), given(name)
    asked = {"image": images(), "prompt": "is {} it?", "text_input": QUESTIONS}
    assert ours.predict_class(asked, CHOICES).tolist() == wanted["class"]
    assert ours.predict_class(asked, CHOICES, n_segments=3).tolist() == wanted["class_3"]
    assert ours.predict_class(asked, WORDS).tolist() == wanted["class_words"]
    assert ours.predict_class(asked, OWN) == wanted["class_own"]
    more = {"context": ["a", "dog", "red"], "history": ["q", "a b", "c"], "caption": ["moon", "two", "x"]}
    asked = {"image": images(), "prompt": "what?", **more}
    assert ours.predict_class(asked, CHOICES, n_segments=2).tolist() == wanted["class_more"]


@pytest.mark.parametrize("count", [1, 2])
def test_few_shots(count: int, folder: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blip2T5Instruct, "_shots", lambda self: count)
    texts = [[question, LONG if row else "a"] for row, question in enumerate(QUESTIONS)]
    shots = [{"image": images(7 + row, 2, 3, 16, 16), "text_input": pair} for row, pair in enumerate(texts)]
    batch = {"image": images(), "text_input": QUESTIONS, "text_output": ANSWERS, "few_shot_samples": shots}
    with torch.no_grad():
        found = float(model("t5", folder)(batch)["loss"])
    compare(record_property, f"loss with {count} shots", found, given("t5")[f"loss_{count}_shots"], SUMS)
