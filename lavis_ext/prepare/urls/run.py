"""A list of the open web through img2dataset, from annotation files to images and an account of every sample.

The first pass is over every row, further ones over rows that failed for reasons that may pass.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from lavis_ext.common.errors import ConfigError, IntegrityError, PartialError
from lavis_ext.common.files import decode_json, write_json
from lavis_ext.fetch import Progress, Silent
from lavis_ext.fetch.lock import Ownership
from lavis_ext.prepare.urls.hosted import find_images, set_aside_foreign
from lavis_ext.prepare.urls.job import ListAccount, ListJob, LostImage, Pass, Passing
from lavis_ext.prepare.urls.rows import ROW, ListedImage, TableIndex, fingerprint, read_table, write_rows, write_tables
from lavis_ext.prepare.urls.shards import (
    RowOutcome,
    ShardManifest,
    classify_failure,
    describe,
    is_published,
    publish,
    set_aside,
    shard_path,
)
from lavis_ext.prepare.urls.supervise import run_worker
from lavis_ext.prepare.urls.worker import PassOrder

log = logging.getLogger(__name__)
MARKER = "pass.json"
PULSE = "list.pulse"
SHOWN = 8
Advance = Callable[[int], None]


def read_passes(job: ListJob) -> list[Pass]:
    """The passes that were begun, in order."""
    found: list[Pass] = []
    while (folder := job.work / f"pass-{len(found)}").joinpath(MARKER).exists():
        try:
            raw = decode_json((folder / MARKER).read_text("utf-8"))
            found.append(Pass(folder, job.work / raw["tables"], raw["first"], tuple(raw["hashes"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            way_out = "move the folder away: what it had not published is downloaded again"
            raise IntegrityError(str(folder / MARKER), f"cannot be read: {error}", way_out) from error
    return found


def begin_pass(job: ListJob, number: int, tables: Path, first: int, hashes: Iterable[str]) -> Pass:
    """Make the folders and the marker of a pass whose tables are written."""
    one = Pass(job.work / f"pass-{number}", tables, first, tuple(hashes))
    one.out.mkdir(parents=True, exist_ok=True)
    write_json(one.folder / MARKER, {"tables": str(tables.relative_to(job.work)), "first": first, "hashes": one.hashes})
    return one


def next_shard(passes: Iterable[Pass]) -> int:
    """The number after the last shard; those of a pass in which nothing succeeded were not published."""
    return max((one.first + (one.count if successes(one) else 0) for one in passes), default=0)


def successes(one: Pass) -> int:
    """How many rows of a pass succeeded, by img2dataset's statistics."""
    return sum(int((read_stats(one, shard) or {}).get("successes", 0)) for shard in one.shards)


def read_stats(one: Pass, shard: int) -> dict[str, int] | None:
    """The statistics of a shard, None where it is not complete."""
    try:
        stats: dict[str, int] = decode_json(one.stats(shard).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return stats if one.status(shard).is_file() else None


class ListRun:
    """Finishes passes; `notes` are what the user should know, `bytes` what was downloaded.

    Raises OwnedError where another process has taken over the list.
    """

    def __init__(self, job: ListJob, advance: Advance, owner: Ownership) -> None:
        self._job = job
        self._advance = advance
        self._owner = owner
        self.notes: list[str] = []
        self.bytes = 0

    def finish(self, one: Pass) -> None:
        """Do every shard that is not done, and publish; raises PartialError for what fails again and again."""
        left, crash = self._unfinished(one), None
        for _ in range(self._job.restarts + 1):
            if not left:
                return
            self._owner.require()
            for shard in left:
                one.forget(shard)
            try:
                self._download(one, left)
                crash = None
            except PartialError as error:
                crash = error
            left = self._unfinished(one)
        if left and (crash or self._job.shards):
            names = ", ".join(f"{shard:05d}" for shard in left[:SHOWN])
            way_out = f"see {one.folder / 'order.log'}, then run again"
            raise crash or PartialError(self._job.name, f"shards that could not be made: {names}", way_out)

    def _unfinished(self, one: Pass) -> list[int]:
        silent = one.folder.name != "pass-0" and not successes(one)
        left = [shard for shard in one.shards if read_stats(one, shard) is None]
        if not self._job.shards or (silent and not left):
            return left
        return left + [s for s in one.shards if s not in left and not self._published(one, s)]

    def _published(self, one: Pass, shard: int) -> bool:
        """Publish a complete shard, if it is not yet; False where it has to be made again."""
        tar, input_hash = shard_path(self._job.target, shard), one.input_hash(shard)
        if not one.tar(shard).exists() and is_published(tar, input_hash):
            return True
        stats = read_stats(one, shard) or {}
        try:
            if not one.tar(shard).exists() and not tar.exists():
                return False
            finished = one.tar(shard) if one.tar(shard).exists() else tar
            manifest = describe(finished, input_hash)
            if manifest.samples != stats.get("successes"):
                raise IntegrityError(str(finished), "holds other samples than its statistics say", "")
            self._owner.require()
            if finished != tar:
                self._put_aside(tar)
            publish(one.tar(shard), tar, manifest)
        except IntegrityError as error:
            log.warning("%s", error)
            self._owner.require()
            self._put_aside(tar)
            return False
        return True

    def _put_aside(self, tar: Path) -> None:
        place = set_aside(tar)
        if place is not None:
            self.notes.append(f"{tar.name} was of another list or damaged: it was moved to {place}")

    def _download(self, one: Pass, shards: list[int]) -> None:
        path = one.folder / "order.json"
        self._order(one, set(one.shards) - set(shards)).write(path)
        meter = Meter(one, shards, self._advance)

        def measure() -> tuple[int, ...]:
            self._owner.require(now=False)
            return meter.read()

        try:
            if run_worker(path, one.out, self._job.stall, measure) == "stalled":
                self.notes.append(f"no progress for {self._job.stall:g} s: the download was stopped")
        finally:
            meter.read()
            self.bytes += meter.bytes

    def _order(self, one: Pass, done: set[int]) -> PassOrder:
        job, spec = self._job, self._job.spec
        return PassOrder(
            tables=str(one.tables),
            out=str(one.out),
            target=str(job.target),
            output=spec.output,
            first_shard=one.first,
            done=sorted(done),
            keep=list(spec.keep),
            placeholders=list(spec.placeholders),
            image_size=spec.image_size,
            samples_per_shard=spec.samples_per_shard,
            distributor=job.distributor,
            processes=min(job.process_count, max(1, one.count - len(done))),
            threads=job.threads,
            timeout=job.timeout,
            deadline=job.deadline,
            max_bytes=job.max_bytes,
            allow_private=job.allow_private,
            owner=str(self._owner.path),
            token=self._owner.token,
        )


class Meter:
    """Sums the pulses of the shards of a pass: rows and bytes that are done."""

    def __init__(self, one: Pass, shards: list[int], advance: Advance) -> None:
        self._one = one
        self._open = list(shards)
        self._done = (0, 0)
        self._advance = advance
        self.bytes = 0

    def read(self) -> tuple[int, ...]:
        """(rows, bytes, shards that are left); new bytes are reported to `advance`."""
        rows, size = self._done
        for shard in list(self._open):
            complete = self._one.stats(shard).exists()
            some, more = read_pulse(self._one.pulse(shard))
            rows, size = rows + some, size + more
            if complete:
                self._done = self._done[0] + some, self._done[1] + more
                self._open.remove(shard)
        if size > self.bytes:
            self._advance(size - self.bytes)
            self.bytes = size
        return rows, size, len(self._open)


def read_pulse(path: Path) -> tuple[int, int]:
    """Rows and bytes of a shard so far."""
    try:
        rows, size = path.read_text("ascii").split()
        return int(rows), int(size)
    except (OSError, ValueError):
        return 0, 0


def read_outcomes(one: Pass) -> Iterator[tuple[int, str, str, RowOutcome]]:
    """(row, id, url, outcome) of every row of a pass; rows of which img2dataset wrote no status are unfinished."""
    for shard in one.shards:
        statuses = _read_status(one, shard)
        for row in read_table(one.table(shard)):
            status, message = statuses.get(row.number, (None, None))
            yield row.number, row.id, row.url, classify_failure(status, message)


def _read_status(one: Pass, shard: int) -> dict[int, tuple[str, str | None]]:
    import pyarrow as pa
    from pyarrow import parquet

    if read_stats(one, shard) is None:
        return {}
    try:
        table = parquet.read_table(one.status(shard), columns=[ROW, "status", "error_message"])
    except (pa.ArrowException, OSError):
        return {}
    rows = zip(*(table.column(name).to_pylist() for name in (ROW, "status", "error_message")), strict=True)
    return {row: (status, message) for row, status, message in rows}


def fetch_list(job: ListJob, progress: Progress | None = None) -> ListAccount:
    """Fetch what a list names and is not there; returns the account, whose `check()` raises below the threshold.

    A second call continues where a killed one stopped: finished shards are kept, rows that failed for reasons that may
    pass are tried again, dead links are not. A changed list is noticed by the hashes of its rows. Raises ConfigError
    (keys that cannot be mapped, img2dataset not installed), IntegrityError (annotations), DiskError, OwnedError,
    PartialError (the process that downloads died).
    """
    if find_spec("img2dataset") is None:
        raise ConfigError("img2dataset", "is not installed", "pip install -c constraints.txt img2dataset")
    progress = progress or Silent()
    job.work.mkdir(parents=True, exist_ok=True)
    with Ownership(job.work / "list.owner", job.work / PULSE, job.policy) as owner:
        progress.begin(job.name, None)
        outcome = "failed"
        try:
            account = _Run(job, progress, owner).run()
            outcome = "failed" if account.error else "fetched"
        finally:
            progress.end(job.name, outcome)
    return account


class _Run:
    """One call of `fetch_list`; `_lost` and `_passing` are numbers of rows in the list."""

    def __init__(self, job: ListJob, progress: Progress, owner: Ownership) -> None:
        self._job = job
        self._owner = owner
        self._notes: list[str] = []
        self._lost: dict[int, LostImage] = {}
        self._passing: set[int] = set()
        self._progress = progress
        self._runner = ListRun(job, self._advance, owner)

    def run(self) -> ListAccount:
        """Tables, the first pass, further passes, the account."""
        self._index = self._tables()
        if not read_passes(self._job):
            self._begin(0, None)
        for one in read_passes(self._job):
            self._runner.finish(one)
        self._collect_lost()
        for attempt in range(self._job.passes):
            if not self._passing:
                break
            time.sleep(self._job.backoff * 2**attempt)
            log.info("%s: trying %d again", self._job.name, len(self._passing))
            passes = read_passes(self._job)
            self._runner.finish(self._begin(len(passes), self._passing))
            self._collect_lost()
        return self._account(self._index)

    def _advance(self, count: int) -> None:
        """Report new bytes, and touch the file by which waiting processes see that this one moves."""
        self._progress.advance(self._job.name, count)
        (self._job.work / PULSE).touch()

    @property
    def _list(self) -> Path:
        return self._job.work / "list"

    def _tables(self) -> TableIndex:
        """The URL tables, written again where the annotations or how they are read changed."""
        old = TableIndex.read(self._list)
        if old is not None and old.fingerprint == fingerprint(self._job):
            return old
        new = write_tables(self._job, self._list)
        if old is not None and old.hashes != new.hashes:
            self._changed(old, new)
        new.write(self._list)
        return new

    def _changed(self, old: TableIndex, new: TableIndex) -> None:
        """Remove what was made from other rows: further passes, and for files the first pass, whose images stay."""
        self._owner.require()
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
            self._notes.append(f"shard {shard:05d} is of other rows now: the old one was moved to {place}")

    def _begin(self, number: int, chosen: set[int] | None) -> Pass:
        """Begin a pass over the chosen rows (None: all that are not there)."""
        job = self._job
        self._owner.require()
        if number == 0 and job.shards:
            return begin_pass(job, 0, self._list, 0, self._index.hashes)
        tables = job.work / f"pass-{number}" / "tables"
        shutil.rmtree(tables.parent, ignore_errors=True)
        rows = self._absent() if chosen is None else (row for row in self._rows() if row.number in chosen)
        written = list(write_rows(rows, tables, job.spec.samples_per_shard, job.spec.keep))
        return begin_pass(job, number, tables, next_shard(read_passes(job)), (input_hash for _, input_hash in written))

    def _rows(self) -> Iterator[ListedImage]:
        for path in sorted(self._list.glob("*.parquet")):
            yield from read_table(path)

    def _absent(self) -> Iterator[ListedImage]:
        """Rows whose file is not there; files that are no images are set aside before."""
        for path in sorted(self._list.glob("*.parquet")):
            rows = read_table(path)
            paths = {row.path for row in rows}
            moved = set_aside_foreign(self._job.target, find_images(self._job.target, paths))
            if moved:
                self._notes.append(f"{moved} files that are no images were set aside")
            there = find_images(self._job.target, paths)
            yield from (row for row in rows if row.path not in there)

    def _collect_lost(self) -> None:
        """Which rows have no image, by the last pass that they were in; for files the disk decides."""
        self._lost, self._passing = {}, set()
        for one in read_passes(self._job):
            for row, id, url, outcome in read_outcomes(one):
                self._lost.pop(row, None)
                self._passing.discard(row)
                if outcome.kind != "present":
                    self._lost[row] = LostImage(id, url, outcome.reason, outcome.kind == "corrupt")
                    if outcome.passing:
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
                    self._lost[row.number] = LostImage(row.id, row.url, Passing.GONE.value)
                    self._passing.add(row.number)

    def _account(self, index: TableIndex) -> ListAccount:
        job = self._job
        account = ListAccount(name=job.name, expected=index.expected, threshold=job.threshold, asked=job.max_samples)
        account.present = index.expected - len(self._lost) - len(index.refused)
        account.bytes_moved = self._runner.bytes
        account.notes = [*self._notes, *self._runner.notes]
        if index.repeated:
            account.notes.append(f"{index.repeated} rows name an image that an earlier row names")
        if job.shards:
            manifests = [ShardManifest.read(tar) for tar in sorted(job.target.glob("*.tar"))]
            account.shards = len(manifests)
            account.samples = sum(manifest.samples for manifest in manifests if manifest)
        self._owner.require()
        account.save(job.work, [*index.losses(), *(self._lost[row] for row in sorted(self._lost))])
        return account
