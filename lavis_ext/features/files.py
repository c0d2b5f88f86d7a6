"""Files of the feature tools: whole or absent, never over what is there; failures of the disk are DiskErrors."""

from __future__ import annotations

from pathlib import Path

from lavis_ext.common import files
from lavis_ext.common.errors import UsageError
from lavis_ext.common.files import disk_errors, flush_file, flush_folder, read_errors

__all__ = ["disk_errors", "finish", "part_of", "read_errors", "refuse_existing", "write_atomic"]


def write_atomic(path: Path, data: bytes) -> None:
    """Replace one of our own files so that a reader sees the old or the new content; raises DiskError."""
    with disk_errors(path):
        files.write_atomic(path, data)


def finish(part: Path, path: Path) -> None:
    """Flush a finished file and give it its name; raises UsageError where that name was taken meanwhile."""
    refuse_existing(path)
    with disk_errors(path):
        if part.is_file():
            flush_file(part)
        part.rename(path)
        flush_folder(path.parent)


def refuse_existing(path: Path) -> None:
    """Raise UsageError if something lies there: files that exist are never modified."""
    if path.exists() or path.is_symlink():
        raise UsageError(str(path), "exists, and is never written over", "name another place, or move it away")


def part_of(path: Path) -> Path:
    """The name under which a file grows until it is whole."""
    return path.with_name(f".{path.name}.part")
