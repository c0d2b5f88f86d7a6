"""The engine's everyday: fetch, reuse, resume, verify, many at once."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.errors import IntegrityError, NetworkError
from lavis_ext.fetch import Policy, Source, Transfer, fetch, fetch_all
from tests.support.server import Fault, Object, Server, payload, wait_until

FAST = Policy(backoff=0.01, retries=3, stall_timeout=20.0, connect_timeout=20.0, fsync=False)


def transfer_of(path: Path, url: str, data: bytes) -> Transfer:
    return Transfer(path, (Source(url),), len(data), hashlib.sha256(data).hexdigest())


def test_fetch_then_reuse_without_a_request(server: Server, tmp_path: Path) -> None:
    data = payload(300_000)
    transfer = transfer_of(tmp_path / "a/b.bin", server.put("/b.bin", data), data)
    first = fetch(transfer, FAST)
    assert transfer.path.read_bytes() == data
    assert (first.bytes_moved, first.reused, first.verified) == (len(data), False, True)
    again = fetch(transfer, FAST)
    assert again.reused and again.bytes_moved == 0 and len(server.log) == 1
    assert sorted(p.name for p in transfer.path.parent.iterdir()) == [".lavis_ext", "b.bin"]


def test_large_file_in_segments_moves_each_byte_once(server: Server, tmp_path: Path) -> None:
    data = payload(3_000_000)
    policy = Policy(parallel_from=1 << 20, segment_bytes=1 << 18, segments=4)
    transfer = transfer_of(tmp_path / "b.bin", server.put("/b.bin", data), data)
    assert fetch(transfer, policy).bytes_moved == len(data)
    assert transfer.path.read_bytes() == data
    assert len(server.log) > 4 and server.sent() == len(data)


@pytest.mark.parametrize("segments", [2, 3])
def test_as_many_connections_at_once_as_segments_are_asked_for(server: Server, tmp_path: Path, segments: int) -> None:
    """All but the first request are held, until no more come."""
    data = payload(1 << 20)
    url, find, held, go = server.put("/b.bin", data), server.find, [], threading.Event()

    def holding(path: str) -> Object | None:
        if len(server.log) > 1:
            held.append(path)
            go.wait(10)
        return find(path)

    server.find = holding  # type: ignore[method-assign]
    policy = replace(FAST, parallel_from=1, segment_bytes=1 << 17, segments=segments, stall_timeout=20.0)
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(fetch, transfer_of(tmp_path / "b.bin", url, data), policy)
        assert wait_until(lambda: len(held) == segments)
        time.sleep(0.1)
        found = len(held)
        go.set()
        assert done.result().verified and found == segments


def test_truncated_once_is_continued(server: Server, tmp_path: Path) -> None:
    data = payload(300_000)
    transfer = transfer_of(tmp_path / "b.bin", server.put("/b.bin", data), data)
    server.script("/b.bin", Fault(times=1, cut_at=100_000))
    assert fetch(transfer, FAST).bytes_moved == len(data)
    assert [seen.range for seen in server.log] == [None, "bytes=100000-"]


def test_wrong_bytes_never_get_the_name(server: Server, tmp_path: Path) -> None:
    data = payload(1000)
    transfer = transfer_of(tmp_path / "b.bin", server.put("/b.bin", data[::-1]), data)
    with pytest.raises(IntegrityError, match="expected sha256"):
        fetch(transfer, FAST)
    assert not transfer.path.exists() and len(server.log) == 2


def test_many_files_one_missing_is_reported_and_the_rest_are_there(server: Server, tmp_path: Path) -> None:
    files = {f"/{n}.bin": payload(2000 + n, n) for n in range(40)}
    transfers = [transfer_of(tmp_path / name[1:], server.put(name, data), data) for name, data in files.items()]
    del server.objects["/7.bin"]
    with pytest.raises(NetworkError, match=r"7\.bin.*404"):
        fetch_all(transfers, FAST)
    assert sum(transfer.path.exists() for transfer in transfers) == 39
    server.put("/7.bin", files["/7.bin"])
    results = fetch_all(transfers, FAST)
    assert [result.path for result in results] == [transfer.path for transfer in transfers]
    assert sum(not result.reused for result in results) == 1
