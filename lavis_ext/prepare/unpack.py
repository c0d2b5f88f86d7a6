"""An archive on disk becomes files in its target folder: everything is judged first, then put in place, resumably."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lavis_ext.cards import Artifact
from lavis_ext.errors import IntegrityError
from lavis_ext.fetch import Progress
from lavis_ext.prepare.inventory import Inventory, Journal
from lavis_ext.prepare.members import MIB, Limits, Member, check_members
from lavis_ext.prepare.placing import Placement, batches, run_bounded, thread_count
from lavis_ext.prepare.tars import list_tar, read_tar
from lavis_ext.prepare.zips import HEADER, data_offset, list_zip


def limits_of(artifact: Artifact, archive_bytes: int) -> Limits:
    """What an artifact's archive may become, by its card."""
    return Limits.declared(archive_bytes, artifact.unpacked_files, artifact.unpacked_bytes)


def take_inventory(archive: Path, artifact: Artifact) -> Inventory:
    """List and judge a local archive; raises IntegrityError for a damaged one, UnsafeError for one that is refused."""
    size = archive.stat().st_size
    limits = limits_of(artifact, size)
    if artifact.unpack == "zip":
        with archive.open("rb") as file:
            members = list_zip(file, str(archive))
    else:
        members = list_tar(archive, artifact.unpack == "tar.gz", limits)
    check_members(members, limits, str(archive), archive.name)
    return Inventory(members, {"archive_bytes": size, "kind": artifact.unpack})


def unpack(
    archive: Path,
    artifact: Artifact,
    root: Path,
    inventory: Inventory,
    progress: Progress,
    wanted: Sequence[int] | None = None,
    threads: int | None = None,
) -> list[Path]:
    """Put every member (or the `wanted` numbers) in place below the artifact's storage; what is there already is kept.

    Returns what was set aside: files of the same name with other content.

    A killed run is continued by the next. Raises IntegrityError, UnsafeError, DiskError; the archive is left alone.
    """
    label = f"{artifact.name} unpacked"
    with Journal(root, artifact, inventory) as journal:
        placement = Placement(root / artifact.storage, inventory, journal, progress, label)
        todo = placement.settle(range(len(inventory.members)) if wanted is None else wanted)
        progress.begin(label, sum(inventory.members[n].size for n in todo))
        if artifact.unpack == "tar.gz":
            _from_stream(archive, placement, set(todo))
        else:
            _from_file(archive, placement, todo, artifact.unpack == "zip", threads or thread_count())
        progress.end(label, "fetched")
    return placement.set_aside


def _from_stream(archive: Path, placement: Placement, todo: set[int]) -> None:
    if todo:
        placement.write((number, data) for number, data in _noting(archive, placement) if number in todo)


def _noting(archive: Path, placement: Placement) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Members of a gzipped tar from front to end."""
    count = len(placement.inventory.members)
    for number, data in read_tar(archive, gzipped=True):
        if number >= count:
            raise IntegrityError(str(archive), "the archive changed while it was read", "run `prepare` again")
        yield number, data


def _from_file(archive: Path, placement: Placement, todo: list[int], zipped: bool, threads: int) -> None:
    """Batches of members on several threads: reading, zlib and writing leave the interpreter lock."""
    handle = os.open(archive, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="unpack") as pool:

            def submit(numbers: list[int]) -> Future[None]:
                members = placement.inventory.members
                packed = [(n, packed_bytes(handle, members[n], str(archive), zipped)) for n in numbers]
                return pool.submit(placement.write, packed)

            run_bounded(pool, map(submit, batches(placement.inventory, todo)), 2 * threads)
    finally:
        os.close(handle)


def packed_bytes(handle: int, member: Member, where: str, zipped: bool) -> Iterator[bytes]:
    """The packed bytes of a member of an open archive, by position, so that threads may share the handle."""
    start, left = member.offset, member.packed
    if zipped:
        start += data_offset(os.pread(handle, HEADER, start), member, where)
    while left:
        data = os.pread(handle, min(MIB, left), start)
        if not data:
            raise IntegrityError(where, f"ends inside member {member.name!r}", "fetch the archive again")
        yield data
        start, left = start + len(data), left - len(data)
