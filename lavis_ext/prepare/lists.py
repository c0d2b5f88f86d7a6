"""Images that an artifact lists by URL: their row in the plan, their fetching once the list is there, their outcome."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lavis_ext.cards import Artifact, Cards, ImageList
from lavis_ext.errors import ConfigError, IntegrityError, LavisExtError, NetworkError
from lavis_ext.imagelists import Account, ListOptions, fetch_images, fetch_list_files, list_account
from lavis_ext.imagelists.disk import image_fault, walk_files
from lavis_ext.imagelists.shards import Manifest, shard_fault
from lavis_ext.prepare.archives import Work
from lavis_ext.prepare.planning import Plan, PlanItem
from lavis_ext.prepare.report import Outcome
from lavis_ext.prepare.rows import image_names, open_rows
from lavis_ext.prepare.selection import Need, PrepareOptions
from lavis_ext.prepare.stamps import bookkeeping

log = logging.getLogger(__name__)


def is_parted(need: Need) -> bool:
    """Whether an artifact is a list in several files: those too are fetched here."""
    return need.artifact.lists is not None and need.artifact.lists.parts > 1


def list_title(need: Need) -> str:
    """What messages call the images of a list."""
    return need.title if is_parted(need) else f"{need.title} images"


def plan_lists(made: Plan, needs: Sequence[Need], options: PrepareOptions) -> Plan:
    """The plan with a row for each list: how many images are to come; how many bytes nobody knows before."""
    parted = {need.title for need in needs if is_parted(need)}
    kept = [item for item in made.items if item.title not in parted]
    lists = [(need, need.artifact.lists) for need in needs if need.artifact.lists is not None]
    return replace(made, items=(*kept, *(_plan(Path(made.root), need, spec, options) for need, spec in lists)))


def _plan(root: Path, need: Need, spec: ImageList, options: PrepareOptions) -> PlanItem:
    account = list_account(root, need.artifact)
    if account is not None and is_whole(root, spec, account, options):
        return PlanItem(title=list_title(need), file=spec.storage, action="keep", state="verified")
    expected = spec.expected if options.max_samples is None else min(options.max_samples, spec.expected or 1 << 62)
    there = account.present if account else 0
    left = None if expected is None else max(0, expected - there)
    told = "images, as many as the list names" if expected is None else f"{left:,} of {expected:,} images"
    return PlanItem(
        title=list_title(need),
        file=spec.storage,
        action="fetch",
        state="partial" if there else "missing",
        download=None,
        files=None if spec.output == "shards" else left,
        source="img2dataset" if spec.engine == "img2dataset" else "the list's hosts",
        note=f"{told}, of undeclared size",
    )


def is_whole(root: Path, spec: ImageList, account: Account, options: PrepareOptions) -> bool:
    """Whether the last run left nothing to do, and what it left is still there (by count and size, not by content)."""
    if account.error is not None or account.passing or not account.covers(options.max_samples):
        return False
    target = root / spec.storage
    if spec.output == "files":
        return sum(1 for _ in walk_files(target)) >= account.present
    tars = sorted(target.glob("*.tar"))
    manifests = [(tar, Manifest.read(tar)) for tar in tars]
    return len(tars) == account.shards and all(m and tar.stat().st_size == m.bytes for tar, m in manifests)


@dataclass(frozen=True)
class ListCheck:
    """What a look at the images of a list proved: files, bytes, and what is wrong with which."""

    files: int = 0
    bytes: int = 0
    faults: tuple[tuple[Path, str], ...] = ()


def check_list(root: Path, artifact: Artifact, deep: bool) -> ListCheck | None:
    """Shards by the hash of their manifests, images by their first bytes, or decoded whole (`deep`).

    None where the list was never fetched.
    """
    spec = artifact.lists
    if spec is None or list_account(root, artifact) is None:
        return None
    target = root / spec.storage
    if spec.output == "shards":
        paths = sorted(target.glob("*.tar"))
        faults = ((path, shard_fault(path)) for path in paths)
    else:
        paths = [target / name for name in walk_files(target)]
        faults = ((path, image_fault(path, deep)) for path in paths)
    found = tuple((path, fault) for path, fault in faults if fault)
    return ListCheck(len(paths), sum(path.stat().st_size for path in paths), found)


def settle_lists(work: Work, cards: Cards, needs: Sequence[Need], before: dict[str, Outcome]) -> dict[str, Outcome]:
    """Fetch the images of every list whose own file is there; outcomes by title, failures among them.

    Raises KeyboardInterrupt; the next call goes on from what is there.
    """
    outcomes: dict[str, Outcome] = {}
    for need in needs:
        spec = need.artifact.lists
        failed = need.title in before and before[need.title].error is not None
        if spec is None or failed:
            continue
        try:
            outcomes[list_title(need)] = _settle(work, cards, need, spec)
        except LavisExtError as error:
            title = list_title(need)
            outcomes[title] = Outcome(title=title, file=spec.storage, outcome="failed", error=error)
    return outcomes


def _settle(work: Work, cards: Cards, need: Need, spec: ImageList) -> Outcome:
    title, account = list_title(need), list_account(work.root, need.artifact)
    if account is not None and is_whole(work.root, spec, account, work.options):
        return _told(title, spec, replace(account, bytes_moved=0, notes=[]), work)
    if work.policy.offline:
        raise NetworkError(title, "is not complete, and offline", "run `lavis-ext prepare` with a network first")
    options = _options(work, cards, need, spec)
    if work.options.metadata_only:
        files = fetch_list_files(work.root, need.artifact, options, work.progress)
        size = sum(file.stat().st_size for file in files)
        return Outcome(title=title, file=spec.storage, outcome="downloaded", bytes=size, verified="size")
    return _told(
        title, spec, fetch_images(work.root, need.artifact, need.card.success_threshold, options, work.progress), work
    )


def _options(work: Work, cards: Cards, need: Need, spec: ImageList) -> ListOptions:
    return ListOptions(
        max_samples=work.options.max_samples,
        only=_named(work, cards, need) if spec.engine == "fetch" else None,
        source=work.options.source if is_parted(need) else "",
        distributor=work.options.distributor,
        processes=work.options.processes,
        policy=replace(work.policy, ledger=bookkeeping(work.root, need.artifact) / "ledger.jsonl"),
        mirrors=work.mirrors,
    )


def _named(work: Work, cards: Cards, need: Need) -> frozenset[str] | None:
    """File names of the images of the first samples of every split that uses the list; None: all, or not known."""
    if work.options.max_samples is None:
        return None
    names: set[str] = set()
    for dataset, split in need.users:
        try:
            paths = [work.root / path for path in cards.annotation_paths(dataset, split)]
            found = image_names(open_rows(paths, work.options.max_samples), dataset)
        except (ConfigError, IntegrityError) as error:
            log.warning("%s: its images are not known: %s", need.title, error)
            return None
        names.update(PurePosixPath(name).name for name in found)
    return frozenset(names) or None


def _told(title: str, spec: ImageList, account: Account, work: Work) -> Outcome:
    error = account.error
    return Outcome(
        title=title,
        file=spec.storage,
        outcome="failed" if error else "downloaded" if account.bytes_moved else "reused",
        bytes=account.bytes_moved,
        verified="decoded" if spec.engine == "img2dataset" else "length",
        equivalence="subset" if work.mirrors.is_subset else "byte_exact",
        notes=(account.line(), *account.notes),
        error=error,
    )
