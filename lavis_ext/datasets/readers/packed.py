"""Tables that hold pictures in themselves: Parquet as the Hugging Face hub writes it, and `datasets`' Arrow files.

Rows name such a picture `FILE!COLUMN/ROW`; the image store reads it out of the file when it is wanted.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import decode_json, open_file, read_object
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.tables import REFETCH

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
Row = dict[str, Any]
PACKED_NAME = re.compile(r"(.+\.(?:parquet|arrow|jsonl?|ndjson|[ct]sv)(?:\.(?:gz|bz2|xz))?)!([^/]+)/(\d+)(?:/(\d+))?\Z")
GROUPS = 4
"""Row groups of pictures that are held: the hub writes 100 pictures in one."""
ROWS_OF_ANY, ROWS_A_BYTE = 1_000_000, 10
TEXT_OF_ANY, TEXT_A_BYTE = 1 << 28, 50
"""Bytes of text that a file may stand for: in one of some KB a million rows may name one text of a MB."""
DELTA = "DELTA_BYTE_ARRAY"
"""Parquet's encoding of a text by what it shares with the one before."""


def packed_rows(path: Path, base: Path | None = None) -> list[Row]:
    """The rows of a Parquet file or an Arrow stream; raises IntegrityError.

    A column of encoded pictures becomes their names below `base` (default: the file's folder), and those of files
    that it only names, their paths. Numbers of classes become the names that `datasets` left in the file.
    """
    import pyarrow as pa

    try:
        open_file(path).close()  # Arrow would wait for a pipe
        schema, length = _shape_of(path)
        most = ROWS_OF_ANY + ROWS_A_BYTE * path.stat().st_size
        if length > most:  # empty columns take no bytes, and rows of them gigabytes of memory
            raise IntegrityError(str(path), f"claims {length:,} rows, of which its bytes can hold {most:,}", REFETCH)
        pictures = {field.name: field.type for field in schema if _holds_pictures(field.type)}
        schema = _without_other_bytes(path, schema, pictures)
        pictures = {name: kind for name, kind in pictures.items() if name in schema.names}
        table = _columns(path, [field.name for field in schema if field.name not in pictures])
        rows: list[Row] = table.to_pylist() if table.num_columns else [{} for _ in range(length)]
        for field in table.schema:
            if pa.types.is_temporal(field.type) or pa.types.is_decimal(field.type):
                for row in rows:
                    row[field.name] = None if row[field.name] is None else str(row[field.name])
        json.dumps(rows)
        names = {name: list(_picture_names(path, name, kind, base)) for name, kind in pictures.items()}
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise IntegrityError(str(path), f"not a whole {_kind(path)} file ({error})", REFETCH) from error
    except TypeError as error:
        what = f"has a column that holds neither text, numbers, lists, records nor pictures ({error})"
        raise IntegrityError(str(path), what, "leave the column out") from error
    classes = class_names(schema)
    order = [field.name for field in schema]
    for number, row in enumerate(rows):
        for name in names.keys() | classes.keys():
            if name in names:
                row[name] = names[name][number]
            elif type(row.get(name)) is int and 0 <= row[name] < len(classes[name]):
                row[name] = classes[name][row[name]]
        rows[number] = {name: row[name] for name in order}
    return rows


def _without_other_bytes(path: Path, schema: pa.Schema, pictures: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema without columns of bytes that are no pictures, of which the log tells; what is named as one stays."""
    import pyarrow.types as types

    from lavis_ext.datasets.readers.columns import NAMES
    from lavis_ext.datasets.readers.decode import sniff_fault

    for name, kind in pictures.items():
        if (types.is_binary(kind) or types.is_large_binary(kind)) and name.lower() not in NAMES["image_key"]:
            first = next((one for batch in _batches(path, name) for one in batch.column(0) if one.is_valid), None)
            if first is None or sniff_fault(first.as_py()):
                log.warning("%s: column `%s` holds bytes that are no pictures, and is left out", path, name)
                schema = schema.remove(schema.get_field_index(name))
    return schema


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of each column that `datasets` declared as classes."""
    try:
        told = decode_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told["info"]["features"]
        named = {name: one["names"] for name, one in features.items() if isinstance(one, dict) and "names" in one}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {name: list(map(str, names)) for name, names in named.items() if isinstance(names, list)}


def _kind(path: Path) -> str:
    return "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"


def _shape_of(path: Path) -> tuple[pa.Schema, int]:
    from pyarrow import parquet

    if path.suffix.lower() == ".parquet":
        with parquet.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    table = _arrow(path)
    table.validate(full=True)  # offsets of a damaged file would lead outside it
    return table.schema, table.num_rows


def _columns(path: Path, names: list[str]) -> Any:
    """Columns as a table; raises IntegrityError for more text than such a file can hold."""
    from pyarrow import parquet

    if path.suffix.lower() != ".parquet":
        table = _arrow(path).select(names)
        _refuse_larger(path, sum(map(_text_size, table.columns)))
        return table
    with parquet.ParquetFile(path) as plain:
        chunks = [
            (name, chunk)
            for chunk in _chunks(plain)
            for name in names
            if f"{chunk.path_in_schema}.".startswith(f"{name}.")
        ]
        _refuse_larger(path, sum(chunk.total_uncompressed_size for _, chunk in chunks))
        size, delta = 0, {name for name, chunk in chunks if DELTA in chunk.encodings}
        for name in sorted(delta):
            for batch in plain.iter_batches(256, columns=[name]):  # such a text is as long as its page at most
                size += sum(map(_text_size, batch.columns))
                _refuse_larger(path, size)
        with _parquet(path) as file:
            for group in range(file.num_row_groups):  # Arrow joins no dictionaries of nested columns
                held = file.read_row_group(group, [name for name in names if name not in delta])
                size += sum(map(_text_size, held.columns))
                _refuse_larger(path, size)
        return plain.read(names)


def _chunks(file: Any) -> Iterator[Any]:
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        yield from map(group.column, range(group.num_columns))


def _parquet(path: Path) -> Any:
    """A Parquet file, whose texts and bytes stay in the dictionaries in which they are stored."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as plain:
        leaves = [plain.schema.column(number) for number in range(len(plain.schema))]
        texts = {leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type in TEXTS}
        texts -= {chunk.path_in_schema for chunk in _chunks(plain) if DELTA in chunk.encodings}  # Arrow cannot
    return parquet.ParquetFile(path, read_dictionary=sorted(texts))


TEXTS = ("STRING", "NONE", "JSON", "ENUM")


def _text_size(values: Any) -> int:
    """Bytes of a column once each row has its own."""
    import pyarrow as pa
    import pyarrow.compute as compute

    kind = values.type
    if isinstance(values, pa.ChunkedArray):
        return sum(map(_text_size, values.chunks))
    if pa.types.is_dictionary(kind):
        used = compute.value_counts(values.indices).flatten()
        each = _lengths(values.dictionary).take(used[0])
        return compute.sum(compute.multiply(each, used[1])).as_py() or 0
    if pa.types.is_run_end_encoded(kind):
        ends = values.run_ends.to_pylist()
        runs = pa.array([end - begin for begin, end in zip([0, *ends], ends, strict=False)], pa.int64())
        return compute.sum(compute.multiply(_lengths(values.values), runs)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(map(_text_size, values.flatten()))
    if pa.types.is_map(kind):
        return _text_size(values.keys) + _text_size(values.items)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _text_size(values.flatten())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):  # lists may share their items
        named = compute.sum(compute.list_value_length(values)).as_py() or 0
        return _text_size(values.values) * -(-named // max(1, len(values.values)))
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return compute.sum(_lengths(values)).as_py() or 0
    return int(values.nbytes)


def _lengths(values: Any) -> Any:
    """Bytes of each value of an array."""
    import pyarrow as pa
    import pyarrow.compute as compute

    kind = values.type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pa.array([len(one.as_buffer() or b"") if one.is_valid else 0 for one in values], pa.int64())
    if any(
        f(kind) for f in (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    ):
        return compute.cast(compute.binary_length(values), pa.int64())
    return pa.array([_text_size(values.slice(number, 1)) for number in range(len(values))], pa.int64())


def _refuse_larger(path: Path, size: int) -> None:
    most = TEXT_OF_ANY + TEXT_A_BYTE * path.stat().st_size
    if size > most:
        raise IntegrityError(str(path), f"stands for {size:,} bytes of text, of which it can hold {most:,}", REFETCH)


def _arrow(path: Path) -> Any:
    """An Arrow file, mapped: `datasets` writes streams."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _holds_pictures(kind: pa.DataType) -> bool:
    """Bytes, `datasets`' struct of bytes and path, or a list of either."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_pictures(kind.value_type)
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_pictures(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _picture_names(path: Path, column: str, kind: pa.DataType, base: Path | None) -> Iterator[Any]:
    """What rows call the pictures of a column; None where there is none."""
    import pyarrow as pa

    where = path.relative_to(base).as_posix() if base is not None and path.is_relative_to(base) else path.name
    number = 0
    for batch in _batches(path, column):
        values = batch.column(0)
        if not pa.types.is_struct(kind):
            if pa.types.is_list(kind) or pa.types.is_large_list(kind):
                for count in pa.compute.list_value_length(values).to_pylist():
                    yield None if count is None else [f"{where}!{column}/{number}/{k}" for k in range(count)]
                    number += 1
            else:
                _require_pictures(path, column, values)
                for there in values.is_valid().to_pylist():
                    yield f"{where}!{column}/{number}" if there else None
                    number += 1
            continue
        held = values.field("bytes").is_valid().to_pylist()
        paths = values.field("path").to_pylist() if kind.get_field_index("path") >= 0 else [None] * len(held)
        for there, named in zip(held, paths, strict=True):
            yield f"{where}!{column}/{number}" if there else named
            number += 1


def _require_pictures(path: Path, column: str, values: Any) -> None:
    """Raise TypeError for bytes that are no pictures: the first that is there says it of a column."""
    first = next((value.as_py() for value in values if value.is_valid), None)
    from lavis_ext.datasets.readers.decode import sniff_fault

    if first is not None and sniff_fault(first):
        raise TypeError(f"`{column}` of {path.name}: {sniff_fault(first)}")


def _batches(path: Path, column: str) -> Iterator[Any]:
    """One column, a few rows at a time: the pictures of a file need not fit into memory."""
    if path.suffix.lower() == ".parquet":
        with _parquet(path) as file:
            for group in range(file.num_row_groups):  # Arrow joins no dictionaries of nested columns
                yield from file.iter_batches(batch_size=256, row_groups=[group], columns=[column])
    else:
        yield from _arrow(path).select([column]).to_batches()


class PackedImages:
    """The pictures in one such table by their names; Arrow is mapped, of Parquet the last row groups are held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedImages, (self.path,)

    def read(self, name: str) -> bytes:
        """The encoded bytes of `COLUMN/ROW` or `COLUMN/ROW/NUMBER`; raises SampleError."""
        import pyarrow as pa

        column, row, *rest = name.split("/")
        try:
            value = self._value(column, int(row))
            value = value[int(rest[0])] if rest else value
        except (pa.ArrowException, OSError, KeyError, IndexError, TypeError) as error:
            raise SampleError(name, f"{self.path}!{name}", f"image cannot be read: {error}") from error
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(data, bytes):
            raise SampleError(name, f"{self.path}!{name}", "image is missing")
        return data

    def where(self, name: str) -> str:
        """Where a picture is, for messages: `train.parquet!image/17`."""
        return f"{self.path}!{name}"

    @cached_property
    def _file(self) -> Any:
        return _parquet(self.path) if self.path.suffix.lower() == ".parquet" else _arrow(self.path)

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each row group."""
        meta, starts = self._file.metadata, [0]
        for group in range(meta.num_row_groups):
            starts.append(starts[-1] + meta.row_group(group).num_rows)
        return starts

    def _value(self, column: str, row: int) -> Any:
        if self.path.suffix.lower() != ".parquet":
            return self._file.column(column)[row].as_py()
        from bisect import bisect_right

        with self._lock:  # a ParquetFile has one position
            group = bisect_right(self._starts, row) - 1
            held = self._held.pop((column, group), None)
            if held is None:
                held = self._file.read_row_group(group, columns=[column]).column(0)
            self._held[column, group] = held
            if len(self._held) > GROUPS:
                self._held.popitem(last=False)
        return held[row - self._starts[group]].as_py()


def arrow_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `save_to_disk` wrote, in its order; nothing of another folder."""
    listed = read_object(folder / "state.json").get("_data_files")
    names = [one.get("filename") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [folder / name for name in names if isinstance(name, str) and "/" not in name]
