"""One transfer: accept what is there if it is right, else fetch it from the first source that can, verify, publish."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from lavis_ext.errors import DiskError, NetworkError
from lavis_ext.fetch.digest import Digest, mismatch
from lavis_ext.fetch.download import Download
from lavis_ext.fetch.existing import judge, note, quarantine
from lavis_ext.fetch.failures import Failure, conclude, disk_error
from lavis_ext.fetch.model import Figures, Policy, Progress, Result, Source, Transfer
from lavis_ext.fetch.openers import scheme_of
from lavis_ext.fetch.owner import Ownership
from lavis_ext.fetch.part import Part, companion
from lavis_ext.fetch.retry import backoff
from lavis_ext.fetch.safety import redact_url
from lavis_ext.fetch.session import Session

log = logging.getLogger(__name__)

PROGRESS_THAT_COUNTS = 1 << 16
RESTARTS = 2


def fetch(transfer: Transfer, policy: Policy | None = None, progress: Progress | None = None) -> Result:
    """Make `transfer.path` hold the declared bytes.

    Raises NetworkError, IntegrityError, AccessError, UnsafeError (all sources failed, each with its reason), DiskError,
    OwnedError. A partial file and its sidecar stay for the next call, after KeyboardInterrupt too.
    """
    with Session(policy, progress) as session:
        return fetch_in(session, transfer)


def fetch_in(session: Session, transfer: Transfer) -> Result:
    """`fetch` inside a session that several transfers share."""
    label, total = transfer.name, transfer.size
    session.progress.begin(label, total)
    outcome = "failed"
    try:
        result = _settle(session, transfer)
        outcome = result.outcome
        return result
    except KeyboardInterrupt:
        session.halt()
        raise
    except OSError as error:
        raise disk_error(error, transfer.path) from error
    finally:
        session.progress.end(label, outcome)


def _settle(session: Session, transfer: Transfer) -> Result:
    found = judge(session, transfer)
    if found.result is not None:
        _sweep(session, transfer.path)
        return found.result
    if session.policy.offline and not any(scheme_of(source.url) == "file" for source in transfer.sources):
        raise NetworkError(str(transfer.path), f"{found.reason or 'missing'}, and offline", "unset LAVIS_EXT_OFFLINE")
    transfer.path.parent.mkdir(parents=True, exist_ok=True)
    paths = companion(transfer.path, ".part.owner"), companion(transfer.path, ".part")
    with Ownership(*paths, session.policy, session.pause) as owner:
        found = judge(session, transfer)  # again: another process may have finished since
        if found.result is not None:
            return found.result
        notes = quarantine(transfer.path, found) if found.reason else ()
        result = _Fetching(session, transfer, owner).run()
    return replace(result, notes=notes + result.notes)


def _sweep(session: Session, path: Path) -> None:
    """Remove what a process that was killed just after its last byte left beside a file that is whole."""
    owner = companion(path, ".part.owner")
    try:
        if owner.exists() and Ownership(owner, companion(path, ".part"), session.policy).sweep():
            companion(path, ".part.json").unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s: stays: %s", owner.name, error.strerror)


@dataclass
class _Count:
    """What one source has cost so far."""

    attempts: int = 0
    discards: int = 0
    restarts: int = 0


class _Fetching:
    """The loop over sources and attempts, for one transfer that this process owns."""

    def __init__(self, session: Session, transfer: Transfer, owner: Ownership) -> None:
        self._session = session
        self._policy = session.policy
        self._transfer = transfer
        self._owner = owner
        self._failures: list[tuple[str, Failure]] = []
        self._moved = 0

    def run(self) -> Result:
        """The published file; raises the error that the sources' failures amount to."""
        self._part = Part(self._transfer.path, self._policy.checkpoint_bytes)
        try:
            self._check_space()
            kept = self._part.ranges.covered
            if kept:
                self._session.progress.advance(self._transfer.name, kept)
            for source in self._transfer.sources:
                result = self._try(source, last=source is self._transfer.sources[-1])
                if result is not None:
                    return result
        finally:
            self._part.close()
        raise conclude(self._transfer.name, self._failures)

    def _check_space(self) -> None:
        if self._transfer.size is None:
            return
        need = self._transfer.size - self._part.ranges.covered
        free = shutil.disk_usage(self._transfer.path.parent).free
        if need > free:
            raise no_space(self._transfer.path.parent, need, free)

    def _try(self, source: Source, last: bool) -> Result | None:
        """All attempts at one source; None where it did not deliver, with the reason noted."""
        figures = self._transfer.figures(source)
        digest, count = Digest(figures), _Count()
        while True:
            download = Download(self._session, source, figures, self._part, digest, self._transfer.name)
            try:
                download.run()
                return self._publish(source, figures, digest, download)
            except Failure as failure:
                self._moved += download.moved
                if self._give_up(failure, count, download, last):
                    self._failures.append((redact_url(source.url), failure))
                    log.warning("%s: %s: %s", self._transfer.name, redact_url(source.url), failure.reason)
                    return None

    def _give_up(self, failure: Failure, count: _Count, download: Download, last: bool) -> bool:
        """Note a failure and prepare the next attempt; True where there is none at this source."""
        if failure.kind in ("integrity", "replaced"):
            download.reset()
            count.discards += failure.kind == "integrity"
            count.restarts += failure.kind == "replaced"
            return count.discards > 1 or count.restarts > RESTARTS
        if failure.kind != "transient":
            return True
        count.attempts = 1 if download.moved >= PROGRESS_THAT_COUNTS else count.attempts + 1
        too_long = (failure.retry_after or 0.0) > self._policy.retry_after_cap and not last
        if count.attempts > self._policy.retries or too_long:
            return True
        delay = backoff(count.attempts - 1, self._policy, failure.retry_after)
        log.info("%s: %s; again in %.1f s", self._transfer.name, failure.reason, delay)
        self._session.pause(delay)
        return False

    def _publish(self, source: Source, figures: Figures, digest: Digest, download: Download) -> Result:
        """Verify, record, flush, rename, in this order; raises Failure where the bytes do not match."""
        part, path = self._part, self._transfer.path
        size = part.ranges.covered
        sha256, md5 = digest.finish(part.fd, size)
        wrong = mismatch(figures, size, sha256, md5)
        if wrong:
            raise Failure("integrity", wrong)
        if not self._owner.holds():
            raise Failure("final", "another process has taken this file over")
        validator = part.validators.etag or part.validators.last_modified or ""
        # Noted before the rename, which keeps inode and time: killed between the two, a file is still known as ours.
        note(self._session, path, sha256, md5, figures, source.equivalence, os.fstat(part.fd))
        part.publish(self._session.flusher)
        moved = self._moved + download.moved
        notes = tuple(f"{url}: {failure.reason}" for url, failure in self._failures)
        return Result(
            path,
            moved,
            sha256,
            redact_url(source.url),
            verified=figures.declared,
            equivalence=source.equivalence,
            notes=notes,
            validator=validator,
        )


def no_space(folder: Path, need: int, free: int) -> DiskError:
    """The refusal before the first byte, with both numbers."""
    return DiskError(
        str(folder), f"{need} bytes are needed, {free} are free", "free space or choose another cache_root"
    )
