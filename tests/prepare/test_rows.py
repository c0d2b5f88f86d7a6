"""Which pictures annotations name, in the forms in which annotations come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.cards import Artifact
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import IntegrityError
from lavis_ext.prepare.samples import ImageNames, image_names, open_rows, relative_name


def put(folder: Path, name: str, value: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(value))
    return path


def names(paths: list[Path], limit: int | None = None, **args: Any) -> list[str]:
    toy = DatasetConfig(name="toy", builder="x", args=args)
    return image_names(open_rows(paths, toy, "train", paths[0].parent, limit), toy)


def test_distinct_names_of_the_first_rows_in_order(tmp_path: Path) -> None:
    rows = [{"image": name, "caption": "c"} for name in ["b", "a", "b", "c"]]
    path = put(tmp_path, "a.json", rows)
    assert names([path]) == ["b", "a", "c"] and names([path], 3) == ["b", "a"]


def test_lists_keys_and_patterns(tmp_path: Path) -> None:
    assert names([put(tmp_path, "a.json", [{"images": ["l.png", "r.png"]}])]) == ["l.png", "r.png"]
    assert names([put(tmp_path, "b.json", [{"picture": "x.jpg"}])], image_key="picture") == ["x.jpg"]
    assert names([put(tmp_path, "c.json", [{"image_id": 7}])]) == ["7.jpg"]
    assert names([put(tmp_path, "d.json", [{"image_id": 7}])], image_pattern="image/{image_id:03d}.png") == [
        "image/007.png"
    ]
    assert names([put(tmp_path, "e.json", {"annotations": [{"image_id": "9"}]})]) == ["9.jpg"]
    assert names([put(tmp_path, "f.json", [{"question": "why?"}])]) == []


def test_files_of_the_evaluation_are_left_out(tmp_path: Path) -> None:
    rows = put(tmp_path, "rows.json", [{"image": "a.jpg", "question_id": 1}])
    more = put(tmp_path, "more.json", [{"image": "b.jpg", "question_id": 2}])
    answers = put(tmp_path, "answer_list.json", ["yes", "no"])
    questions = put(tmp_path, "questions.json", {"questions": [{"image_id": 1, "question": "?"}]})
    assert names([rows, answers, questions]) == ["a.jpg"]
    assert names([rows, more]) == ["a.jpg", "b.jpg"]


def test_a_damaged_second_file_is_reported(tmp_path: Path) -> None:
    rows = put(tmp_path, "rows.json", [{"image": "a.jpg"}])
    cut = tmp_path / "cut.json"
    cut.write_text('[{"image": "b')
    with pytest.raises(IntegrityError, match=r"cut\.json"):
        names([rows, cut])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("VG_100K/1.jpg", "VG_100K/1.jpg"),
        ("image/1.jpg", "VG_100K/1.jpg"),
        ("/export/share/image/3.jpg", "VG_100K_2/3.jpg"),
        ("1.jpg", "VG_100K/1.jpg"),
        ("flat.jpg", "flat.jpg"),
        ("VG_100K/3.jpg", None),
        ("../flat.jpg", None),
        ("image/9.jpg", None),
    ],
)
def test_names_are_sought_as_the_image_store_seeks_them(asked: str, found: str | None) -> None:
    there = {"VG_100K/1.jpg", "VG_100K/2.jpg", "VG_100K_2/3.jpg", "flat.jpg"}
    assert ImageNames(there, ["VG_100K", "VG_100K_2"]).find(asked) == found


@pytest.mark.parametrize("asked", ["image/1.jpg", "/export/share/image/3.jpg", "2.jpg"])
def test_no_name_of_another_folder_is_found_where_none_is_declared(asked: str) -> None:
    assert ImageNames({"VG_100K/1.jpg", "VG_100K/2.jpg", "VG_100K_2/2.jpg", "VG_100K_2/3.jpg"}).find(asked) is None


@pytest.mark.parametrize(
    ("storage", "member", "images", "name"),
    [
        ("coco/images", "val2014/a.jpg", "coco/images", "val2014/a.jpg"),
        ("gqa", "images/1.jpg", "gqa/images", "1.jpg"),
        ("coco/images/val2014", "a.jpg", "coco/images/", "val2014/a.jpg"),
        ("gqa", "readme.txt", "gqa/images", None),
    ],
)
def test_members_below_the_folder_of_images(storage: str, member: str, images: str, name: str | None) -> None:
    assert relative_name(Artifact(url="https://x.org/a.zip", storage=storage, unpack="zip"), member, images) == name
