"""What of an artifact lies on the disk already, told from stamps and listings without reading contents."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lavis_ext.cards import Artifact
from lavis_ext.errors import LavisExtError
from lavis_ext.fetch import MirrorMap, Source, Transfer
from lavis_ext.fetch.part import companion
from lavis_ext.prepare.inventory import Inventory
from lavis_ext.prepare.stamps import Stamp, declared_identity, read_stamp

State = Literal["verified", "present", "partial", "archive", "missing"]


@dataclass(frozen=True)
class Found:
    """What is there of one artifact.

    verified: as the stamp says · present: there, and to be checked · partial: some members, or a part of a download ·
    archive: the archive lies there, not unpacked · missing. `lost` are members that the stamp promises and that are not
    there; `part` is the bytes of a download that can be continued; `moved` asks for a new stamp (copied data, say).
    """

    state: State
    stamp: Stamp | None = None
    lost: tuple[int, ...] = ()
    part: int = 0
    moved: bool = False


def transfer_of(root: Path, artifact: Artifact, mirrors: MirrorMap, title: str = "") -> Transfer:
    """How to fetch an artifact's file: its URL, then its mirrors, or what the user's mirror has of them.

    Raises NetworkError where that mirror lists none of them.
    """
    others = (Source(m.url, m.equivalence, m.size, m.sha256, m.md5) for m in artifact.mirrors)
    sources = (Source(artifact.url), *others)
    path = root / artifact.file
    return mirrors.apply(Transfer(path, sources, artifact.size, artifact.sha256, artifact.md5, title or artifact.name))


def offered(root: Path, artifact: Artifact, mirrors: MirrorMap, title: str = "") -> Transfer | LavisExtError:
    """`transfer_of`, or why there is none."""
    try:
        return transfer_of(root, artifact, mirrors, title)
    except LavisExtError as error:
        return error


def acceptable(stamp: Stamp | None, artifact: Artifact, transfer: Transfer | LavisExtError, offline: bool) -> bool:
    """Whether a stamp answers for what is asked now.

    A full one always does; a subset only where the same subset is offered, or where nothing can be fetched anyway.
    """
    if stamp is None or stamp.declared != declared_identity(artifact):
        return False
    if not stamp.subset or offline:
        return True
    if isinstance(transfer, LavisExtError) or transfer.sources[0].equivalence != "subset":
        return False
    return transfer.sha256 in (None, stamp.sha256)


def inspect(root: Path, artifact: Artifact, transfer: Transfer | LavisExtError, offline: bool = False) -> Found:
    """What is there of an artifact; opens no socket and writes nothing."""
    stamp = read_stamp(root, artifact)
    if not acceptable(stamp, artifact, transfer, offline):
        stamp = None
    if artifact.unpack is None or (stamp is not None and stamp.state == "packed"):
        return _inspect_file(root / artifact.file, stamp)
    if stamp is not None:
        found = _inspect_members(root, artifact, stamp)
        if found is not None:
            return found
    if (root / artifact.file).is_file():
        return Found("archive", stamp)
    part = part_bytes(root / artifact.file)
    return Found("partial" if part else "missing", stamp, part=part)


def _inspect_file(path: Path, stamp: Stamp | None) -> Found:
    try:
        status = path.stat()
    except OSError:
        part = part_bytes(path)
        return Found("partial" if part else "missing", None, part=part)
    if stamp is not None and (stamp.bytes, stamp.folders.get("")) == (status.st_size, status.st_mtime_ns):
        return Found("verified", stamp)
    return Found("present", stamp)


def _inspect_members(root: Path, artifact: Artifact, stamp: Stamp) -> Found | None:
    """By the folders' times, else by names and sizes; None where the list of members is gone."""
    target = root / artifact.storage
    if stamp.folders and stamp.folders == folder_times(target, list(stamp.folders)):
        return Found("verified", stamp)
    inventory = Inventory.read(root, artifact)
    if inventory is None:
        return None
    if stamp.state != "complete":
        return Found("partial", stamp)
    lost = lost_members(target, inventory)
    return Found("partial" if lost else "verified", stamp, tuple(lost), moved=True)


def lost_members(target: Path, inventory: Inventory) -> list[int]:
    """Members that are not in place or have another size: one listing per folder, one stat per file."""
    sizes = sizes_below(target, inventory.folders())
    return [n for n, member in enumerate(inventory.members) if sizes.get(member.name) != member.size]


def sizes_below(target: Path, folders: list[str]) -> dict[str, int]:
    """Sizes of the files in some folders of `target`, by relative name; links are followed."""
    sizes: dict[str, int] = {}
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        try:
            with os.scandir(target / folder) as entries:
                sizes.update({prefix + entry.name: entry.stat().st_size for entry in entries if entry.is_file()})
        except (FileNotFoundError, NotADirectoryError):
            continue
    return sizes


def folder_times(target: Path, folders: list[str]) -> dict[str, int]:
    """mtime in ns of each folder that is there."""
    times = {}
    for folder in folders:
        try:
            times[folder] = (target / folder).stat().st_mtime_ns
        except OSError:
            continue
    return times


def part_bytes(path: Path) -> int:
    """How much of a download is there and can be continued, by its sidecar."""
    try:
        done = json.loads(companion(path, ".part.json").read_text("utf-8"))["done"]
        return sum(int(stop) - int(start) for start, stop in done)
    except (OSError, ValueError, TypeError, KeyError):
        return 0
