"""Files of the hub: addresses, tokens that go nowhere else, and licences that are still to be accepted."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lavis_ext.common.errors import AccessError, IntegrityError, NetworkError
from lavis_ext.fetch import MirrorMap, Policy, Source, Transfer, fetch
from lavis_ext.fetch.backends import HubOpener, hub_page, hub_place, may_carry_token
from lavis_ext.fetch.hub import list_repository
from lavis_ext.fetch.objects import listed
from lavis_ext.fetch.session import Request, Session
from lavis_ext.fetch.transfer import Failure
from tests.support.server import Fault, Server, payload

CANARY = "hf_canary0123456789"
FAST = Policy(backoff=0.01, retries=1, stall_timeout=20.0, connect_timeout=20.0, fsync=False)
URL = "hf:datasets/owner/set@v1/data/part 0.bin"
PATH = "/datasets/owner/set/resolve/v1/data/part%200.bin"


@pytest.fixture(autouse=True)
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{server.base}/")
    monkeypatch.setenv("HF_TOKEN", CANARY)


def test_file_with_revision_and_token(server: Server, tmp_path: Path) -> None:
    data = payload(200_000)
    server.put(PATH, data)
    result = fetch(Transfer(tmp_path / "p.bin", (Source(URL),), len(data)), FAST)
    assert (tmp_path / "p.bin").read_bytes() == data and result.source.startswith("hf:datasets/owner")
    assert server.log[0].headers["Authorization"] == f"Bearer {CANARY}"


def test_cut_body_is_continued(server: Server, tmp_path: Path) -> None:
    data = payload(200_000)
    server.put(PATH, data)
    server.script(PATH, Fault(times=1, cut_at=50_000))
    assert fetch(Transfer(tmp_path / "p.bin", (Source(URL),), len(data)), FAST).bytes_moved == len(data)
    assert [seen.range for seen in server.log] == [None, "bytes=50000-"]


@pytest.mark.fault("S07")
def test_token_stays_behind_at_a_redirect_to_another_host(server: Server, second: Server, tmp_path: Path) -> None:
    data = payload(1000)
    server.script(PATH, Fault(redirect=second.put("/cdn/blob", data)))
    fetch(Transfer(tmp_path / "p.bin", (Source(URL),), len(data)), FAST)
    assert [("Authorization" in seen.headers) for seen in (*server.log, *second.log)] == [True, False]


@pytest.mark.fault("U08")
@pytest.mark.parametrize(("status", "token", "hint"), [(401, "", "HF_TOKEN"), (403, CANARY, "accept the licence")])
def test_gated_tells_the_page_and_no_secret(
    status: int,
    token: str,
    hint: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    server.script(PATH, Fault(status=status))
    with caplog.at_level(logging.DEBUG), pytest.raises(AccessError) as caught:
        fetch(Transfer(tmp_path / "p.bin", (Source(URL),), 10), FAST)
    assert f"{server.base}/datasets/owner/set" in str(caught.value) and hint in str(caught.value)
    assert len(server.log) == 1 and CANARY not in str(caught.value) + caplog.text


def test_missing_file_is_a_network_error(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="404"):
        fetch(Transfer(tmp_path / "p.bin", (Source(URL),), 10), FAST)


def test_token_travels_only_where_nobody_reads_along() -> None:
    assert may_carry_token("https://huggingface.co/x") and may_carry_token("http://127.0.0.1:1/x")
    assert not may_carry_token("http://hub.example/x")


@pytest.mark.parametrize("url", ["hf:datasets/owner/set", "hf:owner", "hf:datasets//set/file"])
def test_incomplete_addresses_are_reported(url: str) -> None:
    with pytest.raises(Failure, match="OWNER/NAME"):
        hub_place(url)


def test_model_repositories_have_pages_too(server: Server) -> None:
    assert hub_page("owner/model@main/file") == f"{server.base}/owner/model"


def test_mirror_goes_before_the_hub(server: Server, second: Server, tmp_path: Path) -> None:
    data = payload(1000)
    second.put("/huggingface.co" + PATH.replace("%20", " "), data)
    second.put("/huggingface.co/datasets/owner/set/resolve/v1/x.bin", data)
    transfer = Transfer(tmp_path / "x.bin", (Source("hf:datasets/owner/set@v1/x.bin"),), len(data))
    fetch(MirrorMap(second.base, FAST).apply(transfer), FAST)
    assert server.log == [] and all("Authorization" not in seen.headers for seen in second.log)


@pytest.mark.parametrize("path", ["\ud800.tar", "a\0.tar", 5, None])
def test_a_listing_with_names_that_are_none(server: Server, path: object) -> None:
    server.put("/api/datasets/o/n/revision/main", json.dumps({"sha": "a" * 40}).encode())
    entries = [{"type": "file", "path": path, "size": 10}]
    server.put(f"/api/datasets/o/n/tree/{'a' * 40}", json.dumps(entries).encode())
    with pytest.raises(IntegrityError):
        list_repository("hf:datasets/o/n", FAST)


@pytest.mark.parametrize("url", ["hf:datasets/o/n@\ud800/", "s3://bucket/\ud800/", "s3://\udcff/x"])
def test_an_address_with_half_a_character(url: str) -> None:
    with pytest.raises(NetworkError):
        listed(url, FAST)


def test_connections_to_the_hub_are_closed_with_its_opener(server: Server) -> None:
    server.put(PATH, payload(1000))
    with Session(FAST) as session:
        opener = HubOpener(session)
        reply = opener.open(Request(URL))
        while reply.body.read(1 << 16):
            pass
        reply.body.close()
        pools = [manager.pools for manager in opener._http._managers.values()]
        assert sum(map(len, pools)) == 1
        opener.close()
        assert sum(map(len, pools)) == 0
