"""Data sets at a prompt: short tables, parts by slice, number and predicate, DataFrames, pictures as HTML."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_ext import load_dataset
from lavis_ext.common.errors import PartialError, UsageError
from lavis_ext.datasets.datasets.base_dataset import BaseDataset, ItemDataset
from lavis_ext.datasets.view import FIRST, WIDTH

CARD = """
datasets:
  birds:
    builder: image_caption
    build_info:
      annotations: {train: {storage: birds/train.json}, val: {storage: birds/val.json}, test: {storage: birds/x.json}}
      images: {storage: birds}
    vis_processor: {train: {name: blip_image_eval, image_size: 16}, eval: {name: blip_image_eval, image_size: 16}}
  pairs:
    builder: paired_images
    args: {labels: ['False', 'True']}
    build_info:
      annotations: {train: {storage: birds/pairs.json}}
      images: {storage: birds}
"""


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A data set of six rows, one of which has no picture, and hostile texts; its test split is not here."""
    photos, cards = tmp_path / "root" / "birds", tmp_path / "mine" / "datasets"
    photos.mkdir(parents=True)
    cards.mkdir(parents=True)
    (cards / "birds.yaml").write_text(CARD)
    texts = ["a red bird", "<script>a</script>", "b\x1b[31m" * 40, "two\nlines", "a blue bird", "gone"]
    rows = [{"image": f"{n}.jpg", "caption": text, "image_id": n} for n, text in enumerate(texts)]
    for number in range(5):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(photos / f"{number}.jpg")
    (photos / "train.json").write_text(json.dumps(rows))
    (photos / "val.json").write_text(json.dumps(rows[:2]))
    pair = {"images": ["0.jpg", "1.jpg"], "sentence": "they differ", "label": "True"}
    (photos / "pairs.json").write_text(json.dumps([pair] * 3))
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "mine"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "root"))
    return load_dataset("birds")


def test_it_prints_as_a_short_table(birds: Any) -> None:
    assert [line.split()[:2] for line in repr(birds).splitlines()[2:]] == [["train", "6"], ["val", "2"]]
    title, head, *rows = repr(birds["train"]).splitlines()
    assert "birds/train" in title and "6 samples" in title
    assert head.split() == ["image", "caption", "image_id"] and len(rows) == FIRST
    assert max(map(len, rows)) < 2 * WIDTH and "\x1b" not in "".join(rows)
    assert isinstance(birds, dict) and set(birds) == {"train", "val"}
    again = pickle.loads(pickle.dumps(birds))
    assert repr(again) == repr(birds)


def test_html_is_a_table_of_texts(birds: Any) -> None:
    for shown in (birds._repr_html_(), birds["train"]._repr_html_(), birds["train"].show(9)._repr_html_()):
        assert "<script>" not in shown and "\x1b" not in shown
    pictures = birds["train"].show(6)._repr_html_()
    assert pictures.count("<img") == 5, "one is missing, and says why"
    assert "5.jpg" in pictures
    assert len(repr(birds["train"].show(4)).splitlines()) == 2 + 4


def test_a_split_that_is_not_there(birds: Any) -> None:
    with pytest.raises(UsageError, match="did you mean 'train'"):
        birds["tain"]
    with pytest.raises(KeyError):
        birds["tain"]
    assert birds.get("tain") is None
    assert len(load_dataset("birds", split="val")) == 2
    with pytest.raises(UsageError, match="did you mean 'val'"):
        load_dataset("birds", split="vla")
    with pytest.raises(PartialError, match="prepare birds"):
        load_dataset("birds", split="test")


def test_parts(birds: Any) -> None:
    train = birds["train"]
    assert [one["image_id"] for one in train[:3]] == [0, 1, 2]
    assert [one["image_id"] for one in train[-3:-1]] == [3, 4]
    assert len(train[4:99]) == 2 and len(train[::2]) == 3 and len(train[3:1]) == 0
    chosen = train.select([4, -2, 0])
    assert [row["image_id"] for row in chosen.annotation] == [4, 4, 0]
    assert [row["image_id"] for row in chosen[1:].annotation] == [4, 0]
    assert chosen[-1]["image_id"] == 0 and chosen.name == "birds" and chosen.split == "train"
    assert "3 samples" in repr(chosen)
    found = train.filter(lambda row: "bird" in row["caption"])
    assert [row["image_id"] for row in found.annotation] == [0, 4]
    assert len(found.filter(lambda row: row["image_id"] > 3)) == 1
    for wrong in ([6], [-7]):
        with pytest.raises(IndexError):
            train.select(wrong)
    with pytest.raises(IndexError):
        chosen[3]
    with pytest.raises(TypeError):
        train.select(["0"])
    with pytest.raises(TypeError, match="caption"):
        train["caption"]
    assert len(pickle.loads(pickle.dumps(chosen))) == 3


def test_a_part_is_loaded_and_collated_as_the_whole(birds: Any) -> None:
    part = birds["train"][1:3]
    rng = torch.Generator().manual_seed(0)
    assert part.load(0, rng)["image_id"] == birds["train"].load(1, rng)["image_id"] == 1
    batch = next(iter(torch.utils.data.DataLoader(part, batch_size=2, collate_fn=part.collater)))
    assert list(batch["image_id"]) == [1, 2]


def test_every_shape_takes_slices(birds: Any) -> None:
    pairs = load_dataset("pairs", split="train")
    assert len(pairs[:2]) == 2  # type: ignore[arg-type]
    assert set(pairs[:2][0]) == set(pairs[0])  # type: ignore[index]


def test_rows_become_a_data_frame(birds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = birds["train"][:2].to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame["image_id"]) == [0, 1]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        birds["train"].to_pandas()


def test_lavis_habits_stay(birds: Any) -> None:
    train = birds["train"]
    train.annotation = train.annotation[:4]
    assert len(train) == 4 and len(train[:9]) == 4 and "4 samples" in repr(train)

    class Own(BaseDataset):
        def __init__(self) -> None:
            self.annotation = [{"caption": "x"}]

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"text": self.annotation[index]["caption"]}

    assert "1 sample" in repr(Own()) and Own().select([0])[0] == {"text": "x"}
    assert "2 samples" in repr(ItemDataset([{"a": 1}, {"a": 2}]))
