"""Faults of the way: what a server, a proxy or a name does wrong, and that the file still comes whole or not at all."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from lavis_ext.common.errors import AccessError, IntegrityError, NetworkError
from lavis_ext.fetch import Transfer, fetch
from tests.support.fetching import CANARY, IMPATIENT, SIZE, World, certificate
from tests.support.processes import free_port
from tests.support.server import Fault, Server

HTML = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"


@pytest.mark.fault("T01")
def test_connection_refused_then_mirror(world: World) -> None:
    dead = f"http://127.0.0.1:{free_port()}/f.bin"
    assert world.get(dead, world.second_url).source == world.second_url
    world.target.unlink()
    message = world.fails(NetworkError, "refused", dead, "http://name.invalid/f.bin")
    assert "name.invalid" in message and dead in message


@pytest.mark.fault("T02")
def test_body_always_short(world: World) -> None:
    world.server.script("/f.bin", Fault(cut_at=SIZE // 2))
    world.fails(NetworkError, "ended", world.first_url)
    assert world.part.exists() and json.loads(world.sidecar.read_text())["done"] == [[0, SIZE // 2]]
    assert world.heals().bytes_moved == SIZE - SIZE // 2


@pytest.mark.fault("T03")
def test_truncated_once(world: World) -> None:
    world.server.script("/f.bin", Fault(times=1, cut_at=100_000))
    assert world.get().bytes_moved == SIZE
    assert [seen.range for seen in world.server.log] == [None, "bytes=100000-"]


@pytest.mark.fault("T04")
def test_close_delimited(world: World) -> None:
    world.server.script("/f.bin", Fault(lengthless=True, cut_at=1000))
    world.fails(NetworkError, "ended at byte 1000|ended", world.first_url)
    bare = replace(world.bare(), path=world.folder / "bare" / "f.bin")
    with pytest.raises(NetworkError, match="no length and none is declared"):
        fetch(bare, world.policy)
    assert not bare.path.exists()
    world.heals()


@pytest.mark.fault("T05")
def test_not_found_is_not_retried(world: World) -> None:
    world.server.script("/f.bin", Fault(status=404, body=b"no"))
    world.fails(NetworkError, "HTTP 404")
    assert len(world.server.log) == 1 and not world.part.exists()
    assert world.get(world.first_url, world.second_url).source == world.second_url


@pytest.mark.fault("T06")
def test_access_denied_names_the_cause(world: World) -> None:
    denied = Fault(status=409, headers={"x-ms-error-code": "PublicAccessNotPermitted"})
    world.server.script("/f.bin", denied)
    message = world.fails(AccessError, "PublicAccessNotPermitted")
    assert "token" in message and AccessError.exit_code == 7
    for status in (401, 403):
        world.server.script("/f.bin", Fault(status=status))
        world.fails(AccessError, f"HTTP {status}")
    assert len(world.server.log) == 3
    world.heals()


@pytest.mark.fault("T07")
def test_unavailable_twice_waits_as_told(world: World) -> None:
    world.server.script("/f.bin", Fault(times=2, status=503, headers={"Retry-After": "1"}))
    begun = time.monotonic()
    world.get()
    assert time.monotonic() - begun >= 2.0 and len(world.server.log) == 3


@pytest.mark.fault("T08")
def test_too_many_requests(world: World) -> None:
    later = format_datetime(datetime.now(timezone.utc) + timedelta(days=1), usegmt=True)
    world.server.script("/f.bin", Fault(times=1, status=429, headers={"Retry-After": later}))
    begun = time.monotonic()
    world.get()
    assert time.monotonic() - begun >= world.policy.retry_after_cap
    world.target.unlink()
    world.server.script("/f.bin", Fault(status=429, headers={"Retry-After": "1000000000"}))
    asked = len(world.server.log)
    assert world.get(world.first_url, world.second_url).source == world.second_url
    assert len(world.server.log) == asked + 1  # nobody waits that long while there is another


@pytest.mark.fault("T09")
def test_html_instead_of_the_file(world: World) -> None:
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


@pytest.mark.fault("T10")
def test_stall_then_reconnect(world: World) -> None:
    world.server.script("/f.bin", Fault(times=1, stall_at=131_072, stall=60.0))
    world.policy = IMPATIENT
    begun = time.monotonic()
    assert world.get().bytes_moved == SIZE
    assert time.monotonic() - begun < 60
    again = world.server.log[1].range or ""
    assert 0 < int(again.removeprefix("bytes=").removesuffix("-")) <= 131_072  # less where this machine stood still


@pytest.mark.fault("T11")
@pytest.mark.parametrize("rate", [20.0, 200.0])
def test_slow_drip_leaves_for_the_next(world: World, rate: float) -> None:
    world.server.script("/f.bin", Fault(rate=rate))
    world.policy = replace(IMPATIENT, stall_timeout=20.0)
    result = world.get(world.first_url, world.second_url)
    assert result.source == world.second_url and "too slow" in result.notes[0]


@pytest.mark.fault("T12")
def test_longer_than_promised(world: World) -> None:
    world.server.script("/f.bin", Fault(extra=b"x" * 500_000))
    world.fails(IntegrityError, "expected 300000 bytes")
    assert world.server.sent() == 0 or world.server.sent() < 2 * SIZE + 4_000_000
    world.server.script("/f.bin", Fault(extra=b"x" * 500_000, chunked=True))
    world.fails(IntegrityError, "more than the expected 300000 bytes")
    assert not world.part.exists()
    world.heals()


@pytest.mark.fault("T13")
def test_range_ignored(world: World) -> None:
    world.leave_partial()
    world.server.script("/f.bin", Fault(ignore_range=True))
    assert world.get().bytes_moved == SIZE


@pytest.mark.fault("T14")
def test_range_not_satisfiable_because_complete(world: World) -> None:
    world.leave_partial(SIZE)
    world.server.script("/f.bin", Fault(status=416))
    assert world.get().bytes_moved == 0
    world.target.unlink()
    world.leave_partial(SIZE)
    state = json.loads(world.sidecar.read_text()) | {"size": None}
    world.sidecar.write_text(json.dumps(state))
    assert fetch(world.transfer(size=None), world.policy).bytes_moved == 0
    assert world.server.log[-1].status == 416


@pytest.mark.fault("T15")
def test_wrong_content_range(world: World) -> None:
    world.leave_partial()
    world.server.script("/f.bin", Fault(times=1, range_shift=7, only_range=True))
    assert world.get().bytes_moved >= SIZE
    world.target.unlink()
    world.leave_partial()
    world.server.script("/f.bin", Fault(times=1, instead=world.data + b"x", only_range=True))
    world.get()


@pytest.mark.fault("T16")
def test_redirect_loop(world: World) -> None:
    world.server.script("/f.bin", Fault(redirect="/f.bin"))
    world.fails(NetworkError, "more than 10 redirects")
    assert len(world.server.log) == 11
    world.server.script("/f.bin", Fault(times=3, redirect="/f.bin"))
    world.get()


@pytest.mark.fault("T17")
def test_tls_is_not_given_up(world: World) -> None:
    with Server(certificate=certificate(world.folder)) as secure:
        url = secure.put("/f.bin", world.data)
        world.fails(NetworkError, "TLS", url)
        world.fails(NetworkError, "TLS", url, size=None, sha256=None)
        assert not secure.log


@pytest.mark.fault("T18")
def test_content_encoding_is_not_undone(world: World) -> None:
    world.server.script("/f.bin", Fault(headers={"Content-Encoding": "gzip"}))
    world.get()
    assert world.server.log[0].headers["Accept-Encoding"] == "identity"
    with pytest.raises(IntegrityError, match="encodes the body"):
        fetch(replace(world.bare(), path=world.folder / "other.json"), world.policy)


@pytest.mark.fault("T19")
def test_proxy_that_refuses(world: World) -> None:
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        world.patch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        world.patch.setenv(name, f"http://user:{CANARY}@127.0.0.1:{free_port()}")
    message = world.fails(NetworkError, "(?i)proxy|refused")
    assert CANARY not in message + world.log.text
    world.patch.setenv("no_proxy", "127.0.0.1")
    world.patch.setenv("NO_PROXY", "127.0.0.1")
    world.get()


@pytest.mark.fault("T20")
def test_first_address_answers_nothing(world: World) -> None:
    """A listener whose queue is full: the kernel drops what comes, as a black hole does."""
    real, port = socket.getaddrinfo, world.server.port
    with socket.socket() as hole, ExitStack() as queued:
        hole.bind(("127.0.0.2", 0))
        hole.listen(0)
        for _ in range(3):
            waiting = queued.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(hole.getsockname())

        def two(host: str, *more: object, **named: object) -> list[object]:
            if host != "two.localhost":
                return real(host, *more, **named)  # type: ignore[arg-type,return-value]
            stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*stream, hole.getsockname()), (*stream, ("127.0.0.1", port))]

        world.patch.setattr(socket, "getaddrinfo", two)
        world.policy = replace(world.policy, connect_timeout=0.3)
        begun = time.monotonic()
        world.get(f"http://two.localhost:{port}/f.bin")
        assert time.monotonic() - begun < 60  # the kernel tries for two minutes


@pytest.mark.fault("T20")
def test_first_address_is_dead(world: World) -> None:
    real, port = socket.getaddrinfo, world.server.port

    def two(host: str, *more: object, **named: object) -> list[object]:
        if host != "two.localhost":
            return real(host, *more, **named)  # type: ignore[arg-type,return-value]
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*stream, ("127.0.0.2", closed)), (*stream, ("127.0.0.1", port))]

    closed = free_port()
    world.patch.setattr(socket, "getaddrinfo", two)
    world.get(f"http://two.localhost:{port}/f.bin")


def test_a_transfer_without_sources_says_so(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="no source is declared"):
        fetch(Transfer(tmp_path / "x", ()))
