"""From a plan's items to outcomes: keep what is there, fetch single members where that is enough, the rest whole.

What an item has decided is not inspected again. The record of each artifact is written last.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lavis_ext.common.config.cards import Artifact
from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, NetworkError
from lavis_ext.common.files import is_dangling
from lavis_ext.fetch.engine import fetch
from lavis_ext.fetch.ledger import hash_file
from lavis_ext.fetch.pool import fetch_all
from lavis_ext.fetch.transfer import Figures, RangesUnsupported, Result, Transfer
from lavis_ext.prepare.extract import (
    Placement,
    fetch_members,
    list_archive,
    list_remote,
    open_remote,
    set_aside,
    unpack,
)
from lavis_ext.prepare.plan import (
    PlanItem,
    PrepareContext,
    check_whole_fits,
    is_leaving,
    known_table,
    ledger_of,
    plan_item,
    prefer_ranges,
)
from lavis_ext.prepare.records import (
    ArtifactRecord,
    Journal,
    MemberTable,
    Origin,
    Proof,
    bookkeeping,
    disk_errors,
    drop_record,
    folder_times,
    listed_bytes,
    write_record,
)
from lavis_ext.prepare.report import Outcome
from lavis_ext.prepare.samples import ImageNames, image_names, open_rows, relative_name
from lavis_ext.prepare.selection import ArtifactRequest, user_key

log = logging.getLogger(__name__)
Wanted = dict[str, int]
"""`data set/split` → number of samples whose images are wanted."""
OWN_DIRECTORY = "its own directory"


def execute_items(context: PrepareContext, items: Sequence[PlanItem]) -> dict[str, Outcome]:
    """Execute every item; outcomes by title, failures among them.

    Raises KeyboardInterrupt; the next call continues from what is there then.
    """
    outcomes: dict[str, Outcome] = {}
    todo = [item for item in items if _start(context, item, outcomes)]
    if context.options.max_samples is not None:
        todo = _take_samples(context, todo, outcomes)
    _take_whole(context, [item for item in todo if not _take_members(context, item, outcomes)], outcomes)
    return outcomes


def _failed(item: PlanItem, error: LavisExtError) -> Outcome:
    return Outcome(title=item.title, file=item.file, outcome="failed", error=error)


def _parts(item: PlanItem) -> tuple[ArtifactRequest, Transfer]:
    """The item's request and transfer; raises the error that it has in place of a transfer."""
    if isinstance(item.transfer, LavisExtError):
        raise item.transfer
    if item.request is None or item.transfer is None:
        raise NetworkError(item.title, "is not offered", "name another mirror")
    return item.request, item.transfer


def _start(context: PrepareContext, item: PlanItem, outcomes: dict[str, Outcome]) -> bool:
    """Whether there is something to do; the outcome of what is kept, or cannot be done, is added to `outcomes`."""
    if item.action == "keep" and item.disk.record is not None:
        outcomes[item.title] = _keep(context, item, item.disk.record)
        return False
    try:
        request, transfer = _parts(item)
        if context.policy.offline and item.remote:
            place = str(context.root / request.artifact.file)
            raise NetworkError(place, "is not complete, and offline", "run `lavis-ext prepare` with a network first")
        if item.disk.size is not None and item.disk.record is None:
            from lavis_ext.prepare.claims import refuse_claimed_file

            refuse_claimed_file(context, request.artifact, transfer)
        _set_old_version_aside(context, item, request.artifact, transfer)
    except LavisExtError as error:
        outcomes[item.title] = _failed(item, error)
        return False
    return True


def _keep(context: PrepareContext, item: PlanItem, record: ArtifactRecord) -> Outcome:
    """The outcome of what is kept; its record is written again where it is `stale`."""
    if item.disk.stale and item.request is not None:
        artifact = item.request.artifact
        try:
            table = item.disk.table or (MemberTable.read(context.root, artifact) if record.table else None)
            if artifact.unpack is not None and record.state != "packed":
                place = context.root / artifact.storage
                listed = listed_bytes(place, record.folders)
                record = replace(record, folders=folder_times(place, record.folders), listed=listed)
            record = write_record(context.root, artifact, record, table)
        except OSError as error:  # a root that cannot be written to can still be used
            log.warning("%s: its record is not renewed: %s", item.title, error)
    return Outcome(
        title=item.title,
        file=item.file,
        outcome="reused",
        verified=record.verified,
        equivalence=record.equivalence,
        record=record,
    )


def _set_old_version_aside(context: PrepareContext, item: PlanItem, artifact: Artifact, transfer: Transfer) -> None:
    """Rename a file that by its record is of another version, or was changed, where no declared hash would show it."""
    record, path = item.disk.other or item.disk.record, context.root / artifact.file
    if record is None or record.sha256 is None or transfer.figures().hashed or not path.is_file():
        return
    single = artifact.unpack is None or record.state == "packed"
    if item.disk.other is None and (context.policy.offline or not single):
        return
    with disk_errors(path):
        same = path.stat().st_size == record.size and hash_file(path, Figures())[0] == record.sha256
        context.require()
        if same == (item.disk.other is not None):
            context.notice(f"{item.title}: the file there is of another version, kept as {set_aside(path).name}")


def _with_notes(outcome: Outcome, item: PlanItem, moved: int) -> Outcome:
    """The outcome with the `moved` bytes of the zip's directory, and a note on the subset that it replaces."""
    total, other = outcome.bytes + moved, item.disk.other
    notes = outcome.notes
    if other is not None and other.subset and outcome.equivalence != "subset":
        notes = (f"replaces the subset of {other.when[:10]}; files that differ are kept as *.bad-*", *notes)
    return replace(outcome, bytes=total, outcome="downloaded" if total else outcome.outcome, notes=notes)


# Single members


def _take_samples(context: PrepareContext, items: Sequence[PlanItem], outcomes: dict[str, Outcome]) -> list[PlanItem]:
    """Fetch the pictures of the first samples of each split as single members; returns the items that remain."""
    listed: list[tuple[PlanItem, ArtifactRequest, MemberTable, int]] = []
    rest: list[PlanItem] = []
    for item in items:
        request, _ = _parts(item)
        if not request.images or request.artifact.unpack != "zip":
            rest.append(item)
            continue
        try:
            listed.append((item, request, *_find_table(context, item)))
        except RangesUnsupported as error:
            try:
                check_whole_fits(context, item)
            except LavisExtError as refusal:
                outcomes[item.title] = _failed(item, refusal)
                continue
            context.notice(f"{item.title}: {error.problems[0].what}; the whole archive is fetched instead")
            rest.append(replace(item, action="unpack"))
        except LavisExtError as error:
            outcomes[item.title] = _failed(item, error)
    numbers = _members_of_samples(context, [(request, table) for _, request, table, _ in listed])
    for item, request, table, moved in listed:
        wanted, members = numbers[request.title]
        try:
            outcome = _place_members(context, item, table, members, wanted)
        except LavisExtError as error:
            outcomes[item.title] = _failed(item, error)
            continue
        if outcome is not None:
            outcomes[item.title] = _with_notes(outcome, item, moved)
    return [item for item in rest if item.title not in outcomes]


def _members_of_samples(
    context: PrepareContext, listed: Sequence[tuple[ArtifactRequest, MemberTable]]
) -> dict[str, tuple[Wanted, list[int]]]:
    """Per request: the splits it serves, and the numbers of the members that their first samples name."""
    count = context.options.max_samples or 0
    found: dict[str, tuple[Wanted, list[int]]] = {request.title: ({}, []) for request, _ in listed}
    users = {user_key(*user): user for request, _ in listed for user in request.users}
    for key, (dataset, split) in users.items():
        storage = dataset.build_info.images.storage
        homes = _homes([pair for pair in listed if (dataset, split) in pair[0].users], storage)
        sought = ImageNames(homes, dataset.args.get("layouts"))
        try:
            paths = [context.root / path for path in context.cards.annotation_paths(dataset, split)]
            names = image_names(open_rows(paths, dataset, split, context.root, count), dataset, sought)
        except (ConfigError, IntegrityError) as error:
            log.warning("%s: its pictures are not known: %s", key, error)
            continue
        for home in (homes[place] for name in names if (place := sought.find(name)) is not None):
            found[home[0]][1].append(home[1])
        for request, _ in listed:
            if (dataset, split) in request.users:
                found[request.title][0][key] = count
    return {title: (wanted, sorted(set(numbers))) for title, (wanted, numbers) in found.items()}


def _homes(listed: Iterable[tuple[ArtifactRequest, MemberTable]], storage: str) -> dict[str, tuple[str, int]]:
    """Name below the folder of images → (title of its request, number of its member)."""
    homes: dict[str, tuple[str, int]] = {}
    for request, table in listed:
        for number, member in enumerate(table.members):
            name = relative_name(request.artifact, member.name, storage)
            if name is not None:
                homes.setdefault(name, (request.title, number))
    return homes


def _take_members(context: PrepareContext, item: PlanItem, outcomes: dict[str, Outcome]) -> bool:
    """Complete or repair an archive by its missing members, where that costs less; True if the item is done."""
    if item.action != "ranges" and not item.adopt:
        return False
    try:
        table, moved = _find_table(context, item)
        outcome = _place_members(context, item, table, range(len(table.members)), {})
    except (NetworkError, IntegrityError) as error:
        log.info("%s: not by single files: %s", item.title, error)
        return False
    except LavisExtError as error:
        outcomes[item.title] = _failed(item, error)
        return True
    if outcome is None:
        return False
    outcomes[item.title] = _with_notes(outcome, item, moved)
    return True


def _find_table(context: PrepareContext, item: PlanItem) -> tuple[MemberTable, int]:
    """The members of the archive that is offered, and the bytes moved for it: from disk, a kept table, or by ranges.

    Raises RangesUnsupported where it cannot be read in pieces, NetworkError, IntegrityError, UnsafeError, DiskError.
    """
    request, transfer = _parts(item)
    local = _list_local(context, item.title, request.artifact, transfer) if item.action == "unpack" else None
    if local is not None:
        return local, 0
    known = known_table(context.root, request.artifact, transfer, item.disk)
    validator = known.about.get("validator") if known is not None else None
    if known is not None and not validator:
        return known, 0
    with open_remote(transfer, context.policy) as (remote, _):
        # The object may have been replaced, by one of equal size too. Validators of two mirrors cannot be compared.
        if known is not None and (remote.source != known.about.get("source") or remote.validator == validator):
            return known, 0
        if item.disk.record is not None and item.disk.record.verified in ("sha256", "md5"):
            what = "serves another version than the one whose digest was verified here"
            raise IntegrityError(remote.source, what, "name a mirror that has it, or correct the card")
        table = list_remote(remote, request.artifact, transfer)
        moved = remote.bytes_moved
    with disk_errors(context.root):
        table.write(context.root, request.artifact)
    return table, moved


def _list_local(context: PrepareContext, title: str, artifact: Artifact, transfer: Transfer) -> MemberTable | None:
    """The members of the archive on disk, None where there is none; a damaged one is set aside."""
    archive = context.root / artifact.file
    if not archive.is_file():
        return None
    try:
        table = list_archive(archive, artifact)
    except IntegrityError as error:
        context.notice(f"{title}: {error}; it is set aside")
        with disk_errors(archive):
            set_aside(archive)
        return None
    table.about["equivalence"] = transfer.sources[0].equivalence
    return table


def mark_present(context: PrepareContext, artifact: Artifact, table: MemberTable, numbers: Iterable[int]) -> None:
    """Report members as in place in the journal without reading them, as their record says. Raises DiskError."""
    with disk_errors(context.root), Journal(context.root, artifact, table) as journal:
        journal.rewrite(journal.done.union(numbers))


def _place_members(
    context: PrepareContext, item: PlanItem, table: MemberTable, numbers: Iterable[int], wanted: Wanted
) -> Outcome | None:
    """Put single members in place, from the archive on disk or by ranges, and record them as partial or complete.

    None where no samples are `wanted` and so much is missing that the whole archive costs less.
    """
    request, transfer = _parts(item)
    artifact, record, moved = request.artifact, item.disk.record, 0
    archive = context.root / artifact.file
    if record is not None and (record.table is None or record.table[0] not in ("", table.digest)):
        record = None  # of the declared version, but the members that are offered now are others
    if record is not None:
        mark_present(context, artifact, table, table.held.difference(item.disk.lost))
    with disk_errors(context.root):
        if item.disk.other is not None:
            drop_record(context.root, artifact)
        if item.action == "unpack" and archive.is_file():
            wanted_ones = list(numbers)
            require = partial(context.require_own, artifact)
            aside = unpack(archive, artifact, context.root, table, context.progress, wanted_ones, require=require)
        else:
            with Journal(context.root, artifact, table) as journal:
                place = context.root / artifact.storage
                label = f"{item.title} members"
                placement = Placement(
                    place, table, journal, context.progress, label, partial(context.require_own, artifact)
                )
                todo, aside = placement.pending_members(numbers), placement.set_aside
                packed = sum(table.members[number].packed for number in todo)
                if not wanted and not prefer_ranges(packed, transfer.size, 0):
                    return None
                if todo:
                    with open_remote(transfer, context.policy) as (remote, session):
                        fetch_members(remote, session, placement, todo, table.about.get("kind", "zip") == "zip")
                        moved = remote.bytes_moved
    if record is None:
        record = _record(artifact, transfer.sources[0].equivalence, verified="crc", against=OWN_DIRECTORY)
        record = replace(record, fetched_from=str(table.about.get("source", "")))
    record = replace(record, validator=str(table.about.get("validator", "")), wanted={**record.wanted, **wanted})
    record = _finish_members(context, artifact, table, record)
    notes = tuple(map(_aside_note, aside))
    return _outcome(item, moved, record, notes)


def _finish_members(
    context: PrepareContext, artifact: Artifact, table: MemberTable, record: ArtifactRecord
) -> ArtifactRecord:
    """Flush what was unpacked, then write the record, which replaces the journal. Raises DiskError."""
    target = context.root / artifact.storage
    with disk_errors(target):
        if context.policy.fsync:
            os.sync()
        context.require()
        with Journal(context.root, artifact, table) as journal:
            table.held = set(journal.done)
        complete = len(table.held) == len(table.members)
        record = replace(
            record,
            size=table.about.get("archive_bytes"),
            state="complete" if complete else "partial",
            files=len(table.held),
            bytes=sum(table.members[number].size for number in table.held),
            folders=folder_times(target, table.folders()),
            listed=listed_bytes(target, table.folders()),
            wanted={} if complete else record.wanted,
        )
        return write_record(context.root, artifact, record, table)


# Whole files


def _take_whole(context: PrepareContext, items: Sequence[PlanItem], outcomes: dict[str, Outcome]) -> None:
    """Fetch whole files, those of a family at a time, then verify, unpack and record them one after the other."""
    homes: dict[Path, list[PlanItem]] = {}
    for item in items:
        homes.setdefault(bookkeeping(context.root, _parts(item)[0].artifact), []).append(item)
    for home, group in homes.items():
        context.require()
        there = replace(context, policy=replace(context.policy, ledger=home / "ledger.jsonl"))
        results = fetch_all([_parts(item)[1] for item in group], there.policy, there.progress, collect=True)
        for item, result in zip(group, results, strict=True):
            outcomes[item.title] = _finish(there, item, result)


def _finish(context: PrepareContext, item: PlanItem, result: Result) -> Outcome:
    if result.error is not None:
        return _failed(item, result.error)
    request, transfer = _parts(item)
    packed = request.artifact.unpack is None or context.options.no_unpack
    try:
        outcome = (_finish_file if packed else _finish_archive)(context, item, request.artifact, transfer, result)
    except LavisExtError as error:
        return _failed(item, error)
    return _with_notes(outcome, item, 0)


def _proof(transfer: Transfer, result: Result) -> tuple[Proof, str]:
    """How a fetched file was verified, and against what."""
    source = next((s for s in transfer.sources if s.equivalence == result.equivalence), transfer.sources[0])
    figures = transfer.figures(source)
    against = "the card" if result.equivalence == "byte_exact" else f"what is declared of the {result.equivalence} form"
    if figures.hashed:
        return ("sha256" if figures.sha256 else "md5"), against
    return ("size", against) if figures.size is not None else ("none", "")


def _record(artifact: Artifact, equivalence: str, **more: Any) -> ArtifactRecord:
    return ArtifactRecord(
        artifact=artifact.name, file=artifact.file, origin=Origin.of(artifact), equivalence=equivalence, **more
    )


def _outcome(item: PlanItem, moved: int, record: ArtifactRecord, notes: tuple[str, ...] = ()) -> Outcome:
    return Outcome(
        title=item.title,
        file=item.file,
        outcome="downloaded" if moved else "reused",
        bytes=moved,
        verified=record.verified,
        equivalence=record.equivalence,
        notes=notes,
        record=record,
    )


def _aside_note(path: Path) -> str:
    return f"{'a link to nothing' if is_dangling(path) else 'another file'} was there, kept as {path.name}"


def _finish_file(
    context: PrepareContext, item: PlanItem, artifact: Artifact, transfer: Transfer, result: Result
) -> Outcome:
    """Record a file that is not unpacked: annotations, shards, archives that are left as they are.

    Raises DiskError, and IntegrityError or UnsafeError for an archive that could not be unpacked either.
    """
    proof, against = _proof(transfer, result)
    table = None if artifact.unpack is None else _list_fetched(artifact, transfer, result)
    with disk_errors(result.path):
        status = result.path.stat()
        record = _record(
            artifact,
            result.equivalence,
            fetched_from=result.source,
            validator=result.validator,
            size=status.st_size,
            sha256=result.sha256,
            verified=proof,
            against=against,
            state="complete" if artifact.unpack is None else "packed",
            files=1,
            bytes=status.st_size,
            folders={"": status.st_mtime_ns},
        )
        context.require()
        record = write_record(context.root, artifact, record, table)
    return _outcome(item, result.bytes_moved, record, result.notes)


def _finish_archive(
    context: PrepareContext, item: PlanItem, artifact: Artifact, transfer: Transfer, result: Result
) -> Outcome:
    """Unpack a fetched archive, record it, and remove it if it was ours and is not to be kept.

    One that is damaged, where no hash is declared that would have shown it, is set aside and fetched once more.
    Raises IntegrityError, UnsafeError, DiskError, NetworkError.
    """
    proof, against = _proof(transfer, result)
    hashed = proof in ("sha256", "md5")
    try:
        table, aside = _unpack(context, item, artifact, transfer, result)
    except IntegrityError as error:
        if hashed:
            raise
        context.require()
        context.notice(f"{item.title}: {error}; it is set aside and fetched once more")
        with disk_errors(result.path):
            set_aside(result.path)
        again = fetch(transfer, context.policy, context.progress)
        result = replace(again, bytes_moved=again.bytes_moved + result.bytes_moved)
        table, aside = _unpack(context, item, artifact, transfer, result)
    if not hashed and artifact.unpack != "tar":  # a zip's directory and gzip's trailer have CRCs, a tar has none
        proof, against = "crc", OWN_DIRECTORY
    record = _record(
        artifact,
        result.equivalence,
        fetched_from=result.source,
        validator=result.validator,
        sha256=result.sha256,
        verified=proof,
        against=against,
    )
    with disk_errors(result.path):
        # Before the record: a run that is killed between the two leaves an archive that the next one knows is to go.
        ours = not context.options.keep_archives and ledger_of(context.root, artifact).dismiss(result.path)
    record = _finish_members(context, artifact, table, record)
    notes = (*result.notes, *map(_aside_note, aside))
    if ours:
        _remove(context, artifact)
    elif not context.options.keep_archives and result.path.exists():
        notes = (*notes, "the archive stays, it was there before")
    return _outcome(item, result.bytes_moved, record, notes)


def _list_fetched(artifact: Artifact, transfer: Transfer, result: Result) -> MemberTable:
    with disk_errors(result.path):
        table = list_archive(result.path, artifact)
    table.about |= {"equivalence": result.equivalence, "source": result.source, "validator": result.validator}
    declared, hashed = artifact.unpacked_files, _proof(transfer, result)[0] in ("sha256", "md5")
    if declared and not hashed and result.equivalence == "byte_exact" and len(table.members) < declared:
        what = f"holds {len(table.members):,} files, {declared:,} are declared"
        raise IntegrityError(str(result.path), what, "the archive is cut off; fetch it again")
    return table


def _unpack(
    context: PrepareContext, item: PlanItem, artifact: Artifact, transfer: Transfer, result: Result
) -> tuple[MemberTable, list[Path]]:
    table, record = _list_fetched(artifact, transfer, result), item.disk.record
    context.require()
    with disk_errors(result.path):
        if record is None or record.table is None or record.table[0] != table.digest:
            drop_record(context.root, artifact)  # unpacking changes what it describes
        table.write(context.root, artifact)
        require = partial(context.require_own, artifact)
        return table, unpack(result.path, artifact, context.root, table, context.progress, require=require)


def _remove(context: PrepareContext, artifact: Artifact) -> None:
    """Remove an archive after its record is written, if the ledger says that it is to go, and is this very file."""
    archive = context.root / artifact.file
    with disk_errors(archive):
        if is_leaving(context.root, artifact):
            context.require()
            archive.unlink(missing_ok=True)


def remove_leftovers(context: PrepareContext, items: Iterable[PlanItem]) -> None:
    """Remove archives of runs that were killed between the record and the removal, or keep them where that is asked.

    Raises DiskError, OwnedError.
    """
    for item in items:
        if not item.leftover or item.request is None:
            continue
        artifact = item.request.artifact
        if context.options.keeps_archives:
            with disk_errors(context.root):
                ledger_of(context.root, artifact).dismiss(context.root / artifact.file, leaving=False)
            continue
        _remove(context, artifact)
        context.notice(f"{item.title}: {item.note}")


# Repair


def repair_items(context: PrepareContext, damaged: Sequence[tuple[ArtifactRequest, Sequence[int]]]) -> list[Outcome]:
    """Fetch again what was set aside: whole artifacts, or the members whose numbers are given."""
    outcomes: dict[str, Outcome] = {}
    whole: list[PlanItem] = []
    everything = replace(context, options=replace(context.options, max_samples=None))
    for request, numbers in damaged:
        item = plan_item(everything, request)
        if not numbers:
            whole.append(item)
            continue
        try:
            table, moved = _find_table(everything, item)
            # the empty name, which no data set has, keeps the record partial where it lists no samples
            wanted = item.disk.record.wanted if item.disk.record else {}
            outcome = _place_members(everything, item, table, numbers, wanted or {"": 0})
            if outcome is None:
                raise IntegrityError(request.title, "its members could not be repaired", "run `lavis-ext prepare`")
            outcomes[item.title] = replace(outcome, bytes=outcome.bytes + moved)
        except LavisExtError as error:
            outcomes[item.title] = _failed(item, error)
    outcomes |= execute_items(everything, whole)
    return [outcomes[request.title] for request, _ in damaged]
