"""Rows of data without an annotation file, and rows that are a part of one: a folder of pictures, a split of a file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import decode_json, read_errors
from lavis_ext.datasets.readers.packed import arrow_files, packed_rows
from lavis_ext.datasets.readers.tables import PICTURE, read_text

Row = dict[str, Any]
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "restval"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
"""What files, folders and rows call a split; `restval` is what Karpathy's splits add to the training."""
TEXTS = (".txt", ".caption")
TEXT_FOLDERS = ("texts", "text", "captions", "caption", "txt", "prompts", "descriptions")
"""Folders whose texts belong to the pictures of the same name in the folder beside; `labels` holds YOLO's numbers."""

BOX = re.compile(r"\d+(?:\s+[-+\d.e]+){4,}")
"""A line of YOLO's labels: the number of a class, and the box or the outline of an object. It is no caption."""


def split_named(name: str) -> str | None:
    """The split that a word means; None for any other word."""
    return next((split for split, words in SPLITS.items() if name.lower() in words), None)


@dataclass(frozen=True)
class FolderRows:
    """A folder of pictures, one row each: `image` below `base`, and what stands beside it.

    Beside `x.jpg` that is `x.txt`, `x.jpg.txt` or `x.caption` (`caption`; of several lines a list) and `x.json` (its
    keys); `texts/x.txt` is beside `images/x.jpg`. Where no picture has a text and all lie in several folders, `label`
    is the name of the folder. A folder of `datasets.save_to_disk` is the rows of its Arrow files.
    """

    folder: Path
    base: Path
    encoding: str | None = None
    """That of texts which are not UTF-8."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The folder."""
        return (self.folder,)

    @property
    def name(self) -> str:
        """The file name of the Arrow copy, without its suffix."""
        digest = hashlib.sha256(os.fsencode(self.base.absolute())).hexdigest()[:8]
        return f"{self.folder.name}.folder-{digest}{f'.{self.encoding}' if self.encoding else ''}"

    @property
    def state(self) -> dict[str, int]:
        """What changes with any picture or text that comes, goes or is written anew."""
        count = size = newest = 0
        for path in _walk(self.folder):
            stat = path.stat() if path.exists() else path.lstat()  # a link to nothing is a picture that is missing
            count, size, newest = count + 1, size + stat.st_size, max(newest, stat.st_mtime_ns)
        return {"size": size, "mtime_ns": newest, "count": count}

    def __str__(self) -> str:
        return str(self.folder)

    def parse(self) -> list[Row]:
        """All rows, sorted by name; raises IntegrityError for a text that cannot be read."""
        if files := arrow_files(self.folder):
            return [row for file in files for row in packed_rows(file, self.base)]
        beside: dict[Path, list[Path]] = {}
        pictures = []
        for path in _walk(self.folder):
            if PICTURE.search(path.name):
                pictures.append(path)
            elif path.suffix.lower() in (*TEXTS, ".json"):
                beside.setdefault(path.with_suffix(""), []).append(path)
        rows = [(path, self._row(path, self._texts_of(path, beside))) for path in pictures]
        tops = [path.relative_to(self.folder).parts[0] for path in pictures if path.parent != self.folder]
        apart = len(tops) == len(pictures) and len(set(tops)) > 1  # one folder that holds all pictures is no class
        if apart and not any("caption" in row for _, row in rows):
            return [{**row, "label": top} for top, (_, row) in zip(tops, rows, strict=True)]
        return [row for _, row in rows]

    def _texts_of(self, path: Path, beside: Mapping[Path, list[Path]]) -> list[Path]:
        stem = path.with_suffix("")
        found = beside.get(stem, []) + [text for text in beside.get(path, []) if text.suffix.lower() in TEXTS]
        if not found and path.parent != self.folder:
            inner = Path(*stem.relative_to(self.folder).parts[1:])
            return next((some for top in TEXT_FOLDERS if (some := beside.get(self.folder / top / inner))), [])
        return found

    def _row(self, path: Path, texts: Iterable[Path]) -> Row:
        inside = self.base if path.is_relative_to(self.base) else self.folder
        row: Row = {"image": path.relative_to(inside).as_posix()}
        for text in sorted(texts):
            if text.suffix.lower() == ".json":
                row = {**_object(text), **row}
                continue
            lines = [line.strip() for line in read_text(text, self.encoding).splitlines() if line.strip()]
            if not all(map(BOX.fullmatch, lines)):
                row["caption"] = lines if len(lines) > 1 else lines[0]
        return row


def _object(path: Path) -> Row:
    try:
        value = decode_json(read_text(path))
    except ValueError as error:
        raise IntegrityError(str(path), f"not JSON ({error})", "mend or remove it") from error
    return value if isinstance(value, dict) else {}


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden, sorted; links to folders are not followed."""
    with read_errors(folder):
        for root, inner, files in os.walk(folder):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


@dataclass(frozen=True)
class DerivedRows:
    """Rows that are made of those of a source: a file, or rows that are made themselves."""

    source: Any

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the source."""
        return (self.source,) if isinstance(self.source, Path) else self.source.files

    @property
    def state(self) -> dict[str, int] | None:
        """That of the source, where it has one."""
        return getattr(self.source, "state", None)

    def __str__(self) -> str:
        return str(self.source)

    def source_rows(self) -> list[Row]:
        """All rows of the source; raises IntegrityError."""
        from lavis_ext.datasets.readers.parse import parse_rows

        return parse_rows(self.source) if isinstance(self.source, Path) else self.source.parse()


@dataclass(frozen=True)
class PartRows(DerivedRows):
    """The rows of one split of a source that holds several.

    By `key`, the column that names the split of a row; or by `holdout`: that share of the pictures is `val`, chosen by
    the hash of their names (`image_key`), so that a picture's captions stay together, and `train` is the rest.
    """

    split: str
    key: str | None = None
    holdout: float = 0.0
    image_key: str = "image"

    @property
    def name(self) -> str:
        """The file name of the Arrow copy, without its suffix."""
        return f"{self.source.name}.{self.split}-{self.key or f'{self.holdout:g}-{self.image_key}'}"

    def __str__(self) -> str:
        return f"{self.source} ({self.split})"

    def parse(self) -> list[Row]:
        """The rows of the split; raises ConfigError where there are none."""
        rows = self.source_rows()
        if self.key is None:
            pictures = [str(row.get(self.image_key, row.get("image_id", n))) for n, row in enumerate(rows)]
            held = held_out(set(pictures), self.holdout)
            return [row for row, one in zip(rows, pictures, strict=True) if (one in held) == (self.split != "train")]
        names = {str(row.get(self.key)) for row in rows}
        wanted = {name for name in names if name == self.split or (split_named(name) or name) == self.split}
        if rows and not wanted:
            what = f"no row's `{self.key}` is '{self.split}'; there are {', '.join(sorted(names)[:12])}"
            raise ConfigError(str(self.source), what, "name the split so, or another column under `split_key`")
        return [row for row in rows if str(row.get(self.key)) in wanted]


def held_out(names: set[str], share: float) -> set[str]:
    """The names that are held out: at least one, and never all of several."""
    order = sorted(names, key=lambda name: (hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest(), name))
    return set(order[: min(max(1, round(share * len(order))), max(1, len(order) - 1))])
