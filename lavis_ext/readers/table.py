"""Rows ↔ Arrow record batches, exactly: what fits no column type is JSON text, marked so in the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

Row = dict[str, Any]
BATCH_ROWS = 65536
META = b"lavis_ext"
INT64 = range(-(2**63), 2**63)
SCALARS: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


class Absent:
    """Stands for a key that a row does not have."""


ABSENT = Absent()


def encode_rows(rows: Sequence[Row], extra: dict[str, Any]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the batches of `rows`; `extra` is kept in the schema's metadata.

    A column of one scalar type, or of lists of one scalar type, is native. Everything else (mixed types, nested
    objects, integers beyond 64 bits, text that UTF-8 cannot hold) is JSON text. An Arrow null is a key that is not
    there, or None where the column says so; a column with both is JSON text, in which None is `null`.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _encode_column([row.get(name, ABSENT) for row in rows]) for name in names}
    marks = {name: mark for name, (_, _, mark) in columns.items()}
    meta = {META: json.dumps({**extra, "columns": marks, "rows": len(rows)}).encode()}
    # A field of no type stands for the rows that a table without columns could not count.
    fields = [pa.field(name, kind) for name, (kind, _, _) in columns.items()] or [pa.field("", pa.null())]
    schema = pa.schema(fields, metadata=meta)
    return schema, _batches(schema, [values for _, values, _ in columns.values()], len(rows))


Columns = list[tuple[str, pa.Array, str]]


def columns_of(batch: pa.RecordBatch, marks: dict[str, str]) -> Columns:
    """The columns of a batch with their names and marks, ready for `decode_row`."""
    return [(name, batch.column(name), mark) for name, mark in marks.items()]


def decode_row(columns: Columns, index: int) -> Row:
    """Row `index` of a batch as the dict that went in."""
    row: Row = {}
    for name, values, mark in columns:
        value = values[index].as_py()
        if value is None and mark != "none":
            continue
        row[name] = json.loads(value) if mark == "json" and value is not None else value
    return row


def _batches(schema: pa.Schema, columns: list[list[Any]], rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, rows)
        parts = columns or [[None] * rows]
        arrays = [pa.array(part[start:stop], type=f.type) for part, f in zip(parts, schema, strict=True)]
        yield pa.record_batch(arrays, schema=schema)


def _encode_column(values: list[Any]) -> tuple[pa.DataType, list[Any], str]:
    """Type, Arrow-ready values, and the mark: `absent` or `none` (what a null means), or `json`."""
    kinds = {type(value) for value in values}
    null = "none" if type(None) in kinds else "absent"
    kind = None if {Absent, type(None)} <= kinds else _column_type(values, kinds - {Absent, type(None)})
    if kind is None:
        return pa.string(), [None if v is ABSENT else json.dumps(v) for v in values], "json"
    return kind, [None if v is ABSENT else v for v in values], null


def _column_type(values: list[Any], kinds: set[type]) -> pa.DataType | None:
    """The native type of a column, or None if it has none."""
    if kinds == {list}:
        items = [item for value in values if type(value) is list for item in value]
        inner = _scalar_type(items, {type(item) for item in items} or {str})
        return inner and pa.list_(inner)
    return _scalar_type([v for v in values if v is not ABSENT and v is not None], kinds)


def _scalar_type(values: list[Any], kinds: set[type]) -> pa.DataType | None:
    if len(kinds) != 1:
        return None
    kind = next(iter(kinds))
    if kind is int and not all(value in INT64 for value in (min(values), max(values))):
        return None
    if kind is str and not _fits_utf8(values):
        return None
    return SCALARS.get(kind)


def _fits_utf8(values: list[str]) -> bool:
    """False where a lone surrogate (JSON may spell one) keeps text out of UTF-8."""
    try:
        for value in values:
            value.encode()
    except UnicodeEncodeError:
        return False
    return True
