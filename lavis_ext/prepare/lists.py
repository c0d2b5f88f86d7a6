"""Images that an artifact lists by URL: their items in the plan, fetching them once the list is there, and checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lavis_ext.common.config.cards import Artifact, ImageList
from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, NetworkError
from lavis_ext.prepare.plan import Plan, PlanItem, PrepareContext
from lavis_ext.prepare.records import bookkeeping
from lavis_ext.prepare.report import Outcome
from lavis_ext.prepare.samples import image_names, open_rows
from lavis_ext.prepare.selection import ArtifactRequest, PrepareOptions
from lavis_ext.prepare.urls.hosted import image_fault, walk_files
from lavis_ext.prepare.urls.job import ListAccount, list_account
from lavis_ext.prepare.urls.listing import ListOptions, fetch_images, fetch_list_files, is_made_from
from lavis_ext.prepare.urls.shards import ShardManifest, shard_fault

log = logging.getLogger(__name__)
MANIFESTS = "*.manifest.json"


def list_title(request: ArtifactRequest) -> str:
    """What messages call the images of a list."""
    return request.title if request.parted else f"{request.title} images"


def plan_lists(made: Plan, requests: Sequence[ArtifactRequest], options: PrepareOptions) -> Plan:
    """The plan with an item for each list: how many images are missing, of unknown size."""
    lists = [(request, request.artifact.lists) for request in requests if request.artifact.lists is not None]
    offline = made.context is not None and made.context.policy.offline
    items = [_plan(Path(made.root), request, spec, options, offline) for request, spec in lists]
    return replace(made, items=(*made.items, *items))


def _plan(root: Path, request: ArtifactRequest, spec: ImageList, options: PrepareOptions, offline: bool) -> PlanItem:
    account = list_account(root, request.artifact)
    named: dict[str, Any] = {"title": list_title(request), "file": spec.storage, "request": request, "listed": True}
    if account is not None and is_whole(root, request, account, options, offline):
        return PlanItem(**named, action="keep", state="verified")
    expected = spec.expected if options.max_samples is None else min(options.max_samples, spec.expected or 1 << 62)
    there = account.present if account else 0
    left = None if expected is None else max(0, expected - there)
    count = "images, as many as the list names" if expected is None else f"{left:,} of {expected:,} images"
    return PlanItem(
        **named,
        action="fetch",
        state="partial" if there else "missing",
        download=None,
        files=None if spec.output == "shards" else left,
        source="img2dataset" if spec.engine == "img2dataset" else "the list's hosts",
        note=f"{count}, of undeclared size",
    )


def is_whole(
    root: Path, request: ArtifactRequest, account: ListAccount, options: PrepareOptions, offline: bool
) -> bool:
    """Whether the last run left nothing to do, of the list that is declared and lies there now, and its files are still
    there (by count and size, not by content)."""
    spec = request.artifact.lists
    if spec is None or account.error is not None or account.passing or not account.covers(options.max_samples):
        return False
    target = root / spec.storage
    if spec.output == "files":
        there = sum(1 for _ in walk_files(target)) >= account.present
    else:
        manifests = [(tar, ShardManifest.read(tar)) for tar in sorted(target.glob("*.tar"))]
        there = all(m and tar.stat().st_size == m.bytes for tar, m in manifests)
        there = there and len(manifests) == account.shards
    source = options.source if request.parted else ""
    wanted = ListOptions(max_samples=options.max_samples, source=source)
    try:
        return there and ((offline and not account.origin) or is_made_from(root, request.artifact, wanted, account))
    except ConfigError:  # a source that is none: said when it is read
        return False


@dataclass(frozen=True)
class ListCheck:
    """The result of checking the images of a list: files, bytes, and (path, fault) of what is wrong."""

    files: int = 0
    bytes: int = 0
    faults: tuple[tuple[Path, str], ...] = ()


def check_list(root: Path, artifact: Artifact, deep: bool) -> ListCheck | None:
    """Check shards by the hash in their manifests, images by their first bytes, or by decoding them (`deep`).

    None where the list was never fetched, and no shards with manifests were copied here.
    """
    spec, account = artifact.lists, list_account(root, artifact)
    if spec is None:
        return None
    target = root / spec.storage
    if spec.output == "shards":
        paths = sorted(target.glob("*.tar"))
        manifests = {path.with_name(path.name.replace(".manifest.json", ".tar")) for path in target.glob(MANIFESTS)}
        faults = [(path, "missing") for path in sorted(manifests.difference(paths))]
        faults += [(path, shard_fault(path)) for path in paths]
        expected = account.shards if account else len(paths) if manifests else None
    else:
        paths = [target / name for name in walk_files(target)]
        faults = [(path, image_fault(path, deep)) for path in paths]
        expected = account.present if account else None
    if expected is None:
        return None
    found = [(path, fault) for path, fault in faults if fault]
    if len(paths) < expected and not any(fault == "missing" for _, fault in found):
        found.append((target, f"{expected - len(paths):,} of {expected:,} {spec.output} are missing"))
    return ListCheck(len(paths), sum(path.stat().st_size for path in paths), tuple(found))


def execute_lists(
    context: PrepareContext,
    items: Sequence[PlanItem],
    before: Mapping[str, Outcome],
    damaged: Mapping[str, Sequence[Path]] | None = None,
) -> dict[str, Outcome]:
    """Fetch the images of every list whose own file is there; outcomes by title, failures among them.

    `damaged` are images or shards to make again, by title: from the source, and as many samples, as the last time.
    Raises KeyboardInterrupt; the next call continues from what is there.
    """
    outcomes: dict[str, Outcome] = {}
    for item in items:
        request = item.request
        if request is None or request.artifact.lists is None:
            continue
        if request.title in before and before[request.title].error is not None:
            continue
        try:
            found = None if damaged is None else tuple(damaged.get(item.title, ()))
            if request.title in before and before[request.title].outcome == "downloaded":
                item = replace(item, action="fetch")  # of a list that may be another than that of the plan
            outcomes[item.title] = _execute(context, item, request, request.artifact.lists, found)
        except LavisExtError as error:
            outcomes[item.title] = Outcome(title=item.title, file=item.file, outcome="failed", error=error)
    return outcomes


def _execute(
    context: PrepareContext,
    item: PlanItem,
    request: ArtifactRequest,
    spec: ImageList,
    damaged: tuple[Path, ...] | None,
) -> Outcome:
    account = list_account(context.root, request.artifact)
    if damaged is not None and account is not None:
        last = context.options.source or account.origin.get("source", "")
        context = replace(context, options=replace(context.options, source=last, max_samples=account.asked))
    elif account is not None and item.action == "keep":
        return _outcome(item.title, spec, replace(account, bytes_moved=0, notes=[]), context)
    if context.policy.offline:
        raise NetworkError(item.title, "is not complete, and offline", "run `lavis-ext prepare` with a network first")
    options = ListOptions(
        max_samples=context.options.max_samples,
        only=_named(context, request) if spec.engine == "fetch" else None,
        source=context.options.source if request.parted else "",
        distributor=context.options.distributor,
        processes=context.options.processes,
        damaged=damaged or (),
        policy=replace(context.policy, ledger=bookkeeping(context.root, request.artifact) / "ledger.jsonl"),
        mirrors=context.mirrors,
    )
    if context.options.metadata_only:
        files = fetch_list_files(context.root, request.artifact, options, context.progress)
        size = sum(file.stat().st_size for file in files)
        return Outcome(title=item.title, file=spec.storage, outcome="downloaded", bytes=size, verified="size")
    threshold = request.card.success_threshold
    account = fetch_images(context.root, request.artifact, threshold, options, context.progress)
    return _outcome(item.title, spec, account, context)


def _named(context: PrepareContext, request: ArtifactRequest) -> frozenset[str] | None:
    """File names of the images of the first samples of every split that uses the list; None: all, or not known."""
    if context.options.max_samples is None:
        return None
    names: set[str] = set()
    for dataset, split in request.users:
        try:
            paths = [context.root / path for path in context.cards.annotation_paths(dataset, split)]
            rows = open_rows(paths, dataset, split, context.root, context.options.max_samples)
            found = image_names(rows, dataset)
        except (ConfigError, IntegrityError) as error:
            log.warning("%s: its images are not known: %s", request.title, error)
            return None
        names.update(PurePosixPath(name).name for name in found)
    return frozenset(names) or None


def _outcome(title: str, spec: ImageList, account: ListAccount, context: PrepareContext) -> Outcome:
    error = account.error
    return Outcome(
        title=title,
        file=spec.storage,
        outcome="failed" if error else "downloaded" if account.bytes_moved else "reused",
        bytes=account.bytes_moved,
        verified="decoded" if spec.engine == "img2dataset" else "length",
        equivalence="subset" if context.mirrors.is_subset else "byte_exact",
        notes=(account.line(), *account.notes),
        error=error,
    )
