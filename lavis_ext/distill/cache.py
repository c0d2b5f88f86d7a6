"""Cached logits of a fixed teacher: computed once, in the order of the data set, and mapped in every later epoch.

`LogitStore` is the files of one data set, `fingerprints` recognise a sample, `Filler` computes, `LogitCache` reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import ConfigError, DiskError, IntegrityError
from lavis_ext.common.files import decode_json, disk_errors, expanded, flush_file, sha256_of, write_json
from lavis_ext.common.types import Batch
from lavis_ext.common.wording import human
from lavis_ext.datasets.collate import to_device
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.distill.settings import section_of
from lavis_ext.distill.teacher import MultiView, OutputSpec
from lavis_ext.fetch import Policy
from lavis_ext.fetch.lock import Ownership
from lavis_ext.models.base_model import Outputs, world

log = logging.getLogger(__name__)
FORMAT = 1
ABOUT, PROGRESS, MANIFEST, IDS = "about.json", "progress.json", "manifest.json", "ids.json"
WAIT = Policy(owner_wait=3600.0 * 24, owner_stall=3600.0)


@dataclass(frozen=True)
class CacheIdentity:
    """Everything that decides the contents of a store; its SHA-256 names the folder."""

    teacher: str
    """`teacher.digest` of its weights."""
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

    One row a sample; a sample that cannot be read has no id (null). `manifest.json`, written last, has their SHA-256.
    """

    def __init__(self, root: Path, about: CacheIdentity) -> None:
        self.folder, self.about = root / about.key(), about
        self.files: dict[str, np.memmap[Any, Any]] = {}
        self.ids: list[Any] = []
        self._owner: Ownership | None = None

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Lock the folder; waits for another live process. Inside it, what writes raises OwnedError once another has
        taken over."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with Ownership(self.folder / "owner.json", self.folder / PROGRESS, WAIT) as self._owner:
            yield
        self._owner = None

    def _require(self, now: bool = True) -> None:
        if self._owner is not None:
            self._owner.require(now)

    def complete(self) -> bool:
        """Whether all files are there and match the manifest; a damaged store is emptied."""
        path = self.folder / MANIFEST
        if not path.is_file():
            return False
        try:
            files = decode_json(path.read_text(encoding="utf-8"))["files"]
            same = all(sha256_of(self.folder / name) == digest for name, digest in files.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            same = False
        if not same:
            log.warning("%s: does not match its manifest; it is computed again", self.folder)
            self.empty()
        return same

    def empty(self) -> None:
        """Delete all files of the folder but the lock, first what says how far they are good: for a kill in between."""
        self._require()
        self.files, self.ids = {}, []
        (self.folder / PROGRESS).unlink(missing_ok=True)
        for path in self.folder.glob("*"):
            if path.name != "owner.json":
                path.unlink()

    def rows_done(self, batch: int) -> int:
        """How many rows a stopped process has completed, in whole batches.

        Never all of them: the last batch is computed again, and opens the files.
        """
        try:
            found = decode_json((self.folder / PROGRESS).read_text(encoding="utf-8"))
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
        """Create the files, or open those that are there; raises DiskError where the disk has too little space."""
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
        self._require()
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
        classes = decode_json((self.folder / ABOUT).read_text(encoding="utf-8"))["classes"]
        self.open(self.sizes(classes), "r")
        self.ids = decode_json((self.folder / IDS).read_text(encoding="utf-8"))

    def write(self, rows: Sequence[int], values: Mapping[str, np.ndarray]) -> None:
        """Write values of some rows; raises ConfigError for logits that overflow the type."""
        self._require(now=False)
        for name, value in values.items():
            with np.errstate(over="ignore"):
                cast = value.astype(self.files[name].dtype)
            if cast.dtype.kind == "f" and not np.isfinite(cast).all():
                what = f"logits of the teacher do not fit {cast.dtype}"
                raise ConfigError("run.distill.cache", what, "set cache: float32, or check the teacher")
            self.files[name][list(rows)] = cast

    def keep(self) -> None:
        """Flush the files, and then record how far they are written."""
        self._require()
        with disk_errors(self.folder):
            for file in self.files.values():
                file.flush()
            self._require()
            write_json(self.folder / PROGRESS, {"ids": self.ids})

    def finish(self, classes: int) -> None:
        """Write ids and manifest, which makes the store complete."""
        self.keep()
        with disk_errors(self.folder):
            write_json(self.folder / IDS, self.ids)
            write_json(self.folder / ABOUT, {**asdict(self.about), "classes": classes})
            names = [*self.files, IDS, ABOUT]
            for name in names:
                flush_file(self.folder / name)
            self._require()
            write_json(self.folder / MANIFEST, {"files": {name: sha256_of(self.folder / name) for name in names}})
            (self.folder / PROGRESS).unlink()


ID_KEYS = ("instance_id", "question_id", "image_id", "index")
ANSWERS = ("targets", "labels", "lm_labels", "label", "index", "image_id", "question_id")
"""Keys that a teacher does not read; they are not part of a fingerprint."""
TEXTS = ("text_input", "text_output", "prompt")
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def ids_of(batch: Batch, key: str) -> list[Any]:
    """The samples of a batch under one of the ID_KEYS, as plain values."""
    values = batch[key]
    return values.tolist() if isinstance(values, Tensor) else list(values)


def fingerprints(batch: Batch, rows: int) -> Tensor:
    """int64 [rows]: a hash of the inputs of each row, the same on any device and however far the batch is padded.

    It is the sum of the bits of each element times an odd number fixed by its place. Padding does not count, as zeros
    do not; masks, whose shape depends on the padding, are left out.
    """
    total = torch.zeros(rows, dtype=torch.int64)
    for key in sorted(batch):
        value = batch[key]
        if key in ANSWERS or "mask" in key:
            continue
        if isinstance(value, Tensor) and value.dim() > 1 and len(value) == rows:
            total = total + summed(value, key).cpu()
        elif key in TEXTS and len(value) == rows:
            total = total + torch.tensor([of_text(f"{key} {text}") for text in value])
    return total


def summed(tensor: Tensor, key: str) -> Tensor:
    """int64 [N] of a tensor [N, …]; sums and products wrap around."""
    value = tensor.detach().contiguous()
    numbers = value.view(BITS[value.element_size()]).long() if value.is_floating_point() else value.long()
    for axis in range(value.dim() - 1, 0, -1):
        numbers = (numbers * factors(numbers.shape[-1], f"{key}{axis}").to(numbers.device)).sum(-1)
    return numbers


def factors(count: int, salt: str) -> Tensor:
    """int64 [count] odd numbers: splitmix64 (Steele et al., OOPSLA 2014) of salt and place; the first never change."""
    start = np.uint64(of_text(salt) & (2**64 - 1))
    with np.errstate(over="ignore"):
        mixed = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
    return torch.from_numpy(mixed.view(np.int64))


def of_text(text: str) -> int:
    """A text's BLAKE2b of 64 bits, signed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


WHERE, FOLDER = "run.distill.cache", "teacher_logits"
PROBES = 16
KEPT_EVERY, NOTES = 64, 50
"""Batches between two `keep`s, and the most `keep`s of a large store."""
POLL_S = 1.0


class LogitCache:
    """The stores of a run's data sets; raises ConfigError where samples are random, or have no distinct ids."""

    def __init__(self, stores: dict[str, LogitStore], keys: dict[str, str], device: torch.device) -> None:
        self.stores, self.keys, self.device = stores, keys, device
        self.rows = {name: {own: row for row, own in enumerate(s.ids)} for name, s in stores.items()}

    @classmethod
    def of(cls, run: RunConfig, teacher: MultiView, digest: str, need: OutputSpec, batches: Any) -> LogitCache:
        """The cache of a run below its `output_dir`, filled where it is not; rank 0 fills, the others wait."""
        root = expanded(run.output_dir).absolute() / ".lavis_ext" / FOLDER
        filler = Filler(run, teacher, need, batches.normalizer)
        stores, keys = {}, {}
        section = section_of(run)
        for name, dataset in batches.datasets.items():
            keys[name] = filler.identify(name, dataset)
            labels = getattr(dataset, "labels", None)
            about = CacheIdentity(
                digest, name, dataset.split, len(dataset), need.views, section.cache if section else "",
                labels.digest() if labels is not None else "",
            )  # fmt: skip
            stores[name] = LogitStore(root, about)
            fill_once(stores[name], filler, dataset, keys[name])
            stores[name].open_complete()
        return cls(stores, keys, filler.device)

    def outputs(self, batch: Batch, views: Sequence[str]) -> dict[str, Outputs]:
        """View → the teacher's outputs; raises IntegrityError for a sample that is not the one the teacher saw."""
        name = batch.get("dataset") or next(iter(self.stores))
        store, ids = self.stores[name], ids_of(batch, self.keys[name])
        rows = [self.rows[name].get(own, -1) for own in ids]
        same = np.asarray(store.files["marks"][rows]) == fingerprints(batch, len(ids)).numpy()
        wrong = [own for own, row, fits in zip(ids, rows, same, strict=True) if row < 0 or not fits]
        if wrong:
            what = f"sample {name}/{wrong[0]} is not what the teacher saw ({len(wrong)} of the batch)"
            raise IntegrityError(str(store.folder), what, "delete the folder, or set run.distill.cache: none")
        return {view: self._outputs(store, view, rows) for view in views}

    def _outputs(self, store: LogitStore, view: str, rows: list[int]) -> Outputs:
        logits = torch.from_numpy(np.asarray(store.files[f"logits_{view}"][rows], dtype=np.float32))
        valid = torch.from_numpy(np.asarray(store.files[f"valid_{view}"][rows])).bool()
        return Outputs(logits.to(self.device), valid=valid.to(self.device))


class Filler:
    """Computes the teacher's logits of every sample of a data set, in order and in float32."""

    def __init__(self, run: RunConfig, teacher: MultiView, need: OutputSpec, normalizer: Any) -> None:
        self.run, self.teacher, self.need, self.normalizer = run, teacher, need, normalizer
        self.device = teacher.model.device

    def identify(self, name: str, dataset: Any) -> str:
        """The key of a sample's id, after checks that samples have distinct ids and are the same at each load."""
        where = f"datasets.{name}"
        if not hasattr(dataset, "load"):
            raise ConfigError(where, "is a stream, whose samples have no numbers", f"set {WHERE}: none")
        probes = sorted({round(i * (len(dataset) - 1) / PROBES) for i in range(PROBES + 1)})
        batch, again = (self._collate(dataset, [load(dataset, i, seed) for i in probes])[1] for seed in (1, 2))
        key = next((key for key in ID_KEYS if key in batch), None)
        if key is None or len(set(ids_of(batch, key))) < len(ids_of(batch, key)):
            raise ConfigError(where, "its samples have no distinct ids", f"set {WHERE}: none")
        rows = len(ids_of(batch, key))
        if not any(len(value) == rows for value in batch.values() if isinstance(value, Tensor) and value.dim() > 1):
            what = "its batches have several inputs a sample, as sampled pairs do"
            raise ConfigError(where, what, f"set {WHERE}: none")
        if ids_of(batch, key) != ids_of(again, key) or not torch.equal(
            fingerprints(batch, rows), fingerprints(again, rows)
        ):
            what = "its samples differ at each load (augmentation, or sampled negatives)"
            raise ConfigError(where, what, f"set {WHERE}: none")
        return key

    def fill(self, store: LogitStore, dataset: Any, key: str) -> None:
        """Compute the rows that are missing; the next batch is loaded while the teacher runs."""
        size = self.run.batch_size_eval
        begin = store.rows_done(size)
        if begin:
            log.info("logits of the teacher: resumed at sample %d of %d", begin, len(dataset))
        starts = range(begin, len(dataset), size)
        every = max(KEPT_EVERY, len(starts) // NOTES)
        with ThreadPoolExecutor(max(1, self.run.num_workers)) as pool:
            for number, (start, samples) in enumerate(loading(dataset, starts, pool)):
                self._store(store, start, *self._collate(dataset, list(samples)), key)
                if number % every == every - 1:
                    store.keep()
        store.finish(int(store.files[f"logits_{self.need.views[0]}"].shape[1]))

    def _store(self, store: LogitStore, start: int, there: list[bool], batch: Batch, key: str) -> None:
        rows = [start + offset for offset, found in enumerate(there) if found]
        names: Iterator[Any] = iter(ids_of(batch, key)) if rows else iter(())
        store.ids[start:] = [next(names) if found else None for found in there]
        if not rows:
            return
        with torch.no_grad():
            outputs: dict[str, Outputs] = self.teacher(batch, self.need)
        values: dict[str, np.ndarray] = {"marks": fingerprints(batch, len(rows)).numpy()}
        for view, found in outputs.items():
            values[f"logits_{view}"] = one_a_sample(found.logits, len(rows))
            valid = torch.ones(len(rows)) if found.valid is None else found.valid
            values[f"valid_{view}"] = valid.cpu().numpy()
        if not store.files:
            store.create(values[f"logits_{self.need.views[0]}"].shape[1])
        store.write(rows, values)

    def _collate(self, dataset: Any, samples: Sequence[Any]) -> tuple[list[bool], Batch]:
        """Which samples could be read, and the batch of those that could."""
        found = [sample for sample in samples if sample is not None]
        batch = to_device(dataset.collater(found), self.device, self.normalizer) if found else {}
        return [sample is not None for sample in samples], batch


def load(dataset: Any, index: int, seed: int = 1) -> Any:
    """A sample; None where it cannot be read, which training counts when it meets it."""
    try:
        return dataset.load(index, torch.Generator().manual_seed(seed))
    except SampleError:
        return None


def loading(dataset: Any, starts: range, pool: ThreadPoolExecutor) -> Iterator[tuple[int, Iterable[Any]]]:
    """(first index, samples of a batch) for each start, one batch ahead."""
    ahead: list[tuple[int, Iterable[Any]]] = []
    for start in starts:
        indices = range(start, min(start + starts.step, len(dataset)))
        ahead.append((start, pool.map(partial(load, dataset), indices)))
        if len(ahead) > 1:
            yield ahead.pop(0)
    yield from ahead


def fill_once(store: LogitStore, filler: Filler, dataset: Any, key: str) -> None:
    """Fill a store on rank 0, unless it is complete; the other ranks wait for its manifest."""
    rank, count = world()
    if rank == 0:
        with store.owned():
            ready = store.complete()
            if count > 1:
                dist.barrier()
            if not ready:
                filler.fill(store, dataset, key)
        return
    dist.barrier()
    while not (store.folder / MANIFEST).is_file():
        time.sleep(POLL_S)


def one_a_sample(logits: Tensor, rows: int) -> np.ndarray:
    """float32 [rows, C]; raises ConfigError for other shapes, as those of models that generate words."""
    if logits.dim() != 2 or len(logits) != rows:
        what = f"the teacher gives logits of {list(logits.shape)} for {rows} samples"
        raise ConfigError(WHERE, what, "set cache: none")
    return logits.float().cpu().numpy()
