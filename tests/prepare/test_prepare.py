"""From a card to recorded files, and each fault on the way: right bytes or an error, then a run that repairs it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.config.schema import AnnotationConfig
from lavis_ext.common.errors import DiskError, NetworkError, OwnedError
from lavis_ext.fetch.lock import Ownership
from lavis_ext.prepare import PrepareOptions, Report, plan, prepare
from lavis_ext.prepare.records import read_record
from tests.support.fetching import FAST
from tests.support.server import Fault, Server
from tests.support.toyfamily import HOST, Family, pictures, rows_of, tar_bytes, tree, zip_bytes

KINDS = ["zip", "tar", "tar.gz"]


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    """A family of two archives."""
    return Family(server, tmp_path / "root")


def complete(family: Family) -> bool:
    files = {n: d for n, d in tree(family.images).items() if ".bad-" not in n}
    return files == {**family.train, **family.val}


def codes(report: Report) -> list[int]:
    return [error.exit_code for error in report.failures]


@pytest.mark.parametrize("kind", KINDS)
def test_u05_prepared_once_the_second_run_moves_nothing(server: Server, tmp_path: Path, kind: str) -> None:
    toy = Family(server, tmp_path / "root", kind=kind)
    report = toy.prepare()
    assert report.exit_code == 0 and report.count("downloaded") == 4 and complete(toy)
    assert report.bytes_moved == server.sent() == sum(map(len, toy.blobs.values()))
    asked, begun = len(server.log), time.perf_counter()
    again = toy.prepare()
    assert time.perf_counter() - begun < 2
    assert again.exit_code == 0 and again.count("reused") == 4 and again.bytes_moved == 0
    assert {seen.path for seen in server.log[asked:]} <= {"/manifest.json"}
    assert again.line() == "planned 4 · downloaded 0 · reused 4 · failed 0 · bytes 0 B · 0 unverified · exit 0"


def test_archives_go_unless_they_are_to_be_kept_or_were_there_before(toy: Family) -> None:
    (toy.images).mkdir(parents=True)
    (toy.images / "train.zip").write_bytes(toy.blobs["train.zip"])
    report = toy.prepare()
    assert (toy.images / "train.zip").is_file() and not (toy.images / "val.zip").exists()
    assert toy.server.sent(toy.path("train.zip")) == 0 and report.exit_code == 0
    assert any("stays" in line for line in report.lines())
    shutil.rmtree(toy.root)
    toy.prepare(keep_archives=True)
    assert (toy.images / "train.zip").is_file() and (toy.images / "val.zip").is_file()


def test_no_unpack_leaves_archives_and_still_counts_pictures(toy: Family) -> None:
    report = toy.prepare(no_unpack=True)
    assert sorted(tree(toy.images)) == ["train.zip", "val.zip"]
    assert [(s.expected, s.present) for s in report.splits] == [(12, 12), (8, 8)]
    assert toy.prepare(no_unpack=True).bytes_moved == 0
    sent = toy.server.sent()
    assert toy.prepare().exit_code == 0
    assert toy.server.sent() == sent and set(toy.train) <= set(tree(toy.images))


def test_split_val_fetches_only_what_val_needs(toy: Family) -> None:
    report = toy.prepare(splits=["val"])
    assert report.exit_code == 0 and tree(toy.images) == toy.val
    assert {s.path for s in toy.server.log} == {"/manifest.json", toy.path("val.zip"), toy.path("val.json")}
    toy.prepare()
    assert complete(toy) and toy.server.sent(toy.path("val.zip")) == len(toy.blobs["val.zip"])


def test_one_failure_does_not_stop_the_others_and_the_line_is_true(toy: Family) -> None:
    toy.server.script(toy.path("train.zip"), Fault(status=403))
    report = toy.prepare()
    assert report.exit_code == 7 and tree(toy.images) == toy.val
    assert "downloaded 3 · reused 0 · failed 1" in report.line()
    shown = json.loads(json.dumps(report.as_dict()))
    assert shown["exit_code"] == 7 and [o["outcome"] for o in shown["outcomes"]].count("failed") == 1
    toy.server.script(toy.path("train.zip"))
    assert toy.prepare().exit_code == 0 and complete(toy)


# Each fault: what is done to the world, the exit code of the first run, and whether the next healthy run ends complete.


def refused(**entries: object) -> Callable[[Family], None]:
    def build(toy: Family) -> None:
        files = {**toy.train, "evil": b"x"}
        toy.offer("train.zip", zip_bytes(files, **entries))

    return build


def traversal(toy: Family) -> None:
    toy.offer("train.zip", zip_bytes({**toy.train, "../../../evil.txt": b"x"}))


def absolute(toy: Family) -> None:
    toy.offer("train.zip", zip_bytes({**toy.train, str(toy.root.parent / "evil.txt"): b"x"}))


def bomb(toy: Family) -> None:
    toy.offer("train.zip", zip_bytes({"train/zeros": bytes(200 << 20)}, zipfile.ZIP_DEFLATED))


def twice(toy: Family) -> None:
    toy.offer("train.zip", zip_bytes({**toy.train, "TRAIN/000001.JPG": b"x"}))


def cut_zip(toy: Family) -> None:
    toy.offer("train.zip", toy.blobs["train.zip"][:20_000])


FAULTS = {
    "A01": (traversal, 10),
    "A02": (absolute, 10),
    "A03": (refused(external_attr=0o120777 << 16), 10),
    "A05": (refused(external_attr=0o060666 << 16), 10),
    "A06": (bomb, 10),
    "A08": (cut_zip, 5),
    "A10": (twice, 10),
    "A12": (refused(flag_bits=1), 10),
}


@pytest.mark.parametrize("name", FAULTS)
def test_archive_faults(server: Server, tmp_path: Path, name: str) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    healthy = toy.blobs["train.zip"]
    build, code = FAULTS[name]
    build(toy)
    if name == "A12":  # writestr resets the flag
        data = bytearray(toy.blobs["train.zip"])
        data[data.index(b"PK\1\2") + 8] |= 1
        toy.offer("train.zip", bytes(data))
    report = toy.prepare()
    assert report.exit_code == code, report.lines()
    assert not list(tmp_path.rglob("evil*")) and not (toy.images / "train").exists()
    assert all((toy.root / "toy" / name).exists() for name in ("annotations", "images/val"))
    for archive in toy.images.glob("train.zip"):
        archive.unlink()
    toy.offer("train.zip", healthy)
    assert toy.prepare().exit_code == 0 and complete(toy)


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a04_links_in_tars(server: Server, tmp_path: Path, kind: str, type_: bytes) -> None:
    toy = Family(server, tmp_path / "root", kind=kind, declared=False)
    linked = tar_bytes({"train/link": b""}, "w:gz" if "gz" in kind else "w", type=type_, linkname="../../../../evil")
    toy.offer(f"train.{kind}", linked)
    report = toy.prepare(splits=["train"])
    assert report.exit_code == 10 and not list(tmp_path.rglob("evil*")) and not list(toy.images.rglob("link"))


def test_u02_an_archive_that_is_there_is_unpacked_offline(toy: Family) -> None:
    toy.prepare(no_unpack=True)
    asked = len(toy.server.log)
    assert toy.prepare(offline=True).exit_code == 0 and complete(toy)
    assert len(toy.server.log) == asked


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a09_a_tar_cut_at_a_boundary_is_not_taken_for_whole(server: Server, tmp_path: Path, kind: str) -> None:
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


def test_a08_a_damaged_archive_is_set_aside_and_fetched_once_more(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    whole = toy.blobs["train.zip"]
    server.put(toy.path("train.zip"), whole[:20_000])
    server.script(toy.path("train.zip"), Fault(times=1, then=lambda: server.put(toy.path("train.zip"), whole)))
    report = toy.prepare()
    assert report.exit_code == 0 and complete_but_bad(toy)
    assert len(list(toy.images.glob("train.zip.bad-*"))) == 1


def complete_but_bad(toy: Family) -> bool:
    return {n: d for n, d in tree(toy.images).items() if ".bad-" not in n} == {**toy.train, **toy.val}


def test_f01_too_little_space_is_reported_before_the_first_byte(toy: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(toy.root.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=50_000))
    with pytest.raises(DiskError) as caught:
        toy.prepare()
    shown = str(caught.value)
    assert (
        caught.value.exit_code == 6 and "50,000 (50.0 kB)" in shown and "--max-samples" in shown and "needed" in shown
    )
    assert toy.server.sent() == 0 and not toy.root.exists()


def test_f05_a_root_that_cannot_be_written_is_reported_before_the_network(toy: Family) -> None:
    toy.root.write_text("a file")
    with pytest.raises(DiskError):
        toy.prepare()
    with pytest.raises(DiskError):
        toy.prepare(cache_root=toy.root / "below")
    assert toy.server.sent() == 0


def test_f12_one_deleted_file_is_repaired_alone(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 60, 8000))
    toy.prepare()
    (toy.images / "train/000007.jpg").unlink()
    before = {p: p.stat().st_mtime_ns for p in toy.images.rglob("*.jpg")}
    sent = server.sent()
    report = toy.prepare()
    assert report.exit_code == 0 and complete(toy) and report.count("reused") == 3
    assert server.sent() - sent < 100_000 < len(toy.blobs["train.zip"])
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert toy.prepare().bytes_moved == 0


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_f12_in_a_tar(server: Server, tmp_path: Path, kind: str) -> None:
    toy = Family(server, tmp_path / "root", kind=kind)
    toy.prepare()
    (toy.images / "train/000007.jpg").unlink()
    assert toy.prepare().exit_code == 0 and complete(toy)


def test_f13_a_root_behind_a_link_works_and_links_stay(server: Server, tmp_path: Path) -> None:
    (tmp_path / "disk/images").mkdir(parents=True)
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/toy").mkdir()
    (tmp_path / "disk/toy/images").symlink_to(tmp_path / "disk/images")
    toy = Family(server, tmp_path / "root")
    assert toy.prepare().exit_code == 0 and toy.images.is_symlink()
    assert toy.prepare().bytes_moved == 0 and complete(toy)


def test_r13_without_the_bookkeeping_everything_is_recognised(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 60, 8000))
    toy.prepare()
    for folder in list(toy.root.rglob(".lavis_ext")):
        shutil.rmtree(folder)
    inodes = {p: p.stat().st_ino for p in toy.images.rglob("*.jpg")}
    sent = server.sent()
    report = toy.prepare()
    assert report.exit_code == 0 and complete(toy)
    assert {p: p.stat().st_ino for p in inodes} == inodes
    assert server.sent() - sent < len(toy.blobs["train.zip"]) / 2
    assert toy.prepare().bytes_moved == 0


def test_r14_a_copied_root_is_accepted_after_one_listing(toy: Family, tmp_path: Path) -> None:
    toy.prepare()
    shutil.copytree(toy.root, tmp_path / "copy", copy_function=shutil.copy)
    moved = replace(toy, root=tmp_path / "copy")
    toy.server.log.clear()
    assert moved.prepare().bytes_moved == 0 and complete(moved)
    record = read_record(moved.root, moved.artifact("train.zip", "zip"))
    assert record is not None and record.folders["train"] == (moved.images / "train").stat().st_mtime_ns


def snapshot(root: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in [root, *root.rglob("*")] if p.exists()}


@pytest.mark.parametrize("more", [{}, {"max_samples": 2}, {"splits": ["val"]}])
def test_u01_a_dry_run_opens_no_socket_and_writes_nothing(
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


def test_u02_offline(toy: Family) -> None:
    missing = toy.prepare(offline=True)
    assert missing.exit_code == 4 and codes(missing) == [4] * 4
    assert all(name in "\n".join(missing.lines()) for name in ("train.zip", "val.zip", "train.json", "val.json"))
    assert toy.server.log == []
    toy.prepare()
    asked = len(toy.server.log)
    assert toy.prepare(offline=True).exit_code == 0 and len(toy.server.log) == asked
    (toy.images / "val/000001.jpg").unlink()
    assert toy.prepare(offline=True).exit_code == 4 and len(toy.server.log) == asked


def test_an_http_mirror_may_be_a_folder_too(toy: Family, tmp_path: Path) -> None:
    for name, data in toy.blobs.items():
        path = tmp_path / "mirror" / HOST / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert toy.prepare(mirror=str(tmp_path / "mirror"), max_samples=2).exit_code == 0
    assert sorted(tree(toy.images)) == ["train/000000.jpg", "train/000001.jpg", "val/000000.jpg"]
    assert toy.prepare(mirror=str(tmp_path / "mirror")).exit_code == 0 and complete(toy)
    assert toy.server.log == []


def test_what_the_mirror_lacks_is_an_error_that_names_it(toy: Family) -> None:
    cards = toy.cards()
    del toy.server.objects[toy.path("val.zip")]
    report = toy.prepare(cards)
    assert report.exit_code == 4 and "val.zip" in "\n".join(report.lines())


def test_pictures_that_annotations_name_and_nobody_has(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    toy.offer("val.json", rows_of([*sorted(toy.val), "val/lost.jpg"]))
    report = toy.prepare()
    assert report.exit_code == 5 and report.splits[1].missing == 1
    table = (toy.root / "toy/.lavis_ext/missing.tsv").read_text().splitlines()
    assert table[1:] == ["toy_caption\tval\tval/lost.jpg"]
    toy.offer("val.json", rows_of(sorted(toy.val)))
    assert toy.prepare().exit_code == 0
    assert not (toy.root / "toy/.lavis_ext/missing.tsv").exists()


def test_an_archive_that_holds_the_list_too_and_lacks_a_picture_is_damaged(server: Server, tmp_path: Path) -> None:
    """As MiniGPT-4's: the list does not say where pictures come from, and the archive does."""
    toy = Family(server, tmp_path / "root")
    toy.archive("train", {**toy.train, "train/rows.json": rows_of([*sorted(toy.train), "train/lost.jpg"])})
    cards = toy.cards()
    dataset = cards.dataset("toy_caption")
    dataset.build_info.annotations["train"] = AnnotationConfig(artifact=["train!train/rows.json"])
    report = toy.prepare(cards, splits=["train"])
    [shown] = map(str, report.failures)
    assert report.exit_code == 5 and "1 of 13 images are missing; run `lavis-ext prepare` again" in shown


@pytest.mark.parametrize(("threshold", "code"), [(0.95, 8), (0.8, 0)])
def test_a_family_that_may_be_partial_is_checked_against_its_threshold(
    server: Server, tmp_path: Path, threshold: float, code: int
) -> None:
    toy = Family(server, tmp_path / "root", threshold=threshold)
    toy.offer("val.json", rows_of([*sorted(toy.val), "val/lost.jpg"]))
    assert toy.prepare().exit_code == code


def test_annotations_that_cannot_be_read_are_an_integrity_error(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    toy.offer("val.json", b'[{"image": "val/000')
    report = toy.prepare()
    assert report.exit_code == 5 and "val.json" in "\n".join(report.lines())


# Subset mirrors


def subset(toy: Family) -> Family:
    """The same family as a mirror of its first pictures."""
    small = replace(toy, train=dict(list(toy.train.items())[:3]), val=dict(list(toy.val.items())[:2]))
    small.offer_manifest(list(small.blobs))
    return small


def test_a_subset_is_recorded_reported_and_replaced_by_the_real_thing(toy: Family) -> None:
    cards = toy.cards()
    with Server() as other:
        small = subset(replace(toy, server=other))
        report = small.prepare(cards)
        assert report.exit_code == 0 and report.subset and "subset" in report.line()
        assert all(split.state == "verified (subset)" for split in report.splits)
        assert "subset" in plan(["toy"], small.options(), cards).items[0].equivalence
        assert small.prepare(cards).bytes_moved == 0
        assert small.prepare(cards, offline=True).exit_code == 0
    real = toy.prepare(cards)
    assert real.exit_code == 0 and not real.subset
    assert any("replaces the subset" in line for line in real.lines())
    assert set(toy.train) | set(toy.val) <= set(tree(toy.images)) and len(real.splits) == 2
    assert real.splits[0].samples == 12
    with Server() as other:
        assert not replace(toy, server=other).prepare(cards, offline=True).subset


def test_members_of_a_subset_that_came_by_ranges_are_partial_in_the_plan(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    cards = toy.cards()
    with Server() as other:
        small = subset(replace(toy, server=other))
        before = plan(["toy"], small.options(max_samples=1), cards).items
        assert small.prepare(cards, max_samples=1).exit_code == 0
        after = plan(["toy"], small.options(max_samples=1), cards).items
    images = [(one.state, one.action) for one in after if one.request and one.request.images]
    assert {one.state for one in before} == {"missing"} and images == [("partial", "ranges")] * 2
    real = [one.state for one in plan(["toy"], toy.options(), cards).items if one.request and one.request.images]
    assert real == ["missing"] * 2, "bytes of a subset do not count where the real archive is offered"


def test_a_subset_without_declared_hashes_does_not_pass_for_the_real_file(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    cards = toy.cards()
    with Server() as other:
        subset(replace(toy, server=other)).prepare(cards)
    assert toy.prepare(cards).splits[0].samples == 12
    assert complete_but_bad(toy)


def test_a_data_set_of_which_a_subset_lists_nothing_is_skipped(toy: Family) -> None:
    cards = toy.cards()
    toy.offer_manifest(["train.json", "train.zip", "val.json", "val.zip"])
    other = replace(cards.families["toy"].datasets["toy_caption"]["default"], name="toy_vqa")
    rows = replace(cards.families["toy"].artifacts["val_rows"], name="vqa_rows", url=f"https://{HOST}/vqa.json")
    rows = replace(rows, storage="toy/annotations/vqa.json")
    build = replace(
        other.build_info, annotations={"val": type(other.build_info.annotations["val"])(artifact=["vqa_rows"])}
    )
    images = replace(build.images, artifacts={"val": ["val"]})
    vqa = replace(other, build_info=replace(build, images=images))
    card = cards.families["toy"]
    family = replace(
        card, artifacts={**card.artifacts, "vqa_rows": rows}, datasets={**card.datasets, "toy_vqa": {"default": vqa}}
    )
    cards = replace(cards, families={"toy": family})
    report = toy.prepare(cards)
    assert report.exit_code == 0 and any("toy_vqa: skipped" in line for line in report.lines())
    with pytest.raises(NetworkError, match="lists nothing"):
        toy.prepare(cards, names=("toy_vqa",))
    toy.offer_manifest(["train.json"])
    assert replace(toy, root=toy.root.parent / "two").prepare(cards, names=("toy_caption",)).exit_code == 4
    toy.offer_manifest([])
    with pytest.raises(NetworkError, match="lists nothing"):
        toy.prepare(cards)


# Several processes


def _prepare_in_child(base: str, root: str, queue: multiprocessing.Queue[tuple[int, int]]) -> None:
    with Server() as idle:
        toy = Family(idle, Path(root))
        report = prepare(
            ["toy"],
            PrepareOptions(cache_root=root, mirror=base, policy=replace(FAST, owner_stall=60.0), reserve=0),
            cards=toy.cards(),
        )
    queue.put((report.exit_code, report.bytes_moved))


@pytest.mark.slow
def test_f06_two_processes_fetch_each_byte_once(toy: Family) -> None:
    toy.server.script(toy.path("train.zip"), Fault(latency=0.3, times=1))
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[tuple[int, int]] = context.Queue()
    args = (toy.server.base, str(toy.root), queue)
    children = [context.Process(target=_prepare_in_child, args=args) for _ in range(2)]
    for child in children:
        child.start()
    results = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert [code for code, _ in results] == [0, 0] and complete(toy)
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


def test_p06_an_interrupt_leaves_a_state_that_continues(toy: Family) -> None:
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
    assert toy.prepare().exit_code == 0 and complete(toy) and toy.server.sent() == sent


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_finished_root_may_be_read_only(toy: Family) -> None:
    toy.prepare()
    for path in [toy.root, *toy.root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert toy.prepare().exit_code == 0
    finally:
        for path in [toy.root, *toy.root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
