"""A mirror: a manifest that is complete and true, files where fetching looks, and a server with ranges."""

from __future__ import annotations

import hashlib
import http.client
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.common.errors import DiskError, UnsafeError, UsageError
from lavis_ext.demo.mirror import MirrorWriter, mirror_key, parse_range, serve
from lavis_ext.fetch.mirrors import MirrorMap

BODY = bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("served")
    (root / "m" / "host" / "a b").mkdir(parents=True)
    (root / "m" / "host" / "big.bin").write_bytes(BODY)
    (root / "m" / "host" / "a b" / "ü.txt").write_bytes(b"hello")
    (root / "m" / "host" / "empty").write_bytes(b"")
    (root / "secret").write_bytes(b"outside")
    (root / "m" / "link").symlink_to(root / "secret")
    with serve(root / "m") as url:
        yield url


def ask(base: str, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=10)
    connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response, data


@pytest.mark.parametrize("names", [["a", "b"], ["a", "a"], []])
def test_another_number_of_host_headers_than_one_is_refused(base: str, names: list[str]) -> None:
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=10)
    connection.putrequest("GET", "/host/big.bin", skip_host=True)
    for name in names:
        connection.putheader("Host", name)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_whole_file_with_length_and_tag(base: str) -> None:
    response, data = ask(base, "/host/big.bin")
    assert (response.status, data) == (200, BODY)
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["ETag"].startswith('"')


def test_head_has_the_headers_and_no_body(base: str) -> None:
    response, data = ask(base, "/host/big.bin", "HEAD")
    assert (response.status, data, response.headers["Content-Length"]) == (200, b"", str(len(BODY)))
    response, data = ask(base, "/host/none", "HEAD")
    assert (response.status, data) == (404, b"")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("bytes=0-0", BODY[:1]), ("bytes=10-19", BODY[10:20]), ("bytes=1023990-", BODY[-10:]), ("bytes=-5", BODY[-5:])],
)
def test_ranges(base: str, wanted: str, expected: bytes) -> None:
    response, data = ask(base, "/host/big.bin", Range=wanted)
    assert (response.status, data) == (206, expected)
    assert response.headers["Content-Range"].endswith(f"/{len(BODY)}")


def test_a_range_past_the_end_is_not_satisfiable(base: str) -> None:
    for wanted in (f"bytes={len(BODY)}-", "bytes=-0"):
        response, data = ask(base, "/host/big.bin", Range=wanted)
        assert (response.status, data, response.headers["Content-Range"]) == (416, b"", f"bytes */{len(BODY)}")


@pytest.mark.parametrize(
    "wanted", ["bytes=5-1", "bytes=-", "items=0-1", "bytes=0-1,4-5", "bytes=a-b", "bytes=" + "9" * 40 + "-"]
)
def test_a_range_that_is_none_gives_the_whole_file(base: str, wanted: str) -> None:
    response, data = ask(base, "/host/big.bin", Range=wanted)
    assert (response.status, len(data)) == (200, len(BODY))


def test_if_range_gives_the_part_only_of_the_same_version(base: str) -> None:
    tag = ask(base, "/host/big.bin", "HEAD")[0].headers["ETag"]
    assert ask(base, "/host/big.bin", Range="bytes=1-2", If_Range=tag)[0].status == 206
    response, data = ask(base, "/host/big.bin", Range="bytes=1-2", If_Range='"other"')
    assert (response.status, len(data)) == (200, len(BODY))


def test_a_changed_file_has_another_tag(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    with serve(tmp_path) as url:
        before = ask(url, "/f", "HEAD")[0].headers["ETag"]
        path.write_bytes(b"three")
        assert ask(url, "/f", "HEAD")[0].headers["ETag"] != before


def test_a_connection_serves_many_requests(base: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=10)
    sockets = set()
    for path in ("/host/big.bin", "/host/empty", "/host/none", "/host/a%20b/%C3%BC.txt?x=1"):
        connection.request("GET", path)
        if path != "/host/none":  # an error page closes the connection, as the standard library has it
            sockets.add(connection.sock)
        connection.getresponse().read()
    assert len(sockets) <= 2


@pytest.mark.parametrize(
    "path", ["/../secret", "/%2e%2e/secret", "/host/../../secret", "/link", "/host", "/", "/a%00b"]
)
def test_nothing_outside_the_folder_and_no_folder_is_served(base: str, path: str) -> None:
    response, data = ask(base, path)
    assert response.status == 404
    assert b"outside" not in data


def test_other_methods_are_refused(base: str) -> None:
    assert ask(base, "/host/big.bin", "POST")[0].status == 501


def test_many_clients_at_once_and_one_that_leaves(base: str) -> None:
    quitter = http.client.HTTPConnection(urlsplit(base).netloc, timeout=10)
    quitter.request("GET", "/host/big.bin")
    quitter.close()
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(len(ask(base, "/host/big.bin")[1]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [len(BODY)] * 8


def test_the_port_is_free_again_after_the_block(tmp_path: Path) -> None:
    with serve(tmp_path) as url:
        port = urlsplit(url).port
    with serve(tmp_path, port or 0) as again:
        assert again == url


@given(st.text(alphabet="bytes=0123456789-, ", max_size=24), st.integers(0, 1000))
def test_any_header_is_none_or_lies_inside_the_file(header: str, size: int) -> None:
    part = parse_range(header, size)
    assert part is None or part.start >= part.stop or (0 <= part.start < part.stop <= size)


@given(st.integers(0, 999), st.integers(0, 2000), st.integers(1, 1000))
def test_a_range_is_what_slicing_gives(first: int, last: int, size: int) -> None:
    data = list(range(size))
    part = parse_range(f"bytes={first}-{last}", size)
    if last < first:
        assert part is None
    else:
        assert part is not None and data[part.start : part.stop] == data[first : last + 1]


def test_an_export_that_breaks_leaves_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    writer = MirrorWriter(tmp_path)

    def members() -> Any:
        yield "a.jpg", b"1"
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        writer.add_zip("http://host/a.zip", members())
    assert not (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "host" / "a.zip").exists()
    assert not writer.files


def test_add_takes_bytes_and_files(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"x" * 3_000_000)
    writer = MirrorWriter(tmp_path / "m")
    writer.add("https://host/a/b.bin?token=secret", source)
    writer.add("https://host/a/c.bin", b"abc")
    assert (tmp_path / "m/host/a/b.bin").read_bytes() == source.read_bytes()
    assert writer.files["host/a/c.bin"] == {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert "secret" not in writer.finish().read_text()


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "host/a", "https://host/", "https://host/a/../../b", "https://host/%2e%2e/b", ""]
)
def test_urls_that_no_mirror_can_hold_are_refused(url: str) -> None:
    with pytest.raises((UsageError, UnsafeError)):
        mirror_key(url)


def test_files_of_a_mirror_lie_where_fetching_looks_for_them(tmp_path: Path) -> None:
    """The writer and the reader share one rule: what was added is found through MirrorMap, from folder and server."""
    urls = ["https://host/a%20b/c.json?x=1", "hf:datasets/o/n/part.parquet", "gdrive:FILE_ID", "azure:acc/box/blob.zip"]
    writer = MirrorWriter(tmp_path)
    for url in urls:
        writer.add(url, url.encode())
    writer.finish()
    folder = MirrorMap(str(tmp_path))
    assert folder.is_subset
    with serve(tmp_path) as base:
        for url in urls:
            assert folder.lists(url) and Path(folder.locate(url)).read_bytes() == url.encode()
            with urlopen(MirrorMap(base).locate(url)) as response:
                assert response.read() == url.encode()


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="choose another folder"):
        MirrorWriter(tmp_path / "file" / "m").add("https://host/a", b"")
