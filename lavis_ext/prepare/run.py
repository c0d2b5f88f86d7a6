"""`prepare`: plan, fetch, unpack, convert, count, stamp; one artifact that fails does not stop the others."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from lavis_ext.cards import Cards, load_cards
from lavis_ext.config import cache_root
from lavis_ext.errors import DiskError
from lavis_ext.fetch import MirrorMap, Progress, Silent
from lavis_ext.fetch.owner import Ownership, read_owner
from lavis_ext.prepare.account import Account, home_of, judge, write_missing
from lavis_ext.prepare.archives import Notice, Work
from lavis_ext.prepare.blobs import artifact_states, open_folders, with_tokens
from lavis_ext.prepare.contents import keep_contents
from lavis_ext.prepare.lists import is_parted, plan_lists, settle_lists
from lavis_ext.prepare.members import BOOKKEEPING
from lavis_ext.prepare.placing import disk_errors
from lavis_ext.prepare.planning import Plan, make_plan
from lavis_ext.prepare.report import Report, SplitState
from lavis_ext.prepare.selection import PrepareOptions, Selection, select, user_key
from lavis_ext.prepare.steps import settle

log = logging.getLogger(__name__)
PULSE = 1.0


def plan(names: Iterable[str], options: PrepareOptions | None = None, cards: Cards | None = None) -> Plan:
    """What `prepare` would do, without a byte moved or written.

    The one thing it may ask for over the network is `manifest.json` of the mirror that the user names. Raises
    UsageError, ConfigError, NetworkError; whether it fits the disk is for `Plan.check_disk` to say.
    """
    root, options, cards, mirrors = settings(options, cards)
    selection = open_folders(root, select(cards, names, options.splits, mirrors, root), options, mirrors)
    return _plan(root, selection, options, mirrors)


def prepare(
    names: Iterable[str],
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
    cards: Cards | None = None,
) -> Report:
    """Make families or data sets ready for use; a second call of what is finished moves nothing.

    Failures of single artifacts are in the report, whose `exit_code` is the worst. Raises UsageError and ConfigError
    for what cannot be meant, DiskError before the first byte where it does not fit, OwnedError where another process
    works on the same family. KeyboardInterrupt leaves a state that the next call continues, and is raised again.
    """
    root, options, cards, mirrors = settings(options, cards)
    selection = open_folders(root, select(cards, names, options.splits, mirrors, root), options, mirrors)
    made = _plan(root, selection, options, mirrors)
    if options.dry_run:
        return _dry(made)
    made.check_disk()
    work = Work(root, options, options.policy, mirrors, progress or Silent(), notice or log.info)
    if all(item.action == "keep" for item in made.items):
        return _report(work, cards, selection, made)  # also where the root is read-only
    with owned(work, selection) as pulse:
        keep_contents(root, selection.contents)
        work = replace(work, progress=pulse)
        return _report(work, cards, selection, made)


def _plan(root: Path, selection: Selection, options: PrepareOptions, mirrors: MirrorMap) -> Plan:
    made = plan_lists(make_plan(root, selection, options, mirrors), selection.needs, options)
    return with_tokens(made, options.policy.offline)


def _dry(made: Plan) -> Report:
    """The report of a dry run; its exit code says whether the plan fits the disk."""
    try:
        made.check_disk()
    except DiskError as error:
        return Report(plan=made, errors=(error,), dry_run=True)
    return Report(plan=made, dry_run=True)


def settings(options: PrepareOptions | None, cards: Cards | None) -> tuple[Path, PrepareOptions, Cards, MirrorMap]:
    """The cache root, options with their policy filled in, cards and the mirror; raises UsageError, ConfigError."""
    options = options or PrepareOptions()
    options.check()
    root = cache_root(options.cache_root)
    if root.exists() and not root.is_dir():
        raise DiskError(str(root), "is a file, not a folder", "name a folder in LAVIS_EXT_CACHE_ROOT or env.cache_root")
    policy = options.policy if options.jobs is None else replace(options.policy, jobs=options.jobs)
    policy = policy if options.offline is None else replace(policy, offline=options.offline)
    # Offline, no mirror is asked: what is stamped counts as it is, and the rest is named as missing.
    mirrors = MirrorMap() if policy.offline else MirrorMap.from_environment(options.mirror, policy)
    return root, replace(options, policy=policy), cards or load_cards(), mirrors


class Pulse:
    """Progress that passes everything on and touches a file, by which another process sees that this one moves."""

    def __init__(self, inner: Progress, paths: Sequence[Path]) -> None:
        self._inner, self._paths, self._last = inner, paths, 0.0

    def begin(self, label: str, total: int | None) -> None:
        """A file starts."""
        self._inner.begin(label, total)

    def advance(self, label: str, count: int) -> None:
        """Bytes came."""
        self._inner.advance(label, count)
        if time.monotonic() - self._last > PULSE:
            self._last = time.monotonic()
            for path in self._paths:
                with suppress(OSError):  # a full disk is for those to tell who write data
                    path.touch()

    def end(self, label: str, outcome: str) -> None:
        """The file is done."""
        self._inner.end(label, outcome)


@contextmanager
def owned(work: Work, selection: Selection) -> Iterator[Pulse]:
    """Be the only process that prepares these families; waits for another while it moves, then raises OwnedError."""
    folders = [work.root / family / BOOKKEEPING for family in selection.families]
    pulses = [folder / "prepare.pulse" for folder in folders]
    with ExitStack() as stack:
        for folder, pulse in zip(folders, pulses, strict=True):
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            path = folder / "prepare.owner"
            holder = read_owner(path)
            if holder is not None and holder.pid != os.getpid():
                work.notice(f"{folder.parent.name}: process {holder.pid} prepares it, waiting")
            stack.enter_context(Ownership(path, pulse, work.policy))
            stack.callback(pulse.unlink, missing_ok=True)
        yield Pulse(work.progress, pulses)


def _report(work: Work, cards: Cards, selection: Selection, made: Plan) -> Report:
    """Annotations, then images, then the account."""
    files = [need for need in selection.needs if not is_parted(need)]
    annotations = [need for need in files if not need.images]
    images = [need for need in files if need.images]
    outcomes = settle(work, cards, annotations)
    fresh = {need.title for need in annotations if outcomes[need.title].outcome == "downloaded"}
    changed = {user_key(*user) for need in annotations if need.title in fresh for user in need.users}
    outcomes |= settle(work, cards, images, changed)
    lists = settle_lists(work, cards, selection.needs, outcomes)
    account = Account(work.root, cards, selection.needs, work.options.max_samples)
    states = account.states(selection.chosen)
    chosen = {one.title: one for one in selection.chosen}
    failed = any(outcome.error for outcome in (*outcomes.values(), *lists.values()))
    errors = [*account.errors, *([] if failed else judge(states, chosen, cards, work.root))]
    if any(item.action != "keep" for item in made.items) or any(state.missing for state in states):
        _note_missing(work, selection, states)
    told = (*(outcomes[need.title] for need in files), *lists.values())
    states += artifact_states(work.root, selection)
    return Report(plan=made, outcomes=told, splits=tuple(states), errors=tuple(errors))


def _note_missing(work: Work, selection: Selection, states: list[SplitState]) -> None:
    """Write `missing.tsv`; where that fails (a root that cannot be written to) the report still tells the counts."""
    homes = {one.title: home_of(one, selection.needs) for one in selection.chosen}
    try:
        write_missing(work.root, states, homes)
    except OSError as error:
        log.warning("missing.tsv is not written: %s", error)
