"""One archive from its bytes to its stamp: whole from the disk, or single members by ranges, whichever costs less."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lavis_ext.cards import Artifact
from lavis_ext.errors import IntegrityError
from lavis_ext.fetch import MirrorMap, Policy, Progress, Result, Transfer, fetch
from lavis_ext.files import write_atomic
from lavis_ext.prepare.found import folder_times
from lavis_ext.prepare.inventory import Inventory, Journal
from lavis_ext.prepare.placing import Placement, disk_errors, set_aside
from lavis_ext.prepare.planning import known_inventory, prefer_ranges
from lavis_ext.prepare.report import Outcome
from lavis_ext.prepare.selection import Need, PrepareOptions
from lavis_ext.prepare.stamps import (
    Stamp,
    declared_identity,
    drop_stamp,
    read_stamp,
    record_path,
    write_stamp,
)
from lavis_ext.prepare.subset import fetch_members, list_remote, open_remote
from lavis_ext.prepare.unpack import take_inventory, unpack

Notice = Callable[[str], None]
Wanted = dict[str, int]
"""`data set/split` → number of samples whose images are wanted."""


@dataclass(frozen=True)
class Work:
    """What every step of a run needs: where, how, and whom to tell."""

    root: Path
    options: PrepareOptions
    policy: Policy
    mirrors: MirrorMap
    progress: Progress
    notice: Notice


def proof_of(transfer: Transfer, result: Result) -> str:
    """By what a fetched file was proven: its declared hash, its size, or nothing."""
    source = next((s for s in transfer.sources if s.equivalence == result.equivalence), transfer.sources[0])
    figures = transfer.figures(source)
    if figures.sha256 or figures.md5:
        return "sha256" if figures.sha256 else "md5"
    return "size" if figures.size is not None else ""


def note_fetching(work: Work, need: Need) -> None:
    """Note that the archive is about to be ours: only such a one is removed once it is unpacked. Raises DiskError."""
    path = work.root / need.artifact.file
    if need.artifact.unpack is not None and not path.exists():
        with disk_errors(path):
            write_atomic(_fetching(work.root, need.artifact), "fetched by prepare, removed once it is unpacked\n")


def _fetching(root: Path, artifact: Artifact) -> Path:
    return record_path(root, artifact, "fetching", ".txt")


def set_subset_aside(work: Work, need: Need, transfer: Transfer) -> tuple[str, ...]:
    """Before the real thing replaces a subset: take back its stamp; a file that no hash can judge is set aside."""
    stamp = read_stamp(work.root, need.artifact)
    if stamp is None or not stamp.subset or transfer.sources[0].equivalence == "subset":
        return ()
    path = work.root / need.artifact.file
    with disk_errors(path):
        if need.artifact.unpack is None and path.is_file() and not transfer.figures().declared:
            set_aside(path)
        drop_stamp(work.root, need.artifact)
    note = f"replaces the subset of {stamp.when[:10]}; files that differ are kept as *.bad-*"
    work.notice(f"{need.title}: {note}")
    return (note,)


def finish_file(work: Work, need: Need, transfer: Transfer, result: Result) -> Outcome:
    """Stamp a file that is not unpacked: annotations, shards, archives that are left as they are.

    Raises DiskError, and IntegrityError or UnsafeError for an archive that could not be unpacked either.
    """
    state = "complete" if need.artifact.unpack is None else "packed"
    proof = proof_of(transfer, result)
    inventory = None if need.artifact.unpack is None else _inventory_of(need, transfer, result)
    with disk_errors(result.path):
        if inventory is not None:
            inventory.write(work.root, need.artifact)
        status = result.path.stat()
        stamp = replace(
            _stamp(need.artifact, result.equivalence), source=result.source, sha256=result.sha256, state=state
        )
        there = {"": status.st_mtime_ns}
        stamp = replace(stamp, size=status.st_size, files=1, bytes=status.st_size, verified=proof, folders=there)
        write_stamp(work.root, need.artifact, stamp)
    return _outcome(need, result.bytes_moved, proof, result.equivalence, result.notes)


def _stamp(artifact: Artifact, equivalence: str) -> Stamp:
    return Stamp(
        artifact=artifact.name,
        file=artifact.file,
        url=artifact.url,
        declared=declared_identity(artifact),
        equivalence=equivalence,
    )


def _outcome(need: Need, moved: int, proof: str, equivalence: str, notes: tuple[str, ...] = ()) -> Outcome:
    return Outcome(
        title=need.title,
        file=need.artifact.file,
        outcome="downloaded" if moved else "reused",
        bytes=moved,
        verified=proof,
        equivalence=equivalence,
        notes=notes,
    )


def finish_archive(work: Work, need: Need, transfer: Transfer, result: Result) -> Outcome:
    """Unpack a fetched archive, stamp it, and remove it if it was ours and is not to be kept.

    One that turns out damaged though no hash spoke against it is set aside and fetched once more. Raises
    IntegrityError, UnsafeError, DiskError, NetworkError.
    """
    try:
        inventory = _inventory_of(need, transfer, result)
        aside = _unpack_all(work, need, result, inventory)
    except IntegrityError as error:
        if proof_of(transfer, result) in ("sha256", "md5"):
            raise
        work.notice(f"{need.title}: {error}; it is set aside and fetched once more")
        with disk_errors(result.path):
            set_aside(result.path)
        note_fetching(work, need)
        again = fetch(transfer, work.policy, work.progress)
        result = replace(again, bytes_moved=again.bytes_moved + result.bytes_moved)
        inventory = _inventory_of(need, transfer, result)
        aside = _unpack_all(work, need, result, inventory)
    proof = proof_of(transfer, result) if proof_of(transfer, result) in ("sha256", "md5") else "crc32"
    stamp = replace(
        _stamp(need.artifact, result.equivalence), source=result.source, sha256=result.sha256, verified=proof
    )
    finish_members(work, need, inventory, stamp)
    notes = (*result.notes, *(f"another file lay there, kept as {path.name}" for path in aside), *_remove(work, need))
    return _outcome(need, result.bytes_moved, proof, result.equivalence, notes)


def _inventory_of(need: Need, transfer: Transfer, result: Result) -> Inventory:
    with disk_errors(result.path):
        inventory = take_inventory(result.path, need.artifact)
    about = {"equivalence": result.equivalence, "source": result.source, "sha256": result.sha256}
    inventory.about |= about
    declared = need.artifact.unpacked_files
    hashed = proof_of(transfer, result) in ("sha256", "md5")
    if declared and not hashed and result.equivalence == "byte_exact" and len(inventory.members) < declared:
        what = f"holds {len(inventory.members):,} files, {declared:,} are declared"
        raise IntegrityError(str(result.path), what, "the archive is cut off; fetch it again")
    return inventory


def _unpack_all(work: Work, need: Need, result: Result, inventory: Inventory) -> list[Path]:
    with disk_errors(result.path):
        inventory.write(work.root, need.artifact)
        return unpack(result.path, need.artifact, work.root, inventory, work.progress)


def finish_members(work: Work, need: Need, inventory: Inventory, stamp: Stamp, wanted: Wanted | None = None) -> None:
    """Flush what was unpacked, then write the stamp; the journal of a complete archive goes. Raises DiskError."""
    target = work.root / need.artifact.storage
    with disk_errors(target):
        if work.policy.fsync:
            os.sync()
        with Journal(work.root, need.artifact, inventory) as journal:
            done = journal.done
        complete = len(done) == len(inventory.members)
        written = replace(
            stamp,
            size=inventory.about.get("archive_bytes"),
            state="complete" if complete else "partial",
            files=len(done),
            bytes=sum(inventory.members[number].size for number in done),
            folders=folder_times(target, inventory.folders()),
            wanted={} if complete else wanted or {},
        )
        write_stamp(work.root, need.artifact, written)
        if complete:
            journal.path.unlink(missing_ok=True)


def _remove(work: Work, need: Need) -> tuple[str, ...]:
    """Remove an archive of ours after its stamp is written; one that the user put there stays."""
    archive, mark = work.root / need.artifact.file, _fetching(work.root, need.artifact)
    if work.options.keep_archives or not archive.exists():
        return ()
    if not mark.exists():
        return ("the archive stays, it was there before",)
    with disk_errors(archive):
        archive.unlink()
        mark.unlink()
    return ()


def restamp(work: Work, need: Need, stamp: Stamp) -> None:
    """Note the folders' times anew where data were copied or files came beside them; raises DiskError."""
    target = work.root / need.artifact.storage
    with disk_errors(target):
        write_stamp(work.root, need.artifact, replace(stamp, folders=folder_times(target, list(stamp.folders))))


def find_inventory(work: Work, need: Need, transfer: Transfer) -> tuple[Inventory, int]:
    """The list of members of the archive that is offered, and the bytes that it cost: kept, on the disk, or by ranges.

    Raises NetworkError where the archive cannot be read in pieces, IntegrityError, UnsafeError, DiskError.
    """
    known = known_inventory(work.root, need, transfer)
    if known is not None:
        return known, 0
    inventory, moved = _local_inventory(work, need, transfer), 0
    if inventory is None:
        with open_remote(transfer, work.policy) as (remote, _):
            inventory, moved = list_remote(remote, need.artifact, transfer), remote.bytes_moved
    with disk_errors(work.root):
        inventory.write(work.root, need.artifact)
    return inventory, moved


def _local_inventory(work: Work, need: Need, transfer: Transfer) -> Inventory | None:
    """Of the archive on the disk, if there is one; a damaged one is set aside."""
    archive = work.root / need.artifact.file
    if not archive.is_file():
        return None
    try:
        inventory = take_inventory(archive, need.artifact)
    except IntegrityError as error:
        work.notice(f"{need.title}: {error}; it is set aside")
        with disk_errors(archive):
            set_aside(archive)
        return None
    inventory.about |= {"equivalence": transfer.sources[0].equivalence}
    return inventory


def trust(work: Work, need: Need, inventory: Inventory, numbers: Iterable[int]) -> None:
    """Note members as in place without reading them: a stamp answers for them. Raises DiskError."""
    with disk_errors(work.root), Journal(work.root, need.artifact, inventory) as journal:
        journal.rewrite(journal.done.union(numbers))


def place_members(
    work: Work, need: Need, transfer: Transfer, inventory: Inventory, numbers: Iterable[int], wanted: Wanted
) -> Outcome | None:
    """Put single members in place, out of the archive if it lies here, else by ranges; stamped as partial or complete.

    None where nothing is `wanted` in particular and so much is missing that the whole archive costs less.
    """
    archive = work.root / need.artifact.file
    moved = 0
    with disk_errors(work.root):
        if archive.is_file():
            aside = unpack(archive, need.artifact, work.root, inventory, work.progress, list(numbers))
        else:
            with Journal(work.root, need.artifact, inventory) as journal:
                label = f"{need.title} members"
                placement = Placement(work.root / need.artifact.storage, inventory, journal, work.progress, label)
                todo, aside = placement.settle(numbers), placement.set_aside
                packed = sum(inventory.members[number].packed for number in todo)
                if not wanted and not prefer_ranges(packed, transfer.size, 0):
                    return None
                moved = _load(work, transfer, placement, todo) if todo else 0
    stamp = _members_stamp(work, need, transfer, wanted)
    finish_members(work, need, inventory, stamp, stamp.wanted)
    notes = tuple(f"another file lay there, kept as {path.name}" for path in aside)
    return _outcome(need, moved, "crc32", stamp.equivalence, notes)


def _members_stamp(work: Work, need: Need, transfer: Transfer, wanted: Wanted) -> Stamp:
    """The stamp that is there with more samples to its name, or a new one."""
    equivalence, stamp = transfer.sources[0].equivalence, read_stamp(work.root, need.artifact)
    if stamp is not None and (stamp.equivalence, stamp.declared) == (equivalence, declared_identity(need.artifact)):
        return replace(stamp, wanted={**stamp.wanted, **wanted})
    return replace(_stamp(need.artifact, equivalence), verified="crc32", sha256=transfer.sha256, wanted=dict(wanted))


def _load(work: Work, transfer: Transfer, placement: Placement, todo: Sequence[int]) -> int:
    with open_remote(transfer, work.policy) as (remote, session):
        fetch_members(remote, session, placement, todo, placement.inventory.about.get("kind", "zip") == "zip")
        return remote.bytes_moved
