"""The members of a tar by its headers alone, and whether it ends as a tar must."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path
from typing import IO, NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)
HEADER = struct.Struct("100s24x12s12x8s1s188x155s12x")
"""POSIX ustar, the fields in use: name, size, checksum, kind, prefix."""
PLAIN = (b"0", b"\0")


class Extent(NamedTuple):
    """Where the bytes of a member stand in the tar."""

    offset: int
    size: int


Members = list[tuple[str, Extent]]


def walk(path: Path) -> tuple[Members, str]:
    """The plain files of a tar that are whole, in order, and how it ends early ("" for one that is whole).

    A whole tar of nothing but plain files, as all writers of shards make them, is read here, several times as fast as
    tarfile does it. Everything else is left to tarfile, whose silence is looked into: it passes over a cut between two
    members, inside a header and at the end mark.
    """
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            members = _read_plain(file, size)
            return _read_any(file, size) if members is None else (members, "")
    except OSError as error:
        return [], f"it cannot be read ({error.strerror})"


def _read_plain(file: IO[bytes], size: int) -> Members | None:
    """The members, or None for anything out of the ordinary."""
    members: Members = []
    offset = 0
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if len(header) == BLOCK and not any(header[:BLOCK:64]) and header + file.read(BLOCK) == END:
            return members
        member = _parse(header, offset + BLOCK) if len(header) == BLOCK else None
        if member is None or member[1].offset + member[1].size > size:
            return None
        members.append(member)
        offset = member[1].offset + -(-member[1].size // BLOCK) * BLOCK


def _parse(header: bytes, offset: int) -> tuple[str, Extent] | None:
    """A plain file's header, or None."""
    name, size, checksum, kind, prefix = HEADER.unpack(header)
    try:
        told, length = int(checksum.strip(b" \0"), 8), int(size.strip(b" \0"), 8)
    except ValueError:
        return None
    name = name.partition(b"\0")[0]
    if kind not in PLAIN or name[-1:] in (b"/", b"") or told != sum(header) - sum(checksum) + 8 * 0x20:
        return None
    prefix = prefix.partition(b"\0")[0]
    whole = prefix + b"/" + name if prefix else name
    return whole.decode("utf-8", "surrogateescape"), Extent(offset, length)


def _read_any(file: IO[bytes], size: int) -> tuple[Members, str]:
    members: Members = []
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else all headers of a shard are held at once
                if member.offset_data + member.size > size:
                    return members, "it is cut off inside a member"
                if member.isreg() and not member.issparse():
                    members.append((member.name, Extent(member.offset_data, member.size)))
            file.seek(archive.offset)
            return members, _judge_end(file.read(len(END)))
    except tarfile.TarError as error:
        return members, f"it is cut off or no tar ({error})"


def _judge_end(tail: bytes) -> str:
    """A tar ends with two blocks of zeros; tarfile stops silently at anything that is no header."""
    if tail == END:
        return ""
    return "it has a damaged header" if len(tail) >= BLOCK and any(tail) else "it is cut off before its end mark"
