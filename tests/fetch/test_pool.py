"""Many transfers: order, per-host limit, offline, duplicates, interruption of the whole, what errors say together."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.errors import DiskError, IntegrityError, NetworkError, UsageError
from lavis_ext.fetch import Ledger, Source, Transfer, fetch_all, fetch_bytes, session
from lavis_ext.fetch.ledger import ALONE, GROUP
from tests.support.fetching import FAST, World
from tests.support.server import Fault, Server, payload


class Recorder:
    """Progress that is added up."""

    def __init__(self) -> None:
        self.totals: dict[str, int | None] = {}
        self.counts: dict[str, int] = {}
        self.outcomes: dict[str, str] = {}
        self._lock = threading.Lock()

    def begin(self, label: str, total: int | None) -> None:
        self.totals[label] = total

    def advance(self, label: str, count: int) -> None:
        with self._lock:
            self.counts[label] = self.counts.get(label, 0) + count

    def end(self, label: str, outcome: str) -> None:
        self.outcomes[label] = outcome


def made(server: Server, folder: Path, count: int) -> list[Transfer]:
    return [
        Transfer(folder / f"{n}.bin", (Source(server.put(f"/{n}.bin", payload(3000, n))),), 3000) for n in range(count)
    ]


def test_one_folder_one_ledger_and_nothing_else(server: Server, tmp_path: Path) -> None:
    transfers = made(server, tmp_path / "d", 60)
    ledger = tmp_path / "family" / ".lavis_ext" / "ledger.jsonl"
    policy = replace(FAST, ledger=ledger, per_host=3)
    assert [result.path for result in fetch_all(transfers, policy)] == [transfer.path for transfer in transfers]
    assert {path.name for path in (tmp_path / "d").iterdir()} == {transfer.path.name for transfer in transfers}
    entry = Ledger(ledger).find(transfers[7].path, transfers[7].path.stat())
    assert entry is not None and entry.size == 3000
    with ledger.open("a") as file:
        file.write('{"torn": \n[]\n')
    assert all(result.reused for result in fetch_all(transfers, policy)) and len(server.log) == 60


def lines(ledger: Path) -> int:
    return ledger.read_bytes().count(b"\n")


def test_many_files_are_recorded_and_their_folder_flushed_in_groups(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, flushed, real = GROUP + 10, [0], session.flush_folder

    def flush(folder: Path) -> None:
        flushed[0] += 1
        real(folder)

    monkeypatch.setattr(session, "flush_folder", flush)
    transfers, policy = made(server, tmp_path / "d", count), replace(FAST, fsync=True)
    fetch_all(transfers, policy)
    assert flushed[0] == 2, "one group, and the rest"
    known = Ledger(tmp_path / "d" / ".lavis_ext" / "ledger.jsonl")
    entries = [known.find(one.path, one.path.stat()) for one in transfers]
    assert all(entry is not None and entry.is_ours for entry in entries) and lines(known.path) == count

    def fails(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(session, "flush_folder", fails)
    with pytest.raises(DiskError):
        fetch_all(made(server, tmp_path / "e", 3), policy)
    monkeypatch.undo()
    assert all(result.reused and result.verified for result in fetch_all(made(server, tmp_path / "e", 3), policy))


@pytest.mark.fault("R13")
def test_a_kill_costs_what_is_known_of_a_group_and_nothing_else(server: Server, tmp_path: Path) -> None:
    """Killed when all files have their names, and the last group is not recorded: these are hashed once more."""
    transfers = made(server, tmp_path / "d", GROUP + 10)
    big = Transfer(tmp_path / "big" / "one", (Source(server.put("/big", bytes(ALONE))),), ALONE)
    ledger, alone = (one.path.parent / ".lavis_ext" / "ledger.jsonl" for one in (transfers[0], big))
    pid = os.fork()
    if not pid:
        try:
            setattr(Ledger, "flush", lambda _: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010
            fetch_all([*transfers, big], FAST)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert lines(ledger) == GROUP and lines(alone) == 1, "what takes long to hash does not wait for others"
    again = fetch_all([*transfers, big], FAST)
    assert all(result.reused and result.verified for result in again) and len(server.log) == len(transfers) + 1
    assert lines(ledger) == len(transfers) and lines(alone) == 1


def test_processes_share_a_ledger(tmp_path: Path) -> None:
    """What another has appended is read, wherever its lines stand between one's own."""
    files = [tmp_path / f"{n}.bin" for n in range(4)]
    for path in files:
        path.write_bytes(path.name.encode())
    place = tmp_path / ".lavis_ext" / "ledger.jsonl"
    one, two = Ledger(place), Ledger(place, group=2)
    one.record(files[0], "a")
    two.record(files[1], "b")
    two.record(files[2], "c")
    one.record(files[3], "d")
    two.flush()
    for ledger in (one, two, Ledger(place)):
        found = [ledger.find(path, path.stat()) for path in files]
        assert [entry.sha256 for entry in found if entry is not None] == ["a", "b", "c", "d"]
    place.unlink()
    one.record(files[0], "e")
    assert lines(place) == 1 and Ledger(place).find(files[0], files[0].stat()) is not None


def test_per_host_limit(server: Server, tmp_path: Path) -> None:
    transfers = made(server, tmp_path, 12)
    busy, most, lock, two = 0, 0, threading.Lock(), threading.Event()
    real = server.find

    def counted(path: str) -> object:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
            if busy > 1:
                two.set()
        two.wait(60)  # for a second one
        server.closing.wait(0.02)  # for one too many
        with lock:
            busy -= 1
        return real(path)

    server.find = counted  # type: ignore[method-assign,assignment]
    fetch_all(transfers, replace(FAST, per_host=3, jobs=12))
    assert 1 < most <= 3


def test_offline_names_what_is_missing_and_opens_no_socket(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers = made(server, tmp_path, 4)
    fetch_all(transfers[:2], FAST)
    count = len(server.log)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a socket was opened"))
    policy = replace(FAST, offline=True)
    assert all(result.reused for result in fetch_all(transfers[:2], policy))
    with pytest.raises(NetworkError) as caught:
        fetch_all(transfers, policy)
    assert [str(transfers[n].path) in str(caught.value) for n in range(4)] == [False, False, True, True]
    assert len(server.log) == count and len(caught.value.problems) == 2


def test_same_path_twice(server: Server, tmp_path: Path) -> None:
    one, two = made(server, tmp_path, 2)
    assert len(fetch_all([one, one], FAST)) == 2 and len(server.log) == 1
    with pytest.raises(UsageError, match="two different transfers"):
        fetch_all([one, replace(two, path=one.path)], FAST)
    assert fetch_all([], FAST) == []


def test_collect_keeps_errors_in_the_results(server: Server, tmp_path: Path) -> None:
    transfers = made(server, tmp_path, 3)
    server.script("/1.bin", Fault(instead=b"x"))
    results = fetch_all(transfers, FAST, collect=True)
    assert [result.outcome for result in results] == ["fetched", "failed", "fetched"]
    assert isinstance(results[1].error, IntegrityError) and not results[1].verified


def test_full_disk_stops_the_rest(
    server: Server, second: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transfers = made(server, tmp_path, 40)
    World(server, second, tmp_path, monkeypatch, caplog).disk_full_at(10)
    with pytest.raises(DiskError, match="no space left"):
        fetch_all(transfers, replace(FAST, jobs=1))
    assert len(server.log) == 1


def test_progress_adds_up_to_the_file_after_faults(server: Server, tmp_path: Path) -> None:
    data = payload(400_000)
    url = server.put("/f.bin", data)
    server.script("/f.bin", Fault(times=1, cut_at=200_000), Fault(times=1, ignore_range=True, flip_at=5))
    recorder = Recorder()
    fetch_all([Transfer(tmp_path / "f.bin", (Source(url),), len(data), None, None, "coco/f")], FAST, recorder)
    assert recorder.counts == {"coco/f": 400_000} and recorder.outcomes == {"coco/f": "fetched"}


def test_unverified_is_said(server: Server, tmp_path: Path) -> None:
    transfer = Transfer(tmp_path / "f.bin", (Source(server.put("/f.bin", b"data")),))
    for reused in (False, True):
        (result,) = fetch_all([transfer], FAST)
        assert (result.outcome, result.reused, len(result.sha256 or "")) == ("unverified", reused, 64)


def test_small_documents(server: Server) -> None:
    assert fetch_bytes(Source(server.put("/d.json", b"{}")), FAST) == b"{}"
    assert fetch_bytes(Source(server.url("/none")), FAST) is None
    with pytest.raises(IntegrityError, match="more than 1 bytes"):
        fetch_bytes(Source(server.url("/d.json")), FAST, limit=1)
    server.script("/d.json", Fault(times=2, status=503))
    assert fetch_bytes(Source(server.url("/d.json")), FAST) == b"{}"
