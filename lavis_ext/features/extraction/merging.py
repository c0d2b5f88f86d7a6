"""Merge TSVs of extracted rows into one: streamed, each image once, with a log of what is missing and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from lavis_ext.common.errors import UsageError
from lavis_ext.common.files import disk_errors, flush_file, flush_folder
from lavis_ext.features.extraction.rows import ExtractionLog, Scan, columns_of, hash_of, id_of, owned, scan
from lavis_ext.features.files import part_of
from lavis_ext.features.formats.lines import lines_of
from lavis_ext.features.formats.tsv import COLUMNS, Butd
from lavis_ext.features.imports import recognise
from lavis_ext.features.store import BadRow, Fault, ReadOptions
from lavis_ext.features.writer import AppendFile
from lavis_ext.fetch.transfer import Progress, Silent


@dataclass
class Merged:
    """The result of a merge.

    `rows` in the file now, `added` by this run, `repeated` rows left out as equal to one that is there; `differing` are
    ids with two different rows (the first counts), `faults` rows that cannot be parsed, by file; `missing` are images
    without a row, with the reason; `accounted`: whether the logs of the parts say which images were to be extracted.
    """

    path: Path
    rows: int = 0
    added: int = 0
    repeated: int = 0
    differing: list[str] = field(default_factory=list)
    faults: list[tuple[Path, Fault]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    accounted: bool = True


def merge_rows(
    parts: Sequence[Path], destination: Path, expected: Sequence[str] = (), progress: Progress | None = None
) -> Merged:
    """Append to `destination` every row of the parts whose image is not in it; a killed run can be repeated.

    Rows are copied as they are, without `b'…'` literals; incomplete and inconsistent ones are faults. While rows are
    added the file has a hidden name, so that nobody reads half of it. `expected` are ids of images that should be
    there, besides those of the parts' own logs. Raises UsageError where the parts are of different formats or of
    another format, OwnedError, DiskError.
    """
    form = _form_of(parts, destination)
    part = part_of(destination)
    with owned(destination) as owner:
        if destination.is_file() and part.is_file():
            raise UsageError(str(part), f"is a part of {destination.name}, which is there too", "move one of them away")
        grown = part if part.is_file() else destination
        merge = _Merge(grown, destination, form, progress or Silent(), owner.require)
        with merge:
            for source in parts:
                merge.take(source)
        return merge.account(parts, expected)


def _form_of(parts: Sequence[Path], destination: Path) -> Butd:
    """The common format of the files, by the first line of each; a file without a complete row says nothing."""
    if lost := [path for path in parts if not path.is_file()]:
        raise UsageError(str(lost[0]), "is not there", "name files of rows, the merged one last")
    if destination in parts or (destination.suffix[1:].isdigit() and destination.with_suffix("") in parts):
        raise UsageError(str(destination), "is a part itself, not the merged file", "name the merged file last")
    forms = {_recognised(path) for path in (*parts, destination) if path.is_file()} - {""}
    if len(forms) > 1 or not forms <= set(COLUMNS):
        way_out = "`lavis-ext features import` joins all others in a store"
        raise UsageError(str(destination), f"cannot be joined from {', '.join(sorted(forms))}", way_out)
    return Butd(forms.pop() if forms else "volta-tsv")


def _recognised(path: Path) -> str:
    try:
        return recognise(path)
    except UsageError:
        return ""


class _Merge:
    """A merge into one file, as a context manager that renames the file at the end."""

    def __init__(
        self, grown: Path, destination: Path, form: Butd, progress: Progress, require: Callable[[], None]
    ) -> None:
        self.form, self.progress, self.require = form, progress, require
        self.grown, self.destination = grown, destination
        self.there: Scan = scan(grown, form, whole=True)
        self.done = Merged(destination, faults=[(destination, fault) for fault in self.there.faults])
        self._sink: AppendFile | None = None

    def __enter__(self) -> _Merge:
        if self.grown.is_file() and self.grown.stat().st_size > self.there.end:
            self._open()  # cuts off an incomplete last row, even if no row is added
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and rename the file, unless something failed."""
        part = part_of(self.destination)
        with disk_errors(self.destination):
            if self._sink is not None:
                self._sink.close()
            if kind is None and part.is_file():
                flush_file(part)
                self.require()
                part.rename(self.destination)
                flush_folder(self.destination.parent)

    def take(self, source: Path) -> None:
        """Every row of one part."""
        label = f"merge {source.name}"
        self.progress.begin(label, source.stat().st_size)
        at, outcome = 0, "failed"
        try:
            for number, line, end in lines_of(source):
                self._take_line(source, number, line, whole=end - len(line) > at)
                self.progress.advance(label, end - at)
                at = end
            outcome = "fetched"
        finally:
            self.progress.end(label, outcome)

    def _take_line(self, source: Path, number: int, line: bytes, whole: bool) -> None:
        try:
            if not whole:
                raise BadRow("the row does not end; extraction was cut off here")
            cells = self.form.split(line)
            image_id, value = id_of(cells), hash_of(cells)
            if image_id in self.there.rows:
                if self.there.rows[image_id] == value:
                    self.done.repeated += 1
                else:
                    self.done.differing.append(image_id)
                return
            self.form.parse(cells, ReadOptions(columns=columns_of(cells)))
        except BadRow as error:
            head = line[:64].partition(b"\t")[0].decode("utf-8", "replace")
            self.done.faults.append((source, Fault(head, number, str(error))))
            return
        sink = self._sink or self._open()
        with disk_errors(self.destination):
            sink.write([b"\t".join(cells.values()) + b"\r\n"])
        self.there.rows[image_id] = value
        self.done.added += 1

    def _open(self) -> AppendFile:
        part = part_of(self.destination)
        with disk_errors(part):
            self.require()
            if self.grown != part and self.grown.is_file():
                self.grown.rename(part)
            part.touch()
            self._sink = AppendFile(part, self.there.end, self.require)
        return self._sink

    def account(self, parts: Sequence[Path], expected: Sequence[str]) -> Merged:
        """The result, from the rows and the logs of the parts; writes the merged log beside the file."""
        known = [ExtractionLog.read(path) for path in (self.destination, *parts)]
        found = [account for account in known if account is not None]
        joined = ExtractionLog(made=next((one.made for one in found if one.made), {}))
        joined.expected = sorted({*expected, *(name for one in found for name in one.expected)})
        for one in found:
            joined.faults |= one.faults
        self.done.rows = len(self.there.rows)
        self.done.missing = joined.missing(self.there.rows)
        self.done.accounted = bool(expected) or all(account is not None for account in known[1:])
        joined.faults = {name: why for name, why in joined.faults.items() if name in self.done.missing}
        if (found or expected) and self.destination.is_file():
            joined.write(self.destination)
        return self.done
