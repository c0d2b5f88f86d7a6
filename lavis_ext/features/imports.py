"""Importing published feature files into a store: recognise the format, import or resume, report every bad row.

`store_of` does it on behalf of a data set, once, below `<family>/.lavis_ext/stores`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import DiskError, IntegrityError, LavisExtError, OwnedError, UsageError
from lavis_ext.common.files import decode_json, disk_errors, read_errors
from lavis_ext.common.wording import human
from lavis_ext.features.formats import format_of
from lavis_ext.features.formats.lines import ENDING, newline_of
from lavis_ext.features.formats.lmdb import TensorpackLmdb, is_tensorpack
from lavis_ext.features.layout import ABOUT, FAULTS, INDEX, ROWS, StoreInfo
from lavis_ext.features.store import BadRow, Fault, FeatureRow, FeatureStore, ReadOptions, open_store
from lavis_ext.features.writer import StoreWriter, read_lines
from lavis_ext.fetch.transfer import Progress, Silent

log = logging.getLogger(__name__)
COLUMNS = {13: "volta-tsv", 10: "lxmert-tsv", 6: "butd-tsv", 3: "oscar-tsv", 2: "vinvl-tsv"}
"""Formats of a TSV by its number of columns."""
LINE = 1 << 26
LMDB = bytes.fromhex("dec0efbe")
"""Magic number at byte 16 of an LMDB file."""


def recognise(path: Path) -> str:
    """The format of a source by its first bytes; raises UsageError where it is unknown or nothing is there."""
    check_source(path)
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if found is None:
        raise UsageError(str(path), "is of no format that can be recognised", "say which with --from FORMAT")
    return found


def check_source(path: Path) -> None:
    """Raise UsageError for a path where nothing is, or a device or a pipe, which may have no end."""
    if not (path.is_file() or path.is_dir()):
        what = "is neither a file nor a folder" if path.exists() else "is not there"
        raise UsageError(str(path), what, "name a file or folder of features")


def _of_folder(path: Path) -> str | None:
    if (path / "data.mdb").is_file():
        return _of_lmdb(path)
    if (path / ABOUT).is_file():
        raise UsageError(str(path), "is a feature store already", "`lavis-ext features merge` joins stores")
    return "npy" if any(p.suffix in (".npy", ".npz") for p in path.iterdir()) else None


def _of_file(path: Path) -> str | None:
    with read_errors(path), path.open("rb") as file:
        head = file.read(20)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            return "h5"
        if path.name.endswith(ENDING):
            return "oscar-offsets"
        if path.name == "data.mdb" or head[16:] == LMDB:
            return _of_lmdb(path)
        if path.suffix in (".pt", ".pth", ".bin") and (head[:2] == b"PK" or head[:1] == b"\x80"):
            return "oscar-pt"
        file.seek(0)
        line = file.readline(LINE)
    return _of_line(line)


def _of_lmdb(path: Path) -> str:
    return TensorpackLmdb.name if is_tensorpack(path) else "volta-lmdb"


def _of_line(line: bytes) -> str | None:
    if b"\0" in line[:4096]:
        return None
    cells = line.rstrip(b"\r\n").split(b"\t")
    if len(cells) == 2 and not _is_json(cells[1]):
        return None
    return COLUMNS.get(len(cells))


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(decode_json(text), (dict, list))
    except ValueError:
        return False


WITH_SIDES = ("oscar-tsv", "vinvl-tsv", "oscar-offsets", "oscar-pt")
"""Formats that take files of labels and sizes beside them."""


@dataclass
class ImportSummary:
    """Rows `added` by this run, `kept` from earlier runs, `repeated` (equal to one that is there), and faults."""

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
) -> ImportSummary:
    """Read sources into a store, new or existing; a source that it already holds is skipped.

    `form` is a name of `formats.FORMATS`, by default recognised; `dtype` is "float32" (the default of a new store) or
    "float16". Bad rows are left out and returned as faults; the caller decides. Raises UsageError, IntegrityError,
    UnsafeError, DiskError, OwnedError; what was read until then is kept for the next run.
    """
    options = options or ReadOptions()
    plans = [_plan(Path(source), form, options) for source in sources]
    done = ImportSummary()
    with StoreWriter(store, dtype) as writer:
        done.kept = len(writer.entries)
        for plan in plans:
            _Source(writer, plan, options, done, progress or Silent()).run()
    return done


def _plan(path: Path, form: str | None, options: ReadOptions) -> dict[str, Any]:
    name = format_of(form).name if form else recognise(path)
    if (options.labels or options.sizes) and name not in WITH_SIDES:
        raise UsageError(f"{path}: {name}", "takes no file of labels or sizes", "leave out --labels and --sizes")
    check_source(path)
    plan: dict[str, Any] = {"path": str(path.resolve()), "format": name, **stamp_of(path)}
    if name.endswith("-tsv"):
        plan["newline"] = newline_of(path)
    return plan


def stamp_of(path: Path) -> dict[str, int]:
    """`size` in bytes (0 for a folder of many files) and `mtime_ns`, by which a changed source is noticed."""
    with read_errors(path):
        data = path / "data.mdb" if (path / "data.mdb").is_file() else path
        stat = data.stat()
    return {"size": 0 if path.is_dir() and data == path else stat.st_size, "mtime_ns": stat.st_mtime_ns}


class _Source:
    """The import of one source into a store."""

    def __init__(
        self, writer: StoreWriter, plan: dict[str, Any], options: ReadOptions, done: ImportSummary, progress: Progress
    ) -> None:
        self.writer, self.plan, self.done, self.progress = writer, plan, done, progress
        self.path = Path(plan["path"])
        self.options = replace(options, columns=options.columns or writer.about.columns)

    def run(self) -> None:
        """Read what is not in the store yet; faults of earlier runs are reported again."""
        number = self._number()
        about = self.writer.about.sources[number]
        faults = {
            int(one["line"]): Fault(str(one["image_id"]), int(one["line"]), str(one["what"]))
            for one in read_lines(self.writer.path / FAULTS)
            if one.get("source") == number
        }
        if not about.get("done"):
            self._read(number, faults)
            about |= {"done": True, "faults": len(faults)}
            self.writer.about.save(self.writer.path)
        self.done.faults += [replace(faults[line], source=str(self.path)) for line in sorted(faults)]

    def _number(self) -> int:
        """The number of the source in `store.json`, added if new. Raises IntegrityError where its file has changed."""
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

    def _take(self, row: FeatureRow, number: int) -> Fault | None:
        try:
            if row.image_id in self.writer and self.writer.same(row):
                self.done.repeated += 1
                return None
            about = self.writer.about.sources[number]
            if row.number_id and "ids" not in about:
                about["ids"] = "int"  # an export writes them as integers again
                self.writer.about.save(self.writer.path)
            self.writer.append(row, number)
        except (BadRow, UnicodeEncodeError) as error:
            return Fault(row.image_id, row.line, str(error), row.next)
        if not self.options.columns:
            self.options = replace(self.options, columns=self.writer.about.columns)
        self.done.added += 1
        return None

    def _note(self, fault: Fault, number: int, faults: dict[int, Fault]) -> None:
        faults[fault.line] = fault
        path = self.writer.path / FAULTS
        line = json.dumps({**asdict(fault), "source": number}, ensure_ascii=True) + "\n"
        with disk_errors(path), path.open("ab", buffering=0) as file:
            file.write(line.encode())


def raise_for(faults: Sequence[Fault], where: str, shown: int = 20) -> None:
    """Raise IntegrityError that names the first faults by file (else `where`), line and id, if there are any."""
    if not faults:
        return
    problems = [
        LavisExtError(f"{f.source or where}, line {f.line}, image {f.image_id!r}", f.what).problems[0]
        for f in faults[:shown]
    ]
    if len(faults) > shown:
        problems += LavisExtError(where, f"and {len(faults) - shown} more rows, all in {FAULTS} of the store").problems
    raise IntegrityError.of(problems)


FOLDER = ".lavis_ext/stores"
PAUSE = 2.0
"""Seconds between two attempts while another process imports the same source."""


def store_of(source: Path, root: Path, family: str, options: ReadOptions | None = None) -> FeatureStore:
    """The store of a source: the source itself where it is one, else its import, which is made at the first call.

    The import is at `place_of(source, …)`; the source is not changed. An import that was killed is resumed, one of
    another process is waited for. Raises DiskError where too little space is left, IntegrityError for a source that has
    changed since, and what `import_features` raises.
    """
    if (source / ABOUT).is_file():
        return open_store(source)
    place = place_of(source, root, family)
    waiting = False
    while not _is_done(place, source):
        try:
            _import(source, place, options, quiet=waiting)
        except OwnedError:
            if not waiting:
                log.info("%s: another process imports it; waiting", source)
            waiting = True
            time.sleep(PAUSE)
    return open_store(place)


def place_of(source: Path, root: Path, family: str, folder: str = FOLDER) -> Path:
    """The folder for what is made of a source: of `oscar/vqa/2k/train.pt` it is `oscar/.lavis_ext/stores/vqa-2k-train`.

    The folder of a source outside `root` is in `family` and has a hash of the source's path in its name.
    """
    path = source.absolute()
    try:
        owner, *parts = path.relative_to(root.absolute()).with_suffix("").parts
    except ValueError:
        owner, parts = family, [path.stem, hashlib.sha256(str(path).encode()).hexdigest()[:8]]
    return root / owner / folder / "-".join(parts)


def _is_done(place: Path, source: Path) -> bool:
    """Whether a source is imported completely; raises IntegrityError where it has changed since."""
    if not (place / ABOUT).is_file():
        return False
    stamp = stamp_of(source)
    # by name, not by path: the folder of all data may have been moved
    known = [one for one in StoreInfo.load(place).sources if Path(one["path"]).name == source.name]
    if any(one[key] != value for one in known for key, value in stamp.items()):
        what = f"has changed since it was imported into {place}"
        raise IntegrityError(str(source), what, f"remove {place}, which is then made again")
    return any(one.get("done") for one in known) and (place / INDEX).is_file()


def _import(source: Path, place: Path, options: ReadOptions | None, quiet: bool) -> None:
    _check_space(source, place)
    if not quiet:
        log.info(
            "importing %s (%s) into %s once; later runs read it from there",
            source,
            human(stamp_of(source)["size"]),
            place,
        )
    done = import_features([source], place, options=options)
    for fault in done.faults[:3]:
        log.warning("%s, line %d, image '%s': %s", source, fault.line, fault.image_id, fault.what)
    if done.faults:
        log.warning("%s: %d rows could not be imported; all are in %s/%s", source, len(done.faults), place, FAULTS)


def _check_space(source: Path, place: Path) -> None:
    """Raise DiskError where the rest of the import does not fit on the disk."""
    # base64 text shrinks by a quarter
    share = 0.75 if source.suffix == ".tsv" else 1.0
    there = (place / ROWS).stat().st_size if (place / ROWS).is_file() else 0
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free
    needed = int(stamp_of(source)["size"] * share) - there
    if needed > free:
        what = f"the store of {source} needs {human(needed)}, {human(free)} are free"
        raise DiskError(str(place), what, "free some space, or import it elsewhere and name that under args.features")
