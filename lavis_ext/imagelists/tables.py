"""URL tables: one Parquet file per shard, with a hash of its rows, by which a changed list is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lavis_ext.errors import ConfigError
from lavis_ext.files import write_json
from lavis_ext.imagelists.account import Loss
from lavis_ext.imagelists.job import ListJob
from lavis_ext.imagelists.rows import Row, read_rows

ROW, ID, PATH = "list_row", "list_id", "list_path"
MARKER = "tables.json"


@dataclass(frozen=True)
class TableIndex:
    """What the tables of a list hold: samples that are expected, one hash per table, rows that were not even tried."""

    fingerprint: str
    expected: int
    hashes: tuple[str, ...]
    refused: tuple[tuple[str, str, str], ...] = ()
    repeated: int = 0

    def losses(self) -> Iterator[Loss]:
        """The refused rows."""
        return (Loss(*entry) for entry in self.refused)

    @classmethod
    def read(cls, folder: Path) -> TableIndex | None:
        """The index of a folder of tables, None where there is none yet."""
        try:
            raw = json.loads((folder / MARKER).read_text("utf-8"))
            refused = tuple((id, url, reason) for id, url, reason in raw["refused"])
            return cls(**{**raw, "hashes": tuple(raw["hashes"]), "refused": refused})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, folder: Path) -> None:
        """Write the index, after its tables."""
        write_json(folder / MARKER, asdict(self))


def fingerprint(job: ListJob) -> str:
    """What the tables depend on: the annotation files, how they are read, how many samples are wanted."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in job.annotations]
    told = json.dumps([files, asdict(job.spec), job.max_samples, job.allow_private, job.mirrors.base])
    return hashlib.sha256(told.encode()).hexdigest()


def write_tables(job: ListJob, folder: Path) -> TableIndex:
    """Read the annotations, write a table per shard, return the index; raises ConfigError for a list without rows.

    Of rows that want the same path the first one counts.
    """
    refused: list[tuple[str, str, str]] = []
    repeated = [0]
    rows = read_rows(job.annotations, job.spec, job.max_samples, job.allow_private)
    good = _wanted(rows, job, refused, repeated)
    first = next(good, None)
    if first is None and not refused:
        names = ", ".join(str(path) for path in job.annotations) or "(no file)"
        raise ConfigError(names, "lists no image", "see that it is the right file")
    size, locate = job.spec.samples_per_shard, job.mirrors.locate
    hashes = list(write_rows(_chain(first, good), folder, size, job.spec.keep, locate))
    count = sum(number for number, _ in hashes)
    index = TableIndex(fingerprint(job), count + len(refused), tuple(h for _, h in hashes), tuple(refused), repeated[0])
    _drop_tables(folder, len(hashes))
    return index


def _chain(first: Row | None, rest: Iterator[Row]) -> Iterator[Row]:
    if first is not None:
        yield first
        yield from rest


def _wanted(
    rows: Iterable[Row], job: ListJob, refused: list[tuple[str, str, str]], repeated: list[int]
) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if row.refusal:
            refused.append((row.id, row.url, row.refusal))
        elif row.path and row.path in seen:
            repeated[0] += 1
        else:
            if row.path:
                seen.add(row.path)
            yield row


def write_rows(
    rows: Iterator[Row], folder: Path, size: int, keep: Sequence[str] = (), locate: Callable[[str], str] = str
) -> Iterator[tuple[int, str]]:
    """Write tables of `size` rows; yields how many rows each has and their hash.

    `locate` says where a URL is asked for; the hash is of the rows as they are listed: a mirror changes nothing.
    """
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while block := list(islice(rows, size)):
        columns: dict[str, Any] = {
            ROW: pa.array([row.number for row in block], pa.int64()),
            ID: pa.array([row.id for row in block], pa.string()),
            PATH: pa.array([row.path for row in block], pa.string()),
            "url": pa.array([locate(row.url) for row in block], pa.string()),
            "caption": pa.array([row.caption for row in block], pa.string()),
        }
        columns |= {key: pa.array([row.more[key] for row in block]) for key in keep}
        part = folder / f"{number:05d}.part"
        parquet.write_table(pa.table(columns), part)
        part.replace(part.with_suffix(".parquet"))
        yield len(block), hash_rows(block)
        number += 1


def hash_rows(rows: Sequence[Row]) -> str:
    """sha256 of what a shard is made from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.number, row.id, row.url, row.path, row.caption, row.more], default=str).encode())
    return digest.hexdigest()


def read_table(path: Path) -> list[Row]:
    """The rows of one table."""
    from pyarrow import parquet

    fixed = {ROW, ID, PATH, "url", "caption"}
    return [
        Row(
            record[ROW],
            record[ID],
            record["url"],
            record[PATH],
            record["caption"],
            {key: value for key, value in record.items() if key not in fixed},
        )
        for record in parquet.read_table(path).to_pylist()
    ]


def _drop_tables(folder: Path, count: int) -> None:
    """Tables of an older, longer list."""
    for path in folder.glob("*.parquet"):
        if int(path.stem) >= count:
            path.unlink()
