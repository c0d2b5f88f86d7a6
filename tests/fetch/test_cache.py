"""The cache of objects on the disk: it gives what it fetched and nothing else, bounded, and no wait is without end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.files import write_json
from lavis_ext.fetch.cache import CachedObject, ObjectCache, digest_of
from lavis_ext.fetch.lock import Ownership
from lavis_ext.fetch.objects import Pinned
from tests.support.fetching import FAST
from tests.support.server import Server, payload, wait_until

SIZE = 40_000


@pytest.fixture
def objects(server: Server) -> list[Pinned]:
    """Three objects of one size, of different bytes."""
    found = []
    for number in range(3):
        url = server.put(f"/{number}.tar", payload(SIZE, number))
        found.append(Pinned(url, SIZE, server.objects[f"/{number}.tar"].etag or ""))
    return found


def content(cache: ObjectCache, one: Pinned) -> bytes:
    return CachedObject(one, cache).read_at(0, SIZE)


def overwrite(path: Path) -> None:
    """So that nothing but the ctime tells, which has steps of milliseconds."""
    before = path.stat()

    def write() -> bool:
        path.write_bytes(payload(SIZE, 9))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return path.stat().st_ctime_ns != before.st_ctime_ns

    assert wait_until(write)


def exchange(path: Path) -> None:
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(payload(SIZE, 9))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def without_record(path: Path) -> None:
    overwrite(path)
    shutil.rmtree(path.parent / ".lavis_ext")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("x")


@pytest.mark.parametrize("change", [overwrite, exchange, without_record, folder])
@pytest.mark.parametrize("again", [False, True], ids=["while it is used", "by another process"])
def test_other_bytes_of_the_right_size_are_not_given(
    server: Server, objects: list[Pinned], tmp_path: Path, change: Callable[[Path], None], again: bool
) -> None:
    one, cache = objects[0], ObjectCache(tmp_path, 10 * SIZE, policy=FAST)
    change(path := cache.get(one))
    other = ObjectCache(tmp_path, 10 * SIZE, policy=FAST) if again else cache
    assert content(other, one) == payload(SIZE, 0)
    assert len(server.log) == 2 and content(other, one) == payload(SIZE, 0) and len(server.log) == 2
    assert [found.name for found in path.parent.iterdir() if found.is_file()] == [path.name]


@pytest.mark.parametrize("change", [lambda path: path.chmod(0o600), lambda path: shutil.copy2(path, path.parent / "c")])
def test_the_same_bytes_are_hashed_once_more_and_not_fetched(
    server: Server, objects: list[Pinned], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    cache = ObjectCache(tmp_path, 10 * SIZE, policy=FAST)
    change(path := cache.get(objects[0]))
    if (copy := path.parent / "c").exists():  # a cache that was copied to another disk
        copy.replace(path)
    for other in (cache, ObjectCache(tmp_path, 10 * SIZE, policy=FAST)):
        assert content(other, objects[0]) == payload(SIZE, 0) and other.fetched == (other is cache)
    assert len(server.log) == 1


def test_a_declared_hash_decides(server: Server, objects: list[Pinned], tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 10 * SIZE, policy=FAST)
    path = cache.get(objects[0])
    sha256 = cache._ledger(path).last(path).sha256  # type: ignore[union-attr]
    overwrite(path)
    shutil.rmtree(path.parent / ".lavis_ext")
    assert content(cache, replace(objects[0], sha256=sha256)) == payload(SIZE, 0)
    path.chmod(0o600)
    shutil.rmtree(path.parent / ".lavis_ext")
    assert content(cache, replace(objects[0], sha256=sha256)) == payload(SIZE, 0) and len(server.log) == 2


def test_what_comes_again_is_recorded_again(server: Server, objects: list[Pinned], tmp_path: Path) -> None:
    """Its folder went with the record, also with that of the process that fetches it a second time."""
    cache = ObjectCache(tmp_path, SIZE + 100, policy=FAST)
    for number in (0, 1, 0):
        assert content(cache, objects[number]) == payload(SIZE, number)
    assert content(ObjectCache(tmp_path, SIZE + 100, policy=FAST), objects[0]) == payload(SIZE, 0)
    assert len(server.log) == 3


def test_two_that_wait_do_not_wait_for_each_other(objects: list[Pinned], tmp_path: Path) -> None:
    """What an earlier process had reserved of both is more than there is now."""
    for one in objects[:2]:
        write_json(tmp_path / f"{digest_of(one)}.json", {"size": SIZE, "name": one.name})
    cache = ObjectCache(tmp_path, SIZE + 100, policy=replace(FAST, owner_wait=15.0, owner_stall=15.0))
    with Ownership(tmp_path / "cache.owner", tmp_path, FAST):  # until both are there, none of them gets room
        cache.prefetch(objects[:2])
        assert wait_until(lambda: len(cache._jobs) == 2)
    for number, one in enumerate(objects[:2]):
        assert content(cache, one) == payload(SIZE, number)


def test_what_a_kill_leaves_counts_and_goes(objects: list[Pinned], tmp_path: Path) -> None:
    first, second = digest_of(objects[0]), digest_of(objects[1])
    (tmp_path / first).mkdir()
    (tmp_path / first / "0.tar.part").write_bytes(bytes(SIZE))  # its note was removed before it was killed
    half = tmp_path / f".{second}.json.12-34.tmp"
    half.write_text("{")
    mine = [tmp_path / "mine.json", tmp_path / ".mine.json.1-2.tmp", tmp_path / "mine" / "0.tar"]
    for path in mine:
        write_json(path, {"size": 1 << 40})
    cache = ObjectCache(tmp_path, SIZE + 100, policy=FAST)
    assert content(cache, objects[1]) == payload(SIZE, 1)
    assert not (tmp_path / first).exists() and not half.exists() and all(path.exists() for path in mine)


def test_what_is_needed_stays_when_room_is_made(objects: list[Pinned], tmp_path: Path) -> None:
    """However recently something else was read."""
    cache = ObjectCache(tmp_path, 2 * SIZE + 100, policy=FAST)
    cache.prefetch([objects[0], objects[2]])
    cache.get(objects[0])
    cache.get(objects[2])
    os.utime(tmp_path / f"{digest_of(objects[0])}.json", (2e9, 2e9))
    cache.prefetch([objects[2], objects[1]])
    assert wait_until(lambda: cache.path(objects[1]).exists())
    assert cache.path(objects[2]).exists() and not cache.path(objects[0]).exists()


def test_a_reader_outlives_that_what_it_reads_is_removed(objects: list[Pinned], tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, SIZE + 100, policy=FAST)
    descriptor = cache.open(objects[0])
    assert content(cache, objects[1]) == payload(SIZE, 1) and not cache.path(objects[0]).exists()
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == payload(SIZE, 0)


def test_what_is_noted_counts_before_its_first_byte_is_there(tmp_path: Path) -> None:
    """Else two that come at the same time take the room of one."""
    (tmp_path / f"{'a' * 32}.json").write_text('{"size": 30720, "name": "00000.tar"}\n')
    (tmp_path / f".{'b' * 32}.json.1.tmp").write_text('{"si')
    assert [(one.digest, one.size) for one in ObjectCache(tmp_path, 10**6).entries()] == [("a" * 32, 30720)]
