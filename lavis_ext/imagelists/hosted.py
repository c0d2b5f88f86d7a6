"""Lists of one or a few hosts (NoCaps): every image is a Transfer of the fetch engine, bytes as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lavis_ext.cards import ImageList
from lavis_ext.errors import DiskError, NetworkError
from lavis_ext.fetch import MirrorMap, Progress, Result, Source, Transfer, fetch_all
from lavis_ext.imagelists.account import Account, Loss
from lavis_ext.imagelists.disk import find_images, set_aside_foreign
from lavis_ext.imagelists.job import ListJob
from lavis_ext.imagelists.rows import Row, read_rows


def expand_list(
    annotations: Sequence[Path],
    spec: ImageList,
    target: Path,
    limit: int | None = None,
    mirrors: MirrorMap | None = None,
) -> list[Transfer]:
    """What a list's files expand to: one Transfer for each image that it names, those that are there too.

    Names come from the list's `path` pattern, never from a server. Rows that may not be asked (scheme, private address)
    and what a mirror lacks are left out, repeated paths too. Raises ConfigError, IntegrityError.
    """
    rows = read_rows(annotations, spec, limit, allow_private=bool(mirrors))
    return [transfer for _, transfer in _transfers(rows, target, mirrors or MirrorMap()) if transfer is not None]


def _transfers(rows: Iterator[Row], target: Path, mirrors: MirrorMap) -> Iterator[tuple[Row, Transfer | None]]:
    """Each row that is the first with its path, and how to fetch it; None, and a refusal, for one that may not be."""
    seen: set[str] = set()
    _ = mirrors.manifest  # a mirror that cannot be asked at all is an error, not a list of missing images
    for row in rows:
        if row.refusal:
            yield row, None
        elif row.path not in seen:
            seen.add(row.path)
            try:
                yield row, mirrors.apply(Transfer(target / row.path, (Source(row.url),), label=row.path))
            except NetworkError:
                yield replace(row, refusal="the mirror lacks it"), None


def fetch_hosted(job: ListJob, progress: Progress | None = None) -> Account:
    """Fetch every image of a list that is not there; returns the account, whose `check()` raises below the threshold.

    Raises DiskError, ConfigError, IntegrityError.
    """
    job.work.mkdir(parents=True, exist_ok=True)
    limit = job.max_samples if job.only is None else None
    rows = read_rows(job.annotations, job.spec, limit, job.allow_private)
    chosen = (row for row in rows if job.only is None or PurePosixPath(row.path).name in job.only)
    wanted = list(_transfers(chosen, job.target, job.mirrors))
    paths = {row.path for row, transfer in wanted if transfer}
    moved = set_aside_foreign(job.target, find_images(job.target, paths))
    there = find_images(job.target, paths)
    missing = [transfer for row, transfer in wanted if transfer and row.path not in there]
    policy = replace(job.policy, ledger=job.policy.ledger or job.work / "ledger.jsonl")
    results = fetch_all(missing, policy, progress, collect=True)
    account = Account(name=job.name, expected=len(wanted), threshold=job.threshold, asked=job.max_samples)
    account.notes += [f"{moved} files that are no images were set aside"] if moved else []
    account.bytes_moved = sum(result.bytes_moved for result in results)
    losses = [*_refused(wanted), *_failed(wanted, results)]
    account.present = account.expected - len(losses)
    account.save(job.work, losses)
    return account


def _refused(wanted: Sequence[tuple[Row, Transfer | None]]) -> Iterator[Loss]:
    return (Loss(row.id, row.url, row.refusal) for row, transfer in wanted if transfer is None)


def _failed(wanted: Sequence[tuple[Row, Transfer | None]], results: Sequence[Result]) -> Iterator[Loss]:
    rows = {transfer.path: row for row, transfer in wanted if transfer}
    for result in results:
        if isinstance(result.error, DiskError):
            raise result.error
        if result.error is not None:
            row = rows[result.path]
            corrupt = result.error.exit_code == 5
            yield Loss(row.id, row.url, reason_of(str(result.error.problems[0].what)), corrupt)


def reason_of(told: str) -> str:
    """The engine's reason without the URL before it."""
    return told.rpartition("://")[2].partition(": ")[2][:80] or told[:80]
