"""Annotation files become rows of URL, caption and wanted path, then URL tables, one Parquet file a shard."""

from __future__ import annotations

import csv
import hashlib
import ipaddress
import json
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lavis_ext.common.config.cards import ImageList
from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, UnsafeError
from lavis_ext.common.files import decode_json, write_json
from lavis_ext.datasets.readers.parse import parse_json, parse_rows, read_text
from lavis_ext.fetch import refuse_unless_remote
from lavis_ext.fetch.safety import is_loopback, is_private, safe_relative
from lavis_ext.prepare.urls.job import ListJob, LostImage

Record = Mapping[str, Any]
BATCH = 4096
LONGEST_CAPTION = 1 << 16


@dataclass(frozen=True)
class ListedImage:
    """One image that is wanted; `refusal` says why it is not requested, "" if it is."""

    number: int
    id: str
    url: str
    path: str
    caption: str = ""
    more: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""


class Text(str):
    """A value in a path pattern: `{image}` unchanged, `{image.name}` its last part, `{image.stem}` without suffix."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The last part of a path or URL."""
        path = urlsplit(self).path if "://" in self else str(self)
        return PurePosixPath(unquote(path)).name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.name).stem


def read_rows(
    paths: Sequence[Path], spec: ImageList, limit: int | None = None, allow_private: bool = False
) -> Iterator[ListedImage]:
    """The first `limit` rows; raises ConfigError for missing keys, IntegrityError for files that cannot be read."""
    number = 0
    for path in paths:
        left = None if limit is None else limit - number
        for record in islice(read_records(path, spec), left):
            yield make_row(number, record, spec, allow_private)
            number += 1


def make_row(number: int, record: Record, spec: ImageList, allow_private: bool = False) -> ListedImage:
    """A record whose keys are mapped already: `url`, `caption`, `id`, the kept ones, and its own for the path."""
    url = plain_url(record.get("\0url"))
    refusal = refuse_row(url, allow_private)
    path = ""
    if spec.output == "files" and not refusal:
        try:
            path = place(record, url, spec.path)
        except UnsafeError as error:
            refusal = f"refused: {error.problems[0].what}"
    caption = clean_text(record.get("\0caption"))
    more = {key: record.get(key) for key in spec.keep}
    return ListedImage(number, clean_text(record.get("\0id")) or path or str(number), url, path, caption, more, refusal)


def read_records(path: Path, spec: ImageList) -> Iterator[Record]:
    """Records of a file; the values of the keys that the list names are added under \\0url, \\0caption and \\0id."""
    if path.suffix.lower() == ".parquet":
        return _parquet_records(path, spec)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _mapped(_table_records(path, spec.columns), spec, path)
    if spec.records:
        return _mapped(_records_under(path, spec.records), spec, path)
    return _mapped(iter(parse_rows(path)), spec, path)


def map_keys(known: Sequence[str], spec: ImageList, where: str) -> dict[str, str]:
    """Which of a file's keys is the URL, the caption and the id; raises ConfigError where one is missing."""
    url = _first(spec.url_key, known)
    if url is None:
        raise ConfigError(
            where, f"none of the keys {_names(spec.url_key)} is there", f"name one of {_names(known)} as url_key"
        )
    missing = [key for key in spec.keep if key not in known]
    if missing:
        raise ConfigError(where, f"the kept keys {_names(missing)} are not there", f"keep some of {_names(known)}")
    found = {"\0url": url, "\0caption": _first(spec.caption_key, known), "\0id": _first(spec.id_key, known)}
    if found["\0caption"] is None and spec.output == "shards":
        raise ConfigError(
            where,
            f"none of the keys {_names(spec.caption_key)} is there",
            f"name one of {_names(known)} as caption_key",
        )
    return {name: key for name, key in found.items() if key is not None}


def _first(wanted: Sequence[str], known: Sequence[str]) -> str | None:
    lower = {key.lower(): key for key in reversed(known)}
    return next((key for key in wanted if key in known), None) or next(
        (lower[key.lower()] for key in wanted if key.lower() in lower), None
    )


def _names(keys: Sequence[str]) -> str:
    return ", ".join(repr(key) for key in keys) or "(none)"


def _mapped(records: Iterator[Record], spec: ImageList, path: Path) -> Iterator[Record]:
    mapping: dict[str, str] | None = None
    for record in records:
        mapping = map_keys(list(record), spec, str(path)) if mapping is None else mapping
        yield {**record, **{name: record.get(key) for name, key in mapping.items()}}


def _records_under(path: Path, key: str) -> Iterator[Record]:
    value = parse_json(read_text(path), path)
    records = value.get(key) if isinstance(value, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise IntegrityError(
            str(path), f"holds no list of records under '{key}'", "fetch it again, or name another key"
        )
    return iter(records)


def _table_records(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """Records of a CSV or TSV file, line by line: lists of the open web have millions."""
    csv.field_size_limit(min(sys.maxsize, 1 << 30))
    tab = path.suffix.lower() == ".tsv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.reader(file)
            names = list(columns) or next(lines, [])
            for fields in lines:
                yield dict(zip(names, fields, strict=False))
    except (csv.Error, UnicodeDecodeError) as error:
        raise IntegrityError(str(path), f"not readable as a table ({error})", "fetch it again") from error


def _parquet_records(path: Path, spec: ImageList) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        mapping = map_keys(file.schema_arrow.names, spec, str(path))
        in_path = {name.partition(".")[0] for _, name, _, _ in string.Formatter().parse(spec.path) if name}
        wanted = {*mapping.values(), *spec.keep, *(in_path & set(file.schema_arrow.names))}
        for batch in file.iter_batches(BATCH, columns=sorted(wanted)):
            for record in batch.to_pylist():
                yield {**record, **{name: record[key] for name, key in mapping.items()}}
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(str(path), f"not a whole Parquet file ({error})", "fetch it again") from error


def place(record: Record, url: str, pattern: str) -> str:
    """Where an image goes below the list's folder; raises ConfigError for a missing key, UnsafeError outside."""
    values = {key: Text(value) if isinstance(value, str) else value for key, value in record.items()}
    try:
        path = pattern.format_map({**values, "url": Text(url)})
    except (KeyError, AttributeError, ValueError) as error:
        keys = [key for key in record if not key.startswith("\0")]
        raise ConfigError(f"path pattern '{pattern}'", f"cannot be filled: {error}", f"use {_names(keys)}") from error
    path = safe_relative(path.replace("%", "%25"))
    if not path or ".lavis_ext" in path.split("/"):
        raise UnsafeError(path, "no name for the image", "")
    return path


def plain_url(value: Any) -> str:
    """A URL as libraries can send it: stripped, and percent-encoded where it is not ASCII."""
    url = value.strip() if isinstance(value, str) else ""
    return quote(url, safe=string.punctuation)


def refuse_row(url: str, allow_private: bool) -> str:
    """Why a URL is not requested (no URL, not http(s), a denied host, an address inside this network), "" if it is."""
    if not url:
        return "no URL"
    try:
        refuse_unless_remote(url)
        host = urlsplit(url).hostname or ""
    except LavisExtError as error:
        return f"refused: {error.problems[0].what}"
    except ValueError:
        return "refused: not a URL"
    if not host:
        return "refused: not a URL"
    return "refused: private address" if not allow_private and leads_home(host) else ""


def leads_home(host: str) -> bool:
    """Whether a host is literally this machine or a private address; names are not resolved."""
    if is_loopback(host):
        return True
    try:
        return is_private(str(ipaddress.ip_address(host.strip("[]"))))
    except ValueError:
        return False


def clean_text(value: Any) -> str:
    """A caption or id as UTF-8 can hold it: no NUL, no lone surrogates, at most LONGEST_CAPTION characters."""
    text = "" if value is None else str(value)
    return text.replace("\0", "")[:LONGEST_CAPTION].encode("utf-8", "replace").decode("utf-8")


# URL tables: one Parquet file per shard, with a hash of its rows, by which a changed list is noticed

ROW, ID, PATH = "list_row", "list_id", "list_path"
MARKER = "tables.json"


@dataclass(frozen=True)
class TableIndex:
    """What the tables of a list hold: samples that are expected, one hash per table, rows that were refused."""

    fingerprint: str
    expected: int
    hashes: tuple[str, ...]
    refused: tuple[tuple[str, str, str], ...] = ()
    repeated: int = 0

    def losses(self) -> Iterator[LostImage]:
        """The refused rows."""
        return (LostImage(*entry) for entry in self.refused)

    @classmethod
    def read(cls, folder: Path) -> TableIndex | None:
        """The index of a folder of tables, None where there is none yet."""
        try:
            raw = decode_json((folder / MARKER).read_text("utf-8"))
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
    text = json.dumps([files, asdict(job.spec), job.max_samples, job.allow_private, job.mirrors.base])
    return hashlib.sha256(text.encode()).hexdigest()


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
    rest = good if first is None else chain([first], good)
    hashes = list(write_rows(rest, folder, size, job.spec.keep, locate))
    count = sum(number for number, _ in hashes)
    index = TableIndex(fingerprint(job), count + len(refused), tuple(h for _, h in hashes), tuple(refused), repeated[0])
    for path in folder.glob("*.parquet"):  # of an older, longer list
        if int(path.stem) >= len(hashes):
            path.unlink()
    return index


def _wanted(
    rows: Iterable[ListedImage], job: ListJob, refused: list[tuple[str, str, str]], repeated: list[int]
) -> Iterator[ListedImage]:
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
    rows: Iterator[ListedImage], folder: Path, size: int, keep: Sequence[str] = (), locate: Callable[[str], str] = str
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


def hash_rows(rows: Sequence[ListedImage]) -> str:
    """sha256 of what a shard is made from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.number, row.id, row.url, row.path, row.caption, row.more], default=str).encode())
    return digest.hexdigest()


def read_table(path: Path) -> list[ListedImage]:
    """The rows of one table."""
    from pyarrow import parquet

    fixed = {ROW, ID, PATH, "url", "caption"}
    return [
        ListedImage(
            record[ROW],
            record[ID],
            record["url"],
            record[PATH],
            record["caption"],
            {key: value for key, value in record.items() if key not in fixed},
        )
        for record in parquet.read_table(path).to_pylist()
    ]
