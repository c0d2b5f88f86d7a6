"""Tar archives, plain or gzipped, from front to end: members with their CRC, and proof that nothing is cut off."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from lavis_ext.errors import IntegrityError, UnsafeError
from lavis_ext.prepare.members import MIB, STORED, Limits, Member, clean_name

CHUNK = MIB
MAX_READ = 16 * MIB
"""More than any header needs: tarfile reads a pax header whole."""
_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError)


class Watched:
    """A byte stream that remembers how far it came and where its last byte other than zero was."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit = file, limit
        self.position = 0
        self.content_end = 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; raises UnsafeError beyond the limit."""
        if size > MAX_READ:
            raise UnsafeError("tar", f"a header of {size:,} bytes", "the archive is refused")
        data = self._file.read(size)
        self.position += len(data)
        used = len(data.rstrip(b"\0"))
        if used:
            self.content_end = self.position - len(data) + used
        if self.position > self._limit:
            raise UnsafeError("tar", f"unpacks to more than {self._limit:,} bytes", "the archive is refused")
        return data


def list_tar(path: Path, gzipped: bool, limits: Limits) -> list[Member]:
    """The files of a tar in order, each with the CRC-32 of its bytes.

    Raises IntegrityError for damage and for an archive without its end mark (one cut off at a member's boundary looks
    whole otherwise), UnsafeError for links, devices, sparse and set-id members.
    """
    members = []
    with _opened(path, gzipped, limits.total + 2048 * (limits.files + 100)) as (tar, watched):
        while (info := _next(tar)) is not None:
            if not info.isdir():
                members.append(_member(tar, info, -1 if gzipped else info.offset_data, path))
            if len(members) > limits.files:
                raise UnsafeError(str(path), f"holds more than {limits.files:,} files", "the archive is refused")
        _check_end(tar, watched, path)
    return members


def read_tar(path: Path, gzipped: bool) -> Iterator[tuple[int, Iterator[bytes]]]:
    """(number of the file, its bytes) from front to end; bytes that are not taken are passed over."""
    with _opened(path, gzipped, 1 << 62) as (tar, _):
        number = 0
        while (info := _next(tar)) is not None:
            if not info.isdir():
                yield number, _content(tar, info)
                number += 1


@contextmanager
def _opened(path: Path, gzipped: bool, limit: int) -> Iterator[tuple[tarfile.TarFile, Watched]]:
    with path.open("rb") as raw:
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if gzipped else raw
        watched = Watched(stream, limit)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", watched), mode="r|", bufsize=CHUNK) as tar:
                yield tar, watched
        except _UNREADABLE as error:
            what = f"the archive is cut off or damaged ({error})"
            raise IntegrityError(str(path), what, "it is fetched again when you run `prepare`") from error


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; tarfile's own list of them is emptied, so that memory stays flat."""
    info = tar.next()
    tar.members.clear()  # type: ignore[attr-defined]
    return info


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    file = tar.extractfile(info)
    while file is not None and (data := file.read(CHUNK)):
        yield data


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, offset: int, path: Path) -> Member:
    if not info.isreg() or info.issparse() or info.mode & 0o7000:
        what = f"member {info.name!r} is a link, a device, a pipe, sparse, or asks for set-id rights"
        raise UnsafeError(str(path), what, "the archive is refused as a whole")
    crc = 0
    for data in _content(tar, info):
        crc = zlib.crc32(data, crc)
    return Member(clean_name(info.name), info.size, crc, offset, info.size, STORED)


def _check_end(tar: tarfile.TarFile, watched: Watched, path: Path) -> None:
    """tarfile ends in silence at a cut or a broken header: only zero blocks may follow the last member."""
    # `position` runs ahead of the tar by up to one buffer; reading on to the end also has gzip check its own CRC.
    while watched.read(CHUNK):
        pass
    if watched.content_end > tar.offset or watched.position < tar.offset + tarfile.BLOCKSIZE:
        what = f"the archive breaks off after {tar.offset:,} bytes, without its end mark"
        raise IntegrityError(str(path), what, "it is fetched again when you run `prepare`")
