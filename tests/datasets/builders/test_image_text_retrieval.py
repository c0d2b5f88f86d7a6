"""The retrieval shape: pairs in training, LAVIS' tables in evaluation."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.errors import ConfigError
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.readers import SampleError
from tests.support.pictures import caption_config, write_captions, write_json


@pytest.fixture
def built(tmp_path: Path) -> dict[str, Any]:
    write_captions(tmp_path, pictures=4, captions=3)
    return build_datasets(caption_config("image_text_retrieval"), BuildContext(tmp_path))


def test_training(built: dict[str, Any]) -> None:
    sample = built["train"][4]
    assert list(sample) == ["image", "text_input", "image_id", "instance_id"]
    assert (sample["image_id"], sample["instance_id"]) == (1, "4")


def test_evaluation(built: dict[str, Any]) -> None:
    val = pickle.loads(pickle.dumps(built["val"]))
    assert list(val[2]) == ["image", "index"]
    assert val[2]["index"] == 2
    assert val.image == [f"val2014/COCO_val2014_{n:012d}.jpg" for n in range(4)]
    assert val.text[:4] == [
        "picture 0, caption 0",
        "picture 0, caption 1",
        "picture 0, caption 2",
        "picture 1, caption 0",
    ]
    assert val.img2txt == {0: [0, 1, 2], 1: [3, 4, 5], 2: [6, 7, 8], 3: [9, 10, 11]}
    assert val.txt2img == {text: image for image, texts in val.img2txt.items() for text in texts}
    batch = val.collater([val.load(i, torch.Generator()) for i in (3, 1)])
    assert batch["index"].tolist() == [3, 1]


def test_fewer_samples(tmp_path: Path) -> None:
    write_captions(tmp_path, pictures=4, captions=2)
    config = caption_config("image_text_retrieval", max_samples={"val": 2, "train": 3})
    built = build_datasets(config, BuildContext(tmp_path))
    assert (len(built["train"]), len(built["val"])) == (3, 2)
    assert built["val"].txt2img == {0: 0, 1: 0, 2: 1, 3: 1}


def test_a_picture_without_captions(tmp_path: Path) -> None:
    write_captions(tmp_path)
    write_json(tmp_path / "coco" / "annotations" / "val.json", [{"image": "COCO_val2014_000000000000.jpg"}])
    val = build_datasets(caption_config("image_text_retrieval"), BuildContext(tmp_path))["val"]
    with pytest.raises(SampleError, match="caption is missing"):
        _ = val.text
    with pytest.raises(ConfigError, match=r"args\.nonsense: unknown key"):
        build_datasets(caption_config("image_text_retrieval", args={"nonsense": 1}), BuildContext(tmp_path))
