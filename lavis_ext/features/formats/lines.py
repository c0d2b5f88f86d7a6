"""Files of one row a line, by bytes: streamed from any row on, written so that a kill costs no row, indexed."""

from __future__ import annotations

import binascii
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pybase64

from lavis_ext.errors import IntegrityError
from lavis_ext.features.files import disk_errors, read_errors, write_atomic
from lavis_ext.features.formats.growing import growing
from lavis_ext.features.row import BadRow, Start
from lavis_ext.features.store import FeatureStore, Record

BUFFER = 1 << 20
LONGEST = 256 << 20


def lines_of(path: Path, start: Start | None = None) -> Iterator[tuple[int, bytes, int]]:
    """Number (from 1), bytes without the line feed, and offset behind it, of each line from `start` on.

    Raises IntegrityError at a line of more than 256 MiB, which no row of features is.
    """
    start = start or Start()
    number, at = start.line, start.next
    with read_errors(path), path.open("rb", buffering=BUFFER) as file:
        file.seek(at)
        while line := file.readline(LONGEST):
            number, at = number + 1, at + len(line)
            if len(line) == LONGEST:
                raise IntegrityError(str(path), f"line {number} does not end", "name a file of one row a line")
            yield number, line.rstrip(b"\n"), at


def newline_of(path: Path) -> str:
    """How the first line ends: csv writes `\\r\\n`, Oscar `\\n`."""
    with read_errors(path), path.open("rb", buffering=BUFFER) as file:
        return "\r\n" if file.readline().endswith(b"\r\n") else "\n"


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
    """One line for each record; what a killed run wrote of the same store is kept, its torn line written again.

    Raises UsageError where `path` exists, DiskError, and what `encode` raises.
    """
    with growing(store, path) as part, disk_errors(path):
        done = _whole_lines(part)
        with part.open("r+b" if done else "wb", buffering=BUFFER) as file:
            file.seek(0, os.SEEK_END)
            for row in range(done, len(store)):
                file.write(encode(store.at(row)))


def _whole_lines(part: Path) -> int:
    """How many lines of a partial file are whole; what comes after the last of them is cut off."""
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

    A `.lineidx` that is there is compared; returns the files that were written. Raises IntegrityError where it does not
    fit (it is left as it is), or where an id stands twice.
    """
    rows = [(image_id.decode("utf-8", "surrogateescape"), at) for image_id, at in offsets_of(path)]
    offsets = "".join(f"{at}\n" for _, at in rows).encode()
    numbers: dict[str, int] = {}
    for number, (image_id, _) in enumerate(rows):
        if image_id in numbers:
            what = f"image {image_id!r} stands in line {numbers[image_id] + 1} and in line {number + 1}"
            raise IntegrityError(str(path), what, "import it: the store takes the first and names the others")
        numbers[image_id] = number
    written = []
    names = json.dumps(numbers).encode()
    for side, data in ((lineidx_path(path), offsets), (path.with_name("imageid2idx.json"), names)):
        if not side.exists():
            write_atomic(side, data)
            written.append(side)
        elif side.suffix == ".lineidx" and side.read_bytes().split() != offsets.split():
            way_out = "move it away and run this again (some writers count characters, not bytes)"
            raise IntegrityError(str(side), f"does not fit {path.name}", way_out)
    return written
