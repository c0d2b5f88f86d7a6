"""Offset maps: `x_offset_map.json` beside `x.tsv` says at which byte an image's row begins, for Oscar's VQA reader.

Not to be taken for `imageid2idx.json`, which counts rows.
"""

from __future__ import annotations

import json
import logging
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from lavis_ext.errors import IntegrityError, UsageError
from lavis_ext.features.files import read_errors, write_atomic
from lavis_ext.features.formats.lines import offsets_of

log = logging.getLogger(__name__)
ENDING = "_offset_map.json"
MAPPED = "_feats.tsv"
"""The ending of the tables for which Oscar's reader looks for such a map."""
SAMPLE = 200


def table_of(path: Path) -> Path:
    """The table that a map belongs to; raises UsageError where it is not there."""
    table = path.with_name(path.name.removesuffix(ENDING) + ".tsv")
    if not table.is_file():
        raise UsageError(str(path), f"holds places in {table.name}, which is not beside it", "put both in one folder")
    return table


def map_of(table: Path) -> Path:
    """Where the map of a table is."""
    return table.with_name(table.stem + ENDING)


def load_offset_map(path: Path) -> dict[str, int]:
    """Image id → byte offset; raises IntegrityError where it is no such map."""
    try:
        with read_errors(path):
            content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or not all(type(at) is int and at >= 0 for at in content.values()):
            raise ValueError("expected an object of byte offsets by image id")
    except ValueError as error:
        raise IntegrityError(str(path), f"is no offset map: {error}", "write it again with `features index`") from error
    return content


def load_places(path: Path) -> list[tuple[str, int]]:
    """The entries of a map in the order of their offsets; raises IntegrityError."""
    return sorted(load_offset_map(path).items(), key=itemgetter(1))


def warn_of_stale_map(table: Path) -> None:
    """Say in the log where the map beside a table does not fit it; a sample of its entries is looked up."""
    path = map_of(table)
    if not path.is_file():
        return
    places = load_places(path)
    with read_errors(table), table.open("rb") as file:
        for image_id, at in places[:: max(1, len(places) // SAMPLE)]:
            if not begins(file, image_id, at):
                log.warning("%s does not fit %s: image %s is not at byte %d", path.name, table.name, image_id, at)
                return


def begins(file: BinaryIO, image_id: str, at: int) -> bool:
    """Whether a row of this image begins at a byte of a table."""
    wanted = f"{image_id}\t".encode()
    file.seek(max(0, at - 1))
    found = file.read(len(wanted) + (at > 0))
    return found == (b"\n" + wanted if at else wanted)


def write_offset_map(table: Path) -> list[Path]:
    """Write the map of a table whose name asks for one, if it is not there; returns what was written.

    Raises IntegrityError where one is there and does not fit.
    """
    if not table.name.endswith(MAPPED):
        return []
    found = {image_id.decode("utf-8", "surrogateescape"): at for image_id, at in offsets_of(table)}
    path = map_of(table)
    if not path.exists():
        write_atomic(path, json.dumps(found).encode())
        return [path]
    if load_offset_map(path) != found:
        raise IntegrityError(str(path), f"does not fit {table.name}", "move it away and run this again")
    return []
