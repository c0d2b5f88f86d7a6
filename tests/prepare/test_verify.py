"""`status` and `verify`: what they find, and that repair mends exactly that."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from lavis_ext.common.config.cards import Card, Cards
from lavis_ext.common.config.schema import AnnotationConfig, BuildInfo, DatasetConfig, ImagesConfig
from lavis_ext.prepare import VerifyReport, status, verify
from tests.support.server import Server
from tests.support.toyfamily import Family, pictures, tree


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    """A prepared family."""
    family = Family(server, tmp_path / "root", train=pictures("train", 30, 5000))
    assert family.prepare().exit_code == 0
    return family


def check(toy: Family, **more: bool) -> VerifyReport:
    return verify(["toy"], options=toy.options(), cards=toy.cards(), **more)


def states(toy: Family) -> list[str]:
    return [state.state for state in status(["toy"], toy.options(), toy.cards())]


def test_what_is_sound_is_sound(toy: Family) -> None:
    report = check(toy)
    assert report.exit_code == 0 and report.files == 40 and not report.findings
    assert "checked 40 files" in report.line() and states(toy) == ["verified", "verified"]
    assert report.lines() == [report.line()]


def test_nothing_is_asked_of_a_host(toy: Family) -> None:
    asked = len(toy.server.log)
    path = toy.root / "toy/annotations/val.json"
    path.unlink()
    report = check(toy)
    assert [(Path(one.path), one.fault) for one in report.findings] == [(path, "missing")]
    assert report.exit_code == 5 and len(toy.server.log) == asked
    assert report.lines() == [f"{path}: missing", report.line()]


def test_nothing_prepared_is_reported(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "none")
    assert check(toy).exit_code == 8 and len(check(toy).unknown) == 4 and check(toy, repair=True).exit_code == 8
    assert states(toy) == ["missing", "missing"]
    assert not toy.root.exists() and server.log == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["images/train/000003.jpg", "annotations/val.json"])
def test_one_flipped_bit_is_found_and_repaired(toy: Family, name: str) -> None:
    path = toy.root / "toy" / name
    flip(path)
    report = check(toy)
    assert report.exit_code == 5 and [Path(f.path) for f in report.findings] == [path]
    json.dumps(report.as_dict())
    sent = toy.server.sent()
    repaired = check(toy, repair=True)
    assert repaired.exit_code == 0 and toy.server.sent() - sent < 20_000
    assert check(toy).exit_code == 0
    assert len(list(path.parent.glob(f"{path.name}.bad-*"))) == 1


def test_a_lost_picture_is_partial_until_it_is_repaired(toy: Family) -> None:
    (toy.images / "train/000003.jpg").unlink()
    assert states(toy) == ["partial", "verified"]
    assert [f.fault for f in check(toy).findings] == ["missing"]
    assert check(toy, repair=True).exit_code == 0 and states(toy) == ["verified", "verified"]
    assert set(toy.train) <= set(tree(toy.images))


def test_members_that_were_taken_singly_are_checked_and_repaired(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 30, 5000))
    toy.prepare(max_samples=4)
    assert check(toy).files == 2 + 4 + 2
    flip(toy.images / "train/000002.jpg")
    assert check(toy).exit_code == 5
    sent = server.sent()
    report = check(toy, repair=True)
    assert report.exit_code == 0, report.lines()
    assert check(toy).exit_code == 0 and check(toy).files == 2 + 4 + 2
    assert server.sent() - sent < 20_000 and toy.prepare(max_samples=4).bytes_moved == 0
    assert (toy.images / "train/000002.jpg").read_bytes() == toy.train["train/000002.jpg"]


def test_a_member_that_has_no_place_does_not_fetch_the_whole_archive(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train={**pictures("train", 30, 5000), "extra/1.jpg": b"one"})
    toy.prepare()
    (toy.images / "extra/1.jpg").unlink()
    (toy.images / "extra").rmdir()
    (toy.images / "extra").write_bytes(b"mine")
    sent = server.sent()
    report = toy.prepare()
    assert report.exit_code == 6 and server.sent() - sent < 5000
    assert (toy.images / "extra").read_bytes() == b"mine"


def test_a_lost_table_of_members_is_made_again(toy: Family) -> None:
    (toy.root / "toy/.lavis_ext/records/images/train.zip.members").unlink()
    assert check(toy).exit_code == 5
    sent = toy.server.sent()
    assert check(toy, repair=True).exit_code == 0 and check(toy).exit_code == 0
    assert toy.server.sent() - sent < len(toy.blobs["train.zip"]) / 2


def jpeg(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (colour, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_deep_decodes_every_picture(server: Server, tmp_path: Path) -> None:
    good = {f"train/{n}.jpg": jpeg(n) for n in range(5)}
    toy = Family(server, tmp_path / "root", train={**good, "train/cut.jpg": jpeg(9)[:-200], "train/readme.txt": b"hi"})
    toy.prepare()
    assert check(toy).exit_code == 0
    found = check(toy, deep=True).findings
    assert "train/cut.jpg" in {f.path[-13:] for f in found}
    assert not any("readme" in f.path or f.path[-11:] in good for f in found)


def test_packed_archives_are_checked_by_their_hash(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    toy.prepare(no_unpack=True)
    assert check(toy).exit_code == 0
    flip(toy.images / "train.zip")
    assert check(toy).exit_code == 5


def test_a_subset_is_named_in_reports_and_states(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    cards = toy.cards()
    small = Family(server, tmp_path / "root", train=pictures("train", 2))
    small.offer_manifest(list(small.blobs))
    assert small.prepare(cards).exit_code == 0
    report = verify(["toy"], options=toy.options(), cards=cards)
    assert report.exit_code == 0 and len(report.subset) == 4 and "subset" in report.line()
    states = status(["toy"], toy.options(), cards)
    assert all(one.subset and "(subset)" in one.line() for one in states)
    again = small.prepare(cards)
    assert {(one.outcome, one.equivalence) for one in again.outcomes} == {("reused", "subset")}


def test_what_was_not_asked_for_is_not_missed(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    toy.prepare(splits=["val"])
    report = check(toy)
    assert report.exit_code == 0 and report.unknown == ("toy/train_rows", "toy/train")
    flip(toy.images / "val/000001.jpg")
    assert check(toy, repair=True).exit_code == 0
    assert set(toy.val) <= set(tree(toy.images)) and not (toy.images / "train").exists()


def test_data_of_ones_own_are_counted_and_what_they_lack_is_named(server: Server, tmp_path: Path) -> None:
    """No command fetches them, so that their annotations are all that says what should be there."""
    toy = Family(server, tmp_path / "root")
    home = tmp_path / "root/mine"
    (home / "im").mkdir(parents=True)
    (home / "rows.json").write_text(json.dumps([{"image": f"{n}.jpg", "caption": "c"} for n in range(3)]))
    for n in range(2):
        (home / f"im/{n}.jpg").write_bytes(jpeg(n))
    build = BuildInfo(
        annotations={"train": AnnotationConfig(storage=["mine/rows.json"])}, images=ImagesConfig(storage="mine/im")
    )
    dataset = DatasetConfig(name="mine_caption", builder="image_caption", family="mine", build_info=build)
    cards = Cards({"mine": Card(family="mine", artifacts={}, datasets={"mine_caption": {"default": dataset}})})
    report = verify(["mine"], options=toy.options(), cards=cards)
    assert (report.files, report.exit_code) == (4, 5) and "2.jpg" in report.findings[0].path
    (home / "im/2.jpg").write_bytes(jpeg(2))
    report = verify(["mine"], options=toy.options(), cards=cards)
    assert (report.files, report.exit_code, report.findings) == (4, 0, ())


def test_what_is_here_is_verified_though_the_mirror_is_gone(toy: Family, tmp_path: Path) -> None:
    report = verify(["toy"], options=toy.options(mirror=str(tmp_path / "gone")), cards=toy.cards())
    assert (report.exit_code, report.files) == (0, 40)
