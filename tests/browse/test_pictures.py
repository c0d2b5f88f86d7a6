"""Pictures that look the same are found, within and across splits; missing and damaged ones are counted once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_ext.browse.pictures import CORRUPT, MISSING, WHOLE, PictureScan, fingerprint, same_pictures
from lavis_ext.browse.views import Item, SampleText, View
from lavis_ext.datasets.readers.faults import SampleError
from tests.support.pictures import encoded, pixels


class Listed(View):
    """Samples with files of a folder, several pictures each."""

    def __init__(self, folder: Path, samples: Sequence[tuple[str, ...]]) -> None:
        self.folder, self.samples, self.total = folder, samples, len(samples)

    def at(self, index: int) -> Item:
        return Item(str(index), SampleText(), index, self.samples[index], index=index)

    def data(self, item: Item, number: int = 0) -> bytes:
        path = self.folder / item.files[number]
        if not path.is_file():
            raise SampleError(item.name, str(path), "image is missing")
        return path.read_bytes()

    def lost(self, item: Item, number: int = 0) -> str:
        return "" if (self.folder / item.files[number]).is_file() else "image is missing"


def photograph(seed: int) -> Any:
    return pixels(seed, 240, 320)


@pytest.mark.parametrize(("scale", "quality"), [(1.0, 60), (0.5, 75), (0.37, 90)])
def test_another_size_or_compression_is_the_same_picture(scale: float, quality: int, tmp_path: Path) -> None:
    found = []
    for seed in range(12):
        image = Image.fromarray(photograph(seed))
        smaller = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        (tmp_path / "x.jpg").write_bytes(encoded(np.asarray(smaller), quality=quality))
        found += [fingerprint(photograph(seed)), fingerprint(np.asarray(Image.open(tmp_path / "x.jpg")))]
    groups = same_pictures(np.array([mark for mark, _ in found], np.uint64), np.stack([mini for _, mini in found]))
    assert groups.tolist() == [number for number in range(12) for _ in range(2)]


def test_flat_pictures_of_other_colours_are_not_the_same() -> None:
    flat = [
        np.full((64, 64, 3), colour, np.uint8) for colour in ((0, 0, 0), (255, 255, 255), (200, 30, 30), (30, 30, 200))
    ]
    found = [fingerprint(one) for one in (*flat, flat[2])]
    groups = same_pictures(np.array([mark for mark, _ in found], np.uint64), np.stack([mini for _, mini in found]))
    assert groups[2] == groups[4] and len(set(groups.tolist())) == 4


@pytest.fixture
def views(tmp_path: Path) -> dict[str, View]:
    for seed in range(6):
        (tmp_path / f"{seed}.jpg").write_bytes(encoded(photograph(seed)))
    (tmp_path / "again.jpg").write_bytes(encoded(photograph(1), quality=70))
    (tmp_path / "leaked.jpg").write_bytes(encoded(photograph(2), quality=70))
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "3.jpg").read_bytes()[:400])
    train = [
        ("0.jpg",),
        ("1.jpg",),
        ("1.jpg",),
        ("again.jpg",),
        ("2.jpg", "3.jpg"),
        ("gone.jpg",),
        ("torn.jpg", "gone.jpg"),
    ]
    return {"train": Listed(tmp_path, train), "test": Listed(tmp_path, [("leaked.jpg",), ("4.jpg",), ("5.jpg",)])}


@pytest.mark.parametrize("bounded", [True, False])
def test_each_picture_is_looked_at_once(bounded: bool, views: dict[str, View]) -> None:
    scan = PictureScan(views)
    if bounded:
        scan.some(100)
    else:
        assert list(scan.go_on())
    train = scan.look("train")
    assert (scan.known, scan.total, len(train)) == (10, 10, 7)
    named = {train.name(number): int(state) for number, state in enumerate(train.state)}
    assert {named.pop("gone.jpg"), named.pop("torn.jpg")} == {MISSING, CORRUPT}
    assert set(named.values()) == {WHOLE}
    assert train.why == {"image is missing": 1, "image is damaged or cut off": 1}
    assert train.samples(train.state == MISSING).tolist() == [False] * 5 + [True, True]
    assert train.size[next(n for n in range(7) if train.name(n) == "0.jpg")].tolist() == [320, 240]


def test_twins_across_splits_come_first_and_mark_their_samples(views: dict[str, View]) -> None:
    scan = PictureScan(views)
    scan.some(100)
    found = [(group.leak, {scan.look(split).name(n) for split, n in group.members}) for group in scan.twins()]
    assert found == [(True, {"2.jpg", "leaked.jpg"}), (False, {"1.jpg", "again.jpg"})]
    train = scan.look("train")
    assert train.samples(scan.repeated("train", False)).nonzero()[0].tolist() == [1, 2, 3, 4]
    assert train.samples(scan.repeated("train", True)).nonzero()[0].tolist() == [4]
    assert scan.look("test").samples(scan.repeated("test", True)).nonzero()[0].tolist() == [0]


def test_a_part_is_told_from_the_whole(views: dict[str, View]) -> None:
    scan = PictureScan(views)
    scan.some(2)
    assert scan.known == 4 < scan.total
    assert PictureScan({"none": Listed(Path(), [])}).total == 0
    assert not PictureScan({"none": Listed(Path(), [])}).twins()
