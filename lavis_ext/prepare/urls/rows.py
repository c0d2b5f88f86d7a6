"""Annotation files become rows of URL, caption and wanted path, then URL tables, one Parquet file a shard."""

from __future__ import annotations

import csv
import hashlib
import ipaddress
import os
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lavis_ext.common.config.cards import ImageList
from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, UnsafeError
from lavis_ext.common.files import read_object, write_json
from lavis_ext.common.secrets import identity
from lavis_ext.datasets.readers.parse import parse_json, parse_rows
from lavis_ext.datasets.readers.tables import read_text
from lavis_ext.fetch import refuse_unless_remote
from lavis_ext.fetch.safety import is_loopback, is_private, safe_relative
from lavis_ext.prepare.selection import name_fault
from lavis_ext.prepare.urls.job import ASIDE, ListJob

Record = Mapping[str, Any]
BATCH = 4096
LONGEST_CAPTION = 1 << 16
SOURCES = "sources.json"


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


def checked_sources(rows: Iterator[ListedImage], job: ListJob) -> Iterator[ListedImage]:
    """The rows; a file that is there from another URL than its row has now is set aside: it is another image.

    Which URL each file was asked for at is kept in the list's working folder, as a digest without signatures.
    """
    if job.shards:
        yield from rows
        return
    place = job.work / SOURCES
    known = read_object(place)
    now = dict(known)
    for row in rows:
        if row.path and not (row.refusal or row.repeats):
            url = identity(row.url) if "?" in row.url or "@" in row.url else row.url
            now[row.path] = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            if known.get(row.path, now[row.path]) != now[row.path] and (job.target / row.path).is_file():
                set_file_aside(job.target, row.path)
        yield row
    if now != known:
        write_json(place, now)


def set_file_aside(target: Path, path: str) -> None:
    """Move a file below `target` to the same path below ASIDE, over none that lies there."""
    place, count = target / ASIDE / path, 0
    while os.path.lexists(place):
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
    """Records of a CSV or TSV file, line by line: lists of the open web have millions, and one wrong byte in them."""
    csv.field_size_limit(min(sys.maxsize, 1 << 30))
    tab = path.suffix.lower() == ".tsv"
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.reader(file)
            names = list(columns) or next(lines, [])
            for fields in lines:
                yield dict(zip(names, fields, strict=False))
    except csv.Error as error:
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
