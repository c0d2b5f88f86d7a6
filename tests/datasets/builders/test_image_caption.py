"""The captioning shape: LAVIS' keys, every annotation form, every way a picture can be missing."""

import json
import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_ext.common.config.schema import AnnotationConfig, BuildInfo, DatasetConfig, ImagesConfig, ProcessorPair
from lavis_ext.common.errors import ConfigError, PartialError, UsageError
from lavis_ext.common.types import Dataset
from lavis_ext.datasets.builders import (
    BaseDatasetBuilder,
    BuildContext,
    NotPreparedError,
    build_datasets,
    builder_class,
    load_dataset,
    names,
)
from lavis_ext.datasets.readers import SampleError
from lavis_ext.processors.image import normalize
from tests.support.pictures import caption_config, encoded, pixels, write_captions, write_json


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_captions(tmp_path)
    return tmp_path


def build(root: Path, config: DatasetConfig | None = None, splits: list[str] | None = None) -> dict[str, Any]:
    return build_datasets(config or caption_config(), BuildContext(root, splits))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train_rows(root: Path, rows: list[dict[str, Any]], **args: Any) -> Any:
    write_json(root / "coco" / "annotations" / "train.json", rows)
    return build(root, caption_config(args=args), ["train"])["train"]


def test_training_samples_have_the_keys_of_lavis(root: Path) -> None:
    train = build(root)["train"]
    assert isinstance(train, Dataset)
    assert (train.name, train.split, len(train)) == ("little", "train", 12)
    sample = train[3]
    assert list(sample) == ["image", "text_input", "image_id", "instance_id"]
    assert sample["image"].dtype == torch.float32
    assert sample["image"].shape == (3, 32, 32)
    assert sample["text_input"] == "picture 1, caption 1"
    assert (sample["image_id"], sample["instance_id"]) == (1, "3")
    assert [train[i]["image_id"] for i in range(12)] == [i // 2 for i in range(12)]
    assert train[-1]["instance_id"] == "11"
    with pytest.raises(IndexError):
        train[12]


def test_load_gives_uint8_from_the_generator_alone(root: Path) -> None:
    train = build(root)["train"]
    state = torch.random.get_rng_state()
    first, again, other = (train.load(3, rng(seed)) for seed in (1, 1, 2))
    assert first["image"].dtype == torch.uint8
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.allclose(train[3]["image"], normalize(first["image"]))


def test_evaluation_samples(root: Path) -> None:
    val = build(root)["val"]
    sample = val[4]
    assert list(sample) == ["image", "image_id", "instance_id"]
    assert (sample["image_id"], sample["instance_id"]) == ("000000000004", "4")
    assert val.references() == {n: [f"Picture {n}, caption {k}!" for k in range(2)] for n in range(6)}
    assert torch.equal(val.load(4, rng(1))["image"], val.load(4, rng(2))["image"])


@pytest.mark.parametrize(
    ("row", "image_id"),
    [
        ({"image": "val2014/COCO_val2014_000000522418.jpg"}, 522418),
        ({"image": "val2014/COCO_val2014_00000000jpg.jpg"}, "00000000jpg"),  # LAVIS' strip(".jpg") would eat the name
        ({"image": "val/0013ea2087020901.jpg", "img_id": 7}, 7),
        ({"image": "1007129816.jpg"}, 1007129816),
        ({"image": "a_b.png", "image_id": 9}, 9),
        ({"image": "a_b.png", "image_id": "coco_9"}, "b"),
    ],
)
def test_the_id_of_an_evaluated_picture(root: Path, row: dict[str, Any], image_id: int | str) -> None:
    write_json(root / "coco" / "annotations" / "val.json", [row])
    val = build(root)["val"]
    assert val.image_id(val.row(0)) == image_id
    assert val.references() == {}


def test_one_caption_a_row_is_gathered_by_picture(root: Path) -> None:
    shutil.copy(root / "coco" / "annotations" / "train.json", root / "coco" / "annotations" / "val.json")
    val = build(root, caption_config(max_samples={"val": 3}))["val"]
    assert len(val) == 3
    assert [val[i]["image_id"] for i in range(3)] == [f"{n:012d}" for n in range(3)]
    assert [val[i]["instance_id"] for i in range(3)] == ["0", "1", "2"]
    assert val.references() == {n: [f"Picture {n}, caption {k}!" for k in range(2)] for n in range(3)}


def test_official_coco_form(root: Path) -> None:
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in range(6)]
    captions = [{"image_id": n, "id": 10 * n + k, "caption": f"c{n}{k}"} for n in (3, 1) for k in range(2)]
    write_json(root / "coco" / "annotations" / "val.json", {"images": images, "annotations": captions})
    val = build(root)["val"]
    assert [val[i]["image_id"] for i in range(len(val))] == ["000000000003", "000000000001"]
    assert val.references()[3] == ["c30", "c31"]


def test_prefix_split(root: Path) -> None:
    train = train_rows(root, [{"caption": "a b c d e", "image": "COCO_val2014_000000000000.jpg"}], prefix_split=True)
    seen = {(s["text_input"], s["text_output"]) for s in (train.load(0, rng(seed)) for seed in range(40))}
    assert seen == {("", "a b c d e"), ("a", "b c d e"), ("a b", "c d e")}
    assert train.load(0, rng(3)) | {"image": 0} == train.load(0, rng(3)) | {"image": 0}


def test_several_captions_in_a_training_row(root: Path) -> None:
    train = train_rows(root, [{"caption": ["one", "two"], "image": "COCO_val2014_000000000000.jpg"}])
    assert {train.load(0, rng(seed))["text_input"] for seed in range(20)} == {"one", "two"}


def test_pictures_named_by_id(root: Path) -> None:
    folder = root / "coco" / "images"
    (folder / "17.jpg").write_bytes(encoded(pixels(1)))
    (folder / "x18.png").write_bytes(encoded(pixels(2), "PNG"))
    align = write_json(
        root / "coco" / "annotations" / "train.json", {"annotations": [{"image_id": "17", "caption": "A."}]}
    )
    plain = caption_config(args={"image_id": "raw"}, text_processor=ProcessorPair())
    sample = build(root, plain)["train"][0]
    assert (sample["image_id"], sample["text_input"]) == ("17", "A.")
    write_json(align, [{"image_id": 18, "caption": "A."}])
    assert build(root, caption_config(args={"image_pattern": "x{image_id}.png"}))["train"][0]["image_id"] == 0


def test_other_words_for_columns(root: Path) -> None:
    table = root / "coco" / "annotations" / "train.csv"
    table.write_text(
        "file,text\nval2014/COCO_val2014_000000000002.jpg,Hello.\nval2014/COCO_val2014_000000000002.jpg,Again.\n"
    )
    info = BuildInfo(
        annotations={"train": AnnotationConfig(storage=[str(table)])}, images=ImagesConfig(storage="coco/images")
    )
    train = build(root, caption_config(build_info=info, args={"image_key": "file", "caption_key": "text"}))["train"]
    assert [(train[i]["text_input"], train[i]["image_id"]) for i in range(2)] == [("hello", 0), ("again", 0)]
    with pytest.raises(ConfigError, match="did you mean 'caption_key'"):
        build(root, caption_config(args={"captionkey": "text"}))


@pytest.mark.parametrize(
    ("caption", "why"),
    [
        (None, "missing or empty"),
        ("", "missing or empty"),
        (" \n", "missing or empty"),
        (True, "missing or empty"),
        ({"a": 1}, "missing or empty"),
        ("x" * 10**7, "too long"),
    ],
)
def test_captions_that_are_none(root: Path, caption: Any, why: str) -> None:
    train = train_rows(root, [{"caption": caption, "image": "COCO_val2014_000000000000.jpg"}])
    with pytest.raises(SampleError, match=why) as error:
        train.load(0, rng())
    assert error.value.sample_id == "little/train#0"


def test_nul_and_lone_surrogates_are_taken_out(root: Path) -> None:
    train = train_rows(root, [{"caption": "a\0 dog\ud800.", "image": "COCO_val2014_000000000000.jpg"}])
    assert train[0]["text_input"] == "a dog"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda p: p.unlink(), "image is missing"),
        (lambda p: p.write_bytes(b""), "image file is empty"),
        (lambda p: p.write_bytes(b"<html>503</html>"), "an HTML page"),
        (lambda p: p.write_bytes(p.read_bytes()[:300]), "damaged or cut off"),
    ],
)
def test_a_bad_picture_is_an_error_with_its_id(root: Path, damage: Any, why: str) -> None:
    path = root / "coco" / "images" / "val2014" / "COCO_val2014_000000000001.jpg"
    damage(path)
    train = build(root)["train"]
    for read in (lambda: train[2], lambda: train.load(2, rng())):
        with pytest.raises(SampleError, match=why) as error:
            read()
        assert error.value.sample_id == "little/train#2"
        assert error.value.path == str(path)
    assert train[0]["instance_id"] == "0"


def test_without_processor_pictures_stay_pictures(root: Path) -> None:
    train = build(root, caption_config(vis_processor=ProcessorPair(), text_processor=ProcessorPair()))["train"]
    assert isinstance(train[0]["image"], Image.Image)
    assert train[0]["text_input"] == "Picture 0, caption 0!"
    with pytest.raises(ConfigError, match="vis_processor"):
        train.collater([train[0], train[1]])


def test_a_processor_of_someone_else_gets_a_picture(root: Path) -> None:
    train = build(root)["train"]

    def shrink(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((2, 2))))

    parts = replace(train.parts, vis_processor=shrink)
    assert type(train)(parts).load(0, rng())["image"].shape == (2, 2, 3)
    assert type(train)(parts)[0]["image"].shape == (2, 2, 3)


def test_displ_item(root: Path) -> None:
    built = build(root)
    shown = built["train"].displ_item(3)
    assert list(shown) == ["file", "caption", "image"]
    assert shown["file"] == "val2014/COCO_val2014_000000000001.jpg"
    assert shown["caption"] == "Picture 1, caption 1!"
    assert built["val"].displ_item(1)["caption"] == ["Picture 1, caption 0!", "Picture 1, caption 1!"]


def test_datasets_travel_and_batch(root: Path) -> None:
    built = pickle.loads(pickle.dumps(build(root, caption_config(max_samples={"train": 5}))))
    train = built["train"]
    assert len(train) == 5
    batch = train.collater([train.load(i, rng()) for i in range(3)])
    assert batch["image"].shape == (3, 3, 32, 32)
    assert batch["image_id"].tolist() == [0, 0, 1]
    assert batch["instance_id"] == ["0", "1", "2"]


def test_missing_files_name_the_command(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "coco" / "annotations" / "train.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert set(build(root)) == {"val"}
    assert "train.json" in caplog.text
    with pytest.raises(NotPreparedError, match=r"train.json.*lavis-ext prepare little") as error:
        build(root, splits=["train", "val"])
    assert isinstance(error.value, PartialError)
    assert error.value.exit_code == 8
    shutil.rmtree(root / "coco" / "images")
    with pytest.raises(NotPreparedError, match="no such image folder"):
        build(root)
    assert build(root, splits=["test"]) == {}


def test_a_local_url_stands_in(root: Path, tmp_path: Path) -> None:
    elsewhere = write_json(tmp_path / "mine.json", [{"caption": "x", "image": "COCO_val2014_000000000000.jpg"}])
    files = {"train": AnnotationConfig(url=[str(elsewhere)], storage=["coco/annotations/not_yet.json"])}
    info = BuildInfo(annotations=files, images=ImagesConfig(storage="coco/images"))
    assert len(build(root, caption_config(build_info=info))["train"]) == 1


def test_facade(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lavis_ext.common.registry import registry

    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(root))
    assert "coco_caption" in names()
    assert builder_class("coco_caption")().config.name == "coco_caption"
    assert len(BaseDatasetBuilder(caption_config()).build_datasets()["train"]) == 12
    assert registry.get_builder_class("coco_caption")().config.builder == "image_caption"
    with pytest.raises(UsageError):
        builder_class("coco_captoin")
    with pytest.raises(UsageError):
        load_dataset("coco_caption", data_type="videos")
    body = {
        "builder": "image_caption",
        "build_info": {"annotations": {"train": {"storage": "coco/annotations/train.json"}}},
    }
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(json.dumps({"datasets": {"mine": body}}))
    mine = load_dataset("mine", cfg_path=yaml, vis_path=root / "coco" / "images")
    assert isinstance(mine["train"][0]["image"], Image.Image)


def test_what_is_not_prepared_is_prepared_where_the_pictures_are_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    with pytest.raises(PartialError) as lost:
        load_dataset("coco_caption", vis_path=tmp_path / "pictures")
    assert "lavis-ext prepare coco_caption" in lost.value.problems[0].way_out
    assert not (tmp_path / "cache").exists()
