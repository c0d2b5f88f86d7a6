"""What a library that uses urllib may fetch for a data row: no files, no inside addresses, nothing endless."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from lavis_ext.fetch import guard
from lavis_ext.fetch.guard import ResponseLimits, make_guarded_opener
from tests.support.server import Fault, Server, payload

FREE = ResponseLimits(allow_private=True, max_bytes=10_000, deadline=2.0)


def read(url: str, limits: ResponseLimits = FREE, timeout: float = 2.0) -> bytes:
    with make_guarded_opener(limits).open(url, timeout=timeout) as answer:
        return bytes(answer.read())


def test_a_body_within_the_limits(server: Server) -> None:
    assert read(server.put("/a", payload(9000))) == payload(9000)


@pytest.mark.fault("S02")
@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://a/"])
def test_other_schemes_are_unknown(url: str) -> None:
    with pytest.raises(URLError, match="unknown url type"):
        read(url)


@pytest.mark.fault("S01")
@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_to_other_schemes_are_refused(target: str, server: Server) -> None:
    server.script("/a", Fault(redirect=target))
    with pytest.raises(URLError, match="refused: redirect to scheme"):
        read(server.url("/a"))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_followed(status: int, server: Server) -> None:
    server.script("/a", Fault(status=status, headers={"Location": server.put("/b", b"here")}))
    assert read(server.url("/a")) == b"here"


@pytest.mark.fault("S03")
def test_private_addresses_are_not_even_connected_to(server: Server) -> None:
    with pytest.raises(URLError, match=r"refused: private address 127\.0\.0\.1"):
        read(server.put("/a", b"x"), ResponseLimits())
    assert server.log == []


@pytest.mark.fault("S03")
def test_name_that_resolves_to_an_inside_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port)) for address in ("8.8.8.8", "10.0.0.1")
    ]
    monkeypatch.setattr(guard.socket, "getaddrinfo", answer_with(inside))
    with pytest.raises(URLError, match=r"refused: private address 10\.0\.0\.1"):
        read("http://photos.example/a.jpg", ResponseLimits())
    with pytest.raises(URLError, match="refused: private address"):
        read("https://photos.example/a.jpg", ResponseLimits())


def answer_with(entries: list[Any]) -> Callable[..., list[Any]]:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        return entries

    return look_up


def test_connection_goes_to_the_address_that_was_checked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "is_private", lambda _: False)
    assert read(server.put("/a", b"public"), ResponseLimits()) == b"public"


def test_endless_body_is_cut_off(server: Server) -> None:
    url = server.put("/a", payload(100_000))
    with pytest.raises(URLError, match="refused: more than 10000 bytes"):
        read(url)


def test_dripping_body_is_given_up(server: Server) -> None:
    url = server.put("/a", payload(9000))
    server.script("/a", Fault(rate=1000))
    with pytest.raises(URLError, match=r"timed out: the body took longer than 1\.5 s"):
        read(url, ResponseLimits(allow_private=True, deadline=1.5))


def test_dripping_head_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            peer, _ = listening.accept()
            with peer, suppress(OSError):
                peer.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while True:
                    peer.sendall(b"x")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(OSError, match=r"timed out: no answer within 0\.3 s"):
            read(f"http://127.0.0.1:{listening.getsockname()[1]}/", ResponseLimits(allow_private=True, deadline=0.3))
        assert time.monotonic() - began < 60


def test_body_that_ends_early_is_reported(server: Server) -> None:
    url = server.put("/a", payload(9000))
    server.script("/a", Fault(cut_after=4000))
    with pytest.raises(URLError, match="cut: the body ended 5000 bytes early"):
        read(url)


def test_whole_body_and_last_address_are_inspected(server: Server) -> None:
    seen: list[tuple[bytes, str]] = []

    def inspect(body: bytes, url: str) -> None:
        seen.append((body, url))

    server.script("/a", Fault(redirect=server.put("/b", b"here")))
    read(server.url("/a"), ResponseLimits(allow_private=True, inspect=inspect))
    assert seen == [(b"here", server.url("/b"))]


def test_error_statuses_stay_errors(server: Server, tmp_path: Path) -> None:
    with pytest.raises(URLError, match="404"):
        read(server.url("/nothing"))


def test_a_host_that_is_not_there_is_an_error_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "is_private", lambda _: False)
    with pytest.raises(ConnectionRefusedError):
        guard.connect_public(("127.0.0.1", 1), 2.0)
    monkeypatch.setattr(guard.socket, "getaddrinfo", answer_with([]))
    with pytest.raises(OSError, match="no address"):
        guard.connect_public(("photos.example", 80), 2.0)
