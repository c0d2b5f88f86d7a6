"""Reading tars: content and CRC of every member, and every kind of cut that tarfile passes over in silence."""

from __future__ import annotations

import gc
import gzip
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import IntegrityError, UnsafeError
from lavis_ext.prepare.archive_formats import Limits, list_tar, read_tar
from tests.support.server import payload
from tests.support.toyfamily import tar_bytes

FILES = {"a.jpg": payload(700), "b/c.jpg": payload(2000, 1), "b/d.jpg": payload(512, 2), "e": b""}
LIMITS = Limits(100, 1 << 20)


def put(folder: Path, data: bytes, gzipped: bool = False) -> Path:
    path = folder / "toy.tar"
    path.write_bytes(gzip.compress(data) if gzipped else data)
    return path


@pytest.mark.parametrize("gzipped", [False, True])
def test_members_have_names_sizes_crcs_and_content(tmp_path: Path, gzipped: bool) -> None:
    path = put(tmp_path, tar_bytes(FILES), gzipped)
    members = list_tar(path, gzipped, LIMITS)
    assert {m.name: (m.size, m.crc) for m in members} == {n: (len(d), zlib.crc32(d)) for n, d in FILES.items()}
    assert all((m.offset < 0) == gzipped for m in members)
    contents = {members[n].name: b"".join(pieces) for n, pieces in read_tar(path, gzipped)}
    assert contents == FILES


def test_members_that_were_passed_are_not_kept(tmp_path: Path) -> None:
    """An archive may have millions of them."""
    path = put(tmp_path, tar_bytes({f"{number}.jpg": b"x" for number in range(200)}))
    kept = []
    for number, pieces in read_tar(path, False):
        assert b"".join(pieces) == b"x"
        if number % 50 == 49:
            kept.append(sum(isinstance(one, tarfile.TarInfo) for one in gc.get_objects()))
    assert kept[-1] <= kept[0] < 50


def test_offsets_lead_to_the_data(tmp_path: Path) -> None:
    data = tar_bytes(FILES)
    for member in list_tar(put(tmp_path, data), False, LIMITS):
        assert data[member.offset : member.offset + member.packed] == FILES[member.name]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000))
def test_every_cut_before_the_end_mark_is_found(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    data = tar_bytes(FILES)
    end = len(data.rstrip(b"\0"))
    path = put(tmp_path_factory.mktemp("cut"), data[: min(cut, end - 1)])
    with pytest.raises(IntegrityError) as caught:
        list_tar(path, False, LIMITS)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_cut_at_a_members_boundary_is_found(tmp_path: Path, count: int) -> None:
    whole = tar_bytes(dict(list(FILES.items())[:count]))
    boundary = whole[: sum(512 + -(-len(d) // 512) * 512 for d in list(FILES.values())[:count])]
    path = put(tmp_path, boundary)
    with tarfile.open(path) as silent:
        assert len(silent.getnames()) == count
    with pytest.raises(IntegrityError, match="end mark"):
        list_tar(path, False, LIMITS)


def test_a_cut_gzip_is_found(tmp_path: Path) -> None:
    path = tmp_path / "toy.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(FILES))[:-9])
    with pytest.raises(IntegrityError):
        list_tar(path, True, LIMITS)


def test_a_broken_header_in_the_middle_is_found(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(FILES))
    data[1536 + 150] ^= 0xFF
    with pytest.raises(IntegrityError):
        list_tar(put(tmp_path, bytes(data)), False, LIMITS)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S"]
)
def test_links_devices_pipes_and_sparse_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = put(tmp_path, tar_bytes({"a": b""}, type=kind, linkname="/etc/passwd"))
    with pytest.raises((UnsafeError, IntegrityError)):
        list_tar(path, False, LIMITS)


def test_set_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeError):
        list_tar(put(tmp_path, tar_bytes({"a": b"x"}, mode=0o4755)), False, LIMITS)


def test_a_gzip_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    path = put(tmp_path, tar_bytes({"a": bytes(8 << 20)}), gzipped=True)
    with pytest.raises(UnsafeError):
        list_tar(path, True, Limits(10, 1 << 20))


def test_more_files_than_allowed_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path, tar_bytes({str(n): b"" for n in range(20)}))
    with pytest.raises(UnsafeError, match="files"):
        list_tar(path, False, Limits(10, 1 << 20))


def test_one_block_of_zeros_is_an_end(tmp_path: Path) -> None:
    """POSIX asks for two, some writers leave one; without any it may have been cut."""
    whole = tar_bytes({"a.jpg": b"x" * 600})
    ends = len(whole.rstrip(b"\0")) + (-len(whole.rstrip(b"\0"))) % 512
    assert [one.name for one in list_tar(put(tmp_path, whole[: ends + 512]), False, LIMITS)] == ["a.jpg"]
    with pytest.raises(IntegrityError):
        list_tar(put(tmp_path, whole[:ends]), False, LIMITS)
