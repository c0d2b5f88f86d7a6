"""The quick walk over a tar sees what tarfile sees, and every cut is told."""

import io
import tarfile
import tracemalloc
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.datasets.readers import shard_index as shard_walk
from lavis_ext.datasets.readers.shard_index import walk

NAMES = st.one_of(
    st.text("abé./ ", min_size=1, max_size=12).filter(lambda n: n.strip("./ ")),
    st.text("xy/", min_size=90, max_size=260).filter(lambda n: n.strip("/")),
)
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=1200), st.sampled_from("ffffdl")), max_size=6)
FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


def write(path: Path, members: list[tuple[str, bytes, str]], form: int) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.type = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE}[kind]
            info.size, info.linkname = (len(data), "") if kind == "f" else (0, "x")
            archive.addfile(info, io.BytesIO(data))


@settings(max_examples=80, deadline=None)
@given(members=MEMBERS, form=FORMATS)
def test_as_tarfile_sees_it(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, str]], form: int
) -> None:
    path = tmp_path_factory.mktemp("tars") / "0.tar"
    write(path, members, form)
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    found, cut = walk(path)
    assert [(name, *extent) for name, extent in found] == expected and cut == ""


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_every_cut_is_told(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("tars") / "0.tar"
    write(path, [(f"{i}.jpg", bytes(300 * i), "f") for i in range(5)], tarfile.PAX_FORMAT)
    whole, _ = walk(path)
    end = -(-sum(whole[-1][1]) // 512) * 512
    size = data.draw(st.integers(0, end + 1023))
    path.write_bytes(path.read_bytes()[:size])
    found, cut = walk(path)
    assert cut and found == whole[: len(found)] and all(sum(extent) <= size for _, extent in found)


def test_plain_tars_do_not_need_tarfile(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [("a.jpg", b"x" * 600, "f"), ("é.json", b"", "f")], tarfile.GNU_FORMAT)
    with patch.object(shard_walk.tarfile, "open", side_effect=AssertionError):
        assert [name for name, _ in walk(tmp_path / "0.tar")[0]] == ["a.jpg", "é.json"]


@given(block=st.one_of(st.binary(min_size=512, max_size=512), st.just(b"\xff" * 512), st.just(bytes(512))))
def test_bytes_are_summed_exactly(block: bytes) -> None:
    assert shard_walk._byte_sum(block) == sum(block)


def test_a_sample_with_short_texts_takes_one_read(tmp_path: Path) -> None:
    sizes = {"jpg": 20_000, "json": 300, "txt": 512}
    members = [(f"{n}.{kind}", bytes(size), "f") for n in range(20) for kind, size in sizes.items()]
    write(tmp_path / "0.tar", members, tarfile.GNU_FORMAT)
    reads = []

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            reads.append(size)
            return super().read(size) or b""

    with Counting(tmp_path / "0.tar") as file:
        found = shard_walk._read_plain(file, (tmp_path / "0.tar").stat().st_size)
    assert found is not None and len(found) == 60 and len(reads) <= 22


def test_a_flipped_bit_in_a_header_is_told(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write(path, [(f"{i}.jpg", b"x", "f") for i in range(3)], tarfile.PAX_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024] ^= 1
    path.write_bytes(data)
    found, cut = walk(path)
    assert [name for name, _ in found] == ["0.jpg"] and cut == "it has a damaged header"


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    assert walk(tmp_path / "0.tar") == ([], "it cannot be read (No such file or directory)")


def test_a_shard_that_ends_with_its_last_member_has_it(tmp_path: Path) -> None:
    """Of a tar that the quick walk leaves to tarfile too; without its end mark it may lack others."""
    path = tmp_path / "0.tar"
    write(path, [("x/" * 60 + "0.jpg", b"x" * 512, "f"), ("1.jpg", b"y" * 512, "f")], tarfile.PAX_FORMAT)
    whole, fault = walk(path)
    path.write_bytes(path.read_bytes()[: sum(whole[-1][1])])
    assert fault == "" and walk(path) == (whole, "it is cut off before its end mark")


def test_headers_that_were_passed_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write(path, [("x/" * 60 + f"{n}.jpg", b"", "f") for n in range(2000)], tarfile.PAX_FORMAT)
    tracemalloc.start()
    try:
        members = walk(path)[0]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(members) == 2000 and most < 500 * len(members)
