"""Annotation files become rows of URL, caption and wanted path, then URL tables, one Parquet file a shard."""

from __future__ import annotations

import csv
import hashlib
import ipaddress
import json
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lavis_ext.common.config.cards import ImageList
from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, UnsafeError
from lavis_ext.common.files import read_object, write_json
from lavis_ext.datasets.readers.parse import parse_json, parse_rows, read_text
from lavis_ext.fetch import refuse_unless_remote
from lavis_ext.fetch.safety import is_loopback, is_private, safe_relative
from lavis_ext.prepare.archive_formats import name_fault
from lavis_ext.prepare.urls.job import ASIDE, ListJob, LostImage

Record = Mapping[str, Any]
BATCH = 4096
LONGEST_CAPTION = 1 << 16


class DamagedList(IntegrityError):
    """A file of a list that cannot be read: one that was fetched may be fetched again."""

    def __init__(self, path: Path, what: str, way_out: str = "") -> None:
        super().__init__(str(path), what, way_out)
        self.path = path


@dataclass(frozen=True)
class ListedImage:
    """One image that is wanted; `refusal` says why it is not requested, "" if it is.

    `longer` is a path with folders, for a file name that images of several URLs have; `repeats` says that an earlier
    row names the same image.
    """

    number: int
    id: str
    url: str
    path: str
    caption: str = ""
    more: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    longer: str = field(default="", compare=False)
    repeats: bool = field(default=False, compare=False)


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
    """The first `limit` rows; raises ConfigError for missing keys, DamagedList for a file that cannot be read.

    A record that lacks what the path is made from is refused; where all do, that is a ConfigError.
    """
    number, named = 0, False
    lacking: ConfigError | None = None
    for path in paths:
        left = None if limit is None else limit - number
        try:
            for record in islice(read_records(path, spec), left):
                try:
                    row = make_row(number, record, spec, allow_private)
                    named = named or bool(row.path)
                except ConfigError as error:
                    lacking, id, url = error, clean_text(record.get("\0id")), plain_url(record.get("\0url"))
                    row = ListedImage(number, id or str(number), url, "", refusal="refused: its record names no file")
                yield row
                number += 1
        except IntegrityError as error:
            raise DamagedList(path, error.problems[0].what, error.problems[0].way_out) from error
    if lacking is not None and not named:
        raise lacking


def distinct_rows(
    paths: Sequence[Path],
    spec: ImageList,
    limit: int | None = None,
    allow_private: bool = False,
    target: Path | None = None,
) -> Iterator[ListedImage]:
    """The first `limit` rows, in which a file name stands for one URL; raises as `read_rows`.

    Where images of several URLs would have one name, each goes by the folders that its record gives it (`x/photo.jpg`),
    also if it is the only one of them within the limit; without any it is refused. Below `target` these folders are
    made, since readers look elsewhere for the last part of a name whose folder is not there, and must not find another
    image; what lies there under the name that they share is set aside.
    """
    shared: set[str] = set()
    if spec.output == "files":
        owners: dict[str, int] = {}
        for row in read_rows(paths, spec, None, allow_private):
            if row.path and not row.refusal and owners.setdefault(row.path, hash(row.url)) != hash(row.url):
                shared.add(row.path)
    seen: dict[str, int] = {}
    for row in read_rows(paths, spec, limit, allow_private):
        if row.path in shared and not row.refusal:
            row = _by_folder(row, target)
        if row.path and not row.refusal:
            owner = seen.setdefault(row.path, row.number)
            row = row if owner == row.number else replace(row, repeats=True)
        yield row


def _by_folder(row: ListedImage, target: Path | None) -> ListedImage:
    if target is not None:
        if (target / row.path).is_file():
            set_file_aside(target, row.path)
        if row.longer:
            (target / row.longer).parent.mkdir(parents=True, exist_ok=True)
    if not row.longer:
        return replace(row, refusal="another URL has its file name", path="")
    return replace(row, path=row.longer)


def set_file_aside(target: Path, path: str) -> None:
    """Move a file below `target` to the same path below ASIDE, over none that lies there."""
    place, count = target / ASIDE / path, 0
    while place.exists():
        count += 1
        place = (target / ASIDE / path).with_name(f"{PurePosixPath(path).name[:240]}.{count}")
    place.parent.mkdir(parents=True, exist_ok=True)
    (target / path).replace(place)


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
    more = {key: clean_value(record.get(key)) for key in spec.keep}
    id = clean_text(record.get("\0id")) or path or str(number)
    return ListedImage(number, id, url, path, caption, more, refusal, _longer_path(record, path) if path else "")


def _longer_path(record: Record, path: str) -> str:
    """A value of the record that is the path of the same file with more folders; "" where there is none."""
    for value in record.values():
        if isinstance(value, str) and "://" not in value and value.endswith(f"/{PurePosixPath(path).name}"):
            try:
                longer = check_path(value.lstrip("/"))
            except UnsafeError:
                continue
            if longer != path and "/" in longer:
                return longer
    return ""


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
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise IntegrityError(str(path), f"not a whole Parquet file ({error})", "fetch it again") from error


def place(record: Record, url: str, pattern: str) -> str:
    """Where an image goes below the list's folder; raises ConfigError for a missing key, UnsafeError outside."""
    named = ((key, value) for key, value in record.items() if isinstance(value, str | int))
    values = {key: Text(value) if isinstance(value, str) else value for key, value in named}
    try:
        path = pattern.format_map({**values, "url": Text(url)})
    except (KeyError, AttributeError, ValueError) as error:
        keys = [key for key in record if not key.startswith("\0")]
        raise ConfigError(f"path pattern '{pattern}'", f"cannot be filled: {error}", f"use {_names(keys)}") from error
    return check_path(path)


def check_path(path: str) -> str:
    """A relative path that file systems can hold; raises UnsafeError outside, and for names that are none."""
    path = safe_relative(path.replace("%", "%25"))
    fault = name_fault(path) if path else "no name for the image"
    if fault:
        raise UnsafeError(path[:200], fault, "")
    return path


def plain_url(value: Any) -> str:
    """A URL as libraries can send it: stripped, and percent-encoded where it is not ASCII (lone surrogates too)."""
    url = value.strip() if isinstance(value, str) else ""
    return quote(url, safe=string.punctuation, errors="surrogatepass")


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


def clean_value(value: Any) -> Any:
    """A value that a sample keeps, with `clean_text` in place of each text in it."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(key): clean_value(inner) for key, inner in value.items()}
    return [clean_value(inner) for inner in value] if isinstance(value, list) else value


# URL tables: one Parquet file per shard, with a hash of its rows, by which a changed list is noticed

ROW, ID, PATH, LISTED = "list_row", "list_id", "list_path", "list_url"
"""Columns of tables beside `url` and `caption`; `list_url` where `url` is that of a mirror."""
MARKER = "tables.json"


@dataclass(frozen=True)
class TableIndex:
    """What the tables of a list hold: samples that are expected, one hash per table, rows that were refused."""

    fingerprint: str
    expected: int
    hashes: tuple[str, ...]
    refused: tuple[tuple[str, str, str], ...] = ()
    repeated: int = 0
    limit: int | None = -1
    """How many samples were wanted, None: all; -1 in the index of an older version, which does not say."""
    image_size: int = 0
    """Of the shards; 0 in the index of an older version."""

    def losses(self) -> Iterator[LostImage]:
        """The refused rows."""
        return (LostImage(*entry) for entry in self.refused)

    @classmethod
    def read(cls, folder: Path) -> TableIndex | None:
        """The index of a folder of tables, None where there is none yet."""
        raw = read_object(folder / MARKER)
        try:
            refused = tuple((id, url, reason) for id, url, reason in raw["refused"])
            return cls(**{**raw, "hashes": tuple(raw["hashes"]), "refused": refused})
        except (ValueError, TypeError, KeyError):
            return None

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
    refused: list[tuple[str, str, str]] = []
    repeated = [0]
    rows = distinct_rows(job.annotations, job.spec, job.max_samples, job.allow_private, job.target)
    good = _wanted(rows, refused, repeated)
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
    rows: Iterable[ListedImage], refused: list[tuple[str, str, str]], repeated: list[int]
) -> Iterator[ListedImage]:
    for row in rows:
        if row.refusal:
            refused.append((row.id, row.url, row.refusal))
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
