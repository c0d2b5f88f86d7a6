"""A list of the open web through img2dataset, from annotation files to images and an account of every sample.

The first pass is over every row, further ones over rows that failed for reasons that may pass.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice, takewhile, zip_longest
from pathlib import Path

from lavis_ext.common.errors import ConfigError, IntegrityError, PartialError
from lavis_ext.fetch import Progress, Silent
from lavis_ext.fetch.lock import Ownership
from lavis_ext.prepare.records import disk_errors
from lavis_ext.prepare.urls.cluster import require_installed
from lavis_ext.prepare.urls.hosted import find_images, set_aside_foreign
from lavis_ext.prepare.urls.job import PLACEHOLDER, ListAccount, ListJob, LostImage, Pass, Passing, origin_of
from lavis_ext.prepare.urls.passes import (
    Advance,
    Meter,
    adopt,
    begin_pass,
    count_repeated,
    is_complete,
    is_silent,
    next_shard,
    read_outcomes,
    read_passes,
    read_stats,
    read_status,
)
from lavis_ext.prepare.urls.rows import ListedImage, set_file_aside
from lavis_ext.prepare.urls.shards import (
    ShardManifest,
    describe,
    is_published,
    publish,
    sample_records,
    set_aside,
    shard_path,
)
from lavis_ext.prepare.urls.supervise import run_worker
from lavis_ext.prepare.urls.tables import (
    ID,
    LISTED,
    ROW,
    TableIndex,
    fingerprint,
    is_readable,
    read_table,
    read_tables,
    table_folders,
    write_rows,
    write_tables,
)
from lavis_ext.prepare.urls.worker import PassOrder

log = logging.getLogger(__name__)
PULSE = "list.pulse"
SHOWN = 8


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
        left, crash, tries = self._unfinished(one), None, 0
        while left and tries <= self._job.restarts:
            self._owner.require()
            before = len(left)
            for shard in left:
                one.forget(shard)
            try:
                self._download(one, left)
                crash = None
            except PartialError as error:
                crash = error
            left = self._unfinished(one)
            tries += len(left) >= before
        if left and (crash or self._job.shards):
            names = ", ".join(f"{shard:05d}" for shard in left[:SHOWN])
            way_out = f"see {one.folder / 'order.log'}, then run again"
            raise crash or PartialError(self._job.name, f"shards that could not be made: {names}", way_out)

    def _unfinished(self, one: Pass) -> list[int]:
        left = [shard for shard in one.shards if not is_complete(one, shard)]
        left = [shard for shard in left if not (self._job.shards and adopt(one, shard, self._job))]
        if not self._job.shards or is_silent(one):
            return left
        return left + [s for s in one.shards if s not in left and not self._published(one, s)]

    def _held(self, one: Pass, shards: Collection[int]) -> set[int]:
        """Rows of shards that need not be asked for: their file is there, or later passes have them in their shards,
        and a shard that is made again must not have them too."""
        if not self._job.shards:
            listed = [row for shard in shards for row in read_table(one.table(shard))]
            there = find_images(self._job.target, {row.path for row in listed})
            return {row.number for row in listed if row.path in there}
        later = [other for other in read_passes(self._job) if other.first > one.first]
        if not later:
            return set()
        rows = {row.number for shard in shards for row in read_table(one.table(shard))}
        statuses = (read_status(other, shard) for other in later for shard in other.shards)
        return {row for found in statuses for row, (status, *_) in found.items() if status == "success" and row in rows}

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
            if run_worker(path, self._job.stall, measure) == "stalled":
                self.notes.append(f"no progress for {self._job.stall:g} s: the download was stopped")
        finally:
            meter.read()
            self.bytes += meter.bytes

    def _order(self, one: Pass, done: set[int]) -> PassOrder:
        from pyarrow import parquet

        job, spec = self._job, self._job.spec
        listed = one.count and LISTED in parquet.read_schema(one.table(one.first)).names
        return PassOrder(
            tables=str(one.tables),
            out=str(one.out),
            target=str(job.target),
            output=spec.output,
            first_shard=one.first,
            done=sorted(done),
            skip=sorted(self._held(one, set(one.shards) - done)),
            keep=[*spec.keep, *([LISTED] if listed else [])],
            placeholders=list(spec.placeholders),
            digests=self._digests(one, set(one.shards) - done),
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

    def _digests(self, one: Pass, shards: set[int]) -> dict[str, str]:
        mirrors = self._job.mirrors
        if not mirrors or mirrors.manifest is None:
            return {}
        urls = (mirrors.locate(row.url) for shard in shards for row in read_table(one.table(shard)))
        return {url: digest for url in urls if (digest := mirrors.digest(url)) is not None}


def fetch_list(job: ListJob, progress: Progress | None = None) -> ListAccount:
    """Fetch what a list names and is not there; returns the account, whose `check()` raises below the threshold.

    A second call continues where a killed one stopped: finished shards are kept, rows that failed for reasons that may
    pass are tried again, dead links are not. A changed list is noticed by the hashes of its rows. Raises ConfigError
    (keys that cannot be mapped, img2dataset not installed), UsageError (a distributor that is not), DamagedList,
    DiskError, OwnedError, PartialError (the process that downloads died).
    """
    if find_spec("img2dataset") is None:
        raise ConfigError("img2dataset", "is not installed", "pip install -c constraints.txt img2dataset")
    require_installed(job.distributor)
    progress = progress or Silent()
    with disk_errors(job.work), ExitStack() as stack:
        job.work.mkdir(parents=True, exist_ok=True)
        owner = stack.enter_context(Ownership(job.work / "list.owner", job.work / PULSE, job.policy))
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
        dropped = self._drop_unreadable()
        self._index = self._tables()
        for path in self._job.damaged:
            if self._job.shards:
                self._note_aside(set_aside(path), "was damaged")
            elif path.is_file():
                set_file_aside(self._job.target, path.relative_to(self._job.target).as_posix())
        if not read_passes(self._job):
            self._begin(0, self._rows())
            dropped = True
        if dropped and self._job.shards:
            self._adopt_further()
        for one in read_passes(self._job):
            self._runner.finish(one)
        self._collect_lost()
        for attempt in range(self._job.passes):
            if not self._passing:
                break
            time.sleep(self._job.backoff * 2**attempt)
            log.info("%s: trying %d again", self._job.name, len(self._passing))
            passes = read_passes(self._job)
            self._runner.finish(self._begin(len(passes), (row for row in self._rows() if row.number in self._passing)))
            self._collect_lost()
        return self._account(self._index)

    def _advance(self, count: int) -> None:
        """Report new bytes, and touch the file by which waiting processes see that this one moves."""
        self._progress.advance(self._job.name, count)
        (self._job.work / PULSE).touch()

    def _tables(self) -> TableIndex:
        """The URL tables: those that are there, unless the list, or how it is read, changed.

        Tables of fewer samples than were wanted before are not made: nothing that is there is given up. New ones go to
        a folder of their own, since the passes are over the rows of the older ones.
        """
        job, folders = self._job, table_folders(self._job)
        self._list, old = folders[-1] if folders else (job.work / "list", None)
        wider = old is not None and old.limit != -1 and (old.limit is None or (job.max_samples or 1 << 62) <= old.limit)
        if old is not None and wider:
            self._job = replace(job, max_samples=old.limit)
        if old is not None and old.fingerprint == fingerprint(self._job):
            return old
        self._job = job
        before = self._list
        if old is not None:
            self._list = job.work / f"list-{int(before.name.partition('-')[2] or 0) + 1}"
        shutil.rmtree(self._list, ignore_errors=True)
        new = write_tables(job, self._list)
        passes = read_passes(job)
        if passes and old is not None:
            self._renew(passes, before, old, new)
        elif passes and job.shards:  # what the passes were over is not known any more, but for their hashes
            self._renew(passes, None, replace(new, hashes=passes[0].hashes), new)
        new.write(self._list)
        used = {self._list, *(one.tables for one in read_passes(job))}
        for folder, _ in folders:
            if folder not in used:
                shutil.rmtree(folder)
        return new

    def _renew(self, passes: Sequence[Pass], before: Path | None, old: TableIndex, new: TableIndex) -> None:
        """Keep what was made from rows that the list still has; a list that only grew gets a pass over what is new.

        Of any other, what was made from other rows goes: further passes, and for files the first pass, whose images
        stay.
        """
        self._owner.require()
        job, image_size = self._job, old.image_size or new.image_size
        resized = job.shards and image_size != new.image_size
        if old.hashes == new.hashes and not resized:
            if job.shards and passes[0].tables == before:
                begin_pass(job, 0, self._list, 0, passes[0].hashes)  # whose URLs are of the mirror that is named now
            return
        if not resized and before is not None and self._has_rows_of(before):
            self._notes.append("the list grew since the last run")
            last, new_rows = read_tables(passes[-1].tables), self._rows_beside(before)
            if not all(mine == row for mine, row in zip_longest(last, new_rows)):  # else a killed run has begun it
                self._begin(len(passes), self._rows_beside(before))
            return
        self._notes.append("the list changed since the last run")
        for one in passes[1:] if job.shards else passes:
            for shard in one.shards if job.shards else ():
                self._note_aside(set_aside(shard_path(job.target, shard)), "is of other rows now")
            shutil.rmtree(one.folder)
        if not job.shards:
            return
        made = passes[0].hashes
        for shard in range(max(len(made), len(new.hashes))):
            if resized or made[shard : shard + 1] != new.hashes[shard : shard + 1]:
                passes[0].forget(shard)
                self._note_aside(set_aside(shard_path(job.target, shard)), "is of other rows now")
        begin_pass(job, 0, self._list, 0, new.hashes)

    def _has_rows_of(self, before: Path) -> bool:
        """Whether the list has every row of older tables, in their order."""
        rows = self._rows()
        return all(any(self._same(row, one) for one in rows) for row in read_tables(before))

    def _rows_beside(self, before: Path) -> Iterator[ListedImage]:
        """The rows that older tables, of which all are in the list, do not have."""
        known = read_tables(before)
        next_known = next(known, None)
        for row in self._rows():
            if next_known is not None and self._same(next_known, row):
                next_known = next(known, None)
            else:
                yield row

    def _same(self, old: ListedImage, new: ListedImage) -> bool:
        """Tables of older versions have the mirror's URLs."""
        return old == new or old == replace(new, url=self._job.mirrors.locate(new.url))

    def _note_aside(self, place: Path | None, why: str) -> None:
        if place is not None:
            self._notes.append(f"shard {place.name.partition('.')[0]} {why}: the old one was moved to {place}")

    def _begin(self, number: int, rows: Iterator[ListedImage]) -> Pass:
        """Begin a pass over these rows; of files, over those that are not there."""
        job = self._job
        self._owner.require()
        if number == 0 and job.shards:
            return begin_pass(job, 0, self._list, 0, self._index.hashes)
        tables = job.work / f"pass-{number}" / "tables"
        shutil.rmtree(tables.parent, ignore_errors=True)
        hashes = tuple(digest for _, digest in write_rows(rows if job.shards else self._absent(rows), tables, job))
        return begin_pass(job, number, tables, next_shard(read_passes(job)), hashes)

    def _drop_unreadable(self) -> bool:
        """Forget the first pass with a table that cannot be read, and those after it; whether there was one."""
        passes = read_passes(self._job)
        sound = list(takewhile(lambda one: all(is_readable(one.table(shard)) for shard in one.shards), passes))
        for one in passes[len(sound) :]:
            shutil.rmtree(one.folder)
        return len(sound) < len(passes)

    def _adopt_further(self) -> None:
        """Begin a pass over the rows of each shard that is of none yet, then one over the rows that are in none."""
        for tar in sorted(self._job.target.glob("*.tar")):
            manifest, passes = ShardManifest.read(tar), read_passes(self._job)
            number = int(tar.stem) if tar.stem.isdecimal() else -1
            if manifest is None or number < 0 or any(number in one.shards for one in passes):
                continue
            ids = {record.get(ROW): record.get(ID) for record in sample_records(tar)}
            rows = [row for row in self._rows() if ids.get(row.number) == row.id]
            tables = self._job.work / f"pass-{len(passes)}" / "tables"
            shutil.rmtree(tables.parent, ignore_errors=True)
            if len(list(write_rows(iter(rows), tables, self._job))) == 1:
                one = begin_pass(self._job, len(passes), tables, number, (manifest.input_hash,))
                adopt(one, number, self._job)
        passes = read_passes(self._job)
        covered = {row.number for one in passes for shard in one.shards for row in read_table(one.table(shard))}
        rest = [row for row in self._rows() if row.number not in covered]
        if rest:
            self._begin(len(passes), iter(rest))

    def _rows(self) -> Iterator[ListedImage]:
        return read_tables(self._list)

    def _absent(self, rows: Iterator[ListedImage]) -> Iterator[ListedImage]:
        """Rows whose file is not there; files that are no images are set aside before."""
        while block := list(islice(rows, self._job.spec.samples_per_shard)):
            paths = {row.path for row in block}
            self._notes += set_aside_foreign(self._job.target, paths)
            there = find_images(self._job.target, paths)
            yield from (row for row in block if row.path not in there)

    def _collect_lost(self) -> None:
        """Which rows have no image, by the last pass that they were in; for files the disk decides."""
        self._lost, self._passing = {}, set()
        for one in read_passes(self._job):
            for row, outcome in read_outcomes(one, self._job.spec.placeholders):
                self._lost.pop(row.number, None)
                self._passing.discard(row.number)
                if outcome.kind != "present":
                    self._lost[row.number] = LostImage.of(row, outcome.reason, outcome.kind == "corrupt")
                    if outcome.passing:
                        self._passing.add(row.number)
                    if row.path and outcome.reason == PLACEHOLDER and (self._job.target / row.path).is_file():
                        set_file_aside(self._job.target, row.path)
        if not self._job.shards:
            self._compare_with_disk()

    def _compare_with_disk(self) -> None:
        """Files that came since from elsewhere count, if they are images."""
        for path in sorted(self._list.glob("*.parquet")):
            rows = read_table(path)
            there = find_images(self._job.target, {row.path for row in rows})
            new = {row.path for row in rows if row.path in there and row.number in self._lost}
            if set_aside_foreign(self._job.target, new):
                there = find_images(self._job.target, {row.path for row in rows})
            for row in rows:
                if row.path in there:
                    self._lost.pop(row.number, None)
                    self._passing.discard(row.number)
                elif row.number not in self._lost:
                    self._lost[row.number] = LostImage.of(row, Passing.GONE.value)
                    self._passing.add(row.number)

    def _account(self, index: TableIndex) -> ListAccount:
        job = self._job
        account = ListAccount(name=job.name, expected=index.expected, threshold=job.threshold, asked=job.max_samples)
        account.present = index.expected - len(self._lost) - len(index.refused)
        account.bytes_moved = self._runner.bytes
        account.origin = origin_of(job)
        account.repeated = count_repeated(read_passes(job), job.spec.placeholders)
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
