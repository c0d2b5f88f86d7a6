"""tensorpack's LMDB of Conceptual Captions: every length of row, numbers as text, arrays that hold pickles refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lmdb
import msgpack
import msgpack_numpy
import numpy as np
import pytest

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.features import ReadOptions, export_store, import_features, open_store
from lavis_ext.features.imports import recognise
from tests.support.features import Image, make_images, same, volta_lmdb

IMAGES = make_images(5, 2048, "{:09d}")


def row(image: Image, kind: str = "short", text: bool = False) -> list[Any]:
    """A row as `convert_cc_lmdb` of ViLBERT and volta, or a later one, yields it."""
    fields = image.fields()
    count, height, width = (fields[name] for name in ("num_boxes", "img_h", "img_w"))
    told = [str(value) if text else value for value in (count, height, width)]
    middle = {
        "none": [],
        "short": [fields["cls_prob"]],
        "long": [
            fields[name] for name in ("cls_prob", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "attrs")
        ],
    }[kind]
    return [fields["features"], *middle, fields["boxes"], *told, image.image_id, f"a caption of {image.image_id}"]


def write(path: Path, rows: list[Any], single: bool = False) -> Path:
    """What `LMDBSerializer.save` leaves: eight digits as keys, and the list of them."""
    if not single:
        path.mkdir()
    keys = [f"{number:08}".encode() for number in range(len(rows))]
    with lmdb.open(str(path), subdir=not single, map_size=1 << 28) as environment, environment.begin(write=True) as put:
        for key, value in zip(keys, rows, strict=True):
            data = (
                value
                if isinstance(value, bytes)
                else msgpack.dumps(value, use_bin_type=True, default=msgpack_numpy.encode)
            )
            put.put(key, data)
        put.put(b"__keys__", msgpack.dumps(keys, use_bin_type=True))
    return path


@pytest.mark.parametrize("kind", ["none", "short", "long"])
@pytest.mark.parametrize("single", [False, True])
def test_every_length_of_row(tmp_path: Path, kind: str, single: bool) -> None:
    source = write(tmp_path / "cc.lmdb", [row(image, kind, text=single) for image in IMAGES], single)
    assert recognise(source) == "tensorpack-lmdb"
    done = import_features([source], tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert (done.added, done.faults) == (5, []) and all(same(store[image.image_id], image) for image in IMAGES)
    record = store[IMAGES[1].image_id]
    assert record.box_unit == "pixel" and (record.height, record.width) == (
        IMAGES[1].fields()["img_h"],
        IMAGES[1].fields()["img_w"],
    )
    assert record.arrays["caption"].tobytes().decode() == f"a caption of {IMAGES[1].image_id}"
    assert ("objects_id" in record.arrays) == (kind == "long") and "cls_prob" not in record.arrays
    assert import_features([source], tmp_path / "s").added == 0


def test_class_probabilities_on_request(tmp_path: Path) -> None:
    source = write(tmp_path / "cc", [row(image) for image in IMAGES[:2]])
    import_features([source], tmp_path / "s", options=ReadOptions(keep_all=True))
    found = open_store(tmp_path / "s")[IMAGES[0].image_id].arrays["cls_prob"]
    assert np.array_equal(found, IMAGES[0].fields()["cls_prob"])


def test_padding_is_cut_to_the_boxes(tmp_path: Path) -> None:
    image = IMAGES[3]
    cells = row(image)
    cells[0] = np.concatenate([cells[0], np.zeros((3, 2048), np.float32)])
    import_features([write(tmp_path / "cc", [cells])], tmp_path / "s")
    assert same(open_store(tmp_path / "s")[image.image_id], image)


class Canary:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.fault("D09")
def test_a_pickle_in_an_array_is_named_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    cells = row(IMAGES[0])
    cells[1] = np.array([Canary(trace)], dtype=object)
    source = write(tmp_path / "cc", [cells, row(IMAGES[1])])
    done = import_features([source], tmp_path / "s")
    assert not trace.exists() and done.added == 1
    assert [fault.image_id for fault in done.faults] == ["00000000"] and "nothing of it was executed" in done.faults[
        0
    ].what


def spoiled(**changes: Any) -> list[Any]:
    """A short row with some cells replaced."""
    names = ("features", "cls_prob", "boxes", "num_boxes", "img_h", "img_w", "img_id", "caption")
    return [changes.get(name, cell) for name, cell in zip(names, row(IMAGES[0]), strict=True)]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"\xc1", "no msgpack"),
        (b"\x93\x01", "no msgpack"),
        ([1, 2], "expected a list of"),
        ({"a": 1}, "expected a list of"),
        (spoiled(features="text"), "features: expected an array"),
        (spoiled(num_boxes="many"), "num_boxes: expected a number"),
        (spoiled(num_boxes=99), "rows for 99 boxes"),
        (spoiled(img_id=[1]), "img_id: expected text"),
        (spoiled(boxes=np.zeros((1, 5), np.float32)), "boxes"),
        (spoiled(features={"nd": True, "type": "<f4", "kind": "", "shape": [1, 2048], "data": 7}), "without data"),
        (
            spoiled(features={"nd": True, "type": "<f4", "kind": "", "shape": [3, 2048], "data": b"\0" * 8}),
            "no msgpack",
        ),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, value: Any, told: str) -> None:
    done = import_features([write(tmp_path / "cc", [value, row(IMAGES[1])])], tmp_path / "s")
    assert done.added == 1 and [fault.line for fault in done.faults] == [1]
    assert told in done.faults[0].what and done.faults[0].image_id in ("00000000", IMAGES[0].image_id)


def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    source = write(tmp_path / "cc", [row(image) for image in IMAGES])
    import_features([source], tmp_path / "s")
    assert import_features([source], tmp_path / "s").kept == 5


def test_voltas_own_lmdb_is_told_apart(tmp_path: Path) -> None:
    assert recognise(volta_lmdb(tmp_path / "v", make_images(2, 2048))) == "volta-lmdb"
    (tmp_path / "broken.lmdb").write_bytes(b"\0" * 16 + bytes.fromhex("dec0efbe") + b"\0" * 100)
    assert recognise(tmp_path / "broken.lmdb") == "volta-lmdb"
    with pytest.raises(IntegrityError):
        import_features([tmp_path / "broken.lmdb"], tmp_path / "s")


def test_it_is_not_written(tmp_path: Path) -> None:
    import_features([write(tmp_path / "cc", [row(IMAGES[0])])], tmp_path / "s")
    with pytest.raises(UsageError, match="read, not written"):
        export_store(open_store(tmp_path / "s"), tmp_path / "out", "tensorpack-lmdb")
