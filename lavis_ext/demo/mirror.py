"""Writes a subset mirror: files at `<root>/<host>/<path>`, and a manifest with their sizes and hashes, written last."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from gzip import GzipFile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from lavis_ext.errors import UsageError
from lavis_ext.fetch.mirrors import MANIFEST, mirror_path
from lavis_ext.fetch.safety import safe_relative
from lavis_ext.files import disk_errors, replacing, write_json

SCHEMES = ("http", "https", "gdrive", "hf", "azure")
BLOCK = 1 << 20
ZIP_DATE = (2014, 9, 1, 0, 0, 0)
"""Every member's time stamp, so that the same members make the same archive."""


class MirrorWriter:
    """Collects files under the URLs that they stand in for; they count once `finish()` has written the manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, dict[str, int | str]] = {}
        make_folder(root)
        # An older manifest would vouch for files that are about to change.
        (root / MANIFEST).unlink(missing_ok=True)

    @contextmanager
    def create(self, url: str) -> Iterator[BinaryIO]:
        """A file to write the bytes of `url` into; it gets its name, and is recorded, when the block ends well.

        Raises UsageError for a URL that no mirror can hold, DiskError where the file cannot be written.
        """
        key = mirror_key(url)
        path = self.root / safe_relative(key)
        make_folder(path.parent)
        with disk_errors(path), replacing(path, durable=False) as part, part.open("w+b") as file:
            yield file
        self.files[key] = {"size": path.stat().st_size, "sha256": hash_file(path)}

    def add(self, url: str, content: bytes | Path) -> None:
        """Put bytes, or a copy of a file, in the place of `url`."""
        with self.create(url) as file:
            if isinstance(content, bytes):
                file.write(content)
                return
            with content.open("rb") as source:
                while block := source.read(BLOCK):
                    file.write(block)

    def add_json(self, url: str, value: Any) -> None:
        """Put a value as JSON in the place of `url`."""
        self.add(url, json.dumps(value).encode())

    def add_zip(self, url: str, members: Iterable[tuple[str, bytes]]) -> None:
        """Put a ZIP in the place of `url`, members stored as they come; a name that ends with `/` is a folder."""
        with self.create(url) as file, ZipFile(file, "w", ZIP_STORED) as archive:
            for name, content in members:
                info = ZipInfo(name, ZIP_DATE)
                info.create_system = 3
                info.external_attr = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
                archive.writestr(info, content)

    def add_tar_gz(self, url: str, members: Iterable[tuple[str, bytes]]) -> None:
        """Put a compressed tar in the place of `url`; the same members make the same archive."""
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
        path = self.root / MANIFEST
        with disk_errors(path):
            write_json(path, content)
        return path


def make_folder(path: Path) -> None:
    """Make a folder and its parents; raises DiskError where that fails."""
    with disk_errors(path, "choose another folder"):
        path.mkdir(parents=True, exist_ok=True)


def mirror_key(url: str) -> str:
    """The manifest's name for what stands in for `url`; raises UsageError, UnsafeError for what no mirror can hold."""
    key = mirror_path(url)
    if urlsplit(url).scheme not in SCHEMES or not all(safe_relative(key).partition("/")[::2]) or key.endswith("/"):
        raise UsageError(url, "no mirror can hold it", "give http(s)://host/path/to/a/file, gdrive:, hf: or azure:")
    return key


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
