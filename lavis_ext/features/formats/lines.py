"""Files of one row a line: reading from any row, resumable writing, and the side files that hold byte offsets."""

from __future__ import annotations

import binascii
import json
import logging
import os
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import pybase64

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.common.files import decode_json, disk_errors, read_errors, write_atomic
from lavis_ext.features.files import finish, part_of, refuse_existing
from lavis_ext.features.store import BadRow, FeatureStore, Record, Start

log = logging.getLogger(__name__)
BUFFER = 1 << 20
LONGEST = 256 << 20
"""Bytes of a line at which reading stops with an error."""


@contextmanager
def growing(store: FeatureStore, path: Path) -> Iterator[Path]:
    """`growing_of` for an export of a store."""
    with growing_of({"store": str(store.path.resolve()), "rows": len(store), "end": store.index.end}, path) as part:
        yield part


@contextmanager
def growing_of(state: dict[str, Any], path: Path) -> Iterator[Path]:
    """The name of a partial file or folder, which is renamed to `path` when the block ends without an error.

    It may hold what an earlier, killed run of the same `state` (plain values, kept in a JSON beside it) wrote; the
    caller resumes there. Raises UsageError where `path` exists or the part is of another state, DiskError.
    """
    refuse_existing(path)
    part = part_of(path)
    record = part.with_name(f"{part.name}.json")
    if part.exists() and _read(record) != state:
        raise UsageError(str(part), "is a part of another export", "move it away, or name another place")
    with disk_errors(path):
        write_atomic(record, json.dumps(state))
    yield part
    finish(part, path)
    with disk_errors(path):
        record.unlink(missing_ok=True)


def _read(record: Path) -> Any:
    try:
        return decode_json(record.read_bytes())
    except (OSError, ValueError):
        return None


def lines_of(path: Path, start: Start | None = None) -> Iterator[tuple[int, bytes, int]]:
    """Number (from 1), bytes without the line feed, and offset behind it, of each line from `start` on.

    A byte order mark at the beginning of the file is no part of the first line. Raises IntegrityError at a line of more
    than 256 MiB, which no row of features is.
    """
    start = start or Start()
    number, at = start.line, start.next
    with read_errors(path), path.open("rb", buffering=BUFFER) as file:
        file.seek(at)
        while line := file.readline(LONGEST):
            number, at = number + 1, at + len(line)
            if len(line) == LONGEST:
                raise IntegrityError(str(path), f"line {number} does not end", "name a file of one row a line")
            line = line.removeprefix(BOM_UTF8) if at == len(line) else line
            yield number, line.rstrip(b"\n"), at


def newline_of(path: Path) -> str:
    """How the first line ends: csv writes `\\r\\n`, Oscar `\\n`."""
    with read_errors(path), path.open("rb", buffering=BUFFER) as file:
        return "\r\n" if file.readline(LONGEST).endswith(b"\r\n") else "\n"


def decode64(text: bytes | memoryview) -> bytes:
    """The bytes of a base64 column; raises BadRow where it was cut or holds other characters."""
    size = len(text)
    try:
        raw: bytes = pybase64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadRow(f"broken base64 ({error}); truncated?") from None
    if -(-len(raw) // 3) * 4 != size:
        raise BadRow(f"{size} characters of base64 hold {len(raw)} bytes; truncated?")
    return raw


def encode64(data: Any) -> bytes:
    """Bytes of an array as base64."""
    encoded: bytes = pybase64.b64encode(data)
    return encoded


def write_lines(store: FeatureStore, path: Path, encode: Callable[[Record], bytes]) -> None:
    """Write one line for each record; complete lines that a killed run wrote of the same store are kept.

    Raises UsageError where `path` exists, DiskError, and what `encode` raises.
    """
    with growing(store, path) as part, disk_errors(path):
        done = _whole_lines(part)
        with part.open("r+b" if done else "wb", buffering=BUFFER) as file:
            file.seek(0, os.SEEK_END)
            for row in range(done, len(store)):
                file.write(encode(store.at(row)))


def _whole_lines(part: Path) -> int:
    """The number of complete lines of a partial file; an incomplete last line is cut off."""
    if not part.is_file():
        return 0
    count = end = 0
    for number, line, at in lines_of(part):
        if at - len(line) == end:
            break
        count, end = number, at
    with part.open("r+b") as file:
        file.truncate(end)
    return count


def offsets_of(path: Path) -> Iterator[tuple[bytes, int]]:
    """First column and byte offset of each line."""
    begin = 0
    for _, line, end in lines_of(path):
        yield line.partition(b"\t")[0], begin
        begin = end


def lineidx_path(path: Path) -> Path:
    """Where Oscar looks for the offsets of `x.tsv`: `x.lineidx`."""
    return path.with_suffix(".lineidx")


def write_lineidx(path: Path) -> list[Path]:
    """Write what is missing of the side files of a TSV: `.lineidx` (byte offsets) and `imageid2idx.json` (row numbers).

    Returns the files that were written. Raises IntegrityError where an existing `.lineidx` does not fit (it is left as
    it is), or where an id is there twice.
    """
    rows = [(image_id.decode("utf-8", "surrogateescape"), at) for image_id, at in offsets_of(path)]
    offsets = "".join(f"{at}\n" for _, at in rows).encode()
    numbers: dict[str, int] = {}
    for number, (image_id, _) in enumerate(rows):
        if image_id in numbers:
            what = f"image {image_id!r} is in line {numbers[image_id] + 1} and in line {number + 1}"
            raise IntegrityError(str(path), what, "import it: the store takes the first and names the others")
        numbers[image_id] = number
    written = []
    names = json.dumps(numbers).encode()
    for side, data in ((lineidx_path(path), offsets), (path.with_name("imageid2idx.json"), names)):
        if not side.exists():
            with disk_errors(side):
                write_atomic(side, data)
            written.append(side)
        elif side.suffix == ".lineidx" and side.read_bytes().split() != offsets.split():
            way_out = "move it away and run this again (some writers count characters, not bytes)"
            raise IntegrityError(str(side), f"does not fit {path.name}", way_out)
    return written


ENDING = "_offset_map.json"
"""Offset maps of Oscar's VQA reader: `x_offset_map.json` beside `x.tsv` has the byte at which an image's row begins
(`imageid2idx.json` has the number of the row)."""
MAPPED = "_feats.tsv"
"""The ending of the tables for which Oscar's reader looks for such a map."""
SAMPLE = 200
"""Entries of a map that are compared with its table."""


def table_of(path: Path) -> Path:
    """The table that a map belongs to; raises UsageError where it is not there."""
    table = path.with_name(path.name.removesuffix(ENDING) + ".tsv")
    if not table.is_file():
        raise UsageError(str(path), f"has offsets of {table.name}, which is not beside it", "put both in one folder")
    return table


def map_of(table: Path) -> Path:
    """Where the map of a table is."""
    return table.with_name(table.stem + ENDING)


def load_offset_map(path: Path) -> dict[str, int]:
    """Image id → byte offset; raises IntegrityError where it is no such map."""
    try:
        with read_errors(path):
            content = decode_json(path.read_bytes())
        if not isinstance(content, dict) or not all(type(at) is int and at >= 0 for at in content.values()):
            raise ValueError("expected an object of byte offsets by image id")
    except ValueError as error:
        raise IntegrityError(str(path), f"is no offset map: {error}", "write it again with `features index`") from error
    return content


def load_places(path: Path) -> list[tuple[str, int]]:
    """The entries of a map in the order of their offsets; raises IntegrityError."""
    return sorted(load_offset_map(path).items(), key=itemgetter(1))


def warn_of_stale_map(table: Path) -> None:
    """Log a warning where the offset map beside a table does not fit it, by a sample of its entries."""
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
    if at:
        return file.read(len(wanted) + 1) == b"\n" + wanted
    return file.read(len(wanted) + len(BOM_UTF8)).removeprefix(BOM_UTF8).startswith(wanted)


def write_offset_map(table: Path) -> list[Path]:
    """Write the map of a table whose name asks for one, if it is not there; returns what was written.

    Raises IntegrityError where one is there and does not fit.
    """
    if not table.name.endswith(MAPPED):
        return []
    found = {image_id.decode("utf-8", "surrogateescape"): at for image_id, at in offsets_of(table)}
    path = map_of(table)
    if not path.exists():
        with disk_errors(path):
            write_atomic(path, json.dumps(found))
        return [path]
    if load_offset_map(path) != found:
        raise IntegrityError(str(path), f"does not fit {table.name}", "move it away and run this again")
    return []
