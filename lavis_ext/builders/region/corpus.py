"""Oscar+'s corpora: rows of a long TSV found by offsets that are written once, and the YAML that lists features."""

from __future__ import annotations

import json
import logging
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.errors import ConfigError, IntegrityError
from lavis_ext.features.files import disk_errors, read_errors
from lavis_ext.features.formats.lines import lines_of
from lavis_ext.features.imports import stamp_of
from lavis_ext.files import write_atomic, write_json
from lavis_ext.readers.parse import Row
from lavis_ext.readers.sequence import Rows
from lavis_ext.yamlio import read_yaml

log = logging.getLogger(__name__)
FOLDER = ".lavis_ext/corpora"
QA = "qa"
RENAMED = {"cc": "googlecc"}
CHUNKED = ("googlecc", "sbu", "oi", "objects365", "tagoi")
"""Sets of images whose features come in several folders; the image's key names the folder before its id."""
_ANSWER = np.uint64(1) << np.uint64(63)


@dataclass(frozen=True)
class Corpus:
    """What a corpus' YAML says: its rows, and for each set of images the folders of features and of labels."""

    home: Path
    rows: Path
    names: tuple[str, ...]
    features: Mapping[str, Path]
    labels: Mapping[str, Path]


def read_corpus(home: Path) -> Corpus:
    """The YAML of a corpus; paths are below its folder, or below VinVL's beside it. Raises ConfigError."""
    tree, _ = read_yaml(home)
    lacking = [key for key in ("corpus", "corpus_file", "image_feature_path") if not tree.get(key)]
    if lacking:
        raise ConfigError(str(home), f"has no {', '.join(lacking)}", "name the YAML of a corpus")
    names = tuple(RENAMED.get(name, name) for name in str(tree["corpus"]).split("_"))
    found = [
        {RENAMED.get(str(k), str(k)): below(home, str(v)) for k, v in (tree.get(key) or {}).items()}
        for key in ("image_feature_path", "image_label_path")
    ]
    return Corpus(home, below(home, str(tree["corpus_file"])), names, *found)


def below(home: Path, name: str) -> Path:
    """A path of a corpus' YAML: in its folder, in that around it, in `image_features` there; else as in its folder."""
    around = (home.parent, home.parent.parent, home.parent.parent / "image_features")
    return next((folder / name for folder in around if (folder / name).exists()), home.parent / name)


def image_place(key: str) -> tuple[str, str | None, str]:
    """Set of images, chunk (or None) and image id of a key: `coco_train_42`, `cc_img_003_77`; raises ValueError."""
    parts = key.split("_")
    if len(parts) < 2 or not parts[-1]:
        raise ValueError(f"no set and id in the key {key!r}")
    name = RENAMED.get(parts[0], parts[0])
    return name, parts[-2] if name in CHUNKED and len(parts) > 2 else None, parts[-1]


def is_answer(label_key: str) -> bool:
    """Whether a row's second text is an answer: its label key has the part `qa`, and ends in the id of a question."""
    return QA in label_key.split("_")


@dataclass(frozen=True, eq=False)
class CorpusRows(Rows):
    """The rows `image key, label key, text` of a TSV, read one at a time from the mapped file. Picklable.

    `marks` is a folder of two arrays, made once: where each row begins, and whether its second text is an answer.
    """

    path: Path
    marks: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [rows + 1]: where each row begins, and where the last one ends; mapped."""
        found: np.ndarray = np.load(self.marks / "offsets.npy", mmap_mode="r")
        return found

    @cached_property
    def answers(self) -> np.ndarray:
        """bool [rows]: whether the second text of a row is an answer; mapped."""
        found: np.ndarray = np.load(self.marks / "answers.npy", mmap_mode="r")
        return found

    @cached_property
    def _map(self) -> mmap.mmap:
        with read_errors(self.path), self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[Any, ...]:
        return CorpusRows, (self.path, self.marks)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def at(self, position: int) -> Row:
        """The row of a number from 0 on."""
        line = self._map[int(self.offsets[position]) : int(self.offsets[position + 1])].rstrip(b"\r\n")
        columns = line.decode("utf-8", "replace").split("\t")
        names = ("image_key", "label_key", "caption")
        return {**dict(zip(names, columns, strict=False)), "instance_id": str(position)}


def open_corpus(path: Path, marks: Path) -> CorpusRows:
    """The rows of a corpus; the arrays that find them are written first where they are missing or of another file.

    Raises IntegrityError for an empty file, DiskError.
    """
    stamp = stamp_of(path)
    if _stamp(marks) != stamp:
        log.info("finding the rows of %s once", path)
        with disk_errors(marks):
            _write_marks(path, marks)
            write_json(marks / "stamp.json", stamp)
    rows = CorpusRows(path, marks)
    if not len(rows):
        raise IntegrityError(str(path), "holds no rows", "fetch it again")
    return rows


def _stamp(marks: Path) -> Any:
    try:
        return json.loads((marks / "stamp.json").read_bytes())
    except (OSError, ValueError):
        return None


def _write_marks(path: Path, marks: Path) -> None:
    found = np.fromiter(_ends(path), np.uint64)
    ends, answers = (found & ~_ANSWER).astype(np.int64), found >= _ANSWER
    for name, array in (("offsets", np.concatenate([np.zeros(1, np.int64), ends])), ("answers", answers)):
        buffer = BytesIO()
        np.save(buffer, array)
        write_atomic(marks / f"{name}.npy", buffer.getvalue())


def _ends(path: Path) -> Iterator[int]:
    """The end of each row; its highest bit says that the row has an answer. Raises IntegrityError for a short row."""
    for number, line, end in lines_of(path):
        columns = line.split(b"\t", 2)
        if len(columns) < 3:
            raise IntegrityError(f"{path}:{number}", "has no three columns", "fetch it again")
        yield end | (int(_ANSWER) if QA.encode() in columns[1].split(b"_") else 0)
