"""Formats of one array file or folder: HDF5 (`h5`), a folder of numpy files (`npy`) and Oscar's `.pt` (`oscar-pt`)."""

from __future__ import annotations

import logging
import zipfile
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from lavis_ext.common.errors import IntegrityError, LavisExtError, UsageError
from lavis_ext.common.files import disk_errors, read_errors
from lavis_ext.common.tensors import read_torch
from lavis_ext.features.files import finish, part_of, refuse_existing
from lavis_ext.features.formats.base import guard, need, shown
from lavis_ext.features.formats.lines import LONGEST, growing
from lavis_ext.features.formats.restricted import load_plain
from lavis_ext.features.formats.tsv import MATRICES, VECTORS, SideFiles, fields_of, row_of_named
from lavis_ext.features.layout import Array
from lavis_ext.features.store import (
    BadRow,
    FeatureRow,
    FeatureStore,
    ReadOptions,
    Rows,
    Start,
    flat_tensor,
    shape_features,
)

log = logging.getLogger(__name__)

NAMES = {"objects_id": "obj_id", "objects_conf": "obj_conf", "attrs_id": "attr_id", "attrs_conf": "attr_conf"}
FULL = {value: key for key, value in NAMES.items()}
"""Names of datasets in HDF5 files, and of our columns for them."""


class Hdf5:
    """`*.h5`: a group for each image, named by its id (`/` as `%2F`), with `features`, `boxes`, `img_h`, `img_w`, …."""

    name = "h5"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Groups in the order of the file."""
        h5py = need("h5py", self.name)
        try:
            with h5py.File(path, "r") as file:
                for number, name in enumerate(file, 1):
                    if number > start.line:
                        yield guard(number, number, unname(name), partial(_parse_hdf5, file, name, options))
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise IntegrityError(str(path), f"cannot be read as HDF5: {error}", "fetch or make it again") from error

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Write `path`; a partial HDF5 file cannot be trusted after a kill, so it is written from the start."""
        h5py = need("h5py", self.name)
        refuse_existing(path)
        part = part_of(path)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(part, "w", libver="latest", track_order=True) as file:
                for row in range(len(store)):
                    record = store.at(row)
                    group = file.create_group(group_name(record.image_id))
                    for name, value in fields_of(record).items():
                        if name in ("features", "boxes", "img_h", "img_w", *VECTORS, *MATRICES):
                            group[NAMES.get(name, name)] = value
        finish(part, path)
        return []


def _parse_hdf5(file: Any, name: str, options: ReadOptions) -> FeatureRow:
    group = file.get(name)
    if not hasattr(group, "items"):
        raise BadRow("is no group")
    arrays = {key: value for key, value in group.items() if hasattr(value, "dtype") and value.dtype.kind in "biuf"}
    # a header of a hundred bytes can claim an array of any size
    if sum(value.size * value.dtype.itemsize for value in arrays.values()) > LONGEST:
        raise BadRow(f"claims more than {LONGEST:,} bytes")
    found = {FULL.get(key, key): np.asarray(value[()]) for key, value in arrays.items()}
    return row_of_named(unname(name), found, options)


def group_name(image_id: str) -> str:
    """An id as the name of a group; raises UsageError for the two names that HDF5 keeps for itself."""
    if image_id in (".", "..") or "\0" in image_id:
        raise UsageError(repr(image_id), "cannot be the name of a group", "export to another format")
    return image_id.replace("%", "%25").replace("/", "%2F")


def unname(name: str) -> str:
    """The id of a group."""
    return name.replace("%2F", "/").replace("%25", "%")


ALIASES = {"image_h": "img_h", "image_w": "img_w", "height": "img_h", "width": "img_w", "bbox": "boxes"}
SUFFIXES = (".npz", ".npy")
NAME_BYTES = 240
"""Most bytes of a file's name: file systems allow 255, some are left for `.npz` and `.part`."""


class Npy:
    """A folder of files, one an image: `.npz` of named arrays, `.npy` of features or of a pickled dict.

    The name of a file is the id, percent-encoded; `NAME_info.npy` beside `NAME.npy` is read with it.
    """

    name = "npy"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Files in the order of their names; a pickled dict goes through the restricted reader."""
        with read_errors(path):
            files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.name[0] != "." and p.is_file())
        files = [p for p in files if not p.name.endswith("_info.npy")]
        for number, file in enumerate(files, 1):
            if number > start.line:
                image_id = unquote(file.stem)
                yield guard(number, number, image_id, partial(_parse_npy, file, image_id, options))

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


def _parse_npy(file: Path, image_id: str, options: ReadOptions) -> FeatureRow:
    found = _load_npy(file)
    info = file.with_name(f"{file.stem}_info.npy")
    if info.is_file():
        found = _load_npy(info) | found
    return row_of_named(image_id, {ALIASES.get(name, name): value for name, value in found.items()}, options)


def _load_npy(file: Path) -> dict[str, Array]:
    """The arrays of a file by name, without pickles of numpy's own; raises BadRow, UnsafeError."""
    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                if sum(one.file_size for one in archive.infolist()) > LONGEST:
                    raise BadRow(f"unpacks to more than {LONGEST:,} bytes")
            with np.load(file, allow_pickle=False) as loaded:
                return {name: loaded[name] for name in loaded.files}
        with file.open("rb") as stream:
            _, _, dtype = _header(stream)
            if dtype.hasobject:
                return _plain(load_plain(stream.read(), str(file)))
        return {"features": np.load(file, allow_pickle=False)}
    except LavisExtError:
        raise
    except Exception as error:  # a header is Python text, a zip anything: numpy passes on what their readers raise
        raise BadRow(f"cannot be read: {shown(error)}") from None


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


class OscarPt:
    """`{split}_img_frcnn_feats.pt`: a dict from image id (int or str) to a tensor [n, 2054]."""

    name = "oscar-pt"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """The tensors in the order of the dict; files of the zip form are mapped, older ones fill the memory."""
        content = load_tensors(path)
        sides = SideFiles(path, options)
        for number, (key, value) in enumerate(content.items(), 1):
            if number > start.line:
                yield guard(number, number, str(key), partial(_row, key, value, sides, options))

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Write `path` in torch's zip form, without a copy of the tensors; ids become int where the source's were."""
        import torch

        refuse_existing(path)
        as_int = options.get("ids") == "int"
        content: dict[int | str, torch.Tensor] = {}
        for row in range(len(store)):
            record = store.at(row)
            content[int(record.image_id) if as_int else record.image_id] = tensor_of(record.features)
        part = part_of(path)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, part)
        finish(part, path)
        return []


def tensor_of(features: Array) -> Any:
    """A tensor over the mapped rows, without a copy."""
    import torch

    if not features.size:
        return torch.from_numpy(features.copy())
    return flat_tensor(np.ascontiguousarray(features).data.cast("B"), features.dtype).view(features.shape)


def load_tensors(path: Path) -> dict[Any, Any]:
    """The dict in a file; raises UnsafeError (exit code 10) where it is more than data, IntegrityError for damage."""
    content = _load_pt(path)
    if not isinstance(content, dict):
        raise IntegrityError(
            str(path), f"expected a dict of tensors, got a {type(content).__name__}", "name another file"
        )
    return content


def _load_pt(path: Path) -> Any:
    with read_errors(path), path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if not zipped:
        log.warning("%s: torch's old (not zip) format cannot be mapped; the whole file is read into memory", path)
    return read_torch(path, mmap=zipped)


def _row(key: Any, value: Any, sides: SideFiles, options: ReadOptions) -> FeatureRow:
    import torch

    if not isinstance(value, torch.Tensor) or value.ndim != 2:
        raise BadRow(f"expected a tensor [n, columns], got {shown(getattr(value, 'shape', type(value).__name__))}")
    if value.dtype not in (torch.float16, torch.float32):
        raise BadRow(f"expected float32 or float16, got {value.dtype}")
    array: Array = value.contiguous().numpy()
    shape_features(array.tobytes()[:0] if not array.size else array.data.cast("B"), len(array), options.columns)
    return sides.add(FeatureRow(str(key), array, number_id=isinstance(key, int)))
