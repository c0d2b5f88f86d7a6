"""Faults under `prepare`: right bytes or an error with its code, then a healthy run that ends complete."""

from __future__ import annotations

import multiprocessing
import shutil
import socket
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.errors import ConfigError, DiskError, OwnedError
from lavis_ext.fetch.lock import Ownership
from lavis_ext.prepare import PrepareOptions, prepare
from lavis_ext.prepare.records import read_record
from lavis_ext.prepare.verify import status, verify
from tests.support.fetching import FAST
from tests.support.server import Fault, Server, payload
from tests.support.toyfamily import Family, pictures, tar_bytes, tree, zip_bytes

KINDS = ["zip", "tar", "tar.gz"]


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    """A family of two archives."""
    return Family(server, tmp_path / "root")


@pytest.mark.fault("U05")
@pytest.mark.parametrize("kind", KINDS)
def test_prepared_once_the_second_run_moves_nothing(server: Server, tmp_path: Path, kind: str) -> None:
    toy = Family(server, tmp_path / "root", kind=kind)
    report = toy.prepare()
    assert report.exit_code == 0 and report.count("downloaded") == 4 and toy.complete()
    assert report.bytes_moved == server.sent() == sum(map(len, toy.blobs.values()))
    asked, begun = len(server.log), time.process_time()
    again = toy.prepare()
    assert time.process_time() - begun < 2
    assert again.exit_code == 0 and again.count("reused") == 4 and again.bytes_moved == 0
    assert {seen.path for seen in server.log[asked:]} <= {"/manifest.json"}
    assert again.line() == "planned 4 · downloaded 0 · reused 4 · failed 0 · bytes 0 B · 0 unverified · exit 0"


def with_member(name: str, data: bytes = b"x") -> Callable[[Family], bytes]:
    return lambda toy: zip_bytes({**toy.train, name: data})


def with_mode(mode: int) -> Callable[[Family], bytes]:
    return lambda toy: zip_bytes({**toy.train, "evil": b"x"}, external_attr=mode << 16)


def with_field(at: int, value: int) -> Callable[[Family], bytes]:
    """A field of the first entry of the zip's directory is another: `writestr` would set it right again."""

    def build(toy: Family) -> bytes:
        data = bytearray(zip_bytes(toy.train))
        data[data.index(b"PK\1\2") + at] = value
        return bytes(data)

    return build


def absolute(toy: Family) -> bytes:
    return zip_bytes({**toy.train, str(toy.root.parent / "evil.txt"): b"x"})


def bomb(_: Family) -> bytes:
    return zip_bytes({"train/zeros": bytes(200 << 20)}, zipfile.ZIP_DEFLATED)


def nested_bomb(toy: Family) -> bytes:
    """A member that is an archive stays one: nobody looks into it."""
    inner = zip_bytes({f"evil{n}": bytes(20 << 20) for n in range(10)}, zipfile.ZIP_DEFLATED)
    return zip_bytes({**toy.train, "train/inner.zip": inner})


def many_small(_: Family) -> bytes:
    """Each below every cap by itself, together a thousand times their archive."""
    return zip_bytes({f"train/{n}": bytes(4 << 20) for n in range(40)}, zipfile.ZIP_DEFLATED)


def deep(toy: Family) -> bytes:
    return zip_bytes({**toy.train, "train/" + "d/" * 300 + "evil.txt": b"x"})


def overlapping(toy: Family) -> bytes:
    """Every entry of the directory leads to the bytes of the first member."""
    data = bytearray(zip_bytes(dict.fromkeys(toy.train, payload(5000))))
    at = data.index(b"PK\1\2")
    while data[at : at + 4] == b"PK\1\2":
        data[at + 42 : at + 46] = bytes(4)
        at += 46 + sum(int.from_bytes(data[at + n : at + n + 2], "little") for n in (28, 30, 32))
    return bytes(data)


def twice(toy: Family) -> bytes:
    return zip_bytes({**toy.train, "train/00000X.jpg": b"x"}).replace(b"00000X", b"000001")


def cut(toy: Family) -> bytes:
    return toy.blobs["train.zip"][:20_000]


@pytest.mark.parametrize(
    ("build", "code"),
    [
        pytest.param(with_member("../../../evil.txt"), 10, marks=pytest.mark.fault("A01")),
        pytest.param(absolute, 10, marks=pytest.mark.fault("A02")),
        pytest.param(with_member("C:/evil.txt"), 10, marks=pytest.mark.fault("A02")),
        pytest.param(with_member("train\\..\\..\\evil.txt"), 10, marks=pytest.mark.fault("A02")),
        pytest.param(with_mode(0o120777), 10, marks=pytest.mark.fault("A03")),
        pytest.param(with_mode(0o060666), 10, marks=pytest.mark.fault("A05")),
        pytest.param(with_mode(0o010666), 10, marks=pytest.mark.fault("A05")),
        pytest.param(with_mode(0o104755), 10, marks=pytest.mark.fault("A05")),
        pytest.param(bomb, 10, marks=pytest.mark.fault("A06")),
        pytest.param(many_small, 10, marks=pytest.mark.fault("A06")),
        pytest.param(deep, 10, marks=pytest.mark.fault("A13")),
        pytest.param(overlapping, 10, marks=pytest.mark.fault("A06")),
        pytest.param(cut, 5, marks=pytest.mark.fault("A08")),
        pytest.param(twice, 10, marks=pytest.mark.fault("A10")),
        pytest.param(with_member("TRAIN/000001.JPG"), 10, marks=pytest.mark.fault("A10")),
        pytest.param(with_field(8, 1), 10, marks=pytest.mark.fault("A12")),
        pytest.param(with_field(10, 99), 10, marks=pytest.mark.fault("A12", "H32")),
        pytest.param(with_member(""), 10, marks=pytest.mark.fault("H32")),
    ],
)
def test_a_zip_that_is_refused(server: Server, tmp_path: Path, build: Callable[[Family], bytes], code: int) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    healthy = toy.blobs["train.zip"]
    toy.offer("train.zip", build(toy))
    report = toy.prepare()
    assert report.exit_code == code, report.lines()
    assert not list(tmp_path.rglob("evil*")) and not (toy.images / "train").exists()
    assert all((toy.root / "toy" / name).exists() for name in ("annotations", "images/val"))
    for archive in toy.images.glob("train.zip"):
        archive.unlink()
    toy.offer("train.zip", healthy)
    assert toy.prepare().exit_code == 0 and toy.complete()


@pytest.mark.fault("A06")
def test_an_archive_in_an_archive_stays_packed(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    toy.offer("train.zip", nested_bomb(toy))
    assert toy.prepare(splits=["train"]).exit_code == 0
    assert (toy.images / "train/inner.zip").is_file() and not list(tmp_path.rglob("evil*"))


@pytest.mark.fault("A06")
def test_more_files_than_are_declared_are_refused(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    toy.offer("train.zip", zip_bytes(toy.train | {f"train/evil{n}": b"x" for n in range(3)}))
    assert toy.prepare(toy.cards(unpacked_files=len(toy.train)), splits=["train"]).exit_code == 10
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.fault("H32")
@pytest.mark.parametrize("build", [with_field(10, 99), with_member("")], ids=["compression", "name"])
def test_a_zip_that_is_left_packed_is_refused_too(
    server: Server, tmp_path: Path, build: Callable[[Family], bytes]
) -> None:
    """Its pictures would be read back out of it."""
    toy = Family(server, tmp_path / "root", declared=False)
    toy.offer("train.zip", build(toy))
    assert toy.prepare(no_unpack=True, splits=["train"]).exit_code == 10


@pytest.mark.fault("A04")
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_tars(server: Server, tmp_path: Path, kind: str, type_: bytes) -> None:
    toy = Family(server, tmp_path / "root", kind=kind, declared=False)
    linked = tar_bytes({"train/link": b""}, "w:gz" if "gz" in kind else "w", type=type_, linkname="../../../../evil")
    toy.offer(f"train.{kind}", linked)
    report = toy.prepare(splits=["train"])
    assert report.exit_code == 10 and not list(tmp_path.rglob("evil*")) and not list(toy.images.rglob("link"))


@pytest.mark.fault("U02")
def test_an_archive_that_is_there_is_unpacked_offline(toy: Family) -> None:
    toy.prepare(no_unpack=True)
    asked = len(toy.server.log)
    assert toy.prepare(offline=True).exit_code == 0 and toy.complete()
    assert len(toy.server.log) == asked


@pytest.mark.fault("A09")
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_cut_at_a_boundary_is_not_taken_for_whole(server: Server, tmp_path: Path, kind: str) -> None:
    toy = Family(server, tmp_path / "root", kind=kind, declared=False)
    cards = toy.cards(unpacked_files=12)
    healthy = toy.blobs[f"train.{kind}"]
    toy.archive("train", dict(list(toy.train.items())[:6]))
    report = toy.prepare(cards, splits=["train"])
    assert report.exit_code == 5 and "6 files" in report.lines()[-2]
    toy.offer(f"train.{kind}", healthy)
    for archive in toy.images.glob("train.tar*"):
        archive.unlink()
    assert toy.prepare(cards, splits=["train"]).exit_code == 0


@pytest.mark.fault("A08")
def test_a_damaged_archive_is_set_aside_and_fetched_once_more(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    whole = toy.blobs["train.zip"]
    server.put(toy.path("train.zip"), whole[:20_000])
    server.script(toy.path("train.zip"), Fault(times=1, then=lambda: server.put(toy.path("train.zip"), whole)))
    report = toy.prepare()
    assert report.exit_code == 0 and toy.complete()
    assert len(list(toy.images.glob("train.zip.bad-*"))) == 1


@pytest.mark.fault("F01")
def test_too_little_space_is_reported_before_the_first_byte(toy: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(toy.root.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=50_000))
    with pytest.raises(DiskError) as caught:
        toy.prepare()
    shown = str(caught.value)
    assert (
        caught.value.exit_code == 6 and "50,000 (50.0 kB)" in shown and "--max-samples" in shown and "needed" in shown
    )
    assert toy.server.sent() == 0 and not toy.root.exists()


@pytest.mark.fault("F05")
def test_a_root_that_cannot_be_written_is_reported_before_the_network(toy: Family) -> None:
    toy.root.write_text("a file")
    with pytest.raises(DiskError):
        toy.prepare()
    with pytest.raises(DiskError):
        toy.prepare(cache_root=toy.root / "below")
    assert toy.server.sent() == 0


@pytest.mark.fault("F12")
def test_one_deleted_file_is_repaired_alone(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 60, 8000))
    toy.prepare()
    (toy.images / "train/000007.jpg").unlink()
    before = {p: p.stat().st_mtime_ns for p in toy.images.rglob("*.jpg")}
    sent = server.sent()
    report = toy.prepare()
    assert report.exit_code == 0 and toy.complete() and report.count("reused") == 3
    assert server.sent() - sent < 100_000 < len(toy.blobs["train.zip"])
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert toy.prepare().bytes_moved == 0


@pytest.mark.fault("F12")
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_in_a_tar(server: Server, tmp_path: Path, kind: str) -> None:
    toy = Family(server, tmp_path / "root", kind=kind)
    toy.prepare()
    (toy.images / "train/000007.jpg").unlink()
    assert toy.prepare().exit_code == 0 and toy.complete()


@pytest.mark.fault("F13")
def test_a_root_behind_a_link_works_and_links_stay(server: Server, tmp_path: Path) -> None:
    (tmp_path / "disk/images").mkdir(parents=True)
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/toy").mkdir()
    (tmp_path / "disk/toy/images").symlink_to(tmp_path / "disk/images")
    toy = Family(server, tmp_path / "root")
    assert toy.prepare().exit_code == 0 and toy.images.is_symlink()
    assert toy.prepare().bytes_moved == 0 and toy.complete()


@pytest.mark.fault("R13")
def test_without_the_bookkeeping_everything_is_recognised(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 60, 8000))
    toy.prepare()
    for folder in list(toy.root.rglob(".lavis_ext")):
        shutil.rmtree(folder)
    inodes = {p: p.stat().st_ino for p in toy.images.rglob("*.jpg")}
    sent = server.sent()
    report = toy.prepare()
    assert report.exit_code == 0 and toy.complete()
    assert {p: p.stat().st_ino for p in inodes} == inodes
    assert server.sent() - sent < len(toy.blobs["train.zip"]) / 2
    assert toy.prepare().bytes_moved == 0


@pytest.mark.fault("R14")
def test_a_copied_root_is_accepted_after_one_listing(toy: Family, tmp_path: Path) -> None:
    toy.prepare()
    shutil.copytree(toy.root, tmp_path / "copy", copy_function=shutil.copy)
    moved = replace(toy, root=tmp_path / "copy")
    toy.server.log.clear()
    assert moved.prepare().bytes_moved == 0 and moved.complete()
    record = read_record(moved.root, moved.artifact("train.zip", "zip"))
    assert record is not None and record.folders["train"] == (moved.images / "train").stat().st_mtime_ns


def snapshot(root: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in [root, *root.rglob("*")] if p.exists()}


@pytest.mark.fault("U01")
@pytest.mark.parametrize("more", [{}, {"max_samples": 2}, {"splits": ["val"]}])
def test_a_dry_run_opens_no_socket_and_writes_nothing(
    toy: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, object]
) -> None:
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was opened"))
    before = snapshot(tmp_path)
    for mirror in ("", str(folder)):
        report = toy.prepare(dry_run=True, mirror=mirror, **more)
        assert report.exit_code == 0 and not report.outcomes and "nothing was written" in report.line()
        assert "toy/val" in report.plan.table()
    assert snapshot(tmp_path) == before


@pytest.mark.fault("H06")
@pytest.mark.parametrize("declared", [True, False])
def test_two_files_that_have_one_place_are_refused(server: Server, tmp_path: Path, declared: bool) -> None:
    """Only one of them was fetched, and both splits were called verified."""
    toy = Family(server, tmp_path / "root", declared=declared)
    cards = toy.cards()
    artifacts = cards.families["toy"].artifacts
    artifacts["val_rows"] = replace(artifacts["val_rows"], storage=artifacts["train_rows"].storage)
    with pytest.raises(ConfigError):
        toy.prepare(cards)
    assert server.sent() == 0 and not toy.root.exists()
    artifacts["val_rows"] = replace(artifacts["train_rows"], name="val_rows")  # the same file under two names
    assert toy.prepare(cards).exit_code == 0


@pytest.mark.fault("F10")
@pytest.mark.parametrize(
    "storage",
    [
        "toy/annotations/TRAIN.json",
        "toy/Annotations/val.json",
        "toy/annotations/train.json/val.json",
        "toy/annotations",
        "toy/annotations/./train.json",
        "toy/.lavis_ext/val.json",
        f"toy/{'v' * 251}.json",
        "toy/val\0.json",
    ],
)
def test_a_place_that_is_none_or_that_another_file_has_is_refused(server: Server, tmp_path: Path, storage: str) -> None:
    """In cards that are made in Python too; names that differ in case are one file on some disks."""
    toy = Family(server, tmp_path / "root")
    cards = toy.cards()
    artifacts = cards.families["toy"].artifacts
    artifacts["val_rows"] = replace(artifacts["val_rows"], storage=storage)
    with pytest.raises(ConfigError):
        toy.prepare(cards)
    with pytest.raises(ConfigError):
        status(["toy"], toy.options(), cards)
    assert server.sent() == 0 and not toy.root.exists()


@pytest.mark.fault("F10")
def test_names_of_one_letter_in_two_unicode_forms_are_one_place(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    cards = toy.cards()
    artifacts = cards.families["toy"].artifacts
    for name, storage in {"train_rows": "toy/caf\u00e9.json", "val_rows": "toy/cafe\u0301.json"}.items():
        artifacts[name] = replace(artifacts[name], storage=storage)
    with pytest.raises(ConfigError):
        toy.prepare(cards)


SHARED = "train/000003.jpg"


@pytest.mark.fault("H06")
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("longer", [0, 1])
def test_a_member_that_two_archives_have_with_other_bytes_stays_what_it_is(
    server: Server, tmp_path: Path, kind: str, declared: bool, longer: int
) -> None:
    """The second archive set the file of the first aside, both were called verified, and the next run turned it."""
    train = pictures("train", 6)
    val = {f"val/{n}.jpg": payload(2000, n) for n in range(4)} | {SHARED: train[SHARED][:-1] + b"!" * (1 + longer)}
    toy = Family(server, tmp_path / "root", train, val, kind=kind, declared=declared)
    for _ in range(2):
        report = toy.prepare()
        errors = [one.error for one in report.outcomes if one.error is not None]
        assert report.exit_code == 3 and [type(error) for error in errors] == [ConfigError]
        assert tree(toy.images) == {**train, f"val.{kind}": toy.blobs[f"val.{kind}"]}
    states = {state.split: state for state in status(["toy"], toy.options(), toy.cards())}
    assert states["train"].verified == declared and not states["val"].verified
    assert states["val"].missing == 4
    found = verify(["toy"], options=toy.options(), cards=toy.cards())
    assert not found.findings and found.unknown == ("toy/val",)
    apart = toy.cards()
    apart.families["toy"].artifacts["val"] = replace(apart.families["toy"].artifacts["val"], storage="toy/images/more")
    assert toy.prepare(apart).exit_code == 0 and (toy.images / "more" / SHARED).read_bytes() == val[SHARED]


@pytest.mark.fault("H06")
def test_a_member_that_two_archives_have_with_equal_bytes_is_both_of_theirs(server: Server, tmp_path: Path) -> None:
    train = pictures("train", 6)
    toy = Family(server, tmp_path / "root", train, {**pictures("val", 4), SHARED: train[SHARED]})
    assert toy.prepare().exit_code == 0 and toy.complete()


@pytest.mark.fault("H06")
@pytest.mark.parametrize("first", ["train", "train_rows"])
def test_a_file_and_a_member_that_have_one_place_stay_what_they_are(server: Server, tmp_path: Path, first: str) -> None:
    """An archive with a member where a file of the card belongs: whichever comes first stays."""
    toy = Family(server, tmp_path / "root")
    toy.archive("train", {**toy.train, "rows.json": b"[]"})
    cards = toy.cards()
    artifacts = cards.families["toy"].artifacts
    artifacts["train_rows"] = replace(artifacts["train_rows"], storage="toy/images/rows.json")
    assert toy.prepare(cards, names=(f"toy/{first}",)).exit_code == 0
    there = (toy.images / "rows.json").read_bytes()
    assert (
        toy.prepare(cards).exit_code == 3 and toy.prepare(cards, names=("toy/train", "toy/train_rows")).exit_code == 3
    )
    assert (toy.images / "rows.json").read_bytes() == there and not list(toy.root.rglob("*.bad-*"))


@pytest.mark.fault("H06")
def test_a_repair_sets_no_file_of_another_archive_aside(server: Server, tmp_path: Path) -> None:
    """As an earlier version left it: two archives recorded, of which one has the other's bytes."""
    toy = Family(server, tmp_path / "root")
    assert toy.prepare().exit_code == 0
    other = Family(server, tmp_path / "other", toy.train, {**toy.val, SHARED: toy.train[SHARED][:-1] + b"!"})
    cards = other.cards()
    assert other.prepare(cards, names=("toy/val",)).exit_code == 0
    for path in (other.root / "toy").rglob("*"):
        place = toy.root / "toy" / path.relative_to(other.root / "toy")
        if path.is_file() and path.name.startswith(("val.zip", Path(SHARED).name)):
            shutil.copy2(path, place)
    before = tree(toy.images)
    cards.families["toy"].artifacts["val_rows"] = toy.cards().families["toy"].artifacts["val_rows"]
    found = verify(["toy"], repair=True, options=toy.options(), cards=cards)
    assert found.exit_code == 3 and [Path(one.path).name for one in found.findings] == [Path(SHARED).name]
    assert found.repaired is not None and [one.outcome for one in found.repaired] == ["failed"]
    assert tree(toy.images) == before


@pytest.mark.fault("U02")
def test_offline(toy: Family) -> None:
    missing = toy.prepare(offline=True)
    assert missing.exit_code == 4 and [error.exit_code for error in missing.failures] == [4] * 4
    assert all(name in "\n".join(missing.lines()) for name in ("train.zip", "val.zip", "train.json", "val.json"))
    assert toy.server.log == []
    toy.prepare()
    asked = len(toy.server.log)
    assert toy.prepare(offline=True).exit_code == 0 and len(toy.server.log) == asked
    (toy.images / "val/000001.jpg").unlink()
    assert toy.prepare(offline=True).exit_code == 4 and len(toy.server.log) == asked


def _prepare_in_child(base: str, root: str, queue: multiprocessing.Queue[tuple[int, int]]) -> None:
    with Server() as idle:
        toy = Family(idle, Path(root))
        report = prepare(
            ["toy"],
            PrepareOptions(cache_root=root, mirror=base, policy=replace(FAST, owner_stall=60.0), reserve=0),
            cards=toy.cards(),
        )
    queue.put((report.exit_code, report.bytes_moved))


@pytest.mark.fault("F06")
@pytest.mark.slow
def test_two_processes_fetch_each_byte_once(toy: Family) -> None:
    toy.server.script(toy.path("train.zip"), Fault(latency=0.3, times=1))
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[tuple[int, int]] = context.Queue()
    args = (toy.server.base, str(toy.root), queue)
    children = [context.Process(target=_prepare_in_child, args=args) for _ in range(2)]
    for child in children:
        child.start()
    results = [queue.get(timeout=200) for _ in children]
    for child in children:
        child.join()
    assert [code for code, _ in results] == [0, 0] and toy.complete()
    assert sum(moved for _, moved in results) == sum(map(len, toy.blobs.values()))


def test_another_live_owner_that_makes_no_progress_is_reported(toy: Family) -> None:
    folder = toy.root / "toy/.lavis_ext"
    folder.mkdir(parents=True)
    policy = replace(FAST, owner_stall=0.2)
    with Ownership(folder / "prepare.owner", folder / "prepare.pulse", policy), pytest.raises(OwnedError) as caught:
        toy.prepare(policy=policy)
    assert caught.value.exit_code == 9
    assert toy.prepare().exit_code == 0
    assert not list(folder.glob("prepare.*"))


@pytest.mark.fault("P06")
def test_an_interrupt_leaves_a_state_that_continues(toy: Family) -> None:
    class Interrupting:
        calls = 0

        def begin(self, label: str, total: int | None) -> None:
            pass

        def advance(self, label: str, count: int) -> None:
            if label.endswith("unpacked"):
                raise KeyboardInterrupt

        def end(self, label: str, outcome: str) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        prepare(["toy"], toy.options(), Interrupting(), cards=toy.cards())
    assert not list((toy.root / "toy/.lavis_ext").glob("prepare.*"))
    sent = toy.server.sent()
    assert toy.prepare().exit_code == 0 and toy.complete() and toy.server.sent() == sent
