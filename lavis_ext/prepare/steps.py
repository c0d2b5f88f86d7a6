"""From needs to outcomes: keep what is there, take single members where that is enough, fetch the rest whole."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lavis_ext.cards import Cards
from lavis_ext.errors import ConfigError, IntegrityError, LavisExtError, NetworkError
from lavis_ext.fetch import Result, Transfer, fetch_all
from lavis_ext.prepare.archives import (
    Wanted,
    Work,
    find_inventory,
    finish_archive,
    finish_file,
    note_fetching,
    place_members,
    restamp,
    set_subset_aside,
    trust,
)
from lavis_ext.prepare.found import Found, inspect, offered, transfer_of
from lavis_ext.prepare.inventory import Inventory
from lavis_ext.prepare.planning import PlanItem, make_plan, plan_item
from lavis_ext.prepare.report import Outcome
from lavis_ext.prepare.rows import Names, image_names, open_rows, relative_name
from lavis_ext.prepare.selection import Need, Selection, user_key
from lavis_ext.prepare.stamps import bookkeeping, read_stamp

log = logging.getLogger(__name__)


@dataclass
class Step:
    """One need on its way: what the plan says of it now, and how it can be fetched."""

    need: Need
    item: PlanItem
    found: Found
    transfer: Transfer | None
    notes: tuple[str, ...] = ()


def settle(work: Work, cards: Cards, needs: Sequence[Need], changed: Collection[str] = ()) -> dict[str, Outcome]:
    """Every need to its end, by title; failures become outcomes. `changed` are splits whose annotations are new.

    Raises KeyboardInterrupt; what is there then is continued by the next call.
    """
    outcomes: dict[str, Outcome] = {}
    steps = [step for need in needs if (step := _begin(work, need, changed, outcomes)) is not None]
    if work.options.max_samples is not None:
        steps = _take_samples(work, cards, steps, outcomes)
    whole = [step for step in steps if not _take_members(work, step, outcomes)]
    _take_whole(work, whole, outcomes)
    return outcomes


def _failed(need: Need, error: LavisExtError) -> Outcome:
    return Outcome(title=need.title, file=need.artifact.file, outcome="failed", error=error)


def _begin(work: Work, need: Need, changed: Collection[str], outcomes: dict[str, Outcome]) -> Step | None:
    """The step of a need, or None where it is done (or cannot be done), which is noted in `outcomes`."""
    if need.refusal is not None:
        outcomes[need.title] = _failed(need, need.refusal)
        return None
    try:
        offer = offered(work.root, need.artifact, work.mirrors, need.title)
        found = inspect(work.root, need.artifact, offer, work.policy.offline)
        item = plan_item(work.root, need, work.options, work.mirrors)
        known = found.stamp is not None and found.stamp.state != "partial"
        if item.action == "keep" and (known or not any(user_key(*user) in changed for user in need.users)):
            outcomes[need.title] = _keep(work, need, found)
            return None
        transfer = transfer_of(work.root, need.artifact, work.mirrors, need.title)
        if work.policy.offline and item.action not in ("check", "unpack"):
            what = "is not complete, and offline"
            raise NetworkError(
                str(work.root / need.artifact.file), what, "run `lavis-ext prepare` with a network first"
            )
        return Step(need, item, found, transfer, set_subset_aside(work, need, transfer))
    except LavisExtError as error:
        outcomes[need.title] = _failed(need, error)
        return None


def _keep(work: Work, need: Need, found: Found) -> Outcome:
    stamp = found.stamp
    if stamp is None:
        raise IntegrityError(need.title, "has no stamp", "run `lavis-ext prepare` again")
    if found.moved:
        try:
            restamp(work, need, stamp)
        except LavisExtError as error:
            log.warning("%s: its stamp is not renewed: %s", need.title, error)
    return Outcome(
        title=need.title,
        file=need.artifact.file,
        outcome="reused",
        verified=stamp.verified,
        equivalence=stamp.equivalence,
    )


def _take_samples(work: Work, cards: Cards, steps: list[Step], outcomes: dict[str, Outcome]) -> list[Step]:
    """The pictures of the first samples of each split, by single members; returns the steps that remain."""
    chosen = [s for s in steps if s.need.images and s.need.artifact.unpack == "zip" and s.transfer is not None]
    listed: list[tuple[Step, Inventory, int]] = []
    rest = [step for step in steps if step not in chosen]
    for step in chosen:
        try:
            listed.append((step, *find_inventory(work, step.need, _transfer(step))))
        except NetworkError as error:
            _whole_instead(work, step, error, rest, outcomes)
        except LavisExtError as error:
            outcomes[step.need.title] = _failed(step.need, error)
    numbers = _members_of_samples(work, cards, [(step.need, inventory) for step, inventory, _ in listed])
    for step, inventory, moved in listed:
        wanted, members = numbers[step.need.title]
        try:
            outcome = place_members(work, step.need, _transfer(step), inventory, members, wanted)
        except LavisExtError as error:
            outcomes[step.need.title] = _failed(step.need, error)
            continue
        if outcome is not None:
            outcomes[step.need.title] = _told(outcome, step, moved)
    return [step for step in rest if step.need.title not in outcomes]


def _told(outcome: Outcome, step: Step, moved: int) -> Outcome:
    """The outcome with the bytes of the directory and the notes of the step."""
    total = outcome.bytes + moved
    word = "downloaded" if total else outcome.outcome
    return replace(outcome, bytes=total, outcome=word, notes=(*step.notes, *outcome.notes))


def _transfer(step: Step) -> Transfer:
    if step.transfer is None:
        raise NetworkError(step.need.title, "is not offered", "name another mirror")
    return step.transfer


def _whole_instead(work: Work, step: Step, error: NetworkError, rest: list[Step], outcomes: dict[str, Outcome]) -> None:
    """A server without ranges: the whole archive, if the disk takes it; any other failure stands."""
    if "ranges" not in str(error):
        outcomes[step.need.title] = _failed(step.need, error)
        return
    try:
        _check_whole(work, step.need)
    except LavisExtError as refusal:
        outcomes[step.need.title] = _failed(step.need, refusal)
        return
    work.notice(f"{step.need.title}: {error.problems[0].what}; the whole archive is fetched instead")
    rest.append(replace(step, item=replace(step.item, action="unpack")))


def _check_whole(work: Work, need: Need) -> None:
    options = replace(work.options, max_samples=None)
    make_plan(work.root, Selection((), (need,)), options, work.mirrors).check_disk()


def _members_of_samples(
    work: Work, cards: Cards, listed: Sequence[tuple[Need, Inventory]]
) -> dict[str, tuple[Wanted, list[int]]]:
    """Per need: the splits it serves, and the numbers of the members that their first samples name."""
    count = work.options.max_samples or 0
    found: dict[str, tuple[Wanted, list[int]]] = {need.title: ({}, []) for need, _ in listed}
    users = {user_key(*user): user for need, _ in listed for user in need.users}
    for key, (dataset, split) in users.items():
        storage = dataset.build_info.images.storage
        homes = _homes([pair for pair in listed if (dataset, split) in pair[0].users], storage)
        sought = Names(homes, dataset.args.get("layouts"))
        try:
            paths = [work.root / path for path in cards.annotation_paths(dataset, split)]
            names = image_names(open_rows(paths, count), dataset, sought)
        except (ConfigError, IntegrityError) as error:
            log.warning("%s: its pictures are not known: %s", key, error)
            continue
        for home in (homes[place] for name in names if (place := sought.find(name)) is not None):
            found[home[0]][1].append(home[1])
        for need, _ in listed:
            if (dataset, split) in need.users:
                found[need.title][0][key] = count
    return {title: (wanted, sorted(set(numbers))) for title, (wanted, numbers) in found.items()}


def _homes(listed: Iterable[tuple[Need, Inventory]], storage: str) -> dict[str, tuple[str, int]]:
    """Name below the folder of images → (title of its need, number of its member)."""
    homes: dict[str, tuple[str, int]] = {}
    for need, inventory in listed:
        for number, member in enumerate(inventory.members):
            name = relative_name(need.artifact, member.name, storage)
            if name is not None:
                homes.setdefault(name, (need.title, number))
    return homes


def _take_members(work: Work, step: Step, outcomes: dict[str, Outcome]) -> bool:
    """Complete or repair an archive by its missing members, where that costs less; True if that is done."""
    adoptable = step.item.action == "fetch" and step.need.artifact.unpack == "zip" and _lies_unpacked(work, step.need)
    if step.item.action != "ranges" and not adoptable:
        return False
    try:
        inventory, moved = find_inventory(work, step.need, _transfer(step))
        numbers: Sequence[int] = range(len(inventory.members))
        if step.found.stamp is not None and step.found.stamp.state == "complete":
            trust(work, step.need, inventory, set(numbers) - set(step.found.lost))
        outcome = place_members(work, step.need, _transfer(step), inventory, numbers, {})
    except (NetworkError, IntegrityError) as error:
        log.info("%s: not by single files: %s", step.need.title, error)
        return False
    except LavisExtError as error:
        outcomes[step.need.title] = _failed(step.need, error)
        return True
    if outcome is None:
        return False
    outcomes[step.need.title] = _told(outcome, step, moved)
    return True


def repair(work: Work, cards: Cards, damaged: Sequence[tuple[Need, Sequence[int]]]) -> list[Outcome]:
    """Fetch again what was set aside: whole artifacts as `settle` does, of partial ones only the members named here."""
    outcomes: dict[str, Outcome] = {}
    for need, numbers in damaged:
        try:
            if numbers:
                outcomes[need.title] = _repair_members(work, need, numbers)
        except LavisExtError as error:
            outcomes[need.title] = _failed(need, error)
    whole = replace(work, options=replace(work.options, max_samples=None))
    outcomes |= settle(whole, cards, [need for need, numbers in damaged if not numbers])
    return [outcomes[need.title] for need, _ in damaged]


def _repair_members(work: Work, need: Need, numbers: Sequence[int]) -> Outcome:
    transfer = transfer_of(work.root, need.artifact, work.mirrors, need.title)
    inventory, moved = find_inventory(work, need, transfer)
    stamp = read_stamp(work.root, need.artifact)
    # a name that no data set has keeps the choice a choice where none was noted
    wanted = stamp.wanted if stamp is not None and stamp.wanted else {"": 0}
    outcome = place_members(work, need, transfer, inventory, numbers, wanted)
    if outcome is None:
        raise IntegrityError(need.title, "its members could not be repaired", "run `lavis-ext prepare`")
    return replace(outcome, bytes=outcome.bytes + moved)


def _lies_unpacked(work: Work, need: Need) -> bool:
    """Whether somebody may have unpacked this archive already: a folder of its name, or a list of its members."""
    stem = need.artifact.file.rpartition("/")[2].partition(".")[0]
    if (work.root / need.artifact.storage / stem).is_dir():
        return True
    return Inventory.read(work.root, need.artifact) is not None


def _take_whole(work: Work, steps: Sequence[Step], outcomes: dict[str, Outcome]) -> None:
    """Fetch whole files together, family by family, then finish one after the other."""
    homes: dict[Path, list[Step]] = {}
    for step in steps:
        homes.setdefault(bookkeeping(work.root, step.need.artifact), []).append(step)
    for home, group in homes.items():
        ledgered = replace(work, policy=replace(work.policy, ledger=home / "ledger.jsonl"))
        ready = [step for step in group if _note(ledgered, step, outcomes)]
        results = fetch_all(map(_transfer, ready), ledgered.policy, ledgered.progress, collect=True)
        for step, result in zip(ready, results, strict=True):
            outcomes[step.need.title] = _finish(ledgered, step, result)


def _note(work: Work, step: Step, outcomes: dict[str, Outcome]) -> bool:
    try:
        note_fetching(work, step.need)
    except LavisExtError as error:
        outcomes[step.need.title] = _failed(step.need, error)
        return False
    return True


def _finish(work: Work, step: Step, result: Result) -> Outcome:
    if result.error is not None:
        return _failed(step.need, result.error)
    try:
        packed = step.need.artifact.unpack is None or work.options.no_unpack
        finish = finish_file if packed else finish_archive
        outcome = finish(work, step.need, _transfer(step), result)
    except LavisExtError as error:
        return _failed(step.need, error)
    return _told(outcome, step, 0)
