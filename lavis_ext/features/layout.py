"""The bytes of a store: a header of 64 bytes before each record, and the small file that describes the store."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_ext.errors import IntegrityError, UsageError
from lavis_ext.features.files import write_atomic

FORMAT = 1
ROWS, INDEX, ABOUT, FAULTS = "rows.bin", "index.arrow", "store.json", "faults.jsonl"
ALIGN = 64
MAGIC = b"LXR1"
DTYPES = ("float16", "float32")
NO_BOXES, PIXELS, FRACTIONS = 0, 1, 2
UNITS = {NO_BOXES: "", PIXELS: "pixel", FRACTIONS: "fraction"}
_HEADER = struct.Struct("<4sIQIIIIIIIIQQ")
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a record; `length` counts header, body and padding, `crc` covers all after itself."""

    length: int
    count: int
    unit: int
    height: int
    width: int
    id_bytes: int
    extra_bytes: int
    source: int
    line: int
    next: int
    crc: int = 0

    def pack(self, crc: int) -> bytes:
        """64 bytes, little-endian."""
        sizes = (self.length, self.count, self.unit, self.height, self.width, self.id_bytes, self.extra_bytes)
        return _HEADER.pack(MAGIC, crc, *sizes, self.source, 0, self.line, self.next)

    def checked(self) -> bytes:
        """The part of the header that the checksum covers."""
        return self.pack(0)[8:]

    @classmethod
    def unpack(cls, data: bytes) -> Header | None:
        """The header in 64 bytes, or None where none stands there."""
        if len(data) < _HEADER.size:
            return None
        magic, crc, length, count, unit, height, width, *rest = _HEADER.unpack(data)
        id_bytes, extra_bytes, source, _, line, following = rest
        sizes = (length, count, unit, height, width, id_bytes, extra_bytes)
        return cls(*sizes, source, line, following, crc) if magic == MAGIC else None

    def body_bytes(self, row_bytes: int) -> int:
        """Bytes after the header that the record uses; the rest up to `length` is padding."""
        return self.count * (row_bytes + (16 if self.unit else 0)) + self.id_bytes + self.extra_bytes


def padded(size: int) -> int:
    """`size` rounded up to the alignment of records."""
    return -(-size // ALIGN) * ALIGN


def checksum(header: Header, *parts: bytes | memoryview) -> int:
    """CRC-32 of a header and of the parts of a body."""
    crc = zlib.crc32(header.checked())
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


@dataclass
class About:
    """`store.json`: what the numbers are and where they came from; `columns` is 0 until a row with boxes came."""

    dtype: str
    columns: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    @property
    def row_bytes(self) -> int:
        """Bytes of one feature row."""
        return self.columns * np.dtype(self.dtype).itemsize

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all; raises DiskError."""
        write_atomic(folder / ABOUT, (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> About:
        """Read it; raises UsageError where no store is, IntegrityError where it cannot be understood."""
        path = folder / ABOUT
        try:
            about = cls(**json.loads(path.read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(str(folder), "is not a feature store", f"a store is a folder that holds {ABOUT}") from None
        except (OSError, ValueError, TypeError) as error:
            raise IntegrityError(str(path), f"cannot be read: {error}", "import the features again") from error
        if about.format != FORMAT or about.dtype not in DTYPES:
            found = f"format {about.format}, {about.dtype}"
            raise IntegrityError(str(path), f"expected format {FORMAT}, got {found}", "use the version that wrote it")
        return about


def pack_extra(arrays: dict[str, Array]) -> bytes:
    """Named arrays as bytes: length of a JSON head, the head `[[name, dtype, shape], …]`, the arrays one by one."""
    if not arrays:
        return b""
    head = json.dumps([[name, a.dtype.str, a.shape] for name, a in arrays.items()]).encode()
    bodies = [np.ascontiguousarray(a).tobytes() for a in arrays.values()]
    return b"".join([struct.pack("<I", len(head)), head, *bodies])


def unpack_extra(data: bytes) -> dict[str, Array]:
    """The arrays that `pack_extra` wrote, as copies."""
    if not data:
        return {}
    at = 4 + struct.unpack_from("<I", data)[0]
    arrays: dict[str, Array] = {}
    for name, dtype, shape in json.loads(data[4:at]):
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape).copy()
        at += arrays[name].nbytes
    return arrays
