"""The protocol of a format, and what formats share: parsing of cells, side files of labels and sizes, imports."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, UsageError
from lavis_ext.common.files import decode_json, read_errors
from lavis_ext.features.formats.lines import lines_of
from lavis_ext.features.store import BadRow, Fault, FeatureRow, FeatureStore, ReadOptions, Rows, Start


class Format(Protocol):
    """One published file format of region features."""

    name: str

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Yield the rows of a source from `start` on; a row that cannot be parsed comes as a Fault."""

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Write a whole store to `path`, which must not exist; returns remarks. Raises UsageError, DiskError.

        `options` is what the store knows of its source: `newline`, `ids`.
        """


def guard(line: int, following: int, image_id: str, make: Callable[[], FeatureRow]) -> FeatureRow | Fault:
    """The row that `make` parses, with its line and the start of the next one; a Fault where it raises BadRow."""
    try:
        row = make()
    except BadRow as error:
        return Fault(image_id, line, str(error), following)
    except (LavisExtError, AssertionError):
        raise
    except Exception as error:  # one damaged row is a fault of that row, whatever the library that reads it raises
        return Fault(image_id, line, f"cannot be read: {type(error).__name__}: {shown(error)}", following)
    row.line, row.next = line, following
    return row


def text_of(data: bytes) -> str:
    """UTF-8 text; raises BadRow."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 at byte {error.start}") from None


def number_of(data: Any, name: str) -> int:
    """A count or a size of pixels; raises BadRow."""
    try:
        value = int(data)
    except (ValueError, TypeError, OverflowError):
        raise BadRow(f"{name}: expected a number, got {shown(data)}") from None
    if not 0 <= value < 2**31:
        raise BadRow(f"{name}: {value} is out of range")
    return value


def shown(data: Any) -> str:
    """At most 40 characters of a value, quoted, for a message."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)
    return repr(text if len(text) <= 40 else text[:40] + "…")


class SideTable:
    """A two-column TSV (`id`, JSON) looked up by id; only the offsets of its rows are held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        begin = 0  # of the line: the last one need not end, and the first may begin with a byte order mark
        for number, line, end in lines_of(path):
            image_id, tab, _ = line.partition(b"\t")
            if not tab:
                raise IntegrityError(f"{path}, line {number}", "has no second column", "give a file of labels or sizes")
            try:
                self._places[text_of(image_id)] = (begin, end - begin)
            except BadRow as error:
                raise IntegrityError(f"{path}, line {number}", str(error), "give a file of labels or sizes") from None
            begin = end
        with read_errors(path):
            self._file = path.open("rb")

    def find(self, image_id: str) -> bytes | None:
        """The JSON text of an image, or None."""
        if image_id not in self._places:
            return None
        start, size = self._places[image_id]
        self._file.seek(start)
        return self._file.read(size).rstrip(b"\r\n").partition(b"\t")[2]

    def __len__(self) -> int:
        return len(self._places)


def size_in(text: bytes | None) -> tuple[int, int]:
    """Height and width in the JSON of a size file or of predictions, 0 where they are not there; raises BadRow."""
    try:
        value = decode_json(text) if text else {}
    except ValueError as error:
        raise BadRow(f"the side file holds no JSON: {error}") from None
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, dict):
        return 0, 0
    sizes = [value.get(f"image_{key[0]}", value.get(f"img_{key[0]}", value.get(key, 0))) for key in ("height", "width")]
    return number_of(sizes[0], "height"), number_of(sizes[1], "width")


def plain_id(image_id: str, form: str) -> str:
    """An id that a tab-separated row can hold as it is; raises UsageError."""
    if any(char in image_id for char in "\t\n\r"):
        raise UsageError(
            repr(image_id), f"holds a tab or a new line, which {form} cannot", "export to volta-lmdb or h5"
        )
    return image_id


def need(module: str, form: str) -> Any:
    """Import a library that only the format `form` needs; raises ConfigError where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        way_out = "pip install 'lavis_ext[features]'"
        raise ConfigError(form, f"needs {module}, which cannot be imported ({error})", way_out) from error
