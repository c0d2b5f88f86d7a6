"""Data sets of instructions: what is asked is drawn by a sample's generator, and answers stay with their questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import ConfigError
from lavis_ext.datasets.builders import BuildContext, build_datasets, load_dataset
from lavis_ext.processors import load_processor
from lavis_ext.processors.instructions import CAPTIONS, QUESTIONS
from tests.support.families import FORMS


def train(name: str, root: Path) -> Any:
    FORMS[name][0](root)
    return build_datasets(load_cards().dataset(name), BuildContext(root, ["train"]))["train"]


def loaded(dataset: Any, index: int, seed: int) -> Any:
    return dataset.load(index, torch.Generator().manual_seed(seed))


def test_captions_are_learnt_after_an_instruction(tmp_path: Path) -> None:
    data = train("coco_caption_instruct", tmp_path)
    plain = build_datasets(load_cards().dataset("coco_caption"), BuildContext(tmp_path, ["train"]))["train"]
    known = {one.lower() for one in CAPTIONS}
    texts = [loaded(data, 0, seed)["text_input"] for seed in range(20)]
    assert set(texts) <= known and len(set(texts)) > 5
    assert texts == [loaded(data, 0, seed)["text_input"] for seed in range(20)]
    assert loaded(data, 0, 0)["text_output"] == loaded(plain, 0, 0)["text_input"]
    batch = data.collater([data[0], data[1]])
    assert len(batch["text_input"]) == len(batch["text_output"]) == len(batch["image"]) == 2


@pytest.mark.parametrize("name", ["coco_vqa_instruct", "aok_vqa_instruct", "gqa_instruct", "vg_vqa_instruct"])
def test_an_answer_of_the_question_is_learnt(name: str, tmp_path: Path) -> None:
    data = train(name, tmp_path)
    for index in range(len(data)):
        sample = loaded(data, index, index)
        question = str(data.row(index)["question"]).lower().replace("??", "?").strip()
        assert sample["text_output"] in sample["answers"] and question in sample["text_input"]
    batch = data.collater([data[index] for index in range(3)])  # LAVIS gives all answers of all questions in a row
    assert len(batch["text_output"]) == 3 and len(batch["answer"]) == int(batch["n_answers"].sum())


def test_a_sentence_is_asked_about(tmp_path: Path) -> None:
    data = train("snli_ve_instruct", tmp_path)
    assert data.classnames == ["no", "maybe", "yes"] and data.class_labels["neutral"] == 1
    assert [data[i]["label"] for i in range(3)] == [data[i]["answer"] for i in range(3)] == ["no", "maybe", "yes"]
    assert data[0]["prompt"] == "based on the given the image is {} true?"


def test_load_dataset_keeps_the_processors_of_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path))
    FORMS["coco_caption"][0](tmp_path)
    sample = load_dataset("coco_caption_instruct")["train"][0]
    assert sample["text_input"] in {one.lower() for one in CAPTIONS} and sample["image"].shape == (3, 224, 224)


def test_the_processor() -> None:
    made = load_processor("blip_instruction", {"task": "qa", "prompt": "Look. "})
    torch.manual_seed(0)
    texts = {made("What is it??") for _ in range(300)}
    assert texts == {
        f"Look. {one}".replace("{}", "What is it??").replace("??", "?").lower().strip() for one in QUESTIONS
    }
    caption = load_processor("blip_instruction", {})
    assert caption("A dog (two)!") == load_processor("blip_caption", {})("A dog (two)!") == "a dog two"
    still = load_processor("blip_instruction", {"task": "eval", "prompt": "a photo of"})
    assert still("") == "a photo of" and still("A Cat.") == "a cat"
    for wrong in ({"task": "classification"}, {"modality": "video"}):
        with pytest.raises(ConfigError):
            load_processor("blip_instruction", wrong)
