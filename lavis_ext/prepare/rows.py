"""Which pictures the annotations of a split name, and under which of the names on disk they are found."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.cards import Artifact
from lavis_ext.schema import DatasetConfig

if TYPE_CHECKING:
    from lavis_ext.readers.annotations import Annotations

PATTERN = "{image_id}.jpg"


def open_rows(paths: Sequence[Path], limit: int | None = None) -> Annotations:
    """The records of a split, converted to Arrow once; files that only an evaluation reads are left out.

    Raises ConfigError, IntegrityError, DiskError.
    """
    from lavis_ext.readers.annotations import Annotations
    from lavis_ext.readers.forms import sort_files

    return Annotations(sort_files(paths).rows, limit)


def image_names(rows: Annotations, dataset: DatasetConfig, there: Names | None = None) -> list[str]:
    """The distinct names of pictures in rows, in order of appearance; empty where rows name none.

    They stand under `image_key`, else follow the first of `image_patterns` that is `there`, else `image_pattern`, else
    are `<image_id>.jpg`, as the builders read them.
    """
    keys = rows.keys()
    used = next(
        (name for name in (dataset.args.get("image_key", "image"), "images", "file_name") if name in keys), None
    )
    if used is not None:
        return list(dict.fromkeys(_flat(rows.column(str(used)))))
    single = dataset.args.get("image_pattern") or (PATTERN if "image_id" in keys else None)
    patterns = dataset.args.get("image_patterns") or ([single] if single else [])
    return list(dict.fromkeys(_formatted(rows, patterns, there))) if patterns else []


def _flat(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield from map(str, value)
        elif value is not None:
            yield str(value)


def _formatted(rows: Annotations, patterns: Sequence[str], there: Names | None) -> Iterator[str]:
    for row in rows:
        names = [str(pattern).format_map({**row, "image_id": row.get("image_id", "")}) for pattern in patterns]
        yield next((name for name in names if there and there.find(name) is not None), names[0])


class Names:
    """Relative names below the folder of images, sought as the image store does: as written, then by their tails."""

    def __init__(self, names: Collection[str], layouts: Sequence[str] | None = None) -> None:
        self._names = names
        self._folders = {name.rpartition("/")[0] for name in names} - {""}
        first = {name.partition("/")[0] for name in names if "/" in name} if layouts is None else set(layouts)
        self._layouts = ["", *sorted(name for name in first if not name.startswith("."))]

    def find(self, name: str) -> str | None:
        """The name that serves `name`, or None; in a folder that is there as written only the file as written does."""
        if name in self._names:
            return name
        if name.rpartition("/")[0] in self._folders:
            return None
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts:
            return None
        return next((found for found in self._candidates(parts) if found in self._names), None)

    def _candidates(self, parts: list[str]) -> Iterator[str]:
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            yield from (f"{layout}/{tail}" if layout else tail for layout in self._layouts)


def relative_name(artifact: Artifact, member: str, storage: str) -> str | None:
    """A member's name below the folder of images `storage`; None where it lies elsewhere."""
    base = artifact.storage.strip("/")
    whole = member if base in ("", ".") else f"{base}/{member}"
    prefix = f"{storage.strip('/')}/" if storage.strip("/") else ""
    return whole[len(prefix) :] if whole.startswith(prefix) else None
