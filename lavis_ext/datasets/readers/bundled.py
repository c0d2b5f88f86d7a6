"""Pictures inside another file: as base64 in a column of a text, or in a zip together with what is said of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from lavis_ext.common.errors import IntegrityError
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.folders import FolderRows
from lavis_ext.datasets.readers.images import BAD_ZIP
from lavis_ext.datasets.readers.parse import OneFile, Row, SplitBy, parse_rows
from lavis_ext.datasets.readers.tables import (
    ENCODED,
    PICTURE,
    RECORDS,
    TABLES,
    UNPACKED,
    kind_of_name,
    open_head,
    sign_of,
)

MEMBERS = ("metadata", "captions", "annotations", "labels", "data", "train")
"""Names of tables in a zip, the likeliest first."""


@dataclass(frozen=True)
class EncodedRows:
    """The rows of a text, in which pictures in base64 are named below `base`: `rows.csv!image/17`."""

    source: Any
    path: Path
    base: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def name(self) -> str:
        """The file name of the Arrow copy, without its suffix."""
        digest = hashlib.sha256(os.fsencode(self.base.absolute())).hexdigest()[:8]
        return f"{self.source.name}.pictures-{digest}"

    def __str__(self) -> str:
        return str(self.path)

    def parse(self) -> list[Row]:
        """All rows; raises IntegrityError."""
        rows = parse_rows(self.source) if isinstance(self.source, Path) else self.source.parse()
        inside = self.path.is_relative_to(self.base)
        where = self.path.relative_to(self.base).as_posix() if inside else self.path.name
        return [
            {key: _named(value, f"{where}!{key}/{number}") for key, value in row.items()}
            for number, row in enumerate(rows)
        ]


def _named(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_named(one, f"{name}/{k}") for k, one in enumerate(value)]
    return name if isinstance(value, str) and value.startswith(ENCODED) and len(value) > 40 else value


class EncodedImages:
    """The pictures in the columns of one text by their names; its rows are mapped from an Arrow copy."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedImages, (self.path,)

    @cached_property
    def _rows(self) -> Any:
        from lavis_ext.datasets.readers.annotations import Annotations

        sign = None
        if kind_of_name(self.path) in TABLES:
            sign = sign_of(open_head(self.path, 1 << 16).partition(b"\n")[0].decode("latin-1"))
        return Annotations([SplitBy(self.path, sign or None, "latin-1")])

    def read(self, name: str) -> bytes:
        """The bytes of `COLUMN/ROW` or `COLUMN/ROW/NUMBER`; raises SampleError."""
        column, row, *rest = name.split("/")
        try:
            value = self._rows[int(row)][column]
            text = value[int(rest[0])] if rest else value
            return base64.b64decode(text.partition("base64,")[2] if text.startswith("data:") else text, validate=False)
        except (LookupError, TypeError, AttributeError, binascii.Error) as error:
            raise SampleError(name, self.where(name), f"image cannot be read: {error}") from error

    def where(self, name: str) -> str:
        """Where a picture is, for messages: `rows.csv!image/17`."""
        return f"{self.path}!{name}"


@dataclass(frozen=True)
class ZipRows(OneFile):
    """The rows of a zip with pictures: of the table in it, else a row a picture with the text of its name beside it."""

    encoding: str | None = None
    KIND: ClassVar[str] = "zip"

    def parse(self) -> list[Row]:
        """All rows; raises IntegrityError for a zip that is damaged or holds several tables."""
        try:
            with zipfile.ZipFile(self.path) as archive, TemporaryDirectory() as folder:
                return self._rows_in(archive, Path(folder))
        except (*BAD_ZIP, RuntimeError, zlib.error) as error:  # RuntimeError: a password is wanted
            raise IntegrityError(str(self.path), f"not a zip that can be read ({error})", "unpack it") from error

    def _rows_in(self, archive: zipfile.ZipFile, folder: Path) -> list[Row]:
        members = list(_visible(archive))
        stems = {name.rpartition(".")[0] for name, _ in members if PICTURE.search(name)}
        beside = {name for name, _ in members if name.rpartition(".")[0] in stems or PICTURE.search(name)}
        tables = [
            (name, info) for name, info in members if name not in beside and name.lower().endswith((*RECORDS, ".txt"))
        ]
        words = {name: PurePosixPath(name).stem.lower() for name, _ in tables}
        tables.sort(key=lambda one: next((n for n, word in enumerate(MEMBERS) if word in words[one[0]]), len(MEMBERS)))
        for name, info in members:
            if name in beside or (tables and name == tables[0][0]):
                target = folder / "in" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if info.file_size > UNPACKED and not PICTURE.search(name):
                    raise ValueError(f"{name} has {info.file_size:,} bytes")
                target.write_bytes(b"" if PICTURE.search(name) else archive.read(info))
        if tables:
            return parse_rows(folder / "in" / tables[0][0], self.encoding)
        return FolderRows(folder / "in", folder / "in", self.encoding).parse()


def _visible(archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Members by name, without folders, hidden files, macOS' doubles and names that lead out."""
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        hidden = any(part.startswith((".", "__MACOSX", "/")) for part in parts)
        if not info.is_dir() and parts and not hidden and "\\" not in info.filename:
            yield info.filename, info


def holds_pictures(path: Path) -> bool:
    """Whether a file is a zip with pictures."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PICTURE.search(name) for name, _ in _visible(archive))
    except BAD_ZIP:
        return False
