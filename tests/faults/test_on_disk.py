"""What lies on the disk: changed while it is fetched, left by a kill, of another form, under names too long."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError
from lavis_ext.fetch import Result, Source, Transfer, fetch, fetch_all
from lavis_ext.fetch import part as part_module
from lavis_ext.fetch.lock import part_bytes
from lavis_ext.fetch.part import read_sidecar
from lavis_ext.fetch.readback import ReadBack
from tests.support.fetchers import Fetcher
from tests.support.fetching import FAST
from tests.support.server import Fault, Server, payload, wait_until

SIZE = 1_500_000
DATA = payload(SIZE)
OTHER = payload(SIZE, seed=5)
SHA256 = hashlib.sha256(DATA).hexdigest()


def parts(target: Path) -> list[Path]:
    """Partial files beside a target, in whatever name."""
    return [p for p in target.parent.glob(f"{target.name}.part*") if p.suffix not in (".json", ".owner", ".tmp")]


# Changed while it is fetched


def flip(part: Path) -> None:
    with part.open("r+b") as file:
        file.seek(70_000)
        file.write(b"tampered")


def replace_file(part: Path) -> None:
    another = part.with_name("another")
    another.write_bytes(OTHER[: part.stat().st_size])
    another.replace(part)


def replace_when_whole(part: Path) -> None:
    another = part.with_name("another")
    another.write_bytes(OTHER)
    another.replace(part)


def cut_off(part: Path) -> None:
    os.truncate(part, 1000)


def lengthen(part: Path) -> None:
    os.truncate(part, SIZE + 1000)


def punch(part: Path) -> None:
    with part.open("r+b") as file:
        file.write(bytes(65_536))


def lie(part: Path) -> None:
    """A sidecar that lists bytes which never came."""
    sidecar = part.with_name(f"{part.name}.json")
    state = json.loads(sidecar.read_text().splitlines()[0])
    sidecar.write_text(json.dumps({**state, "done": [[0, SIZE]]}) + "\n")


INJURIES = [flip, replace_file, replace_when_whole, Path.unlink, cut_off, lengthen, punch, lie]


@pytest.mark.fault("H04")
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("injure", INJURIES, ids=lambda one: one.__name__)
def test_what_is_published_is_what_lies_on_the_disk(
    injure: Callable[[Path], object], hashed: bool, segments: int, server: Server, tmp_path: Path
) -> None:
    target = tmp_path / "d" / "f.bin"
    transfer = Transfer(target, (Source(server.put("/f.bin", DATA)),), SIZE, SHA256 if hashed else None)
    hold = threading.Event()
    server.script("/f.bin", Fault(times=1, stall_at=131_072 * 8 if segments == 1 else 131_072 * 3, hold=hold))
    policy = replace(FAST, segments=segments, parallel_from=1, segment_bytes=600_000, retries=1)
    outcome: list[Result | BaseException] = []

    def work() -> None:
        try:
            outcome.append(fetch(transfer, policy))
        except LavisExtError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert wait_until(lambda: part_bytes(target) > 250_000 and parts(target)[0].stat().st_size > 250_000)
    time.sleep(0.03)
    injure(parts(target)[0])
    hold.set()
    thread.join()
    if isinstance(outcome[0], Result):
        assert target.read_bytes() == DATA and outcome[0].verified
        assert outcome[0].sha256 == hashlib.sha256(DATA).hexdigest()
    else:
        assert isinstance(outcome[0], IntegrityError) and not target.exists()
        server.faults.clear()
        assert fetch(transfer, policy).verified and target.read_bytes() == DATA
    assert fetch(transfer, replace(policy, deep=True)).reused and not parts(target)


@pytest.mark.fault("H04")
@pytest.mark.parametrize("change", [flip, replace_when_whole])
def test_a_change_after_the_last_byte_is_seen(
    change: Callable[[Path], object], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the point that is read back already: by the mtime, and by the inode."""
    from lavis_ext.fetch import engine

    target, real, count = tmp_path / "f.bin", engine.hash_open, [0]

    def meanwhile(*given: object) -> object:
        found = real(*given)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] == 1:
            time.sleep(0.02)
            change(parts(target)[0])
        return found

    monkeypatch.setattr(engine, "hash_open", meanwhile)
    transfer = Transfer(target, (Source(server.put("/f.bin", DATA)),), SIZE, SHA256)
    assert fetch(transfer, replace(FAST, fsync=True)).bytes_moved == 2 * SIZE
    assert target.read_bytes() == DATA


@pytest.mark.fault("H04")
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_change_of_what_is_hashed_already_is_seen(
    hashed: bool, segments: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file is hashed while it comes: what lies there in the end is compared with what was hashed."""
    started: list[ReadBack] = []

    class Watched(ReadBack):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            started.append(self)

    monkeypatch.setattr(part_module, "ReadBack", Watched)
    target, data = tmp_path / "f.bin", LARGE[: 4 << 20]
    transfer = Transfer(target, (Source(server.put("/f.bin", data)),), len(data))
    transfer = replace(transfer, sha256=hashlib.sha256(data).hexdigest() if hashed else None)
    hold = threading.Event()
    server.script("/f.bin", Fault(stall_at=3_000_000, hold=hold))
    policy = replace(FAST, segments=segments, parallel_from=1, segment_bytes=1 << 20)
    outcome: list[Result] = []
    thread = threading.Thread(target=lambda: outcome.append(fetch(transfer, policy)))
    thread.start()
    assert wait_until(lambda: bool(started) and len(started[0]._sums) >= 2)
    flip(parts(target)[0])
    hold.set()
    thread.join()
    assert outcome[0].verified and target.read_bytes() == data
    assert outcome[0].sha256 == hashlib.sha256(data).hexdigest() and len(started) == 2


def test_a_file_that_appears_meanwhile_is_not_replaced(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lavis_ext.fetch import engine

    target, real = tmp_path / "f.bin", engine.hash_open
    transfer = Transfer(target, (Source(server.put("/f.bin", DATA)),), SIZE, SHA256)

    def meanwhile(*given: object) -> object:
        found = real(*given)  # type: ignore[arg-type]
        (tmp_path / "mine").replace(target)
        return found

    monkeypatch.setattr(engine, "hash_open", meanwhile)
    for mine, code in ((DATA, 0), (OTHER, 9)):
        (tmp_path / "mine").write_bytes(mine)
        try:
            assert fetch(transfer, FAST).verified and code == 0
        except LavisExtError as error:
            assert error.exit_code == code
        assert target.read_bytes() == mine
        target.unlink()


@pytest.mark.fault("F08")
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EACCES])
def test_a_file_system_without_hard_links_will_do(
    number: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    transfer = Transfer(tmp_path / "f.bin", (Source(server.put("/f.bin", DATA)),), SIZE, SHA256)
    server.script("/f.bin", Fault(times=1, cut_at=900_000), Fault(times=1, status=404), Fault())
    with pytest.raises(LavisExtError):
        fetch(transfer, FAST)
    assert part_bytes(transfer.path) == 900_000
    assert fetch(transfer, FAST).bytes_moved == SIZE - 900_000 and transfer.path.read_bytes() == DATA
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lavis_ext", "f.bin"]


# Left by a kill

KILLS = 20
BLOCK = FAST.checkpoint_bytes
PAGE = 4096
LARGE = payload(1_000_003) * 32  # no page of it is like another


@pytest.fixture(scope="module")
def fetcher() -> Iterator[Fetcher]:
    with Fetcher() as running:
        yield running


def unlisted(target: Path) -> np.ndarray:
    """Of each byte of the partial file, whether it is right, by pages, and listed by no sidecar."""
    right, listed = np.zeros(len(LARGE), bool), np.zeros(len(LARGE), bool)
    for part in parts(target):
        data, sidecar = part.read_bytes(), part.with_name(f"{part.name}.json")
        for at in range(0, len(data), PAGE):
            right[at : at + PAGE] |= data[at : at + PAGE] == LARGE[at : at + PAGE]
        for start, stop in read_sidecar(sidecar)["done"] if sidecar.exists() else []:
            listed[start:stop] = True
    return right & ~listed


def claims_are_true(target: Path) -> bool:
    """Whether every byte that a sidecar lists is there."""
    for part in parts(target):
        data, sidecar = part.read_bytes(), part.with_name(f"{part.name}.json")
        done = read_sidecar(sidecar)["done"] if sidecar.exists() else []
        if any(data[start:stop] != LARGE[start:stop] for start, stop in done):
            return False
    return True


@pytest.mark.fault("H28", "R12")
@pytest.mark.parametrize("segments", [1, 4])
def test_twenty_kills_cost_less_than_a_block_each(
    segments: int, fetcher: Fetcher, server: Server, tmp_path: Path
) -> None:
    target, url, size = tmp_path / "d" / "f.bin", server.put("/f.bin", LARGE), len(LARGE)
    sha256 = hashlib.sha256(LARGE).hexdigest()
    server.script("/f.bin", Fault(rate=8_000_000.0 / segments))
    chance = random.Random(segments)
    policy = {"segments": segments, "parallel_from": 1 << 20, "segment_bytes": 1 << 20}
    lost = np.zeros(size, bool)
    for _ in range(KILLS):
        before = server.sent()
        fetcher.start(target, url, size, sha256, policy=policy)
        goal = before + chance.randrange(20_000, 1_200_000)
        assert wait_until(lambda goal=goal: server.sent() >= goal)
        time.sleep(chance.uniform(0, 0.02))
        fetcher.kill()
        if target.exists():  # on a machine that stood still for seconds
            break
        earlier, lost = lost, unlisted(target)  # what an earlier kill has lost may not have come again yet
        assert (lost & ~earlier).sum() < BLOCK and claims_are_true(target)
    fetcher.start(target, url, size, sha256, policy=policy)
    server.faults.clear()
    assert fetcher.wait()["exit"] == 0
    assert target.read_bytes() == LARGE
    assert sorted(path.name for path in target.parent.iterdir()) == [".lavis_ext", "f.bin"]


@pytest.mark.fault("H28")
@pytest.mark.parametrize("moment", ["_adopt", "_save", "close", "_note", "publish", "give_name", "_forget"])
def test_a_kill_between_two_steps_loses_no_more(moment: str, fetcher: Fetcher, server: Server, tmp_path: Path) -> None:
    """At the seams: taking what is left, writing its record, letting go, publishing."""
    import signal

    target, url = tmp_path / "d" / "f.bin", server.put("/f.bin", DATA)
    server.script("/f.bin", Fault(times=1, cut_at=900_000), Fault(times=9, status=503), Fault())
    fetcher.start(target, url, SIZE, SHA256, policy={"retries": 1})
    assert fetcher.wait()["exit"] == 4 and part_bytes(target) == 900_000
    server.faults.clear()
    if moment in ("close", "_forget"):
        server.script("/f.bin", Fault(cut_at=1_200_000))
    place = f"lavis_ext.fetch.part:{'' if moment == 'give_name' else 'Part.'}{moment}"
    fetcher.start(target, url, SIZE, SHA256, policy={"retries": 0}, stop_at=place)
    fetcher.wait_stopped()
    fetcher.signal(signal.SIGKILL)
    fetcher.wait()
    server.faults.clear()
    moved = fetch(Transfer(target, (Source(url),), SIZE, SHA256), FAST).bytes_moved
    assert moved <= SIZE - 900_000 and target.read_bytes() == DATA
    assert sorted(path.name for path in target.parent.iterdir()) == [".lavis_ext", "f.bin"]


# Of another form, and of earlier versions


def test_what_an_earlier_version_left_is_continued(server: Server, tmp_path: Path) -> None:
    """Its partial file, a sidecar of one object, and the owner file of a process that is gone."""
    target, url = tmp_path / "f.bin", server.put("/f.bin", DATA)
    (tmp_path / "f.bin.part").write_bytes(DATA[:1_000_000] + bytes(100_000))
    state = {"format": 1, "url": url, "equivalence": "byte_exact", "etag": None, "last_modified": None, "size": SIZE}
    (tmp_path / "f.bin.part.json").write_text(json.dumps({**state, "boot": "b", "done": [[0, 1_000_000]]}))
    owner = {"pid": 2**22 - 3, "host": "vm/pid:[4026531836]", "boot": "b", "started": 1, "token": "ab" * 8}
    (tmp_path / "f.bin.part.owner").write_text(json.dumps(owner))
    os.utime(tmp_path / "f.bin.part.owner", (1, 1))
    assert part_bytes(target) == 1_000_000
    assert fetch(Transfer(target, (Source(url),), SIZE, SHA256), FAST).bytes_moved == SIZE - 1_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lavis_ext", "f.bin"]


@pytest.mark.parametrize("first", ["subset", "byte_exact"])
def test_a_partial_file_is_not_continued_from_a_source_of_another_form(
    first: str, server: Server, second: Server, tmp_path: Path
) -> None:
    """Of equal size, with the same ETag: a subset's bytes and the exact ones do not mix, in either order."""
    subset = Source(server.put("/f.bin", OTHER, etag='"same"'), "subset", SIZE, hashlib.sha256(OTHER).hexdigest())
    exact = Source(second.put("/f.bin", DATA, etag='"same"'))
    sources = (subset, exact) if first == "subset" else (exact, subset)
    (server if first == "subset" else second).script("/f.bin", Fault(times=1, cut_at=900_000), Fault(status=503))
    result = fetch(Transfer(tmp_path / "f.bin", sources, SIZE, SHA256), FAST)
    other = second if first == "subset" else server
    assert other.log[0].range is None and result.equivalence == sources[1].equivalence
    assert (tmp_path / "f.bin").read_bytes() == (DATA if first == "subset" else OTHER)


# Names


@pytest.mark.fault("H25", "F10")
@pytest.mark.parametrize("name", ["x" * 255, "\u00e9" * 127 + "x", "x" * 240 + ".bin", "x" * 224])
def test_the_longest_names_are_fetched_resumed_and_set_aside(name: str, server: Server, tmp_path: Path) -> None:
    target, url = tmp_path / "d" / name, server.put("/f.bin", DATA)
    transfer = Transfer(target, (Source(url),), SIZE, SHA256)
    server.script("/f.bin", Fault(times=1, cut_at=900_000), Fault(status=503))
    with pytest.raises(LavisExtError):
        fetch(transfer, FAST)
    server.faults.clear()
    assert fetch(transfer, FAST).bytes_moved == SIZE - 900_000
    target.write_bytes(OTHER)
    assert "kept as" in fetch(transfer, FAST).notes[0] and target.read_bytes() == DATA
    assert len([path for path in target.parent.iterdir() if path.is_file()]) == 2


@pytest.mark.fault("H25", "H31")
@pytest.mark.parametrize("name", ["x" * 256, "\u00e9" * 128, "a\0b", "lone\ud800", "d/" * 2100 + "f", "x" * 256 + "/f"])
def test_names_that_no_file_system_takes_are_refused_before_the_first_byte(
    name: str, server: Server, tmp_path: Path
) -> None:
    good = Transfer(tmp_path / "good", (Source(server.put("/f.bin", DATA)),), SIZE, SHA256)
    results = fetch_all([replace(good, path=tmp_path / name), good], FAST, collect=True)
    assert isinstance(results[0].error, ConfigError) and results[1].verified
    assert len(server.log) == 1
