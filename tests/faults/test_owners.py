"""Two processes and one file: who may write, who is taken over, and what one does that was, when it wakes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.errors import DiskError, OwnedError
from lavis_ext.fetch import Source, Transfer, fetch, fetch_all, lock
from lavis_ext.fetch.lock import Identity, Ownership, SharedOwners, own_identity, part_bytes
from lavis_ext.runners.job import owned
from tests.support.fetchers import Fetcher, elsewhere
from tests.support.fetching import FAST
from tests.support.killing import own_until_killed
from tests.support.server import Fault, Server, payload, wait_until

SIZE = 1_500_000
DATA = payload(SIZE)
SHA256 = hashlib.sha256(DATA).hexdigest()
LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture(scope="module")
def fetcher() -> Iterator[Fetcher]:
    with Fetcher() as running:
        yield running


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs on another machine than those that it starts."""
    monkeypatch.setattr(lock, "_host", lambda: "vm/pid:[1]/feedfacefeed")


def owner_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.owner")


def clean(target: Path) -> bool:
    return sorted(path.name for path in target.parent.iterdir()) == [".lavis_ext", target.name]


def transfer_of(target: Path, url: str, hashed: bool = True) -> Transfer:
    return Transfer(target, (Source(url),), SIZE, SHA256 if hashed else None)


PART, ENGINE, LOCK = "lavis_ext.fetch.part", "lavis_ext.fetch.engine", "lavis_ext.fetch.lock"
MOMENTS = {
    "while it downloads": (f"{PART}:Part.write", 3),
    "before it takes what is left": (f"{PART}:Part._open", 1),
    "before the record of its bytes": (f"{PART}:Part._save", 1),
    "before it tries again": (f"{ENGINE}:backoff", 1),
    "before it discards its bytes": (f"{PART}:Part.reset", 1),
    "before its bytes are read back": (f"{ENGINE}:hash_open", 1),
    "before the ledger": (f"{ENGINE}:note", 1),
    "before the file gets its name": (f"{PART}:give_name", 1),
    "before it lets go": (f"{PART}:Part.close", 1),
    "before it leaves its ownership": (f"{LOCK}:Ownership.__exit__", 1),
}


@pytest.mark.fault("H02")
@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_owner_that_was_superseded_does_no_harm(
    moment: str, hashed: bool, fetcher: Fetcher, far: None, server: Server, tmp_path: Path
) -> None:
    target, url = tmp_path / "d" / "f.bin", server.put("/f.bin", DATA)
    place, calls = MOMENTS[moment]
    if "again" in moment or "discards" in moment:
        server.script("/f.bin", Fault(times=1, cut_at=600_000), Fault(times=1, ignore_range=True), Fault())
    fetcher.start(target, url, SIZE, SHA256 if hashed else None, stop_at=place, calls=calls)
    fetcher.wait_stopped()
    if owner_file(target).exists():
        os.utime(owner_file(target), LONG_AGO)
    fetch(transfer_of(target, url, hashed), FAST)
    published = target.stat()
    fetcher.signal(signal.SIGCONT)
    ended = fetcher.wait()
    assert ended["exit"] == 9 or (ended["exit"] == 0 and ended["sha256"] == SHA256), ended
    now = target.stat()
    assert target.read_bytes() == DATA
    assert (now.st_ino, now.st_mtime_ns, now.st_nlink) == (published.st_ino, published.st_mtime_ns, 1)
    assert fetch(transfer_of(target, url), FAST).reused and clean(target)


@pytest.mark.fault("H02")
def test_the_one_that_wakes_while_the_other_still_works_ends(
    fetcher: Fetcher, far: None, server: Server, tmp_path: Path
) -> None:
    target, url = tmp_path / "d" / "f.bin", server.put("/f.bin", DATA)
    hold = threading.Event()
    server.script("/f.bin", Fault(stall_at=800_000, stall=60.0, hold=hold))
    fetcher.start(target, url, SIZE, SHA256, policy={"stall_timeout": 60.0})
    assert wait_until(lambda: part_bytes(target) > 500_000)
    fetcher.signal(signal.SIGSTOP)
    os.utime(owner_file(target), LONG_AGO)
    with Ownership(owner_file(target), target, FAST) as second:
        fetcher.signal(signal.SIGCONT)
        hold.set()
        ended = fetcher.wait()
        assert ended["exit"] == 9 and "taken this file over" in ended["error"]
        assert second.holds() and not target.exists()
        assert [path.name for path in target.parent.glob("*.part*")] == [owner_file(target).name]
    assert fetch(transfer_of(target, url), FAST).verified


@pytest.mark.fault("H02")
def test_the_bytes_of_a_silent_owner_are_copied_not_shared(
    fetcher: Fetcher, far: None, server: Server, tmp_path: Path
) -> None:
    target, url = tmp_path / "d" / "f.bin", server.put("/f.bin", DATA)
    hold = threading.Event()
    server.script("/f.bin", Fault(times=1, stall_at=1_000_000, stall=60.0, hold=hold, cut_at=1_010_000))
    fetcher.start(target, url, SIZE, SHA256, policy={"stall_timeout": 60.0})
    assert wait_until(lambda: part_bytes(target) > 700_000)
    fetcher.signal(signal.SIGSTOP)
    (its,) = (path for path in target.parent.glob("f.bin.part.*") if path.suffix not in (".json", ".owner"))
    inode = its.stat().st_ino
    os.utime(owner_file(target), LONG_AGO)
    result = fetch(transfer_of(target, url), FAST)
    assert 0 < result.bytes_moved < 800_000 and target.stat().st_ino != inode
    fetcher.signal(signal.SIGCONT)
    hold.set()
    assert fetcher.wait()["exit"] in (0, 9)
    assert target.read_bytes() == DATA and clean(target)


@pytest.mark.fault("H02")
def test_ownership_is_checked_at_publishing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last moment: everything is fetched and hashed, and the owner file is another's by then."""
    from lavis_ext.fetch import engine

    target, url, real = tmp_path / "f.bin", server.put("/f.bin", DATA), engine.hash_open

    def superseded(*given: object) -> object:
        found = real(*given)  # type: ignore[arg-type]
        owner_file(target).write_text(json.dumps(vars(own_identity())))
        return found

    monkeypatch.setattr(engine, "hash_open", superseded)
    with pytest.raises(OwnedError):
        fetch(transfer_of(target, url), FAST)
    assert not target.exists() and not list(tmp_path.glob("*.part.[0-9a-f]*"))


# Machines


@pytest.mark.fault("H03")
@pytest.mark.parametrize("change", [{"boot": "b" * 32}, {"machine": "c" * 32}, {"name": "node7"}])
def test_a_live_owner_elsewhere_is_not_taken_over(change: dict[str, str], server: Server, tmp_path: Path) -> None:
    prefix = elsewhere(tmp_path, **change)
    if prefix is None:
        pytest.skip("unshare is not allowed here: no other machine can be emulated")
    target, url = tmp_path / "d" / "f.bin", server.put("/f.bin", DATA)
    server.script("/f.bin", Fault(stall_at=800_000, stall=30.0))
    with Fetcher(prefix) as other:
        other.start(target, url, SIZE, SHA256, heartbeat=0.05, policy={"stall_timeout": 30.0})
        assert wait_until(lambda: server.sent() >= 800_000)
        found = json.loads(owner_file(target).read_text())
        assert not Identity(**found).runs_here
        for stamp in (None, LONG_AGO, (time.time() + 86_400,) * 2):  # clocks may jump
            os.utime(owner_file(target), stamp)
            with pytest.raises(OwnedError):
                fetch(transfer_of(target, url), replace(FAST, owner_stall=0.4, owner_watch=20.0))
        assert json.loads(owner_file(target).read_text()) == found and len(server.log) == 1


@pytest.mark.fault("H03")
def test_two_trainings_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other runs on a machine of the same name; a clock that jumped makes its heartbeat look old."""
    pid = own_until_killed(tmp_path, heartbeat=0.05)
    monkeypatch.setattr(lock, "_host", lambda: "vm/pid:[1]/feedfacefeed")
    try:
        for stamp in (None, LONG_AGO):
            os.utime(tmp_path / "owner.json", stamp)
            with pytest.raises(OwnedError) as caught, owned(tmp_path):
                pass
            assert str(tmp_path / "owner.json") in str(caught.value)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.fault("H03", "F07")
def test_a_heartbeat_that_stands_still_is_taken_over_whatever_its_clock_says(far: None, tmp_path: Path) -> None:
    path = tmp_path / "f.part.owner"
    silent = Identity(os.getpid(), "vm/pid:[4026531836]", "another boot", 1, "0")
    policy = replace(FAST, owner_expiry=0.5, owner_watch=0.1, owner_stall=3.0)
    for ahead in (-1000.0, 0.0, 86_400.0):
        path.write_text(json.dumps(vars(silent)))
        os.utime(path, (time.time() + ahead,) * 2)
        begun = time.monotonic()
        with Ownership(path, tmp_path / "f.part", policy) as owner:
            assert owner.waited and owner.replaced == ["0"] and not owner.gone
        assert time.monotonic() - begun < 60


def test_a_child_does_not_keep_the_heartbeat_of_a_parent_that_is_gone(tmp_path: Path) -> None:
    program = (
        "import os, time; from pathlib import Path; from lavis_ext.fetch import Policy, lock\n"
        "lock.HEARTBEAT = 0.05\n"
        "def own(name):\n"
        f"    path = Path({str(tmp_path)!r}) / name\n"
        "    return lock.Ownership(path, path, Policy()).__enter__()\n"
        "first = own('parents')\n"
        "if os.fork(): os._exit(0)\n"
        "second = own('childs'); print('ready', flush=True); time.sleep(30)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    with child.stdout:
        try:
            child.wait()  # the parent's own last heartbeat is before that
            before = [(tmp_path / name).stat().st_mtime_ns for name in ("parents", "childs")]
            assert wait_until(lambda: (tmp_path / "childs").stat().st_mtime_ns > before[1] + 200_000_000)
            assert (tmp_path / "parents").stat().st_mtime_ns == before[0]
        finally:
            os.kill(json.loads((tmp_path / "childs").read_text())["pid"], signal.SIGKILL)


@pytest.mark.fault("H18")
@pytest.mark.parametrize("host", ["elsewhere", ""])
def test_an_owner_file_stamped_ahead_holds_nobody_for_a_day(host: str, server: Server, tmp_path: Path) -> None:
    target, url = tmp_path / "f.bin", server.put("/f.bin", DATA)
    left = replace(own_identity(), pid=2**22 - 3, token="0" * 16)
    owner_file(target).write_text(json.dumps(vars(replace(left, host=host) if host else left)))
    os.utime(owner_file(target), (time.time() + 86_400,) * 2)
    assert fetch(transfer_of(target, url), FAST).verified and target.read_bytes() == DATA


@pytest.mark.fault("H18")
def test_an_owner_that_seems_alive_is_named_with_what_to_delete(tmp_path: Path) -> None:
    path = tmp_path / "f.part.owner"
    with Ownership(path, tmp_path / "f.part", FAST):
        os.utime(path, (time.time() + 86_400,) * 2)
        with pytest.raises(OwnedError) as caught:
            Ownership(path, tmp_path / "f.part", replace(FAST, owner_stall=0.1)).__enter__()
    assert f"delete {path}" in caught.value.problems[0].way_out and str(os.getpid()) in str(caught.value)


# Owner files of many files, which are links of one


def many(server: Server, folder: Path) -> list[Transfer]:
    data = [payload(3000, n) for n in range(4)]
    urls = [server.put(f"/{n}.bin", one) for n, one in enumerate(data)]
    return [Transfer(folder / f"{n}.bin", (Source(url),), 3000) for n, url in enumerate(urls)]


@pytest.mark.fault("H02")
def test_the_owner_files_of_many_are_links_of_one_and_respected(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever fetches one of the files alone, and by many that come to a file which another fetches alone."""
    monkeypatch.setattr(lock, "MANY", 2)
    wanted, impatient = many(server, tmp_path), replace(FAST, owner_stall=0.1)
    with SharedOwners() as owners, contextlib.ExitStack() as stack:
        for path in (one.path for one in wanted):
            stack.enter_context(Ownership(owner_file(path), path, FAST, shared=owners.of(path)))
        (shared,) = tmp_path.glob(".owner.*")
        inodes = [owner_file(one.path).stat().st_ino for one in wanted]
        assert inodes[1:] == [shared.stat().st_ino] * 3 and inodes[0] != inodes[1]
        for one in wanted:
            with pytest.raises(OwnedError) as caught:
                fetch(one, impatient)
            assert f"process {os.getpid()}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with Ownership(owner_file(wanted[2].path), tmp_path / "watched", FAST) as alone:
        results = fetch_all(wanted, impatient, collect=True)
        assert alone.holds()
    assert [result.error.exit_code if result.error else 0 for result in results] == [0, 0, 9, 0]


@pytest.mark.fault("H02")
def test_one_of_many_that_is_taken_over_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far: None
) -> None:
    """Its run lives elsewhere and its heartbeat stands still; that of its other files counts as before."""
    monkeypatch.setattr(lock, "MANY", 1)
    monkeypatch.setattr(lock._HEARTBEAT, "add", lambda _: None)
    files = [tmp_path / name for name in ("a", "b")]
    with SharedOwners() as owners, contextlib.ExitStack() as stack:
        first, other = (
            stack.enter_context(Ownership(owner_file(path), path, FAST, shared=owners.of(path))) for path in files
        )
        assert first.token == other.token and owner_file(files[0]).samefile(owner_file(files[1]))
        os.utime(owner_file(files[0]), LONG_AGO)
        monkeypatch.setattr(lock, "_host", lambda: "another/pid:[1]/feedfacefeed")
        with Ownership(owner_file(files[0]), files[0], FAST) as second:
            assert second.replaced == [first.token] and not second.gone
            assert not first.holds() and other.holds()
            with pytest.raises(OwnedError):
                first.require()
            stack.close()
            assert second.holds() and not owner_file(files[1]).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["hard links", "the shared file"])
def test_many_are_owned_one_by_one_where_no_file_can_be_shared(
    missing: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "MANY", 1)
    failed: list[Path] = []
    real = os.link

    def link(source: Path, name: Path) -> None:
        """Fails for all, or finds that the file which is shared has been removed."""
        if missing == "hard links" or source.name.startswith(".owner."):
            failed.append(name)
            if missing == "hard links":
                raise PermissionError(errno.EPERM, "Operation not permitted")
            source.unlink(missing_ok=True)
        real(source, name)

    monkeypatch.setattr(os, "link", link)
    wanted = many(server, tmp_path)
    results = fetch_all(wanted, replace(FAST, jobs=1))
    assert all(result.verified and not result.reused for result in results)
    assert len(failed) == (5 if missing == "hard links" else 3), (
        "once by the first, and each file's name; by the others"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lavis_ext", *(one.path.name for one in wanted)]


# Owner files that are none


@pytest.mark.fault("H31")
@pytest.mark.parametrize("kind", ["folder", "link to nothing", "name too long", "pipe", "no folder"])
def test_an_owner_file_that_cannot_be_made_is_a_disk_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("o" * 256 if "long" in kind else "none/owner" if kind == "no folder" else "owner")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "nothing")
    with pytest.raises(DiskError) as caught:
        Ownership(path, path, FAST).__enter__()
    assert caught.value.exit_code == 6 and str(path) in str(caught.value)


@pytest.mark.fault("F07")
def test_an_owner_file_that_a_process_was_killed_in_writing_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However impatient one is with a process that makes no progress: it may be nobody's in a moment."""
    monkeypatch.setattr(lock, "UNWRITTEN", 1.0)
    target, url = tmp_path / "f.bin", server.put("/f.bin", DATA)
    owner_file(target).touch()
    assert fetch(transfer_of(target, url), replace(FAST, owner_stall=0.0)).verified and clean(target)


@pytest.mark.fault("H31")
@pytest.mark.parametrize("token", ["\0", "\ud800", "../x", ""], ids=ascii)
def test_an_owner_file_whose_token_is_no_name(token: str, server: Server, tmp_path: Path) -> None:
    """A damaged one counts as that of an unknown process: its heartbeat decides."""
    target, url = tmp_path / "f.bin", server.put("/f.bin", DATA)
    far = replace(own_identity(), host="elsewhere", token=token)
    owner_file(target).write_text(json.dumps(vars(far)))
    os.utime(owner_file(target), LONG_AGO)
    assert fetch(transfer_of(target, url), FAST).verified and target.read_bytes() == DATA and clean(target)


@pytest.mark.fault("H31")
def test_one_folder_that_cannot_be_written_does_not_stop_the_others(server: Server, tmp_path: Path) -> None:
    url = server.put("/f.bin", DATA)
    (tmp_path / "no").write_text("not a folder")
    wanted = [transfer_of(tmp_path / "no" / "f.bin", url)]
    wanted += [transfer_of(tmp_path / f"{n}.bin", url) for n in range(3)]
    (tmp_path / "1.bin.part.owner").mkdir()
    results = fetch_all(wanted, replace(FAST, jobs=1), collect=True)
    assert [result.error.exit_code if result.error else 0 for result in results] == [6, 0, 6, 0]


@pytest.mark.fault("H31")
def test_an_owner_file_of_another_user_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a umask of 077 others cannot read it; its heartbeat still counts."""
    path, real = tmp_path / "f.part.owner", os.open
    path.write_text("{}")
    os.utime(path, (time.time() - 30,) * 2)

    def unreadable(name: object, flags: int, *more: int) -> int:
        if name == path and not flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return real(name, flags, *more)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", unreadable)
    with contextlib.suppress(OwnedError):
        Ownership(path, tmp_path / "f.part", replace(FAST, owner_stall=0.2)).__enter__()
        pytest.fail("it was taken over")
    assert path.exists()


def test_a_mount_that_fails_for_a_moment_takes_no_ownership(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training looks at its owner file after each step: a soft mount that times out once must not end it."""
    with owned(tmp_path) as owner:
        with monkeypatch.context() as failing:

            def fail(_: Path) -> bytes:
                raise OSError(5, "Input/output error")

            failing.setattr(Path, "read_bytes", fail)
            owner.require()
        (tmp_path / "owner.json").write_text(json.dumps(vars(own_identity())))
        with pytest.raises(OwnedError):
            owner.require()
