"""Lists of one or a few hosts (NoCaps): every image is a Transfer of the fetch engine, its bytes kept as they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lavis_ext.common.config.cards import ImageList
from lavis_ext.common.errors import DiskError, NetworkError
from lavis_ext.common.files import is_dangling, read_bounded, read_file, size_of
from lavis_ext.fetch import MirrorMap, Progress, Result, Source, Transfer, fetch_all
from lavis_ext.prepare.records import disk_errors
from lavis_ext.prepare.urls.job import ASIDE, PLACEHOLDER, ListAccount, ListJob, LostImage, origin_of
from lavis_ext.prepare.urls.rows import ListedImage, checked_sources, distinct_rows, set_file_aside

HEAD = 64

# The images that are on disk. Folders are listed: a `stat` per image would take long for a million of them.


def find_images(target: Path, paths: Collection[str]) -> set[str]:
    """Those of the relative paths that are files with content; temporary files of a killed run are removed."""
    return {path for path, is_image in _listed(target, paths).items() if is_image}


def _listed(target: Path, paths: Collection[str]) -> dict[str, bool]:
    """Those of the relative paths at which something lies, and whether it is a file with content."""
    found: dict[str, bool] = {}
    for folder in {str(PurePosixPath(path).parent) for path in paths}:
        prefix = "" if folder == "." else f"{folder}/"
        try:
            with os.scandir(target / folder) as entries:
                found.update((prefix + entry.name, _is_image(entry)) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return {path: found[path] for path in found.keys() & paths}


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file with content; a temporary file is removed."""
    if entry.name.startswith(".") and entry.name.endswith(".part"):
        os.unlink(entry.path)  # noqa: PTH108 - a listing of a million
        return False
    return bool(size_of(entry))


def walk_files(target: Path) -> Iterator[str]:
    """Relative names of the files below a folder; hidden folders and `*.bad-*` files are left out."""
    for folder, inner, names in os.walk(target):
        inner[:] = [name for name in inner if not name.startswith(".")]
        kept = (name for name in names if ".bad-" not in name)
        yield from (os.path.relpath(os.path.join(folder, name), target) for name in kept)  # noqa: PTH118 - a million


def image_fault(path: Path, deep: bool = False) -> str:
    """Why a file is no image, by its first bytes, or by decoding all of it (`deep`); "" if it is one."""
    from lavis_ext.datasets.readers.decode import decode_rgb, sniff_fault
    from lavis_ext.datasets.readers.faults import SampleError

    fault = sniff_fault(read_bounded(path, HEAD))
    if fault or not deep:
        return fault
    try:
        decode_rgb(read_file(path), path=str(path))
    except SampleError as error:
        return error.why
    return ""


def set_aside_foreign(target: Path, paths: Collection[str]) -> list[str]:
    """Move what has the names of images and is none to ASIDE: error pages, links to nothing, folders, empty files.

    Returns notes that say how many there were.
    """
    moved = Counter[str]()
    for path, is_file in sorted(_listed(target, paths).items()):
        if not is_file or image_fault(target / path):
            moved["links to nothing" if is_dangling(target / path) else "files that are no images"] += 1
            set_file_aside(target, path)
    return [f"{count} {what} were set aside in {ASIDE}" for what, count in moved.items()]


# Fetching


def expand_list(
    annotations: Sequence[Path],
    spec: ImageList,
    target: Path,
    limit: int | None = None,
    mirrors: MirrorMap | None = None,
) -> list[Transfer]:
    """One Transfer for each image that a list's files name, those that are on disk too.

    Names come from the list's `path` pattern, never from a server. Rows that are refused (scheme, private address),
    what a mirror lacks and repeated paths are left out. Raises ConfigError, IntegrityError.
    """
    rows = distinct_rows(annotations, spec, limit, allow_private=bool(mirrors))
    return [transfer for _, transfer in _transfers(rows, target, mirrors or MirrorMap()) if transfer is not None]


def _transfers(
    rows: Iterator[ListedImage], target: Path, mirrors: MirrorMap
) -> Iterator[tuple[ListedImage, Transfer | None]]:
    """Each row that is the first of its image, and its Transfer; None for one that has a `refusal`."""
    _ = mirrors.manifest  # a mirror that cannot be asked at all is an error, not a list of missing images
    for row in rows:
        if row.refusal:
            yield row, None
        elif not row.repeats:
            try:
                yield row, mirrors.apply(Transfer(target / row.path, (Source(row.url),), label=row.path))
            except NetworkError:
                yield replace(row, refusal="the mirror lacks it"), None


def fetch_hosted(job: ListJob, progress: Progress | None = None) -> ListAccount:
    """Fetch every image of a list that is not there; returns the account, whose `check()` raises below the threshold.

    Raises DiskError, ConfigError, DamagedList.
    """
    with disk_errors(job.work):
        return _fetch(job, progress)


def _fetch(job: ListJob, progress: Progress | None) -> ListAccount:
    job.work.mkdir(parents=True, exist_ok=True)
    limit = job.max_samples if job.only is None else None
    rows = distinct_rows(job.annotations, job.spec, limit, job.allow_private, job.target)
    chosen = (row for row in checked_sources(rows, job) if job.only is None or PurePosixPath(row.path).name in job.only)
    wanted = list(_transfers(chosen, job.target, job.mirrors))
    paths = {row.path for row, transfer in wanted if transfer}
    for path in job.damaged:
        set_file_aside(job.target, path.relative_to(job.target).as_posix())
    notes = set_aside_foreign(job.target, paths)
    there = find_images(job.target, paths)
    missing = [transfer for row, transfer in wanted if transfer and row.path not in there]
    ledger = job.policy.ledger or job.work / "ledger.jsonl"
    policy = replace(job.policy, ledger=ledger, public_only=not job.allow_private)
    results = fetch_all(missing, policy, progress, collect=True)
    account = ListAccount(name=job.name, expected=len(wanted), threshold=job.threshold, asked=job.max_samples)
    account.notes += notes
    account.bytes_moved = sum(result.bytes_moved for result in results)
    refused = (LostImage.of(row, row.refusal) for row, transfer in wanted if transfer is None)
    losses = [*refused, *_failed(wanted, results), *_no_images(job, wanted, results)]
    account.present = account.expected - len(losses)
    account.origin = origin_of(job)
    account.save(job.work, losses)
    return account


def _failed(wanted: Sequence[tuple[ListedImage, Transfer | None]], results: Sequence[Result]) -> Iterator[LostImage]:
    rows = {transfer.path: row for row, transfer in wanted if transfer}
    for result in results:
        if isinstance(result.error, DiskError):
            raise result.error
        if result.error is not None:
            row = rows[result.path]
            corrupt = result.error.exit_code == 5
            yield LostImage.of(row, reason_of(str(result.error.problems[0].what)), corrupt)


def _no_images(
    job: ListJob, wanted: Sequence[tuple[ListedImage, Transfer | None]], results: Sequence[Result]
) -> Iterator[LostImage]:
    """Set aside what came and is no image by its first bytes, or what hosts send in the place of a lost one."""
    rows = {transfer.path: row for row, transfer in wanted if transfer}
    for result in results:
        if result.error is None:
            fault = PLACEHOLDER if result.sha256 in job.spec.placeholders else image_fault(result.path)
            row = rows[result.path]
            if fault:
                set_file_aside(job.target, row.path)
                yield LostImage.of(row, fault, fault != PLACEHOLDER)


def reason_of(message: str) -> str:
    """The engine's reason without the URL before it."""
    return message.rpartition("://")[2].partition(": ")[2][:80] or message[:80]
