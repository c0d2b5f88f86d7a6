"""Which format a source is, by its first bytes."""

from __future__ import annotations

import json
from pathlib import Path

from lavis_ext.errors import UsageError
from lavis_ext.features.files import read_errors
from lavis_ext.features.formats.offsets import ENDING
from lavis_ext.features.formats.tensorpack import TensorpackLmdb, is_tensorpack
from lavis_ext.features.layout import ABOUT

COLUMNS = {13: "volta-tsv", 10: "lxmert-tsv", 6: "butd-tsv", 3: "oscar-tsv", 2: "vinvl-tsv"}
LINE = 1 << 26
LMDB = bytes.fromhex("dec0efbe")
"""What stands at byte 16 of an LMDB file."""


def recognise(path: Path) -> str:
    """The name of the format of a source; raises UsageError where it cannot be told or nothing is there."""
    if not path.exists():
        raise UsageError(str(path), "is not there", "name a file or folder of features")
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if found is None:
        raise UsageError(str(path), "is of no format that can be recognised", "say which with --from FORMAT")
    return found


def _of_folder(path: Path) -> str | None:
    if (path / "data.mdb").is_file():
        return _of_lmdb(path)
    if (path / ABOUT).is_file():
        raise UsageError(str(path), "is a feature store already", "`lavis-ext features merge` joins stores")
    return "npy" if any(p.suffix in (".npy", ".npz") for p in path.iterdir()) else None


def _of_file(path: Path) -> str | None:
    with read_errors(path), path.open("rb") as file:
        head = file.read(20)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            return "h5"
        if path.name.endswith(ENDING):
            return "oscar-offsets"
        if path.name == "data.mdb" or head[16:] == LMDB:
            return _of_lmdb(path)
        if path.suffix in (".pt", ".pth", ".bin") and (head[:2] == b"PK" or head[:1] == b"\x80"):
            return "oscar-pt"
        file.seek(0)
        line = file.readline(LINE)
    return _of_line(line)


def _of_lmdb(path: Path) -> str:
    return TensorpackLmdb.name if is_tensorpack(path) else "volta-lmdb"


def _of_line(line: bytes) -> str | None:
    if b"\0" in line[:4096]:
        return None
    cells = line.rstrip(b"\r\n").split(b"\t")
    if len(cells) == 2 and not _is_json(cells[1]):
        return None
    return COLUMNS.get(len(cells))


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), (dict, list))
    except ValueError:
        return False
