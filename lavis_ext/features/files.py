"""Output files that must not exist yet: they grow under a hidden name and are renamed when they are complete."""

from __future__ import annotations

from pathlib import Path

from lavis_ext.common.errors import UsageError
from lavis_ext.common.files import disk_errors, flush_file, flush_folder


def finish(part: Path, path: Path) -> None:
    """Flush a finished file (or folder) and rename it; raises UsageError where `path` exists by now, DiskError."""
    refuse_existing(path)
    with disk_errors(path):
        if part.is_file():
            flush_file(part)
        part.rename(path)
        flush_folder(path.parent)


def refuse_existing(path: Path) -> None:
    """Raise UsageError if `path` exists: files of the user are never overwritten."""
    if path.exists() or path.is_symlink():
        raise UsageError(str(path), "exists and is not overwritten", "name another place, or move it away")


def part_of(path: Path) -> Path:
    """The name under which a file grows until it is whole."""
    return path.with_name(f".{path.name}.part")
