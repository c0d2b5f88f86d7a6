"""`fetch_all`: many transfers at a time; one that fails does not stop the others."""

from __future__ import annotations

import errno
import queue
import shutil
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from lavis_ext.common.errors import ConfigError, DiskError, LavisExtError, NetworkError, UsageError
from lavis_ext.fetch.engine import fetch_in, no_space, refuse_impossible
from lavis_ext.fetch.lock import part_bytes
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
    with Session(policy, progress, many=True) as session:
        _check_space(unique, session.policy)
        results = _run(session, unique)
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
    """Refuse before the first byte where what is declared and missing does not fit; raises DiskError."""
    if policy.offline:
        return
    needs: dict[int, tuple[int, Path]] = {}
    for transfer in transfers:
        missing = _missing(transfer)
        if missing:
            folder = next(folder for folder in transfer.path.absolute().parents if folder.is_dir())
            device = folder.stat().st_dev
            needs[device] = (needs.get(device, (0, folder))[0] + missing, folder)
    for need, folder in needs.values():
        free = shutil.disk_usage(folder).free
        if need > free:
            raise no_space(folder, need, free)


def _missing(transfer: Transfer) -> int:
    """Declared bytes that are not on disk yet; 0 where nothing is declared."""
    with suppress(ConfigError):
        refuse_impossible(transfer.path)
        if transfer.size is not None and not transfer.path.exists():
            return max(0, transfer.size - part_bytes(transfer.path))
    return 0


def _run(session: Session, transfers: Sequence[Transfer]) -> list[Result]:
    results: dict[int, Result] = {}
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Result | BaseException]] = queue.SimpleQueue()
    for index in range(len(transfers)):
        waiting.put(index)
    threads = [
        threading.Thread(target=_work, args=(session, transfers, waiting, done), name=f"fetch-{n}", daemon=True)
        for n in range(min(session.policy.jobs, len(transfers)))
    ]
    for thread in threads:
        thread.start()
    try:
        while len(results) < len(transfers):
            index, outcome = done.get()
            results[index] = _as_result(transfers[index], outcome)
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
    waiting: queue.SimpleQueue[int],
    done: queue.SimpleQueue[tuple[int, Result | BaseException]],
) -> None:
    while True:
        try:
            index = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            if session.stop.is_set():
                raise Stopped
            done.put((index, fetch_in(session, transfers[index])))
        except BaseException as error:  # `_as_result` raises it in the calling thread, if it is to be raised
            if _stops_all(error):
                session.halt()  # before the next is begun: every other file would fail in the same way
            done.put((index, error))


def _as_result(transfer: Transfer, outcome: Result | BaseException) -> Result:
    if isinstance(outcome, Result):
        return outcome
    if isinstance(outcome, LavisExtError):
        return Result(transfer.path, error=outcome, verified=False)
    if isinstance(outcome, Stopped):
        error = NetworkError(transfer.name, "not fetched: the run stopped before it", "run again")
        return Result(transfer.path, error=error, verified=False)
    raise outcome


def _together(errors: Sequence[LavisExtError]) -> LavisExtError:
    """One error with all problems, of the first one's class; a DiskError comes first, since it stops the others."""
    ordered = sorted(errors, key=lambda error: not isinstance(error, DiskError))
    problems = [problem for error in ordered for problem in error.problems]
    return type(ordered[0]).of(problems)
