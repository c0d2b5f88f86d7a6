"""What is there of an artifact, by its record and one look at the disk: the one function that decides it.

`prepare`, `status`, `list`, `verify` and the pages all ask it, so that no two of them disagree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lavis_ext.common.config.cards import Artifact
from lavis_ext.common.errors import LavisExtError
from lavis_ext.fetch.part import companion
from lavis_ext.fetch.transfer import Transfer
from lavis_ext.prepare.records import (
    ArtifactRecord,
    MemberTable,
    Origin,
    folder_times,
    listed_bytes,
    read_record,
    record_path,
)

State = Literal["recorded", "present", "partial", "archive", "missing"]


@dataclass(frozen=True)
class OnDisk:
    """What is there of one artifact, looked at once.

    recorded: as its record says · present: there, and to be checked · partial: some members, or a part of a download ·
    archive: the archive lies there, not unpacked · missing. `record` is of the declared version, `other` of another
    one, whose bytes must not pass for this. `lost` are members that the record promises and that are not there; `part`
    is the bytes of a download that can be continued, `size` those of a file or archive that lies there; `stale` asks
    for the record to be written anew (copied data, say).
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
        # taken before the card declared a digest, and it is this one
        record = replace(record, origin=Origin.of(artifact), verified="sha256", against="the card")
    path = root / artifact.file
    if artifact.unpack is None or (record is not None and record.state == "packed"):
        return _inspect_file(path, record, other)
    size = path.stat().st_size if path.is_file() else None
    found = _inspect_members(root, artifact, record) if record is not None else None
    if found is not None:
        return replace(found, size=size)
    if size is not None:
        return OnDisk("archive", size=size, other=other)
    part = part_bytes(path)
    return OnDisk("partial" if part else "missing", part=part, other=other)


def _answers(
    record: ArtifactRecord, artifact: Artifact, transfer: Transfer | LavisExtError | None, offline: bool
) -> bool:
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
    """By the folders' times and bytes, else by names and sizes; None where the table of members is gone."""
    target = root / artifact.storage
    if not _has_table(root, artifact, record):
        return None
    same = record.folders == folder_times(target, record.folders)
    if same and record.listed in (None, listed_bytes(target, record.folders, record.files)):
        return OnDisk("recorded", record, stale=record.legacy)
    table = open_table(root, artifact, record)
    if table is None:
        return None
    lost = table.lost(target, table.held)
    return OnDisk("partial" if lost else "recorded", record, table, tuple(lost), stale=True)


def _has_table(root: Path, artifact: Artifact, record: ArtifactRecord) -> bool:
    """Whether the table that a record names lies beside it, by its size: it is not opened for this."""
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


def part_bytes(path: Path) -> int:
    """How much of a download is there and can be continued, by its sidecar."""
    try:
        done = json.loads(companion(path, ".part.json").read_text("utf-8"))["done"]
        return sum(int(stop) - int(start) for start, stop in done)
    except (OSError, ValueError, TypeError, KeyError):
        return 0
