"""Archives: new versions, other people's files, what is gone, names and headers that lie, a root that is read-only."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.cards import Cards
from lavis_ext.common.errors import DiskError, IntegrityError
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.prepare import prepare, records, status, verify
from tests.support.disks import small_disk
from tests.support.server import Fault, Server, payload
from tests.support.toyfamily import HOST, Family, pictures, rows_of, tar_bytes, tree, zip_bytes

KINDS = ["zip", "tar", "tar.gz"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    """A family of two archives."""
    return Family(server, tmp_path / "root")


def changed(cards: Cards, name: str, **more: Any) -> Cards:
    """The cards with one artifact declared anew."""
    card = cards.families["toy"]
    artifact = replace(card.artifacts[name], **more)
    return replace(cards, families={"toy": replace(card, artifacts={**card.artifacts, name: artifact})})


def here(toy: Family, aside: bool = False) -> dict[str, bytes]:
    """Files in place, or those that were set aside."""
    return {name: data for name, data in tree(toy.root / "toy").items() if (".bad-" in name) == aside}


def states(toy: Family, cards: Cards) -> list[str]:
    return [state.state for state in status(["toy"], toy.options(), cards)]


# A card's new version is never found in old bytes


def packed(toy: Family, files: dict[str, bytes]) -> bytes:
    return zip_bytes(files) if toy.kind == "zip" else tar_bytes(files, "w:gz" if "gz" in toy.kind else "w")


MODES: dict[str, dict[str, Any]] = {
    "unpacked": {}, "kept": {"keep_archives": True}, "packed": {"no_unpack": True}, "samples": {"max_samples": 4},
}  # fmt: skip
NEWS: dict[str, Callable[[bytes, bytes], tuple[dict[str, Any], dict[str, Any]]]] = {
    "sha256": lambda old, new: ({"sha256": sha256(old).hexdigest()}, {"sha256": sha256(new).hexdigest()}),
    "md5": lambda old, new: ({"md5": md5(old).hexdigest()}, {"md5": md5(new).hexdigest()}),
    "md5 for sha256": lambda old, new: ({"sha256": sha256(old).hexdigest()}, {"md5": md5(new).hexdigest()}),
    "a first digest": lambda old, new: ({}, {"sha256": sha256(new).hexdigest()}),
    "url": lambda old, new: ({}, {"url": f"https://{HOST}/v2/train"}),
    "url, equal size": lambda old, new: ({"size": len(old)}, {"url": f"https://{HOST}/v2/train", "size": len(new)}),
    "url for sha256": lambda old, new: ({"sha256": sha256(old).hexdigest()}, {"url": f"https://{HOST}/v2/train"}),
}


@pytest.mark.fault("H01")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "news"), [*(("zip", news) for news in NEWS), *((k, news) for k in KINDS[1:] for news in ("sha256", "url"))]
)
def test_a_new_version_is_not_found_in_old_bytes(
    kind: str, mode: str, news: str, server: Server, tmp_path: Path
) -> None:
    """Pictures of equal names and sizes; a stored archive of them has an equal size too."""
    toy = Family(server, tmp_path / "root", declared=False, kind=kind, train=pictures("train", 12, 5000))
    new = {name: bytes(255 - byte for byte in data) for name, data in toy.train.items()}
    old_bytes, new_bytes = toy.blobs[f"train.{kind}"], packed(toy, new)
    was, now = NEWS[news](old_bytes, new_bytes)
    cleared = dict.fromkeys(("size", "sha256", "md5"))
    before = changed(toy.cards(), "train", **was)
    assert toy.prepare(before, **MODES[mode]).exit_code == 0
    path = toy.path(f"train.{kind}")
    if "url" in now:
        path = f"/{HOST}/v2/train.{kind}"
        now = {**now, "url": f"{now['url']}.{kind}"}
    toy.server.put(path, new_bytes)
    after = changed(before, "train", **{**cleared, **now})
    assert "verified" not in states(toy, after)[0]
    assert toy.prepare(after, **MODES[mode]).exit_code == 0
    found = here(toy)
    if mode == "packed":
        assert found[f"images/train.{kind}"] == new_bytes
    else:
        wanted = sorted(new)[: 4 if mode == "samples" and kind == "zip" else None]
        assert {name: found.get(f"images/{name}") for name in wanted} == {name: new[name] for name in wanted}
    assert set(here(toy, aside=True).values()) >= (
        {old_bytes} if mode == "packed" else {toy.train[name] for name in sorted(new)[:4]}
    )
    assert toy.prepare(after, **MODES[mode]).bytes_moved == 0
    assert verify(["toy"], options=toy.options(), cards=after).exit_code == 0


@pytest.mark.fault("H01")
@pytest.mark.parametrize("size", [False, True])
def test_a_new_address_of_a_file_with_nothing_else_declared(size: bool, server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    old = changed(toy.cards(), "val_rows", **({"size": len(toy.blobs["val.json"])} if size else {}))
    assert toy.prepare(old).exit_code == 0
    rows = rows_of(sorted(toy.val, reverse=True), captions=2)
    toy.server.put(f"/{HOST}/v2/val.json", rows)
    cards = changed(old, "val_rows", url=f"https://{HOST}/v2/val.json")
    assert toy.prepare(cards).bytes_moved == len(rows) and here(toy)["annotations/val.json"] == rows
    assert toy.blobs["val.json"] in here(toy, aside=True).values() and toy.prepare(cards).bytes_moved == 0


# A user's own archive is never deleted


class Interrupting:
    """Progress that ends the run once something is unpacked."""

    def begin(self, label: str, total: int | None) -> None:
        pass

    def advance(self, label: str, count: int) -> None:
        if label.endswith("unpacked"):
            raise KeyboardInterrupt

    def end(self, label: str, outcome: str) -> None:
        pass


def interrupt(toy: Family, when: str) -> None:
    """A run of ours that ended early: in the download, or while it unpacked."""
    if when == "download":
        toy.server.script(toy.path(f"train.{toy.kind}"), Fault(cut_at=10_000))
        assert toy.prepare(policy=replace(toy.policy, retries=0)).exit_code == 4
        toy.server.script(toy.path(f"train.{toy.kind}"))
    else:
        with pytest.raises(KeyboardInterrupt):
            prepare(["toy"], toy.options(), Interrupting(), cards=toy.cards())


def by_link(path: Path, mine: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(mine)


def by_hard_link(path: Path, mine: Path) -> None:
    path.unlink(missing_ok=True)
    os.link(mine, path)


def by_copy(path: Path, mine: Path) -> None:
    """With the times of the file whose place it takes; it is made beside that, so that it is another inode."""
    kept, beside = path.stat() if path.exists() else mine.stat(), path.with_name("beside")
    shutil.copy(mine, beside)
    os.utime(beside, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    beside.replace(path)


def by_writing(path: Path, mine: Path) -> None:
    """Into the file that is there: inode, size and time stay what they were."""
    kept = path.stat() if path.exists() else mine.stat()
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(mine.read_bytes())
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


@pytest.mark.fault("H05")
@pytest.mark.parametrize("put", [by_link, by_hard_link, by_copy, by_writing])
@pytest.mark.parametrize("when", ["download", "unpacking"])
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_users_archive_stays_after_an_interrupted_run(
    kind: str, when: str, put: Callable[[Path, Path], None], server: Server, tmp_path: Path
) -> None:
    toy = Family(server, tmp_path / "root", kind=kind)
    mine = tmp_path / "mine"
    mine.write_bytes(toy.blobs[f"train.{kind}"])
    interrupt(toy, when)
    place = toy.images / f"train.{kind}"
    put(place, mine)
    sent = server.sent(toy.path(f"train.{kind}"))
    for _ in range(2):
        assert toy.prepare().exit_code == 0
        assert place.read_bytes() == mine.read_bytes() == toy.blobs[f"train.{kind}"]
    assert server.sent(toy.path(f"train.{kind}")) == sent and set(here(toy)) >= {f"images/{name}" for name in toy.train}
    shutil.rmtree(toy.images / "train")
    assert toy.prepare().exit_code == 0 and place.exists(), "nor when it is unpacked anew"


@pytest.mark.fault("H05")
@pytest.mark.parametrize("when", ["download", "unpacking"])
def test_another_archive_of_the_users_is_kept(when: str, server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    interrupt(toy, when)
    other = zip_bytes({"notes.txt": b"mine"})
    (toy.images / "train.zip").write_bytes(other)
    assert toy.prepare().exit_code == 0 and other in tree(toy.images).values()
    assert {name: here(toy)[f"images/{name}"] for name in toy.train} == toy.train


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_there_until_its_record_is(kind: str, server: Server, tmp_path: Path) -> None:
    """The record cannot take its name; what was fetched for it must not be gone."""
    toy = Family(server, tmp_path / "root", kind=kind)
    hindrance = toy.root / f"toy/.lavis_ext/records/images/train.{kind}.json/x"

    class Hindering(Interrupting):
        """Once all is unpacked, something stands where the record belongs."""

        def advance(self, label: str, count: int) -> None:
            pass

        def end(self, label: str, outcome: str) -> None:
            if label == "train unpacked":
                hindrance.mkdir(parents=True)

    assert prepare(["toy"], toy.options(), Hindering(), cards=toy.cards()).exit_code == 6
    assert (toy.images / f"train.{kind}").read_bytes() == toy.blobs[f"train.{kind}"]
    assert not (toy.images / f"val.{kind}").exists()
    shutil.rmtree(hindrance.parent)
    sent = server.sent(toy.path(f"train.{kind}"))
    assert toy.prepare().exit_code == 0 and server.sent(toy.path(f"train.{kind}")) == sent
    assert not (toy.images / f"train.{kind}").exists()


# What is gone, emptied or was never compared is not called verified


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def looping(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def linked_away(path: Path) -> None:
    """The whole folder is replaced by a link to an empty one."""
    folder = path.parent
    shutil.rmtree(folder)
    (folder.parent.parent / "elsewhere").mkdir(exist_ok=True)
    folder.symlink_to(folder.parent.parent / "elsewhere")


PARTS = {"file": "toy/annotations/train.json", "member": "toy/images/train/000003.jpg"}


@pytest.mark.fault("H06")
@pytest.mark.parametrize(
    ("part", "harm"),
    [
        (part, harm)
        for part in PARTS
        for harm in (emptied, Path.unlink, a_folder, dangling, looping, longer, linked_away)
        if (part, harm) != ("file", linked_away)  # a folder of annotations holds others too
    ],
)
@pytest.mark.parametrize("mode", ["unpacked", "samples"])
def test_what_is_gone_is_not_called_verified(mode: str, part: str, harm: Callable[[Path], object], toy: Family) -> None:
    toy.prepare(**MODES[mode])
    harm(toy.root / PARTS[part])
    cards = toy.cards()
    assert "verified" not in states(toy, cards)[0]
    report = verify(["toy"], options=toy.options(), cards=cards)
    assert report.exit_code == 5 and {one.title for one in report.findings} <= {"toy/train", "toy/train_rows"}
    again = toy.prepare(**MODES[mode])
    assert again.exit_code == 0
    if harm is dangling:
        assert any("link to nothing" in note for one in again.outcomes for note in one.notes)
    if mode == "unpacked":
        assert states(toy, cards) == ["verified", "verified"]
    assert verify(["toy"], options=toy.options(), cards=cards).exit_code == 0


@pytest.mark.fault("I07")
@pytest.mark.parametrize("link", ["nowhere", "000003.jpg", "train"])
def test_a_users_picture_that_is_a_link_to_nothing_is_missing(toy: Family, link: str) -> None:
    """Pictures that the user has put there, one of which leads nowhere, to itself, or has a loop beside it."""
    cards = toy.cards()
    assert toy.prepare(cards, names=("toy/train_rows", "toy/val_rows")).exit_code == 0
    for name, data in {**toy.train, **toy.val}.items():
        (toy.images / name).parent.mkdir(parents=True, exist_ok=True)
        (toy.images / name).write_bytes(data)
    place = toy.images / ("loop" if link == "train" else "train/000003.jpg")
    place.unlink(missing_ok=True)
    place.symlink_to("loop" if link == "train" else link)
    found = {state.split: state.missing for state in status(["toy"], toy.options(), cards)}
    assert found == {"train": int(link != "train"), "val": 0}
    assert ImageStore(toy.images).find("train/000004.jpg") is not None


@pytest.mark.fault("H06")
def test_one_emptied_member_of_very_many_is_seen_by_status(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LOOK", 60.0)  # on a busy machine half a second may not do for so many
    toy = Family(server, tmp_path / "root", train={f"train/{n}.jpg": b"%d" % n for n in range(10_050)})
    toy.prepare()
    emptied(toy.images / "train/7777.jpg")
    assert states(toy, toy.cards()) == ["present", "verified"]


@pytest.mark.fault("F13")
@pytest.mark.parametrize("place", ["toy", "toy/images", "toy/annotations", "toy/images/train"])
def test_a_folder_that_is_a_link_to_nothing_is_named(toy: Family, place: str) -> None:
    """A disk that is not mounted: nothing is made in its place."""
    (toy.root / place).parent.mkdir(parents=True)
    (toy.root / place).symlink_to("/nowhere/disk")
    try:
        errors = toy.prepare().failures
    except DiskError as error:
        errors = [error]
    assert errors and {error.exit_code for error in errors} == {6}
    assert {problem.where for error in errors for problem in error.problems} == {str(toy.root / place)}
    assert (toy.root / place).is_symlink()


@pytest.mark.fault("H06")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_equal_size_and_time_are_found_by_verify(part: str, kind: str, server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", kind=kind)
    toy.prepare()
    path = toy.root / PARTS[part]
    kept, data = path.stat(), path.read_bytes()
    path.write_bytes(data[::-1])
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    report = verify(["toy"], repair=True, options=toy.options(), cards=toy.cards())
    assert [one.path for one in report.findings] == [str(path)] and report.exit_code == 0
    assert path.read_bytes() == data and data[::-1] in here(toy, aside=True).values()


@pytest.mark.fault("H06")
def test_what_was_compared_with_nothing_is_present(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False, kind="tar")
    report = toy.prepare()
    assert report.exit_code == 0 and {one.verified for one in report.outcomes} == {"none"}
    assert set(states(toy, toy.cards())) == {"present"} and "verified" not in {
        i.state for i in toy.prepare().plan.items
    }


# Names


LINES = ["\u2028", "\u2029", "\x85"]


@pytest.mark.fault("H23")
@pytest.mark.parametrize("more", [{}, {"max_samples": 3}])
@pytest.mark.parametrize("kind", KINDS)
def test_line_separators_in_names(kind: str, more: dict[str, Any], server: Server, tmp_path: Path) -> None:
    train = {f"train/{k}{line}{k}.jpg": payload(5000 + k, k) for k, line in enumerate(LINES)}
    train |= pictures("train", 9, 5000) | {f"train\u2028/{k}.jpg": payload(50 + k, k) for k in range(2)}
    toy = Family(server, tmp_path / "root", kind=kind, train=train)
    cards = toy.cards()

    def agree() -> None:
        assert toy.prepare(**more).exit_code == 0 and toy.prepare(**more).bytes_moved == 0
        for _ in range(2):
            report = verify(["toy"], options=toy.options(), cards=cards)
            assert report.exit_code == 0 and not report.findings

    agree()
    assert toy.prepare().exit_code == 0
    more = {}
    (toy.images / sorted(train)[-1]).write_bytes(b"x")
    (toy.images / "train/0\u20280.jpg").unlink()
    assert len(verify(["toy"], options=toy.options(), cards=cards).findings) == 2
    assert verify(["toy"], repair=True, options=toy.options(), cards=cards).exit_code == 0
    agree()
    shutil.rmtree(toy.images / "train\u2028")
    toy.server.script(toy.path(f"train.{kind}"), Fault(status=404))
    assert toy.prepare(policy=replace(toy.policy, retries=0)).exit_code == 4
    lost = (toy.root / "toy/.lavis_ext/missing.tsv").read_text("utf-8").splitlines()
    assert len(lost) == 3, "a name is a line"


# Zips that lie


def raw_zip(
    files: dict[str, bytes],
    local_extra: int = 0,
    deflate: bool = False,
    lie: Callable[[int], int] = int,
    **central: int,
) -> bytes:
    """A zip by hand: local headers with an extra field that the directory does not mention; sizes by `lie`."""
    out, entries = bytearray(), []
    for name, data in files.items():
        raw, method = name.encode(), central.get("method", 8 if deflate else 0)
        body = zlib.compressobj(9, zlib.DEFLATED, -15) if deflate else None
        packed_ = body.compress(data) + body.flush() if body else data
        size, crc, version = lie(len(data)), zlib.crc32(data), central.get("version", 20)
        common = struct.pack(
            "<HHHHHIIIHH", version, 0x800, method, 0, 33, crc, len(packed_), size, len(raw), local_extra
        )
        entries.append((raw, common[:-2] + struct.pack("<H", 0), len(out)))
        out += b"PK\3\4" + common + raw + bytes(local_extra) + packed_
    start = len(out)
    for raw, common, offset in entries:
        out += b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, offset) + raw
    out += b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(out) - start, start, 0)
    return bytes(out)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("extra", [0, 300, 4200, 60_000])
@pytest.mark.parametrize("more", [{"max_samples": 5}, {}, {"keep_archives": True}])
def test_a_local_header_that_is_longer_than_the_directory_says(
    more: dict[str, Any], extra: int, deflate: bool, server: Server, tmp_path: Path
) -> None:
    """Beyond what a range allows for, where the last member's bytes end."""
    toy = Family(server, tmp_path / "root", train=pictures("train", 40, 9000))
    toy.offer("train.zip", raw_zip(toy.train, local_extra=extra, deflate=deflate))
    assert toy.prepare(**more).exit_code == 0
    wanted = sorted(toy.train)[: more.get("max_samples")]
    assert {name: (toy.images / name).read_bytes() for name in wanted} == {name: toy.train[name] for name in wanted}
    if "max_samples" in more:
        assert server.sent(toy.path("train.zip")) < len(toy.blobs["train.zip"]) / 2


@pytest.mark.fault("A07")
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("lie", [lambda n: n - 1, lambda n: n + 1, lambda n: 1, lambda n: n << 12])
@pytest.mark.parametrize("more", [{}, {"max_samples": 3}])
def test_a_size_that_lies(
    more: dict[str, Any], lie: Callable[[int], int], deflate: bool, server: Server, tmp_path: Path
) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    healthy = toy.blobs["train.zip"]
    toy.offer("train.zip", raw_zip(toy.train, deflate=deflate, lie=lie))
    report = toy.prepare(**more)
    assert report.exit_code in (5, 10) and not any(name.startswith("images/train/") for name in here(toy))
    for path in toy.images.glob("train.zip"):
        path.unlink()
    toy.offer("train.zip", healthy)
    assert toy.prepare().exit_code == 0 and {n: here(toy)[f"images/{n}"] for n in toy.train} == toy.train


ODD: dict[str, dict[str, int]] = {"version": {"version": 104}, "method": {"method": 97}, "lzma": {"method": 14}}


@pytest.mark.fault("H32")
@pytest.mark.parametrize("odd", [*ODD, "empty name", "two empty names"])
def test_members_without_a_name_or_of_an_unknown_kind(odd: str, server: Server, tmp_path: Path) -> None:
    files = {"train/a.jpg": b"a" * 90, **({"": b"x" * 9} if "empty" in odd else {})}
    data = raw_zip(files, **ODD.get(odd, {}))
    toy = Family(server, tmp_path / "root", declared=False)
    toy.offer("train.zip", data)
    for more in ({}, {"max_samples": 2}):
        assert toy.prepare(**more).exit_code == 10
        assert not (toy.images / "train").exists()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.zip").write_bytes(data)
    store = ImageStore(tmp_path / "images")
    if odd == "version":  # a kind of zip that is not read
        with pytest.raises(IntegrityError):
            list(store.names())
    elif "empty" in odd:
        assert list(store.names()) == ["train/a.jpg"] and store.read("train/a.jpg") == b"a" * 90
    else:
        with pytest.raises(SampleError):
            store.read("train/a.jpg")


@pytest.mark.fault("H32")
def test_any_byte_of_a_directory_may_be_wrong(tmp_path: Path) -> None:
    whole = zip_bytes({f"im/{n}.jpg": payload(60, n) for n in range(4)}, zipfile.ZIP_DEFLATED)
    start = whole.index(b"PK\1\2")
    for at in range(start, len(whole), 3):
        for value in (0, 0x68, 0xFF):
            path = tmp_path / "a.zip"
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            store = ImageStore(tmp_path, [path])
            try:
                for name in list(store.names()):
                    store.read(name)
            except (IntegrityError, SampleError):
                continue


# A root that is read-only


VERBS = """
import json, sys
from lavis_ext.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.fault("H24")
@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_root_in_which_everything_is_verified(kind: str, server: Server, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        toy = Family(server, disk.path / "root", kind=kind)
        toy.prepare()
        (toy.images / "train/notes.txt").touch()  # its record is stale, and cannot be renewed
        disk.read_only()
        try:
            for more in ({}, {"offline": True}, {"dry_run": True}, {"max_samples": 3}):
                assert toy.prepare(**more).exit_code == 0, more
            cards = toy.cards()
            assert states(toy, cards) == ["verified", "verified"]
            assert verify(["toy"], options=toy.options(), cards=cards).exit_code == 0
            toy.archive("train", {**toy.train, "train/more.jpg": b"x"})
            sent = server.sent()
            with pytest.raises(DiskError) as caught:
                toy.prepare(toy.cards())
            assert caught.value.exit_code == 6 and server.sent() == sent
        finally:
            disk.read_only(False)


@pytest.mark.slow
@pytest.mark.fault("H24")
def test_the_commands_on_a_read_only_root(server: Server, tmp_path: Path) -> None:
    """A list of a few hosts, whose images came one by one."""
    images = [{"id": n, "file_name": f"{n}.jpg", "coco_url": f"https://s3.example/val/{n}.jpg"} for n in range(3)]
    rows = [{"id": n, "image_id": n, "caption": "x"} for n in range(3)]
    put = json.dumps({"images": images, "annotations": rows}).encode()
    server.put("/nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json", put)
    jpeg = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    for n in range(3):
        server.put(f"/s3.example/val/{n}.jpg", jpeg.getvalue())
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LAVIS_EXT_MIRROR": server.base}
        environment["LAVIS_EXT_CACHE_ROOT"] = str(disk.path / "root")

        def run(*words: str) -> int:
            command = [sys.executable, "-c", VERBS, *words]
            return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60).returncode

        assert run("prepare", "nocaps", "--split", "val") == 0
        disk.read_only()
        try:
            assert run("prepare", "nocaps", "--split", "val") == 0
            assert run("verify", "nocaps") == 0
        finally:
            disk.read_only(False)


# Bookkeeping that is damaged is a cache that is made again


GARBAGE = [b"", b"[" * 100_000, b'{"format": 2, "a": 1}', b'"\xff"\n1\nx']


@pytest.mark.fault("H35")
@pytest.mark.parametrize("more", [{}, {"max_samples": 4}, {"no_unpack": True}])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_bookkeeping_that_cannot_be_read(garbage: bytes, more: dict[str, Any], toy: Family) -> None:
    toy.prepare(**more)
    before, cards = here(toy), toy.cards()
    found = (path for path in (toy.root / "toy/.lavis_ext").rglob("*") if path.name != "ledger.jsonl")  # the engine's
    files = [path for path in found if path.is_file()]
    assert len(files) > 4
    for path in files:
        path.write_bytes(garbage)
        status(["toy"], toy.options(), cards)
        assert toy.prepare(**more).exit_code == 0 and here(toy) == before, path
        assert verify(["toy"], options=toy.options(), cards=cards).exit_code == 0, path


@pytest.mark.fault("H35")
@pytest.mark.parametrize("value", [None, 5, "x", {"a": [[1]]}])
def test_a_record_with_a_value_of_another_type(value: Any, toy: Family) -> None:
    toy.prepare()
    before, cards = here(toy), toy.cards()
    for path in (toy.root / "toy/.lavis_ext/records").rglob("train*.json"):
        for key in json.loads(path.read_text()):
            path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
            status(["toy"], toy.options(), cards)
            assert verify(["toy"], options=toy.options(), cards=cards).exit_code in (0, 5), (path.name, key)
            assert toy.prepare().exit_code == 0 and here(toy) == before, (path.name, key)
            path.unlink()
            assert toy.prepare().exit_code == 0
