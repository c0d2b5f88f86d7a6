"""Writes that are whole or absent: a temporary name, flushed, renamed, and the folder flushed too."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavis_ext.errors import DiskError

CHUNK = 1 << 20


@contextmanager
def disk_errors(path: Path, way_out: str = "free space, or choose another folder") -> Iterator[None]:
    """Turn an OSError inside the block into a DiskError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DiskError(str(path), f"cannot be written: {error.strerror or error}", way_out) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` so that a reader, and a crash, sees the old or the new content; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.fsencode(path.name)[:200].decode(errors='ignore')}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of a JSON value, indented; raises OSError."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def flush_file(path: Path) -> None:
    """Force a file's content to the disk; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power loss; raises OSError.

    File systems that cannot are left alone.
    """
    try:
        flush_file(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
