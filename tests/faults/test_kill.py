"""A download that is killed: at random moments, before each of its operations on files, and by signals."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.fetch import Source, Transfer, engine, fetch, fetch_all, lock, part
from lavis_ext.fetch.ledger import Ledger
from lavis_ext.fetch.lock import Ownership, part_bytes
from lavis_ext.fetch.part import Part
from lavis_ext.fetch.session import Validators
from tests.support.fetchers import Fetcher
from tests.support.fetching import FAST
from tests.support.processes import all_ended, descendants
from tests.support.server import Fault, Server, payload, wait_until
from tests.support.toyfamily import Family, pictures

SIZE = 6_000_000
CHECKPOINT = 1 << 18
KILLS = 20

CHILD = """
import sys
from pathlib import Path
from lavis_ext.fetch import Policy, Source, Transfer, fetch, fetch_all
path, url, size, sha256, segments, checkpoint = sys.argv[1:]
policy = Policy(segments=int(segments), parallel_from=1 << 20, segment_bytes=1 << 20, checkpoint_bytes=int(checkpoint))
print("begin", flush=True)
transfer = Transfer(Path(path), (Source(url),), int(size), sha256)
fetch_all([transfer], policy) if "all" in path else fetch(transfer, policy)
"""


def child(transfer: Transfer, segments: int) -> subprocess.Popen[str]:
    arguments = [str(transfer.path), transfer.sources[0].url, str(transfer.size), str(transfer.sha256), str(segments)]
    command = [sys.executable, "-c", CHILD, *arguments, str(CHECKPOINT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    return process


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.fault("R12")
def test_kill_nine_twenty_times_then_complete(
    server: Server, tmp_path: Path, segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "UNWRITTEN", 0.05)  # a kill may hit between the making of an owner file and its writing
    data = payload(SIZE)
    url = server.put("/big.bin", data)
    transfer = Transfer(tmp_path / "d" / "big.bin", (Source(url),), SIZE, hashlib.sha256(data).hexdigest())
    server.script("/big.bin", Fault(rate=3_000_000.0 / segments))
    chance = random.Random(segments)
    policy = {"segments": segments, "parallel_from": 1 << 20, "segment_bytes": 1 << 20, "checkpoint_bytes": CHECKPOINT}
    with Fetcher() as fetcher:
        for _ in range(KILLS):
            fetcher.start(transfer.path, url, SIZE, transfer.sha256, policy={**policy, "fsync": True})
            time.sleep(chance.uniform(0.0, 0.1))
            fetcher.kill()
            if transfer.path.exists():  # on a machine that stood still for seconds
                break
    server.faults.clear()
    result = fetch(transfer, FAST)
    assert transfer.path.read_bytes() == data and result.verified
    # what a kill may cost: bytes since the last record and those in flight in the sockets, per connection
    in_flight = 4 << 20
    assert server.sent() <= SIZE + KILLS * segments * (CHECKPOINT + (1 << 17)) + in_flight
    assert sorted(p.name for p in transfer.path.parent.iterdir()) == [".lavis_ext", "big.bin"]


@pytest.mark.parametrize("name", ["one.bin", "all.bin"])
@pytest.mark.fault("P06")
def test_interrupt_leaves_a_valid_partial_file(server: Server, tmp_path: Path, name: str) -> None:
    data = payload(SIZE)
    transfer = Transfer(tmp_path / name, (Source(server.put("/big.bin", data)),), SIZE)
    transfer = replace(transfer, sha256=hashlib.sha256(data).hexdigest())
    for segments, stall_at, enough in ((1, 1_500_000, 1_200_000), (4, 4_500_000, 4_000_000)):
        server.script("/big.bin", Fault(stall_at=stall_at, stall=200.0))
        process = child(transfer, segments)
        assert wait_until(lambda enough=enough: part_bytes(transfer.path) >= enough, 60)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=20) not in (0, None)
        assert (tmp_path / f"{name}.part.json").exists() and not (tmp_path / f"{name}.part.owner").exists()
        assert "KeyboardInterrupt" in (process.stderr.read() if process.stderr else "")
    server.faults.clear()
    moved = fetch(transfer, FAST).bytes_moved
    assert transfer.path.read_bytes() == data and moved < SIZE // 2


@pytest.mark.parametrize("alive", [False, True])
@pytest.mark.fault("R13")
def test_what_a_kill_after_the_last_byte_leaves_is_removed(tmp_path: Path, alive: bool) -> None:
    """Killed between the rename and the end of the ownership: the file is whole, its companions are not needed."""
    data = payload(5000)
    transfer = Transfer(tmp_path / "f.bin", (Source("http://127.0.0.1:1/f.bin"),), len(data))
    transfer.path.write_bytes(data)
    owner, sidecar = (tmp_path / f"f.bin.part{suffix}" for suffix in (".owner", ".json"))
    with Ownership(owner, tmp_path / "f.bin.part", FAST):
        left = owner.read_bytes()
        sidecar.write_text("{}")
        if alive:
            assert fetch(transfer, FAST).reused and owner.read_bytes() == left and sidecar.exists()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner.write_bytes(json.dumps({**json.loads(left), "pid": gone.pid}).encode())
    assert fetch(transfer, FAST).reused
    assert not owner.exists() and not sidecar.exists() and transfer.path.read_bytes() == data


def test_killed_as_it_removes_what_a_kill_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "UNWRITTEN", 0.05)
    data = payload(5000)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = replace(lock.own_identity(), pid=gone.pid)
    number, killed = 0, True
    while killed:
        number += 1
        target = tmp_path / str(number) / "f.bin"
        transfer = Transfer(target, (Source("http://127.0.0.1:1/f.bin"),), len(data))
        target.parent.mkdir()
        target.write_bytes(data)
        target.with_name("f.bin.part.owner").write_text(json.dumps(vars(dead)))
        for token in (f".{dead.token}", "", ".0123456789abcdef"):
            target.with_name(f"f.bin.part{token}").write_bytes(data[:100])
            target.with_name(f"f.bin.part{token}.json").write_text("{}")
        killed = killed_before(number, lambda transfer=transfer: fetch(transfer, FAST))
        assert fetch(transfer, FAST).reused and target.read_bytes() == data, number
        assert {path.name for path in target.parent.iterdir()} == {"f.bin", ".lavis_ext"}, number
    assert number > 8


OPERATIONS = ("open", "pwrite", "write", "ftruncate", "fsync", "link", "mkdir", "rename", "replace", "unlink", "utime")


def killed_before(number: int, act: Callable[[], object]) -> bool:
    """Run `act` in a fork that is killed -9 before its operation on files of this number; whether it has so many."""
    child = os.fork()
    if child == 0:
        count = 0

        def counting(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*given, **named)

            return call

        for name in OPERATIONS:
            setattr(os, name, counting(getattr(os, name)))
        io.open = counting(io.open)  # type: ignore[assignment]  # what pathlib calls
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.fault("R13")
def test_killed_before_each_operation_on_many_files(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose owner files are links of one that they share; the first one's is its own."""
    monkeypatch.setattr(lock, "UNWRITTEN", 0.05)
    monkeypatch.setattr(lock, "MANY", 2)
    files = {f"{n}.bin": payload(70_000, n) for n in range(3)}
    sources = {name: (Source(server.put(f"/{name}", data)),) for name, data in files.items()}
    policy = replace(FAST, checkpoint_bytes=1 << 16, jobs=1)
    number, killed, shared = 0, True, 0
    while killed:
        number += 1
        folder = tmp_path / str(number)
        wanted = [
            Transfer(folder / name, sources[name], len(data), hashlib.sha256(data).hexdigest())
            for name, data in files.items()
        ]
        killed = killed_before(number, lambda wanted=wanted: fetch_all(wanted, policy))
        left = {path.name for path in folder.iterdir()} if folder.exists() else set()
        shared += any(name.startswith(".owner.") for name in left)
        assert all(path.read_bytes() == files[path.name] for path in folder.glob("*.bin")), number
        assert all(result.verified for result in fetch_all(wanted, policy)), number
        assert {path.name for path in folder.iterdir()} == {*files, ".lavis_ext"}, number
        assert all((folder / name).read_bytes() == data for name, data in files.items()), number
    assert number > 20 and shared > 10


@pytest.mark.fault("R13", "F11")
@pytest.mark.parametrize("there", [False, True], ids=["fetched", "over another file"])
def test_killed_before_each_operation_on_files(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(lock, "UNWRITTEN", 0.05)
    data = payload(150_000)
    url = server.put("/f.bin", data)
    policy = replace(FAST, checkpoint_bytes=1 << 16, fsync=True)
    number, killed = 0, True
    while killed:
        number += 1
        transfer = Transfer(
            tmp_path / str(number) / "f.bin", (Source(url),), len(data), hashlib.sha256(data).hexdigest()
        )
        if there:
            transfer.path.parent.mkdir()
            transfer.path.write_bytes(b"my own")
        killed = killed_before(number, lambda transfer=transfer: fetch(transfer, policy))
        if transfer.path.exists():
            assert transfer.path.read_bytes() in (data, b"my own"), number
        whole = transfer.path.exists() and transfer.path.stat().st_size == len(data)
        sent = server.sent()
        assert fetch(transfer, policy).verified and transfer.path.read_bytes() == data, number
        assert not whole or server.sent() == sent, number
        kept = [path.read_bytes() for path in transfer.path.parent.iterdir() if ".bad-" in path.name]
        assert kept == [b"my own"] * there, number
        left = {path.name for path in transfer.path.parent.iterdir() if ".bad-" not in path.name}
        assert left == {"f.bin", ".lavis_ext"}, (number, left)
    assert number > 15


@pytest.mark.fault("R13", "F07")
def test_killed_in_a_takeover_what_the_one_before_left_is_continued(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "UNWRITTEN", 0.05)
    data = payload(150_000)
    url = server.put("/f.bin", data)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = replace(lock.own_identity(), pid=gone.pid)
    number, killed = 0, True
    while killed:
        number += 1
        target = tmp_path / str(number) / "f.bin"
        target.parent.mkdir()
        transfer = Transfer(target, (Source(url),), len(data), hashlib.sha256(data).hexdigest())
        part = Part(target, 1 << 16)
        part.record_validators(transfer.sources[0], Validators(f'"{hashlib.md5(data).hexdigest()}"'), len(data))
        part.write(0, data[:100_000])
        part.close()
        for suffix in ("", ".json"):
            target.with_name(f"f.bin.part{suffix}").rename(target.with_name(f"f.bin.part.{dead.token}{suffix}"))
        target.with_name("f.bin.part.owner").write_text(json.dumps(vars(dead)))
        killed = killed_before(number, lambda transfer=transfer: fetch(transfer, FAST))
        sent = server.sent()
        assert fetch(transfer, FAST).verified and target.read_bytes() == data, number
        assert server.sent() - sent <= 50_000, number
        assert {path.name for path in target.parent.iterdir()} == {"f.bin", ".lavis_ext"}, number
    assert number > 15


@pytest.mark.fault("F07")
@pytest.mark.parametrize(("name", "old"), [("f.bin.part.owner", False), ("owner.json", True), (".owner", False)])
def test_what_a_kill_in_a_takeover_leaves_is_removed_by_the_next_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, old: bool
) -> None:
    """An owner file that was renamed to be removed; what names no owner, or one that lives, stays."""
    monkeypatch.setattr(lock, "UNWRITTEN", 0.05)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = {**vars(lock.own_identity()), "pid": gone.pid, **({"host": "elsewhere", "boot": "x"} if old else {})}
    number, killed = 0, True
    while killed:
        number += 1
        owner = tmp_path / str(number) / name
        owner.parent.mkdir()
        owner.write_text(json.dumps(left))
        os.utime(owner, (1_000_000_000, 1_000_000_000))
        mine = owner.with_name("notes.owner.0123456789abcdef")
        mine.write_text("my own")
        with Ownership(tmp_path / "living.owner", owner, FAST):
            living = owner.with_name("living.owner.0123456789abcdef")
            living.write_bytes((tmp_path / "living.owner").read_bytes())

            def take(owner: Path = owner) -> None:
                with Ownership(owner, owner, replace(FAST, owner_watch=0.0)):
                    pass

            killed = killed_before(number, take)
            with Ownership(owner, owner, replace(FAST, owner_watch=0.0)):
                there = {path.name for path in owner.parent.iterdir()}
                assert there == {name, mine.name, living.name}, (number, there)
    assert number > 3


@pytest.mark.fault("P06")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_command(server: Server, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 30, 20_000))
    environment = toy.environment(toy.write_card(tmp_path / "configs"))
    command = [sys.executable, "-m", "lavis_ext", "prepare", "toy", "--json"]
    path = toy.path("train.zip")
    server.script(path, Fault(stall_at=400_000, stall=60.0))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = "train.zip.part.????????????????"
    assert wait_until(lambda: any(one.stat().st_size >= 400_000 for one in toy.images.glob(part)), 60)
    children = descendants(process.pid)
    process.send_signal(sent)
    out, error = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in error
    assert json.loads(out.splitlines()[-1])["exit_code"] == code
    assert wait_until(lambda: all_ended(children))
    assert not list(toy.root.rglob("*.owner")) and not list(toy.root.rglob("*.pulse"))
    assert (toy.images / "train.zip.part").is_file() and (toy.images / "train.zip.part.json").is_file()
    server.faults.clear()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert toy.complete() and server.sent(path) <= len(toy.blobs["train.zip"]) + (1 << 17)


@pytest.mark.parametrize("owner, name", [(Path, "unlink"), (engine, "note"), (part, "give_name")])
@pytest.mark.fault("R12")
def test_killed_as_an_archive_gets_its_name_it_goes_after_the_next_run(
    server: Server, tmp_path: Path, owner: Any, name: str
) -> None:
    """The ledger knows it as fetched, though its ctime was never recorded; one of the user's own would stay."""
    toy = Family(server, tmp_path / "root")
    archive = toy.images / "train.zip"
    pid = os.fork()
    if not pid:
        real = getattr(owner, name)

        def dying(*given: Any, **named: Any) -> Any:
            found = [one for one in given if isinstance(one, Path) and one.name.startswith("train.zip")]
            if found and (name == "give_name" or archive.exists()):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        setattr(owner, name, dying)
        toy.prepare()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert archive.exists() == (name != "give_name")
    assert toy.prepare().exit_code == 0
    assert toy.complete()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.fault("R12")
def test_killed_before_a_spent_archive_is_removed_the_next_run_removes_it(
    server: Server, tmp_path: Path, kept: bool
) -> None:
    """All is recorded as complete by then; who wants to keep it may still say so."""
    toy = Family(server, tmp_path / "root")
    archive = toy.images / "train.zip"
    if not (pid := os.fork()):
        real = Path.unlink

        def dying(path: Path, missing_ok: bool = False) -> None:
            if path == archive:
                os.kill(os.getpid(), signal.SIGKILL)
            real(path, missing_ok)

        Path.unlink = dying  # type: ignore[method-assign]
        toy.prepare()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert archive.exists()
    if kept:
        assert toy.prepare(keep_archives=True, splits=["train"]).exit_code == 0
    for more in ({"splits": ["train"]}, {}):
        assert toy.prepare(**more).exit_code == 0
        assert archive.exists() == kept
    assert kept or toy.complete()


def test_an_archive_of_the_users_stays_though_one_was_about_to_get_its_name(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    archive = toy.images / "train.zip"
    toy.images.mkdir(parents=True)
    archive.write_bytes(toy.blobs["train.zip"])
    digest = hashlib.sha256(toy.blobs["train.zip"]).hexdigest()
    other = tmp_path / "other"
    other.write_bytes(toy.blobs["train.zip"])
    Ledger(tmp_path / "root/toy/.lavis_ext/ledger.jsonl").announce(archive, digest, other.stat())
    assert toy.prepare().exit_code == 0
    assert archive.read_bytes() == toy.blobs["train.zip"]
