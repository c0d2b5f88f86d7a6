"""What a download may reach and tell: schemes, inside addresses, secrets, names that come from a server."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace

import pytest

from lavis_ext.common.errors import NetworkError, UnsafeError
from lavis_ext.fetch import Source, fetch, guard, http, safety
from tests.support.fetching import CANARY, SIZE, World
from tests.support.server import Fault


@pytest.mark.fault("S01")
def test_redirect_to_another_scheme(world: World) -> None:
    secret = world.folder / "secret"
    secret.write_bytes(world.data)
    for target in (secret.as_uri(), "ftp://host/x", "gopher://host/x", "data:,x"):
        world.server.script("/f.bin", Fault(redirect=target))
        world.fails(UnsafeError, "redirect to scheme")
    world.heals()


@pytest.mark.fault("S02")
def test_schemes_of_rows(world: World) -> None:
    for url in ("file:///etc/passwd", "ftp://h/x", "gopher://h/x", "data:,x", "/etc/passwd"):
        with pytest.raises(UnsafeError, match="scheme"):
            safety.refuse_unless_remote(url)
    world.fails(UnsafeError, "scheme 'ftp' is refused", "ftp://h/x")


@pytest.mark.fault("S03")
def test_redirect_inside(world: World) -> None:
    world.patch.setattr(http, "leads_inside", lambda host: False)  # as if the first server were on the internet
    for target in (
        world.second_url,
        "http://169.254.169.254/x",
        "http://[::1]:1/x",
        f"http://localhost:{world.second.port}/x",
    ):
        world.server.script("/f.bin", Fault(redirect=target))
        world.fails(UnsafeError, "private address")
    assert not world.second.log
    world.server.script("/f.bin", Fault(times=1, redirect=world.second_url))
    world.policy = replace(world.policy, allow_private=True)
    world.get()


@pytest.mark.fault("S03")
def test_a_name_that_changes_its_address(world: World) -> None:
    """Looked up once: a second answer, which leads inside, is never asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def answer(host: str, *more: object, **named: object) -> list[object]:
        if host != "photos.example":
            return real(host, *more, **named)  # type: ignore[arg-type,return-value]
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, world.server.port))]

    world.patch.setattr(guard.socket, "getaddrinfo", answer)
    world.patch.setattr(guard, "is_private", lambda address: address != "127.0.0.1")
    limits = guard.ResponseLimits(max_bytes=2 * SIZE)
    with guard.make_guarded_opener(limits).open(f"http://photos.example:{world.server.port}/f.bin", timeout=2) as body:
        assert body.read() == world.data
    assert asked == ["photos.example"]


@pytest.mark.fault("S04")
def test_secrets_stay_out(world: World) -> None:
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


@pytest.mark.fault("S07")
def test_authorization_stays_with_its_host(world: World) -> None:
    from lavis_ext.fetch import Policy, Request, Session

    world.server.script("/f.bin", Fault(times=1, redirect="/g.bin"))
    world.server.script("/g.bin", Fault(times=1, redirect=world.second_url))
    with Session(Policy(offline=False)) as session:
        opener = http.HttpOpener(session)
        opener.open(Request(world.first_url), {"Authorization": f"Bearer {CANARY}"}).body.close()
        opener.close()
    assert [CANARY in str(seen.headers) for seen in world.server.log] == [True, True]
    assert CANARY not in str(world.second.log[0].headers)


@pytest.mark.fault("S09")
def test_denied_hosts(world: World) -> None:
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


@pytest.mark.fault("S11")
def test_names_come_from_us(world: World) -> None:
    world.server.script("/f.bin", Fault(headers={"Content-Disposition": 'attachment; filename="../../x"'}))
    world.get()
    assert not (world.folder / "x").exists() and not (world.folder.parent / "x").exists()


@pytest.mark.fault("S12")
def test_plain_http_needs_a_hash(world: World) -> None:
    world.patch.setattr(http, "is_loopback", lambda host: False)
    world.fails(UnsafeError, "plain http", size=SIZE, sha256=None)
    world.get()
    world.target.unlink()
    fetch(world.bare(Source(world.first_url, trusted=True)), world.policy)
    assert world.target.read_bytes() == world.data
