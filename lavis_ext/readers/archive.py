"""Members of a zip file, read straight out of the archive from any number of threads."""

from __future__ import annotations

import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lavis_ext.errors import IntegrityError
from lavis_ext.readers.faults import SampleError

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
MAX_MEMBER = 1 << 30
ENCRYPTED = 0x1


class Member(NamedTuple):
    """Where one file stands in the archive."""

    offset: int
    packed: int
    size: int
    method: int
    crc: int
    flags: int


class PositionalFile:
    """A file that threads read side by side.

    A memory map would stop the interpreter at each page that the disk has to seek; a read lets the others go on.
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self._stream.fileno(), size, offset)
        with self._lock:
            self._stream.seek(offset)
            return self._stream.read(size)


class ZipArchive:
    """The files of one zip by name; its directory is read once, on first need. Pickling carries the path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return ZipArchive, (self.path,)

    @cached_property
    def members(self) -> dict[str, Member]:
        """Name → place, folders left out; raises IntegrityError for a file that is no whole zip."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise IntegrityError(str(self.path), f"not a whole zip file ({error})", "fetch it again") from error
        return {
            i.filename: Member(i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC, i.flag_bits)
            for i in infos
        }

    @cached_property
    def folders(self) -> frozenset[str]:
        """Every folder that a member lies in, without trailing slash; `""` is the root."""
        return frozenset(name.rpartition("/")[0] for name in self.members) | {""}

    @cached_property
    def _file(self) -> PositionalFile:
        return PositionalFile(self.path)

    def has(self, name: str) -> bool:
        """Whether a file of that name is in the archive."""
        return name in self.members

    def has_folder(self, name: str) -> bool:
        """Whether a file lies directly in that folder."""
        return name in self.folders

    def where(self, name: str) -> str:
        """The place of a member in words: `archive.zip!name`."""
        return f"{self.path}!{name}"

    def names(self) -> Iterator[str]:
        """The names of all files, in the order of the archive."""
        return iter(self.members)

    def read(self, name: str) -> bytes:
        """The bytes of a member, checked against its CRC; raises SampleError if they are damaged."""
        member = self.members[name]
        if member.flags & ENCRYPTED or member.size > MAX_MEMBER:
            raise SampleError(name, self.where(name), "archive member is encrypted or larger than 1 GiB")
        try:
            data = self._unpack(member)
        except (OSError, zlib.error, struct.error, ValueError) as error:
            raise SampleError(name, self.where(name), f"archive member is damaged: {error}") from error
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise SampleError(name, self.where(name), "archive member is damaged: its CRC does not match")
        return data

    def _unpack(self, member: Member) -> bytes:
        header = LOCAL_HEADER.unpack(self._file.read_at(member.offset, LOCAL_HEADER.size))
        packed = self._file.read_at(member.offset + LOCAL_HEADER.size + header[9] + header[10], member.packed)
        if header[0] != b"PK\x03\x04":
            raise ValueError("no local header where the directory says")
        if member.method == zipfile.ZIP_STORED:
            return packed
        if member.method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.size + 1)
        raise ValueError(f"compression method {member.method} is not read here")
