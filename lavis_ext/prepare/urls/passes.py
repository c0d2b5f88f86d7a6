"""The passes over a list on disk: what img2dataset left of each shard, shards that were adopted, outcomes of rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from lavis_ext.common.files import read_file, read_object, replacing, write_json
from lavis_ext.prepare.urls.job import PLACEHOLDER, REPEATS, ListJob, Pass
from lavis_ext.prepare.urls.rows import ListedImage
from lavis_ext.prepare.urls.shards import RowOutcome, classify_failure, is_published, sample_records, shard_path
from lavis_ext.prepare.urls.tables import ROW, read_table

MARKER = "pass.json"
STATUS = [ROW, "status", "error_message", "sha256"]
Advance = Callable[[int], None]
_DIGEST = re.compile("[0-9a-f]{64}")


def read_passes(job: ListJob) -> list[Pass]:
    """The passes that were begun, in order."""
    found: list[Pass] = []
    while (folder := job.work / f"pass-{len(found)}").joinpath(MARKER).exists():
        raw = read_object(folder / MARKER)
        if not {"tables", "first", "hashes"} <= raw.keys():
            break  # it is begun again
        found.append(Pass(folder, job.work / raw["tables"], raw["first"], tuple(raw["hashes"])))
    return found


def begin_pass(job: ListJob, number: int, tables: Path, first: int, hashes: Iterable[str]) -> Pass:
    """Make the folders and the marker of a pass whose tables are written."""
    one = Pass(job.work / f"pass-{number}", tables, first, tuple(hashes))
    one.out.mkdir(parents=True, exist_ok=True)
    write_json(one.folder / MARKER, {"tables": str(tables.relative_to(job.work)), "first": first, "hashes": one.hashes})
    return one


def next_shard(passes: Iterable[Pass]) -> int:
    """The number after the last shard; those of a further pass in which nothing succeeded were not published."""
    return max((one.first + (0 if is_silent(one) else one.count) for one in passes), default=0)


def is_silent(one: Pass) -> bool:
    """Whether nothing succeeded in a further pass that is complete: its shards are not published."""
    complete = all(read_stats(one, shard) for shard in one.shards)
    return one.folder.name != "pass-0" and complete and not successes(one)


def successes(one: Pass) -> int:
    """How many rows of a pass succeeded, by img2dataset's statistics."""
    return sum(int((read_stats(one, shard) or {}).get("successes", 0)) for shard in one.shards)


def read_stats(one: Pass, shard: int) -> dict[str, int] | None:
    """The statistics of a shard, None where it is not complete."""
    stats = read_object(one.stats(shard))
    return stats if isinstance(stats.get("successes"), int) and one.status(shard).is_file() else None


def adopt(one: Pass, shard: int, job: ListJob) -> bool:
    """Take a shard that lies there with the manifest of a pass's very rows, but without the statistics of its download:
    it was copied here, or the bookkeeping was deleted. Rows that it lacks are unfinished."""
    import pyarrow as pa
    from pyarrow import parquet

    tar = shard_path(job.target, shard)
    if not is_published(tar, one.input_hash(shard)):
        return False
    records = list(sample_records(tar))
    columns = {ROW: [record.get(ROW) for record in records], "sha256": [record.get("sha256") for record in records]}
    columns |= {"status": ["success"] * len(records), "error_message": [None] * len(records)}
    try:
        status = pa.table(columns)
    except pa.ArrowException:
        return False
    with replacing(one.status(shard)) as part:
        parquet.write_table(status, part)
    write_json(one.stats(shard), {"count": len(read_table(one.table(shard))), "successes": len(records)})
    return True


def is_complete(one: Pass, shard: int) -> bool:
    """Whether a shard has its statistics, and a status of each row that can be read."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return read_stats(one, shard) is not None and bool(parquet.read_table(one.status(shard), columns=STATUS))
    except (pa.ArrowException, OSError):
        return False


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
        rows, size = read_file(path).decode("ascii").split()
        return int(rows), int(size)
    except (OSError, ValueError):
        return 0, 0


def read_outcomes(one: Pass, placeholders: Collection[str] = ()) -> Iterator[tuple[ListedImage, RowOutcome]]:
    """Every row of a pass with its outcome; rows of which img2dataset wrote no status are unfinished.

    An image that came before its digest was declared one of the `placeholders` is one of them.
    """
    for shard in one.shards:
        statuses = read_status(one, shard)
        for row in read_table(one.table(shard)):
            status, message, digest = statuses.get(row.number, (None, None, None))
            if digest in placeholders:
                status, message = "failed_to_download", PLACEHOLDER
            yield row, classify_failure(status, message)


def read_status(one: Pass, shard: int) -> dict[int, tuple[str, str | None, str | None]]:
    """Number of each row of a shard → its status, error message and digest; empty where it is not complete."""
    import pyarrow as pa
    from pyarrow import parquet

    if read_stats(one, shard) is None:
        return {}
    try:
        table = parquet.read_table(one.status(shard), columns=STATUS)
        rows = zip(*(table.column(name).to_pylist() for name in STATUS), strict=True)
    except (pa.ArrowException, OSError, KeyError):
        return {}
    return {row: (status, message, digest) for row, status, message, digest in rows}


def count_repeated(passes: Sequence[Pass], placeholders: Collection[str]) -> dict[str, int]:
    """Digests that at least REPEATS of the images have, as they came, the most frequent first; without placeholders.

    A list may have many millions: first by eight bytes of each digest, then in full.
    """
    import numpy as np

    parts = [np.fromiter((int(d[:16], 16) for d in _digests(one)), np.uint64) for one in passes]
    values, counts = np.unique(np.concatenate(parts) if parts else np.empty(0, np.uint64), return_counts=True)
    often = set(values[counts >= REPEATS].tolist())
    if not often:
        return {}
    found = Counter(digest for one in passes for digest in _digests(one) if int(digest[:16], 16) in often)
    often_in_full = ((digest, count) for digest, count in found.most_common() if count >= REPEATS)
    return {digest: count for digest, count in often_in_full if digest not in placeholders}


def _digests(one: Pass) -> Iterator[str]:
    for shard in one.shards:
        statuses = read_status(one, shard).values()
        yield from (
            digest for status, _, digest in statuses if status == "success" and digest and _DIGEST.fullmatch(digest)
        )
