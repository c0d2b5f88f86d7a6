"""Offset maps of Oscar's VQA tables: read through, written for the tables that want one, told where they are stale."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.features import export_store, import_features, open_store
from lavis_ext.features.imports import recognise
from lavis_ext.features.tools import index
from tests.support.features import make_image, make_images, oscar_tsv, same

NAME = "val_img_frcnn_feats"


def with_map(folder: Path, changed: dict[str, int] | None = None, left_out: int = 0) -> tuple[Path, Path]:
    """A table of non-ASCII and plain ids, and its map counted by the bytes of the rows."""
    images = [make_image("é", 2, 2054), *make_images(5, 2054)]
    table = oscar_tsv(folder / f"{NAME}.tsv", images)
    places, at = {}, 0
    for image, line in zip(images, table.read_bytes().splitlines(keepends=True), strict=True):
        places[image.image_id] = at
        at += len(line)
    kept = dict(list(places.items())[left_out:])
    path = folder / f"{NAME}_offset_map.json"
    path.write_text(json.dumps({**kept, **(changed or {})}))
    return table, path


def test_a_table_is_read_through_its_map(tmp_path: Path) -> None:
    _, path = with_map(tmp_path, left_out=2)
    assert recognise(path) == "oscar-offsets"
    done = import_features([path], tmp_path / "s")
    store = open_store(tmp_path / "s")
    images = make_images(5, 2054)[1:]
    assert done.faults == [] and list(store) == [image.image_id for image in images]
    assert all(same(store[image.image_id], image) or store[image.image_id].box_unit == "fraction" for image in images)
    assert import_features([path], tmp_path / "s").added == 0


@pytest.mark.fault("D10")
def test_a_place_that_is_another_images_is_named(tmp_path: Path) -> None:
    first, second = (image.image_id for image in make_images(2, 2054))
    _, path = with_map(tmp_path, {first: 3, "9": 0, second: 10**9})
    done = import_features([path], tmp_path / "s")
    assert {fault.image_id for fault in done.faults} == {first, "9", second}
    assert all("no row of this image begins at byte" in fault.what for fault in done.faults)
    assert done.added == 4


def test_a_place_inside_a_longer_id_is_no_row(tmp_path: Path) -> None:
    """`21` and `1`: the bytes at offset 1 are those of a row of `1`, but no row begins there."""
    table = oscar_tsv(tmp_path / f"{NAME}.tsv", [make_image("21", 2, 2054), make_image("5", 3, 2054)])
    second = len(table.read_bytes().splitlines(keepends=True)[0])
    path = tmp_path / f"{NAME}_offset_map.json"
    path.write_text(json.dumps({"21": 0, "1": 1, "5": second}))
    done = import_features([path], tmp_path / "s")
    assert [fault.image_id for fault in done.faults] == ["1"]
    assert list(open_store(tmp_path / "s")) == ["21", "5"]


@pytest.mark.fault("D10")
def test_a_stale_map_beside_a_table_is_told_and_not_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table, path = with_map(tmp_path, {"é": 1})
    with caplog.at_level(logging.WARNING):
        assert import_features([table], tmp_path / "s").added == 6
    assert f"{path.name} does not fit {table.name}: image é" in caplog.text
    caplog.clear()
    (tmp_path / "fits").mkdir()
    fitting, _ = with_map(tmp_path / "fits")
    import_features([fitting], tmp_path / "t")
    assert "does not fit" not in caplog.text


def test_maps_are_written_for_the_tables_that_want_one(tmp_path: Path) -> None:
    table, path = with_map(tmp_path)
    told = path.read_text()
    path.unlink()
    _, written = index(table)
    assert path in written and json.loads(path.read_text()) == json.loads(told)
    assert index(table)[1] == []
    import_features([table], tmp_path / "s")
    (tmp_path / "out").mkdir()
    for name in (f"{NAME}.tsv", "features.tsv"):
        export_store(open_store(tmp_path / "s"), tmp_path / "out" / name, "oscar-tsv")
    assert (tmp_path / "out" / f"{NAME}_offset_map.json").read_bytes() == path.read_bytes()
    assert not (tmp_path / "out" / "features_offset_map.json").exists()


def test_a_map_that_does_not_fit_is_left_as_it_is(tmp_path: Path) -> None:
    table, path = with_map(tmp_path, {"é": 1})
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match="does not fit"):
        index(table)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["[1, 2]", '{"1": -1}', '{"1": "0"}', '{"1": true}', "{"])
def test_what_is_no_map_is_told(tmp_path: Path, text: str) -> None:
    _, path = with_map(tmp_path)
    path.write_text(text)
    with pytest.raises(IntegrityError, match="no offset map"):
        import_features([path], tmp_path / "s")


def test_a_map_without_its_table_and_an_export_to_one(tmp_path: Path) -> None:
    table, path = with_map(tmp_path)
    import_features([path], tmp_path / "s")
    with pytest.raises(UsageError, match="read, not written"):
        export_store(open_store(tmp_path / "s"), tmp_path / "m.json", "oscar-offsets")
    table.unlink()
    with pytest.raises(UsageError, match=r"val_img_frcnn_feats\.tsv, which is not beside it"):
        import_features([path], tmp_path / "t")
