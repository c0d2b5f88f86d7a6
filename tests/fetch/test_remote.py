"""A remote file that is sought: zip directories, many ranges, one version only, mirrors and folders."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.errors import IntegrityError, NetworkError, OwnedError
from lavis_ext.fetch import RemoteFile, Source, cache, objects
from lavis_ext.fetch.transfer import Failure
from tests.support.fetching import FAST
from tests.support.server import Fault, Server, payload, wait_until


def archive(count: int = 50) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for n in range(count):
            made.writestr(f"images/{n:03}.bin", payload(40_000, n))
    return buffer.getvalue()


def test_zip_members_without_the_zip(server: Server) -> None:
    data = archive()
    url = server.put("/a.zip", data)
    with RemoteFile(url, FAST) as remote, zipfile.ZipFile(remote) as opened:  # type: ignore[arg-type]
        assert len(opened.namelist()) == 50
        assert opened.read("images/031.bin") == payload(40_000, 31)
        assert remote.size == len(data) and remote.bytes_moved < len(data) // 4
    assert all(seen.headers.get("If-Range") for seen in server.log[1:])


@pytest.mark.parametrize("kind", ["http", "file", "path"])
def test_ranges_in_the_order_given(kind: str, server: Server, tmp_path: Path) -> None:
    data = payload(1_000_000)
    (tmp_path / "a b.bin").write_bytes(data)
    where = {
        "http": server.put("/a.bin", data),
        "file": (tmp_path / "a b.bin").as_uri(),
        "path": str(tmp_path / "a b.bin"),
    }
    wanted = [(900_000, 900_100), (0, 10), (50, 50), (500_000, 600_000), (905_000, 1_000_000)]
    with RemoteFile(where[kind], FAST) as remote:
        assert remote.read_ranges(wanted) == [data[start:stop] for start, stop in wanted]
        remote.seek(-10, io.SEEK_END)
        assert remote.read() == data[-10:] and remote.read(5) == b"" and remote.tell() == len(data)
        with pytest.raises(ValueError, match="not within"):
            remote.read_ranges([(0, len(data) + 1)])


def test_object_replaced_while_open(server: Server) -> None:
    url = server.put("/a.bin", payload(500_000))
    with RemoteFile(url, FAST) as remote:
        server.put("/a.bin", payload(500_000, seed=1))
        with pytest.raises(IntegrityError, match="replaced while it was open"):
            remote.read_ranges([(300_000, 400_000)])


def test_broken_connection_is_continued_then_the_next_source(server: Server, second: Server) -> None:
    data = payload(500_000)
    urls = [Source(server.put("/a.bin", data)), Source(second.put("/a.bin", data))]
    with RemoteFile(urls, FAST) as remote:
        server.script("/a.bin", Fault(times=1, cut_after=1000))
        assert remote.read_ranges([(200_000, 400_000)]) == [data[200_000:400_000]]
        assert server.log[-1].range == "bytes=201000-399999" and remote.source == urls[0].url
        server.script("/a.bin", Fault(status=503))
        assert remote.read_ranges([(400_000, 500_000)]) == [data[400_000:]]
        assert remote.source == urls[1].url


def test_server_without_ranges_and_missing_object(server: Server) -> None:
    url = server.put("/a.bin", payload(500_000))
    server.script("/a.bin", Fault(ignore_range=True))
    with pytest.raises(NetworkError, match="does not answer ranges"):
        RemoteFile(url, FAST)
    with pytest.raises(NetworkError, match="404"):
        RemoteFile(server.url("/none"), FAST)
    with pytest.raises(NetworkError, match="expected 7 bytes"):
        server.faults.clear()
        RemoteFile(url, FAST, size=7)


def test_empty_object(server: Server) -> None:
    with RemoteFile(server.put("/e.bin", b""), FAST) as remote:
        assert remote.read() == b"" and remote.size == 0


def test_an_object_of_a_bucket_must_hold_something(server: Server) -> None:
    found = objects.pinned(server.put("/a.tar", b"x"), FAST)
    assert (found.size, found.name) == (1, "a.tar")
    with pytest.raises(IntegrityError):
        objects.pinned(server.put("/empty.tar", b""), FAST)


def test_errors_of_a_store_are_told_by_their_type() -> None:
    known = pytest.importorskip("obstore.exceptions")
    for error, kind, reason in (
        (known.InvalidPathError("no path"), "final", "no path"),
        (OSError("no route to it"), "transient", "no route to it"),
        (known.GenericError("refused <Error>key=secret</Error>"), "transient", "refused"),
        (FileNotFoundError("gone"), "absent", "no such object or bucket"),
    ):
        with pytest.raises(Failure) as caught, objects._failures():
            raise error
        assert (caught.value.kind, caught.value.reason) == (kind, reason)


def test_what_is_wanted_next_comes_unasked(server: Server, tmp_path: Path) -> None:
    ones = [objects.pinned(server.put(f"/{n}.tar", payload(5000, n)), FAST) for n in range(3)]
    held = cache.ObjectCache(tmp_path / "cache", 1 << 20, policy=FAST)
    held.prefetch(ones)
    assert wait_until(lambda: held.fetched == 3)
    assert (
        sorted(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.stat().st_size == 5000)
        == [5000] * 3
    )


def test_a_cache_that_others_fill_is_waited_for_so_long(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = objects.pinned(server.put("/a.tar", payload(5000)), FAST)
    looks: list[int] = []

    def full(self: cache.ObjectCache, one: objects.Pinned) -> bool:
        looks.append(1)
        return len(looks) > 3

    monkeypatch.setattr(cache, "WAIT", 0.01)
    monkeypatch.setattr(cache.ObjectCache, "_make_room", full)
    held = cache.ObjectCache(tmp_path / "cache", 1 << 20, policy=replace(FAST, owner_wait=0.0))
    with pytest.raises(OwnedError):
        held.get(one)
    assert len(looks) == 1
