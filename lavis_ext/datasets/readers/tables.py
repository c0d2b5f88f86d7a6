"""Text files as people and programs write them: packed or not, by commas, tabs or semicolons, by rows or columns."""

from __future__ import annotations

import ast
import bz2
import codecs
import csv
import gzip
import io
import json
import logging
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import decode_json, open_file, read_bounded, read_errors, read_file

log = logging.getLogger(__name__)
Row = dict[str, Any]
REFETCH = "mend the file; where `lavis-ext prepare` fetched it, fetch it again"
SIGNS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
TABLES = (".csv", ".tsv", ".txt", ".token")
RECORDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
ENCODED = ("/9j/", "iVBORw0KGgo", "data:image/", "R0lGOD", "UklGR")
"""How JPEG, PNG, GIF and WebP begin in base64."""
_BEGINS = re.compile(rb"""(?:^|["',;|\t\n])\s*(?:/9j/|iVBORw0KGgo|data:image/|R0lGOD|UklGR)[\w+/;,=-]{40}""")
PACKED: Mapping[str, Callable[..., IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}
UNPACKED = 1 << 26
DENSEST = 200
"""A packed text may be this often as large as its file, and `UNPACKED` bytes beside: JSON packs ten- to fiftyfold."""
PICTURE = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp)\Z", re.IGNORECASE)
"""The end of a picture's name."""
_LISTED = re.compile(r"(\S.*?\.(?:jpe?g|png|webp|gif|bmp))(?:#\d+)?\s*[\t,;|: ]\s*(\S.*)", re.IGNORECASE)
"""A line of a list of captions: the picture, perhaps Flickr's `#2`, and the caption with all its commas."""


def kind_of_name(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: `.json` of `rows.json.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def open_head(path: Path, size: int) -> bytes:
    """The first bytes of a file, unpacked where it is packed; nothing of one that cannot be unpacked."""
    head = read_bounded(path, size)
    kind = _packed_as(head)
    if not kind:
        return head
    try:
        with PACKED[kind](path, "rb") as unpacked:
            return unpacked.read(size)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return b""


def holds_encoded(path: Path) -> bool:
    """Whether a text begins with records of which a column is pictures in base64."""
    return kind_of_name(path) in RECORDS and bool(_BEGINS.search(open_head(path, 1 << 16)))


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file in UTF-8, or with the mark of UTF-16, without its mark; gzip, bzip2 and xz are unpacked.

    `encoding` is that of a text that is not UTF-8.

    Raises IntegrityError with the offset of a wrong byte, and for a packed file that is cut off or grows too large.
    """
    try:
        with read_errors(path):
            data = read_file(path)
    except MemoryError as error:
        what = f"has {path.stat().st_size:,} bytes, which the memory does not hold"
        raise IntegrityError(str(path), what, "split it, or write it as Parquet") from error
    if kind := _packed_as(data):
        data = _unpacked(path, kind, len(data))
    try:
        return data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        if encoding:
            with suppress(UnicodeDecodeError):
                return data.decode(encoding)
        meant = "save it as UTF-8, or name what it is: `args: {encoding: cp1252}`"
        way_out = meant if kind_of_name(path) in TABLES else REFETCH
        raise IntegrityError(f"{path} byte {error.start}", f"not UTF-8 text ({error.reason})", way_out) from error


def _encoding(data: bytes) -> str:
    """UTF-16 by its mark, or where every other byte of the beginning is 0, as Windows' tools write it; else UTF-8."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    head = data[:200]
    if len(head) > 3 and not len(data) % 2:
        for odd, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            if head[odd::2].count(0) > 0.8 * len(head[odd::2]) and not head[1 - odd :: 2].count(0):
                return name
    return "utf-8-sig"


def other_encoding(path: Path) -> str | None:
    """`cp1252`, as programs write on Windows, of a text that is not UTF-8 and not UTF-8 with some damage; else None."""
    data = open_head(path, 1 << 24)
    if _encoding(data) != "utf-8-sig":
        return None
    with suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(data)
        return None
    signs = data.decode("utf-8", "replace").rstrip("\ufffd")
    wrong = signs.count("\ufffd")
    if not wrong or wrong <= sum(sign > "\x7f" for sign in signs) - wrong:
        return None
    with suppress(UnicodeDecodeError):
        data.decode("cp1252")
        return "cp1252"
    return None


class Unstreamed(Exception):
    """A file that cannot be read piece by piece: packed, not UTF-8, of another form, or with a fault.

    Whoever reads it whole says what is wrong, and where.
    """


PIECE = 1 << 22
SPACES = " \t\r\n"
_SPACE, _COMMA = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n]*,")
_decode = json.JSONDecoder().raw_decode


def json_blocks(path: Path, lines: bool = False) -> Iterator[list[Row]]:
    """The records of a JSON list, or of `lines` with one each, a few megabytes at a time; raises Unstreamed.

    Together they are those of the whole text, each a dict; what was given before a fault counts for nothing.
    """
    try:
        with open_file(path) as file:
            head = file.read(PIECE).removeprefix(b"\xef\xbb\xbf")
            if not lines:
                head = head.lstrip(SPACES.encode())
            if _packed_as(head) or not (lines or head.startswith(b"[")):
                raise Unstreamed
            pieces = chain([head if lines else head[1:]], iter(partial(file.read, PIECE), b""))
            for block in _line_blocks(pieces) if lines else _list_blocks(pieces):
                if set(map(type, block)) - {dict}:
                    raise Unstreamed
                yield block
    except (OSError, ValueError, RecursionError) as error:
        raise Unstreamed from error


def _line_blocks(pieces: Iterable[bytes]) -> Iterator[list[Any]]:
    held = b""
    for piece in chain(pieces, [b"\n"]):
        whole, _, held = (held + piece).rpartition(b"\n")
        block = []
        for line in whole.decode().split("\n"):
            if line.strip():
                text = line.strip(SPACES)
                value, end = _decode(text)
                if end < len(text):
                    raise Unstreamed
                block.append(value)
        yield block
        _require_small(held)


def _list_blocks(pieces: Iterable[bytes]) -> Iterator[list[Any]]:
    """Cut behind a record, where the last `},` stands: the text before it in brackets is a list, or it was no end."""
    held, plain, some = b"", True, False
    for piece in pieces:
        held += piece
        cut = held.rfind(b"},")
        block: list[Any] = []
        end = 0
        if cut >= 0:
            text = held[: cut + 1].decode()
            try:
                block, end = decode_json(f"[{text}]") if plain else [], cut + 2
            except ValueError:
                plain = False  # records hold records: each is looked for from now on
            if not plain:
                block, length = _records_of(f"{text},")
                end = len(f"{text},"[:length].encode())
        held, some = held[end:], some or bool(block)
        yield block
        _require_small(held)
    text = held.decode().rstrip(SPACES)
    if text[-1:] != "]" or (some and not text[:-1].strip(SPACES)):  # cut off, or a comma before its end
        raise Unstreamed
    yield decode_json(f"[{text}")


def _records_of(text: str) -> tuple[list[Any], int]:
    """The records at the beginning of a text, each with a comma behind it, and where they end."""
    found, end = [], 0
    with suppress(ValueError):
        while match := _SPACE.match(text, end):
            value, after = _decode(text, match.end())
            comma = _COMMA.match(text, after)
            if comma is None:
                break
            found.append(value)
            end = comma.end()
    return found, end


def _require_small(held: bytes) -> None:
    if len(held) > UNPACKED:
        raise Unstreamed


def _packed_as(head: bytes) -> str:
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")


def _unpacked(path: Path, kind: str, size: int) -> bytes:
    most = UNPACKED + DENSEST * size
    try:
        with PACKED[kind](path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise IntegrityError(str(path), f"packed text that cannot be unpacked ({error})", REFETCH) from error
    if len(data) > most:
        raise IntegrityError(str(path), f"unpacks to more than {most:,} bytes", "unpack it, if it is what it should be")
    return data


def table_rows(path: Path, delimiter: str | None = None, encoding: str | None = None) -> list[Row]:
    """The rows of a CSV, a TSV or a list of captions; raises IntegrityError with file and line.

    A CSV is quoted. A TSV, and any table by another sign, is taken as it stands where not all of it is quoted as a
    program would: a single quotation mark is then part of a caption. Only CR and LF end a line. The first line names
    the columns; where it names a picture instead, the columns are called `image` and `caption`.
    """
    text, kind = read_text(path, encoding), kind_of_name(path)
    first = text.lstrip("\n").partition("\n")[0].rstrip("\r")
    if kind in (".txt", ".token") and delimiter is None:
        if PICTURE.search(first.partition(",")[0].strip()) or _LISTED.fullmatch(first):
            return _listed_rows(path, text)
        delimiter = sign_of(first) or ","
    if first.lower().startswith("sep=") and len(first) == 5:  # as Excel marks its files
        delimiter, text = delimiter or first[4], text.partition("\n")[2]
    sign = delimiter or ("\t" if kind == ".tsv" else ",")
    return _typed_columns(list(_named_rows(path, list(_records(path, text, sign)), sign)))


def sign_of(line: str) -> str:
    """The sign that splits a header: the most frequent of tab, comma, semicolon and bar; "" for none."""
    found = max("\t,;|", key=line.count)
    return found if found in line else ""


def _listed_rows(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        match = _LISTED.fullmatch(line.strip())
        if match is None:
            what = f"{line.strip()[:60]!r} is no picture with its caption"
            raise IntegrityError(f"{path}:{number}", what, "write NAME.jpg, a comma or tab, and the caption")
        rows.append({"image": match[1], "caption": match[2].strip()})
    return rows


def _records(path: Path, text: str, sign: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line that is not empty, with the number of the line."""
    if sign != ",":
        plain = [line.rstrip("\r\n") for line in io.StringIO(text, newline="")]
        if not _is_quoted(plain, sign):
            yield from ((n, line.split(sign)) for n, line in enumerate(plain, 1) if line.strip())
            return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
    try:
        yield from ((reader.line_num, fields) for fields in reader if fields)
    except csv.Error as error:
        raise IntegrityError(f"{path}:{reader.line_num}", f"not readable as a table ({error})", REFETCH) from error


def _is_quoted(lines: Sequence[str], sign: str) -> bool:
    """Whether a table was quoted by a program: a whole header in quotes, doubled quotes, or a sign within quotes."""
    fields = [field for line in lines for field in line.split(sign) if '"' in field]
    head = lines[0].split(sign) if lines else []
    if not fields or not any(field.startswith('"') for field in fields):
        return False
    if all(_quoted(field) for field in head):
        return True
    whole = all(_quoted(field) for field in fields)
    if whole:
        return any('""' in field[1:-1] for field in fields)
    counts = {len(line.split(sign)) for line in lines if line.strip()}
    if len(counts) == 1:
        return False
    try:  # signs or ends of lines within quotes, where splitting at each does not give even rows
        rows = [fields for fields in csv.reader(io.StringIO("\n".join(lines)), delimiter=sign, strict=True) if fields]
    except csv.Error:
        return False
    return {len(fields) for fields in rows} == {len(head)}


def _quoted(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def _named_rows(path: Path, records: list[tuple[int, list[str]]], sign: str) -> Iterator[Row]:
    header = [name.strip() for name in records[0][1]] if records else []
    blanks = bool(records) and header != records[0][1]  # written with a blank behind each sign
    width = len(header)
    while len(header) > 1 and not header[-1]:  # a spreadsheet's empty columns
        header.pop()
    named = any(PICTURE.search(name) or "://" in name for name in header)
    if named:
        header = _names_for(header)
        log.warning("%s: the first line is no header; its columns are called %s", path, ", ".join(header))
    elif not header or len(set(header)) < len(header):
        raise IntegrityError(f"{path}:1", "the first line must name each column once", REFETCH)
    for number, fields in records if named else records[1:]:
        if not any(fields):  # a spreadsheet's empty row
            continue
        if len(fields) == width and not any(fields[len(header) :]):
            fields = fields[: len(header)]
        if len(fields) != len(header):
            what = f"{len(fields)} fields where the header names {len(header)}"
            word = SIGNS.get(sign, sign)
            way_out = f"put quotes around a field that holds a {word}"
            if sign != ",":  # there a single quotation mark is part of a caption, see `table_rows`
                way_out = f"take the {word} out of the field that holds one, or put quotes around all fields"
            raise IntegrityError(f"{path}:{number}", what, way_out)
        yield dict(zip(header, map(str.strip, fields) if blanks else fields, strict=True))


def _names_for(fields: Sequence[str]) -> list[str]:
    """Names of the columns of a table without a header: `image` or `url`, `caption`, then `column3` …"""
    image = next(i for i, field in enumerate(fields) if PICTURE.search(field) or "://" in field)
    others = [i for i in range(len(fields)) if i != image]
    caption = max(others, key=lambda i: len(fields[i]), default=None)
    names = {image: "url" if "://" in fields[image] else "image", caption: "caption"}
    return [names.get(i, f"column{i + 1}") for i in range(len(fields))]


csv.field_size_limit(UNPACKED)  # a picture in base64 is one field
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,17})(?:\.\d+)?\Z")


def _typed_columns(rows: list[Row]) -> list[Row]:
    """Columns of numbers become numbers where each would be written so again: `007`, `1.50` and `` stay text."""
    for name in rows[0] if rows else ():
        if all(_NUMBER.match(row[name]) and str(_number(row[name])) == row[name] for row in rows):
            for row in rows:
                row[name] = _number(row[name])
        elif rows[0][name].startswith("['") or rows[0][name].startswith('["'):
            lists = [_list(row[name]) for row in rows]
            for row, one in zip(rows, lists, strict=True) if all(lists) else ():
                row[name] = one
    return rows


def _list(text: str) -> list[str] | None:
    """The texts of a list as pandas or JSON writes it in a field; None for anything else."""
    try:
        value = ast.literal_eval(text) if text.startswith("[") and text.endswith("]") else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else None


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def rows_of_lists(value: list[Any]) -> list[Any]:
    """The records of a JSON of lists, `[["a.jpg", "text"], …]`, whose first may name columns; else as it is."""
    lists = [one for one in value if isinstance(one, list)]
    if not lists or len(lists) < len(value) or len({len(one) for one in lists}) > 1 or len(lists[0]) < 2:
        return value
    first = ["" if isinstance(one, list) else str(one) for one in lists[0]]
    if any(PICTURE.search(one) or "://" in one for one in first):
        return [dict(zip(_names_for(first), one, strict=True)) for one in lists]
    named = len(set(first)) == len(first) and all(isinstance(one, str) for one in lists[0])
    return [dict(zip(first, one, strict=True)) for one in lists[1:]] if named and len(lists) > 1 else value


def rows_of_columns(value: Mapping[str, Any]) -> list[Row] | None:
    """The rows of a JSON by columns: pandas' `to_json()`, its `split` form, SBU's lists; None for any other object."""
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(map(str, columns), row, strict=False)) for row in data]
    if any(PICTURE.search(key) for key in value):
        return [{"image": key, "caption": one} for key, one in value.items() if not isinstance(one, dict)] or None
    if len(value) < 2 or all(key.isdigit() for key in value):
        return None
    parts = list(value.values())
    if all(isinstance(part, dict) for part in parts):
        keys = list(parts[0])
        if not keys or not all(list(part) == keys for part in parts) or not all(key.isdigit() for key in keys):
            return None
        return [{name: part[key] for name, part in value.items()} for key in keys]
    if all(isinstance(part, list) for part in parts) and len({len(part) for part in parts}) == 1:
        from lavis_ext.datasets.readers.columns import NAMES

        known = {name for names in NAMES.values() for name in names}
        if len(value) > len(parts[0]) and known.isdisjoint(
            key.lower() for key in value
        ):  # names of pictures, each with its texts
            return None
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
    return None
