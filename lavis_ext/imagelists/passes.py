"""Passes over a list: the first over every row, further ones over what failed for reasons that may pass."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lavis_ext.errors import IntegrityError, PartialError
from lavis_ext.files import write_json
from lavis_ext.imagelists.job import ListJob, Pass
from lavis_ext.imagelists.shards import describe, is_published, publish, set_aside, shard_path
from lavis_ext.imagelists.supervise import run_worker
from lavis_ext.imagelists.tables import ROW, read_table
from lavis_ext.imagelists.verdict import Verdict, judge
from lavis_ext.imagelists.worker import PassOrder

log = logging.getLogger(__name__)

MARKER = "pass.json"
SHOWN = 8
Advance = Callable[[int], None]


def read_passes(job: ListJob) -> list[Pass]:
    """The passes that were begun, in order."""
    found: list[Pass] = []
    while (folder := job.work / f"pass-{len(found)}").joinpath(MARKER).exists():
        raw = json.loads((folder / MARKER).read_text("utf-8"))
        found.append(Pass(folder, job.work / raw["tables"], raw["first"], tuple(raw["hashes"])))
    return found


def begin_pass(job: ListJob, number: int, tables: Path, first: int, hashes: Iterable[str]) -> Pass:
    """Enter a pass whose tables are written."""
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
        stats: dict[str, int] = json.loads(one.stats(shard).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return stats if one.status(shard).is_file() else None


class Runner:
    """Brings passes to their end; `notes` say what was out of the ordinary, `bytes` what came."""

    def __init__(self, job: ListJob, advance: Advance) -> None:
        self._job = job
        self._advance = advance
        self.notes: list[str] = []
        self.bytes = 0

    def finish(self, one: Pass) -> None:
        """Do every shard that is not done, and publish; raises PartialError for what fails again and again."""
        left, crash = self._unfinished(one), None
        for _ in range(self._job.restarts + 1):
            if not left:
                return
            for shard in left:
                one.forget(shard)
            try:
                self._download(one, left)
                crash = None
            except PartialError as error:
                crash = error
            left = self._unfinished(one)
        if left and (crash or self._job.shards):
            told = ", ".join(f"{shard:05d}" for shard in left[:SHOWN])
            way_out = f"see {one.folder / 'order.log'}, then run again"
            raise crash or PartialError(self._job.name, f"shards that could not be made: {told}", way_out)

    def _unfinished(self, one: Pass) -> list[int]:
        silent = one.folder.name != "pass-0" and not successes(one)
        left = [shard for shard in one.shards if read_stats(one, shard) is None]
        if not self._job.shards or (silent and not left):
            return left
        return left + [s for s in one.shards if s not in left and not self._published(one, s)]

    def _published(self, one: Pass, shard: int) -> bool:
        """Whether a complete shard has its name and manifest; it is given them. False: it has to be made anew."""
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
                raise IntegrityError(str(finished), "holds other samples than its statistics tell", "")
            if finished != tar:
                self._put_aside(tar)
            publish(one.tar(shard), tar, manifest)
        except IntegrityError as error:
            log.warning("%s", error)
            self._put_aside(tar)
            return False
        return True

    def _put_aside(self, tar: Path) -> None:
        place = set_aside(tar)
        if place is not None:
            self.notes.append(f"{tar.name} was of another list or damaged: it lies in {place}")

    def _download(self, one: Pass, shards: list[int]) -> None:
        path = one.folder / "order.json"
        self._order(one, set(one.shards) - set(shards)).write(path)
        meter = Meter(one, shards, self._advance)
        try:
            if run_worker(path, one.out, self._job.stall, meter.read) == "stalled":
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
        )


class Meter:
    """Reads the pulses of the shards of a pass: rows and bytes that are through."""

    def __init__(self, one: Pass, shards: list[int], advance: Advance) -> None:
        self._one = one
        self._open = list(shards)
        self._done = (0, 0)
        self._advance = advance
        self.bytes = 0

    def read(self) -> tuple[int, ...]:
        """(rows, bytes, shards that are left); new bytes are passed on."""
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


def read_verdicts(one: Pass) -> Iterator[tuple[int, str, str, Verdict]]:
    """(row, id, url, verdict) of every row of a pass; rows that left no record are unfinished."""
    for shard in one.shards:
        told = _read_status(one, shard)
        for row in read_table(one.table(shard)):
            status, message = told.get(row.number, (None, None))
            yield row.number, row.id, row.url, judge(status, message)


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
