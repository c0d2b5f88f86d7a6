"""Samples become batches as LAVIS' collaters make them."""

from typing import Any

import pytest
import torch

from lavis_ext.common.errors import ConfigError
from lavis_ext.datasets.collate import collate, to_device
from lavis_ext.processors.image import Normalizer


def sample(number: int, **more: Any) -> dict[str, Any]:
    image = torch.full((3, 2, 2), number, dtype=torch.uint8)
    return {"image": image, "text_input": f"t{number}", "image_id": number, **more}


def test_kinds_of_values() -> None:
    batch = collate([sample(1, question_id=5, answers=["a"]), sample(2, question_id="x", answers=[])])
    assert batch["image"].shape == (2, 3, 2, 2)
    assert batch["image"].dtype == torch.uint8
    assert batch["text_input"] == ["t1", "t2"]
    assert batch["image_id"].dtype == torch.int64
    assert batch["question_id"] == [5, "x"]
    assert batch["answers"] == [["a"], []]


def test_ids_that_are_text_stay_a_list() -> None:
    assert collate([sample(1), {**sample(2), "image_id": "coco_2"}])["image_id"] == [1, "coco_2"]
    assert collate([{"index": True}, {"index": False}])["index"] == [True, False]


def test_only_shared_keys() -> None:
    assert set(collate([sample(1, text_output="x"), sample(2)])) == {"image", "text_input", "image_id"}


def test_a_rule_for_a_key() -> None:
    def flatten(key: str, values: list[list[str]]) -> dict[str, Any]:
        return {"answer": [a for v in values for a in v], "n_answers": torch.tensor([len(v) for v in values])}

    batch = collate([sample(1, answers=["a", "b"]), sample(2, answers=["c"])], {"answers": flatten})
    assert batch["answer"] == ["a", "b", "c"]
    assert batch["n_answers"].tolist() == [2, 1]
    assert "answers" not in batch


def test_pictures_that_cannot_be_stacked() -> None:
    with pytest.raises(ConfigError, match=r"set `vis_processor"):
        collate([{"image": "a picture"}])
    with pytest.raises(ConfigError, match="shapes"):
        collate([{"image": torch.zeros(3, 2, 2)}, {"image": torch.zeros(3, 2, 3)}])


def test_to_device_normalises_there() -> None:
    batch = collate([sample(1), sample(2)])
    moved = to_device(batch, "cpu", Normalizer())
    assert moved["image"].dtype == torch.float32
    assert moved["text_input"] == ["t1", "t2"]
    assert batch["image"].dtype == torch.uint8
    assert to_device(batch, torch.device("cpu"))["image"].dtype == torch.uint8
    floats = to_device({"image": torch.ones(1, 3, 2, 2)}, "cpu", Normalizer())["image"]
    assert floats.equal(torch.ones(1, 3, 2, 2))
    assert to_device(batch, "meta")["image"].device.type == "meta"


def test_masks_of_uint8_are_no_pictures() -> None:
    """A captioning batch carries uint8 [B,S,S]: only [B,3,H,W] is normalised on its way to the device."""
    mask = torch.ones(2, 5, 5, dtype=torch.uint8)
    moved = to_device(
        {"attention_mask": mask, "image": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "cpu", Normalizer()
    )
    assert torch.equal(moved["attention_mask"], mask)
    assert moved["image"].dtype == torch.float32
