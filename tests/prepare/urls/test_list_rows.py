"""Rows out of annotation files of every kind: keys, places, captions, and what may not be asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lavis_ext.common.config.cards import ImageList
from lavis_ext.common.errors import ConfigError, IntegrityError, UnsafeError
from lavis_ext.prepare.urls.rows import clean_text, distinct_rows, place, plain_url, read_rows, refuse_row

FILES = ImageList(storage="x", path="{image.name}", id_key=["image"])
RECORD = {"image": "dir/a.jpg", "caption": "a cat", "url": "http://photos.example/1/a.jpg"}


def rows_of(path: Path, spec: ImageList = FILES, **more: Any) -> list[Any]:
    return list(read_rows([path], spec, **more))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lavis_list_of_records(tmp_path: Path) -> None:
    [row] = rows_of(write(tmp_path, "a.json", json.dumps([RECORD])))
    assert (row.id, row.url, row.path, row.caption, row.refusal) == ("dir/a.jpg", RECORD["url"], "a.jpg", "a cat", "")


def test_records_under_a_key(tmp_path: Path) -> None:
    value = {"images": [{"id": 7, "coco_url": "https://h.example/v/00.jpg"}], "annotations": [{"caption": "x"}]}
    spec = ImageList(storage="x", records="images", url_key=["coco_url"], path="val/{coco_url.name}", id_key=["id"])
    [row] = rows_of(write(tmp_path, "a.json", json.dumps(value)), spec)
    assert (row.id, row.path) == ("7", "val/00.jpg")
    with pytest.raises(IntegrityError, match="no list of records under 'images'"):
        rows_of(write(tmp_path, "b.json", "[]"), spec)


def test_table_without_a_header(tmp_path: Path) -> None:
    spec = ImageList(storage="x", columns=["caption", "url"], path="{url.name}")
    path = write(tmp_path, "cc3m.tsv", 'a "cat" on\thttp://h.example/1.jpg\nzwei\thttp://h.example/2.jpg?size=1\n')
    assert [(row.caption, row.path) for row in rows_of(path, spec)] == [('a "cat" on', "1.jpg"), ("zwei", "2.jpg")]


def test_table_with_a_header_and_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "url,caption\nhttp://h.example/1.jpg,one\nhttp://h.example/2.jpg,two\n")
    assert [row.caption for row in rows_of(path, ImageList(storage="x"), limit=1)] == ["one"]


def test_limit_runs_over_files(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"{n}.json", json.dumps([RECORD, RECORD])) for n in range(3)]
    assert [row.number for row in read_rows(paths, FILES, 3)] == [0, 1, 2]


@pytest.mark.parametrize("names", [("URL", "TEXT"), ("url", "caption"), ("Url", "top_caption")])
def test_parquet_columns_are_mapped_by_schema(names: tuple[str, str], tmp_path: Path) -> None:
    columns = {names[0]: ["http://h.example/1.jpg"], names[1]: ["one"], "all_captions": [["x", "y"]], "left": [1]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    spec = ImageList(storage="x", output="shards", keep=["all_captions"])
    [row] = rows_of(tmp_path / "a.parquet", spec)
    assert (row.url, row.caption, row.more, row.path) == (
        "http://h.example/1.jpg",
        "one",
        {"all_captions": ["x", "y"]},
        "",
    )


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"link": ["x"], "TEXT": ["y"]}, "url_key"),
        ({"URL": ["x"], "words": ["y"], "all_captions": [1]}, "caption_key"),
        ({"URL": ["x"], "TEXT": ["y"], "z": [1]}, "all_captions"),
    ],
)
def test_columns_that_cannot_be_mapped_are_named(columns: dict[str, list[Any]], reason: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=reason):
        rows_of(tmp_path / "a.parquet", ImageList(storage="x", output="shards", keep=["all_captions"]))


def test_cut_parquet_is_an_integrity_error(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"url": ["x"] * 1000}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(IntegrityError, match="Parquet"):
        rows_of(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "scheme 'file'"),
        ("ftp://h.example/a.jpg", "scheme 'ftp'"),
        ("data:image/png;base64,xx", "scheme 'data'"),
        ("http://127.0.0.1/a.jpg", "private address"),
        ("http://localhost:80/a.jpg", "private address"),
        ("http://169.254.169.254/latest", "private address"),
        ("http://[::1]/a.jpg", "private address"),
        ("http://10.1.2.3/a.jpg", "private address"),
        ("http://", "not a URL"),
        ("http://[bad/a.jpg", "not a URL"),
        ("", "no URL"),
        ("https://visualgenome.org/a.jpg", "deny-list"),
        ("https://h.example/a.jpg", ""),
    ],
)
def test_urls_that_may_not_be_asked(url: str, reason: str) -> None:
    assert reason in refuse_row(url, False) and bool(refuse_row(url, False)) == bool(reason)


def test_private_addresses_where_they_are_allowed() -> None:
    assert refuse_row("http://127.0.0.1/a.jpg", True) == ""
    assert refuse_row("file:///etc/passwd", True) != ""


@pytest.mark.parametrize("image", ["../a.jpg", "a/../../b.jpg", "%2e%2e/../c", ".lavis_ext/x", ""])
def test_names_that_leave_the_folder_are_refused(image: str, tmp_path: Path) -> None:
    spec = ImageList(storage="x", path="{image}")
    [row] = rows_of(write(tmp_path, "a.json", json.dumps([{**RECORD, "image": image}])), spec)
    assert row.refusal.startswith("refused: ")


def test_percent_signs_in_names_stay() -> None:
    assert place({"image": "a%20b.jpg"}, "http://h.example/x", "{image}") == "a%20b.jpg"


def test_pattern_with_a_key_that_lacks_tells_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'image'"):
        place({"image": "a.jpg", "\0url": "x"}, "http://h.example/x", "{file_name}")


def test_urls_are_made_sendable() -> None:
    assert plain_url(" http://h.example/bäume und/é.jpg ") == "http://h.example/b%C3%A4ume%20und/%C3%A9.jpg"
    assert plain_url(None) == "" and plain_url(7) == ""


@given(st.text() | st.none() | st.integers())
def test_captions_can_always_be_written(value: Any) -> None:
    text = clean_text(value)
    assert "\0" not in text and text.encode("utf-8").decode() == text


@given(st.text(max_size=40))
def test_places_never_leave_the_folder(image: str) -> None:
    try:
        path = place({"image": image}, "http://h.example/x", "{image}")
    except UnsafeError:
        return
    assert path and not path.startswith("/") and ".." not in path.split("/")


def test_columns_that_only_the_path_names_are_read_from_parquet(tmp_path: Path) -> None:
    columns = {"url": ["http://h.example/1"], "caption": ["one"], "image": ["x/a.jpg"], "other": [1]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    [row] = rows_of(tmp_path / "a.parquet", ImageList(storage="x", path="{image.name}"))
    assert (row.path, row.refusal) == ("a.jpg", "")


def test_a_name_that_two_urls_have_is_refused_where_no_folder_tells_them_apart(tmp_path: Path) -> None:
    """Neither has a place then, so that none is looked for, or counted, under the name of the other."""
    rows = [
        {"image": "a.jpg", "url": "http://one.example/a.jpg"},
        {"image": "a.jpg", "url": "http://two.example/a.jpg"},
    ]
    path = write(tmp_path, "rows.json", json.dumps([*rows, {"image": "b.jpg", "url": "http://one.example/b.jpg"}]))
    found = list(distinct_rows([path], FILES))
    assert [(bool(row.refusal), row.path) for row in found] == [(True, ""), (True, ""), (False, "b.jpg")]


def test_a_name_that_two_urls_have_goes_by_folders_at_any_depth(tmp_path: Path) -> None:
    """The folders are made, since readers look elsewhere for a name whose folder is not there."""
    rows = [{"image": f"a/b/{n}/a.jpg", "url": f"http://{n}.example/a.jpg"} for n in range(2)]
    path = write(tmp_path, "rows.json", json.dumps(rows))
    spec = replace(FILES, path="{image.name}")
    assert [row.path for row in distinct_rows([path], spec, target=tmp_path / "new")] == ["a/b/0/a.jpg", "a/b/1/a.jpg"]
    assert (tmp_path / "new/a/b/1").is_dir()
