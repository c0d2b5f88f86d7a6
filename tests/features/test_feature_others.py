"""Bottom-up attention, LXMERT, volta, .pt, H5 and npy: arrays that went in are the arrays that come out."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import ConfigError, IntegrityError, UsageError
from lavis_ext.features import ReadOptions, create_store, export_store, import_features, open_store
from lavis_ext.features.formats.base import need
from lavis_ext.features.formats.lmdb import key_in_lmdb
from lavis_ext.features.imports import recognise
from tests.support.features import (
    BUTD,
    LXMERT,
    VOLTA,
    Image,
    csv_tsv,
    image_h5,
    make_image,
    make_images,
    oscar_tsv,
    same,
    volta_lmdb,
)

TSV = [("butd-tsv", BUTD), ("lxmert-tsv", LXMERT), ("volta-tsv", VOLTA)]
ALL = ReadOptions(keep_all=True)


def check(store: Any, images: list[Image], names: tuple[str, ...] = ()) -> None:
    """Every image is in the store with its numbers, and with the arrays of these names."""
    assert sorted(store) == sorted(image.image_id for image in images)
    for image in images:
        record = store[image.image_id]
        assert same(record, image)
        assert (record.height, record.width, record.box_unit) == (480, 640, "pixel")
        for name in names:
            assert np.array_equal(record.arrays[name].reshape(image.more[name].shape), image.more[name])


@pytest.mark.parametrize(("form", "columns"), TSV)
def test_csv_rows_round_trip_byte_equal(tmp_path: Path, form: str, columns: list[str]) -> None:
    images = make_images(7)
    source = csv_tsv(tmp_path / "f.tsv", images, columns)
    assert recognise(source) == form
    assert import_features([source], tmp_path / "s", options=ALL).faults == []
    check(open_store(tmp_path / "s"), images, tuple(set(columns) & set(images[0].more)))
    export_store(open_store(tmp_path / "s"), tmp_path / "g.tsv", form)
    assert (tmp_path / "g.tsv").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(("form", "columns"), TSV)
def test_literals_of_bytes_are_tolerated(tmp_path: Path, form: str, columns: list[str]) -> None:
    images = make_images(4)
    source = csv_tsv(tmp_path / "f.tsv", images, columns, literals=True)
    import_features([source], tmp_path / "s", options=ALL)
    check(open_store(tmp_path / "s"), images)
    export_store(open_store(tmp_path / "s"), tmp_path / "g.tsv", form)
    assert (tmp_path / "g.tsv").read_bytes() == csv_tsv(tmp_path / "h.tsv", images, columns).read_bytes()


def test_lines_that_end_in_a_line_feed_stay_so(tmp_path: Path) -> None:
    source = csv_tsv(tmp_path / "f.tsv", make_images(3), LXMERT)
    source.write_bytes(source.read_bytes().replace(b"\r\n", b"\n"))
    import_features([source], tmp_path / "s")
    export_store(open_store(tmp_path / "s"), tmp_path / "g.tsv", "lxmert-tsv")
    assert (tmp_path / "g.tsv").read_bytes() == source.read_bytes()


def test_width_comes_before_height_in_the_first_form(tmp_path: Path) -> None:
    image = make_image("1", 2)
    image.height, image.width = 100, 200
    source = csv_tsv(tmp_path / "f.tsv", [image], BUTD)
    assert source.read_text().split("\t")[1:3] == ["200", "100"]
    import_features([source], tmp_path / "s")
    assert (open_store(tmp_path / "s")["1"].height, open_store(tmp_path / "s")["1"].width) == (100, 200)


def test_class_probabilities_are_dropped_unless_asked_for(tmp_path: Path) -> None:
    source = csv_tsv(tmp_path / "f.tsv", make_images(2), VOLTA)
    import_features([source], tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert set(store[next(iter(store))].arrays) == {"objects_id", "objects_conf", "attrs_id", "attrs_conf"}
    with pytest.raises(UsageError, match="cls_prob, attrs, classes"):
        export_store(store, tmp_path / "g.tsv", "volta-tsv")


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("boxes", "AAAA", "boxes: 3 bytes cannot be"),
        ("objects_id", "AAAAAAAA", "objects_id: 6 bytes"),
        ("img_h", "tall", "img_h: expected a number"),
        ("features", "AA", "truncated"),
        ("num_boxes", "", "num_boxes: expected a number"),
    ],
)
def test_broken_columns_are_named(tmp_path: Path, column: str, value: str, what: str) -> None:
    source = csv_tsv(tmp_path / "f.tsv", make_images(3), LXMERT)
    lines = source.read_text().splitlines()
    cells = lines[1].split("\t")
    cells[LXMERT.index(column)] = value
    source.write_text("\n".join([lines[0], "\t".join(cells), lines[2], lines[2].rpartition("\t")[0]]) + "\n")
    faults = import_features([source], tmp_path / "s").faults
    assert [fault.line for fault in faults] == [2, 4]
    assert what in faults[0].what and "expected 10 columns, got 9" in faults[1].what


def test_quoted_ids(tmp_path: Path) -> None:
    images = [make_image('say "cheese"', 1), make_image("plain", 2)]
    source = csv_tsv(tmp_path / "f.tsv", images, BUTD)
    assert source.read_bytes().startswith(b'"say ""cheese"""\t')
    import_features([source], tmp_path / "s")
    check(open_store(tmp_path / "s"), images)
    export_store(open_store(tmp_path / "s"), tmp_path / "g.tsv", "butd-tsv")
    assert (tmp_path / "g.tsv").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("arrays", [False, True])
def test_volta_lmdb_there_and_back(tmp_path: Path, arrays: bool) -> None:
    images = make_images(7)
    source = volta_lmdb(tmp_path / "a.lmdb", images, arrays)
    for path in (source, source / "data.mdb"):
        assert recognise(path) == "volta-lmdb"
    assert import_features([source], tmp_path / "s", options=ALL).faults == []
    check(open_store(tmp_path / "s"), images, tuple(images[0].more))
    export_store(open_store(tmp_path / "s"), tmp_path / "b.lmdb", "volta-lmdb")
    if not arrays:
        assert entries(tmp_path / "b.lmdb") == entries(source)
    import_features([tmp_path / "b.lmdb"], tmp_path / "t", options=ALL)
    check(open_store(tmp_path / "t"), images, tuple(images[0].more))


def entries(path: Path) -> dict[bytes, Any]:
    """Keys and values as volta's own reader sees them."""
    import lmdb

    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as reading:
        found = {bytes(key): pickle.loads(value) for key, value in reading.cursor()}
    found[b"keys"] = sorted(found[b"keys"])
    for value in (v for v in found.values() if isinstance(v, dict)):
        for name in ("img_h", "img_w", "num_boxes"):
            value[name] = int(value[name])
    return found


def test_the_map_of_an_lmdb_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis_ext.features.formats import lmdb as module

    monkeypatch.setattr(module, "FIRST_MAP", 1 << 17)
    images = make_images(20)
    import_features([volta_lmdb(tmp_path / "a.lmdb", images)], tmp_path / "s")
    export_store(open_store(tmp_path / "s"), tmp_path / "b.lmdb", "volta-lmdb")
    assert len(entries(tmp_path / "b.lmdb")) == 21


def test_keys_of_an_lmdb() -> None:
    ids = ["COCO_val2014_000000000042", "0042", "flickr_7"]
    assert [key_in_lmdb(i) for i in ids] == [b"42", b"0042", b"flickr_7"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("ids", [int, str])
def test_pt_there_and_back(tmp_path: Path, legacy: bool, ids: type) -> None:
    images = [make_image(str(i), n, 2054) for i, n in ((9, 2), (4, 1), (7, 30))]
    content = {ids(image.image_id): torch.from_numpy(image.features) for image in images}
    torch.save(content, tmp_path / "f.pt", _use_new_zipfile_serialization=not legacy)
    assert import_features([tmp_path / "f.pt"], tmp_path / "s").faults == []
    store = open_store(tmp_path / "s")
    assert list(store) == ["9", "4", "7"]
    export_store(store, tmp_path / "g.pt", "oscar-pt")
    back = torch.load(tmp_path / "g.pt", weights_only=True)
    assert list(back) == list(content)
    assert all(torch.equal(back[key], value) for key, value in content.items())


@pytest.mark.parametrize(
    "value", ["text", torch.zeros(3), torch.zeros(2, 5), torch.zeros((2, 2054), dtype=torch.int32)]
)
def test_pt_values_that_are_no_features_are_named(tmp_path: Path, value: object) -> None:
    torch.save({1: torch.zeros(1, 2054), "odd": value}, tmp_path / "f.pt")
    done = import_features([tmp_path / "f.pt"], tmp_path / "s")
    assert (done.added, [(f.image_id, f.line) for f in done.faults]) == (1, [("odd", 2)])


def test_a_cut_pt_is_an_integrity_error(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(1, 2054)}, tmp_path / "f.pt")
    (tmp_path / "f.pt").write_bytes((tmp_path / "f.pt").read_bytes()[:-500])
    with pytest.raises(IntegrityError):
        import_features([tmp_path / "f.pt"], tmp_path / "s")


def test_h5_there_and_back(tmp_path: Path) -> None:
    images = make_images(6)
    source = image_h5(tmp_path / "f.h5", images)
    assert recognise(source) == "h5"
    import_features([source], tmp_path / "s")
    names = ("objects_id", "objects_conf", "attrs_id", "attrs_conf")
    check(open_store(tmp_path / "s"), images, names)
    export_store(open_store(tmp_path / "s"), tmp_path / "g.h5", "h5")
    import_features([tmp_path / "g.h5"], tmp_path / "t")
    check(open_store(tmp_path / "t"), images, names)


def test_npy_in_its_three_forms(tmp_path: Path) -> None:
    images = make_images(3)
    folder = tmp_path / "f"
    folder.mkdir()
    first, second, third = images
    np.save(folder / f"{first.image_id}.npy", first.features)
    np.save(folder / f"{first.image_id}_info.npy", {"bbox": first.boxes, "image_height": 1, "img_h": 480, "img_w": 640})
    np.save(folder / f"{second.image_id}.npy", {**second.fields(), "feature_path": "x"}, allow_pickle=True)
    np.savez(folder / f"{third.image_id}.npz", features=third.features, boxes=third.boxes, img_h=480, img_w=640)
    assert recognise(folder) == "npy"
    assert import_features([folder], tmp_path / "s").faults == []
    check(open_store(tmp_path / "s"), images)
    export_store(open_store(tmp_path / "s"), tmp_path / "g", "npy")
    import_features([tmp_path / "g"], tmp_path / "t")
    check(open_store(tmp_path / "t"), images)


@pytest.mark.parametrize("form", ["h5", "npy"])
def test_ids_that_look_like_paths_stay_inside(tmp_path: Path, form: str) -> None:
    images = [make_image(image_id, 1) for image_id in ("../up", "a/b", "100%25", "three four", "ä")]
    with create_store(tmp_path / "s") as writer:
        for image in images:
            writer.append(image.row())
    export_store(open_store(tmp_path / "s"), tmp_path / "out" / "f", form)
    assert not (tmp_path / "up").exists() and not (tmp_path / "out" / "up.npz").exists()
    import_features([tmp_path / "out" / "f"], tmp_path / "t")
    check(open_store(tmp_path / "t"), images)


def test_broken_npy_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    np.save(folder / "1.npy", make_image("1", 2).features)
    (folder / "2.npy").write_bytes((folder / "1.npy").read_bytes()[:-9])
    (folder / "3.npz").write_bytes(b"PK no zip")
    np.save(folder / "4.npy", np.arange(3))
    done = import_features([folder], tmp_path / "s")
    assert (done.added, [f.image_id for f in done.faults]) == (1, ["2", "3", "4"])


def test_what_cannot_be_recognised_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.tsv").write_text("1\tnot json\n")
    for name in ("a.txt", "empty", "labels.tsv"):
        with pytest.raises(UsageError, match="--from FORMAT"):
            recognise(tmp_path / name)
    with pytest.raises(UsageError, match="is not there"):
        recognise(tmp_path / "gone")
    assert recognise(oscar_tsv(tmp_path / "f.tsv", make_images(1, 2054))) == "oscar-tsv"


@pytest.mark.fault("P09")
def test_a_library_that_is_absent_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"lavis_ext\[features\]"):
        need("no_such_library_here", "h5")


IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\0"), min_size=1, max_size=10)
COUNTS = st.dictionaries(IDS, st.sampled_from([0, 1, 2, 100]), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None)
@given(
    COUNTS.filter(lambda counts: not set(counts) & {".", "..", "keys"}),
    st.sampled_from(["volta-lmdb", "h5", "npy", "oscar-pt", "volta-tsv"]),
)
def test_any_rows_survive_every_form(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int], form: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    images = [make_image(image_id, n, 12, seed=k) for k, (image_id, n) in enumerate(counts.items())]
    with create_store(folder / "s") as writer:
        for image in images:
            writer.append(image.row())
    export_store(open_store(folder / "s"), folder / "f", form)
    done = import_features([folder / "f"], folder / "t", form=form, options=ReadOptions(columns=12, keep_all=True))
    assert done.faults == []
    store = open_store(folder / "t")
    assert sorted(store) == sorted(counts)
    for image in images:
        assert np.array_equal(store[image.image_id].features.reshape(-1, 12), image.features)
