"""Rows into volta's LMDB: what its own reader finds there, what is left out, and the same bytes after a kill."""

import base64
import pickle
import resource
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from lavis_ext.common.errors import DiskError, OwnedError, UsageError
from lavis_ext.features import import_features, open_store
from lavis_ext.features.extraction.rows import ExtractionLog, owned
from lavis_ext.features.files import part_of
from lavis_ext.oscar.volta import serialise as module
from lavis_ext.oscar.volta.serialise import key_of_row, serialise
from tests.support.features import BUTD, VOLTA, Image, csv_tsv, make_image
from tests.support.killing import kill_when, size
from tests.support.processes import exit_code
from tests.support.regions import coco_names, draw
from tests.support.slow_extraction import run_extract, run_serialise, within


def images(count: int, split: str = "val2014") -> list[Image]:
    return [make_image(name, 3, seed=i) for i, name in enumerate(coco_names(split, count))]


class UpstreamReader:
    """How volta's reader opens the folder and finds an image (volta/datasets/_image_features_reader.py)."""

    def __init__(self, path: Path) -> None:
        self.env = lmdb.open(str(path), max_readers=1, readonly=True, lock=False, readahead=False, meminit=False)
        with self.env.begin(write=False) as txn:
            self.ids = pickle.loads(txn.get(b"keys"))

    def __getitem__(self, image_id: int) -> dict[str, Any]:
        key = str(image_id).encode()
        assert self.ids.index(key) >= 0
        with self.env.begin(write=False) as txn:
            item: dict[str, Any] = pickle.loads(txn.get(key))
        return item


def test_volta_reads_it(tmp_path: Path) -> None:
    train, val = images(3, "train2014"), images(2)
    val[0].image_id, val[1].image_id = "COCO_val2014_000000000500", "COCO_val2014_000000000400"
    sources = [csv_tsv(tmp_path / "a.tsv", train, VOLTA), csv_tsv(tmp_path / "b.tsv", val, VOLTA)]
    done = serialise(sources, tmp_path / "trainval_feat.lmdb")
    assert (done.rows, done.added, done.faults) == (5, 5, [])
    assert sorted(p.name for p in (tmp_path / "trainval_feat.lmdb").iterdir()) == ["data.mdb", "lock.mdb"]
    reader = UpstreamReader(tmp_path / "trainval_feat.lmdb")
    assert reader.ids == [b"1", b"8", b"15", b"500", b"400"]
    for number, image in zip((1, 8, 15, 500, 400), [*train, *val], strict=True):
        item = reader[number]
        assert list(item) == VOLTA and {type(value) for value in item.values()} == {str}
        assert (int(item["img_h"]), int(item["img_w"]), item["img_id"]) == (480, 640, image.image_id)
        for name, columns in (("features", 2048), ("boxes", 4)):
            found = np.frombuffer(base64.b64decode(item[name]), np.float32).reshape(-1, columns)
            assert np.array_equal(found, getattr(image, name))
    assert (tmp_path / "trainval_feat.lmdb" / "data.mdb").stat().st_size < 1 << 20


def test_what_volta_never_reads_can_be_left_out(tmp_path: Path) -> None:
    source = csv_tsv(tmp_path / "a.tsv", images(2), VOLTA)
    serialise([source], tmp_path / "x.lmdb", needed_only=True)
    item = UpstreamReader(tmp_path / "x.lmdb")[8]
    assert list(item) == ["img_id", "img_h", "img_w", "num_boxes", "boxes", "features"]
    import_features([tmp_path / "x.lmdb"], tmp_path / "s")
    assert len(open_store(tmp_path / "s")) == 2


@pytest.mark.parametrize(
    ("image_id", "key"),
    [("COCO_test2015_000000000016", b"16"), ("000000000790", b"790"), ("n_0", b"0"), ("dog", b"dog"), ("a_b", b"a_b")],
)
def test_keys(image_id: str, key: bytes) -> None:
    assert key_of_row(image_id) == key


def test_rows_that_are_none_and_images_that_repeat_are_named(tmp_path: Path) -> None:
    some = images(3)
    some[2].image_id = "COCO_train2014_000000000001"
    source = csv_tsv(tmp_path / "a.tsv", some, VOLTA)
    source.write_bytes(source.read_bytes() + b"COCO_val2014_000000000099\t1\t2\r\n")
    done = serialise([source], tmp_path / "x.lmdb")
    assert [(fault.line, fault.what) for _, fault in done.faults] == [
        (3, "repeats image 'COCO_val2014_000000000001'"),
        (4, "expected 13 columns, got 3; truncated?"),
    ]
    assert UpstreamReader(tmp_path / "x.lmdb").ids == [b"1", b"8"]


def test_what_the_account_knows_to_be_missing_is_told(tmp_path: Path) -> None:
    source = csv_tsv(tmp_path / "a.tsv", images(1), VOLTA)
    ExtractionLog({"x": 1}, ["gone"], {"gone": "image is damaged"}).write(source)
    assert serialise([source], tmp_path / "x.lmdb").missing == {"gone": "image is damaged"}


def test_nothing_is_written_over_and_one_process_writes(tmp_path: Path) -> None:
    source = csv_tsv(tmp_path / "a.tsv", images(1), VOLTA)
    with owned(tmp_path / "x.lmdb"), pytest.raises(OwnedError):
        serialise([source], tmp_path / "x.lmdb")
    serialise([source], tmp_path / "x.lmdb")
    with pytest.raises(UsageError, match="not overwritten"):
        serialise([source], tmp_path / "x.lmdb")
    assert serialise([csv_tsv(tmp_path / "b.tsv", images(1), BUTD)], tmp_path / "y.lmdb").rows == 0


def test_a_part_of_other_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = csv_tsv(tmp_path / "a.tsv", images(4), VOLTA)
    monkeypatch.setattr(module, "KEYS", b"x" * 600)  # a key that LMDB refuses: the run ends before the last commit
    with pytest.raises(DiskError):
        serialise([source], tmp_path / "x.lmdb")
    monkeypatch.undo()
    csv_tsv(source, images(5), VOLTA)
    with pytest.raises(UsageError, match="part of another export"):
        serialise([source], tmp_path / "x.lmdb")


def test_a_killed_conversion_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [make_image(name, 36, seed=i) for i, name in enumerate(coco_names("val2014", 40))]
    source = csv_tsv(tmp_path / "a.tsv", some, VOLTA)
    out, data = tmp_path / "x.lmdb", part_of(tmp_path / "x.lmdb") / "data.mdb"
    for least in (1 << 20, 6 << 20):
        kill_when(lambda: size(data) > least, run_serialise, str(source), str(out))  # noqa: B023
    assert not out.exists()
    monkeypatch.setattr(module, "COMMIT_ROWS", 3)
    done = serialise([source], out)
    assert 0 < done.added < done.rows == 40
    serialise([source], tmp_path / "whole.lmdb")
    assert (out / "data.mdb").read_bytes() == (tmp_path / "whole.lmdb" / "data.mdb").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tsv", "whole.lmdb", "x.lmdb"]


@pytest.mark.parametrize("form", ["volta-tsv", "store"])
def test_a_killed_extraction_ends_in_the_same_bytes(tmp_path: Path, form: str) -> None:
    pictures = draw(tmp_path / "in", coco_names("val2014", 40))
    out = tmp_path / ("out.tsv" if form == "volta-tsv" else "s")
    rows = out if form == "volta-tsv" else out / "rows.bin"
    kill_when(lambda: size(rows) > 3 << 20, run_extract, str(pictures), str(out), form)
    left = size(rows)
    run_extract(str(pictures), str(out), form)
    whole = tmp_path / "whole" / out.name
    run_extract(str(pictures), str(whole), form)
    names = [Path()] if form == "volta-tsv" else [Path("rows.bin"), Path("index.arrow")]
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in names)
    assert left < size(rows)


@pytest.mark.parametrize("step", ["extract", "serialise"])
def test_a_full_disk_is_told_and_gone_on_from(tmp_path: Path, step: str) -> None:
    source, out = draw(tmp_path / "in", coco_names("val2014", 12)), tmp_path / "out"
    work, words = run_extract, (str(source), str(out), "volta-tsv")
    if step == "serialise":
        run_extract(str(source), str(tmp_path / "rows.tsv"), "volta-tsv")
        work, words = run_serialise, (str(tmp_path / "rows.tsv"), str(out))
    for limit, code in ((2 << 20, DiskError.exit_code), (resource.RLIM_INFINITY, 0)):
        assert exit_code(within, limit, work, *words) == code
    if step == "extract":
        run_extract(str(source), str(tmp_path / "whole"), "volta-tsv")
        assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    else:
        assert len(UpstreamReader(out).ids) == 12
