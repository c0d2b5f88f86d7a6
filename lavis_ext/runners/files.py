"""Atomic writes of a run's files; a failure is a DiskError that names `run.output_dir` as the setting to change."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lavis_ext.common import files

WAY_OUT = "change run.output_dir"


def disk_errors(path: Path) -> AbstractContextManager[None]:
    """Turns an OSError inside the block into a DiskError that names `path`."""
    return files.disk_errors(path, WAY_OUT)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`; raises DiskError."""
    with disk_errors(path):
        files.write_atomic(path, text)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by a JSON value; raises DiskError."""
    with disk_errors(path):
        files.write_json(path, value)
