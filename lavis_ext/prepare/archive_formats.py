"""Zip and tar: the members of an archive, the rules by which it is refused, and the members' bytes."""

from __future__ import annotations

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import IO, cast

from lavis_ext.common.errors import IntegrityError, Problem, UnsafeError
from lavis_ext.common.files import folded
from lavis_ext.datasets.readers.faults import BAD_TAR
from lavis_ext.prepare.records import DEFLATED, STORED, Member
from lavis_ext.prepare.selection import DEPTH, name_fault

MIB = 1 << 20
SHOWN = 5
_WAY_OUT = "the archive is refused as a whole; name another mirror, or unpack it yourself where it can do no harm"
HEADER = 30
"""Fixed bytes of a local file header (APPNOTE.TXT 4.3.7); name and extra field follow."""
_BAD_ZIP = (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, EOFError, struct.error, OverflowError, IndexError)
MAX_READ = 16 * MIB
"""More than any header needs: tarfile reads a pax header whole."""
_BAD_TAR = (*BAD_TAR, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to: files, total bytes, and depth of folders."""

    files: int = 5_000_000
    total: int = 1 << 42
    depth: int = DEPTH

    @classmethod
    def declared(cls, archive_bytes: int, files: int | None = None, total: int | None = None) -> Limits:
        """The declared figures with 5 % slack; without them 5,000,000 files and 100 times the archive + 64 MiB."""
        bound = 100 * archive_bytes + 64 * MIB if total is None else total + total // 20
        return cls(cls.files if files is None else files + files // 20 + 1, bound)


def clean_name(name: str) -> str:
    """The name without leading `./`, as some tars write it."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def check_members(members: Sequence[Member], limits: Limits, where: str, reserved: str = "") -> None:
    """Raise UnsafeError with the first SHOWN reasons not to unpack this archive; `reserved` is its own file name."""
    found = []
    for problem in _problems(members, limits, reserved):
        found.append(Problem(where, problem, _WAY_OUT))
        if len(found) == SHOWN:
            break
    if found:
        raise UnsafeError.of(found)


def _problems(members: Sequence[Member], limits: Limits, reserved: str) -> Iterator[str]:
    if len(members) > limits.files:
        yield f"holds {len(members):,} files where {limits.files:,} are allowed"
        return
    total = sum(member.size for member in members)
    if total > limits.total:
        yield f"would unpack to {total:,} bytes where {limits.total:,} are allowed"
        return
    yield from _name_problems(members, limits.depth, reserved)
    yield from _overlaps(members)


def _name_problems(members: Sequence[Member], depth: int, reserved: str) -> Iterator[str]:
    seen: set[str] = set()
    folders: set[str] = set()
    for member in members:
        fault = name_fault(member.name, depth)
        if fault:
            yield fault
        key = folded(member.name)
        if key in seen:
            yield f"member {member.name!r} is there twice (or differs only in case or accents from another)"
        seen.add(key)
        folders.add(key.rpartition("/")[0])
    if reserved and folded(reserved) in seen:
        yield f"member {reserved!r} has the name of the archive itself"
    for folder in folders:
        if any(parent in seen for parent in _ancestors(folder)):
            yield f"{folder!r} is a file and a folder at once"


def _ancestors(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def _overlaps(members: Sequence[Member]) -> Iterator[str]:
    """Members that share bytes: how a small archive names the same data a thousand times."""
    end = 0
    for member in sorted(members, key=attrgetter("offset")):
        if 0 <= member.offset < end and member.packed:
            yield f"member {member.name!r} shares bytes with another"
        end = max(end, member.offset + member.packed)


# Zip


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
    except _BAD_ZIP as error:
        what = f"no readable zip directory ({error}): cut off, or not a zip"
        raise IntegrityError(where, what, "it is fetched again when you run `prepare`") from error
    return [_zip_member(info, where) for info in infos if not info.filename.endswith("/")]


def _zip_member(info: zipfile.ZipInfo, where: str) -> Member:
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
            data = unpacker.decompress(chunk, MIB)
            while data:
                yield data
                data = unpacker.decompress(unpacker.unconsumed_tail, MIB)
        yield unpacker.flush()
    except zlib.error as error:
        what = f"member {member.name!r} cannot be decompressed ({error})"
        raise IntegrityError(
            where, what, "the archive is damaged; it is fetched again when you run `prepare`"
        ) from error


# Tar


class Watched:
    """A byte stream that records its position and where its last byte other than zero was."""

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
                members.append(_tar_member(tar, info, -1 if gzipped else info.offset_data, path))
            if len(members) > limits.files:
                raise UnsafeError(str(path), f"holds more than {limits.files:,} files", "the archive is refused")
        _check_end(tar, watched, path)
    return members


def read_tar(path: Path, gzipped: bool) -> Iterator[tuple[int, Iterator[bytes]]]:
    """(number of the file, its bytes) from front to end; bytes that are not read are skipped."""
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
            with tarfile.open(fileobj=cast("IO[bytes]", watched), mode="r|", bufsize=MIB) as tar:
                yield tar, watched
        except _BAD_TAR as error:
            what = f"the archive is cut off or damaged ({error})"
            raise IntegrityError(str(path), what, "it is fetched again when you run `prepare`") from error


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; tarfile's own list of them is emptied, so that memory stays flat."""
    info = tar.next()
    tar.members.clear()  # type: ignore[attr-defined]
    return info


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    file = tar.extractfile(info)
    while file is not None and (data := file.read(MIB)):
        yield data


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo, offset: int, path: Path) -> Member:
    if not info.isreg() or info.issparse() or info.mode & 0o7000:
        what = f"member {info.name!r} is a link, a device, a pipe, sparse, or asks for set-id rights"
        raise UnsafeError(str(path), what, "the archive is refused as a whole")
    crc = 0
    for data in _content(tar, info):
        crc = zlib.crc32(data, crc)
    return Member(clean_name(info.name), info.size, crc, offset, info.size, STORED)


def _check_end(tar: tarfile.TarFile, watched: Watched, path: Path) -> None:
    """Raise IntegrityError unless only zero blocks follow the last member: tarfile itself ends silently at a cut."""
    # `position` runs ahead of the tar by up to one buffer; reading on to the end also has gzip check its own CRC.
    while watched.read(MIB):
        pass
    if watched.content_end > tar.offset or watched.position < tar.offset + tarfile.BLOCKSIZE:
        what = f"the archive breaks off after {tar.offset:,} bytes, without its end mark"
        raise IntegrityError(str(path), what, "it is fetched again when you run `prepare`")
