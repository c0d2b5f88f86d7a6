"""`lavis-ext features`: each action from the command line, with its exit code and its objects."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.cli import main
from lavis_ext.cli.features import FORMATS
from lavis_ext.features import open_store
from lavis_ext.features.formats import FORMATS as REGISTERED
from lavis_ext.features.layout import ROWS
from tests.support.features import VOLTA, csv_tsv, make_image, make_images, oscar_tsv, volta_lmdb

Capture = pytest.CaptureFixture[str]


def run(*words: object, capsys: Capture) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, objects, and the text for a person."""
    code = main(["features", *map(str, words), "--json", "--quiet"])
    said = capsys.readouterr()
    return code, [json.loads(line) for line in said.out.splitlines()][:-1], said.err


def test_names_agree_with_what_there_is() -> None:
    assert set(FORMATS) == set(REGISTERED)


def test_the_whole_way(tmp_path: Path, capsys: Capture) -> None:
    source = oscar_tsv(tmp_path / "f.tsv", make_images(6, 2054))
    code, objects, _ = run("import", source, tmp_path / "s", "--dtype", "float32", capsys=capsys)
    assert code == 0
    assert (objects[0]["images"], objects[0]["columns"], objects[0]["added"]) == (6, 2054, 6)
    code, objects, text = run("info", tmp_path / "s", capsys=capsys)
    assert code == 0 and objects[0]["sources"][0]["format"] == "oscar-tsv" and "columns: 2054" in text
    code, objects, text = run("head", tmp_path / "s", "--rows", "2", capsys=capsys)
    assert code == 0 and [o["image_id"][-2:] for o in objects] == ["01", "08"] and "no labels" in text
    assert run("verify", tmp_path / "s", capsys=capsys)[0] == 0
    assert run("export", tmp_path / "s", tmp_path / "g.tsv", "--to", "oscar-tsv", capsys=capsys)[0] == 0
    assert (tmp_path / "g.tsv").read_bytes() == source.read_bytes()
    assert (tmp_path / "g.lineidx").is_file()
    assert run("index", source, capsys=capsys)[0] == 0
    assert (tmp_path / "f.lineidx").read_bytes() == (tmp_path / "g.lineidx").read_bytes()
    assert run("merge", tmp_path / "s", tmp_path / "t", capsys=capsys)[1][0]["images"] == 6
    assert run("index", tmp_path / "t", capsys=capsys)[1][0]["images"] == 6


def test_an_import_with_faults_ends_in_five_and_names_them(tmp_path: Path, capsys: Capture) -> None:
    source = oscar_tsv(tmp_path / "f.tsv", [make_image("a", 1, 2054), make_image("b", 2, 2054)])
    source.write_bytes(source.read_bytes()[:-50])
    code, _, text = run("import", source, tmp_path / "s", capsys=capsys)
    assert code == 5 and "line 2, image 'b'" in text
    assert list(open_store(tmp_path / "s")) == ["a"]


def test_damage_ends_in_five(tmp_path: Path, capsys: Capture) -> None:
    run("import", oscar_tsv(tmp_path / "f.tsv", make_images(3, 2054)), tmp_path / "s", capsys=capsys)
    data = bytearray((tmp_path / "s" / ROWS).read_bytes())
    data[200] ^= 255
    (tmp_path / "s" / ROWS).write_bytes(data)
    code, _, text = run("verify", tmp_path / "s", capsys=capsys)
    assert code == 5 and "COCO_val2014_000000000001" in text and "CRC" in text


def test_dropped_columns_are_told(tmp_path: Path, capsys: Capture) -> None:
    source = csv_tsv(tmp_path / "f.tsv", make_images(2), VOLTA)
    assert "--all-columns" in run("import", source, tmp_path / "s", capsys=capsys)[2]
    assert "--all-columns" not in run("import", source, tmp_path / "t", "--all-columns", capsys=capsys)[2]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["import", "only"], 2, "features import: got 1 path"),
        (["export", "a"], 2, "DST"),
        (["export", "a", "b", "c", "--to", "h5"], 2, "takes no 'c'"),
        (["export", "a", "b"], 2, "--to"),
        (["info", "a", "b"], 2, "takes no 'b'"),
        (["info", "gone"], 2, "not a feature store"),
        (["index", "gone"], 2, "neither a store nor a file"),
        (["import", "gone", "s"], 2, "is not there"),
        (["import", "gone", "s", "--from", "oscar"], 2, "oscar-tsv"),
        (["implode", "x"], 2, "import"),
        (["import", "x", "s", "--from", "h5", "--labels", "y"], 2, "takes no file of labels"),
        (["merge", "gone", "s"], 2, "not a feature store"),
        (["import", "x", "s", "--to", "h5"], 2, "it is for export"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, text = run(*words, capsys=capsys)
    assert (found, told in text) == (code, True), text
    assert list(tmp_path.iterdir()) == []


def test_an_lmdb_that_is_none(tmp_path: Path, capsys: Capture) -> None:
    source = volta_lmdb(tmp_path / "a.lmdb", make_images(2))
    (source / "data.mdb").write_bytes(b"not an LMDB at all" * 500)
    assert run("import", source, tmp_path / "s", capsys=capsys)[0] == 5


def test_help_does_not_import_numpy() -> None:
    code = "import sys; from lavis_ext.cli import main; main(['features', '--help']); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"
