"""Files are whole or absent, whatever the disk says; what it says is a DiskError with its place."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lavis_ext.common.errors import DiskError
from lavis_ext.common.files import disk_errors, read_errors, replacing, write_atomic, write_json


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_does_not_fit_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, "old")
    with files_of_at_most(1000), pytest.raises(DiskError, match=r"/a: "), disk_errors(path):
        write_atomic(path, b"x" * 5000)
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def test_a_block_that_fails_or_is_interrupted_changes_nothing(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), replacing(tmp_path / "a") as part:
            part.write_text("half")
            raise error
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 255, "\N{CJK UNIFIED IDEOGRAPH-4E16}" * 85, "\udcff" * 255])
def test_names_of_255_bytes(name: str, tmp_path: Path) -> None:
    write_json(tmp_path / name, {"n": 1})
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_names_that_begin_alike_do_not_meet(tmp_path: Path) -> None:
    names = [f"{'n' * 220}{number}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: write_atomic(tmp_path / name, name), names))
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {name: name for name in names}


def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(DiskError) as caught, disk_errors(Path("/dev/full"), "move"):
        Path("/dev/full").write_bytes(b"x")
    [problem] = caught.value.problems
    assert (problem.where, problem.way_out) == ("/dev/full", "free space, or move")
    assert "no space left" in problem.what


def test_the_file_below_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskError) as caught, disk_errors(tmp_path):
        (tmp_path / "no" / "b").write_text("")
    assert caught.value.problems[0].where == str(tmp_path / "no" / "b")
    with pytest.raises(DiskError) as caught, disk_errors(tmp_path / "mine"):
        (tmp_path / "other" / "b").write_text("")
    assert caught.value.problems[0].where == str(tmp_path / "mine")


def test_what_libraries_make_of_it_counts_where_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="broken"), disk_errors(tmp_path, also=(RuntimeError,)):
        raise RuntimeError("broken")
    with pytest.raises(RuntimeError), disk_errors(tmp_path):
        raise RuntimeError("broken")


def test_reading_is_told_as_reading(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="cannot be read"), read_errors(tmp_path / "a"):
        (tmp_path / "a").read_text()
