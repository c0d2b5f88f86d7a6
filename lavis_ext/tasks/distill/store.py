"""The logits of one teacher for one split in memory-mapped files, written in order and resumed where they end."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.errors import ConfigError, DiskError
from lavis_ext.fetch import Policy
from lavis_ext.fetch.owner import Ownership
from lavis_ext.files import disk_errors, flush_file, sha256_of, write_json
from lavis_ext.wording import human

log = logging.getLogger(__name__)
FORMAT = 1
ABOUT, PROGRESS, MANIFEST, IDS = "about.json", "progress.json", "manifest.json", "ids.json"
WAIT = Policy(owner_wait=3600.0 * 24, owner_stall=3600.0)


@dataclass(frozen=True)
class About:
    """All that decides what the files hold; two stores of one folder name would have to agree in SHA-256."""

    teacher: str
    """`teacher.digest`."""
    dataset: str
    split: str
    samples: int
    views: tuple[str, ...]
    dtype: str
    labels: str = ""
    """Digest of the vocabulary of answers."""
    format: int = FORMAT

    def key(self) -> str:
        """The name of the folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class LogitStore:
    """`logits_<view>` [N, C] and `valid_<view>` uint8 [N], `marks` int64 [N] (fingerprints), `ids.json`.

    A row a sample; one that could not be read has no id (null). `manifest.json`, written last, has the SHA-256 of each.
    """

    def __init__(self, root: Path, about: About) -> None:
        self.folder, self.about = root / about.key(), about
        self.files: dict[str, np.memmap[Any, Any]] = {}
        self.ids: list[Any] = []

    @contextmanager
    def owned(self) -> Iterator[None]:
        """One live process at a time; another one is waited for."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with Ownership(self.folder / "owner.json", self.folder / PROGRESS, WAIT):
            yield

    def complete(self) -> bool:
        """Whether the files are all there and are what the manifest says; a torn or damaged store is emptied."""
        path = self.folder / MANIFEST
        if not path.is_file():
            return False
        try:
            files = json.loads(path.read_text(encoding="utf-8"))["files"]
            same = all(sha256_of(self.folder / name) == digest for name, digest in files.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            same = False
        if not same:
            log.warning("%s: does not match its manifest; made anew", self.folder)
            self.empty()
        return same

    def empty(self) -> None:
        """Forget everything in the folder."""
        self.files, self.ids = {}, []
        for path in self.folder.glob("*"):
            if path.name != "owner.json":
                path.unlink()

    def rows_done(self, batch: int) -> int:
        """How many rows a process that was stopped has left whole, in whole batches, and never all of them."""
        try:
            found = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
            whole = min(len(found["ids"]), self.about.samples - 1) // batch * batch
            self.ids = list(found["ids"])[:whole] if self.started() else []
            return len(self.ids)
        except (OSError, ValueError, KeyError, TypeError):
            self.ids = []
            return 0

    def sizes(self, classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """File → dtype and shape."""
        count = self.about.samples
        found: dict[str, tuple[str, tuple[int, ...]]] = {"marks": ("int64", (count,))}
        for view in self.about.views:
            found[f"logits_{view}"] = (self.about.dtype, (count, classes))
            found[f"valid_{view}"] = ("uint8", (count,))
        return found

    def started(self, classes: int | None = None) -> bool:
        """Whether the files are there; with `classes`, whether they have the size for so many."""
        sizes = self.sizes(classes or 1)
        if not all((self.folder / name).is_file() for name in sizes):
            return False
        whole = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (dtype, shape) in sizes.items()}
        return classes is None or all((self.folder / name).stat().st_size == size for name, size in whole.items())

    def create(self, classes: int) -> None:
        """Make the files, or open those that are there; says their size first, raises DiskError if it is not free."""
        sizes = self.sizes(classes)
        need = sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in sizes.values())
        fresh = not self.started(classes)
        if fresh:
            counts = f"{self.about.samples} samples × {len(self.about.views)} views × {classes} classes"
            log.info("logits of the teacher: %s = %s in %s", counts, human(need), self.folder)
            free = shutil.disk_usage(self.folder).free
            if free < need:
                what = f"the teacher's logits take {human(need)}, {human(free)} are free"
                raise DiskError(str(self.folder), what, "free some space, set run.distill.cache: none or float16")
        self.open(sizes, "w+" if fresh else "r+")

    def open(self, sizes: Mapping[str, tuple[str, tuple[int, ...]]], mode: Any) -> None:
        """Map the files."""
        with disk_errors(self.folder):
            self.files = {
                name: np.memmap(self.folder / name, dtype=dtype, mode=mode, shape=shape)
                for name, (dtype, shape) in sizes.items()
            }

    def open_complete(self) -> None:
        """Map a finished store for reading."""
        classes = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))["classes"]
        self.open(self.sizes(classes), "r")
        self.ids = json.loads((self.folder / IDS).read_text(encoding="utf-8"))

    def write(self, rows: Sequence[int], values: Mapping[str, np.ndarray]) -> None:
        """Put values of some rows in place; raises ConfigError for logits that are too large for the type."""
        for name, value in values.items():
            with np.errstate(over="ignore"):
                cast = value.astype(self.files[name].dtype)
            if cast.dtype.kind == "f" and not np.isfinite(cast).all():
                what = f"logits of the teacher do not fit {cast.dtype}"
                raise ConfigError("run.distill.cache", what, "set cache: float32, and see that the teacher is sound")
            self.files[name][list(rows)] = cast

    def keep(self) -> None:
        """Flush what is written, and then say how far that is."""
        with disk_errors(self.folder):
            for file in self.files.values():
                file.flush()
            write_json(self.folder / PROGRESS, {"ids": self.ids})

    def finish(self, classes: int) -> None:
        """Write ids and manifest: from now on the store is complete."""
        self.keep()
        with disk_errors(self.folder):
            write_json(self.folder / IDS, self.ids)
            write_json(self.folder / ABOUT, {**asdict(self.about), "classes": classes})
            names = [*self.files, IDS, ABOUT]
            for name in names:
                flush_file(self.folder / name)
            write_json(self.folder / MANIFEST, {"files": {name: sha256_of(self.folder / name) for name in names}})
            (self.folder / PROGRESS).unlink()
