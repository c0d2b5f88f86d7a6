"""Reading zips: what goes in comes out, and everything else is refused with the right code."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import IntegrityError, UnsafeError
from lavis_ext.prepare.archive_formats import HEADER, data_offset, inflate, list_zip
from lavis_ext.prepare.records import Member
from tests.support.server import payload
from tests.support.toyfamily import zip_bytes

NAMES = st.text("abcdefghij0123456789_-é", min_size=1, max_size=12)


def content(data: bytes, member: Member, step: int = 1000) -> bytes:
    start = member.offset + data_offset(data[member.offset : member.offset + HEADER], member, "zip")
    packed = data[start : start + member.packed]
    pieces = (packed[at : at + step] for at in range(0, len(packed), step))
    return b"".join(inflate(pieces, member, "zip"))


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(NAMES, st.binary(max_size=3000), max_size=8),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.integers(1, 5000),
)
def test_what_goes_in_comes_out(files: dict[str, bytes], method: int, step: int) -> None:
    data = zip_bytes(files, method)
    members = list_zip(io.BytesIO(data), "zip")
    assert {m.name: content(data, m, step) for m in members} == files


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_damage_is_an_error_of_ours_or_harmless(position: int, value: int) -> None:
    files = {"a.jpg": payload(800), "b/c.txt": b"text" * 300}
    data = bytearray(zip_bytes(files, zipfile.ZIP_DEFLATED))
    data[position % len(data)] = value
    try:
        for member in list_zip(io.BytesIO(bytes(data)), "zip"):
            content(bytes(data), member)
    except (IntegrityError, UnsafeError):
        return


def test_zip64_and_a_prefix_are_read() -> None:
    buffer = io.BytesIO(b"#!/bin/sh\n")
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive, archive.open("big", "w", force_zip64=True) as file:
        file.write(b"x" * 100)
    data = buffer.getvalue()
    (member,) = list_zip(io.BytesIO(data), "zip")
    assert content(data, member) == b"x" * 100


def test_more_than_65535_members_are_listed() -> None:
    data = zip_bytes({f"{n}": b"" for n in range(66_000)})
    assert len(list_zip(io.BytesIO(data), "zip")) == 66_000


@pytest.mark.parametrize("cut", [10, 500, -30, -1])
def test_a_cut_zip_is_damage(cut: int) -> None:
    data = zip_bytes({"a": payload(1000), "b": payload(1000)})[:cut]
    with pytest.raises(IntegrityError) as caught:
        list_zip(io.BytesIO(data), "toy.zip")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666, 0o140666, 0o104755, 0o102755])
def test_links_devices_pipes_and_set_id_are_refused(mode: int) -> None:
    data = zip_bytes({"a": b"/etc/passwd"}, external_attr=mode << 16)
    with pytest.raises(UnsafeError):
        list_zip(io.BytesIO(data), "toy.zip")


def patched(data: bytes, at: int, fmt: str, value: int) -> bytes:
    """The archive with one field of its first directory entry changed."""
    out = bytearray(data)
    struct.pack_into(fmt, out, data.index(b"PK\1\2") + at, value)
    return bytes(out)


def test_encrypted_and_unknown_compression_are_refused() -> None:
    data = zip_bytes({"a": b"text" * 10})
    for at, value in ((8, 1), (10, 9), (10, 99), (10, 12)):
        with pytest.raises(UnsafeError):
            list_zip(io.BytesIO(patched(data, at, "<H", value)), "toy.zip")


def lying(size: int) -> tuple[bytes, Member]:
    data = patched(zip_bytes({"a": b"text" * 1000}, zipfile.ZIP_DEFLATED), 24, "<I", size)
    (member,) = list_zip(io.BytesIO(data), "toy.zip")
    return data, member


def test_a_wrong_size_is_caught_while_it_unpacks() -> None:
    with pytest.raises(UnsafeError, match="more than"):
        content(*lying(100))
    with pytest.raises(IntegrityError, match="expected"):
        content(*lying(5000))


def test_a_bomb_stops_at_the_size_that_it_declares() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(64 << 20)) + packer.flush()
    member = Member("a", 1000, 0, 0, len(packed), 8)
    seen = 0

    def watched() -> Iterator[bytes]:
        yield packed

    with pytest.raises(UnsafeError):
        for piece in inflate(watched(), member, "toy.zip"):
            seen += len(piece)
    assert seen <= 1 << 20
