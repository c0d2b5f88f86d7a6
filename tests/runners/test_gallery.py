"""Pictures kept for the report: the right ones, small, and none that cannot be read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_ext.browse import write_run_report
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.runners.evaluation import talked, write_gallery
from tests.support.runs import toy_runner


@dataclass
class Pictures:
    """Grey pictures of 640×480 with one caption each; picture 3 is broken."""

    size: int
    name: str = "toy"

    def __len__(self) -> int:
        return self.size

    def row(self, index: int) -> dict[str, Any]:
        return {"number": index}

    def image_id(self, row: dict[str, Any]) -> int:
        return 100 + row["number"]

    def pixels(self, row: dict[str, Any], index: int) -> np.ndarray:
        if index == 3:
            raise SampleError("toy#3", "3.jpg", "truncated")
        return np.full((480, 640, 3), index % 256, dtype=np.uint8)

    def references(self) -> dict[int, list[str]]:
        return {100 + i: ["word " * (i + 1)] for i in range(self.size)}


def rows(size: int) -> list[dict[str, Any]]:
    return [{"image_id": 100 + i, "caption": "word" if i % 2 else "other"} for i in range(size)]


def index(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "index.json").read_text())["shots"]
    return found


def test_every_described_draw_jpeg_a_small_split_is_kept(tmp_path: Path) -> None:
    write_gallery(rows(9), [Pictures(9)], tmp_path / "g", "val")
    shots = index(tmp_path / "g")
    assert sorted(shot["id"] for shot in shots) == [i for i in range(100, 109) if i != 103]
    assert {shot["group"] for shot in shots} == {"best", "worst", "others"}
    for shot in shots:
        with Image.open(tmp_path / "g" / shot["image"]) as image:
            assert max(image.size) <= 320


def test_a_large_split_is_thinned(tmp_path: Path) -> None:
    write_gallery(rows(300), [Pictures(300)], tmp_path / "g", "val")
    assert 40 <= len(index(tmp_path / "g")) <= 48


@pytest.mark.parametrize("asked", [True, False])
def test_an_evaluation_keeps_pictures_where_the_run_has_a_report(asked: bool, tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, valid_splits=["val"])
    runner.evaluator.gallery = asked
    pictures = Pictures(4)
    runner.evaluator.feeds = {"val": SimpleNamespace(datasets={"toy": pictures}, order=SimpleNamespace(world=1))}
    runner.evaluator._write_results(rows(4), "val", "0")
    assert (tmp_path / "job" / "result" / "gallery" / "val" / "index.json").exists() is asked


def test_a_later_gallery_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    write_gallery(rows(9), [Pictures(9)], tmp_path / "g", "val")
    write_gallery(rows(2), [Pictures(9)], tmp_path / "g", "val")
    assert {path.name for path in (tmp_path / "g").iterdir()} == {"index.json", "toy_0.jpg", "toy_1.jpg"}


def test_captions_of_questions_are_captions(tmp_path: Path) -> None:
    found = [{**row, "question_id": number} for number, row in enumerate(rows(3))]
    write_gallery(found, [Pictures(3)], tmp_path / "g", "val")
    assert [shot["said"] for shot in sorted(index(tmp_path / "g"), key=lambda shot: shot["id"])] == [
        row["caption"] for row in found
    ]


@pytest.mark.parametrize("found", [[{"question_id": 1, "answer": "two"}], []])
def test_other_rows_leave_nothing(found: list[dict[str, Any]], tmp_path: Path) -> None:
    write_gallery(found, [Pictures(3)], tmp_path / "g", "val")
    assert not (tmp_path / "g" / "index.json").exists() or index(tmp_path / "g") == []


def test_the_report_shows_it(tmp_path: Path) -> None:
    write_gallery(rows(6), [Pictures(6)], tmp_path / "result" / "gallery" / "val", "val")
    text = write_run_report(tmp_path).read_text()
    assert text.count('<figure class="shot">') == 5
    assert text.count("data:image/jpeg;base64,") == 5
    assert "Examples from val" in text


class Questions(Pictures):
    """Two questions about each picture, with three answers."""

    def row(self, index: int) -> dict[str, Any]:
        return {"question_id": index, "question": f"how many in {index}?"}

    def references(self) -> dict[int, list[str]]:
        return {index: ["2", "two", "2", "2", "1"] for index in range(self.size)}


def test_answers_are_shown_with_their_questions(tmp_path: Path) -> None:
    rows = [{"question_id": i, "answer": "2" if i % 2 else "<b>"} for i in range(6)]
    write_gallery(rows, [Questions(6)], tmp_path / "result" / "gallery" / "val", "val")
    index = json.loads((tmp_path / "result" / "gallery" / "val" / "index.json").read_text())
    shots = {shot["id"]: shot for shot in index["shots"]}
    assert set(shots) == {0, 1, 2, 4, 5}  # picture 3 is broken
    assert shots[1]["asked"] == "how many in 1?"
    assert shots[1]["truths"] == ["2", "two", "1"]
    assert shots[1]["score"] == pytest.approx((3 * 2 / 3 + 2) / 5)
    assert shots[0]["score"] == 0
    page = write_run_report(tmp_path).read_text()
    assert "how many in 1?" in page
    assert "&lt;b&gt;" in page
    assert "what the answer is worth" in page


def test_nothing_said_leaves_no_gallery(tmp_path: Path) -> None:
    write_gallery([], [Questions(6)], tmp_path / "gallery", "val")
    assert not (tmp_path / "gallery").exists()


def test_without_an_answer_no_conversation_is_looked_for(tmp_path: Path) -> None:
    assert talked([{"sample_id": "1", "answer": "no turns"}], [range(3)], tmp_path) == []
