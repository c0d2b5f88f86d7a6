"""TSVs of 13 columns into volta's LMDB: streamed, committed every few rows, resumed after a kill."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import disk_errors
from lavis_ext.features.extraction.rows import ExtractionLog, columns_of, id_of, owned
from lavis_ext.features.formats.base import need
from lavis_ext.features.formats.lines import growing_of, lines_of
from lavis_ext.features.formats.lmdb import KEYS, NEEDED, LmdbWriter, map_size
from lavis_ext.features.formats.tsv import Butd
from lavis_ext.features.store import BadRow, Fault, ReadOptions
from lavis_ext.fetch.transfer import Progress, Silent

COMMIT_ROWS = 64
PROTOCOL = 4
"""Of the pickles: what every Python since 3.4 reads."""


@dataclass
class Serialised:
    """`rows` of the LMDB, of which `added` by this run; rows that were left out; images without a row."""

    path: Path
    rows: int = 0
    added: int = 0
    faults: list[tuple[Path, Fault]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Line:
    """One row: its file and line, its columns and its bytes."""

    source: Path
    number: int
    cells: dict[str, bytes]
    text: bytes


def serialise(
    sources: Sequence[Path], path: Path, needed_only: bool = False, progress: Progress | None = None
) -> Serialised:
    """Write the folder `path` from files of rows: key `str(int(id))`, value the pickled dict of the row's text.

    The entry `keys` holds all keys in the order of the rows, as volta's reader wants it; `needed_only` leaves out what
    it never reads. Bad rows, and rows that repeat an image, are left out and reported. A killed run is resumed, and
    ends in the same bytes. Raises UsageError where `path` is there already, OwnedError, DiskError.
    """
    lmdb = need("lmdb", "volta-lmdb")
    state: dict[str, Any] = {"needed_only": needed_only, "sources": [_identity(source) for source in sources]}
    with owned(path), growing_of(state, path) as part:
        with disk_errors(part):
            part.mkdir(exist_ok=True)
        size = map_size(part)
        with lmdb.open(str(part), map_size=size) as environment:
            writing = _Serialising(environment, LmdbWriter(lmdb, environment, size, path), path, needed_only)
            for line in _lines(sources, writing, progress or Silent()):
                writing.take(line)
            writing.close()
            writing.writer.sync()
    for source in sources:
        account = ExtractionLog.read(source)
        writing.done.missing |= account.faults if account else {}
    return writing.done


def _identity(source: Path) -> list[Any]:
    stat = source.stat()
    return [str(source.resolve()), stat.st_size, stat.st_mtime_ns]


def _lines(sources: Sequence[Path], writing: _Serialising, progress: Progress) -> Iterator[_Line]:
    form = Butd("volta-tsv")
    for source in sources:
        label, at, outcome = f"serialise {source.name}", 0, "failed"
        progress.begin(label, source.stat().st_size)
        try:
            for number, text, end in lines_of(source):
                try:
                    yield _Line(source, number, form.split(text), text)
                except BadRow as error:
                    writing.leave_out(source, number, text, str(error))
                progress.advance(label, end - at)
                at = end
            outcome = "fetched"
        finally:
            progress.end(label, outcome)


class _Serialising:
    """Writes entries into an environment that may hold the first of them already."""

    def __init__(self, environment: Any, writer: LmdbWriter, path: Path, needed_only: bool) -> None:
        self.writer, self.needed_only = writer, needed_only
        self.form = Butd("volta-tsv")
        self.done = Serialised(path)
        self._names: dict[bytes, str] = {}
        self._waiting: list[tuple[bytes, bytes]] = []
        with environment.begin() as reading:
            self._there = {key for key in reading.cursor().iternext(values=False) if key != KEYS}
            self._keys: bytes | None = reading.get(KEYS)

    def take(self, line: _Line) -> None:
        """One row; faults are noted."""
        try:
            image_id = id_of(line.cells)
            key = key_of_row(image_id)
            if key in self._names:
                raise BadRow(f"repeats image {self._names[key]!r}")
            if key not in self._there:
                self.form.parse(line.cells, ReadOptions(columns=columns_of(line.cells)))
                self._put(key, line.cells)
            self._names[key] = image_id
            self.done.rows += 1
        except BadRow as error:
            self.leave_out(line.source, line.number, line.text, str(error))

    def leave_out(self, source: Path, number: int, text: bytes, why: str) -> None:
        """Note a row that is not taken."""
        head = text[:64].partition(b"\t")[0].decode("utf-8", "replace")
        self.done.faults.append((source, Fault(head, number, why)))

    def _put(self, key: bytes, cells: dict[str, bytes]) -> None:
        names = NEEDED if self.needed_only else self.form.columns
        texts = {name: cells[name].decode("utf-8") for name in ("img_id", *names) if name in cells}
        self._waiting.append((key, pickle.dumps(texts, PROTOCOL)))
        self.done.added += 1
        if len(self._waiting) == COMMIT_ROWS:
            self._commit()

    def _commit(self) -> None:
        self.writer.put(self._waiting)
        self._waiting = []

    def close(self) -> None:
        """Write the rest and the keys; raises IntegrityError where the LMDB has entries of other rows."""
        if stray := self._there - set(self._names):
            what = f"holds {len(stray)} entries that no row has ({min(stray).decode('utf-8', 'replace')})"
            raise IntegrityError(str(self.done.path), what, "remove the hidden part beside it and run this again")
        if self._waiting:
            self._commit()
        keys = pickle.dumps(list(self._names), PROTOCOL)
        if keys != self._keys:
            self.writer.put([(KEYS, keys)])


def key_of_row(image_id: str) -> bytes:
    """volta's key: the number after the last `_`; an id without one stays whole."""
    last = image_id.rsplit("_", 1)[-1]
    return str(int(last)).encode() if last.isdecimal() and last.isascii() else image_id.encode()
