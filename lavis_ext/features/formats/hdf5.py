"""The H5 form: a group for each image with `features`, `boxes`, `img_h`, `img_w`, perhaps objects and attributes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.errors import IntegrityError, UsageError
from lavis_ext.features.files import disk_errors, finish, part_of, refuse_existing
from lavis_ext.features.formats.base import guard
from lavis_ext.features.formats.butd import MATRICES, VECTORS, fields_of
from lavis_ext.features.formats.named import row_of_named
from lavis_ext.features.formats.optional import need
from lavis_ext.features.row import BadRow, ReadOptions, Row, Rows, Start
from lavis_ext.features.store import FeatureStore

NAMES = {"objects_id": "obj_id", "objects_conf": "obj_conf", "attrs_id": "attr_id", "attrs_conf": "attr_conf"}
FULL = {value: key for key, value in NAMES.items()}


class Hdf5:
    """`*.h5`; an id is the name of its group, with `/` written as `%2F`."""

    name = "h5"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Groups in the order of the file."""
        h5py = need("h5py", self.name)
        try:
            with h5py.File(path, "r") as file:
                for number, name in enumerate(file, 1):
                    if number > start.line:
                        yield guard(number, number, unname(name), partial(_parse, file, name, options))
        except OSError as error:
            raise IntegrityError(str(path), f"cannot be read as HDF5: {error}", "fetch or make it again") from error

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Write `path`; HDF5 cannot be trusted after a kill, so a partial file is written anew."""
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


def _parse(file: Any, name: str, options: ReadOptions) -> Row:
    group = file.get(name)
    if not hasattr(group, "items"):
        raise BadRow("is no group")
    try:
        found = {FULL.get(key, key): np.asarray(value[()]) for key, value in group.items() if hasattr(value, "dtype")}
    except (OSError, TypeError) as error:
        raise BadRow(f"cannot be read: {error}") from None
    return row_of_named(unname(name), found, options)


def group_name(image_id: str) -> str:
    """An id as the name of a group; raises UsageError for the two names that HDF5 keeps for itself."""
    if image_id in (".", "..") or "\0" in image_id:
        raise UsageError(repr(image_id), "cannot be the name of a group", "export to another format")
    return image_id.replace("%", "%25").replace("/", "%2F")


def unname(name: str) -> str:
    """The id of a group."""
    return name.replace("%2F", "/").replace("%25", "%")
