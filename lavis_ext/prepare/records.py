"""What is true of each artifact on this disk: its record, the table of its members, and `inspect`, which compares them
with the files.

`<family>/.lavis_ext/records/<file>.json` is small and says what was taken, from where, how it was verified and what it
put on disk; it is all that `status` and a second `prepare` read. `<file>.members` lists what an archive holds; it is
opened only where single members matter. Everything else below `.lavis_ext/` (journals, ledgers, listings) is a cache.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import logging
import math
import os
import sys
import threading
import time
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, NamedTuple, get_args

from lavis_ext import __version__
from lavis_ext.common.config.cards import Artifact
from lavis_ext.common.errors import ConfigError, LavisExtError
from lavis_ext.common.files import decode_json, read_file, size_of, write_atomic
from lavis_ext.common.secrets import identity
from lavis_ext.fetch.lock import part_bytes
from lavis_ext.fetch.part import boot_id
from lavis_ext.fetch.transfer import Transfer, disk_error

log = logging.getLogger(__name__)
BOOKKEEPING = ".lavis_ext"
FORMAT = 2
STORED, DEFLATED = 0, 8
LOOK = 0.5
"""Seconds for which sizes are looked at before names and times have to do: COCO's 123,287 pictures take 0.4 s here, and
minutes over a network."""
CODES = "QIqQH"
"""Type codes of `array` for the columns of a table: sizes, CRCs, offsets, packed sizes, methods."""
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading damaged bookkeeping raises; JSON that is nested too deep a RecursionError."""
Proof = Literal["sha256", "md5", "size", "crc", "none"]
"""How bytes were verified: by a declared digest or size, or by the CRC-32s in their archive's own directory."""
State = Literal["recorded", "present", "partial", "archive", "missing"]


class Member(NamedTuple):
    """One regular file of an archive.

    `offset` is where its local header (zip) or its data (tar) begins, -1 where there is no random access (tar.gz);
    `packed` bytes are there, compressed by `method` (0 stored, 8 deflate); unpacked they are `size` bytes of that CRC.
    """

    name: str
    size: int
    crc: int
    offset: int
    packed: int
    method: int


# Paths of records


def family_folder(artifact: Artifact) -> str:
    """The first folder of an artifact's storage (`coco`), where its bookkeeping is; "" for a file in the root itself.

    Raises ConfigError for a storage that is absolute or climbs out of the cache root.
    """
    return _parted(artifact)[0]


def _parted(artifact: Artifact) -> tuple[str, PurePosixPath]:
    """`family_folder`, and the path below it."""
    found = _parted_path(artifact.file)
    if found is None:
        what = f"storage '{artifact.storage}' does not lie below the cache root"
        raise ConfigError(f"artifact '{artifact.name}'", what, "write it relative to the cache root, without `..`")
    return found


@lru_cache(maxsize=4096)  # `list` asks ten times of each artifact
def _parted_path(file: str) -> tuple[str, PurePosixPath] | None:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in file:
        return None
    first, *rest = path.parts
    return (first, PurePosixPath(*rest)) if rest else ("", path)


def bookkeeping(root: Path, artifact: Artifact) -> Path:
    """`<cache root>/<family>/.lavis_ext`."""
    return root / family_folder(artifact) / BOOKKEEPING


def record_path(root: Path, artifact: Artifact, kind: str = "records", suffix: str = ".json") -> Path:
    """The path of a record of an artifact: by the path of its file, so that families that share it share it too.

    A name that the suffix would make longer than file systems take is cut, with a digest so that it stays unique.
    """
    family, inside = _parted(artifact)
    name = inside.name
    if len(os.fsencode(name + suffix)) > 255:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = f"{os.fsencode(name)[:200].decode('utf-8', 'ignore')}-{digest}"
    return root.joinpath(family, BOOKKEEPING, kind, inside.parent, f"{name}{suffix}")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise an OSError inside it as DiskError (exit code 6)."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, Path(error.filename) if isinstance(error.filename, str) else path) from error


# The record


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a card promised when bytes were taken: the identity of an artifact's version."""

    url: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @classmethod
    def of(cls, artifact: Artifact) -> Origin:
        """What the card promises now."""
        sha256, md5 = ((digest or "").lower() or None for digest in (artifact.sha256, artifact.md5))
        return cls(url=identity(artifact.url), size=artifact.size, sha256=sha256, md5=md5)


@dataclass(frozen=True, kw_only=True)
class ArtifactRecord:
    """An artifact as it was prepared: which bytes, how they were verified and against what, what is on disk.

    `size` and `sha256` are of the file or archive itself, where it was here whole; `origin` is what was declared.
    `state` is complete, partial where only some members were asked for, or packed for an archive that stays as it is.
    `folders` maps each folder that holds members to its mtime in ns, by which a later run sees in a moment that nothing
    came or went ("" is the storage, or the file itself where nothing is unpacked). `wanted` maps `data set/split` to
    the number of samples that are there, where `state` is partial. `table` names the list of members and its bytes.
    """

    artifact: str
    file: str
    origin: Origin
    fetched_from: str = ""
    validator: str = ""
    """The ETag or date that named this version at `fetched_from`, where nothing else distinguishes versions."""
    equivalence: str = "byte_exact"
    size: int | None = None
    sha256: str | None = None
    verified: Proof = "none"
    against: str = ""
    state: Literal["complete", "partial", "packed"] = "complete"
    files: int = 0
    bytes: int = 0
    folders: dict[str, int] = field(default_factory=dict)
    listed: int | None = None
    """Bytes of all files in these folders: a folder's mtime does not change when a file in it is emptied. None in
    records of earlier versions, of more than 10,000 files; there only `verify` finds it."""
    table: tuple[str, int] | None = None
    wanted: dict[str, int] = field(default_factory=dict)
    when: str = ""
    version: str = ""
    legacy: bool = field(default=False, compare=False)
    """Read from the bookkeeping of an older version (`legacy.py`); `prepare` writes it in today's format."""

    @property
    def subset(self) -> bool:
        """Whether it came from a mirror that offers only a part of the real thing."""
        return self.equivalence == "subset"

    def is_of(self, artifact: Artifact) -> bool:
        """Whether this is of the version that the card declares now; else it is no record of this artifact.

        A declared digest decides; without one the address and, where it is declared, the size must be those of then.
        """
        now, then = Origin.of(artifact), self.origin
        if now.size not in (None, then.size, self.size):
            return False
        if now.sha256:
            return now.sha256 in (then.sha256, self.sha256)
        if now.md5:
            return now.md5 == then.md5
        return then.url in (now.url, artifact.url)  # records of earlier versions hold the address as it is


def read_record(root: Path, artifact: Artifact) -> ArtifactRecord | None:
    """The record of an artifact, of whatever version; None where there is none that can be read."""
    path = record_path(root, artifact)
    try:
        tree = decode_json(read_file(path))
        if tree.pop("format") != FORMAT:
            return None
        table = tree.pop("table", None)
        record = ArtifactRecord(
            **{**tree, "origin": Origin(**tree["origin"]), "table": tuple(table) if table else None}
        )
        if not _is_typed(record):
            raise TypeError("a value of another type")
        return record
    except (FileNotFoundError, NotADirectoryError):
        if not record_path(root, artifact, "stamps").exists():
            return None
        from lavis_ext.prepare.legacy import old_record

        return old_record(root, artifact)
    except UNREADABLE as error:
        log.warning("%s: cannot be read and is ignored (%s)", path, error)
        return None


def _is_typed(record: ArtifactRecord) -> bool:
    """Whether every value is of the type that is declared."""
    origin, maps = record.origin, (record.folders, record.wanted)
    texts = [record.artifact, record.file, record.fetched_from, record.validator, record.equivalence, record.against]
    texts += [record.when, record.version, origin.url]
    texts += [text for text in (record.sha256, origin.sha256, origin.md5) if text is not None]
    counts = [record.files, record.bytes, *(n for n in (record.size, record.listed, origin.size) if n is not None)]
    if not all(isinstance(one, dict) for one in maps):
        return False
    texts += [key for one in maps for key in one]
    counts += [value for one in maps for value in one.values()]
    kinds = record.verified in get_args(Proof) and record.state in ("complete", "partial", "packed")
    table = record.table is None or tuple(map(type, record.table)) == (str, int)
    return kinds and table and all(isinstance(one, str) for one in texts) and all(type(one) is int for one in counts)


def write_record(
    root: Path, artifact: Artifact, record: ArtifactRecord, table: MemberTable | None = None
) -> ArtifactRecord:
    """Write a record, its table first, atomically and flushed to the disk; raises OSError.

    Returns it with time and version filled in. The bookkeeping of older versions is removed after it, and before it
    the journal: killed in between, a run compares the members again, and none is ever taken by an old journal.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    named = (table.digest, table.write(root, artifact)) if table is not None else record.table
    record = replace(record, when=now, version=__version__, table=named, legacy=False)
    tree = {"format": FORMAT, **asdict(record)}
    del tree["legacy"]
    if table is not None:
        record_path(root, artifact, "journal", ".log").unlink(missing_ok=True)
    write_atomic(record_path(root, artifact), json.dumps(tree, indent=1) + "\n")
    for kind, suffix in [("stamps", ".json"), ("members", ".tsv"), ("fetching", ".txt")]:  # format 1: `legacy.py`
        record_path(root, artifact, kind, suffix).unlink(missing_ok=True)
    return record


def drop_record(root: Path, artifact: Artifact) -> None:
    """Remove the record of an artifact; its data stay."""
    record_path(root, artifact).unlink(missing_ok=True)
    record_path(root, artifact, "stamps").unlink(missing_ok=True)


# Members


class MemberTable:
    """Members of one archive, in order; `about` says of which (origin, equivalence, size …); `held` are those in place.

    On disk: a line of JSON, then a column each of sizes, CRCs, offsets, packed sizes and methods, the names joined by
    NUL (which no name can hold), and a byte per member that says whether it is held. It is kept when the archive is
    removed, so that single files can be checked and repaired.
    """

    def __init__(self, members: Sequence[Member], about: Mapping[str, Any], held: Iterable[int] = ()) -> None:
        self.members, self.about, self.held = list(members), dict(about), set(held)

    @classmethod
    def read(cls, root: Path, artifact: Artifact) -> MemberTable | None:
        """The table on disk, or None where there is none that can be read."""
        path = record_path(root, artifact, suffix=".members")
        try:
            head, _, body = read_file(path).partition(b"\n")
            about = decode_json(head)
            count, digest = about.pop("members"), about.pop("digest")
            columns, held = body[: len(body) - count], body[len(body) - count :]
            if len(held) != count or digest != _digest(count, columns) or about.pop("order") != sys.byteorder:
                raise ValueError("it is cut off, or was written on a machine of another byte order")
            table = cls(list(_members(count, columns)), about, (n for n, there in enumerate(held) if there))
        except (FileNotFoundError, NotADirectoryError):
            if not record_path(root, artifact, "members", ".tsv").exists():
                return None
            from lavis_ext.prepare.legacy import old_table

            return old_table(root, artifact)
        except UNREADABLE as error:
            log.warning("%s: cannot be read and is ignored (%s)", path, error)
            return None
        table.digest = digest
        return table

    def write(self, root: Path, artifact: Artifact) -> int:
        """Write it; returns its size in bytes, raises OSError."""
        count = len(self.members)
        head = {**self.about, "members": count, "digest": self.digest, "order": sys.byteorder}
        held = bytes(n in self.held for n in range(count))
        data = json.dumps(head, sort_keys=True).encode() + b"\n" + self._columns + held
        write_atomic(record_path(root, artifact, suffix=".members"), data)
        return len(data)

    @cached_property
    def digest(self) -> str:
        """Identifies this list of members: a journal or a record with another digest does not count."""
        return _digest(len(self.members), self._columns)

    @property
    def bytes(self) -> int:
        """Bytes of all members, unpacked."""
        return sum(member.size for member in self.members)

    def folders(self) -> list[str]:
        """The folders that hold members, relative to the storage; "" is the storage itself."""
        return sorted({member.name.rpartition("/")[0] for member in self.members})

    def lost(self, target: Path, numbers: Iterable[int] | None = None) -> list[int]:
        """Members (default: all) that are missing or have another size, by a listing per folder, a stat per file."""
        sizes = sizes_below(target, self.folders())
        chosen = range(len(self.members)) if numbers is None else sorted(numbers)
        return [n for n in chosen if sizes.get(self.members[n].name) != self.members[n].size]

    @property
    def _columns(self) -> builtins.bytes:
        names, *columns = zip(*self.members, strict=True) if self.members else ((), *[()] * 5)
        numbers = [array(code, column).tobytes() for code, column in zip(CODES, columns, strict=True)]
        return b"".join(numbers) + "\0".join(names).encode()


def _digest(count: int, columns: bytes) -> str:
    return f"{count}-{zlib.crc32(columns):08x}"


def _members(count: int, data: builtins.bytes) -> Iterator[Member]:
    at, found = 0, []
    for code in CODES:
        column: array[int] = array(code)
        stop = at + count * column.itemsize
        column.frombytes(data[at:stop])
        found.append(column)
        at = stop
    names = data[at:].decode().split("\0") if count else []
    return map(Member, names, *found)


def sizes_below(target: Path, folders: Iterable[str]) -> dict[str, int]:
    """Sizes of the files in some folders of `target`, by relative name; links are followed."""
    sizes: dict[str, int] = {}
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        try:
            with os.scandir(target / folder) as entries:
                found = ((prefix + entry.name, size_of(entry)) for entry in entries)
                sizes.update((name, size) for name, size in found if size is not None)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return sizes


def listed_bytes(target: Path, folders: Iterable[str], seconds: float = math.inf) -> int | None:
    """Bytes of all files in some folders of `target`; None where they cannot all be looked at in so many seconds.

    -1, which is the sum of none, where one of them cannot be.
    """
    total, deadline = 0, time.monotonic() + seconds
    for folder in folders:
        try:
            opened = os.open(target / folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:  # by its descriptor: with the path, the way to each file is looked up again, a fifth of the time
            with os.scandir(opened) as entries:
                for number, entry in enumerate(entries, 1):  # no call of ours for each of a hundred thousand
                    total += entry.stat().st_size if entry.is_file() else 0
                    if number % 1024 == 0 and time.monotonic() > deadline:
                        return None
        except OSError:  # a link to itself, or a disk that fails
            return -1
        finally:
            os.close(opened)
    return total


def folder_times(target: Path, folders: Iterable[str]) -> dict[str, int]:
    """mtime in ns of each folder that is there."""
    times = {}
    for folder in folders:
        try:
            times[folder] = os.stat(f"{target}/{folder}").st_mtime_ns  # noqa: PTH116 - thousands of folders
        except OSError:
            continue
    return times


class Journal:
    """Which members are in place while an archive is unpacked, for a run that is interrupted.

    Their numbers, one a line, under a line that names the table. A line is written after the rename that it reports;
    a member that a crash kept from being reported is found by its CRC. After a restart of the machine (`trusted` is
    False) the reported files are checked too, since a rename may reach the disk before the bytes.
    """

    def __init__(self, root: Path, artifact: Artifact, table: MemberTable) -> None:
        self.path = record_path(root, artifact, "journal", ".log")
        self.done: set[int] = set()
        self.trusted = True
        self._head = {"table": table.digest, "boot": boot_id()}
        self._count = len(table.members)
        self._lock = threading.Lock()
        self._load()
        # Rewritten whole at each start: the first new line would be joined to a torn last one.
        write_atomic(self.path, self._text())
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.close(self._file)

    def add(self, numbers: Iterable[int]) -> None:
        """Report members as in place; raises OSError."""
        new = list(numbers)
        if new:
            with self._lock:
                text = "".join(f"{number}\n" for number in new).encode()
                if os.write(self._file, text) < len(text):
                    raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
                self.done.update(new)

    def rewrite(self, numbers: Iterable[int]) -> None:
        """Report that exactly these members are in place, and were checked since this boot; raises OSError."""
        self.done, self.trusted = set(numbers), True
        write_atomic(self.path, self._text())
        os.close(self._file)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def _load(self) -> None:
        try:
            head, *lines = read_file(self.path).split(b"\n")
            kept = decode_json(head)
        except UNREADABLE:
            return
        if not isinstance(kept, dict) or kept.get("table") != self._head["table"]:
            return
        self.trusted = bool(kept.get("boot")) and kept.get("boot") == self._head["boot"]
        # the last piece has no newline: it is empty, or torn by a crash
        self.done = {int(line) for line in lines[:-1] if line.isdigit() and int(line) < self._count}

    def _text(self) -> str:
        head = json.dumps(self._head if self.trusted else {**self._head, "boot": ""})
        return "".join([head, "\n", *(f"{number}\n" for number in sorted(self.done))])


# The record and the disk together


@dataclass(frozen=True)
class OnDisk:
    """What is there of one artifact, as `inspect` found it.

    recorded: as its record says · present: there, and to be checked · partial: some members, or a part of a download ·
    archive: the archive is there, not unpacked · missing. `record` is of the declared version, `other` of another one,
    whose bytes must not be taken for this one. `lost` are members that the record lists and that are not there; `part`
    is the bytes of a download that can be continued, `size` those of a file or archive that is there; `stale` asks for
    the record to be written again (copied data, say).
    """

    state: State
    record: ArtifactRecord | None = None
    table: MemberTable | None = None
    lost: tuple[int, ...] = ()
    part: int = 0
    size: int | None = None
    stale: bool = False
    other: ArtifactRecord | None = None

    @property
    def verified(self) -> bool:
        """Whether it is all there and was compared with something."""
        return self.state == "recorded" and self.record is not None and self.record.verified != "none"

    @property
    def word(self) -> str:
        """verified | present | partial | archive | missing."""
        if self.record is not None and self.record.state == "partial":
            return "partial"
        return self.state if self.state != "recorded" else "verified" if self.verified else "present"


def inspect(
    root: Path, artifact: Artifact, transfer: Transfer | LavisExtError | None = None, offline: bool = False
) -> OnDisk:
    """What is there of an artifact, by its record and one look at the disk: the only place that decides it.

    Opens no socket, reads no contents and writes nothing. A subset counts only where the same subset is offered, or
    where nothing can be fetched anyway.
    """
    record, other = read_record(root, artifact), None
    if record is not None and not _answers(record, artifact, transfer, offline):
        record, other = None, record
    elif record is not None and artifact.sha256 and record.sha256 == artifact.sha256.lower():
        # fetched before the card declared a digest, and it is this one
        record = replace(record, origin=Origin.of(artifact), verified="sha256", against="the card")
    path = root / artifact.file
    if artifact.unpack is None or (record is not None and record.state == "packed"):
        lost = record is not None and record.state == "packed" and not _has_table(root, artifact, record)
        return _inspect_file(path, None if lost else record, other)
    size = path.stat().st_size if path.is_file() else None
    found = _inspect_members(root, artifact, record) if record is not None else None
    if found is not None:
        return replace(found, size=size)
    if size is not None:
        return OnDisk("archive", size=size, other=other)
    part = part_bytes(path)
    some = other is not None and _has_subset_members(root, artifact, other, transfer)
    return OnDisk("partial" if part or some else "missing", part=part, other=other)


def _has_subset_members(
    root: Path, artifact: Artifact, other: ArtifactRecord, transfer: Transfer | LavisExtError | None
) -> bool:
    """Whether single members of a subset that is still offered are there.

    They came by ranges, so no digest of their archive is known that could be compared with the mirror's: the record
    does not count as one of this version, but what is there is not nothing.
    """
    offered = isinstance(transfer, Transfer) and transfer.sources[0].equivalence == "subset"
    by_ranges = other.subset and other.sha256 is None and other.is_of(artifact)
    return offered and by_ranges and bool(folder_times(root / artifact.storage, other.folders))


def _answers(
    record: ArtifactRecord, artifact: Artifact, transfer: Transfer | LavisExtError | None, offline: bool
) -> bool:
    """Whether a record is of the version that is declared and offered now."""
    if not record.is_of(artifact):
        return False
    if not record.subset or offline or transfer is None:
        return True
    if isinstance(transfer, LavisExtError) or transfer.sources[0].equivalence != "subset":
        return False
    return transfer.sha256 in (None, record.sha256)


def _inspect_file(path: Path, record: ArtifactRecord | None, other: ArtifactRecord | None) -> OnDisk:
    try:
        status = path.stat()
    except OSError:
        part = part_bytes(path)
        return OnDisk("partial" if part else "missing", part=part, other=other)
    if record is not None and (record.bytes, record.folders.get("")) == (status.st_size, status.st_mtime_ns):
        return OnDisk("recorded", record, size=status.st_size, stale=record.legacy)
    return OnDisk("present", record, size=status.st_size, other=other)


def _inspect_members(root: Path, artifact: Artifact, record: ArtifactRecord) -> OnDisk | None:
    """By the folders' mtimes and bytes, else by names and sizes; None where the table of members is gone."""
    target = root / artifact.storage
    if not _has_table(root, artifact, record):
        return None
    same = record.folders == folder_times(target, record.folders)
    if same and (record.listed is None or listed_bytes(target, record.folders, LOOK) in (None, record.listed)):
        return OnDisk("recorded", record, stale=record.legacy)
    table = open_table(root, artifact, record)
    if table is None:
        return None
    lost = table.lost(target, table.held)
    return OnDisk("partial" if lost else "recorded", record, table, tuple(lost), stale=True)


def _has_table(root: Path, artifact: Artifact, record: ArtifactRecord) -> bool:
    """Whether the table that a record names is there, by its size; it is not opened."""
    suffix = ("members", ".tsv") if record.legacy else ("records", ".members")
    try:
        return record.table is not None and record_path(root, artifact, *suffix).stat().st_size == record.table[1]
    except OSError:
        return False


def open_table(root: Path, artifact: Artifact, record: ArtifactRecord) -> MemberTable | None:
    """The table of members that a record names; None where it is gone or is another."""
    table = MemberTable.read(root, artifact)
    named = record.table is not None and table is not None and record.table[0] in ("", table.digest)
    return table if named else None
