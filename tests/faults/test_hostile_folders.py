"""Folders of people as they should not be: pipes, devices, links to nothing, names that end lines, places of others."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet as pq

from lavis_ext.cli import main
from lavis_ext.common.config.yamlio import read_yaml
from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import read_object
from lavis_ext.datasets.own import load_own
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.packed import packed_rows
from lavis_ext.fetch.cache import ObjectCache
from lavis_ext.fetch.objects import Pinned
from tests.faults.fuzz import alarm
from tests.support.fetching import FAST, World


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, "JPEG")
    return path


@pytest.mark.fault("H19")
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json", "a.txt", "a.json", "rows.csv", "b.jpg"])
@pytest.mark.parametrize("verb", ["browse", "new"])
def test_a_pipe_in_a_folder_of_pictures_does_not_hold_up(
    tmp_path: Path, name: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "data/a.jpg")
    os.mkfifo(tmp_path / "data" / name)
    words = {"browse": ["browse", str(tmp_path / "data"), "--out", str(tmp_path / "page.html")]}
    words["new"] = ["new", "mine", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    with alarm(30):
        code = main(words[verb])
    said = capsys.readouterr().err
    assert "internal error" not in said
    if name in ("a.txt", "a.json"):  # a text that cannot be read is told with its name
        assert code == 6 and name in said
    elif verb == "browse":
        assert code == 0


@pytest.mark.parametrize("verb", [["prepare", "coco", "--locked", "--offline"], ["checksum", "coco"]])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_lock_that_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("lavis-ext.lock") if kind == "pipe" else Path("lavis-ext.lock").symlink_to("/dev/zero")
    with alarm(30):
        assert main([*verb, "--options", f"env.cache_root={tmp_path}"]) == 6
    assert "lavis-ext.lock" in capsys.readouterr().err


def test_a_link_to_nothing_is_one_lost_picture(tmp_path: Path) -> None:
    """One such link, and nothing of the folder could be looked at."""
    picture(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("gone.jpg")
    (tmp_path / "c.jpg").symlink_to("c.jpg")
    (tmp_path / "up").symlink_to(".")
    dataset = load_own(tmp_path)["test"]
    assert [row["image"] for row in dataset.annotation] == ["a.jpg", "b.jpg", "c.jpg"]  # type: ignore[attr-defined]
    assert dataset[0]["image"].size == (8, 8)
    for lost in (1, 2):
        with pytest.raises(SampleError):
            dataset[lost]


@pytest.mark.parametrize("name", ["x\nrun: {}\n#", "x\u2028run: {}", "x\x85run: {}", "x\x1b[2J", "x\rrun: {}", "\xff"])
def test_a_name_that_ends_lines_is_written_as_it_is(tmp_path: Path, name: str) -> None:
    """It ended the comment that tells of it, and what followed was read as YAML."""
    folder = tmp_path / (os.fsdecode(b"\xff") if name == "\xff" else name)
    for number in range(4):
        picture(folder / f"{number}.jpg").with_suffix(".txt").write_text(f"text {number}")
    assert main(["browse", str(folder), "--out", str(tmp_path / "page.html")]) == (6 if name == "\xff" else 0)
    code = main(["new", "mine", str(folder), "--out", str(tmp_path / "out")])
    if name == "\xff":  # YAML is text: no name outside it can stand there
        assert code in (2, 6) and not (tmp_path / "out").exists()
        return
    assert code == 0
    tree, _ = read_yaml(tmp_path / "out/datasets/mine/defaults.yaml")
    assert list(tree) == ["datasets"]
    assert tree["datasets"]["mine"]["build_info"]["images"]["storage"] == str(folder)
    assert main(["check", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("said", [b'{"info":{"features":[]}}', b'{"info":[]}', b"[1]", b"\xff", b'{"a":' * 50_000])
def test_a_table_says_odd_things_of_its_columns(tmp_path: Path, said: bytes) -> None:
    table = pa.table({"image": ["a.jpg"], "label": [7]}).replace_schema_metadata({b"huggingface": said})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert packed_rows(tmp_path / "rows.parquet") == [{"image": "a.jpg", "label": 7}]


@pytest.mark.fault("H19")
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet", "rows.arrow"])
def test_a_pipe_that_a_yaml_names_as_rows(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / name)
    places = {"annotations": {"train": {"storage": str(tmp_path / name)}}, "images": {"storage": str(tmp_path)}}
    mine = {"builder": "image_caption", "build_info": places}
    (tmp_path / "x.yaml").write_text(json.dumps({"datasets": {"mine": mine}}))
    with alarm(30):
        assert main(["check", str(tmp_path / "x.yaml")]) in (3, 6)  # 6 where its first bytes say what it is
    said = capsys.readouterr()
    assert name in said.out + said.err and "internal error" not in said.err


@pytest.mark.fault("H16")
def test_a_table_that_claims_more_rows_than_its_bytes_can_hold(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": pa.nulls(20_000_000, pa.string())}), tmp_path / "rows.parquet")
    with alarm(20), pytest.raises(IntegrityError) as caught:
        packed_rows(tmp_path / "rows.parquet")
    assert "20,000,000 rows" in str(caught.value)


@pytest.mark.parametrize("sign", ["", "||", "\n", '"', "\0"])
def test_a_sign_that_splits_nothing(tmp_path: Path, sign: str) -> None:
    """Copies of a table are kept by its sign: `||` had left one for `|`, with other columns."""
    picture(tmp_path / "a.jpg")
    (tmp_path / "rows.csv").write_text("image||caption\na.jpg||x\n")
    places = {"annotations": {"train": {"storage": str(tmp_path / "rows.csv")}}, "images": {"storage": str(tmp_path)}}
    mine = {"builder": "image_caption", "build_info": places, "args": {"delimiter": sign}}
    (tmp_path / "x.yaml").write_text(json.dumps({"datasets": {"mine": mine}}))
    assert main(["check", str(tmp_path / "x.yaml")]) == 3


def test_a_cache_removes_nothing_of_others(world: World, tmp_path: Path) -> None:
    """`cache_dir` may be a folder with other things: a file `x.json` had the folder `x` removed to make room."""
    mine = picture(tmp_path / "cache/holiday/a.jpg")
    note = mine.parent.with_suffix(".json")
    note.write_text('{"size": 900000}')
    os.utime(note, (0, 0))
    cache = ObjectCache(tmp_path / "cache", 1_000_000, policy=replace(FAST, allow_private=True))
    fetched = cache.get(Pinned(world.first_url, len(world.data)))
    assert fetched.read_bytes() == world.data
    assert mine.exists() and note.exists()
    assert [entry.size for entry in cache.entries()] == [len(world.data)]


@pytest.mark.fault("H19")
def test_a_device_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    with alarm(10):
        assert read_object(tmp_path / "zero.json") == read_object(tmp_path / "pipe.json") == {}
