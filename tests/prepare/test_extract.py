"""Unpacking in place: resumable at any moment, nothing of a user lost, a full disk reported."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.cards import Artifact
from lavis_ext.common.errors import DiskError, IntegrityError
from lavis_ext.fetch import Silent
from lavis_ext.prepare.extract import Placement, list_archive, run_bounded, unpack
from lavis_ext.prepare.records import Journal, MemberTable
from tests.support.server import payload
from tests.support.toyfamily import pictures, tar_bytes, tree, zip_bytes

FILES = {**pictures("a", 30), **pictures("b/c", 20), "top.txt": b"text"}
KINDS = ["zip", "tar", "tar.gz"]


def archive_of(root: Path, kind: str = "zip", files: dict[str, bytes] = FILES) -> tuple[Path, Artifact]:
    artifact = Artifact(url=f"https://x.org/toy.{kind}", storage="toy/images", name="toy", unpack=kind)  # type: ignore[arg-type]
    path = root / artifact.file
    path.parent.mkdir(parents=True, exist_ok=True)
    deflated = zip_bytes(files, zipfile.ZIP_DEFLATED)
    path.write_bytes(deflated if kind == "zip" else tar_bytes(files, "w:gz" if kind == "tar.gz" else "w"))
    return path, artifact


def run(root: Path, kind: str = "zip", files: dict[str, bytes] = FILES) -> list[Path]:
    path, artifact = archive_of(root, kind, files)
    return unpack(path, artifact, root, list_archive(path, artifact), Silent(), threads=2)


def unpacked(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(root / "toy/images").items() if not name.startswith("toy.")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_comes_out(tmp_path: Path, kind: str) -> None:
    assert run(tmp_path, kind) == []
    assert unpacked(tmp_path) == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_place_is_not_written_again(tmp_path: Path, kind: str) -> None:
    run(tmp_path, kind)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "toy/images").rglob("*.jpg")}
    run(tmp_path, kind)
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_journal_costs_a_crc_and_no_write(tmp_path: Path, kind: str) -> None:
    run(tmp_path, kind)
    before = {p: p.stat().st_ino for p in (tmp_path / "toy/images").rglob("*.jpg")}
    for log in (tmp_path / "toy/.lavis_ext").rglob("*.log"):
        log.unlink()
    run(tmp_path, kind)
    assert {p: p.stat().st_ino for p in before} == before


@pytest.mark.parametrize("kind", KINDS)
def test_another_file_of_that_name_is_kept(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "toy/images/a/000003.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own photograph")
    aside = run(tmp_path, kind)
    assert [p.read_bytes() for p in aside] == [b"my own photograph"]
    assert aside[0].name == f"000003.jpg.bad-{zlib.crc32(b'my own photograph'):08x}"
    assert mine.read_bytes() == FILES["a/000003.jpg"]


def test_a_link_is_renamed_and_what_it_points_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "precious.jpg"
    outside.write_bytes(b"precious")
    link = tmp_path / "toy/images/a/000003.jpg"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    run(tmp_path)
    assert outside.read_bytes() == b"precious"
    assert not link.is_symlink() and link.read_bytes() == FILES["a/000003.jpg"]


def test_a_folder_in_the_way_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "toy/images/top.txt").mkdir(parents=True)
    (tmp_path / "toy/images/top.txt/mine").write_text("mine")
    (aside,) = run(tmp_path)
    assert (aside / "mine").read_text() == "mine"


def test_a_file_where_a_folder_belongs_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "toy/images").mkdir(parents=True)
    (tmp_path / "toy/images/a").write_text("mine")
    with pytest.raises(DiskError):
        run(tmp_path)
    assert (tmp_path / "toy/images/a").read_text() == "mine"


def test_modes_in_the_archive_do_not_matter(tmp_path: Path) -> None:
    artifact = Artifact(url="https://x.org/toy.zip", storage="toy/images", name="toy", unpack="zip")
    path = tmp_path / artifact.file
    path.parent.mkdir(parents=True)
    path.write_bytes(zip_bytes({"a": b"x"}, external_attr=0o100777 << 16))
    unpack(path, artifact, tmp_path, list_archive(path, artifact), Silent())
    assert (path.parent / "a").stat().st_mode & 0o111 == 0


@pytest.mark.fault("F03")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_f03_a_full_disk_is_reported_and_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path, artifact = archive_of(tmp_path)
    real, count = os.replace, 0

    def full(source: str, target: str) -> None:
        nonlocal count
        count += ".part" in Path(source).name
        if count > 20:
            raise OSError(number, os.strerror(number), str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskError) as caught:
        unpack(path, artifact, tmp_path, list_archive(path, artifact), Silent(), threads=2)
    assert caught.value.exit_code == 6
    monkeypatch.setattr(os, "replace", real)
    assert path.is_file() and len(unpacked(tmp_path)) >= 20
    assert not list((tmp_path / "toy").rglob("*.part"))
    run(tmp_path)
    assert unpacked(tmp_path) == FILES


def test_a_damaged_member_is_not_put_in_place(tmp_path: Path) -> None:
    path, artifact = archive_of(tmp_path)
    table = list_archive(path, artifact)
    data = bytearray(path.read_bytes())
    data[table.members[5].offset + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        unpack(path, artifact, tmp_path, table, Silent())
    assert table.members[5].name not in unpacked(tmp_path)


def test_after_a_restart_of_the_machine_noted_files_are_checked(tmp_path: Path) -> None:
    run(tmp_path)
    short = tmp_path / "toy/images/a/000001.jpg"
    short.write_bytes(bytes(short.stat().st_size))
    (log,) = (tmp_path / "toy/.lavis_ext").rglob("*.log")
    log.write_text(log.read_text().replace('"boot": "', '"boot": "before-'))
    run(tmp_path)
    assert short.read_bytes() == FILES["a/000001.jpg"]


def test_a_torn_journal_claims_nothing(tmp_path: Path) -> None:
    path, artifact = archive_of(tmp_path)
    table = list_archive(path, artifact)
    with Journal(tmp_path, artifact, table) as journal:
        journal.add([1, 12])
        log = journal.path
    log.write_bytes(log.read_bytes()[:-2])
    with Journal(tmp_path, artifact, table) as journal:
        assert journal.done == {1}
        journal.add([3])
    with Journal(tmp_path, artifact, table) as journal:
        assert journal.done == {1, 3}
    log.write_bytes(b"\xff\xfe not a journal")
    with Journal(tmp_path, artifact, table) as journal:
        assert journal.done == set()


def test_an_table_is_what_it_was(tmp_path: Path) -> None:
    path, artifact = archive_of(tmp_path)
    table = list_archive(path, artifact)
    table.write(tmp_path, artifact)
    again = MemberTable.read(tmp_path, artifact)
    assert again is not None and again.members == table.members and again.digest == table.digest
    (listing,) = (tmp_path / "toy/.lavis_ext").rglob("*.members")
    listing.write_bytes(listing.read_bytes()[:-40])
    assert MemberTable.read(tmp_path, artifact) is None


BIG = {f"f/{n:05d}.jpg": payload(400, n % 50) + str(n).encode() for n in range(3000)}


@pytest.mark.fault("A11")
@pytest.mark.slow
def test_a11_killed_at_ten_moments_it_ends_with_the_same_tree(tmp_path: Path) -> None:
    rng = random.Random(7)
    path, artifact = archive_of(tmp_path, "zip", BIG)
    kills = 0
    for _ in range(10):
        pid = os.fork()
        if not pid:
            try:
                end_soon(rng.randrange(1, 250), rng.uniform(0.0, 0.002))
                unpack(path, artifact, tmp_path, list_archive(path, artifact), Silent(), threads=2)
            finally:
                os._exit(0)
        rng.randrange(1, 250), rng.uniform(0.0, 0.002)  # the fork has taken the same ones
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert kills == 10
    unpack(path, artifact, tmp_path, list_archive(path, artifact), Silent(), threads=2)
    assert unpacked(tmp_path) == BIG


def end_soon(members: int, seconds: float) -> None:
    """Let this process be killed so many seconds after it has begun to write so many members, and write few more."""
    write = Placement._write_one
    left = itertools.count(members, -1)

    def counting(self: Placement, *given: Any) -> Any:
        number = next(left)
        if number == 1:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif number < -100:
            time.sleep(60)
        return write(self, *given)

    Placement._write_one = counting  # type: ignore[method-assign]


ARTIFACT = Artifact(url="https://x.org/toy.zip", storage="toy/images", name="toy", unpack="zip")


def test_settling_reads_only_what_is_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    path, artifact = archive_of(tmp_path)
    table = list_archive(path, artifact)
    read: list[int] = []
    monkeypatch.setattr(Placement, "is_sound", lambda self, number: bool(read.append(number)))
    with Journal(tmp_path, artifact, table) as journal:
        placement = Placement(tmp_path / "toy/images", table, journal, Silent(), "toy")
        assert placement.pending_members(range(len(table.members))) == []
    assert read == []


@pytest.mark.fault("A13")
@pytest.mark.slow
def test_a13_many_small_members_take_linear_time(tmp_path: Path) -> None:
    took = []
    for count in (3_000, 12_000):
        root = tmp_path / str(count)
        path, artifact = archive_of(root, "zip", {f"{n % 100}/{n}": b"x" for n in range(count)})
        begun = time.process_time()  # what others do on the machine does not count
        unpack(path, artifact, root, list_archive(path, artifact), Silent())
        took.append((time.process_time() - begun) / count)
    assert took[1] < 3 * took[0]


def test_a_failure_wakes_the_tasks_that_wait_for_bytes() -> None:
    woken, started = threading.Event(), threading.Event()
    seen: list[bool] = []

    def waits() -> None:
        started.set()
        seen.append(woken.wait(20))

    def fails() -> None:
        started.wait(20)
        raise IntegrityError("toy.zip", "is damaged", "fetch it again")

    with ThreadPoolExecutor(2) as pool, pytest.raises(IntegrityError):
        run_bounded(pool, (pool.submit(one) for one in (waits, fails)), 2, woken.set)
    assert seen == [True]


def test_progress_tells_how_much_there_is_to_unpack_and_ends_there(tmp_path: Path) -> None:
    class Told(Silent):
        def __init__(self) -> None:
            self.totals: list[int | None] = []
            self.done = 0

        def begin(self, label: str, total: int | None) -> None:
            self.totals.append(total)

        def advance(self, label: str, count: int) -> None:
            self.done += count

    path, artifact = archive_of(tmp_path)
    unpack(path, artifact, tmp_path, list_archive(path, artifact), told := Told(), threads=1)
    whole = sum(map(len, FILES.values()))
    assert told.totals == [whole] and told.done == whole
