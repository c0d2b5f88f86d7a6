"""One record says what is true: no new version is found in old bytes, nothing is verified that was not compared."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.cards import Artifact, Cards
from lavis_ext.fetch.session import Flusher
from lavis_ext.prepare import prepare, status, verify
from lavis_ext.prepare.legacy import old_record
from lavis_ext.prepare.records import MemberTable
from tests.support.server import Fault, Server
from tests.support.toyfamily import HOST, Family, pictures, rows_of, tree, zip_bytes


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    """A family of two archives."""
    return Family(server, tmp_path / "root")


def changed(cards: Cards, name: str, **more: Any) -> Cards:
    """The cards with one artifact declared anew."""
    card = cards.families["toy"]
    artifact = replace(card.artifacts[name], **more)
    return replace(cards, families={"toy": replace(card, artifacts={**card.artifacts, name: artifact})})


def named(toy: Family) -> Cards:
    """The cards with artifacts that may be asked for by `toy/NAME`."""
    card = toy.cards().families["toy"]
    artifacts = {name: replace(artifact, family="toy") for name, artifact in card.artifacts.items()}
    return Cards({"toy": replace(card, artifacts=artifacts)})


def splits(toy: Family, cards: Cards) -> list[str]:
    return [state.state for state in status(["toy"], toy.options(), cards)]


def findings(toy: Family, cards: Cards) -> list[str]:
    return [finding.title for finding in verify(["toy"], options=toy.options(), cards=cards).findings]


def here(toy: Family) -> dict[str, bytes]:
    """Files in place, without what was set aside."""
    return {name: data for name, data in tree(toy.root / "toy").items() if ".bad-" not in name}


def aside(toy: Family) -> set[bytes]:
    return {data for name, data in tree(toy.root / "toy").items() if ".bad-" in name}


def other_pictures(toy: Family) -> dict[str, bytes]:
    """The same names and sizes, other bytes."""
    return {name: bytes(255 - byte for byte in data) for name, data in toy.train.items()}


# a. A new version is never found in old bytes


@pytest.mark.fault("H01")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_new_hash_is_not_found_in_old_members(server: Server, tmp_path: Path, kind: str) -> None:
    toy = Family(server, tmp_path / "root", kind=kind)
    toy.prepare()
    cards = changed(toy.cards(), "train", sha256="ab" * 32)
    assert splits(toy, cards) == ["present", "verified"] and findings(toy, cards) == ["toy/train"]
    sent = server.sent()
    assert toy.prepare(cards).exit_code == 5 and server.sent() - sent >= len(toy.blobs[f"train.{kind}"])
    assert set(toy.train) <= {name.removeprefix("images/") for name in here(toy)}, "nothing of the user's is lost"


@pytest.mark.fault("H01")
def test_a_new_version_of_equal_size_replaces_the_old_one(toy: Family) -> None:
    toy.prepare()
    new = other_pictures(toy)
    toy.archive("train", new)
    report = toy.prepare(toy.cards())
    assert report.exit_code == 0 and report.bytes_moved == len(toy.blobs["train.zip"])
    assert {name: here(toy)[f"images/{name}"] for name in new} == new and aside(toy) == set(toy.train.values())
    assert splits(toy, toy.cards()) == ["verified", "verified"] and not findings(toy, toy.cards())


@pytest.mark.fault("H01")
@pytest.mark.parametrize("size", [False, True])
def test_two_zips_of_equal_size_under_two_addresses(server: Server, tmp_path: Path, size: bool) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    figures = {"size": len(toy.blobs["train.zip"])} if size else {}
    old = changed(toy.cards(), "train", **figures)
    toy.prepare(old)
    new = other_pictures(toy)
    toy.server.put(f"/{HOST}/v2/train.zip", zip_bytes(new))
    cards = changed(old, "train", url=f"https://{HOST}/v2/train.zip")
    report = toy.prepare(cards)
    assert report.exit_code == 0 and report.bytes_moved == len(toy.blobs["train.zip"])
    assert {name: here(toy)[f"images/{name}"] for name in new} == new and aside(toy) == set(toy.train.values())
    assert toy.prepare(cards).bytes_moved == 0


@pytest.mark.fault("H01")
@pytest.mark.parametrize("size", [False, True])
def test_a_file_of_another_address_with_nothing_else_declared(server: Server, tmp_path: Path, size: bool) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    figures = {"size": len(toy.blobs["val.json"])} if size else {}
    old = changed(toy.cards(), "val_rows", **figures)
    toy.prepare(old)
    rows = rows_of(sorted(toy.val, reverse=True), captions=2)
    toy.server.put(f"/{HOST}/v2/val.json", rows)
    cards = changed(old, "val_rows", url=f"https://{HOST}/v2/val.json")
    report = toy.prepare(cards)
    assert report.exit_code == 0 and report.bytes_moved == len(rows)
    assert here(toy)["annotations/val.json"] == rows and aside(toy) == {toy.blobs["val.json"]}
    assert toy.prepare(cards).bytes_moved == 0


@pytest.mark.fault("H01")
def test_a_packed_or_kept_archive_of_another_address(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    toy.prepare(no_unpack=True)
    toy.server.put(f"/{HOST}/v2/train.zip", zip_bytes(other_pictures(toy)))
    cards = changed(toy.cards(), "train", url=f"https://{HOST}/v2/train.zip")
    assert toy.prepare(cards, no_unpack=True).exit_code == 0
    assert here(toy)["images/train.zip"] == zip_bytes(other_pictures(toy))
    assert aside(toy) == {toy.blobs["train.zip"]}


@pytest.mark.fault("H01")
def test_single_members_of_an_archive_that_was_replaced_by_one_of_equal_size(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 30, 5000), declared=False)
    toy.prepare(max_samples=3, splits=["train"])
    new = other_pictures(toy)
    toy.archive("train", new)
    assert toy.prepare(max_samples=5, splits=["train"]).exit_code == 0
    wanted = {f"images/{name}": new[name] for name in sorted(new)[:5]}
    assert {name: data for name, data in here(toy).items() if name.startswith("images/")} == wanted


@pytest.mark.fault("H01")
def test_what_was_verified_is_not_mended_from_another_version(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 30, 5000))
    cards = toy.cards()
    toy.prepare(cards)
    (toy.images / "train/000003.jpg").unlink()
    toy.archive("train", other_pictures(toy))
    report = toy.prepare(cards)
    assert report.exit_code == 5 and not aside(toy)
    kept = {f"images/{name}": data for name, data in toy.train.items() if name != "train/000003.jpg"}
    assert {name: here(toy).get(name) for name in kept} == kept


@pytest.mark.fault("H01")
def test_a_part_of_another_version_of_equal_size_is_not_continued(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    rows = rows_of(sorted(toy.train, reverse=True), captions=9)
    toy.offer("train.json", rows_of(sorted(toy.train), captions=9))
    old = changed(toy.cards(), "train_rows", size=len(rows))
    toy.server.script(toy.path("train.json"), Fault(cut_at=2_000, times=9))
    assert toy.prepare(old, policy=replace(toy.policy, retries=0, checkpoint_bytes=100)).exit_code == 4
    toy.server.put(f"/{HOST}/v2/train.json", rows)
    cards = changed(old, "train_rows", url=f"https://{HOST}/v2/train.json")
    assert toy.prepare(cards).exit_code == 0 and here(toy)["annotations/train.json"] == rows


def test_a_digest_that_a_card_learns_later_verifies_what_is_there(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    toy.prepare()
    assert splits(toy, toy.cards()) == ["present", "present"]
    cards = replace(toy, declared=True).cards()
    assert splits(toy, cards) == ["verified", "verified"] and toy.prepare(cards).bytes_moved == 0


# b. Nothing is verified that was compared with nothing, or that is not there


@pytest.mark.fault("H06")
def test_nothing_declared_is_present_and_not_verified(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False, kind="tar")
    cards, names = named(toy), ("toy", "toy/train_rows")
    report = toy.prepare(cards, names)
    assert [one.verified for one in report.outcomes] == ["none"] * 4 and "4 unverified" in report.line()
    assert {state.state for state in report.splits} == {"present"}
    states = status(names, toy.options(), cards)
    assert {state.state for state in states} == {"present"} and not any(state.verified for state in states)
    again = toy.prepare(cards, names)
    assert again.bytes_moved == 0 and not any("verified" in line.split(", ")[-1] for line in again.lines()[:3])
    assert all(item.state == "present" for item in again.plan.items)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


HARMS: dict[str, Callable[[Family], object]] = {
    "emptied": lambda toy: (toy.root / "toy/annotations/train.json").write_bytes(b""),
    "deleted": lambda toy: (toy.root / "toy/annotations/train.json").unlink(),
    "a member lost": lambda toy: (toy.images / "train/000003.jpg").unlink(),
    "all members lost": lambda toy: shutil.rmtree(toy.images / "train"),
    "a member emptied": lambda toy: (toy.images / "train/000003.jpg").write_bytes(b""),
    "a folder emptied": lambda toy: empty(toy.images / "train"),
}


@pytest.mark.fault("H06")
@pytest.mark.parametrize("harm", list(HARMS))
def test_what_is_gone_is_not_verified(toy: Family, harm: str) -> None:
    names, cards = ["toy", "toy/train", "toy/train_rows"], named(toy)
    toy.prepare(cards)
    HARMS[harm](toy)
    states = {(state.dataset, state.split): state for state in status(names, toy.options(), cards)}
    hurt = "toy/train_rows" if harm in ("emptied", "deleted") else "toy/train"
    for key in (("toy_caption", "train"), (hurt, "")):
        assert not states[key].verified and "verified" not in states[key].line()
    assert states["toy_caption", "val"].state == "verified"
    assert verify(["toy"], options=toy.options(), cards=cards).exit_code == 5
    assert toy.prepare(cards).exit_code == 0 and splits(toy, cards) == ["verified", "verified"]


# c. What a user has is never deleted


@pytest.mark.fault("H05")
def test_a_users_archive_stays_after_an_interrupted_run(toy: Family) -> None:
    toy.server.script(toy.path("train.zip"), Fault(cut_at=10_000))
    assert toy.prepare(policy=replace(toy.policy, retries=0)).exit_code == 4
    toy.server.script(toy.path("train.zip"))
    mine = toy.images / "train.zip"
    mine.write_bytes(toy.blobs["train.zip"])
    assert toy.prepare().exit_code == 0
    assert mine.read_bytes() == toy.blobs["train.zip"] and not (toy.images / "val.zip").exists()


def test_our_own_archive_goes_after_an_interrupted_run(toy: Family) -> None:
    class Interrupting:
        def begin(self, label: str, total: int | None) -> None:
            pass

        def advance(self, label: str, count: int) -> None:
            if label.endswith("unpacked"):
                raise KeyboardInterrupt

        def end(self, label: str, outcome: str) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        prepare(["toy"], toy.options(), Interrupting(), cards=toy.cards())
    assert (toy.images / "train.zip").exists()
    assert toy.prepare().exit_code == 0 and not list(toy.images.glob("*.zip"))


def test_our_own_archive_goes_where_a_run_ended_right_after_its_rename(
    toy: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Flusher, folder: Path) -> None:
        if list(folder.glob("*.zip")):
            raise KeyboardInterrupt

    policy = replace(toy.policy, fsync=True, jobs=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Flusher, "flush", stop)
        toy.prepare(policy=policy)
    assert list(toy.images.glob("*.zip"))
    assert toy.prepare().exit_code == 0 and not list(toy.images.glob("*.zip"))


@pytest.mark.fault("H05")
def test_an_archive_that_the_user_put_in_the_place_of_ours_stays(toy: Family) -> None:
    toy.prepare(keep_archives=True)
    path = toy.images / "train.zip"
    mine = toy.root / "mine.zip"
    shutil.copy(path, mine)
    mine.replace(path)
    shutil.rmtree(toy.images / "train")
    assert toy.prepare().exit_code == 0 and path.is_file()


# e. prepare and verify agree


def agree(toy: Family) -> None:
    """After `prepare` nothing moves again, `verify` finds nothing, and the disk is as it should be."""
    assert toy.prepare().exit_code == 0
    assert toy.prepare().bytes_moved == 0
    report = verify(["toy"], options=toy.options(), cards=toy.cards())
    assert report.exit_code == 0 and not report.findings and not report.unknown
    assert splits(toy, toy.cards()) == ["verified", "verified"]


NAMES = ["train/a\u2028b.jpg", "train/c\u0085d.jpg", "train/" + "n" * 251 + ".jpg", "train/" + "é" * 125 + "x.jpg"]


@pytest.mark.fault("H23")
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_unusual_names_agree(server: Server, tmp_path: Path, kind: str) -> None:
    train = {**pictures("train", 5), **{name: name.encode() * 9 for name in NAMES}}
    toy = Family(server, tmp_path / "root", kind=kind, train=train)
    agree(toy)
    (toy.images / NAMES[0]).unlink()
    (toy.images / NAMES[3]).write_bytes(b"x")
    assert splits(toy, toy.cards())[0] == "partial"
    assert len(findings(toy, toy.cards())) == 2
    agree(toy)


def test_an_archive_and_a_file_with_the_longest_names_agree(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    name = "n" * 251 + ".zip"
    toy.offer(name, toy.blobs["train.zip"])
    rows = "r" * 230 + ".json"
    cards = changed(toy.cards(), "train", url=f"https://{HOST}/{name}")
    cards = changed(cards, "train_rows", storage=f"toy/annotations/{rows}")
    assert toy.prepare(cards).exit_code == 0 and toy.prepare(cards).bytes_moved == 0
    assert verify(["toy"], options=toy.options(), cards=cards).exit_code == 0 and splits(toy, cards)[0] == "verified"


def test_a_deleted_record_agrees(toy: Family) -> None:
    toy.prepare()
    for path in (toy.root / "toy/.lavis_ext/records").rglob("*.json"):
        path.unlink()
    assert len(verify(["toy"], options=toy.options(), cards=toy.cards()).unknown) == 4
    assert splits(toy, toy.cards()) == ["present", "present"]
    sent = toy.server.sent()
    agree(toy)
    assert toy.server.sent() - sent < 100, "what lies there is compared, not fetched again"


@pytest.mark.parametrize("what", ["*.members", "*.json"])
def test_torn_records_agree(toy: Family, what: str) -> None:
    toy.prepare()
    for path in (toy.root / "toy/.lavis_ext/records").rglob(what):
        path.write_bytes(path.read_bytes()[:-30])
    agree(toy)


def test_a_copy_on_another_disk_agrees(toy: Family, tmp_path: Path) -> None:
    toy.prepare()
    shutil.copytree(toy.root, tmp_path / "copy", copy_function=shutil.copyfile)
    moved = replace(toy, root=tmp_path / "copy")
    for path in moved.root.rglob("*"):
        os.utime(path, ns=(1, 1))
    sent = toy.server.sent()
    assert verify(["toy"], options=moved.options(), cards=toy.cards()).exit_code == 0
    agree(moved)
    assert toy.server.sent() == sent


@pytest.mark.fault("H06")
def test_an_edited_file_with_nothing_declared_agrees(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    toy.prepare()
    path = toy.root / "toy/annotations/val.json"
    path.write_bytes(path.read_bytes().replace(b"about", b"ABOUT"))
    assert findings(toy, toy.cards()) == ["toy/val_rows"]
    assert toy.prepare().exit_code == 0 and path.read_bytes() == toy.blobs["val.json"]
    assert not findings(toy, toy.cards()) and len(aside(toy)) == 1


# Records of older versions


def as_stamps(toy: Family, cards: Cards) -> None:
    """The bookkeeping as the version before wrote it: stamps, listings of members, journals."""
    home = toy.root / "toy/.lavis_ext"
    for artifact in cards.families["toy"].artifacts.values():
        path = home / "records" / f"{Path(artifact.file).relative_to('toy')}.json"
        record = json.loads(path.read_text())
        write_stamp(home, artifact, record)
        if record["table"]:
            write_listing(home, artifact, record, (toy.images, toy.train if artifact.name == "train" else toy.val))
    shutil.rmtree(home / "records")


def write_stamp(home: Path, artifact: Artifact, record: dict[str, Any]) -> None:
    kept = ("artifact", "file", "size", "sha256", "equivalence", "state", "files", "bytes", "folders", "wanted", "when")
    stamp = {key: record[key] for key in kept} | {"format": 1, "version": "0", "url": artifact.url}
    stamp |= {"source": record["fetched_from"], "declared": artifact.sha256 or f"{artifact.url} {artifact.size}"}
    stamp["verified"] = {"crc": "crc32", "none": ""}.get(record["verified"], record["verified"])
    if stamp["verified"] == "crc32":
        stamp["sha256"] = artifact.sha256
    path = home / "stamps" / f"{Path(artifact.file).relative_to('toy')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stamp))


def write_listing(home: Path, artifact: Artifact, record: dict[str, Any], found: tuple[Path, dict[str, bytes]]) -> None:
    folder, files = found
    with zipfile.ZipFile(BytesIO(zip_bytes(files))) as archive:
        infos = archive.infolist()
    body = "".join(f"{i.filename}\t{i.file_size}\t{i.CRC:x}\t{i.header_offset}\t{i.compress_size}\t0\n" for i in infos)
    about = {"archive_bytes": len(zip_bytes(files)), "kind": "zip", "equivalence": "byte_exact", "source": "x"}
    inside = Path(artifact.file).relative_to("toy")
    for kind, suffix in (("members", ".tsv"), ("journal", ".log")):
        (home / kind / inside).parent.mkdir(parents=True, exist_ok=True)
        if kind == "members":
            text = json.dumps({**about, "members": len(infos)}) + "\n" + body
        else:
            held = [n for n, info in enumerate(infos) if (folder / info.filename).is_file()]
            head = {"inventory": f"{len(infos)}-{zlib.crc32(body.encode()):08x}", "boot": ""}
            text = "\n".join([json.dumps(head), *map(str, held), ""])
        if kind == "members" or record["state"] == "partial":
            (home / kind / f"{inside}{suffix}").write_text(text)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("more", [{}, {"max_samples": 4}, {"no_unpack": True}])
def test_stamps_of_the_version_before_are_converted_without_a_byte(
    server: Server, tmp_path: Path, declared: bool, more: dict[str, Any]
) -> None:
    toy = Family(server, tmp_path / "root", declared=declared)
    cards = toy.cards()
    toy.prepare(cards, **more)
    before = splits(toy, cards)
    as_stamps(toy, cards)
    files = here(toy)
    assert splits(toy, cards) == before and not findings(toy, cards)
    sent, asked = server.sent(), len(server.log)
    report = toy.prepare(cards, **more)
    assert report.exit_code == 0 and report.bytes_moved == 0 and server.sent() == sent
    assert {seen.path for seen in server.log[asked:]} <= {"/manifest.json"}
    home = toy.root / "toy/.lavis_ext"
    assert not [path for kind in ("stamps", "members", "journal") for path in (home / kind).rglob("*.*")]
    assert len(list((home / "records").rglob("*.json"))) == 4
    assert here(toy) == files and splits(toy, cards) == before and not findings(toy, cards)
    assert verify(["toy"], options=toy.options(), cards=cards).files == len(files)


@pytest.mark.parametrize(("verified", "kept"), [("sha256", True), ("crc32", False)])
def test_a_stamp_keeps_a_digest_that_was_compared_and_no_other(toy: Family, verified: str, kept: bool) -> None:
    """Where single members were fetched, format 1 wrote down the digest that the card declares."""
    toy.prepare()
    cards = toy.cards()
    as_stamps(toy, cards)
    artifact = cards.families["toy"].artifacts["train"]
    path = toy.root / "toy/.lavis_ext/stamps/images/train.zip.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verified": verified, "sha256": artifact.sha256}))
    record = old_record(toy.root, artifact)
    assert record is not None and record.sha256 == (artifact.sha256 if kept else None)


def test_a_stamp_of_another_version_is_no_record(toy: Family) -> None:
    toy.prepare()
    as_stamps(toy, toy.cards())
    cards = changed(toy.cards(), "train", sha256="ab" * 32)
    assert splits(toy, cards) == ["present", "verified"]
    assert toy.prepare(cards).exit_code == 5


def test_sha256_of_the_toy_is_what_the_card_says(toy: Family) -> None:
    toy.prepare()
    record = json.loads((toy.root / "toy/.lavis_ext/records/images/train.zip.json").read_text())
    digest = sha256(toy.blobs["train.zip"]).hexdigest()
    assert (record["verified"], record["against"], record["sha256"]) == ("sha256", "the card", digest)
    assert record["origin"]["sha256"] == digest and record["files"] == len(toy.train)


def test_ranges_do_not_claim_the_digest_of_the_whole(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 30, 5000))
    toy.prepare(max_samples=3, splits=["train"])
    record = json.loads((toy.root / "toy/.lavis_ext/records/images/train.zip.json").read_text())
    assert (record["verified"], record["sha256"], record["state"]) == ("crc", None, "partial")


# d. What is not asked for is not read


@contextmanager
def called() -> Iterator[list[str]]:
    """The names of all functions that this thread calls."""
    seen: list[str] = []
    sys.setprofile(lambda frame, event, _: seen.append(frame.f_code.co_name) if event == "call" else None)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("verb", ["prepare", "status"])
def test_a_second_look_does_not_grow_with_the_members(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Ten times the pictures and captions: the same calls and files, since no table, folder or list is opened."""
    calls = []
    for count in (40, 400):
        toy = Family(server, tmp_path / str(count), train=pictures("train", count, 10))
        toy.prepare()
        long_ago = 1_000_000_000_000_000_000
        for path in toy.root.rglob("*"):
            os.utime(path, ns=(long_ago, long_ago))
        toy.prepare()  # notes the new times, and what it counts, which is no longer fresh
        with monkeypatch.context() as patch, called() as seen:
            patch.setattr(MemberTable, "read", lambda *_: pytest.fail("a table of members was opened"))
            states = toy.prepare().splits if verb == "prepare" else status(["toy"], toy.options(), toy.cards())
        assert [state.state for state in states] == ["verified", "verified"] and states[0].present == count
        assert "open_rows" not in seen and "list_tree" not in seen
        calls.append(len(seen))
    assert calls[1] <= 1.1 * calls[0]


def test_a_count_is_not_reused_after_a_change(toy: Family) -> None:
    toy.prepare()
    for path in toy.root.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    toy.prepare()
    (toy.images / "train/extra.jpg").write_bytes(b"mine")
    (toy.images / "train/000001.jpg").unlink()
    state, _ = status(["toy"], toy.options(), toy.cards())
    assert (state.present, state.expected, state.names) == (11, 12, ("train/000001.jpg",))
    os.utime(toy.images / "train", ns=(10**18 + 1, 10**18 + 1))
    assert status(["toy"], toy.options(splits=["val"]), toy.cards())[0].state == "verified"  # which notes the new times
    assert status(["toy"], toy.options(), toy.cards(), lost=False)[0].present == 11
    counts = toy.root / "toy/.lavis_ext/counts.json"
    for text in ("{", "[]", '{"format": 1, "splits": {"toy_caption/train": [1]}, "folders": {}}'):
        counts.write_text(text)
        assert status(["toy"], toy.options(), toy.cards())[0].present == 11
