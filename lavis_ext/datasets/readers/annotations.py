"""Annotation files of a split as one sequence of rows, memory-mapped from an Arrow copy that is written once.

The copy keeps rows exactly: values that fit no column type are JSON text, marked in the schema's metadata.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa

from lavis_ext.common.errors import ConfigError, DiskError, IntegrityError
from lavis_ext.common.files import decode_json, expanded, replacing
from lavis_ext.datasets.readers.encoding import BATCH_ROWS, META, Columns, columns_of, decode_row, write_rows
from lavis_ext.datasets.readers.parse import Row, RowSource, files_of, parse_rows, row_blocks
from lavis_ext.datasets.readers.tables import Unstreamed

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

FORMAT = 1
FEW = 10_000
"""Rows whose values are numbered without Arrow's functions, which take 30 to 50 ms to import."""
FOLDER = ".lavis_ext"


class Rows(Sequence[Row]):
    """A sequence of rows: slices are lists, negative numbers count from the end. A subclass has `__len__` and `at`."""

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.at(position) for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.at(position)

    @abstractmethod
    def at(self, position: int) -> Row:
        """Row `position`, from 0 to the length - 1."""


class Annotations(Rows):
    """The rows of several annotation files in order, each with LAVIS' `instance_id`: its running index, as text.

    Opening maps the Arrow copies, which takes milliseconds; rows become dicts on access, so that workers share one page
    cache. `limit` keeps the first rows only; `home`, the cache root, has the copies of files that do not lie in it
    (default: beside each file). Pickled as its paths, not its rows.
    """

    def __init__(
        self, paths: Iterable[str | Path | RowSource], limit: int | None = None, home: Path | None = None
    ) -> None:
        self.sources = tuple(Path(path) if isinstance(path, (str, Path)) else path for path in paths)
        self.paths, self.limit = tuple(file for source in self.sources for file in files_of(source)), limit
        self.home = home
        self._tables = [open_table(source, home) for source in self.sources]
        self._stops = list(accumulate(table.rows for table in self._tables))
        total = self._stops[-1] if self._stops else 0
        self._length = total if limit is None else min(limit, total)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Row]:
        return (self.at(i) for i in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Annotations, (self.sources, self.limit, self.home)

    def at(self, position: int) -> Row:
        """Row `position`, from 0 to the length - 1."""
        number = bisect_right(self._stops, position)
        start = self._stops[number - 1] if number else 0
        return {**self._tables[number].row(position - start), "instance_id": str(position)}

    def head(self, limit: int | None) -> Annotations:
        """The same rows, at most `limit` of them."""
        return self if limit is None or limit >= len(self) else Annotations(self.sources, limit, self.home)

    def keys(self) -> list[str]:
        """The keys that any row has, in order of appearance, without `instance_id`."""
        return list(dict.fromkeys(name for table in self._tables for name in table.marks))

    def has(self, key: str) -> bool:
        """Whether any row has this key."""
        return any(key in table.marks for table in self._tables)

    def column(self, name: str) -> list[Any]:
        """The values of one key over all rows, None where a row lacks it."""
        values: list[Any] = []
        for table in self._tables:
            mark = table.marks.get(name)
            parts = (
                [None] * table.rows if mark is None else [v for b in table.batches for v in b.column(name).to_pylist()]
            )
            values += [v if v is None else decode_json(v) for v in parts] if mark == "json" else parts
        return values[: len(self)]

    def batches(self) -> Iterator[tuple[pa.RecordBatch, dict[str, str]]]:
        """The mapped record batches in order, whole, with the marks of their columns; `limit` may end within one."""
        return ((batch, table.marks) for table in self._tables for batch in table.batches)

    def lengths(self, name: str) -> np.ndarray:
        """int64 [len]: how many items the list under one key has in each row, 0 where there is none."""
        import numpy as np
        import pyarrow.compute as pc

        if not self.has(name):
            return np.zeros(len(self), np.int64)
        if any(table.rows and not table.lists(name) for table in self._tables):
            return np.array([len(v) if isinstance(v, list) else 0 for v in self.column(name)], np.int64)
        columns = [batch.column(name) for table in self._tables for batch in table.batches]
        counts = pc.fill_null(pc.list_value_length(pa.chunked_array(columns)), 0)
        found: np.ndarray = counts.to_numpy().astype(np.int64)[: len(self)]
        return found

    def words(self, name: str) -> np.ndarray:
        """int64 [len]: how many words the text under one key has in each row, counted by spaces and semicolons.

        For a list the sum over its texts. An empty text counts 1, a missing one 0; a JSON column is counted as text.
        """
        import numpy as np

        parts = [
            _words(batch.column(name)) if name in table.marks else np.zeros(batch.num_rows, np.int64)
            for table in self._tables
            for batch in table.batches
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])[: len(self)]

    def codes(self, name: str) -> np.ndarray:
        """int64 [len]: 0, 1, 2 … per distinct value, in order of first appearance (LAVIS' running `image_id`)."""
        import numpy as np

        columns = [batch.column(name) for table in self._tables for batch in table.batches if name in table.marks]
        kinds = {str(column.type) for column in columns}
        lists = any(pa.types.is_list(column.type) for column in columns)
        plain = kinds <= {"string", "int64"} and not any(table.marks.get(name) == "json" for table in self._tables)
        few = plain and sum(table.rows for table in self._tables) <= FEW
        if few or sum(map(len, columns)) < len(self) or len(kinds) != 1 or lists:
            known: dict[str, int] = {}
            running = [known.setdefault(json.dumps(value), len(known)) for value in self.column(name)]
            return np.array(running, dtype=np.int64)
        encoded = pa.chunked_array(columns).slice(0, len(self)).combine_chunks().dictionary_encode("encode")
        codes: np.ndarray = np.from_dlpack(encoded.indices).astype(np.int64)  # `to_numpy` imports pandas
        return codes


class ListRows(Rows):
    """Rows as a list of dicts, which a script may change: `rows` is that list, and what it holds is used as it is."""

    def __init__(self, rows: list[Row], paths: Sequence[Path] = ()) -> None:
        self.rows, self.paths = rows, tuple(paths)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def at(self, position: int) -> Row:
        """Row `position`, from 0 to the length - 1."""
        return self.rows[position]

    def keys(self) -> list[str]:
        """The keys that any row has, in order of appearance, without `instance_id`."""
        return [name for name in dict.fromkeys(key for row in self.rows for key in row) if name != "instance_id"]

    def has(self, key: str) -> bool:
        """Whether any row has this key."""
        return any(key in row for row in self.rows)

    def column(self, name: str) -> list[Any]:
        """The values of one key over all rows, None where a row lacks it."""
        return [row.get(name) for row in self.rows]

    def codes(self, name: str) -> np.ndarray:
        """int64 [len]: 0, 1, 2 … per distinct value, in order of first appearance."""
        import numpy as np

        known: dict[str, int] = {}
        values = (json.dumps(value, default=str) for value in self.column(name))
        return np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int64)


@dataclass(frozen=True)
class AnnotationTable:
    """One annotation file, opened: its record batches and the marks of their columns (see `decode_row`)."""

    batches: tuple[pa.RecordBatch, ...]
    marks: dict[str, str]
    rows: int

    def row(self, index: int) -> Row:
        """Row `index` as a dict."""
        batch, offset = divmod(index, BATCH_ROWS)
        return decode_row(self.columns[batch], offset)

    def lists(self, name: str) -> bool:
        """Whether the column exists and holds native lists."""
        return name in self.marks and all(pa.types.is_list(batch.column(name).type) for batch in self.batches)

    @cached_property
    def columns(self) -> list[Columns]:
        """The columns of each batch."""
        return [columns_of(batch, self.marks) for batch in self.batches]


def open_table(source: Path | RowSource, home: Path | None = None) -> AnnotationTable:
    """Map the Arrow copy of annotations; it is written first if missing, outdated or unreadable.

    Raises ConfigError if the file is missing, IntegrityError if it cannot be parsed, DiskError if no copy can be
    written.
    """
    missing = [file for file in files_of(source) if not file.exists()]
    if missing:
        raise ConfigError(
            str(missing[0]), "no such annotation file", "run `lavis-ext prepare` for its data set, or correct the path"
        )
    places = cache_places(source, home)
    state = _file_state(source)
    for place in dict.fromkeys([*places, *cache_places(source)[:1]]):  # earlier versions kept each beside its file
        table = _open_copy(place, state)
        if table is not None:
            return table
    log.info("converting %s once; later runs read the converted copy", source)
    try:
        if isinstance(source, Path):
            with suppress(Unstreamed):
                return _write_first(places, lambda: row_blocks(source), state)
        rows = parse_rows(source) if isinstance(source, Path) else source.parse()
        return _write_first(places, lambda: [rows], state)
    except (UnicodeEncodeError, RecursionError, OverflowError) as error:
        # a key with a lone surrogate; values that just fitted; more text than a batch holds
        what = f"holds a record that cannot be kept ({type(error).__name__})"
        raise IntegrityError(str(source), what, "leave it out, or write it otherwise") from error


def cache_places(source: Path | RowSource, home: Path | None = None) -> list[Path]:
    """Where the Arrow copy of annotations may lie: beside them under `.lavis_ext/`, in the user's cache, in temp.

    Where they do not lie in `home`, the cache root, nothing is written beside them: that is a person's folder.
    """
    first = files_of(source)[0].absolute()
    folder = first if first.is_dir() else first.parent
    whole = f"{folder}/{source.name}"
    name = f"{hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]}-{source.name}.arrow"
    user = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lavis_ext" / "annotations"
    spare = Path(tempfile.gettempdir()) / f"lavis_ext-{os.getuid() if hasattr(os, 'getuid') else 0}"
    if home is not None and not first.is_relative_to(home.absolute()):
        return [home.absolute() / FOLDER / "annotations" / name, user / name, spare / name]
    return [folder / FOLDER / f"{source.name}.arrow", user / name, spare / name]


def _file_state(source: Path | RowSource) -> dict[str, int]:
    """Sizes and modification times of the files, and the format: a copy is valid while they are equal."""
    if (state := getattr(source, "state", None)) is not None:
        return {"format": FORMAT, **state}
    found = [file.stat() for file in files_of(source)]
    sums = {"size": sum(one.st_size for one in found), "mtime_ns": sum(one.st_mtime_ns for one in found)}
    return {"format": FORMAT, **sums}


def _open_copy(place: Path, state: dict[str, int]) -> AnnotationTable | None:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(place)))
        meta = decode_json((reader.schema.metadata or {})[META])
        batches = tuple(reader.get_batch(i) for i in range(reader.num_record_batches))
        for batch in batches:
            batch.validate()
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        log.debug("no usable copy at %s: %s", place, error)
        return None
    if {key: meta.get(key) for key in state} != state:
        return None
    return AnnotationTable(batches, meta["columns"], sum(batch.num_rows for batch in batches))


Blocks = Callable[[], Iterable[Sequence[Row]]]


def _write_first(places: list[Path], blocks: Blocks, state: dict[str, int]) -> AnnotationTable:
    """Write the copy at the first place that is writable, and open it."""
    failures = []
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as part, part.open("wb") as stream:
                write_rows(stream, blocks, dict(state))
        except OSError as error:
            failures.append(f"{place.parent} ({error.strerror or error})")
            continue
        except (IntegrityError, Unstreamed):  # nothing was kept there
            with suppress(OSError):
                place.parent.rmdir()
            raise
        table = _open_copy(place, state)
        if table is not None:
            return table
    what = f"cannot keep an indexed copy in {', '.join(failures)}"
    raise DiskError(
        str(places[0].parent), what, "free some space, or set XDG_CACHE_HOME to a folder that can be written"
    )


def _words(column: pa.Array) -> np.ndarray:
    import numpy as np
    import pyarrow.compute as pc

    if pa.types.is_list(column.type):
        counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        upto, ends = np.concatenate([[0], np.cumsum(_words(pc.list_flatten(column)))]), np.cumsum(counts)
        words: np.ndarray = upto[ends] - upto[ends - counts]
        return words
    if not pa.types.is_string(column.type):
        return np.zeros(len(column), np.int64)
    signs = pc.add(*(pc.count_substring(column, sign) for sign in " ;"))
    found: np.ndarray = pc.fill_null(pc.add(signs, 1), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found
