"""Many transfers at a time: threads, per-host limits, a look at the disk first, and every failure told at the end."""

from __future__ import annotations

import os
import queue
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from lavis_ext.errors import DiskError, LavisExtError, NetworkError, UsageError
from lavis_ext.fetch.engine import fetch_in, no_space
from lavis_ext.fetch.failures import Stopped
from lavis_ext.fetch.model import Policy, Progress, Result, Transfer
from lavis_ext.fetch.part import companion
from lavis_ext.fetch.session import Session


def fetch_all(
    transfers: Iterable[Transfer],
    policy: Policy | None = None,
    progress: Progress | None = None,
    collect: bool = False,
) -> list[Result]:
    """Fetch all, `policy.jobs` at a time; results in the order of the transfers.

    One that fails does not stop the others, except for the disk. At the end one error tells every failure (the class of
    the first), or, with `collect`, each failed result carries its `error`. KeyboardInterrupt stops all within seconds;
    partial files stay. Two transfers to one path must be the same (UsageError).
    """
    wanted = list(transfers)
    unique = _unique(wanted)
    with Session(policy, progress) as session:
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
            folder = _existing_folder(transfer.path)
            device = folder.stat().st_dev
            needs[device] = (needs.get(device, (0, folder))[0] + missing, folder)
    for need, folder in needs.values():
        free = shutil.disk_usage(folder).free
        if need > free:
            raise no_space(folder, need, free)


def _missing(transfer: Transfer) -> int:
    """Declared bytes that are not on disk yet, in whole blocks of the partial file; 0 where nothing is declared."""
    if transfer.size is None or transfer.path.exists():
        return 0
    try:
        there = os.stat(companion(transfer.path, ".part")).st_blocks * 512  # noqa: PTH116 - many files
    except OSError:
        there = 0
    return max(0, transfer.size - there)


def _existing_folder(path: Path) -> Path:
    return next(folder for folder in path.absolute().parents if folder.is_dir())


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
            if isinstance(results[index].error, DiskError):
                session.halt()  # every other file would fail in the same way
    except BaseException:
        session.halt()
        for thread in threads:
            thread.join(timeout=3.0)
        raise
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(transfers))]


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
        except BaseException as error:  # the thread that waits sorts it out
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
    """One error of the first one's class; what broke the disk goes first, what was only stopped last."""
    ordered = sorted(errors, key=_rank)
    problems = [problem for error in ordered for problem in error.problems]
    return type(ordered[0]).of(problems)


def _rank(error: LavisExtError) -> int:
    return 0 if isinstance(error, DiskError) else 1
