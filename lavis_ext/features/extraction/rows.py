"""The TSV that extraction appends to (`RowFile`), and the log beside it of how rows were made and which are missing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

from lavis_ext.common.errors import UsageError
from lavis_ext.common.files import decode_json, disk_errors, write_atomic
from lavis_ext.features.formats.lines import lines_of
from lavis_ext.features.formats.tsv import Butd, unquote
from lavis_ext.features.store import BadRow, Fault, FeatureRow, ReadOptions
from lavis_ext.features.writer import AppendFile
from lavis_ext.fetch.lock import Ownership
from lavis_ext.fetch.transfer import Policy

log = logging.getLogger(__name__)


@contextmanager
def owned(path: Path) -> Iterator[Ownership]:
    """Lock a file for writing; raises OwnedError at once where another process holds it, DiskError."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = Ownership(path.with_name(f".{path.name}.owner"), path, Policy(owner_wait=0, owner_stall=0))
        owner.__enter__()
    try:
        yield owner
    finally:
        owner.__exit__()


@dataclass
class Scan:
    """A hash of each row's regions by id, rows that cannot be parsed, and where the last complete row ends."""

    rows: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    end: int = 0


def scan(path: Path, form: Butd, whole: bool = False) -> Scan:
    """Read a file once, checking the number of columns of each row and, with `whole`, its contents.

    A last row without a line feed, as a kill leaves it, is ignored and is no fault.
    """
    found = Scan()
    if not path.is_file():
        return found
    for number, line, end in lines_of(path):
        if end - len(line) == found.end:
            break
        try:
            cells = form.split(line)
            if whole:
                form.parse(cells, ReadOptions(columns=columns_of(cells)))
            found.rows.setdefault(id_of(cells), hash_of(cells))
        except BadRow as error:
            found.faults.append(Fault(line[:64].partition(b"\t")[0].decode("utf-8", "replace"), number, str(error)))
        found.end = end
    return found


def id_of(cells: dict[str, bytes]) -> str:
    """The id of a row's cells; raises BadRow where it is not UTF-8."""
    name = unquote(cells.get("img_id", cells.get("image_id", b"")))
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"its id is not UTF-8 at byte {error.start}") from None


def columns_of(cells: dict[str, bytes]) -> int:
    """The width of a feature row, by the length of its base64 text, so that any detector's is read; 0: unknown."""
    try:
        count = int(cells["num_boxes"])
    except ValueError:
        return 0
    size = len(cells["features"].rstrip(b"=")) * 3 // 4
    return size // (4 * count) if count > 0 and size % (4 * count) == 0 else 0


def hash_of(cells: dict[str, bytes]) -> bytes:
    """A hash of 8 bytes of a row's boxes and features."""
    return blake2b(cells["boxes"] + b"\t" + cells["features"], digest_size=8).digest()


class RowFile:
    """A TSV that is appended to, as a context manager; an incomplete last row is cut off first.

    Raises OwnedError, before anything more is written, where another process has taken over.
    """

    def __init__(self, path: Path, form: str) -> None:
        self.path, self.form = path, Butd(form)
        self._stack = ExitStack()

    def __enter__(self) -> RowFile:
        with self._stack:
            owner = self._stack.enter_context(owned(self.path))
            found = scan(self.path, self.form)
            self.ids = set(found.rows)
            self.faults = found.faults
            with disk_errors(self.path):
                self.path.touch()
                self._sink = self._stack.enter_context(closing(AppendFile(self.path, found.end, owner.require)))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with disk_errors(self.path), self._stack:
            self._sink.flush(to_disk=True)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, row: FeatureRow) -> None:
        """Write one row; raises BadRow for an id that a row cannot hold, UsageError for a column that is not there."""
        if any(char in row.image_id for char in "\t\n\r"):
            raise BadRow("its name holds a tab or a new line, which a row cannot")
        line = b"\t".join(self.form.cells(row)) + b"\r\n"
        with disk_errors(self.path):
            self._sink.write([line])
        self.ids.add(row.image_id)

    def flush(self) -> None:
        """Hand what was appended to the system: a kill of this process does not lose it."""
        with disk_errors(self.path):
            self._sink.flush()


FORMAT = 1
NAME = ".extraction.json"


@dataclass
class ExtractionLog:
    """`made`: detector and settings, empty before the first row; `expected`: ids; `faults`: why an image has no row."""

    made: dict[str, Any] = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def read(cls, destination: Path) -> ExtractionLog | None:
        """The log of a file or a store, None where there is none that can be read."""
        path = account_path(destination)
        try:
            account = cls(**decode_json(path.read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s: cannot be read and is ignored (%s)", path, error)
            return None
        return account if account.format == FORMAT else None

    def write(self, destination: Path) -> None:
        """Write the log beside the file, or into the store; raises DiskError."""
        path = account_path(destination)
        with disk_errors(path):
            write_atomic(path, json.dumps(asdict(self), ensure_ascii=False))

    def check_same_settings(self, made: dict[str, Any], destination: Path) -> None:
        """Set `made`; raises UsageError where the rows that are there were made with other settings."""
        same = json.loads(json.dumps(made))
        old, new = dict(_leaves(self.made)), dict(_leaves(same))
        different = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if self.made and different:
            changes = ", ".join(f"{key} {old.get(key)!r}, now {new.get(key)!r}" for key in different)
            raise UsageError(str(destination), f"was begun with other settings: {changes}", "name another destination")
        self.made = same

    def missing(self, there: Any) -> dict[str, str]:
        """Expected images that are not in `there`, and why, as far as it is known."""
        return {name: self.faults.get(name, "not extracted yet") for name in self.expected if name not in there}


def _leaves(tree: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """`settings.conf` and its value, for each value of a tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def account_path(destination: Path) -> Path:
    """Hidden beside a file, hidden inside a store."""
    return destination / NAME if destination.is_dir() else destination.with_name(f".{destination.name}{NAME}")
