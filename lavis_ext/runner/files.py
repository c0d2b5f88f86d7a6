"""Writes that are whole or absent: temporary name, fsync, rename, fsync of the folder; failures are DiskErrors."""

from __future__ import annotations

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
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a DiskError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            str(path), f"cannot be written: {error.strerror or error}", "free space or change run.output_dir"
        ) from error


def fsync_path(path: Path) -> None:
    """Force a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader sees the old or the new content; raises DiskError."""
    part = path.with_name(f".{path.name}.part")
    with disk_errors(path):
        part.write_text(text, encoding="utf-8")
        fsync_path(part)
        part.replace(path)
        fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of a JSON value."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
