"""`prepare`: select, plan, execute, extract, record, report; one artifact that fails does not stop the others."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from lavis_ext.common.config.cards import Cards
from lavis_ext.common.errors import DiskError, LavisExtError, NetworkError, OwnedError
from lavis_ext.fetch.lock import Ownership, read_owner
from lavis_ext.fetch.transfer import OFFLINE, Progress, Silent
from lavis_ext.prepare.plan import Plan, PlanItem, PrepareContext, make_context, make_plan, plan_item
from lavis_ext.prepare.records import BOOKKEEPING, OnDisk, disk_errors
from lavis_ext.prepare.report import Outcome, Report
from lavis_ext.prepare.samples import SplitCounter, artifact_states, home_of, shortage_errors, write_missing
from lavis_ext.prepare.selection import PrepareOptions, Selection, select, user_key

log = logging.getLogger(__name__)
PULSE = 1.0


def plan(names: Iterable[str], options: PrepareOptions | None = None, cards: Cards | None = None) -> Plan:
    """What `prepare` will do, without a byte moved or written; `execute_plan` does it.

    The one thing it may ask for over the network is `manifest.json` of the mirror that the user names. Raises
    UsageError, ConfigError, NetworkError; whether it fits the disk is for `Plan.check_disk` to say.
    """
    context = make_context(options, cards)
    lock = None
    if context.options.locked:
        from lavis_ext.prepare.lockfile import Lock

        lock = Lock.read(must=True)
        context = replace(context, cards=lock.applied(context.cards))
    selection = select(context.cards, names, context.options.splits, context.mirrors, context.root)
    selection = opened(context, selection)
    if lock is not None:
        lock.require(selection.requests)
    return _plan(context, selection)


def opened(context: PrepareContext, selection: Selection) -> Selection:
    """The selection with folders as their files; raises UsageError, UnsafeError."""
    asked = context.options.include or context.options.exclude
    if not asked and all(request.artifact.folder is None for request in selection.requests):
        return selection
    from lavis_ext.prepare.blobs import open_folders

    return open_folders(context.root, selection, context.options, context.mirrors)


def _plan(context: PrepareContext, selection: Selection) -> Plan:
    made = make_plan(context, selection)
    if any(request.artifact.lists for request in selection.requests):
        from lavis_ext.prepare.lists import plan_lists

        made = plan_lists(made, selection.requests, context.options)
    if any(item.source.startswith("azure:") for item in made.items):
        from lavis_ext.prepare.blobs import with_tokens

        made = with_tokens(made, context.policy.offline)
    return made


def prepare(
    names: Iterable[str],
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    cards: Cards | None = None,
) -> Report:
    """Make families or data sets ready for use: `plan`, then `execute_plan`."""
    return execute_plan(plan(names, options, cards), progress, notice)


def execute_plan(made: Plan, progress: Progress | None = None, notice: Callable[[str], None] | None = None) -> Report:
    """Execute a plan; where all of it is done, nothing moves.

    Failures of single artifacts are in the report, whose `exit_code` is the worst. Raises DiskError before the first
    byte where it does not fit, OwnedError where another process works on the same family. After KeyboardInterrupt the
    next call continues. A plan of a dry run is only checked against the free space.
    """
    context, selection = made.context, made.selection
    if context is None or selection is None:
        raise ValueError("a plan that was made by hand cannot be executed")
    context = replace(context, progress=progress or Silent(), notice=notice or log.info, requests=selection.requests)
    if context.options.dry_run:
        errors = [item.transfer for item in made.items if isinstance(item.transfer, LavisExtError)]
        errors += [
            NetworkError(str(context.root / item.file), f"{item.state}, and offline", OFFLINE)
            for item in made.items
            if context.policy.offline and item.remote
        ]
        try:
            made.check_disk()
        except DiskError as error:
            errors.append(error)
        return Report(plan=made, errors=tuple(errors), dry_run=True)
    made.check_disk()
    if made.done:
        _remove_leftovers(context, selection, made)
        return _execute(context, selection, made)  # also where the root is read-only
    with owned(context, selection) as (pulse, waited):
        if waited:  # another process worked here meanwhile: the plan is out of date
            made = _plan(context, selection)
        if selection.contents:
            from lavis_ext.prepare.blobs import keep_contents

            keep_contents(context.root, selection.contents)
        context = replace(context, progress=pulse, require=pulse.require)
        if any(item.leftover for item in made.items):
            from lavis_ext.prepare.execute import remove_leftovers

            remove_leftovers(context, made.items)
        return _execute(context, selection, made)


def _remove_leftovers(context: PrepareContext, selection: Selection, made: Plan) -> None:
    """`remove_leftovers` where nothing else is to be done: if nothing can be written, or another works here, later."""
    if not any(item.leftover for item in made.items):
        return
    from lavis_ext.prepare.execute import remove_leftovers

    at_once = replace(context.policy, owner_wait=0.0, owner_stall=0.0)
    try:
        with owned(replace(context, policy=at_once, notice=log.info), selection) as (pulse, _):
            remove_leftovers(replace(context, require=pulse.require), made.items)
    except (DiskError, OwnedError) as error:
        log.info("an archive of a killed run stays for now: %s", error)


class Pulse:
    """Progress that forwards to another and touches files, by which a waiting process sees that this one moves.

    It ends what is under way, by OwnedError, where another process has taken over one of `owners`.
    """

    def __init__(self, inner: Progress, paths: Sequence[Path], owners: Sequence[Ownership]) -> None:
        self._inner, self._paths, self._owners, self._last = inner, paths, owners, 0.0

    def begin(self, label: str, total: int | None) -> None:
        self._inner.begin(label, total)

    def advance(self, label: str, count: int) -> None:
        self._inner.advance(label, count)
        self.require(now=False)
        if time.monotonic() - self._last > PULSE:
            self._last = time.monotonic()
            for path in self._paths:
                with suppress(OSError):  # a full disk is reported by what writes data
                    path.touch()

    def end(self, label: str, outcome: str) -> None:
        self._inner.end(label, outcome)

    def require(self, now: bool = True) -> None:
        """Raise OwnedError where this process was taken over."""
        for owner in self._owners:
            owner.require(now)


@contextmanager
def owned(context: PrepareContext, selection: Selection) -> Iterator[tuple[Pulse, bool]]:
    """Own these families for this process; waits for another owner while it moves, else raises OwnedError.

    Yields the progress by which waiting processes see that this one moves, and whether there was another owner. A
    process that was taken over meanwhile ends with OwnedError, whatever else it found.
    """
    folders = [context.root / family / BOOKKEEPING for family in selection.families]
    pulses = [folder / "prepare.pulse" for folder in folders]
    owners: list[Ownership] = []
    with ExitStack() as stack:
        for folder, pulse in zip(folders, pulses, strict=True):
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            path = folder / "prepare.owner"
            holder = read_owner(path)
            if holder is not None and holder.pid != os.getpid():
                context.notice(f"{folder.parent.name}: process {holder.pid} prepares it, waiting")
            owners.append(stack.enter_context(Ownership(path, pulse, context.policy)))
            stack.callback(pulse.unlink, missing_ok=True)
        shown = Pulse(context.progress, pulses, owners)
        try:
            yield shown, any(owner.waited for owner in owners)
        except Exception:
            shown.require()  # what failed may have failed because another process works here
            raise
        shown.require()


def _execute(context: PrepareContext, selection: Selection, made: Plan) -> Report:
    """Execute annotations, then images, then lists; then count the samples."""
    from lavis_ext.prepare.execute import execute_items  # a dry run needs no reader of archives

    files, listed = ([item for item in made.items if item.listed == which] for which in (False, True))
    outcomes: dict[str, Outcome] = {}
    lists: dict[str, Outcome] = {}
    outcomes |= execute_items(context, [item for item in files if not _of_images(item)])
    files = [_replan(context, item, files, outcomes) for item in files]
    outcomes |= execute_items(context, [item for item in files if _of_images(item)])
    if listed:
        from lavis_ext.prepare.lists import execute_lists

        lists = execute_lists(context, listed, outcomes)
    disks = {}
    for item in files:
        record = outcomes[item.title].record
        disks[item.file] = item.disk if record is None else OnDisk("recorded", record)
    counter = SplitCounter(context.root, context.cards, selection.requests, disks, context.options.max_samples)
    states = counter.states(selection.chosen)
    chosen = {one.title: one for one in selection.chosen}
    failed = any(outcome.error for outcome in (*outcomes.values(), *lists.values()))
    errors = [*counter.errors, *([] if failed else shortage_errors(states, chosen, context.cards, context.root))]
    if not made.done or any(state.missing for state in states):
        homes = {one.title: home_of(one, selection.requests) for one in selection.chosen}
        try:
            write_missing(context.root, states, homes)
        except OSError as error:  # a root that cannot be written to: the report has the counts
            log.warning("missing.tsv is not written: %s", error)
    results = (*(outcomes[item.title] for item in files), *lists.values())
    states += artifact_states(selection, disks)
    return Report(plan=made, outcomes=results, splits=tuple(states), errors=tuple(errors))


def _of_images(item: PlanItem) -> bool:
    return item.request is not None and item.request.images


def _replan(
    context: PrepareContext, item: PlanItem, items: Sequence[PlanItem], outcomes: Mapping[str, Outcome]
) -> PlanItem:
    """The item, planned again where its pictures were kept by annotations that turned out to be wrong ones."""
    if not _of_images(item) or item.request is None or item.action != "keep":
        return item
    wrong = [one for one in items if one.action == "check" and not _of_images(one)]
    wrong = [one for one in wrong if outcomes[one.title].outcome == "downloaded"]
    renewed = {user_key(*user) for one in wrong if one.request is not None for user in one.request.users}
    hit = any(user_key(*user) in renewed for user in item.request.users)
    return plan_item(context, item.request, renewed) if hit else item
