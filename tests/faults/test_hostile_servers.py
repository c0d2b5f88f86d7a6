"""Servers that lie, drip, cut for ever, lead inside the network, or write to the terminal; and URLs that are none."""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest

from lavis_ext.common.errors import LavisExtError, NetworkError, UnsafeError
from lavis_ext.common.secrets import CONTROL, printable
from lavis_ext.fetch import Policy, RemoteFile, Source, Transfer, backends, fetch, fetch_all, fetch_bytes
from lavis_ext.fetch.guard import ResponseLimits, make_guarded_opener
from lavis_ext.fetch.safety import is_private, redact_url
from lavis_ext.prepare.urls import fetch_hosted
from tests.support.fetching import FAST
from tests.support.server import Fault, Server, payload
from tests.support.weblist import make_job, picture

DATA = payload(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
ONCE = replace(FAST, retries=0)
LIST = {"engine": "fetch", "records": "images", "url_key": ["u"], "path": "{id}.jpg", "id_key": ["id"]}


def one(folder: Path, *urls: str, name: str = "f.bin") -> Transfer:
    return Transfer(folder / name, tuple(Source(url) for url in urls), len(DATA), SHA256)


@contextmanager
def raw_server(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that hands each connection to `answer`, once a request has begun to come; yields its host and port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:

        def one_peer(peer: socket.socket) -> None:
            with peer, suppress(OSError):
                peer.recv(65536)
                answer(peer)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=one_peer, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def healthy(folder: Path) -> str:
    """A second source that no load slows down."""
    path = folder / "healthy"
    path.write_bytes(DATA)
    return str(path)


def drip(head: bytes, tail: bytes = b"x") -> Callable[[socket.socket], None]:
    """An answer that goes on for ever, a little at a time."""

    def answer(peer: socket.socket) -> None:
        peer.sendall(head)
        while True:
            peer.sendall(tail)
            time.sleep(0.04)

    return answer


# Addresses

LOOPBACK = [
    "127.0.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "127.1",
    "0177.0.0.1",
    "017700000001",
    "0",
    "0.0.0.0",
    "localhost",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "127.0.0.1.",
]


@pytest.mark.fault("H10", "S03")
@pytest.mark.parametrize("host", LOOPBACK)
def test_rows_reach_no_address_inside_however_it_is_written(host: str, server: Server, tmp_path: Path) -> None:
    server.put("/f.bin", picture(1))
    rows = tmp_path / "rows.json"
    rows.write_text(f'{{"images": [{{"id": 1, "u": "http://{host}:{server.port}/f.bin"}}]}}')
    job = make_job(tmp_path, rows, spec=LIST, policy=ONCE)
    account = fetch_hosted(job)
    assert account.present == 0 and not server.log and not list(job.target.rglob("*.jpg"))
    # the engine judges the address itself, where a declared hash lets plain http pass the list's own checks
    with pytest.raises((UnsafeError, NetworkError)) as caught:
        fetch(one(tmp_path, f"http://{host}:{server.port}/f.bin"), replace(ONCE, public_only=True))
    assert not server.log and ("private address" in str(caught.value) or "127.0.0.1." in host)


def test_the_spellings_do_lead_to_this_machine(server: Server, tmp_path: Path) -> None:
    """The control: without the guard they are answered, so that the test above injects what it says."""
    server.put("/f.bin", DATA)
    for n, host in enumerate(("2130706433", "0x7f000001", "127.1", "0", "[::ffff:127.0.0.1]")):
        fetch(one(tmp_path, f"http://{host}:{server.port}/f.bin", name=str(n)), FAST)
    assert len(server.log) == 5


@pytest.mark.fault("H10")
def test_the_address_that_is_dialled_is_judged(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has a public address when it is looked at, and one inside when it is connected to."""
    server.put("/f.bin", DATA)
    real, count = socket.getaddrinfo, [0]

    def rebinding(host: str, port: object, *more: object, **named: object) -> object:
        if host != "photos.example":
            return real(host, port, *more, **named)  # type: ignore[arg-type]
        count[0] += 1
        address = "8.8.8.8" if count[0] == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    socket_getaddrinfo = rebinding
    monkeypatch.setattr(socket, "getaddrinfo", socket_getaddrinfo)
    assert socket.getaddrinfo("photos.example", 80)
    with pytest.raises(UnsafeError, match="private address"):
        fetch(one(tmp_path, f"http://photos.example:{server.port}/f.bin"), replace(ONCE, public_only=True))
    assert not server.log


@pytest.mark.fault("H10")
@pytest.mark.parametrize("host", ["2130706433", "169.254.169.254", "[::ffff:10.0.0.1]"])
def test_a_proxy_is_not_asked_for_addresses_inside(
    host: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, server.base)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UnsafeError, match="private address"):
        fetch(one(tmp_path, f"http://{host}/f.bin"), replace(ONCE, public_only=True))
    assert not server.log


@pytest.mark.parametrize(
    "address", ["224.0.0.1", "ff02::1", "255.255.255.255", "100.64.0.1", "168.63.129.16", "fec0::1"]
)
def test_addresses_that_are_inside_by_nature(address: str) -> None:
    assert is_private(address) and not is_private("64:ff9b::808:808") and not is_private("2002:808:808::")


INSIDE = [
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://[::ffff:169.254.169.254]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[fd00:ec2::254]/",
    "http://10.0.0.1/",
    "http://192.168.1.1:8080/",
    "http://100.100.100.200/",
    "http://168.63.129.16/machine",
]


@pytest.mark.fault("H11", "S03")
@pytest.mark.parametrize("target", INSIDE)
def test_a_host_inside_leads_to_no_other_host_inside(target: str, server: Server, tmp_path: Path) -> None:
    url = server.put("/f.bin", DATA)
    server.script("/f.bin", Fault(redirect=target))
    with pytest.raises(UnsafeError, match="private address") as caught:
        fetch(one(tmp_path, url), FAST)
    assert caught.value.exit_code == 10 and len(server.log) == 1


def test_a_user_may_allow_redirects_into_the_network(
    server: Server, second: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVIS_EXT_ALLOW_PRIVATE", "1")
    second.put("/f.bin", DATA)
    server.script("/f.bin", Fault(redirect=f"http://127.0.0.2:{second.port}/f.bin"))
    with pytest.raises(NetworkError):  # nobody listens at 127.0.0.2: it is asked, not refused
        fetch(one(tmp_path, server.url("/f.bin")), replace(ONCE, allow_private=Policy().allow_private))


@pytest.mark.fault("H11")
def test_other_ways_that_dial_are_guarded_too(
    server: Server, second: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two redirects, ranges, small documents, the hub, Azure; and what stays allowed: the same host."""
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setenv("LAVIS_EXT_AZURE_ENDPOINT", server.base)
    away = Fault(redirect="http://169.254.169.254/x")
    for path in ("/b", "/datasets/o/n/resolve/main/f", "/acc/con/f"):
        server.script(path, away)
    server.script("/a", Fault(redirect=server.url("/b")))
    ways: list[Callable[[], object]] = [
        lambda: fetch(one(tmp_path, server.url("/a")), ONCE),
        lambda: RemoteFile(server.url("/b"), ONCE),
        lambda: fetch_bytes(Source(server.url("/b")), ONCE),
        lambda: fetch(one(tmp_path, "hf:datasets/o/n/f"), ONCE),
        lambda: fetch(one(tmp_path, "azure:acc/con/f"), ONCE),
    ]
    for way in ways:
        with pytest.raises(UnsafeError, match=r"169\.254\.169\.254"):
            way()
    server.script("/a", Fault(redirect=second.put("/f.bin", DATA)))
    assert fetch(one(tmp_path, server.url("/a")), ONCE).verified


# What a server writes

ESCAPES = "\x1b[31mred\x1b[0m\x07\x9b2J\x00\u202e"


@pytest.mark.fault("H12", "S10")
@pytest.mark.parametrize("where", ["status", "code", "location", "no http", "header", "page"])
def test_what_a_server_writes_is_safe_to_show(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ESCAPES.encode("latin-1", "replace")
    answers = {
        "status": b"HTTP/1.1 404 Not " + bad + b"\r\nContent-Length: 0\r\n\r\n",
        "code": b"HTTP/1.1 400 Bad\r\nx-ms-error-code: a" + bad + b"\r\nContent-Length: 0\r\n\r\n",
        "location": b"HTTP/1.1 302 Found\r\nLocation: gopher://h/" + bad + b"\r\nContent-Length: 0\r\n\r\n",
        "no http": bad * 3 + b"\r\n\r\n",
        "header": b"HTTP/1.1 200 OK\r\nContent-Encoding: " + bad + b"\r\nContent-Length: 5\r\n\r\nhello",
        "page": b"HTTP/1.1 206 Partial\r\nContent-Range: " + bad + b"\r\nContent-Length: 5\r\n\r\nhello",
    }
    caplog.set_level(logging.DEBUG, "lavis_ext")
    with raw_server(lambda peer: peer.sendall(answers[where])) as host:
        transfer = Transfer(tmp_path / "f.bin", (Source(f"http://{host}/f"),), None, None)
        with pytest.raises(LavisExtError) as caught:
            fetch(transfer, ONCE)
    shown = str(caught.value) + "".join(r.getMessage() for r in caplog.records if r.name.startswith("lavis_ext"))
    assert shown == printable(shown, kept="\n")


# For ever


@pytest.mark.fault("H13")
@pytest.mark.parametrize("cut", [1 << 16, 200_000, 40])
def test_bodies_that_are_always_cut_end(cut: int, server: Server, second: Server, tmp_path: Path) -> None:
    url = server.put("/f.bin", DATA)
    server.script("/f.bin", Fault(cut_after=cut, ignore_range=True))
    assert fetch(one(tmp_path, url, second.put("/f.bin", DATA)), FAST).source.startswith(second.base)
    assert len(server.log) <= FAST.retries + 2


@pytest.mark.fault("H13")
def test_a_byte_more_each_time_is_no_progress(server: Server, second: Server, tmp_path: Path) -> None:
    """Without ranges, each body a little longer than the last; and with them, a byte at a time."""
    url = server.put("/f.bin", DATA)
    faults = [Fault(times=1, cut_after=70_000 + 2000 * n, ignore_range=True) for n in range(100)]
    server.script("/f.bin", *faults)
    fetch(one(tmp_path, url, second.put("/f.bin", DATA)), FAST)
    assert len(server.log) < 10
    server.log.clear()
    large = payload(8_000_000)
    server.put("/f.bin", large)
    server.script("/f.bin", *(Fault(times=1, cut_after=66_000 * n, ignore_range=True) for n in range(1, 130)))
    given = (Source(url), Source(second.put("/f.bin", large)))
    fetch(Transfer(tmp_path / "large", given, len(large), hashlib.sha256(large).hexdigest()), FAST)
    assert len(server.log) < 50 and second.sent() >= 4_000_000
    server.put("/f.bin", DATA)
    server.log.clear()
    server.script("/f.bin", Fault(cut_after=1))
    with pytest.raises(NetworkError):
        RemoteFile(url, replace(FAST, retries=2))
    assert len(server.log) <= 3
    server.script("/f.bin", Fault(times=3, cut_after=80_000))  # what is real progress still counts
    assert fetch(one(tmp_path, url, name="g.bin"), replace(FAST, retries=1)).bytes_moved == len(DATA)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "status line": drip(b"HTTP/1.1 200 "),
    "header": drip(b"HTTP/1.1 200 OK\r\nX-Long: "),
    "headers": drip(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
    "continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "size of a chunk": drip(CHUNKED, b"0"),
    "trailers": drip(CHUNKED + b"5\r\nhello\r\n0\r\n", b"a: b\r\n"),
    "error": drip(b"HTTP/1.1 500 No\r\nContent-Type: text/xml\r\nContent-Length: 4000\r\n\r\n"),
    "redirect": drip(b"HTTP/1.1 302 Go\r\nLocation: /g\r\nContent-Length: 4000\r\n\r\n"),
}


@pytest.mark.fault("H14")
@pytest.mark.parametrize("what", DRIPS)
def test_nothing_drips_for_ever(what: str, tmp_path: Path) -> None:
    with raw_server(DRIPS[what]) as host:
        begun = time.monotonic()
        result = fetch(one(tmp_path, f"http://{host}/f", healthy(tmp_path)), replace(ONCE, stall_timeout=0.3))
        assert time.monotonic() - begun < 60 and result.source.endswith("healthy")


@pytest.mark.fault("H14")
def test_handshakes_and_tunnels_do_not_drip_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(ONCE, stall_timeout=0.3, connect_timeout=0.5)
    with raw_server(drip(b"\x16\x03\x03\x20\x00", b"\x02")) as host:
        begun = time.monotonic()
        fetch(one(tmp_path, f"https://{host}/f", healthy(tmp_path)), quick)
        assert time.monotonic() - begun < 60
    with raw_server(drip(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n")) as host:
        monkeypatch.setenv("https_proxy", f"http://{host}")
        begun = time.monotonic()
        fetch(one(tmp_path, "https://photos.example/f", healthy(tmp_path), name="g.bin"), quick)
        assert time.monotonic() - begun < 60


@pytest.mark.fault("H14")
def test_a_page_of_drive_does_not_drip_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 100000\r\n\r\n"
    with raw_server(drip(head)) as host:
        monkeypatch.setattr(backends, "DRIVE_ENDPOINT", f"http://{host}")
        begun = time.monotonic()
        fetch(one(tmp_path, "gdrive:abc", healthy(tmp_path)), replace(ONCE, min_speed=2000.0, speed_window=0.4))
        assert time.monotonic() - begun < 60


@pytest.mark.fault("H14")
def test_a_chain_of_slow_redirects_ends(server: Server, tmp_path: Path) -> None:
    server.script("/f.bin", Fault(redirect="/f.bin", latency=0.25))
    with pytest.raises(NetworkError, match=r"redirects included|timed out"):
        fetch(one(tmp_path, server.url("/f.bin")), replace(ONCE, stall_timeout=0.3))
    assert len(server.log) < 5  # not the ten that are followed


# URLs that are none

NO_URLS = [
    "https://[bad/x",
    "http://[::1",
    "http://host.invalid:99999/x",
    "http://host.invalid:x/",
    "http://[::1]:-1/x",
    "https://",
    "http:///x",
    "http://a\u2100b/x",
    "http://" + "a" * 300 + "/x",
    "http://a..b/x",
    "http://user:c4n4ry@[bad/x?sig=c4n4ry",
    "http://user:c4n4ry/5@host/x",
    "http://h\x1b[31m/x",
    "http://\ud800/x",
]


@pytest.mark.fault("H21")
@pytest.mark.parametrize("url", NO_URLS, ids=range(len(NO_URLS)))
def test_a_url_that_is_none_fails_its_own_file(url: str, server: Server, tmp_path: Path) -> None:
    good = server.put("/f.bin", DATA)
    wanted = [one(tmp_path, url), one(tmp_path, good, name="g"), one(tmp_path, url, good, name="h")]
    results = fetch_all(wanted, ONCE, collect=True)
    assert [result.error.exit_code if result.error else 0 for result in results] == [4, 0, 0]
    told = str(results[0].error) + "".join(results[2].notes)
    assert "c4n4ry" not in told + redact_url(url) and not CONTROL.search(told)
    with pytest.raises(LavisExtError):
        RemoteFile(url, ONCE)


@pytest.mark.fault("H21")
@pytest.mark.parametrize("url", NO_URLS[:6])
def test_a_redirect_to_what_is_no_url_fails_its_own_file(url: str, server: Server, tmp_path: Path) -> None:
    bad, good = server.url("/bad"), server.put("/f.bin", DATA)
    server.script("/bad", Fault(redirect=url))
    results = fetch_all([one(tmp_path, bad), one(tmp_path, good, name="g")], ONCE, collect=True)
    assert [result.error.exit_code if result.error else 0 for result in results] == [4, 0]
    assert len(server.requests("/bad")) == 1


@pytest.mark.fault("H10")
@pytest.mark.parametrize("host", ["2130706433", "127.1", "[64:ff9b::a9fe:a9fe]", "169.254.169.254"])
@pytest.mark.parametrize("proxied", [True, False])
def test_lists_of_the_open_web_reach_nothing_inside(
    host: str, proxied: bool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine img2dataset, which asks through urllib."""
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if proxied:
        monkeypatch.setenv("http_proxy", server.base)
    with pytest.raises(URLError, match="private address"):
        make_guarded_opener(ResponseLimits()).open(f"http://{host}:{server.port}/f", timeout=1)
    assert not server.log
