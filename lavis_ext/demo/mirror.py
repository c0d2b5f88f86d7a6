"""A subset mirror: files at `<root>/<host>/<path>` with a manifest, written last; and its server on loopback."""

from __future__ import annotations

import json
import logging
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import cache
from gzip import GzipFile
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from lavis_ext.common.config.cards import Cards, load_cards
from lavis_ext.common.errors import UsageError
from lavis_ext.common.files import disk_errors, replacing, sha256_of, write_json
from lavis_ext.fetch.mirrors import MANIFEST, mirror_path
from lavis_ext.fetch.safety import safe_relative

log = logging.getLogger(__name__)
SCHEMES = ("http", "https", "gdrive", "hf", "azure")
BLOCK = 1 << 20
PART = "{part:05d}"
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
ZIP_DATE = (2014, 9, 1, 0, 0, 0)
"""Every member's time, so that the same members make the same archive."""


class MirrorWriter:
    """Writes files under the URLs that they replace; they count once `finish()` has written the manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, dict[str, int | str]] = {}
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        # An older manifest would vouch for files that are about to change.
        (root / MANIFEST).unlink(missing_ok=True)

    @contextmanager
    def create(self, url: str) -> Iterator[BinaryIO]:
        """A file to write the bytes of `url` into; it gets its name, and is recorded, when the block ends well.

        Raises UsageError for a URL that no mirror can hold, DiskError where the file cannot be written.
        """
        key = mirror_key(url)
        path = self.root / safe_relative(key)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, durable=False) as part, part.open("w+b") as file:
                yield file
        self.files[key] = {"size": path.stat().st_size, "sha256": sha256_of(path)}

    def add(self, url: str, content: bytes | Path) -> None:
        """Store bytes, or a copy of a file, as `url`."""
        with self.create(url) as file:
            if isinstance(content, bytes):
                file.write(content)
                return
            with content.open("rb") as source:
                while block := source.read(BLOCK):
                    file.write(block)

    def add_json(self, url: str, value: Any) -> None:
        """Store a value as JSON as `url`."""
        self.add(url, json.dumps(value).encode())

    def add_zip(self, url: str, members: Iterable[tuple[str, bytes]]) -> None:
        """Store a ZIP as `url`, members uncompressed; a name that ends with `/` is a folder."""
        with self.create(url) as file, ZipFile(file, "w", ZIP_STORED) as archive:
            for name, content in members:
                info = ZipInfo(name, ZIP_DATE)
                info.create_system = 3
                info.external_attr = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
                archive.writestr(info, content)

    def add_tar_gz(self, url: str, members: Iterable[tuple[str, bytes]]) -> None:
        """Store a compressed tar as `url`; the same members make the same archive."""
        with (
            self.create(url) as file,
            GzipFile("", "wb", 6, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, BytesIO(content))

    def finish(self, equivalence: str = "subset") -> Path:
        """Write the manifest of all that was added; returns its path."""
        content = {"format": 1, "equivalence": equivalence, "files": dict(sorted(self.files.items()))}
        with disk_errors(self.root / MANIFEST):
            write_json(self.root / MANIFEST, content)
        return self.root / MANIFEST


def mirror_key(url: str) -> str:
    """The manifest's name for `url`; raises UsageError, UnsafeError for what no mirror can hold."""
    key = mirror_path(url)
    if urlsplit(url).scheme not in SCHEMES or not all(safe_relative(key).partition("/")[::2]) or key.endswith("/"):
        raise UsageError(url, "no mirror can hold it", "give http(s)://host/path/to/a/file, gdrive:, hf: or azure:")
    return key


def url_of(reference: str) -> str:
    """The first address of `family/artifact`; of a list in parts, that of its first part."""
    family, _, name = reference.partition("/")
    return all_cards().families[family].artifacts[name].url.replace(PART, f"{0:05d}")


def urls_of(family: str) -> list[str]:
    """The addresses of all artifacts of a family, each once."""
    return list(dict.fromkeys(url_of(f"{family}/{name}") for name in all_cards().families[family].artifacts))


@cache
def all_cards() -> Cards:
    """The shipped cards, read once."""
    return load_cards()


@contextmanager
def serve(root: Path, port: int = 0) -> Iterator[str]:
    """Serve `root` on 127.0.0.1 while the block runs; gives the base URL. Port 0: any free one."""
    with MirrorServer(root, port) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="mirror", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class MirrorServer(ThreadingHTTPServer):
    """A threaded server that knows its folder."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, root: Path, port: int) -> None:
        self.root = root.resolve()
        super().__init__(("127.0.0.1", port), FileHandler)


class FileHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD with files below the server's folder."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: MirrorServer

    def do_GET(self) -> None:
        """A whole file, or the range that was asked for."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The headers of GET."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        names = len(self.headers.get_all("Host", []))
        if names > 1 or (not names and self.request_version == "HTTP/1.1"):  # RFC 9112, 3.2
            self.close_connection = True
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        wanted, root = unquote(urlsplit(self.path).path).lstrip("/"), self.server.root
        path = root if "\0" in wanted else (root / wanted).resolve()
        if not (path.is_relative_to(root) and path.is_file()):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        stat = path.stat()
        size, date = stat.st_size, formatdate(stat.st_mtime, usegmt=True)
        tag = f'"{size:x}-{stat.st_mtime_ns:x}"'
        # An If-Range that names another version asks for the whole file.
        same = self.headers.get("If-Range", tag) in (tag, date)
        part = parse_range(self.headers.get("Range", ""), size) if same else None
        headers = {"ETag": tag, "Last-Modified": date}
        if part is None:
            self._head(HTTPStatus.OK, size, **headers)
        elif part:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
            self._head(HTTPStatus.PARTIAL_CONTENT, len(part), **headers)
        else:
            self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, **{"Content-Range": f"bytes */{size}"})
        if with_body:
            self._send(path, range(size) if part is None else part)

    def _head(self, status: HTTPStatus, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, path: Path, part: range) -> None:
        """Send bytes of the file; a client that disconnects is no error."""
        if not part:
            return
        try:
            with path.open("rb") as file:
                self.connection.sendfile(file, part.start, len(part))
        except (ConnectionError, TimeoutError) as error:
            log.debug("%s went away: %s", self.client_address, error)
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log at DEBUG, not on the terminal."""
        log.debug(format, *args)


def parse_range(header: str, size: int) -> range | None:
    """One `bytes=` range as positions in a file (RFC 9110, 14.1.2); None: serve the whole file; empty: not satisfiable.

    Several ranges in one header are answered with the whole file, as the RFC allows.
    """
    found = RANGE.fullmatch(header.strip())
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return range(max(0, size - int(last)), size) if int(last) else range(size, size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)
