"""Sources into a store: row by row, from where the last run stopped, with every row that cannot be taken named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lavis_ext.errors import IntegrityError, LavisExtError, UsageError
from lavis_ext.features.files import disk_errors, read_errors
from lavis_ext.features.formats import format_of
from lavis_ext.features.formats.lines import newline_of
from lavis_ext.features.layout import FAULTS
from lavis_ext.features.row import BadRow, Fault, ReadOptions, Row
from lavis_ext.features.sniff import recognise
from lavis_ext.features.writer import StoreWriter, read_lines
from lavis_ext.fetch.model import Progress, Silent

WITH_SIDES = ("oscar-tsv", "vinvl-tsv", "oscar-offsets", "oscar-pt")


@dataclass
class Imported:
    """What became of the rows: `added` now, `kept` from earlier runs, `repeated` equal to one that is there, faults."""

    added: int = 0
    kept: int = 0
    repeated: int = 0
    faults: list[Fault] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def import_features(
    sources: Sequence[str | Path],
    store: str | Path,
    form: str | None = None,
    dtype: str | None = None,
    options: ReadOptions | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Read sources into a store, new or existing; a source that is in it already is passed over.

    `form` is a name of `formats.FORMATS`, by default recognised; `dtype` is "float32" (the default of a new store) or
    "float16". Rows that cannot be taken are left out and come back as faults; the caller decides. Raises UsageError,
    IntegrityError, UnsafeError, DiskError, OwnedError; what was read until then is kept for the next run.
    """
    options = options or ReadOptions()
    plans = [_plan(Path(source), form, options) for source in sources]
    done = Imported()
    with StoreWriter(store, dtype) as writer:
        done.kept = len(writer.entries)
        for plan in plans:
            _Source(writer, plan, options, done, progress or Silent()).run()
    return done


def _plan(path: Path, form: str | None, options: ReadOptions) -> dict[str, Any]:
    name = format_of(form).name if form else recognise(path)
    if (options.labels or options.sizes) and name not in WITH_SIDES:
        raise UsageError(f"{path}: {name}", "takes no file of labels or sizes", "leave out --labels and --sizes")
    plan: dict[str, Any] = {"path": str(path.resolve()), "format": name, **stamp_of(path)}
    if name.endswith("-tsv"):
        plan["newline"] = newline_of(path)
    return plan


def stamp_of(path: Path) -> dict[str, int]:
    """What tells that a source has changed: bytes (0 for a folder of many files) and time. Raises DiskError."""
    with read_errors(path):
        data = path / "data.mdb" if (path / "data.mdb").is_file() else path
        stat = data.stat()
    return {"size": 0 if path.is_dir() and data == path else stat.st_size, "mtime_ns": stat.st_mtime_ns}


class _Source:
    """One source on its way into a store."""

    def __init__(
        self, writer: StoreWriter, plan: dict[str, Any], options: ReadOptions, done: Imported, progress: Progress
    ) -> None:
        self.writer, self.plan, self.done, self.progress = writer, plan, done, progress
        self.path = Path(plan["path"])
        self.options = replace(options, columns=options.columns or writer.about.columns)

    def run(self) -> None:
        """Read what is not in the store yet; faults of earlier runs are told again."""
        number = self._number()
        about = self.writer.about.sources[number]
        known = read_lines(self.writer.path / FAULTS)
        found = [_fault(one) for one in known if one.get("source") == number]
        faults = {fault.line: fault for fault in found}
        if not about.get("done"):
            self._read(number, faults)
            about |= {"done": True, "faults": len(faults)}
            self.writer.about.save(self.writer.path)
        self.done.faults += [faults[line] for line in sorted(faults)]

    def _number(self) -> int:
        """Which source of the store this is; a new one is noted. Raises IntegrityError where its file has changed."""
        sources = self.writer.about.sources
        for number, known in enumerate(sources):
            if known["path"] == self.plan["path"]:
                if any(known[key] != self.plan[key] for key in ("format", "size", "mtime_ns")):
                    way_out = "import into a new store"
                    raise IntegrityError(str(self.path), "has changed since its import into this store began", way_out)
                return number
        sources.append({**self.plan, "done": False})
        self.writer.about.save(self.writer.path)
        return len(sources) - 1

    def _read(self, number: int, faults: dict[int, Fault]) -> None:
        start = self.writer.start_of(number)
        label = f"import {self.path.name}"
        by_bytes = self.plan["format"].endswith("-tsv")
        self.progress.begin(label, self.plan["size"] if by_bytes else None)
        at = start.next if by_bytes else 0
        self.progress.advance(label, at)
        outcome = "failed"
        try:
            for item in format_of(self.plan["format"]).read(self.path, self.options, start):
                found = item if isinstance(item, Fault) else self._take(item, number)
                if found is not None and found.line not in faults:
                    self._note(found, number, faults)
                size = item.next - at if by_bytes else 0
                at += size
                self.progress.advance(label, size)
            outcome = "fetched"
        except BadRow as error:  # a format that fails between rows
            raise IntegrityError(str(self.path), str(error), "") from error
        finally:
            self.progress.end(label, outcome)

    def _take(self, row: Row, number: int) -> Fault | None:
        try:
            if row.image_id in self.writer and self.writer.same(row):
                self.done.repeated += 1
                return None
            self._know_ids(row, number)
            self.writer.append(row, number)
        except (BadRow, UnicodeEncodeError) as error:
            return Fault(row.image_id, row.line, str(error), row.next)
        if not self.options.columns:
            self.options = replace(self.options, columns=self.writer.about.columns)
        self.done.added += 1
        return None

    def _know_ids(self, row: Row, number: int) -> None:
        """Note once that a source's ids are integers, so that an export can make them so again."""
        about = self.writer.about.sources[number]
        if row.number_id and "ids" not in about:
            about["ids"] = "int"
            self.writer.about.save(self.writer.path)

    def _note(self, fault: Fault, number: int, faults: dict[int, Fault]) -> None:
        faults[fault.line] = fault
        path = self.writer.path / FAULTS
        line = json.dumps({**asdict(fault), "source": number}, ensure_ascii=True) + "\n"
        with disk_errors(path), path.open("ab", buffering=0) as file:
            file.write(line.encode())


def _fault(known: dict[str, Any]) -> Fault:
    return Fault(str(known["image_id"]), int(known["line"]), str(known["what"]))


def raise_for(faults: Sequence[Fault], where: str, shown: int = 20) -> None:
    """Raise IntegrityError that names the first faults by id and line, if there are any."""
    if not faults:
        return
    problems = [
        LavisExtError(f"{where}, line {f.line}, image {f.image_id!r}", f.what).problems[0] for f in faults[:shown]
    ]
    if len(faults) > shown:
        problems += LavisExtError(where, f"and {len(faults) - shown} more rows, all in {FAULTS} of the store").problems
    raise IntegrityError.of(problems)
