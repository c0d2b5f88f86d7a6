"""`fetch_all`: many transfers at a time; one that fails does not stop the others."""

from __future__ import annotations

import errno
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from lavis_ext.common.errors import ConfigError, DiskError, LavisExtError, NetworkError, UsageError
from lavis_ext.fetch.engine import fetch_in, no_space, refuse_impossible
from lavis_ext.fetch.lock import SharedOwners, part_bytes
from lavis_ext.fetch.session import Session
from lavis_ext.fetch.transfer import Policy, Progress, Result, Stopped, Transfer

ONE_PATH = frozenset({errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP})
"""Errors of one folder, after which other files are still fetched."""


def fetch_all(
    transfers: Iterable[Transfer],
    policy: Policy | None = None,
    progress: Progress | None = None,
    collect: bool = False,
) -> list[Result]:
    """Fetch all, `policy.jobs` at a time; results in the order of the transfers.

    One that fails does not stop the others, except for a disk that is full or fails. At the end one error lists every
    failure (the class of the first), or, with `collect`, each failed result carries its `error`. KeyboardInterrupt
    stops all within seconds; partial files stay. Two transfers to one path must be the same (UsageError).
    """
    wanted = list(transfers)
    unique = _unique(wanted)
    with Session(policy, progress, many=True) as session, SharedOwners() as owners:
        _check_space(unique, session.policy)
        results = _run(session, unique, owners)
    found = {result.path: result for result in results}
    ordered = [found[transfer.path] for transfer in wanted]
    errors = [result.error for result in results if result.error is not None]
    if errors and not collect:
        raise _together(errors)
    return ordered


def _unique(transfers: Sequence[Transfer]) -> list[Transfer]:
    found: dict[Path, Transfer] = {}
    for transfer in transfers:
        if found.setdefault(transfer.path, transfer) != transfer:
            raise UsageError(str(transfer.path), "two different transfers go to this path", "give each its own path")
    return list(found.values())


def _check_space(transfers: Sequence[Transfer], policy: Policy) -> None:
    """Refuse before the first byte where what is declared and missing does not fit; raises DiskError.

    Each file is only looked at where not all of them would fit.
    """
    if policy.offline or not _too_large(transfers, _declared):
        return
    if found := _too_large(transfers, _missing):
        raise no_space(*found)


def _too_large(transfers: Sequence[Transfer], count: Callable[[Transfer], int]) -> tuple[Path, int, int] | None:
    """A folder whose disk has too little room for what is counted, with the bytes needed and free; None if all fits."""
    below: dict[Path, int] = {}
    for transfer in transfers:
        below[transfer.path.parent] = below.get(transfer.path.parent, 0) + count(transfer)
    needs: dict[int, tuple[int, Path]] = {}
    for parent, need in below.items():
        if need:
            place = parent.absolute()
            folder = next(folder for folder in (place, *place.parents) if folder.is_dir())
            device = folder.stat().st_dev
            needs[device] = (needs.get(device, (0, folder))[0] + need, folder)
    for need, folder in needs.values():
        free = shutil.disk_usage(folder).free
        if need > free:
            return folder, need, free
    return None


def _declared(transfer: Transfer) -> int:
    """Declared bytes, as if nothing of them were there; 0 where nothing is declared."""
    with suppress(ConfigError):
        refuse_impossible(transfer.path)
        return transfer.size or 0
    return 0


def _missing(transfer: Transfer) -> int:
    """Declared bytes that are not on disk yet."""
    size = _declared(transfer)
    return max(0, size - part_bytes(transfer.path)) if size and not transfer.path.exists() else 0


def _run(session: Session, transfers: Sequence[Transfer], owners: SharedOwners) -> list[Result]:
    results: dict[int, Result] = {}
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for index in range(len(transfers)):
        waiting.put(index)
    work = partial(_work, session, transfers, owners, waiting, results, ended)
    threads = [
        threading.Thread(target=work, name=f"fetch-{n}", daemon=True)
        for n in range(min(session.policy.jobs, len(transfers)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:  # one word of each thread, not of each file, so that this one seldom wakes
            if (error := ended.get()) is not None:
                raise error
    except BaseException:
        session.halt()
        for thread in threads:
            thread.join(timeout=3.0)
        raise
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(transfers))]


def _stops_all(error: BaseException) -> bool:
    """Whether it is the disk that fails, and not one folder that may not be written or is none."""
    cause = error.__cause__
    local = isinstance(cause, OSError) and cause.errno in ONE_PATH
    return isinstance(error, DiskError) and not local


def _work(
    session: Session,
    transfers: Sequence[Transfer],
    owners: SharedOwners,
    waiting: queue.SimpleQueue[int],
    results: dict[int, Result],
    ended: queue.SimpleQueue[BaseException | None],
) -> None:
    """Fetch files until none waits; says in the end that it has, or by which error it ended."""
    with suppress(queue.Empty):
        while True:
            index = waiting.get_nowait()
            try:
                if session.stop.is_set():
                    raise Stopped
                results[index] = fetch_in(session, transfers[index], owners)
            except BaseException as error:
                if _stops_all(error):
                    session.halt()  # before the next is begun: every other file would fail in the same way
                failed = _as_result(transfers[index], error)
                if failed is None:
                    ended.put(error)  # the calling thread raises it
                    return
                results[index] = failed
    ended.put(None)


def _as_result(transfer: Transfer, error: BaseException) -> Result | None:
    """The result of a transfer that failed; None where the whole run does, by a fault of the program's own."""
    if isinstance(error, LavisExtError):
        return Result(transfer.path, error=error, verified=False)
    if isinstance(error, Stopped):
        stopped = NetworkError(transfer.name, "not fetched: the run stopped before it", "run again")
        return Result(transfer.path, error=stopped, verified=False)
    return None


def _together(errors: Sequence[LavisExtError]) -> LavisExtError:
    """One error with all problems, of the first one's class; a DiskError comes first, since it stops the others."""
    ordered = sorted(errors, key=lambda error: not isinstance(error, DiskError))
    problems = [problem for error in ordered for problem in error.problems]
    return type(ordered[0]).of(problems)
