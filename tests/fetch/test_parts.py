"""The small parts: redaction, identities, retry delays, speed gate, addresses, owner waits, openers table."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import ConnectTimeoutError, IncompleteRead, MaxRetryError, NewConnectionError
from urllib3.util import Timeout

from lavis_ext.common.errors import NetworkError, OwnedError, UnsafeError
from lavis_ext.fetch import (
    Policy,
    Reply,
    Request,
    Session,
    Source,
    Transfer,
    fetch,
    http,
    lock,
    redact,
    redact_url,
    register_opener,
)
from lavis_ext.fetch import session as flush
from lavis_ext.fetch.http import HttpBody, TimedStream
from lavis_ext.fetch.ledger import LedgerEntry
from lavis_ext.fetch.lock import Ownership, own_identity
from lavis_ext.fetch.part import Part, PartNames, companion, read_sidecar
from lavis_ext.fetch.safety import identity, is_loopback, is_private, redirect_reason, safe_relative
from lavis_ext.fetch.session import Validators
from lavis_ext.fetch.transfer import Failure, Figures, SpeedGate, backoff, parse_retry_after
from tests.support.fetching import CANARY, FAST, certificate
from tests.support.server import Fault, Server, payload, wait_until

SECRETS = [
    f"GET https://a.blob.core.windows.net/c/b?sv=1&sig={CANARY}%3D failed",
    f"https://user:{CANARY}@host/path",
    f"url: /container/blob?sig={CANARY} (Caused by",
    f"Authorization: Bearer {CANARY}",
    f"{{'authorization': 'Basic {CANARY}'}}",
    f"'https://h/x?X-Amz-Signature={CANARY}&y=1', more",
    f"http://h/x#token={CANARY}",
]


@pytest.mark.parametrize("text", SECRETS)
def test_redact(text: str) -> None:
    assert CANARY not in redact(text) and len(redact(text)) > 5


@given(st.text(min_size=1), st.text(min_size=1))
def test_redact_url_keeps_no_query(query: str, user: str) -> None:
    from urllib.parse import quote

    found = redact_url(f"https://{quote(user, safe='')}@h.org/p?q={quote(query, safe='')}")
    assert found == "https://h.org/p"


def test_identity_tells_objects_apart_without_secrets() -> None:
    base = "https://h/x?id=7"
    assert identity(base) == identity(f"{base}&sig={CANARY}&se=1&X-Amz-Date=2")
    assert identity(base) != identity("https://h/x?id=8") and "id=7" not in identity(base)
    assert identity("https://u:p@h/x?sig=1") == "https://h/x"


def test_retry_after_in_both_forms() -> None:
    assert parse_retry_after("120") == 120.0
    ahead = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)
    assert 85 < (parse_retry_after(ahead) or 0) <= 90
    assert parse_retry_after("Mon, 01 Jan 2001 00:00:00 GMT") == 0.0
    assert [parse_retry_after(text) for text in (None, "", "soon", "-5")] == [None, None, None, None]


@given(st.integers(0, 1000), st.one_of(st.none(), st.floats(0, 1e12)))
def test_backoff_is_bounded(attempt: int, retry_after: float | None) -> None:
    policy = Policy(backoff=0.5, backoff_cap=8.0, retry_after_cap=60.0)
    delay = backoff(attempt, policy, retry_after)
    assert min(retry_after or 0.0, 60.0) <= delay <= max(60.0, 8.0)


def test_speed_gate() -> None:
    now = [0.0]
    gate = SpeedGate(Policy(min_speed=100.0, speed_window=10.0), lambda: now[0])
    gate.passed(5)
    now[0] = 10.0
    gate.passed(2000)
    now[0] = 20.0
    with pytest.raises(Failure, match="too slow: 1 B/s"):
        gate.passed(10)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"]
)
def test_private_addresses(address: str) -> None:
    assert is_private(address)
    assert not is_private("8.8.8.8") and not is_private("2001:4860:4860::8888")


def test_redirects_between_schemes() -> None:
    assert redirect_reason("https://a/x", "http://a/x") == "redirect from https to http refused"
    assert redirect_reason("http://a/x", "https://b/x") is None
    assert "scheme 'file'" in (redirect_reason("http://a/x", "file:///x") or "")


def test_folder_flushes_are_shared_and_errors_are_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, real, asked = [0], flush.flush_folder, []

    def slow(folder: Path) -> None:
        count[0] += 1
        assert wait_until(lambda: len(asked) == 20)
        time.sleep(0.02)  # from there into the queue
        real(folder)

    def ask() -> None:
        asked.append(1)
        flusher.flush(tmp_path)

    monkeypatch.setattr(flush, "flush_folder", slow)
    flusher = flush.Flusher()
    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 < count[0] < 12
    with pytest.raises(FileNotFoundError):
        flusher.flush(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        flusher.flush(tmp_path / "none")


def test_loopback_names() -> None:
    assert is_loopback("localhost") and is_loopback("[::1]") and is_loopback("127.9.9.9")
    assert not is_loopback("localhost.example.org") and not is_loopback("10.0.0.1")


@pytest.mark.parametrize("path", ["a/../../b", "%2e%2e/b", "a/%5c../b", "a%00b"])
def test_paths_that_leave(path: str) -> None:
    with pytest.raises(UnsafeError):
        safe_relative(path)
    assert safe_relative("/a/./b%20c//d") == "a/b c/d"


def test_validators() -> None:
    dated = Validators('W/"a"', "Mon")
    assert dated.strong == "Mon" and Validators('"a"', "Mon").strong == '"a"'
    assert dated.disagrees(Validators('"b"')) and not dated.disagrees(Validators('"a"', "Tue"))
    assert Validators(None, "Mon").disagrees(Validators(None, "Tue")) and not Validators().disagrees(dated)


def test_live_owner_that_makes_progress_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, path = tmp_path / "f.part", tmp_path / "f.part.owner"
    """By a clock of its own: nine tenths of the patience pass at each look, and as much has come by the next."""
    now, policy = [0.0], replace(FAST, owner_stall=1.0)
    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep, time=time.time))
    first = Ownership(path, part, policy).__enter__()

    def pause(_: float) -> None:
        now[0] += 0.9
        part.write_bytes(b"x" * int(now[0] * 5000))
        if now[0] > 5:
            first.__exit__()

    def idle(_: float) -> None:
        now[0] += 0.9

    with Ownership(path, part, policy, pause) as second:
        assert second.waited and second.holds()
        begun = now[0]
        with pytest.raises(OwnedError, match="works on this file"):
            Ownership(path, part, policy, idle).__enter__()
        assert now[0] - begun < 2.0
    assert not path.exists()


def test_ownership_that_was_lost_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f.part.owner"
    with Ownership(path, tmp_path / "f.part", FAST) as owner:
        path.write_text(json.dumps({**json.loads(path.read_text()), "token": "another"}))
        assert not owner.holds()
    assert path.exists()


def test_a_new_scheme_is_one_decorated_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lavis_ext.fetch import Source, Transfer, fetch
    from lavis_ext.fetch import session as openers

    monkeypatch.setitem(openers._FACTORIES, "mem", openers._FACTORIES)  # gone behind this test
    del openers._FACTORIES["mem"]

    @register_opener("mem")
    class MemoryOpener:
        def __init__(self, session: Session) -> None:
            self.session = session

        def open(self, request: Request) -> Reply:
            return Reply(0, 4, MemoryBody(b"data"))

    with pytest.raises(ValueError, match="has an opener already"):
        register_opener("mem")(MemoryOpener)
    fetch(Transfer(tmp_path / "x", (Source("mem:x"),), 4), FAST)
    assert (tmp_path / "x").read_bytes() == b"data"


class MemoryBody:
    """No more than a body has to have."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def read(self, size: int) -> bytes:
        out, self.left = self.left[:size], self.left[size:]
        return out

    def close(self) -> None:
        self.left = b""

    def abort(self) -> None:
        pass


def test_halt_wakes_a_blocked_reader(tmp_path: Path) -> None:
    from lavis_ext.fetch import Source, Transfer
    from lavis_ext.fetch.engine import fetch_in
    from lavis_ext.fetch.transfer import Stopped
    from tests.support.server import Fault, Server, payload

    with Server() as server, Session(replace(FAST, stall_timeout=30.0)) as session:
        url = server.put("/f.bin", payload(500_000))
        server.script("/f.bin", Fault(stall_at=131_072))
        caught: list[BaseException] = []

        def work() -> None:
            try:
                fetch_in(session, Transfer(tmp_path / "f.bin", (Source(url),), 500_000))
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        part = "f.bin.part.????????????????"
        assert wait_until(lambda: any(one.stat().st_size >= 131_072 for one in tmp_path.glob(part)))
        session.halt()
        thread.join(60)
        assert not thread.is_alive() and isinstance(caught[0], Stopped)
        assert json.loads((tmp_path / "f.bin.part.json").read_text())["done"] == [[0, 131_072]]


def test_a_source_of_the_same_bytes_is_held_to_all_that_is_declared() -> None:
    source = Source("https://x.example/a", size=7)
    declared = Transfer(Path("a"), (source,), 5, "AB" * 32, "CD" * 16)
    assert declared.figures(source) == Figures(7, "ab" * 32, "cd" * 16)
    own = replace(source, sha256="12" * 32, md5="34" * 16)
    assert declared.figures(own) == Figures(7, "12" * 32, "34" * 16)
    assert declared.figures(replace(own, equivalence="reencoded", md5=None)) == Figures(7, "12" * 32, None)


def test_reasons_of_failures_are_one_line() -> None:
    assert Failure("final", "gone\nERROR\tall is\x1b[31m lost").reason == "gone\\nERROR\\tall is\\x1b[31m lost"


def test_a_stream_has_one_end_for_all_of_its_reads() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20.0)
        raw = ours.makefile("rb", buffering=0)
        stream = TimedStream(raw, ours)
        theirs.sendall(b"abc")
        assert stream.read(3) == b"abc"
        theirs.sendall(b"def")
        stream.until = time.monotonic()
        with pytest.raises(TimeoutError):
            stream.read(3)
        stream.close()
        assert raw.closed


def test_a_name_with_many_dead_addresses_is_given_up_after_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that answers nobody: its queue of connections is full."""
    dialled: list[object] = []
    real = http.create_connection

    def dial(address: Any, *more: Any) -> socket.socket:
        dialled.append(address)
        return real(address, *more)

    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("", 0), backlog=0))
        port = listener.getsockname()[1]
        with pytest.raises(TimeoutError):
            for _ in range(20):
                waiting = stack.enter_context(socket.socket())
                waiting.settimeout(0.2)
                waiting.connect(("127.0.0.1", port))
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in range(1, 51)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
        monkeypatch.setattr(http, "create_connection", dial)
        pool = http.make_pools(None)["http"]("photos.example", timeout=Timeout(connect=0.02, read=0.02), retries=False)
        with pytest.raises(ConnectTimeoutError):
            pool.urlopen("GET", "/")
    assert 1 <= len(dialled) < 10


@pytest.mark.parametrize(
    ("proxy", "url", "found"),
    [
        ("proxy.example:3128", "http://x.example/a", "http://proxy.example:3128"),
        ("https://proxy.example", "http://x.example/a", "https://proxy.example"),
        ("proxy.example:3128", "http://user:pw@inside.example/a", ""),
        ("", "http://x.example/a", ""),
    ],
)
def test_proxies_of_the_environment(proxy: str, url: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "inside.example")
    assert http.proxy_for(url) == found


@pytest.mark.parametrize("count", [0, 2, 3])
def test_as_many_redirects_are_followed_as_the_policy_says(count: int, server: Server, tmp_path: Path) -> None:
    server.put(f"/{count}", b"here")
    for n in range(count):
        server.script(f"/{n}", Fault(redirect=f"/{n + 1}"))
    transfer = Transfer(tmp_path / "a", (Source(server.url("/0")),), 4)
    policy = replace(FAST, redirects=2, retries=0)
    if count <= 2:
        assert fetch(transfer, policy).bytes_moved == 4
    else:
        with pytest.raises(NetworkError):
            fetch(transfer, policy)


@pytest.mark.parametrize("told", ["bytes */300000", "bytes 5-", "all of them", ""])
def test_a_part_that_does_not_say_where_it_lies_is_asked_for_again(told: str, server: Server, tmp_path: Path) -> None:
    data = payload(300_000)
    url = server.put("/a", data)
    odd = Fault(times=1, status=206, headers={"Content-Range": told} if told else {}, body=b"x")
    server.script("/a", Fault(times=1, cut_at=100_000), odd)
    transfer = Transfer(tmp_path / "a", (Source(url),), len(data), hashlib.sha256(data).hexdigest())
    assert fetch(transfer, replace(FAST, checkpoint_bytes=1000)).verified and transfer.path.read_bytes() == data
    assert len(server.log) == 3


def test_a_large_file_of_a_server_without_ranges_comes_in_one_piece(server: Server, tmp_path: Path) -> None:
    data = payload(1 << 20)
    url = server.put("/a", data)
    server.script("/a", Fault(ignore_range=True))
    transfer = Transfer(tmp_path / "a", (Source(url),), len(data), hashlib.sha256(data).hexdigest())
    policy = replace(FAST, parallel_from=1, segment_bytes=1 << 17, segments=4)
    assert fetch(transfer, policy).bytes_moved == len(data)
    assert len(server.log) == 1


def test_a_file_is_the_one_that_was_verified_by_all_that_nobody_can_set(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"data")
    stat = path.stat()
    entry = LedgerEntry(stat.st_size, stat.st_mtime_ns, stat.st_ino, "ab", ctime_ns=stat.st_ctime_ns)
    assert entry.unchanged(stat) and replace(entry, ctime_ns=0).unchanged(stat), "older ledgers do not say"
    for other in ({"ctime_ns": 1}, {"mtime_ns": 1}, {"size": 1}, {"inode": 1}):
        assert not replace(entry, **other).unchanged(stat)


@pytest.mark.parametrize("target", ["https://a.example:99999/x", "http://[::1/x", "https://a b.example/\x00"])
def test_a_redirect_to_no_url_is_told_as_that(target: str) -> None:
    with pytest.raises(Failure) as caught:
        http.redirect_target("https://x.example/a", target)
    assert caught.value.kind == "final"


def test_owner_files_that_killed_processes_renamed_go_with_the_next_look(tmp_path: Path) -> None:
    gone = json.dumps(vars(own_identity()) | {"pid": 2**22 + 1})
    for name, text in (("list.owner.0123456789abcdef", gone), ("list.owner.0123456789abcdee", "who?")):
        (tmp_path / name).write_text(text)
    with Ownership(tmp_path / "list.owner", tmp_path / "list.pulse", FAST):
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {"list.owner", "list.owner.0123456789abcdee"}, "what names nobody may be anything"


def test_what_went_wrong_is_told_without_addresses_of_objects() -> None:
    inner = NewConnectionError(None, "no route")  # type: ignore[arg-type]
    assert "no route" in http.explain(MaxRetryError(None, "/a", inner))  # type: ignore[arg-type]
    assert http.explain(ValueError("<Thing object at 0x12ab>: odd")) == "ValueError: odd"
    assert http.explain(IncompleteRead(3, 7)) == "the body ended 7 bytes early"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_room_is_made_for_the_record_of_a_part_on_a_full_disk(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where none was written before, the last 64 KiB are given up for it, and not one byte that it lists."""
    target, data = tmp_path / "f", payload(200_000)

    def full(part: Part) -> None:
        raise OSError(number, "full")

    with Ownership(companion(target, ".part.owner"), target, FAST) as owner:
        part = Part(target, 1 << 20, owner)
        part.write(0, data)
        monkeypatch.setattr(Part, "save", full)
        part.close()
    names = PartNames.of(target)
    assert names.path.read_bytes() == data[: len(data) - (1 << 16)]
    assert read_sidecar(names.sidecar)["done"] == [(0, len(data) - (1 << 16))]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("into", [False, True])
def test_a_body_is_read_whole_and_each_read_has_the_whole_patience(into: bool, chunked: bool, server: Server) -> None:
    """The moment until which a stream may drip is that of the last read, not of the first."""
    data = payload(300_000)
    request = Request(server.put("/a", data), trusted=True)
    server.script("/a", Fault(chunked=chunked))
    with Session(FAST) as session:
        for _ in range(2):
            found, buffer, begun = bytearray(), memoryview(bytearray(70_000)), time.monotonic()
            with session.open(request) as reply:
                body = reply.body
                assert isinstance(body, HttpBody) and body._stream is not None
                while True:
                    body._stream.until = 0.0
                    piece = buffer[: body.readinto(buffer)] if into else body.read(70_000)
                    if not piece:
                        break
                    assert body._stream.until >= begun + FAST.stall_timeout
                    found += piece
            assert found == data
        opener = session._opener("http")
        assert isinstance(opener, http.HttpOpener)
        (manager,) = opener._managers.values()
        assert manager.connection_from_url(request.url).num_connections == 1, "kept after a body that was read whole"


@pytest.mark.parametrize("cut", [False, True])
def test_what_has_arrived_over_tls_comes_in_one_piece(
    cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many records, and what ends the connection behind them is not lost."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path)))
    data, pieces = payload(80_000), []
    with Server(certificate=tmp_path / "cert.pem") as server, Session(FAST) as session:
        request = Request(server.put("/a", data))
        server.script("/a", Fault(cut_at=70_000 if cut else None))
        with session.open(request) as reply, suppress(Failure):
            assert wait_until(lambda: server.sent() == (70_000 if cut else 80_000))
            buffer = memoryview(bytearray(100_000))
            while count := reply.body.readinto(buffer):
                pieces.append(bytes(buffer[:count]))
            assert not cut
    assert b"".join(pieces) == data[: 70_000 if cut else 80_000] and len(pieces) <= 3


@pytest.mark.parametrize("into", [False, True])
def test_a_body_that_was_cut_is_no_end_and_leaves_no_connection(into: bool, server: Server) -> None:
    data = payload(300_000)
    request = Request(server.put("/a", data), trusted=True)
    server.script("/a", Fault(times=1, cut_at=100_000))
    with Session(FAST) as session:
        with session.open(request) as reply, pytest.raises(Failure) as caught:
            buffer = memoryview(bytearray(70_000))
            while reply.body.readinto(buffer) if into else reply.body.read(70_000):
                pass
        assert caught.value.kind == "transient"
        with session.open(request) as reply:
            assert b"".join(iter(lambda: reply.body.read(1 << 20), b"")) == data
