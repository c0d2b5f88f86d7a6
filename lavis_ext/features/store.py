"""What readers of formats yield (`FeatureRow`, `Fault`), and reading a store: random access to a mapped file."""

from __future__ import annotations

import mmap
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lavis_ext.common.errors import IntegrityError, nearest
from lavis_ext.common.files import decode_json, read_errors
from lavis_ext.features.layout import (
    ALIGN,
    INDEX,
    NO_BOXES,
    ROWS,
    UNITS,
    Array,
    Header,
    Index,
    StoreInfo,
    UnknownImage,
    checksum,
    unpack_extra,
)

if TYPE_CHECKING:
    import torch

KNOWN_WIDTHS = range(2048, 2056)
LABELS = "labels.json"
"""Name of the extra array that holds a row's labels, as the JSON text of their file in bytes."""


@dataclass
class FeatureRow:
    """One image as a format's reader yields it and a store's writer takes it.

    `features` [n, columns] float32 or float16, `boxes` [n, 4] xyxy in `unit`, sizes in pixels (0: unknown), `arrays`
    whatever else the source has. `line` counts the rows of the source from 1; `next` is where the following one
    begins. `number_id` says that the source had the id as an integer.
    """

    image_id: str
    features: Array
    boxes: Array | None = None
    unit: int = NO_BOXES
    height: int = 0
    width: int = 0
    arrays: dict[str, Array] = field(default_factory=dict)
    line: int = 0
    next: int = 0
    number_id: bool = False


@dataclass(frozen=True)
class Fault:
    """A row that cannot be imported: its id as far as it can be read, its line, and why."""

    image_id: str
    line: int
    what: str
    next: int = 0
    source: str = ""
    """The file that holds it, where several are read."""


class BadRow(ValueError):
    """Raised while one row is parsed; becomes a Fault with its id and line."""


@dataclass(frozen=True)
class Start:
    """Where to begin in a source: the position after `line` rows; `next` 0 is the beginning."""

    line: int = 0
    next: int = 0


@dataclass(frozen=True)
class ReadOptions:
    """Options of a reader: side files with labels and image sizes, width of a feature row (0: inferred)."""

    labels: Path | None = None
    sizes: Path | None = None
    columns: int = 0
    keep_all: bool = False


Rows = Iterator[FeatureRow | Fault]


def shape_features(raw: bytes | memoryview, count: int, columns: int = 0) -> Array:
    """Bytes as [count, columns]: the width and the precision are inferred from the bytes of a row and checked.

    4 or 2 bytes times a known width (2048 to 2055, or `columns` where given) is float32 or float16; raises BadRow
    for every other length. Without rows the width is `columns`.
    """
    if count < 0 or (count == 0 and len(raw)):
        raise BadRow(f"{len(raw)} bytes of features for {count} boxes")
    if count == 0:
        return np.zeros((0, columns), np.float32)
    if not raw or len(raw) % count:
        raise BadRow(f"{len(raw)} bytes of features cannot be {count} boxes; truncated?")
    return np.frombuffer(raw, _dtype(len(raw) // count, columns)).reshape(count, -1)


def _dtype(row_bytes: int, columns: int) -> str:
    widths = [columns] if columns else KNOWN_WIDTHS
    for dtype, size in (("<f4", 4), ("<f2", 2)):
        if row_bytes % size == 0 and row_bytes // size in widths:
            return dtype
    expected = f"{columns} columns" if columns else "any known width (2048 to 2055; name another with --width)"
    raise BadRow(f"{row_bytes} bytes a box are not {expected} in float32 or float16")


LARGEST = 65520.0
"""What float16 rounds to infinity."""


def cast_rows(features: Array, dtype: str) -> Array:
    """Features in the precision of a store; raises BadRow where a finite number does not fit float16."""
    if features.dtype == np.dtype(dtype):
        return np.ascontiguousarray(features)
    if features.dtype not in (np.float16, np.float32):
        features = features.astype(np.float32)
    if dtype == "float32":
        return features.astype(np.float32)
    return _to_half(features)


def _to_half(features: Array) -> Array:
    # through torch, which uses the processor's instructions for the conversion; numpy is far slower
    source = flat_tensor(np.ascontiguousarray(features), np.dtype(np.float32)).view(features.shape)
    half = source.half()
    least, most = (abs(float(bound)) for bound in source.aminmax()) if features.size else (0.0, 0.0)
    if not max(least, most) < LARGEST and np.isfinite(features).all():
        raise BadRow(f"a feature of {float(np.abs(features).max()):g} does not fit float16; import with float32")
    result: Array = half.numpy()
    return result


def flat_tensor(buffer: Any, dtype: np.dtype[Any]) -> torch.Tensor:
    """A 1-D tensor over a read-only buffer, without a copy; torch's warning that it is not writable is silenced."""
    import torch

    kind = {2: torch.float16, 4: torch.float32}[dtype.itemsize]
    if not memoryview(buffer).nbytes:
        return torch.empty(0, dtype=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(buffer, dtype=kind)


class Record:
    """One image of a store.

    `features` [n, columns] in the store's precision and `boxes` [n, 4] float32 (x1, y1, x2, y2) or None are read-only
    views of the file; `box_unit` is "pixel", "fraction" (of width and height) or "". `height` and `width` are pixels, 0
    where unknown.
    """

    __slots__ = ("_extra", "_header", "boxes", "features", "image_id")

    def __init__(self, image_id: str, header: Header, features: Array, boxes: Array | None, extra: memoryview) -> None:
        self.image_id, self.features, self.boxes = image_id, features, boxes
        self._header, self._extra = header, extra

    def __len__(self) -> int:
        return self._header.count

    def __repr__(self) -> str:
        return f"Record({self.image_id!r}, {len(self)} boxes, {self.height}x{self.width})"

    @property
    def height(self) -> int:
        """Pixels, 0 where unknown."""
        return self._header.height

    @property
    def width(self) -> int:
        """Pixels, 0 where unknown."""
        return self._header.width

    @property
    def box_unit(self) -> str:
        """What the boxes are measured in."""
        return UNITS[self._header.unit]

    @property
    def line(self) -> int:
        """The row of the source that it came from, counted from 1."""
        return self._header.line

    @property
    def source(self) -> int:
        """Which of the store's sources it came from."""
        return self._header.source

    @property
    def arrays(self) -> dict[str, Array]:
        """Copies of what else the source gave: `objects_id`, `objects_conf`, `attrs_id`, …; read at each call."""
        return {name: array for name, array in unpack_extra(bytes(self._extra)).items() if name != LABELS}

    @property
    def label_text(self) -> bytes | None:
        """The JSON text of the labels as their file had it."""
        found = unpack_extra(bytes(self._extra)).get(LABELS)
        return None if found is None else found.tobytes()

    @property
    def labels(self) -> list[dict[str, Any]]:
        """Labels of the image, `class`, `conf`, `rect` as in their file; there may be more or fewer than boxes."""
        text = self.label_text
        try:
            value = decode_json(text) if text else []
        except ValueError as error:
            what = f"its labels are no JSON: {error}"
            raise IntegrityError(
                f"image {self.image_id!r}", what, "import it again, with the file of labels"
            ) from error
        value = value.get("objects", []) if isinstance(value, dict) else value
        return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []

    def as_row(self) -> FeatureRow:
        """The record as a row for a writer."""
        head, arrays = self._header, unpack_extra(bytes(self._extra))
        return FeatureRow(
            self.image_id, self.features, self.boxes, head.unit, head.height, head.width, arrays, head.line, head.next
        )


class FeatureStore:
    """A store opened for reading; picklable (a worker opens the files itself) and safe to share between threads.

    What was appended after it was opened is not seen. Raises UsageError where no store is, IntegrityError where an
    import has not been finished or the files do not fit each other.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.about = StoreInfo.load(self.path)
        if not (self.path / INDEX).is_file():
            way_out = "run the same import again, it goes on where it stopped"
            raise IntegrityError(str(self.path), "its import was not finished", way_out)
        self.index = Index(self.path)
        self._dtype = np.dtype(self.about.dtype)
        self._map = self._open()
        self._lock = threading.Lock()
        self._tensor: torch.Tensor | None = None

    def _open(self) -> mmap.mmap | bytes:
        rows = self.path / ROWS
        with read_errors(rows), rows.open("rb") as file:
            size = rows.stat().st_size
            if size < self.index.end:
                what = f"expected {self.index.end} bytes, got {size}; truncated"
                raise IntegrityError(str(rows), what, "copy it again, or import the features again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.path,)

    def __len__(self) -> int:
        return self.index.rows

    def __iter__(self) -> Iterator[str]:
        return (self.index.id_at(row) for row in range(len(self)))

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, (str, int)) and self.index.find(str(image_id)) is not None

    def __getitem__(self, image_id: str | int) -> Record:
        """The record of an image; raises UnknownImage (a KeyError) and UsageError as `row_of`."""
        return self.at(self.row_of(image_id))

    @property
    def columns(self) -> int:
        """How wide a feature row is: 2048, or 2054 with the box in its last six columns."""
        return self.about.columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32."""
        return self._dtype

    def row_of(self, image_id: str | int) -> int:
        """The row number of an image, by the text of its id, else by its key (`layout.key_of`).

        Raises UnknownImage where no image fits and UsageError where the key fits several.
        """
        row = self.index.find(str(image_id))
        if row is None:
            some = [self.index.id_at(r) for r in range(min(len(self), 2000))]
            raise UnknownImage(
                str(self.path), f"no image '{image_id}' among {len(self)}", nearest(str(image_id), some[:8])
            )
        return row

    def at(self, row: int) -> Record:
        """The record of a row, 0 ≤ row < len(store), in the order in which they were written."""
        offset = int(self.index.offset[row])
        header = self._header(offset)
        n, columns, at = header.count, self.columns, offset + ALIGN
        features = np.frombuffer(self._map, self._dtype, n * columns, at).reshape(n, columns)
        at += features.nbytes
        boxes = None
        if header.unit:
            boxes = np.frombuffer(self._map, np.float32, n * 4, at).reshape(n, 4)
            at += boxes.nbytes
        at += header.id_bytes
        extra = memoryview(self._map)[at : at + header.extra_bytes]
        return Record(self.index.id_at(row), header, features, boxes, extra)

    def read_into(self, image_id: str | int, out: Array) -> int:
        """Copy an image's features as float32 into `out` [m, columns], a row of a batch; the rest of it becomes 0.

        Returns how many boxes were copied, at most m. The fast way: no other array is allocated.
        """
        return self.read_row_into(self.row_of(image_id), out)

    def read_row_into(self, row: int, out: Array) -> int:
        """`read_into` by row number."""
        n = min(int(self.index.count[row]), len(out))
        start, size = int(self.index.offset[row]) + ALIGN, n * self.columns
        if self._dtype.itemsize == 4:
            out[:n] = np.frombuffer(self._map, self._dtype, size, start).reshape(n, self.columns)
        elif n:
            import torch

            flat = self._flat()[start // 2 : start // 2 + size]
            torch.from_numpy(out[:n]).copy_(flat.view(n, self.columns))
        out[n:] = 0
        return n

    def will_need(self, row: int) -> None:
        """Advise the kernel to read a row into the page cache (MADV_WILLNEED); nothing where that is not supported.

        Workers call it for each sample, so that the batch is then filled without waiting for the disk.
        """
        start = int(self.index.offset[row])
        size = ALIGN + int(self.index.count[row]) * self.about.row_bytes
        if isinstance(self._map, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
            first = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, first, start + size - first)

    def _flat(self) -> torch.Tensor:
        """The whole file as one tensor, made at first use: torch converts half precision much faster than numpy."""
        if self._tensor is None:
            with self._lock:
                self._tensor = flat_tensor(self._map, self._dtype)
        return self._tensor

    def fault_of(self, row: int) -> str | None:
        """What is wrong with the bytes of a row, or None: header, index and checksum must agree."""
        offset = int(self.index.offset[row])
        header = Header.unpack(self._map[offset : offset + ALIGN])
        if header is None:
            return f"no record at byte {offset}"
        used = header.body_bytes(self.about.row_bytes)
        if header.length < used + ALIGN or offset + header.length > self.index.end:
            return f"the record at byte {offset} has an impossible length"
        body = memoryview(self._map)[offset + ALIGN : offset + ALIGN + used]
        crc = checksum(header, body)
        if crc != header.crc or crc != int(self.index.crc[row]):
            return f"expected CRC {int(self.index.crc[row]):08x}, got {crc:08x} (byte {offset})"
        ours = (header.count, header.height, header.width)
        theirs = (self.index.count[row], self.index.height[row], self.index.width[row])
        return None if ours == theirs else f"the index does not fit the record at byte {offset}"

    def _header(self, offset: int) -> Header:
        header = Header.unpack(self._map[offset : offset + ALIGN])
        end = self.index.end - offset
        if header is None or not ALIGN + header.body_bytes(self.about.row_bytes) <= header.length <= end:
            way_out = "`lavis-ext features verify STORE` names every record that is damaged"
            raise IntegrityError(str(self.path / ROWS), f"no record at byte {offset}", way_out)
        return header


def open_store(path: str | Path) -> FeatureStore:
    """Open a store for reading: `open_store("features")["COCO_val2014_000000000042"].features`."""
    return FeatureStore(path)
