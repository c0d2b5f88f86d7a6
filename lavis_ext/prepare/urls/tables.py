"""URL tables: one Parquet file a shard, with a hash of its rows, by which a changed list is noticed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import read_object, write_json
from lavis_ext.common.secrets import redact, redact_url
from lavis_ext.prepare.urls.job import ListJob, LostImage
from lavis_ext.prepare.urls.rows import ListedImage, checked_sources, distinct_rows

ROW, ID, PATH, LISTED = "list_row", "list_id", "list_path", "list_url"
"""Columns of tables beside `url` and `caption`; `list_url` where `url` is that of a mirror."""
MARKER = "tables.json"


@dataclass(frozen=True)
class TableIndex:
    """What the tables of a list hold: samples that are expected, one hash per table, rows that were refused."""

    fingerprint: str
    expected: int
    hashes: tuple[str, ...]
    refused: tuple[tuple[str, str, str, int], ...] = ()
    """Id, address without what may be a secret, reason, number of the row."""
    repeated: int = 0
    limit: int | None = -1
    """How many samples were wanted, None: all; -1 in the index of an older version, which does not say."""
    image_size: int = 0
    """Of the shards; 0 in the index of an older version."""

    def losses(self) -> Iterator[LostImage]:
        """The refused rows."""
        return (LostImage(id, url, reason, row=row) for id, url, reason, row in self.refused)

    @classmethod
    def read(cls, folder: Path) -> TableIndex | None:
        """The index of a folder of tables, None where there is none yet, or where a table cannot be read."""
        raw = read_object(folder / MARKER)
        try:
            refused = tuple((id, url, reason, row[0] if row else -1) for id, url, reason, *row in raw["refused"])
            found = cls(**{**raw, "hashes": tuple(raw["hashes"]), "refused": refused})
        except (ValueError, TypeError, KeyError):
            return None
        paths = (folder / f"{number:05d}.parquet" for number in range(len(found.hashes)))
        return found if all(map(is_readable, paths)) else None

    def write(self, folder: Path) -> None:
        """Write the index, after its tables."""
        write_json(folder / MARKER, asdict(self))


def fingerprint(job: ListJob) -> str:
    """What the tables depend on: the files of the list, how they are read, how many samples are wanted."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in job.annotations]
    text = json.dumps([files, asdict(job.spec), job.max_samples, job.allow_private, job.mirrors.base])
    return hashlib.sha256(text.encode()).hexdigest()


def write_tables(job: ListJob, folder: Path) -> TableIndex:
    """Read the annotations, write a table per shard, return the index; raises ConfigError for a list without rows.

    Of rows that want the same path the first one counts.
    """
    refused: list[tuple[str, str, str, int]] = []
    repeated = [0]
    rows = distinct_rows(job.annotations, job.spec, job.max_samples, job.allow_private, job.target)
    good = _wanted(checked_sources(rows, job), refused, repeated)
    first = next(good, None)
    if first is None and not refused:
        names = ", ".join(str(path) for path in job.annotations) or "(no file)"
        raise ConfigError(names, "lists no image", "see that it is the right file")
    hashes = list(write_rows(good if first is None else chain([first], good), folder, job))
    count = sum(number for number, _ in hashes)
    return TableIndex(
        fingerprint=fingerprint(job),
        expected=count + len(refused),
        hashes=tuple(digest for _, digest in hashes),
        refused=tuple(refused),
        repeated=repeated[0],
        limit=job.max_samples,
        image_size=job.spec.image_size,
    )


def _wanted(
    rows: Iterable[ListedImage], refused: list[tuple[str, str, str, int]], repeated: list[int]
) -> Iterator[ListedImage]:
    for row in rows:
        if row.refusal:
            refused.append((redact(row.id), redact_url(row.url), redact(row.refusal), row.number))
        elif row.repeats:
            repeated[0] += 1
        else:
            yield row


def write_rows(rows: Iterator[ListedImage], folder: Path, job: ListJob) -> Iterator[tuple[int, str]]:
    """Write tables of as many rows as a shard has; yields how many rows each has and their hash.

    URLs are asked for at the job's mirror; the hash is of the rows as they are listed: a mirror changes nothing.
    """
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while block := list(islice(rows, job.spec.samples_per_shard)):
        columns: dict[str, Any] = {
            ROW: pa.array([row.number for row in block], pa.int64()),
            ID: pa.array([row.id for row in block], pa.string()),
            PATH: pa.array([row.path for row in block], pa.string()),
            "url": pa.array([job.mirrors.locate(row.url) for row in block], pa.string()),
            "caption": pa.array([row.caption for row in block], pa.string()),
        }
        if job.mirrors:
            columns[LISTED] = pa.array([row.url for row in block], pa.string())
        columns |= {key: _column([row.more[key] for row in block]) for key in job.spec.keep}
        part = folder / f"{number:05d}.part"
        parquet.write_table(pa.table(columns), part)
        part.replace(part.with_suffix(".parquet"))
        yield len(block), hash_rows(block)
        number += 1


def _column(values: Sequence[Any]) -> Any:
    """An Arrow array of the type that most values have; None in the place of one of another type."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        kinds = Counter(pa.array([value]).type for value in values if value is not None and _fits(value))
        kind = kinds.most_common(1)[0][0] if kinds else pa.null()
        return pa.array([value if _fits(value, kind) else None for value in values], kind)


def _fits(value: Any, kind: Any = None) -> bool:
    """Whether Arrow takes a value, of that type; it would take a text for a list of its characters."""
    import pyarrow as pa

    if kind is not None and isinstance(value, str) != pa.types.is_string(kind):
        return False
    try:
        pa.array([value], kind)
    except (pa.ArrowException, OverflowError):
        return False
    return True


def hash_rows(rows: Sequence[ListedImage]) -> str:
    """sha256 of what a shard is made from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.number, row.id, row.url, row.path, row.caption, row.more], default=str).encode())
    return digest.hexdigest()


def table_folders(job: ListJob) -> list[tuple[Path, TableIndex]]:
    """The folders of tables that were written to the end, the newest last: `list`, `list-1`, …"""
    found = [(path, TableIndex.read(path)) for path in (job.work / "list", *job.work.glob("list-*"))]
    complete = [(path, index) for path, index in found if index is not None]
    return sorted(complete, key=lambda pair: int(pair[0].name.partition("-")[2] or 0))


def is_readable(path: Path) -> bool:
    """Whether a table is whole."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return bool(parquet.read_table(path, columns=[ROW, ID, PATH, "url"]).num_columns == 4)
    except (pa.ArrowException, OSError):
        return False


def read_tables(folder: Path) -> Iterator[ListedImage]:
    """The rows of all tables of a folder, in order."""
    for path in sorted(folder.glob("*.parquet")):
        yield from read_table(path)


def read_table(path: Path) -> list[ListedImage]:
    """The rows of one table, with the URLs that are listed."""
    from pyarrow import parquet

    fixed = {ROW, ID, PATH, LISTED, "url", "caption"}
    return [
        ListedImage(
            record[ROW],
            record[ID],
            record.get(LISTED) or record["url"],
            record[PATH],
            record["caption"],
            {key: value for key, value in record.items() if key not in fixed},
        )
        for record in parquet.read_table(path).to_pylist()
    ]
