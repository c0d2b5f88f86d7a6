"""Pickles that do more than hold data are refused in every reader, with exit code 10 and nothing executed."""

import contextlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.cli import main
from lavis_ext.common.errors import IntegrityError, LavisExtError, UnsafeError
from lavis_ext.features.formats.restricted import load_plain
from tests.support.features import make_images, volta_lmdb


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    return tmp_path / "sprung"


def lmdb_of(folder: Path, trap: Path) -> Path:
    return volta_lmdb(folder / "f.lmdb", make_images(2), spoil=pickle.dumps({"img_id": "1", "features": Trap(trap)}))


def pt_of(folder: Path, trap: Path) -> Path:
    torch.save({1: torch.zeros(1, 2054), 2: Trap(trap)}, folder / "f.pt")
    return folder / "f.pt"


def old_pt_of(folder: Path, trap: Path) -> Path:
    torch.save({1: Trap(trap)}, folder / "f.pt", _use_new_zipfile_serialization=False)
    return folder / "f.pt"


def npy_of(folder: Path, trap: Path) -> Path:
    (folder / "f").mkdir()
    np.save(folder / "f" / "1.npy", np.array({"features": Trap(trap)}, dtype=object), allow_pickle=True)
    return folder / "f"


def npz_of(folder: Path, trap: Path) -> Path:
    (folder / "f").mkdir()
    np.savez(folder / "f" / "1.npz", features=np.array([Trap(trap)], dtype=object))
    return folder / "f"


@pytest.mark.fault("D09")
@pytest.mark.parametrize("make", [lmdb_of, pt_of, old_pt_of, npy_of], ids=lambda make: make.__name__)
def test_every_reader_refuses_with_exit_code_ten(tmp_path: Path, trap: Path, make: Any, capsys: Any) -> None:
    source = make(tmp_path, trap)
    assert main(["features", "import", str(source), str(tmp_path / "s"), "--quiet"]) == 10
    assert not trap.exists()
    assert "nothing of it was executed" in capsys.readouterr().err


@pytest.mark.fault("D09")
def test_a_pickle_inside_an_npz_is_not_even_looked_at(tmp_path: Path, trap: Path) -> None:
    assert main(["features", "import", str(npz_of(tmp_path, trap)), str(tmp_path / "s"), "--quiet"]) == 5
    assert not trap.exists()


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, "x", b"y", None, True], "b": (1, "z")},
        {"f4": np.arange(6, dtype="<f4").reshape(2, 3), "i8": np.arange(3), "big": np.arange(3, dtype=">i4")},
        {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "none": np.zeros((0, 4), "<f2")},
        {"bool": np.array([True, False])},
        [],
    ],
)
@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    found = load_plain(pickle.dumps(value, protocol), "x")
    np.testing.assert_equal(found, value)
    for name, array in value.items() if isinstance(value, dict) else ():
        if isinstance(array, np.ndarray):
            assert found[name].dtype == array.dtype


class Plain:
    """An object of a class."""


@pytest.mark.parametrize(
    "value",
    [
        print,
        os.system,
        Plain(),
        Plain,
        {1, 2},
        1j,
        np.float32(1),
        np.array(["a"]),
        np.array(["2020"], "M8[D]"),
        slice(1),
        range(3),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_everything_else_is_refused(value: Any, protocol: int) -> None:
    with pytest.raises(UnsafeError):
        load_plain(pickle.dumps({"value": value}, protocol), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nndarray\n((I9\nI9\nI9\nttR.",  # calls the class itself
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",  # a dtype on its own is no data
        b"cbuiltins\nbytes\n(I99999999999\ntR.",
        b"cnumpy._core.multiarray\n_reconstruct\n}(S'__code__'\nI1\nsb.",  # would change the stand-in
        b"\x82\x01.",  # the registry of extensions
        b"Pname\n.",  # a persistent object
    ],
)
def test_written_by_hand(data: bytes) -> None:
    with pytest.raises((UnsafeError, IntegrityError)):
        load_plain(data, "x")


def test_shared_values_do_not_grow_and_loops_end() -> None:
    laughs: list[Any] = ["ha"]
    for _ in range(15):
        laughs = [laughs] * 10
    assert len(load_plain(pickle.dumps(laughs), "x")) == 10
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnsafeError, match="nested"):
        load_plain(pickle.dumps(loop), "x")


def test_a_cut_pickle_is_an_integrity_error() -> None:
    with pytest.raises(IntegrityError, match="no whole pickle"):
        load_plain(pickle.dumps({"a": "b" * 100})[:-20], "x")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_value_or_an_error_of_ours(data: bytes) -> None:
    with contextlib.suppress(LavisExtError):
        load_plain(data, "x")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.integers(0, 255))
def test_any_changed_byte_is_a_value_or_an_error_of_ours(place: int, value: int) -> None:
    data = bytearray(pickle.dumps({"img_id": "1", "features": np.arange(8, dtype="<f4"), "boxes": [1.5, "x"]}))
    data[place % len(data)] = value
    with contextlib.suppress(LavisExtError):
        load_plain(bytes(data), "x")


def test_the_reader_is_used_and_not_pickle_itself() -> None:
    """No module of the features calls `pickle.load`, `pickle.loads` or numpy with pickles allowed."""
    folder = Path(__file__).parents[2] / "lavis_ext" / "features"
    text = io.StringIO()
    for path in folder.rglob("*.py"):
        text.write(path.read_text("utf-8"))
    for call in ("pickle.load(", "pickle.loads(", "allow_pickle=True", "weights_only=False"):
        assert call not in text.getvalue()
