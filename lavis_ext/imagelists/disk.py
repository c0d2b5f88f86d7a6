"""Which images of a list lie in their folder: listings, not one look per file, and the first bytes where asked."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

ASIDE = ".lavis_ext/set_aside"
HEAD = 64


def find_images(target: Path, paths: Collection[str]) -> set[str]:
    """Those of the relative paths that are files with content; parts of files that a killed run left are removed."""
    found: set[str] = set()
    for folder in {str(PurePosixPath(path).parent) for path in paths}:
        prefix = "" if folder == "." else f"{folder}/"
        try:
            with os.scandir(target / folder) as entries:
                found.update(prefix + entry.name for entry in entries if _counts(entry))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found.intersection(paths)


def _counts(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") and entry.name.endswith(".part"):
        os.unlink(entry.path)  # noqa: PTH108 - a listing of a million
        return False
    return entry.is_file() and entry.stat().st_size > 0


def walk_files(target: Path) -> Iterator[str]:
    """Relative names of the files below a folder; hidden folders and what was set aside in place are left out."""
    for folder, inner, names in os.walk(target):
        inner[:] = [name for name in inner if not name.startswith(".")]
        kept = (name for name in names if ".bad-" not in name)
        yield from (os.path.relpath(os.path.join(folder, name), target) for name in kept)  # noqa: PTH118 - a million


def image_fault(path: Path, deep: bool = False) -> str:
    """Why a file is no image, by its first bytes, or by decoding all of it (`deep`); "" if it is one."""
    from lavis_ext.readers.decode import decode_rgb, sniff_fault
    from lavis_ext.readers.faults import SampleError

    with path.open("rb") as file:
        fault = sniff_fault(file.read(HEAD))
    if fault or not deep:
        return fault
    try:
        decode_rgb(path.read_bytes(), path=str(path))
    except SampleError as error:
        return error.why
    return ""


def set_aside_foreign(target: Path, paths: Collection[str]) -> int:
    """Move files that are no images by their first bytes (error pages, say) out of the way; returns how many."""
    count = 0
    for path in paths:
        if not image_fault(target / path):
            continue
        place = target / ASIDE / path
        place.parent.mkdir(parents=True, exist_ok=True)
        (target / path).replace(place)
        count += 1
    return count
