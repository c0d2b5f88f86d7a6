"""Logits of a teacher that stands still: computed once, in the order of the data sets, and read ever after."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lavis_ext.collate import to_device
from lavis_ext.errors import ConfigError, IntegrityError
from lavis_ext.models.base import Outputs
from lavis_ext.models.ranks import world
from lavis_ext.readers.faults import SampleError
from lavis_ext.schema import RunConfig
from lavis_ext.tasks.distill.fingerprint import ID_KEYS, fingerprints, ids_of
from lavis_ext.tasks.distill.settings import section_of
from lavis_ext.tasks.distill.store import MANIFEST, About, LogitStore
from lavis_ext.tasks.distill.views import Glance, Need
from lavis_ext.types import Batch

log = logging.getLogger(__name__)
WHERE, FOLDER = "run.distill.cache", "teacher_logits"
PROBES = 16
KEPT_EVERY, NOTES = 64, 50
"""Batches between two notes of how far a store is, and how many notes are made of a large one."""
POLL_S = 1.0


class LogitCache:
    """Data set → store; raises ConfigError for data whose samples are drawn anew each time, or cannot be told apart."""

    def __init__(self, stores: dict[str, LogitStore], keys: dict[str, str], device: torch.device) -> None:
        self.stores, self.keys, self.device = stores, keys, device
        self.rows = {name: {own: row for row, own in enumerate(s.ids)} for name, s in stores.items()}

    @classmethod
    def of(cls, run: RunConfig, teacher: Glance, digest: str, need: Need, batches: Any) -> LogitCache:
        """The cache of a run below its `output_dir`, filled where it is not; rank 0 fills, the others wait."""
        root = Path(run.output_dir).expanduser().absolute() / ".lavis_ext" / FOLDER
        filler = Filler(run, teacher, need, batches.normalizer)
        stores, keys = {}, {}
        section = section_of(run)
        for name, dataset in batches.datasets.items():
            keys[name] = filler.identify(name, dataset)
            labels = getattr(dataset, "labels", None)
            about = About(
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
    """Asks the teacher for every sample of a data set, in order and in full float32."""

    def __init__(self, run: RunConfig, teacher: Glance, need: Need, normalizer: Any) -> None:
        self.run, self.teacher, self.need, self.normalizer = run, teacher, need, normalizer
        self.device = teacher.model.device

    def identify(self, name: str, dataset: Any) -> str:
        """The key that names the samples of a data set, once it is sure that they are the same every time."""
        where = f"datasets.{name}"
        if not hasattr(dataset, "load"):
            raise ConfigError(where, "its samples come in a stream, and have no numbers", f"set {WHERE}: none")
        probes = sorted({round(i * (len(dataset) - 1) / PROBES) for i in range(PROBES + 1)})
        batch, again = (self._collate(dataset, [load(dataset, i, seed) for i in probes])[1] for seed in (1, 2))
        key = next((key for key in ID_KEYS if key in batch), None)
        if key is None or len(set(ids_of(batch, key))) < len(ids_of(batch, key)):
            raise ConfigError(where, "no id tells its samples apart", f"set {WHERE}: none")
        rows = len(ids_of(batch, key))
        if not any(len(value) == rows for value in batch.values() if isinstance(value, Tensor) and value.dim() > 1):
            what = "its batches hold several inputs a sample, as pairs that are drawn do"
            raise ConfigError(where, what, f"set {WHERE}: none")
        if ids_of(batch, key) != ids_of(again, key) or not torch.equal(
            fingerprints(batch, rows), fingerprints(again, rows)
        ):
            what = "its samples are drawn anew each time (augmented, or with negatives)"
            raise ConfigError(where, what, f"set {WHERE}: none")
        return key

    def fill(self, store: LogitStore, dataset: Any, key: str) -> None:
        """Every row that is not there yet; the next batch is loaded while the teacher looks at one."""
        size = self.run.batch_size_eval
        begin = store.rows_done(size)
        if begin:
            log.info("logits of the teacher: going on at sample %d of %d", begin, len(dataset))
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
        """Which samples could be read, and the batch of those."""
        found = [sample for sample in samples if sample is not None]
        batch = to_device(dataset.collater(found), self.device, self.normalizer) if found else {}
        return [sample is not None for sample in samples], batch


def load(dataset: Any, index: int, seed: int = 1) -> Any:
    """A sample; None where it cannot be read, which is counted where training meets it."""
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
    """float32 [rows, C]; raises ConfigError where a model answers otherwise, as those that write words do."""
    if logits.dim() != 2 or len(logits) != rows:
        what = f"the teacher gives logits of {list(logits.shape)} for {rows} samples"
        raise ConfigError(WHERE, what, "set cache: none")
    return logits.float().cpu().numpy()
