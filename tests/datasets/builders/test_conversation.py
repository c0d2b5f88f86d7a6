"""The shape `conversation`: turns of LLaVA's and OpenAI's files, and where each picture stands."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.datasets.builders import BuildContext, NotPreparedError, build_datasets
from lavis_ext.datasets.builders.conversation import ConversationDataset, before_answer
from lavis_ext.datasets.builders.settings import ConversationKeys
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.processors import load_processor
from tests.support.families import FORMS, pictures

VIS = {"name": "blip_image_eval", "image_size": 8}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def opened(root: Path, rows: list[dict[str, Any]], split: str = "train", name: str = "mine.json", **args: Any) -> Any:
    """Rows with the pictures a.jpg to d.jpg beside them."""
    pictures(root / "images", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (root / name).write_text(text)
    tree = {
        "name": "mine",
        "builder": "conversation",
        "build_info": {"annotations": {split: {"storage": name}}, "images": {"storage": "images"}},
        "args": args,
    }
    from lavis_ext.common.config.decode import ConfigDecoder

    decoder = ConfigDecoder()
    config = decoder.build(DatasetConfig, tree, "datasets.mine")
    decoder.close()
    assert config is not None
    return build_datasets(config, BuildContext(root))[split]


def pixel(image: Any) -> tuple[int, ...]:
    """What tells one of the pictures from another."""
    value: tuple[int, ...] = image.getpixel((0, 0))
    return value


FILES: dict[str, tuple[dict[str, Any], list[tuple[str, str]], list[str]]] = {
    # a record → roles and contents, and the pictures
    "one picture": (
        {"id": "7", "image": "b.jpg", "conversations": [human("<image>\nWhat?"), gpt("A cat.")]},
        [("user", "<image>\nWhat?"), ("assistant", "A cat.")],
        ["b.jpg"],
    ),
    "behind the question": (
        {"image": "a.jpg", "conversations": [human("What is in\n<image>"), gpt("Tea."), human("Hot?"), gpt("Yes.")]},
        [("user", "What is in\n<image>"), ("assistant", "Tea."), ("user", "Hot?"), ("assistant", "Yes.")],
        ["a.jpg"],
    ),
    "no mark": (
        {"image": ["a.jpg", "c.jpg"], "conversations": [human("Which?"), gpt("The first.")]},
        [("user", "<image>\n<image>\nWhich?"), ("assistant", "The first.")],
        ["a.jpg", "c.jpg"],
    ),
    "several, in two turns": (
        {
            "images": ["c.jpg", "a.jpg"],
            "conversations": [human("<image> this"), gpt("1"), human("or <image>?"), gpt("2")],
        },
        [("user", "<image> this"), ("assistant", "1"), ("user", "or <image>?"), ("assistant", "2")],
        ["c.jpg", "a.jpg"],
    ),
    "text alone, a system and a greeting": (
        {"conversations": [{"from": "system", "value": "Be brief."}, gpt("Hello!"), human("Hi"), gpt("Yes?")]},
        [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?")],
        [],
    ),
    "no picture, said as null": (
        {"image": None, "conversations": [human("1 + 1"), gpt("2")]},
        [("user", "1 + 1"), ("assistant", "2")],
        [],
    ),
    "a role twice": (
        {"messages": [user("One"), user("Two"), assistant("Three")]},
        [("user", "One\nTwo"), ("assistant", "Three")],
        [],
    ),
    "messages with marks and images": (
        {"messages": [user("<image> and <image>?"), assistant("Same.")], "images": ["d.jpg", "d.jpg"]},
        [("user", "<image> and <image>?"), ("assistant", "Same.")],
        ["d.jpg", "d.jpg"],
    ),
    "parts that name pictures": (
        {
            "messages": [
                user([{"type": "image_url", "image_url": {"url": "b.jpg"}}, {"type": "text", "text": "and"}]),
                assistant([{"type": "text", "text": "Go on."}]),
                user([{"type": "text", "text": "this"}, {"type": "image", "image": "file://a.jpg"}]),
                assistant("Fine."),
            ]
        },
        [("user", "<image>\nand"), ("assistant", "Go on."), ("user", "this\n<image>"), ("assistant", "Fine.")],
        ["b.jpg", "a.jpg"],
    ),
    "a system beside its turns, as ShareGPT's": (
        {"system": "Be brief.", "conversations": [human("Hi"), gpt("Yes?")]},
        [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?")],
        [],
    ),
    "a system beside and among them": (
        {"system": "Be brief.", "messages": [{"role": "developer", "content": "Be kind."}, user("Hi"), assistant("!")]},
        [("system", "Be brief.\nBe kind."), ("user", "Hi"), ("assistant", "!")],
        [],
    ),
    "a system that says nothing": (
        {"system": "", "conversations": [{"from": "system", "value": ""}, human("Hi"), gpt("Yes?")]},
        [("user", "Hi"), ("assistant", "Yes?")],
        [],
    ),
    "both names, as a table has them": (
        {
            "image": "",
            "images": ["b.jpg"],
            "conversations": [
                {"from": None, "role": "user", "value": None, "content": "<image>?"},
                {"from": "gpt", "role": None, "value": "!", "content": None},
            ],
        },
        [("user", "<image>?"), ("assistant", "!")],
        ["b.jpg"],
    ),
    "parts without names": (
        {
            "messages": [user([{"type": "image"}, {"type": "text", "text": "?"}]), assistant("!")],
            "images": [{"path": "c.jpg"}],
        },
        [("user", "<image>\n?"), ("assistant", "!")],
        ["c.jpg"],
    ),
}


@pytest.mark.parametrize("name", ["mine.json", "mine.jsonl"])
def test_every_form_of_a_record_becomes_one(name: str, tmp_path: Path) -> None:
    data = opened(tmp_path, [row for row, _, _ in FILES.values()], name=name)
    assert len(data) == len(FILES)
    for index, (form, (_, turns, names)) in enumerate(FILES.items()):
        sample = data[index]
        assert [(one["role"], one["content"]) for one in sample["conversations"]] == turns, form
        expected = [Image.open(tmp_path / "images" / one).convert("RGB") for one in names]
        assert [pixel(image) for image in sample["image"]] == [pixel(image) for image in expected], form
        assert (sample["instance_id"], sample["sample_id"]) == (str(index), f"mine/train#{index}")
    assert pickle.loads(pickle.dumps(data)).row(1) == data.row(1)


WRONG: dict[str, dict[str, Any]] = {
    "more marks than pictures": {"image": "a.jpg", "conversations": [human("<image> <image>"), gpt("x")]},
    "fewer marks than pictures": {"image": ["a.jpg", "b.jpg"], "conversations": [human("<image>"), gpt("x")]},
    "a mark and no picture": {"conversations": [human("what is <image>?"), gpt("x")]},
    "a picture of the assistant's": {"image": "a.jpg", "conversations": [human("draw"), gpt("<image>")]},
    "no turns": {"image": "a.jpg", "conversations": []},
    "no list": {"image": "a.jpg", "conversations": {"from": "human"}},
    "texts in place of turns": {"image": "a.jpg", "conversations": ["a", "b"]},
    "an unknown role": {"conversations": [human("a"), {"from": "tool", "value": "b"}]},
    "a late system": {"conversations": [human("a"), {"from": "system", "value": "b"}, gpt("c")]},
    "an empty turn": {"conversations": [human("a"), gpt("  ")]},
    "a turn without content": {"conversations": [human("a"), {"from": "gpt"}]},
    "nothing to learn": {"conversations": [human("a")]},
    "a sound": {"messages": [user([{"type": "input_audio"}]), assistant("x")]},
    "a picture as base64": {
        "messages": [user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]), assistant("x")]
    },
    "a picture as bytes": {"image": {"bytes": "AA", "path": None}, "conversations": [human("?"), gpt("x")]},
    "no such picture": {"image": "z.jpg", "conversations": [human("<image>"), gpt("x")]},
    "the second is lost": {"image": ["a.jpg", "z.jpg"], "conversations": [human("<image><image>"), gpt("x")]},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_record_that_cannot_be_used_is_a_fault_of_its_own(wrong: str, tmp_path: Path) -> None:
    fine = {"image": "a.jpg", "conversations": [human("<image>"), gpt("x")]}
    data = opened(tmp_path, [fine, WRONG[wrong], fine])
    assert data[0]["conversations"] == data[2]["conversations"]
    for read in (lambda: data[1], lambda: data.load(1, torch.Generator())):
        with pytest.raises(SampleError) as error:
            read()
        assert error.value.sample_id == "mine/train#1"


def test_a_batch_has_all_pictures_in_a_row(tmp_path: Path) -> None:
    data = opened(tmp_path, [row for row, _, _ in FILES.values()])
    data.set_processors(load_processor("blip_image_eval", VIS), None)
    samples = [data.load(index, torch.Generator()) for index in range(len(data))]
    counts = [len(names) for _, _, names in FILES.values()]
    batch = data.collater(samples)
    assert batch["image_counts"] == counts and batch["image"].shape == (sum(counts), 3, 8, 8)
    flat = [image for sample in samples for image in sample["image"]]
    assert torch.equal(batch["image"], torch.stack(flat))
    assert batch["conversations"] == [sample["conversations"] for sample in samples]
    alone = data.collater([samples[4], samples[5]])
    assert "image" not in alone and alone["image_counts"] == [0, 0]
    with pytest.raises(ConfigError):
        data.set_processors(None, None)
        data.collater([data[0]])


def test_of_a_held_out_split_the_last_answer_is_the_reference(tmp_path: Path) -> None:
    rows = [FILES["behind the question"][0], {"conversations": [human("a")]}]
    data = opened(tmp_path, rows, split="val")
    asked, said = before_answer(data[0]["conversations"])
    assert ([turn["content"] for turn in asked], said) == (["What is in\n<image>", "Tea.", "Hot?"], "Yes.")
    assert before_answer(data[1]["conversations"]) == ([{"role": "user", "content": "a"}], "")
    assert data.references() == {"mine/val#0": ["Yes."]}


def test_rows_of_questions_are_conversations_of_two_turns(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "question": "What?", "answer": ["x", "y", "y"]},
        {"image": "b.jpg", "question": "Who?", "answer": ["z"]},
    ]
    train = opened(tmp_path, rows, answer_key="answer")
    drawn = {train.load(0, torch.Generator().manual_seed(s))["conversations"][1]["content"] for s in range(20)}
    assert drawn == {"x", "y"} and train[1]["conversations"][0]["content"] == "<image>\nWho?"
    held = opened(tmp_path, rows, split="val", answer_key="answer")
    assert held[0]["conversations"][1]["content"] == "y" and held.references()["mine/val#0"] == ["x", "y", "y"]


def test_captions_are_asked_for_by_prompts(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "caption": "A cup."}]
    data = opened(tmp_path, rows, prompts=["Describe it.", "What do you see?"])
    turns = [data.load(0, torch.Generator().manual_seed(seed))["conversations"] for seed in range(20)]
    assert {one[0]["content"] for one in turns} == {"<image>\nDescribe it.", "<image>\nWhat do you see?"}
    assert {one[1]["content"] for one in turns} == {"A cup."}
    with pytest.raises(ConfigError):
        opened(tmp_path, rows)  # nothing is asked
    with pytest.raises(ConfigError):
        opened(tmp_path, [{"image": "a.jpg"}], prompts=["Describe it."])


@pytest.mark.parametrize("name", ["minigpt4_self_instruct_caption", "cc_sbu_align"])
def test_minigpt4s_set_can_be_talked_about(name: str, tmp_path: Path) -> None:
    FORMS[name][0](tmp_path)
    config = load_cards().dataset(name, "conversation")
    data = build_datasets(config, BuildContext(tmp_path, ["train"]))["train"]
    plain = build_datasets(load_cards().dataset(name), BuildContext(tmp_path, ["train"]))["train"]
    assert len(data) == len(plain)
    sample = data.load(0, torch.Generator().manual_seed(1))
    assert sample["conversations"][1]["content"] == plain.row(0)["caption"].strip()
    assert sample["conversations"][0]["content"].startswith("<image>\n") and len(sample["image"]) == 1


@pytest.mark.parametrize(
    "name",
    [
        "llava_pretrain",
        "llava_instruct_150k",
        "llava_mix665k",
        "sharegpt4v",
        "sharegpt4v_pretrain",
        "sharegpt4v_mix665k",
    ],
)
def test_published_conversations_can_be_kept_whole(name: str, tmp_path: Path) -> None:
    cards = load_cards()
    whole, apart = cards.dataset(name, "conversation"), cards.dataset(name)
    assert (whole.builder, apart.builder) == ("conversation", "vqa")
    assert cards.annotation_paths(whole, "train") == cards.annotation_paths(apart, "train")
    assert {one.name for one in cards.artifacts_of(whole)} == {one.name for one in cards.artifacts_of(apart)}
    assert whole.build_info.images == apart.build_info.images and whole.tolerance == apart.tolerance
    with pytest.raises(NotPreparedError):
        build_datasets(whole, BuildContext(tmp_path))


def test_lavis_manner(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.jpg"])
    file = tmp_path / "x.json"
    file.write_text(json.dumps([{"image": "a.jpg", "question": "Q", "caption": "A"}]))
    data = ConversationDataset(None, None, tmp_path, [file])  # type: ignore[call-arg, arg-type]
    assert data[0]["conversations"][0]["content"] == "<image>\nQ" and isinstance(data.parts.args, dict)
    assert ConversationKeys().answer_key == "caption"
