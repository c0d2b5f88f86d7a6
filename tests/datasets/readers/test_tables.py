"""Tables and lists of records as people have them: rows are never swallowed, and texts stay as they were written."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import IntegrityError
from lavis_ext.datasets.readers import tables
from lavis_ext.datasets.readers.parse import parse_rows
from lavis_ext.datasets.readers.tables import table_rows

ROWS = [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "caption": "two"}]


def read(tmp_path: Path, name: str, text: str | bytes) -> list[dict[str, Any]]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse_rows(path)


def captions(tmp_path: Path, name: str, text: str) -> list[Any]:
    return [row["caption"] for row in read(tmp_path, name, text)]


@pytest.mark.parametrize(
    "said",
    [
        ['"the best day ever', "second", "the third one", 'fourth "'],
        ['"', "a", 'b"', '"c"'],
        ['5" long', "x", "y", '"quoted" and more'],
        ['"whole"', "b", "c", "d"],
    ],
)
def test_a_tsv_is_taken_as_it_stands(tmp_path: Path, said: list[str]) -> None:
    lines = [f"{n}.jpg\t{text}" for n, text in enumerate(said)]
    assert captions(tmp_path, "a.tsv", "\n".join(["image\tcaption", *lines, ""])) == said


@pytest.mark.parametrize("field", ['"he said ""hi"""', '"a\ttab"', '"two\nlines"'])
def test_a_tsv_that_a_program_quoted(tmp_path: Path, field: str) -> None:
    found = captions(tmp_path, "a.tsv", f"image\tcaption\na.jpg\t{field}\nb.jpg\tplain\n")
    assert found == [field[1:-1].replace('""', '"'), "plain"]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_only_cr_and_lf_end_a_line(tmp_path: Path, sign: str, name: str) -> None:
    text = f"before{sign}after"
    if name == "a.jsonl":
        body = json.dumps({"image": "a.jpg", "caption": text}, ensure_ascii=False)
    else:
        mark = "," if name == "a.csv" else "\t"
        body = f"image{mark}caption\r\na.jpg{mark}{text}\r\nb.jpg{mark}plain\r\n"
    assert captions(tmp_path, name, body)[0] == text


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv"])
def test_packed_texts(tmp_path: Path, pack: Callable[[bytes], bytes], name: str) -> None:
    lines = {"a.json": json.dumps(ROWS), "a.jsonl": "\n".join(map(json.dumps, ROWS))}
    mark = "," if name == "a.csv" else "\t"
    text = lines.get(name, "\n".join(mark.join(row) for row in (ROWS[0], *(one.values() for one in ROWS))))
    packed = pack(text.encode())
    assert read(tmp_path, f"{name}.gz", packed) == ROWS
    with pytest.raises(IntegrityError, match="cannot be unpacked"):
        read(tmp_path, f"{name}.gz", packed[: len(packed) // 2])


def test_a_packed_text_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "UNPACKED", 1000)
    with pytest.raises(IntegrityError, match="unpacks to more"):
        read(tmp_path, "a.json.gz", gzip.compress(b"[" + b" " * (1 << 20)))


@pytest.mark.parametrize(
    ("column", "kept"),
    [
        (["007", "12"], ["007", "12"]),
        (["1.50", "2"], ["1.50", "2"]),
        (["2", "2.5"], [2, 2.5]),
        (["123456789012345678901234567890", "1"], ["123456789012345678901234567890", "1"]),
        (["0.12345678901234567890", "1"], ["0.12345678901234567890", "1"]),
        (["-3", "4"], [-3, 4]),
        (["1e5", "2"], ["1e5", "2"]),
    ],
)
def test_a_number_is_one_where_it_would_be_written_so_again(tmp_path: Path, column: list[str], kept: list[Any]) -> None:
    found = [row["x"] for row in read(tmp_path, "a.csv", "\n".join(["x,y", *(f"{one},z" for one in column)]))]
    assert found == kept and [str(one) for one in found] == column


@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_marks_of_encodings(tmp_path: Path, mark: str, encoding: str) -> None:
    text = (mark if encoding == "utf-8" else "") + "image\tcaption\r\na.jpg\tone\r\nb.jpg\ttwo\r\n"
    assert read(tmp_path, "a.tsv", text.encode(encoding)) == ROWS


@pytest.mark.parametrize(
    "value",
    [
        {"image": {"0": "a.jpg", "1": "b.jpg"}, "caption": {"0": "one", "1": "two"}},
        {"image": ["a.jpg", "b.jpg"], "caption": ["one", "two"]},
        {"columns": ["image", "caption"], "index": [0, 1], "data": [["a.jpg", "one"], ["b.jpg", "two"]]},
        {"a.jpg": "one", "b.jpg": "two"},
    ],
)
def test_a_json_by_columns(tmp_path: Path, value: Any) -> None:
    assert read(tmp_path, "a.json", json.dumps(value)) == ROWS


def test_captions_by_the_name_of_the_picture(tmp_path: Path) -> None:
    assert read(tmp_path, "a.json", '{"a.jpg": ["x", "y"]}') == [{"image": "a.jpg", "caption": ["x", "y"]}]


def test_records_by_id_are_no_columns(tmp_path: Path) -> None:
    assert read(tmp_path, "a.json", '{"7": {"q": 1}, "8": {"q": 2}}') == [
        {"sample_id": "7", "q": 1},
        {"sample_id": "8", "q": 2},
    ]


@pytest.mark.parametrize("text", ["a.jpg\tone\nb.jpg\ttwo\n", "one\ta.jpg\ntwo\tb.jpg\n"])
def test_a_table_without_a_header(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "a.tsv", text) == [{**row} for row in ROWS] or read(tmp_path, "a.tsv", text) == [
        {"caption": row["caption"], "image": row["image"]} for row in ROWS
    ]


@pytest.mark.parametrize(
    "text",
    [
        "image,caption\na.jpg,one\nb.jpg,two\n",
        "a.jpg\tone\nb.jpg\ttwo\n",
        "a.jpg,one\nb.jpg,two\n",
        "a.jpg#0\tone\nb.jpg#3\ttwo\n",
        "a.jpg: one\n\nb.jpg: two",
        "a.jpg|one\nb.jpg|two\n",
    ],
)
def test_lists_of_captions(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "captions.txt", text) == ROWS


def test_a_line_of_a_list_that_names_no_picture(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"captions.txt:2"):
        read(tmp_path, "captions.txt", "a.jpg, one\nand more of it\n")


def test_another_sign_than_the_comma(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('sep=;\nimage;caption\na.jpg;"one"\nb.jpg;two\n')
    assert table_rows(path) == [{"image": "a.jpg", "caption": '"one"'}, ROWS[1]]
    assert table_rows(path, ";")[1] == ROWS[1]


@pytest.mark.parametrize("records", [[{"path": "a.jpg"}], [1]])
def test_images_of_no_known_form_are_an_error(tmp_path: Path, records: list[Any]) -> None:
    with pytest.raises(IntegrityError, match="file_name"):
        read(tmp_path, "a.json", json.dumps({"images": records}))


def test_karpathys_splits(tmp_path: Path) -> None:
    sentences = [{"raw": "one", "tokens": ["one"]}, {"tokens": ["two", "dogs"]}]
    image = {"filename": "a.jpg", "filepath": "val2014", "cocoid": 7, "split": "val", "sentences": sentences}
    rows = read(tmp_path, "a.json", json.dumps({"dataset": "x", "images": [image]}))
    assert [row["caption"] for row in rows] == ["one", "two dogs"]
    assert {(row["image"], row["image_id"], row["split"]) for row in rows} == {("val2014/a.jpg", 7, "val")}


def test_boxes_are_gathered_by_picture(tmp_path: Path) -> None:
    value = {
        "images": [{"id": 4, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 4, "category_id": 1, "bbox": [0, 1, 2, 3]}] * 2,
    }
    assert read(tmp_path, "a.json", json.dumps(value)) == [
        {"image": "a.jpg", "image_id": 4, "boxes": [[0, 1, 2, 3]] * 2, "labels": ["dog", "dog"], "objects": "dog"}
    ]
