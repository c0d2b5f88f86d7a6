"""Zip archives, local or remote: the directory as Members, and the bytes of one member as they are on disk."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

from lavis_ext.errors import IntegrityError, UnsafeError
from lavis_ext.prepare.members import DEFLATED, STORED, Member

HEADER = 30
"""Fixed bytes of a local file header (APPNOTE.TXT 4.3.7); name and extra field follow."""
CHUNK = 1 << 20
_UNREADABLE = (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, EOFError, struct.error, OverflowError, IndexError)


def list_zip(file: IO[bytes], where: str) -> list[Member]:
    """The files in a zip's central directory (Zip64 too), in its order; `file` must be seekable.

    Raises IntegrityError where there is no readable directory, UnsafeError for links, devices, set-id files, encrypted
    members and compression other than deflate.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except NotImplementedError as error:
        raise UnsafeError(where, f"a zip of a kind that is not read here ({error})", "name another mirror") from error
    except _UNREADABLE as error:
        what = f"no readable zip directory ({error}): cut off, or not a zip"
        raise IntegrityError(where, what, "it is fetched again when you run `prepare`") from error
    return [_member(info, where) for info in infos if not info.is_dir()]


def _member(info: zipfile.ZipInfo, where: str) -> Member:
    fault = _kind_fault(info)
    if fault:
        raise UnsafeError(where, f"member {info.orig_filename!r} {fault}", "the archive is refused as a whole")
    return Member(info.filename, info.file_size, info.CRC, info.header_offset, info.compress_size, info.compress_type)


def _kind_fault(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    if "\0" in info.orig_filename:
        return "has a name with a NUL"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is a link, a device or a pipe"
    if mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
        return "asks for set-id rights"
    if info.flag_bits & 0x41:
        return "is encrypted"
    if info.compress_type not in (STORED, DEFLATED):
        return f"uses compression method {info.compress_type}, which is not read here"
    if info.compress_type == STORED and info.compress_size != info.file_size:
        return "is stored but gives two sizes"
    return None


def data_offset(header: bytes, member: Member, where: str) -> int:
    """How far behind its local header's start a member's data begin; raises IntegrityError without a header."""
    if len(header) < HEADER or header[:4] != b"PK\3\4":
        raise IntegrityError(
            where, f"no member where {member.name!r} should begin", "the archive is damaged; fetch it again"
        )
    name, extra = struct.unpack("<HH", header[26:30])
    return HEADER + int(name) + int(extra)


def inflate(chunks: Iterable[bytes], member: Member, where: str) -> Iterator[bytes]:
    """The unpacked bytes of a member from its packed ones, counted and checked.

    Raises UnsafeError as soon as there are more than it declares, IntegrityError if they end early or differ.
    """
    count, crc = 0, 0
    for data in _inflated(chunks, member, where) if member.method == DEFLATED else chunks:
        count += len(data)
        if count > member.size:
            what = f"member {member.name!r} unpacks to more than the {member.size} bytes that it declares"
            raise UnsafeError(where, what, "the archive is refused")
        crc = zlib.crc32(data, crc)
        yield data
    if count != member.size or crc != member.crc:
        what = f"member {member.name!r}: expected {member.size} bytes of CRC {member.crc:08x}, got {count} of {crc:08x}"
        raise IntegrityError(where, what, "the archive is damaged; it is fetched again when you run `prepare`")


def _inflated(chunks: Iterable[bytes], member: Member, where: str) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for chunk in chunks:
            data = unpacker.decompress(chunk, CHUNK)
            while data:
                yield data
                data = unpacker.decompress(unpacker.unconsumed_tail, CHUNK)
        yield unpacker.flush()
    except zlib.error as error:
        what = f"member {member.name!r} cannot be decompressed ({error})"
        raise IntegrityError(
            where, what, "the archive is damaged; it is fetched again when you run `prepare`"
        ) from error
