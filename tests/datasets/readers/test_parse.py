"""Every form in which annotations are published reads as rows; anything else is an error with its place."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lavis_ext.common.errors import IntegrityError
from lavis_ext.datasets.readers.parse import parse_rows

ROWS = [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "caption": "two"}]


def read(tmp_path: Path, text: str, name: str = "a.json") -> list[dict[str, Any]]:
    path = tmp_path / name
    path.write_text(text)
    return parse_rows(path)


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (ROWS, ROWS),
        ({"annotations": ROWS}, ROWS),
        ({"info": {}, "questions": ROWS}, ROWS),
        ({"7": {"q": 1}, "8": "text"}, [{"sample_id": "7", "q": 1}, {"sample_id": "8", "data": "text"}]),
        ([], []),
    ],
)
def test_json_forms(tmp_path: Path, value: Any, rows: Any) -> None:
    assert read(tmp_path, json.dumps(value)) == rows


def test_official_coco_rows_get_their_image(tmp_path: Path) -> None:
    value = {
        "images": [{"id": 5, "file_name": "x.jpg"}],
        "annotations": [
            {"image_id": 5, "caption": "a"},
            {"image_id": 6, "caption": "b"},
            {"image": "y.jpg", "image_id": 5},
        ],
    }
    assert [row.get("image") for row in read(tmp_path, json.dumps(value))] == ["x.jpg", None, "y.jpg"]


def test_lines_tables_and_parquet(tmp_path: Path) -> None:
    assert read(tmp_path, "\n".join(map(json.dumps, ROWS)) + "\n\n", "a.jsonl") == ROWS
    assert read(tmp_path, "\n".join(map(json.dumps, ROWS)) + "\n", "a.json") == ROWS
    assert read(tmp_path, json.dumps(ROWS), "b.jsonl") == ROWS
    assert read(tmp_path, '\ufeffimage,caption\na.jpg,"one, ""1""\nand"\n\nb.jpg,\n', "a.csv") == [
        {"image": "a.jpg", "caption": 'one, "1"\nand'},
        {"image": "b.jpg", "caption": ""},
    ]
    assert read(tmp_path, "id\tzip\tx\n1\t007\t1.5\n20\t12\t-2\n", "a.tsv") == [
        {"id": 1, "zip": "007", "x": 1.5},
        {"id": 20, "zip": "12", "x": -2.0},
    ]
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert parse_rows(tmp_path / "a.parquet") == ROWS


@pytest.mark.parametrize(
    ("text", "name", "where", "what"),
    [
        ('[{"a": 1},\n {"a": 2', "a.json", "a.json:2:9", "ends early"),
        ('[{"a": "tex', "a.json", "a.json:1:8", "ends early"),
        ("", "a.json", "a.json:1:1", "ends early"),
        ("<html>", "a.json", "a.json:1:1", "not JSON"),
        ("[1] [2]", "a.json", "a.json:1:5", "jsonl"),
        ('"text"', "a.json", "a.json:1:1", "list of records"),
        ("[1]", "a.json", "record 0", "int"),
        ("[null]", "a.json", "record 0", "nothing"),
        ("[" * 100_000, "a.json", "a.json:1", "cannot be read"),
        ('{"a": 1}\n{"a": \n', "a.jsonl", "a.jsonl:2", "ends early"),
        ('{"a": 1}\n[2]\n', "a.jsonl", "a.jsonl:2", "list"),
        ("a,b\n1\n", "a.csv", "a.csv:2", "1 fields"),
        ("a,a\n1,2\n", "a.csv", "a.csv:1", "once"),
        ('a,b\n"1,2\n', "a.csv", "a.csv:2", "table"),
        ("", "a.csv", "a.csv:1", "first line"),
        ("PAR1", "a.parquet", "a.parquet", "Parquet"),
    ],
)
def test_what_cannot_be_read_says_where(tmp_path: Path, text: str, name: str, where: str, what: str) -> None:
    with pytest.raises(IntegrityError) as error:
        read(tmp_path, text, name)
    assert where in error.value.problems[0].where
    assert what in str(error.value)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(IntegrityError, match="byte 8"):
        parse_rows(tmp_path / "a.json")


def test_parquet_with_other_values(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": [b"\0"]}), tmp_path / "a.parquet")
    with pytest.raises(IntegrityError, match="leave the column out"):
        parse_rows(tmp_path / "a.parquet")


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet"]))
def test_no_bytes_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(data)
    try:
        rows = parse_rows(path)
    except IntegrityError:
        return
    assert all(isinstance(row, dict) for row in rows)


@pytest.mark.parametrize(
    "value",
    [
        {"annotations": {"a": 1}, "images": [{"id": 1, "file_name": "a.jpg"}]},
        {"annotations": [{"image_id": 1, "caption": "a"}], "images": [{"id": [], "file_name": "a.jpg"}]},
    ],
)
def test_what_is_no_list_of_records_is_not_passed_over(tmp_path: Path, value: Any) -> None:
    with pytest.raises(IntegrityError):
        read(tmp_path, json.dumps(value))


def test_a_picture_whose_id_is_none_is_named(tmp_path: Path) -> None:
    value = {"annotations": [{"image_id": 1}], "images": [{"id": 1, "file_name": "a"}, {"id": [], "file_name": "b"}]}
    with pytest.raises(IntegrityError) as caught:
        read(tmp_path, json.dumps(value))
    assert caught.value.problems[0].where.endswith("a.json image 1")


def test_karpathys_records_are_a_row_a_sentence(tmp_path: Path) -> None:
    sentences = [{"raw": "A cat."}, {"tokens": ["a", "dog"]}]
    more = {"filepath": "val2014", "split": "test", "cocoid": 7}
    value = {"dataset": "coco", "images": [{"filename": "a.jpg", "sentences": sentences, **more}]}
    row = {"image": "val2014/a.jpg", "split": "test", "image_id": 7}
    assert read(tmp_path, json.dumps(value)) == [{**row, "caption": "A cat."}, {**row, "caption": "a dog"}]


def test_boxes_of_coco_are_gathered_by_picture(tmp_path: Path) -> None:
    boxes = [{"image_id": 1, "bbox": [0, n, 2, 3], "category_id": 5 + n} for n in range(2)]
    names = [{"id": 5, "name": "dog"}, {"id": 6, "name": "ball"}]
    value = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": boxes, "categories": names}
    [row] = read(tmp_path, json.dumps(value))
    assert (row["image"], row["labels"], row["objects"]) == ("a.jpg", ["dog", "ball"], "dog, ball")
    assert row["boxes"] == [[0.0, 0.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize(("more", "folder"), [({}, "dev"), ({"directory": 12}, "train/12")])
def test_nlvr2s_records_name_their_two_pictures(more: dict[str, int], folder: str, tmp_path: Path) -> None:
    name = f"{folder.partition('/')[0]}-850-0"
    value = [{"identifier": f"{name}-1", "sentence": "Both.", "label": "True", "left_url": "x", **more}]
    [row] = read(tmp_path, json.dumps(value))
    assert row["images"] == [f"{folder}/{name}-img0.png", f"{folder}/{name}-img1.png"] and row["label"] == "True"


def test_columns_of_two_lengths_are_no_table(tmp_path: Path) -> None:
    assert read(tmp_path, '{"image": ["a.jpg", "b.jpg"], "caption": ["one", "two"]}') == ROWS
    short = read(tmp_path, '{"left": ["a", "b"], "right": ["one"]}')
    assert short == [{"sample_id": "left", "data": ["a", "b"]}, {"sample_id": "right", "data": ["one"]}]
