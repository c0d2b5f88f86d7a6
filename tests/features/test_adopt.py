"""A published file becomes a store once: where it lies, when it is made again, who makes it."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_ext.common.errors import DiskError, IntegrityError, OwnedError
from lavis_ext.features import imports as adopt
from lavis_ext.features import open_store
from lavis_ext.features.imports import place_of, store_of
from lavis_ext.features.store import ReadOptions
from tests.support.features import make_images, oscar_tsv


def test_where_stores_lie(tmp_path: Path) -> None:
    inside = place_of(tmp_path / "oscar/datasets/vqa/2k/train.pt", tmp_path, "other")
    assert inside == tmp_path / "oscar/.lavis_ext/stores/datasets-vqa-2k-train"
    dotted = place_of(tmp_path / "vinvl/x.thresh_0.2/features.tsv", tmp_path, "other")
    assert dotted.name == "x.thresh_0.2-features"
    first, second = (place_of(Path(f"/elsewhere/{name}/features.tsv"), tmp_path, "vinvl") for name in "ab")
    assert first.parent == second.parent == tmp_path / "vinvl/.lavis_ext/stores"
    assert first.name.startswith("features-")
    assert first != second


def test_imported_once_and_opened_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = make_images(4, 2054)
    (tmp_path / "f").mkdir()
    path = oscar_tsv(tmp_path / "f/features.tsv", images)
    with caplog.at_level(logging.INFO):
        store = store_of(path, tmp_path, "f")
    assert caplog.text.count("importing") == 1
    assert all(np.array_equal(store[image.image_id].features, image.features) for image in images)
    again = store_of(path, tmp_path, "f")
    assert caplog.text.count("importing") == 1
    assert again.path == store.path
    assert store_of(store.path, tmp_path, "f").path == store.path  # a store is itself


def test_a_moved_root_is_no_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "one/f").mkdir(parents=True)
    path = oscar_tsv(tmp_path / "one/f/features.tsv", make_images(2, 2054))
    store_of(path, tmp_path / "one", "f")
    (tmp_path / "one").rename(tmp_path / "two")
    with caplog.at_level(logging.INFO):
        store_of(tmp_path / "two/f/features.tsv", tmp_path / "two", "f")
    assert "importing" not in caplog.text


def test_an_import_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    images = make_images(6, 2054)
    path = oscar_tsv(tmp_path / "f/features.tsv", images)
    from lavis_ext.features.writer import StoreWriter

    append, count = StoreWriter.append, 0

    def fails(self: StoreWriter, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        append(self, *args)

    monkeypatch.setattr(StoreWriter, "append", fails)
    with pytest.raises(KeyboardInterrupt):
        store_of(path, tmp_path, "f")
    monkeypatch.setattr(StoreWriter, "append", append)
    assert len(store_of(path, tmp_path, "f")) == 6


def test_a_source_that_has_changed(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    path = oscar_tsv(tmp_path / "f/features.tsv", make_images(2, 2054))
    store = store_of(path, tmp_path, "f")
    oscar_tsv(path, make_images(3, 2054))
    with pytest.raises(IntegrityError, match="has changed since it was imported") as caught:
        store_of(path, tmp_path, "f")
    assert f"remove {store.path}" in str(caught.value)
    shutil.rmtree(store.path)
    assert len(store_of(path, tmp_path, "f")) == 3


def test_rows_that_cannot_be_taken_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "f").mkdir()
    path = oscar_tsv(tmp_path / "f/features.tsv", make_images(3, 2054))
    path.write_bytes(path.read_bytes() + b"broken\t2\tAAAA\n")
    store = store_of(path, tmp_path, "f")
    assert len(store) == 3
    assert "line 4, image 'broken'" in caplog.text
    assert "1 rows could not be imported" in caplog.text


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    path = oscar_tsv(tmp_path / "f/features.tsv", make_images(3, 2054))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskError, match="are free"):
        store_of(path, tmp_path, "f")
    assert not (place_of(path, tmp_path, "f") / "rows.bin").exists()


def test_another_process_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "f").mkdir()
    path = oscar_tsv(tmp_path / "f/features.tsv", make_images(3, 2054))
    pauses: list[float] = []
    do = adopt.import_features

    def owned(*args: Any, **more: Any) -> Any:
        raise OwnedError("store", "is written by another process", "")

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            do([path], place_of(path, tmp_path, "f"), options=ReadOptions())

    monkeypatch.setattr(adopt, "import_features", owned)
    monkeypatch.setattr("time.sleep", sleep)
    with caplog.at_level(logging.INFO):
        assert len(store_of(path, tmp_path, "f")) == 3
    assert pauses == [adopt.PAUSE] * 3
    assert caplog.text.count("another process imports it; waiting") == 1
    assert caplog.text.count("importing") == 1


def test_a_hint_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    images = make_images(5, 2054)
    store = open_store(store_of(oscar_tsv(tmp_path / "f/features.tsv", images), tmp_path, "f").path)
    for row in range(len(store)):
        store.will_need(row)
        assert np.array_equal(store.at(row).features, images[row].features)
