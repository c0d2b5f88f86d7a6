"""The fault table of the engine, by ID: inject, survive or say why, then converge once the world is healthy again.

T: transport · R: resume and integrity · F: file system and concurrency · S: secrets and network policy.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from lavis_ext.common.errors import AccessError, DiskError, IntegrityError, NetworkError, OwnedError, UnsafeError
from lavis_ext.fetch import Figures, Source, Transfer, fetch, fetch_all, http, safety
from lavis_ext.fetch import engine as existing
from lavis_ext.fetch.lock import Identity, own_identity
from tests.support.fetching import CANARY, CASES, SIZE, World, case, certificate
from tests.support.server import Fault, Server, payload

HTML = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@case("T01")
def connection_refused_then_mirror(world: World) -> None:
    dead = f"http://127.0.0.1:{closed_port()}/f.bin"
    assert world.get(dead, world.second_url).source == world.second_url
    world.target.unlink()
    message = world.fails(NetworkError, "refused", dead, "http://name.invalid/f.bin")
    assert "name.invalid" in message and dead in message


@case("T02")
def body_always_short(world: World) -> None:
    world.server.script("/f.bin", Fault(cut_at=SIZE // 2))
    world.fails(NetworkError, "ended", world.first_url)
    assert world.part.exists() and json.loads(world.sidecar.read_text())["done"] == [[0, SIZE // 2]]
    assert world.heals().bytes_moved == SIZE - SIZE // 2


@case("T03")
def truncated_once(world: World) -> None:
    world.server.script("/f.bin", Fault(times=1, cut_at=100_000))
    assert world.get().bytes_moved == SIZE
    assert [seen.range for seen in world.server.log] == [None, "bytes=100000-"]


@case("T04")
def close_delimited(world: World) -> None:
    world.server.script("/f.bin", Fault(lengthless=True, cut_at=1000))
    world.fails(NetworkError, "ended at byte 1000|ended", world.first_url)
    bare = replace(world.bare(), path=world.folder / "bare" / "f.bin")
    with pytest.raises(NetworkError, match="no length and none is declared"):
        fetch(bare, world.policy)
    assert not bare.path.exists()
    world.heals()


@case("T05")
def not_found_is_not_retried(world: World) -> None:
    world.server.script("/f.bin", Fault(status=404, body=b"no"))
    world.fails(NetworkError, "HTTP 404")
    assert len(world.server.log) == 1 and not world.part.exists()
    assert world.get(world.first_url, world.second_url).source == world.second_url


@case("T06")
def access_denied_names_the_cause(world: World) -> None:
    denied = Fault(status=409, headers={"x-ms-error-code": "PublicAccessNotPermitted"})
    world.server.script("/f.bin", denied)
    message = world.fails(AccessError, "PublicAccessNotPermitted")
    assert "token" in message and AccessError.exit_code == 7
    for status in (401, 403):
        world.server.script("/f.bin", Fault(status=status))
        world.fails(AccessError, f"HTTP {status}")
    assert len(world.server.log) == 3
    world.heals()


@case("T07")
def unavailable_twice_waits_as_told(world: World) -> None:
    world.server.script("/f.bin", Fault(times=2, status=503, headers={"Retry-After": "1"}))
    world.policy = replace(world.policy, retry_after_cap=0.2)
    begun = time.monotonic()
    world.get()
    assert 0.4 <= time.monotonic() - begun < 2.0 and len(world.server.log) == 3


@case("T08")
def too_many_requests(world: World) -> None:
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=0.4), usegmt=True)
    world.server.script("/f.bin", Fault(times=1, status=429, headers={"Retry-After": soon}))
    world.get()
    world.target.unlink()
    world.server.script("/f.bin", Fault(status=429, headers={"Retry-After": "1000000000"}))
    begun = time.monotonic()
    assert world.get(world.first_url, world.second_url).source == world.second_url
    assert time.monotonic() - begun < 1.0


@case("T09")
def html_instead_of_the_file(world: World) -> None:
    world.server.script("/f.bin", Fault(instead=HTML))
    world.fails(IntegrityError, "expected 300000 bytes, the server has")
    world.fails(IntegrityError, "quota is used up", size=None)
    archive = replace(world.bare(), path=world.target.with_name("f.zip"))
    with pytest.raises(IntegrityError, match="HTML page instead of"):
        fetch(archive, world.policy)
    assert not archive.path.exists()
    world.server.script("/f.bin", Fault(instead=b"not a zip"))
    with pytest.raises(IntegrityError, match=r"not those of a \.zip"):
        fetch(archive, world.policy)
    world.heals()


@case("T10")
def stall_then_reconnect(world: World) -> None:
    world.server.script("/f.bin", Fault(times=1, stall_at=131_072, stall=3.0))
    begun = time.monotonic()
    assert world.get().bytes_moved == SIZE
    assert time.monotonic() - begun < 2.0
    assert world.server.log[1].range == "bytes=131072-"


@case("T11")
def slow_drip_leaves_for_the_next(world: World) -> None:
    world.server.script("/f.bin", Fault(rate=200.0))
    begun = time.monotonic()
    result = world.get(world.first_url, world.second_url)
    assert result.source == world.second_url and "too slow" in result.notes[0]
    assert time.monotonic() - begun < 3.0


@case("T12")
def longer_than_promised(world: World) -> None:
    world.server.script("/f.bin", Fault(extra=b"x" * 500_000))
    world.fails(IntegrityError, "expected 300000 bytes")
    assert world.server.sent() == 0 or world.server.sent() < 2 * SIZE + 4_000_000
    world.server.script("/f.bin", Fault(extra=b"x" * 500_000, chunked=True))
    world.fails(IntegrityError, "more than the expected 300000 bytes")
    assert not world.part.exists()
    world.heals()


@case("T13")
def range_ignored(world: World) -> None:
    world.leave_partial()
    world.server.script("/f.bin", Fault(ignore_range=True))
    assert world.get().bytes_moved == SIZE


@case("T14")
def range_not_satisfiable_because_complete(world: World) -> None:
    world.leave_partial(SIZE)
    world.server.script("/f.bin", Fault(status=416))
    assert world.get().bytes_moved == 0
    world.target.unlink()
    world.leave_partial(SIZE)
    state = json.loads(world.sidecar.read_text()) | {"size": None}
    world.sidecar.write_text(json.dumps(state))
    assert fetch(world.transfer(size=None), world.policy).bytes_moved == 0
    assert world.server.log[-1].status == 416


@case("T15")
def wrong_content_range(world: World) -> None:
    world.leave_partial()
    world.server.script("/f.bin", Fault(times=1, range_shift=7, only_range=True))
    assert world.get().bytes_moved >= SIZE
    world.target.unlink()
    world.leave_partial()
    world.server.script("/f.bin", Fault(times=1, instead=world.data + b"x", only_range=True))
    world.get()


@case("T16")
def redirect_loop(world: World) -> None:
    world.server.script("/f.bin", Fault(redirect="/f.bin"))
    world.fails(NetworkError, "more than 10 redirects")
    assert len(world.server.log) == 11
    world.server.script("/f.bin", Fault(times=3, redirect="/f.bin"))
    world.get()


@case("T17")
def tls_is_not_given_up(world: World) -> None:
    with Server(certificate=certificate(world.folder)) as secure:
        url = secure.put("/f.bin", world.data)
        world.fails(NetworkError, "TLS", url)
        world.fails(NetworkError, "TLS", url, size=None, sha256=None)
        assert not secure.log


@case("T18")
def content_encoding_is_not_undone(world: World) -> None:
    world.server.script("/f.bin", Fault(headers={"Content-Encoding": "gzip"}))
    world.get()
    assert world.server.log[0].headers["Accept-Encoding"] == "identity"
    with pytest.raises(IntegrityError, match="encodes the body"):
        fetch(replace(world.bare(), path=world.folder / "other.json"), world.policy)


@case("T19")
def proxy_that_refuses(world: World) -> None:
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        world.patch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        world.patch.setenv(name, f"http://user:{CANARY}@127.0.0.1:{closed_port()}")
    message = world.fails(NetworkError, "(?i)proxy|refused")
    assert CANARY not in message + world.log.text
    world.patch.setenv("no_proxy", "127.0.0.1")
    world.patch.setenv("NO_PROXY", "127.0.0.1")
    world.get()


@case("T20")
def first_address_is_dead(world: World) -> None:
    real, port = socket.getaddrinfo, world.server.port

    def two(host: str, *more: object, **named: object) -> list[object]:
        if host != "two.localhost":
            return real(host, *more, **named)  # type: ignore[arg-type,return-value]
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*stream, ("127.0.0.2", closed)), (*stream, ("127.0.0.1", port))]

    closed = closed_port()
    world.patch.setattr(socket, "getaddrinfo", two)
    world.get(f"http://two.localhost:{port}/f.bin")


@case("R01")
def object_replaced_between_runs(world: World) -> None:
    world.leave_partial()
    world.data = payload(SIZE, seed=2)
    world.server.put("/f.bin", world.data)
    assert world.get().bytes_moved == SIZE
    assert world.server.log[0].headers["If-Range"].strip('"') == hashlib.md5(payload(SIZE)).hexdigest()


@case("R02")
def one_bit_flipped(world: World) -> None:
    world.server.script("/f.bin", Fault(times=1, flip_at=1234))
    assert world.get().bytes_moved == 2 * SIZE
    world.target.unlink()
    world.server.script("/f.bin", Fault(flip_at=1234))
    assert world.get(world.first_url, world.second_url).source == world.second_url
    world.target.unlink()
    world.fails(IntegrityError, "expected sha256 .* got ")
    assert len(world.server.requests("/f.bin")) == 6
    world.heals()


@case("R03")
def partial_file_tampered(world: World) -> None:
    world.leave_partial()
    with world.part.open("r+b") as file:
        file.write(b"tampered")
    assert world.get().bytes_moved == SIZE // 2 + SIZE


@case("R04")
def partial_file_too_long(world: World) -> None:
    world.leave_partial()
    with world.part.open("ab") as file:
        file.write(b"x" * SIZE)
    assert world.get().bytes_moved == SIZE


@case("R05")
def sidecar_of_no_use(world: World) -> None:
    other = {"format": 1, "done": [[0, 999_999_999]]}
    for text in ("{half", json.dumps(other), json.dumps([]), None):
        world.leave_partial()
        if text is None:
            world.sidecar.unlink()
        else:
            world.sidecar.write_text(text)
        world.log.clear()
        assert world.get().bytes_moved == SIZE
        assert "starting over" in world.log.text
        world.target.unlink()
    another = world.server.url("/another.bin")
    world.leave_partial(url=another)
    assert fetch(world.bare(), world.policy).bytes_moved == SIZE // 2  # the strong ETag says: the same object
    world.target.unlink()
    world.leave_partial(url=another)
    world.sidecar.write_text(json.dumps(json.loads(world.sidecar.read_text()) | {"etag": '"other"'}))
    assert fetch(world.bare(), world.policy).bytes_moved == SIZE
    assert world.target.read_bytes() == world.data


@case("R06")
def second_exact_mirror_continues(world: World) -> None:
    world.server.script("/f.bin", Fault(times=1, cut_at=180_000), Fault(status=503))
    result = world.get(world.first_url, world.second_url)
    assert result.bytes_moved == SIZE and world.second.log[0].range == "bytes=180000-"
    assert "If-Range" not in world.second.log[0].headers


@case("R07")
def mirror_with_other_bytes_starts_over(world: World) -> None:
    other = payload(200_000, seed=3)
    own = Source(
        world.second.put("/o.bin", other), "reencoded", size=len(other), sha256=hashlib.sha256(other).hexdigest()
    )
    world.server.script("/f.bin", Fault(times=1, cut_at=180_000), Fault(status=503))
    result = fetch(world.transfer(world.first_url, own), world.policy)
    assert (result.equivalence, result.verified, world.second.log[0].range) == ("reencoded", True, None)
    assert world.target.read_bytes() == other
    assert fetch(world.transfer(world.first_url, own), world.policy).reused


@case("R08")
def wrong_file_is_set_aside(world: World) -> None:
    world.target.parent.mkdir(parents=True)
    world.target.write_bytes(b"mine" * (SIZE // 4))
    name = f"f.bin.bad-{hashlib.sha256(b'mine' * (SIZE // 4)).hexdigest()[:8]}"
    assert name in world.get().notes[0]
    assert world.target.with_name(name).read_bytes() == b"mine" * (SIZE // 4)


@case("R09")
def empty_file_of_an_earlier_tool(world: World) -> None:
    world.target.parent.mkdir(parents=True)
    world.target.touch()
    world.get()
    world.target.write_bytes(b"")
    assert fetch(world.bare(), world.policy).bytes_moved == SIZE


@case("R10")
def declared_md5_is_honoured(world: World) -> None:
    world.fails(IntegrityError, "expected md5 0123", sha256=None, md5="0123" * 8)
    world.get(sha256=None, md5=hashlib.md5(world.data).hexdigest().upper())


@case("R11")
def republished_under_a_new_hash(world: World) -> None:
    world.server.put("/f.bin", payload(SIZE, seed=9))
    message = world.fails(IntegrityError, "expected sha256")
    assert hashlib.sha256(payload(SIZE, seed=9)).hexdigest() in message and "replaced the file" in message
    world.server.put("/f.bin", world.data)
    world.heals()


@case("R13")
def killed_between_rename_and_record(world: World) -> None:
    world.get()
    (world.target.parent / ".lavis_ext" / "ledger.jsonl").unlink()
    world.sidecar.write_text("{}")
    again = world.get()
    assert again.reused and len(world.server.log) == 1
    assert (world.target.parent / ".lavis_ext" / "ledger.jsonl").stat().st_size > 0


@case("R14")
def hashed_again_only_if_it_changed(world: World) -> None:
    world.get()
    hashed: list[Path] = []
    real = existing.hash_file

    def counted(path: Path, figures: Figures) -> tuple[str, str | None]:
        hashed.append(path)
        return real(path, figures)

    world.patch.setattr(existing, "hash_file", counted)
    world.get()
    assert not hashed
    os.utime(world.target, (1, 1))
    assert world.get().reused and len(hashed) == 1
    world.get()
    assert len(hashed) == 1
    stat = world.target.stat()
    with world.target.open("r+b") as file:
        file.write(b"X")
    os.utime(world.target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    world.policy = replace(world.policy, deep=True)
    assert not world.get().reused and len(world.server.log) == 2


@case("F01")
def too_little_space_is_told_first(world: World) -> None:
    wanted = world.transfer(size=1 << 60, sha256=None)
    for call in (lambda: fetch(wanted, world.policy), lambda: fetch_all([wanted], world.policy)):
        with pytest.raises(DiskError, match=r"1152921504606846976 bytes are needed, \d+ are free"):
            call()
    assert not world.server.log


@case("F02")
def disk_full_half_way(world: World) -> None:
    world.disk_full_at(200_000)
    world.fails(DiskError, "no space left")
    kept = json.loads(world.sidecar.read_text())["done"][0][1]
    assert 0 < kept <= 200_000
    world.patch.undo()
    assert world.heals().bytes_moved == SIZE - kept


@case("F04")
def quota_exceeded(world: World) -> None:
    world.disk_full_at(100_000, errno.EDQUOT)
    world.fails(DiskError, "quota exceeded")
    world.patch.undo()
    world.heals()


@case("F05")
def folder_that_cannot_be_written(world: World) -> None:
    blocker = world.folder / "file"
    blocker.write_text("not a folder")
    with pytest.raises(DiskError, match="cannot write"):
        fetch(replace(world.transfer(), path=blocker / "f.bin"), world.policy)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    world.patch.setattr(Path, "mkdir", refuse)
    world.fails(DiskError, "Read-only")
    assert not world.server.log


@case("F06")
def four_at_once_fetch_once(world: World) -> None:
    world.server.script("/f.bin", Fault(rate=1_000_000.0))
    results = []
    threads = [threading.Thread(target=lambda: results.append(world.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.reused for result in results) == [False, True, True, True]
    assert world.server.sent("/f.bin") == SIZE


@case("F07")
def stale_owner_is_taken_over(world: World) -> None:
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


@case("F08")
def locks_that_lie(world: World) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    world.patch.setattr(fcntl, "flock", no_locks)
    world.patch.setattr(fcntl, "lockf", no_locks)
    four_at_once_fetch_once(world)


@case("F09")
def partial_file_is_on_the_target_file_system(world: World) -> None:
    world.server.script("/f.bin", Fault(cut_at=100_000))
    world.fails(NetworkError, "ended", world.first_url)
    assert world.part.stat().st_dev == world.target.parent.stat().st_dev
    assert world.part.parent == world.target.parent


@case("F10")
def long_and_unicode_names(world: World) -> None:
    for name in ("x" * 255, "\u00e9" * 120 + ".bin", "e\u0301.bin"):
        world.target = world.folder / "data" / name
        world.get()
        assert [path.name for path in world.target.parent.iterdir() if path.is_file()] == [name]
        world.target.unlink()


@case("F11")
def flushed_before_it_counts(world: World) -> None:
    order: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(fd: int) -> None:
        order.append("fsync " + Path(f"/proc/self/fd/{fd}").readlink().name)
        real_fsync(fd)

    def rename(path: Path, target: Path) -> Path:
        order.append(f"replace {path.name}")
        return real_replace(path, target)

    world.patch.setattr(os, "fsync", fsync)
    world.patch.setattr(Path, "replace", rename)
    world.policy = replace(world.policy, fsync=True)
    world.get()
    assert order == ["fsync f.bin.part", "replace f.bin.part", "fsync data"]


@case("S01")
def redirect_to_another_scheme(world: World) -> None:
    secret = world.folder / "secret"
    secret.write_bytes(world.data)
    for target in (secret.as_uri(), "ftp://host/x", "gopher://host/x", "data:,x"):
        world.server.script("/f.bin", Fault(redirect=target))
        world.fails(UnsafeError, "redirect to scheme")
    world.heals()


@case("S02")
def schemes_of_rows(world: World) -> None:
    for url in ("file:///etc/passwd", "ftp://h/x", "gopher://h/x", "data:,x", "/etc/passwd"):
        with pytest.raises(UnsafeError, match="scheme"):
            safety.refuse_unless_remote(url)
    world.fails(UnsafeError, "scheme 'ftp' is refused", "ftp://h/x")


@case("S03")
def redirect_inside(world: World) -> None:
    world.patch.setattr(http, "leads_inside", lambda host: False)  # as if the first server were on the internet
    for target in (
        world.second_url,
        "http://169.254.169.254/x",
        "http://[::1]:1/x",
        f"http://localhost:{world.second.port}/x",
    ):
        world.server.script("/f.bin", Fault(redirect=target))
        message = world.fails((UnsafeError, NetworkError), "private address|refused|unreachable|assign|timed")  # type: ignore[arg-type]
        assert "169.254" in target or "[::1]" in target or "private address" in message
    assert not world.second.log
    world.server.script("/f.bin", Fault(times=1, redirect=world.second_url))
    world.policy = replace(world.policy, allow_private=True)
    world.get()


@case("S04")
def secrets_stay_out(world: World) -> None:
    query = f"?sv=2023&sig={CANARY}&se=2099"
    world.server.script("/f.bin", Fault(times=1, cut_at=100_000), Fault(times=9, status=503), Fault(status=403))
    world.log.set_level(logging.DEBUG)
    url = world.first_url.replace("http://", f"http://user:{CANARY}@") + query
    message = world.fails(NetworkError, "HTTP 503", url)
    written = "".join(path.read_text("latin-1") for path in world.target.parent.iterdir() if path != world.part)
    assert CANARY not in message + written
    ours = [record.getMessage() for record in world.log.records if record.name.startswith("lavis_ext")]
    assert ours and CANARY not in "".join(ours)
    world.server.faults.clear()
    result = world.get(world.first_url + f"?sv=2023&sig=renewed{CANARY}&se=2100")
    assert result.bytes_moved == SIZE - 100_000 and CANARY not in repr(result)


@case("S07")
def authorization_stays_with_its_host(world: World) -> None:
    from lavis_ext.fetch import Policy, Request, Session

    world.server.script("/f.bin", Fault(times=1, redirect="/g.bin"))
    world.server.script("/g.bin", Fault(times=1, redirect=world.second_url))
    with Session(Policy(offline=False)) as session:
        opener = http.HttpOpener(session)
        opener.open(Request(world.first_url), {"Authorization": f"Bearer {CANARY}"}).body.close()
        opener.close()
    assert [CANARY in str(seen.headers) for seen in world.server.log] == [True, True]
    assert CANARY not in str(world.second.log[0].headers)


@case("S09")
def denied_hosts(world: World) -> None:
    for url in (
        "https://visualgenome.org/x",
        "https://www.visualgenome.org/x",
        "https://msvocds.blob.core.windows.net/x",
    ):
        world.fails(UnsafeError, "deny-list", url)
        with pytest.raises(UnsafeError, match="deny-list"):
            safety.refuse_unless_remote(url)
    world.server.script("/f.bin", Fault(redirect="https://visualgenome.org/x"))
    world.fails(UnsafeError, "deny-list")


@case("S11")
def names_come_from_us(world: World) -> None:
    world.server.script("/f.bin", Fault(headers={"Content-Disposition": 'attachment; filename="../../x"'}))
    world.get()
    assert not (world.folder / "x").exists() and not (world.folder.parent / "x").exists()


@case("S12")
def plain_http_needs_a_hash(world: World) -> None:
    world.patch.setattr(http, "is_loopback", lambda host: False)
    world.fails(UnsafeError, "plain http", size=SIZE, sha256=None)
    world.get()
    world.target.unlink()
    fetch(world.bare(Source(world.first_url, trusted=True)), world.policy)
    assert world.target.read_bytes() == world.data


@pytest.mark.parametrize("name", sorted(CASES))
def test_fault(
    name: str,
    server: Server,
    second: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    CASES[name](World(server, second, tmp_path, monkeypatch, caplog))


def test_the_table_is_whole() -> None:
    transport = {f"T{n:02}" for n in range(1, 21)}
    resume = {f"R{n:02}" for n in range(1, 15)} - {"R12"}  # R12 is test_kill.py
    files = {"F01", "F02", "F05", "F06", "F07", "F08", "F09", "F11"}
    assert transport | resume | files | {"S01", "S03", "S04", "S07", "S09", "S11", "S12"} <= set(CASES)


def test_a_transfer_without_sources_says_so(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="no source is declared"):
        fetch(Transfer(tmp_path / "x", ()))
