"""Faults of the disk and of owners: full, read-only, wanted twice, left by the dead."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.errors import DiskError, NetworkError, OwnedError
from lavis_ext.fetch import fetch, fetch_all
from lavis_ext.fetch.ledger import Ledger
from lavis_ext.fetch.lock import Identity, own_identity
from tests.support.disks import SmallDisk
from tests.support.fetching import SIZE, World
from tests.support.killing import size
from tests.support.server import Fault, Server, wait_until
from tests.support.toyfamily import Family, tree, zip_bytes


@pytest.mark.fault("F01")
def test_too_little_space_is_told_first(world: World) -> None:
    wanted = world.transfer(size=1 << 60, sha256=None)
    for call in (lambda: fetch(wanted, world.policy), lambda: fetch_all([wanted], world.policy)):
        with pytest.raises(DiskError, match=r"1152921504606846976 bytes are needed, \d+ are free"):
            call()
    assert not world.server.log


@pytest.mark.fault("F02")
def test_disk_full_half_way(world: World) -> None:
    world.disk_full_at(200_000)
    world.fails(DiskError, "no space left")
    kept = json.loads(world.sidecar.read_text())["done"][0][1]
    assert 0 < kept <= 200_000
    world.patch.undo()
    assert world.heals().bytes_moved == SIZE - kept


def grown(target: Path) -> int:
    """Bytes that have come of a file that is fetched."""
    return max((size(part) for part in target.parent.glob(f"{target.name}.part.????????????????")), default=0)


@pytest.mark.fault("F02")
def test_another_program_fills_the_disk_meanwhile(world: World, disk: Callable[..., SmallDisk]) -> None:
    small = disk(1 << 20)
    world.target = small.path / "data" / "f.bin"
    hold = threading.Event()
    world.server.script("/f.bin", Fault(stall_at=200_000, hold=hold))

    def fill() -> None:
        wait_until(lambda: grown(world.target) >= 200_000)
        small.fill()
        hold.set()

    other = threading.Thread(target=fill)
    other.start()
    world.fails(DiskError, "no space left")
    other.join()
    kept = world.part.stat().st_size
    assert kept > 50_000 and not world.owner.exists()
    small.relieve()
    assert world.heals().bytes_moved < SIZE


@pytest.mark.fault("F03")
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_the_disk_is_full_while_an_archive_is_unpacked(
    server: Server, disk: Callable[..., SmallDisk], kind: str
) -> None:
    """An archive that fits, and unpacks to more than anybody declared."""
    small = disk(4 << 20)
    files = {f"train/{n:06d}.jpg": bytes(200_000) + str(n).encode() for n in range(40)}
    toy = Family(server, small.path / "root", train=files, kind=kind)
    if kind == "zip":
        toy.offer("train.zip", zip_bytes(files, zipfile.ZIP_DEFLATED))
    report = toy.prepare()
    assert report.exit_code == 6, report.lines()
    assert (toy.images / f"train.{kind}").is_file()
    there = tree(toy.images / "train")
    assert 0 < len(there) < 40 and all(toy.train[f"train/{name}"] == data for name, data in there.items())
    small.grow(32 << 20)
    assert toy.prepare().exit_code == 0 and toy.complete()
    assert server.sent(toy.path(f"train.{kind}")) == len(toy.blobs[f"train.{kind}"])


@pytest.mark.fault("F04")
def test_no_inode_is_left_while_an_archive_is_unpacked(server: Server, disk: Callable[..., SmallDisk]) -> None:
    small = disk(4 << 20, inodes=100)
    toy = Family(server, small.path / "root")
    hold = threading.Event()
    server.script(toy.path("train.zip"), Fault(times=1, stall_at=20_000, hold=hold))

    def use_up() -> None:
        wait_until(lambda: grown(toy.images / "train.zip") >= 20_000)
        small.use_up_inodes(10)
        hold.set()

    other = threading.Thread(target=use_up)
    other.start()
    report = toy.prepare()
    other.join()
    assert report.exit_code == 6 and "inode" in "".join(report.lines())
    small.relieve()
    assert toy.prepare().exit_code == 0 and toy.complete()
    small.use_up_inodes()
    with pytest.raises(DiskError, match="inode"):
        replace(toy, root=small.path / "other").prepare(toy.cards(unpacked_files=12))


@pytest.mark.fault("F04")
def test_quota_exceeded(world: World) -> None:
    world.disk_full_at(100_000, errno.EDQUOT)
    world.fails(DiskError, "quota exceeded")
    world.patch.undo()
    world.heals()


@pytest.mark.fault("F05")
def test_folder_that_cannot_be_written(world: World) -> None:
    blocker = world.folder / "file"
    blocker.write_text("not a folder")
    with pytest.raises(DiskError, match="cannot write"):
        fetch(replace(world.transfer(), path=blocker / "f.bin"), world.policy)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    world.patch.setattr(Path, "mkdir", refuse)
    world.fails(DiskError, "Read-only")
    assert not world.server.log


@pytest.mark.fault("F05")
def test_a_read_only_disk_is_reported_before_the_network(server: Server, disk: Callable[..., SmallDisk]) -> None:
    small = disk(1 << 20)
    toy = Family(server, small.path / "root")
    small.read_only()
    with pytest.raises(DiskError) as caught:
        toy.prepare()
    assert caught.value.exit_code == 6 and server.sent() == 0
    small.read_only(False)
    assert toy.prepare().exit_code == 0 and toy.complete()


@pytest.mark.fault("F06")
def test_four_at_once_fetch_once(world: World) -> None:
    world.server.script("/f.bin", Fault(rate=1_000_000.0))
    world.policy = replace(world.policy, owner_stall=60.0)
    results = []
    threads = [threading.Thread(target=lambda: results.append(world.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.reused for result in results) == [False, True, True, True]
    assert world.server.sent("/f.bin") == SIZE


@pytest.mark.fault("F07")
def test_stale_owner_is_taken_over(world: World) -> None:
    world.target.parent.mkdir(parents=True)
    mine = own_identity()
    dead = Identity(2**22 - 3, mine.host, mine.boot, 1, "0")
    recycled = Identity(os.getpid(), mine.host, mine.boot, 1, "0")
    silent = Identity(1, "elsewhere", "boot", 1, "0")
    for owner in (dead, recycled, silent, None):
        world.owner.write_text(json.dumps(owner.__dict__) if owner else "")
        os.utime(world.owner, (time.time() - 500, time.time() - 500))
        world.log.clear()
        world.get()
        assert "taken over" in world.log.text and not world.owner.exists()
        world.target.unlink()
    world.owner.write_text(json.dumps(silent.__dict__))
    world.fails(OwnedError, "process 1 on elsewhere works on this file")
    assert OwnedError.exit_code == 9


@pytest.mark.fault("F08")
@pytest.mark.parametrize("fails", [True, False], ids=["ENOLCK", "for everybody"])
def test_locks_that_lie(world: World, fails: bool) -> None:
    def lock(*_: object) -> None:
        if fails:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    world.patch.setattr(fcntl, "flock", lock)
    world.patch.setattr(fcntl, "lockf", lock)
    test_four_at_once_fetch_once(world)


@pytest.mark.fault("F09")
def test_partial_file_is_on_the_target_file_system(world: World) -> None:
    world.server.script("/f.bin", Fault(cut_at=100_000))
    world.fails(NetworkError, "ended", world.first_url)
    assert world.part.stat().st_dev == world.target.parent.stat().st_dev
    assert world.part.parent == world.target.parent


@pytest.mark.fault("F09")
def test_the_temporary_folder_is_on_another_disk_and_too_small(world: World, disk: Callable[..., SmallDisk]) -> None:
    small = disk(1 << 16)
    world.patch.setenv("TMPDIR", str(small.path))
    world.patch.setattr("tempfile.tempdir", str(small.path))
    assert small.path.stat().st_dev != world.folder.stat().st_dev
    world.get()
    toy = Family(world.server, world.folder / "root")
    assert toy.prepare().exit_code == 0 and toy.complete() and list(small.path.iterdir()) == []


@pytest.mark.fault("F10")
def test_long_and_unicode_names(world: World) -> None:
    for name in ("x" * 255, "\u00e9" * 120 + ".bin", "e\u0301.bin"):
        world.target = world.folder / "data" / name
        world.get()
        assert [path.name for path in world.target.parent.iterdir() if path.is_file()] == [name]
        world.target.unlink()


@pytest.mark.fault("F11")
def test_flushed_before_it_counts(world: World) -> None:
    order: list[str] = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(fd: int) -> None:
        order.append("fsync " + Path(f"/proc/self/fd/{fd}").readlink().name)
        real_fsync(fd)

    def link(path: Path, target: Path) -> None:
        order.append(f"link {target.name}")
        real_link(path, target)

    world.patch.setattr(os, "fsync", fsync)
    world.patch.setattr(os, "link", link)
    world.policy = replace(world.policy, fsync=True)
    world.get()
    part, *rest = order
    assert part.startswith("fsync f.bin.part.") and rest == ["link f.bin", "fsync data"]


@pytest.mark.fault("F02")
def test_an_archive_gets_its_name_once_the_ledger_can_say_so(world: World, disk: Callable[..., SmallDisk]) -> None:
    """Without that line it would be taken for the user's, and stay behind what was unpacked from it."""
    small = disk(1 << 16)
    ledger = small.path / "ledger.jsonl"
    world.policy = replace(world.policy, ledger=ledger)
    ledger.write_text("x" * 4000)  # of a page of the disk nearly all, so that a line is cut
    small.fill()
    world.fails(DiskError, "no space left", temporary=True)
    small.relieve()
    assert world.get(temporary=True).bytes_moved == 0
    entry = Ledger(ledger).find(world.target, world.target.stat())
    assert entry is not None and entry.is_ours
