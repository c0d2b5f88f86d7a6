"""A folder with a numpy file for each image: `.npz` of named arrays, `.npy` of features or of a pickled dict."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from lavis_ext.errors import UsageError
from lavis_ext.features.files import disk_errors, read_errors
from lavis_ext.features.formats.base import guard
from lavis_ext.features.formats.butd import MATRICES, VECTORS, fields_of
from lavis_ext.features.formats.growing import growing
from lavis_ext.features.formats.named import row_of_named
from lavis_ext.features.formats.restricted import load_plain
from lavis_ext.features.layout import Array
from lavis_ext.features.row import BadRow, ReadOptions, Row, Rows, Start
from lavis_ext.features.store import FeatureStore

ALIASES = {"image_h": "img_h", "image_w": "img_w", "height": "img_h", "width": "img_w", "bbox": "boxes"}
SUFFIXES = (".npz", ".npy")
NAME_BYTES = 240


class Npy:
    """The name of a file is its id, percent-encoded; `NAME_info.npy` beside `NAME.npy` is read with it."""

    name = "npy"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Files in the order of their names; a pickled dict goes through the restricted reader."""
        with read_errors(path):
            files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.name[0] != ".")
        files = [p for p in files if not p.name.endswith("_info.npy")]
        for number, file in enumerate(files, 1):
            if number > start.line:
                image_id = unquote(file.stem)
                yield guard(number, number, image_id, partial(_parse, file, image_id, options))

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Write a `.npz` for each image into the new folder `path`; a killed run keeps the files that are whole."""
        with growing(store, path) as part, disk_errors(path):
            part.mkdir(exist_ok=True)
            for row in range(len(store)):
                record = store.at(row)
                target = part / file_name(record.image_id)
                if not target.exists():
                    _save(target, fields_of(record))
        return []


def _save(target: Path, fields: dict[str, Any]) -> None:
    names = ("features", "boxes", "img_h", "img_w", *VECTORS, *MATRICES)
    unfinished = target.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, **{name: value for name, value in fields.items() if name in names})
    unfinished.rename(target)


def file_name(image_id: str) -> str:
    """The file of an image; raises UsageError where its name would be too long for a disk."""
    name = quote(image_id, safe=" ")
    name = f"%2E{name[1:]}" if name.startswith(".") else name  # else it would be hidden
    if len(name) > NAME_BYTES:
        raise UsageError(repr(image_id), "is too long for the name of a file", "export to another format")
    return f"{name}.npz"


def _parse(file: Path, image_id: str, options: ReadOptions) -> Row:
    found = _load(file)
    info = file.with_name(f"{file.stem}_info.npy")
    if info.is_file():
        found = _load(info) | found
    return row_of_named(image_id, {ALIASES.get(name, name): value for name, value in found.items()}, options)


def _load(file: Path) -> dict[str, Array]:
    """The arrays of a file by name, without pickles of numpy's own; raises BadRow, UnsafeError."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as loaded:
                return {name: loaded[name] for name in loaded.files}
        with file.open("rb") as stream:
            _, _, dtype = _header(stream)
            if dtype.hasobject:
                return _plain(load_plain(stream.read(), str(file)))
        return {"features": np.load(file, allow_pickle=False)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadRow(f"cannot be read: {error}") from None


def _header(stream: Any) -> tuple[Any, Any, Any]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[Any, Any, Any] = read(stream)
    return found


def _plain(value: Any) -> dict[str, Array]:
    """The arrays of a pickled dict; what is neither array nor number is left out."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, dict):
        raise BadRow(f"expected a dict of arrays, got a {type(value).__name__}")
    return {k: np.asarray(v) for k, v in value.items() if isinstance(v, (np.ndarray, int, float))}
