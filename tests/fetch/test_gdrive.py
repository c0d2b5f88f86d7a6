"""Files of Drive: the confirmation page, its quota page, and bytes that are resumed like any others."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from lavis_ext.common.errors import AccessError, UnsafeError
from lavis_ext.fetch import Policy, Reply, Source, Transfer, fetch
from lavis_ext.fetch import backends as gdrive
from lavis_ext.fetch.transfer import Failure
from tests.support.server import Fault, Server, payload

pytest.importorskip("gdown")
FAST = Policy(backoff=0.01, retries=1, stall_timeout=20.0, connect_timeout=20.0, fsync=False)
FORM = """<!DOCTYPE html><html><body><p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="{action}" method="get"><input type="hidden" name="id" value="ID7"><input type="hidden"
name="export" value="download"><input type="hidden" name="confirm" value="t"></form></body></html>"""
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""
LOGIN = "<html><body>Sign in to continue to Google Drive</body></html>"


@pytest.fixture(autouse=True)
def drive(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdrive, "DRIVE_ENDPOINT", server.base)


def transfer(folder: Path, size: int | None = None) -> Transfer:
    return Transfer(folder / "a.bin", (Source("gdrive:ID7"),), size)


def page(server: Server, text: str) -> None:
    server.put("/uc", text.encode(), content_type="text/html; charset=utf-8")


def test_small_file_comes_at_once(server: Server, tmp_path: Path) -> None:
    data = payload(5000)
    server.put("/uc", data)
    fetch(transfer(tmp_path, len(data)), FAST)
    assert (tmp_path / "a.bin").read_bytes() == data


def test_confirmation_is_answered_once_and_the_body_is_resumed(server: Server, tmp_path: Path) -> None:
    data = payload(200_000)
    page(server, FORM.format(action=server.put("/download", data)))
    server.script("/download", Fault(times=1, cut_at=60_000))
    assert fetch(transfer(tmp_path, len(data)), FAST).bytes_moved == len(data)
    assert (tmp_path / "a.bin").read_bytes() == data
    assert [(seen.path, seen.range) for seen in server.log] == [
        ("/uc", None),
        ("/download", None),
        ("/download", "bytes=60000-"),
    ]


def test_large_file_comes_in_segments(server: Server, tmp_path: Path) -> None:
    data = payload(600_000)
    page(server, FORM.format(action=server.put("/download", data)))
    policy = Policy(parallel_from=1 << 18, segment_bytes=1 << 17, segments=3, fsync=False)
    assert fetch(transfer(tmp_path, len(data)), policy).bytes_moved == len(data)
    assert (tmp_path / "a.bin").read_bytes() == data


@pytest.mark.parametrize(
    ("text", "reason"), [(QUOTA, "quota"), (LOGIN, "public link"), ("<html></html>", "public link")]
)
def test_page_that_leads_nowhere_is_an_access_error(text: str, reason: str, server: Server, tmp_path: Path) -> None:
    page(server, text)
    with pytest.raises(AccessError, match=reason):
        fetch(transfer(tmp_path), FAST)
    assert not (tmp_path / "a.bin").exists() and len(server.log) == 1


def test_expired_answer_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    data = payload(200_000)
    page(server, FORM.format(action=server.put("/download", data)))
    expired = Fault(times=1, instead=LOGIN.encode(), headers={"Content-Type": "text/html"}, ignore_range=True)
    server.script("/download", Fault(times=1, cut_at=60_000), expired)
    assert fetch(transfer(tmp_path, len(data)), FAST).bytes_moved == len(data)
    assert [seen.path for seen in server.log] == ["/uc", "/download", "/download", "/uc", "/download"]


def test_quota_leads_to_the_next_mirror(server: Server, second: Server, tmp_path: Path) -> None:
    data = payload(1000)
    page(server, QUOTA)
    both = Transfer(tmp_path / "a.bin", (Source("gdrive:ID7"), Source(second.put("/a.bin", data))), len(data))
    assert fetch(both, FAST).source == f"{second.base}/a.bin"


def test_quota_after_the_confirmation_is_recognised(server: Server, tmp_path: Path) -> None:
    url = server.put("/download", QUOTA.encode(), content_type="text/html")
    page(server, FORM.format(action=url))
    with pytest.raises(AccessError, match="quota"):
        fetch(transfer(tmp_path), FAST)


def test_page_that_leads_to_another_host_is_refused(server: Server, second: Server, tmp_path: Path) -> None:
    page(server, FORM.format(action=f"{second.base}/download"))
    with pytest.raises(UnsafeError, match="another host"):
        fetch(transfer(tmp_path), FAST)
    assert second.log == []


@pytest.mark.parametrize("url", ["gdrive:", "gdrive:a/b", "gdrive:a%20b"])
def test_what_is_no_id_is_refused(url: str) -> None:
    with pytest.raises(Failure, match="gdrive:ID"):
        gdrive.drive_id(url)


def test_drive_hosts() -> None:
    assert gdrive.belongs_to_drive("https://drive.usercontent.google.com/download?id=1")
    assert not gdrive.belongs_to_drive("http://drive.usercontent.google.com/download")
    assert not gdrive.belongs_to_drive("https://drive.google.com.evil.example/download")


def test_no_more_of_a_page_is_read_than_a_mebibyte() -> None:
    body = BytesIO(b"x" * (3 << 20))
    read: list[int] = []
    body.close = lambda: read.append(body.tell())  # type: ignore[method-assign]
    assert len(gdrive.read_page(Reply(0, None, body), FAST)) == 1 << 20 and read == [1 << 20]
