"""Rows as Arrow: the columns' types from the values seen, rows into batches, and a row out of a batch again.

Values that fit no column type are JSON text, marked in the schema's metadata, so that rows come back exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import IO, Any

import pyarrow as pa

from lavis_ext.common.files import decode_json, is_encodable

Row = dict[str, Any]
BATCH_ROWS = 65536
META = b"lavis_ext"
LONGEST = 2**31 - 1
"""Bytes of text in a batch, which Arrow's `string` counts with 32 bits."""
INT64 = range(-(2**63), 2**63)
SCALARS: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


class Absent:
    """The value of a key that a row does not have."""


ABSENT = Absent()
NULLS = {Absent, type(None)}


@dataclass
class Column:
    """What was seen of a column's values."""

    kinds: set[type] = field(default_factory=set)
    items: set[type] = field(default_factory=set)
    """The types within lists."""
    fits: bool = True
    """Whether all integers have 64 bits, and UTF-8 can hold all text (JSON may spell a lone surrogate)."""

    def see(self, values: list[Any]) -> None:
        """Count in the values of some rows."""
        kinds = set(map(type, values))
        self.kinds |= kinds
        found = kinds - NULLS
        if self.fits and len(found) == 1 and len(self.kinds - NULLS) == 1:
            given = [v for v in values if v is not ABSENT and v is not None] if kinds != found else values
            if list in found:
                given = list(chain.from_iterable(given))
                found = set(map(type, given))
                self.items |= found
            self.fits = _fit(given, found)

    def form(self) -> tuple[pa.DataType, str]:
        """The Arrow type, and the mark: `absent` or `none` (the meaning of a null), or `json`."""
        kinds = self.kinds - NULLS
        kind = None
        if len(kinds) == 1 and self.fits and not self.kinds >= NULLS:
            if kinds == {list}:
                inner = SCALARS.get(next(iter(self.items), str)) if len(self.items) < 2 else None
                kind = inner and pa.list_(inner)
            else:
                kind = SCALARS.get(next(iter(kinds)))
        if kind is None:
            return pa.string(), "json"
        return kind, "none" if type(None) in self.kinds else "absent"


def _fit(values: list[Any], kinds: set[type]) -> bool:
    if kinds == {int}:
        return min(values) in INT64 and max(values) in INT64
    if kinds == {str}:
        text = "".join(values)
        return text.isascii() or is_encodable(text)
    return True


class Changed(Exception):
    """A block of rows does not fit the columns that were known: `write_rows` begins again with those it knows now."""


def write_rows(stream: IO[bytes], blocks: Callable[[], Iterable[Sequence[Row]]], extra: dict[str, Any]) -> None:
    """Write an Arrow file of rows that come in blocks, and come again when `blocks` is called again.

    A column of one scalar type, or of lists of one scalar type, is native. Everything else (mixed types, nested
    objects, integers beyond 64 bits, text that UTF-8 cannot hold) is JSON text. An Arrow null is a key that is not
    there, or None where the column says so; a column with both is JSON text, in which None is `null`. `extra` is kept
    in the schema's metadata. What is in memory is one block and one batch: the types are taken from the first batch,
    and where a later one has others all blocks are looked at first and written in a second turn.
    """
    known: dict[str, Column] = {}
    while True:
        stream.seek(0)
        stream.truncate()
        try:
            _write(stream, _batches(blocks()), known, extra)
        except Changed:
            continue
        return


def _write(stream: IO[bytes], batches: Iterator[list[Row]], known: dict[str, Column], extra: dict[str, Any]) -> None:
    first = next(batches, [])
    again, rows = bool(known), len(first)  # in a second turn the columns are those of all rows
    values = _look(first, known, 0)
    forms = {name: column.form() for name, column in known.items()}
    meta = {META: json.dumps({**extra, "columns": {name: mark for name, (_, mark) in forms.items()}}).encode()}
    # without any column a batch would have no rows: a field of type null keeps their number
    schema = pa.schema([pa.field(name, kind) for name, (kind, _) in forms.items()] or [("", pa.null())], metadata=meta)
    changed = False
    with pa.ipc.new_file(stream, schema) as writer:
        if rows:
            writer.write_batch(_batch(schema, values, forms, rows))
        del first, values
        for batch in batches:
            values = _look(batch, known, 0 if again else rows)
            rows += len(batch)
            changed = changed or {name: column.form() for name, column in known.items()} != forms
            if not changed:
                writer.write_batch(_batch(schema, values, forms, len(batch)))
            del batch, values  # else they stay while the next rows are read
    if changed:
        raise Changed


def _batches(blocks: Iterable[Sequence[Row]]) -> Iterator[list[Row]]:
    """The rows of all blocks in lists of `BATCH_ROWS`, of which the last may be shorter."""
    held: list[Row] = []
    for block in blocks:
        for start in range(0, len(block), BATCH_ROWS):
            held += block[start : start + BATCH_ROWS]
            if len(held) >= BATCH_ROWS:
                yield held[:BATCH_ROWS]
                held = held[BATCH_ROWS:]
    if held:
        yield held


def _look(rows: list[Row], known: dict[str, Column], before: int) -> dict[str, list[Any]]:
    """The values of each column in some rows, counted in; `before` rows had none of a column that is new."""
    first = rows[0] if rows else {}
    values: dict[str, list[Any]] = {}
    if sum(map(len, rows)) == len(rows) * len(first):
        with suppress(KeyError):  # else all rows have the keys of the first, in a third of the time
            values = {name: list(map(itemgetter(name), rows)) for name in first}
    shapes = [tuple(first)] if values else list(dict.fromkeys(map(tuple, rows)))
    for name in dict.fromkeys(chain.from_iterable(shapes)):
        if name not in known:
            known[name] = Column({Absent} if before else set())
    for name, column in known.items():
        if name not in values:
            values[name] = [row.get(name, ABSENT) for row in rows]
        column.see(values[name])
    return values


def _batch(
    schema: pa.Schema, values: dict[str, list[Any]], forms: dict[str, tuple[pa.DataType, str]], rows: int
) -> pa.RecordBatch:
    arrays = []
    for name, (kind, mark) in forms.items():
        given = values[name]
        if mark == "json":
            given = [None if v is ABSENT else json.dumps(v) for v in given]
        elif mark == "absent":
            given = [None if v is ABSENT else v for v in given] if Absent in set(map(type, given)) else given
        arrays.append(_array(given, kind))
    return pa.record_batch(arrays or [pa.nulls(rows)], schema=schema)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """What `pa.array` makes of values of one type and None, without pandas: it imports that, 0.3 s and 55 MB."""
    import numpy as np

    count, bits = len(values), None
    if None in values:
        held = np.fromiter((v is not None for v in values), bool, count)
        bits = pa.py_buffer(np.packbits(held, bitorder="little"))
        empty: Any = [] if pa.types.is_list(kind) else "" if kind == pa.string() else 0
        values = [empty if v is None else v for v in values]
    if pa.types.is_list(kind):
        items = list(chain.from_iterable(values))
        return pa.Array.from_buffers(kind, count, [bits, _offsets(values)], children=[_array(items, kind.value_type)])
    if kind == pa.string():
        joined = "".join(values)
        text = joined.encode()
        if len(text) > LONGEST:
            raise OverflowError(f"{BATCH_ROWS} texts of {len(text):,} bytes")
        parts = values if len(text) == len(joined) else list(map(str.encode, values))
        return pa.Array.from_buffers(kind, count, [bits, _offsets(parts), pa.py_buffer(text)])
    numbers = np.array(values, dtype=kind.to_pandas_dtype())
    data = np.packbits(numbers, bitorder="little") if kind == pa.bool_() else numbers
    return pa.Array.from_buffers(kind, count, [bits, pa.py_buffer(data)])


def _offsets(parts: list[Any]) -> pa.Buffer:
    import numpy as np

    ends = np.zeros(len(parts) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, parts), np.int32, len(parts)), out=ends[1:])
    return pa.py_buffer(ends)


Columns = list[tuple[str, pa.Array, str]]


def columns_of(batch: pa.RecordBatch, marks: dict[str, str]) -> Columns:
    """The columns of a batch with their names and marks, as `decode_row` takes them."""
    return [(name, batch.column(name), mark) for name, mark in marks.items()]


def decode_row(columns: Columns, index: int) -> Row:
    """Row `index` of a batch, equal to the dict that was encoded."""
    row: Row = {}
    for name, values, mark in columns:
        value = values[index].as_py()
        if value is None and mark != "none":
            continue
        row[name] = decode_json(value) if mark == "json" and value is not None else value
    return row
