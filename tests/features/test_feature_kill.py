"""SIGKILL in the middle of an import or an export: the same call again ends as if nothing had happened."""

from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import UsageError
from lavis_ext.features import export_store, import_features, open_store, tools
from lavis_ext.features.layout import INDEX, ROWS
from tests.support.features import VOLTA, Image, csv_tsv, make_image, oscar_tsv, same, volta_lmdb
from tests.support.killing import kill_when, size
from tests.support.slow_features import run_export, run_import

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images() -> list[Image]:
    return [make_image(f"COCO_val2014_{i:012d}", 36, 2048, seed=i) for i in range(1, 41)]


@pytest.mark.parametrize(
    "write",
    [
        lambda folder, images: oscar_tsv(folder / "f.tsv", images),
        lambda folder, images: csv_tsv(folder / "f.tsv", images, VOLTA),
        lambda folder, images: volta_lmdb(folder / "f.lmdb", images),
    ],
    ids=["oscar-tsv", "volta-tsv", "volta-lmdb"],
)
def test_a_killed_import_goes_on(tmp_path: Path, images: list[Image], write: Any) -> None:
    source, store = write(tmp_path, images), tmp_path / "s"
    kill_when(lambda: size(store / ROWS) > 2 << 20, run_import, str(source), str(store))
    assert not (store / INDEX).exists()
    there = size(store / ROWS)
    done = import_features([source], store)
    assert done.kept > 3 and done.kept + done.added == len(images) and done.faults == []
    opened = open_store(store)
    assert there < size(store / ROWS)
    assert tools.verify(opened) == []
    assert all(same(opened[image.image_id], image) for image in images)
    whole = tmp_path / "whole"
    import_features([source], whole)
    assert (store / ROWS).read_bytes() == (whole / ROWS).read_bytes()


@pytest.mark.parametrize(("form", "grown"), [("oscar-tsv", ".f.part"), ("volta-lmdb", ".f.part/data.mdb")])
def test_a_killed_export_goes_on(tmp_path: Path, images: list[Image], form: str, grown: str) -> None:
    source = csv_tsv(tmp_path / "source.tsv", images, VOLTA)
    import_features([source], tmp_path / "s")
    part = tmp_path / grown
    kill_when(lambda: size(part) > 2 << 20, run_export, str(tmp_path / "s"), str(tmp_path / "f"), form)
    assert not (tmp_path / "f").exists()
    began = part.stat().st_ino
    store = open_store(tmp_path / "s")
    export_store(store, tmp_path / "f", form)
    export_store(store, tmp_path / "whole" / "f", form)
    if form == "oscar-tsv":
        assert (tmp_path / "f").stat().st_ino == began
        assert (tmp_path / "f").read_bytes() == (tmp_path / "whole" / "f").read_bytes()
    import_features([tmp_path / "f"], tmp_path / "back", form=form)
    back = open_store(tmp_path / "back")
    assert sorted(image.features.sum() for image in images) == sorted(back.at(row).features.sum() for row in range(40))
    assert not part.exists() and not list(tmp_path.glob(".*.json"))


def test_an_export_of_another_store_does_not_use_the_part(tmp_path: Path, images: list[Image]) -> None:
    import_features([oscar_tsv(tmp_path / "a.tsv", images[:3])], tmp_path / "a")
    import_features([csv_tsv(tmp_path / "b.tsv", images[3:6], VOLTA)], tmp_path / "b")
    (tmp_path / ".out.part").write_bytes((tmp_path / "a.tsv").read_bytes()[:600_000])
    (tmp_path / ".out.part.json").write_text("{}")
    for form in ("oscar-tsv", "volta-lmdb", "npy"):
        with pytest.raises(UsageError, match="part of another export"):
            export_store(open_store(tmp_path / "b"), tmp_path / "out", form)
    assert (tmp_path / ".out.part").stat().st_size == 600_000 and not (tmp_path / "out").exists()
