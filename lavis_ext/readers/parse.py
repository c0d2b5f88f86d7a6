"""Annotation files (JSON, JSON Lines, CSV, TSV, Parquet) become lists of plain dicts, or an IntegrityError."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lavis_ext.errors import IntegrityError
from lavis_ext.readers.official import canonical_rows, image_fields, image_rows

Row = dict[str, Any]
ROW_KEYS = ("annotations", "questions", "data")
REFETCH = "fetch it again with `lavis-ext prepare`, or mend the file"
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})\Z")
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)\.\d+\Z")


def parse_rows(path: Path) -> list[Row]:
    """All records of one annotation file, by its suffix.

    JSON may be a list of records, a dict that holds them under `annotations`, `questions` or `data` (official COCO and
    VQA files, MiniGPT-4), or a dict of records by id, which then carry it as `sample_id` (LAVIS' rule; official GQA).
    Official forms that are known become LAVIS' records. Raises IntegrityError with file and position for anything else.
    """
    rows = _rows_as_written(path)
    try:
        return canonical_rows(rows)
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(str(path), f"a record lacks what others have ({error})", REFETCH) from error


def _rows_as_written(path: Path) -> list[Row]:
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        return list(_jsonl_rows(path))
    if kind in (".csv", ".tsv"):
        return _typed_columns(list(_csv_rows(path, "," if kind == ".csv" else "\t")))
    if kind == ".parquet":
        return _parquet_rows(path)
    return _json_rows(path, parse_json(read_text(path), path))


def read_text(path: Path) -> str:
    """A UTF-8 file, a byte order mark passed over; raises IntegrityError with the offset of a wrong byte."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} byte {error.start}", f"not UTF-8 text ({error.reason})", REFETCH) from error


def parse_json(text: str, path: Path, line: int = 1) -> Any:
    """A JSON value; `line` is where the text begins in the file. Raises IntegrityError with line and column."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}:{error.colno}"
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        what = f"JSON ends early after {len(text)} characters ({error.msg})" if cut else f"not JSON ({error.msg})"
        raise IntegrityError(where, what, _json_way_out(error.msg)) from error
    except (RecursionError, ValueError) as error:
        raise IntegrityError(f"{path}:{line}", f"JSON that cannot be read ({error})", REFETCH) from error


def _json_way_out(message: str) -> str:
    return "name it .jsonl if it holds one record a line" if message == "Extra data" else REFETCH


def _json_rows(path: Path, value: Any) -> list[Row]:
    if isinstance(value, dict):
        value = _rows_of_dict(value)
    if not isinstance(value, list):
        raise IntegrityError(f"{path}:1:1", f"holds {_kind(value)} where a list of records belongs", REFETCH)
    return [_checked(row, f"{path} record {i}") for i, row in enumerate(value)]


def _rows_of_dict(value: Row) -> list[Any]:
    for key in ROW_KEYS:
        if isinstance(value.get(key), list):
            return _join_images(value[key], value.get("images"))
    if isinstance(value.get("images"), list):
        return image_rows(value["images"])
    return [{"sample_id": k, **v} if isinstance(v, dict) else {"sample_id": k, "data": v} for k, v in value.items()]


def _join_images(rows: list[Any], images: Any) -> list[Any]:
    """Give records of an official COCO file the `image` name that stands in its `images` list."""
    if not isinstance(images, list):
        return rows
    names = {i["id"]: image_fields(i) for i in images if isinstance(i, dict) and {"id", "file_name"} <= i.keys()}
    named = (isinstance(row, dict) and "image" not in row and row.get("image_id") in names for row in rows)
    return [{**row, **names[row["image_id"]]} if use else row for row, use in zip(rows, named, strict=True)]


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield _checked(parse_json(line, path, number), f"{path}:{number}")


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
        json.dumps(rows)
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(str(path), f"not a whole Parquet file ({error})", REFETCH) from error
    except TypeError as error:
        what = f"has a column that holds neither text, numbers, lists nor records ({error})"
        raise IntegrityError(str(path), what, "leave the column out") from error
    return rows


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(read_text(path).splitlines(keepends=True), delimiter=delimiter, strict=delimiter == ",")
    try:
        header = next(reader, [])
        if not header or len(set(header)) < len(header):
            raise IntegrityError(f"{path}:1", "the first line must name each column once", REFETCH)
        for fields in reader:
            if fields and len(fields) != len(header):
                what = f"{len(fields)} fields where the header names {len(header)}"
                raise IntegrityError(f"{path}:{reader.line_num}", what, REFETCH)
            if fields:
                yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise IntegrityError(f"{path}:{reader.line_num}", f"not readable as a table ({error})", REFETCH) from error


def _typed_columns(rows: list[Row]) -> list[Row]:
    """Columns in which every field spells a number become numbers; `007` and empty fields keep theirs as text."""
    for name in rows[0] if rows else ():
        if all(_WHOLE.match(row[name]) for row in rows):
            _convert(rows, name, int)
        elif all(_WHOLE.match(row[name]) or _DECIMAL.match(row[name]) for row in rows):
            _convert(rows, name, float)
    return rows


def _convert(rows: list[Row], name: str, kind: type) -> None:
    for row in rows:
        row[name] = kind(row[name])


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise IntegrityError(where, f"holds {_kind(row)} where a record {{key: value}} belongs", REFETCH)
    return row


def _kind(value: Any) -> str:
    return f"{'nothing' if value is None else type(value).__name__} ({str(value)[:40]!r})"
