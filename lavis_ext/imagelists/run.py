"""A list of the open web, from annotation files to images and an account of every sample."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from lavis_ext.errors import ConfigError
from lavis_ext.fetch import Progress, Silent
from lavis_ext.fetch.owner import Ownership
from lavis_ext.imagelists.account import Account, Loss
from lavis_ext.imagelists.disk import find_images, set_aside_foreign
from lavis_ext.imagelists.job import ListJob, Pass
from lavis_ext.imagelists.passes import Runner, begin_pass, next_shard, read_passes, read_verdicts
from lavis_ext.imagelists.rows import Row
from lavis_ext.imagelists.shards import Manifest, set_aside, shard_path
from lavis_ext.imagelists.tables import TableIndex, fingerprint, read_table, write_rows, write_tables

log = logging.getLogger(__name__)

PULSE = "list.pulse"


def fetch_list(job: ListJob, progress: Progress | None = None) -> Account:
    """Fetch what a list names and is not there; returns the account, whose `check()` raises below the threshold.

    A second call goes on where a killed one stopped: finished shards are kept, rows that failed for reasons that may
    pass are tried again, dead links are not. A changed list is noticed by the hashes of its rows. Raises ConfigError
    (keys that cannot be mapped, img2dataset not installed), IntegrityError (annotations), DiskError, OwnedError,
    PartialError (the process that downloads died).
    """
    if find_spec("img2dataset") is None:
        raise ConfigError("img2dataset", "is not installed", "pip install -c constraints.txt img2dataset")
    teller = progress or Silent()
    job.work.mkdir(parents=True, exist_ok=True)
    with Ownership(job.work / "list.owner", job.work / PULSE, job.policy):
        teller.begin(job.name, None)
        outcome = "failed"
        try:
            account = _Run(job, teller).run()
            outcome = "failed" if account.error else "fetched"
        finally:
            teller.end(job.name, outcome)
    return account


class _Run:
    def __init__(self, job: ListJob, progress: Progress) -> None:
        self._job = job
        self._notes: list[str] = []
        self._lost: dict[int, Loss] = {}
        self._passing: set[int] = set()
        self._progress = progress
        self._runner = Runner(job, self._advance)

    def run(self) -> Account:
        """Tables, the first pass, further passes, the account."""
        self._index = self._tables()
        if not read_passes(self._job):
            self._begin(0, None)
        for one in read_passes(self._job):
            self._runner.finish(one)
        self._judge()
        for attempt in range(self._job.passes):
            if not self._passing:
                break
            time.sleep(self._job.backoff * 2**attempt)
            log.info("%s: trying %d again", self._job.name, len(self._passing))
            passes = read_passes(self._job)
            self._runner.finish(self._begin(len(passes), self._passing))
            self._judge()
        return self._account(self._index)

    def _advance(self, count: int) -> None:
        """Tell of new bytes, and by a file's time those processes that wait for this one."""
        self._progress.advance(self._job.name, count)
        (self._job.work / PULSE).touch()

    @property
    def _list(self) -> Path:
        return self._job.work / "list"

    def _tables(self) -> TableIndex:
        """The URL tables, written anew where the annotations or their reading changed."""
        old = TableIndex.read(self._list)
        if old is not None and old.fingerprint == fingerprint(self._job):
            return old
        new = write_tables(self._job, self._list)
        if old is not None and old.hashes != new.hashes:
            self._changed(old, new)
        new.write(self._list)
        return new

    def _changed(self, old: TableIndex, new: TableIndex) -> None:
        """Forget what was made from other rows: further passes, and for files the first one, whose images stay."""
        self._notes.append("the list changed since the last run")
        passes = read_passes(self._job)
        for one in passes[1:] if self._job.shards else passes:
            for shard in one.shards if self._job.shards else ():
                self._set_aside(shard)
            shutil.rmtree(one.folder)
        if not (self._job.shards and passes):
            return
        for shard in range(max(len(old.hashes), len(new.hashes))):
            if old.hashes[shard : shard + 1] != new.hashes[shard : shard + 1]:
                passes[0].forget(shard)
                self._set_aside(shard)
        begin_pass(self._job, 0, self._list, 0, new.hashes)

    def _set_aside(self, shard: int) -> None:
        place = set_aside(shard_path(self._job.target, shard))
        if place is not None:
            self._notes.append(f"shard {shard:05d} is of other rows now: the old one lies in {place}")

    def _begin(self, number: int, chosen: set[int] | None) -> Pass:
        """Enter a pass over the chosen rows (None: all that are not there)."""
        job = self._job
        if number == 0 and job.shards:
            return begin_pass(job, 0, self._list, 0, self._index.hashes)
        tables = job.work / f"pass-{number}" / "tables"
        shutil.rmtree(tables.parent, ignore_errors=True)
        rows = self._absent() if chosen is None else (row for row in self._rows() if row.number in chosen)
        written = list(write_rows(rows, tables, job.spec.samples_per_shard, job.spec.keep))
        return begin_pass(job, number, tables, next_shard(read_passes(job)), (input_hash for _, input_hash in written))

    def _rows(self) -> Iterator[Row]:
        for path in sorted(self._list.glob("*.parquet")):
            yield from read_table(path)

    def _absent(self) -> Iterator[Row]:
        """Rows whose file is not there; what lies there and is no image is moved out of the way."""
        for path in sorted(self._list.glob("*.parquet")):
            rows = read_table(path)
            paths = {row.path for row in rows}
            moved = set_aside_foreign(self._job.target, find_images(self._job.target, paths))
            if moved:
                self._notes.append(f"{moved} files that are no images were set aside")
            there = find_images(self._job.target, paths)
            yield from (row for row in rows if row.path not in there)

    def _judge(self) -> None:
        """The last word on every row: later passes count; for files the disk does."""
        self._lost, self._passing = {}, set()
        for one in read_passes(self._job):
            for row, id, url, verdict in read_verdicts(one):
                self._lost.pop(row, None)
                self._passing.discard(row)
                if verdict.kind != "present":
                    self._lost[row] = Loss(id, url, verdict.reason, verdict.kind == "corrupt")
                    if verdict.passing:
                        self._passing.add(row)
        if not self._job.shards:
            self._compare_with_disk()

    def _compare_with_disk(self) -> None:
        for path in sorted(self._list.glob("*.parquet")):
            rows = read_table(path)
            there = find_images(self._job.target, {row.path for row in rows})
            for row in rows:
                if row.path in there:
                    self._lost.pop(row.number, None)
                    self._passing.discard(row.number)
                elif row.number not in self._lost:
                    self._lost[row.number] = Loss(row.id, row.url, "gone from the disk")
                    self._passing.add(row.number)

    def _account(self, index: TableIndex) -> Account:
        job = self._job
        account = Account(name=job.name, expected=index.expected, threshold=job.threshold, asked=job.max_samples)
        account.present = index.expected - len(self._lost) - len(index.refused)
        account.bytes_moved = self._runner.bytes
        account.notes = [*self._notes, *self._runner.notes]
        if index.repeated:
            account.notes.append(f"{index.repeated} rows name an image that an earlier row names")
        if job.shards:
            manifests = [Manifest.read(tar) for tar in sorted(job.target.glob("*.tar"))]
            account.shards = len(manifests)
            account.samples = sum(manifest.samples for manifest in manifests if manifest)
        account.save(job.work, [*index.losses(), *(self._lost[row] for row in sorted(self._lost))])
        return account
