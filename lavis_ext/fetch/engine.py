"""`fetch`: a `Transfer` becomes a verified file.

A right file that is there is reused; else the first source that can delivers it. What lies on the disk then is
verified, and gets its name.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from stat import S_ISLNK, S_ISREG

from lavis_ext.common.errors import ConfigError, DiskError, NetworkError, OwnedError
from lavis_ext.common.files import is_dangling
from lavis_ext.fetch.download import Download
from lavis_ext.fetch.ledger import LedgerEntry, hash_file, hash_open, mismatch
from lavis_ext.fetch.lock import Ownership, SharedOwners, left_tokens
from lavis_ext.fetch.part import Part, PartNames, companion, leftovers
from lavis_ext.fetch.safety import redact_url
from lavis_ext.fetch.session import Session, scheme_of
from lavis_ext.fetch.transfer import (
    OFFLINE,
    PROGRESS_THAT_COUNTS,
    Failure,
    Figures,
    Policy,
    Progress,
    Result,
    Source,
    Stopped,
    Transfer,
    backoff,
    disk_error,
    to_error,
)

log = logging.getLogger(__name__)
WASTE = 8
"""How many times these bytes such an attempt may have moved: without ranges each one begins at the first byte."""
LONGEST_BASE = 220
"""Bytes of a name that `.bad-01234567-2` is put behind: file systems take 255."""
LONGEST_NAME, LONGEST_PATH = 255, 4096
RESTARTS = 2
"""How often a source's object may be replaced while it is fetched."""

# The file that is there already: reused where it is right, renamed and never deleted where it is wrong


@dataclass(frozen=True)
class ExistingFile:
    """What is at the target: `result` if it is right, `reason` if something wrong is there, neither if nothing is."""

    result: Result | None = None
    reason: str = ""
    sha256: str = ""


def check_existing(session: Session, transfer: Transfer) -> ExistingFile:
    """Look at the target: size first, then the ledger, then the hash; raises OSError where it cannot be read."""
    try:
        stat = transfer.path.lstat()  # one call where nothing is there, as it is for most files of a first run
    except FileNotFoundError:
        return ExistingFile()
    if S_ISLNK(stat.st_mode):
        try:
            stat = transfer.path.stat()
        except OSError:
            if is_dangling(transfer.path):  # it takes the name too
                return ExistingFile(reason="a link to nothing")
            raise
    if not S_ISREG(stat.st_mode):
        return ExistingFile(reason="not a regular file")
    entry = None if session.policy.deep else session.ledger_for(transfer.path).find(transfer.path, stat)
    expected = _acceptable(transfer)
    if not expected:
        return _unknown(session, transfer, stat, entry)
    fitting = {e: f for e, f in expected.items() if f.size in (None, stat.st_size)}
    if not fitting:
        size = next(iter(expected.values())).size
        return ExistingFile(reason=f"expected {size} bytes, got {stat.st_size}")
    if entry is not None:
        for equivalence, figures in fitting.items():
            if entry.proves(figures):
                return _reuse(transfer.path, entry.sha256, equivalence)
        if _own_delivery(transfer, entry):
            return _reuse(transfer.path, entry.sha256, entry.equivalence, verified=False)
    return _compare(session, transfer.path, stat, fitting)


def _acceptable(transfer: Transfer) -> dict[str, Figures]:
    """Equivalence → declared figures: the transfer's, then those of sources with bytes of their own."""
    found = {"byte_exact": transfer.figures()}
    for source in transfer.sources:
        found.setdefault(source.equivalence, transfer.figures(source))
    return {equivalence: figures for equivalence, figures in found.items() if figures.declared}


def _own_delivery(transfer: Transfer, entry: LedgerEntry) -> bool:
    """Whether a source of other bytes, for which nothing is declared, delivered this file earlier."""
    kinds = {source.equivalence for source in transfer.sources if not transfer.figures(source).declared}
    return not entry.verified and entry.equivalence in kinds


def _unknown(session: Session, transfer: Transfer, stat: os.stat_result, entry: LedgerEntry | None) -> ExistingFile:
    """Where nothing is declared, a file that is not empty is reused as unverified."""
    if stat.st_size == 0:
        return ExistingFile(reason="the file is empty")
    if entry is not None:
        return _reuse(transfer.path, entry.sha256, entry.equivalence, verified=False)
    sha256, _ = hash_file(transfer.path, Figures())
    note(session, transfer.path, sha256, None, Figures(), "byte_exact")
    return _reuse(transfer.path, sha256, "byte_exact", verified=False)


def _compare(session: Session, path: Path, stat: os.stat_result, fitting: dict[str, Figures]) -> ExistingFile:
    needs_md5 = next((f for f in fitting.values() if f.md5), Figures())
    sha256, md5 = hash_file(path, needs_md5)
    wrong = ""
    for equivalence, figures in fitting.items():
        difference = mismatch(figures, stat.st_size, sha256, md5)
        if difference is None:
            note(session, path, sha256, md5, figures, equivalence)
            return _reuse(path, sha256, equivalence)
        wrong = wrong or difference
    return ExistingFile(reason=wrong, sha256=sha256)


def _reuse(path: Path, sha256: str, equivalence: str, verified: bool = True) -> ExistingFile:
    return ExistingFile(Result(path, sha256=sha256, reused=True, verified=verified, equivalence=equivalence))


def note(
    session: Session,
    path: Path,
    sha256: str,
    md5: str | None,
    figures: Figures,
    equivalence: str,
    fetched: os.stat_result | None = None,
) -> None:
    """Record a verified file in its ledger: as it is on disk, or as it was `fetched` and published.

    A ledger that cannot be written only means that the file is hashed again next time.
    """
    try:
        session.ledger_for(path).record(path, sha256, md5, figures.declared, equivalence, fetched, fetched is not None)
    except OSError as error:
        log.warning("%s: not recorded: %s", path.name, error.strerror)


def announce(session: Session, path: Path, sha256: str, stat: os.stat_result) -> None:
    """Record that a fetched file is about to get its name; where that cannot be written, it may stay for the user.

    Raises OSError where the disk is full: there the next run gives it its name.
    """
    try:
        session.ledger_for(path).announce(path, sha256, stat)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.warning("%s: not recorded: %s", path.name, error.strerror)


def quarantine(path: Path, found: ExistingFile) -> tuple[str, ...]:
    """Rename a wrong file to `name.bad-<first 8 digits of its sha256>` (numbered if taken); returns a note of it."""
    sha256 = found.sha256 or (hash_file(path, Figures())[0] if path.is_file() else "00000000")
    name = os.fsencode(path.name)[:LONGEST_BASE].decode("utf-8", "ignore")
    aside = path.with_name(f"{name}.bad-{sha256[:8]}")
    number = 1
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = path.with_name(f"{name}.bad-{sha256[:8]}-{number}")
    path.rename(aside)
    log.warning("%s: %s; kept as %s", path.name, found.reason, aside.name)
    return (f"{found.reason}; kept as {aside.name}",)


# One transfer


def fetch(transfer: Transfer, policy: Policy | None = None, progress: Progress | None = None) -> Result:
    """Make `transfer.path` hold the declared bytes.

    Raises NetworkError, IntegrityError, AccessError, UnsafeError (all sources failed, each with its reason), DiskError,
    OwnedError. A partial file and its sidecar stay for the next call, after KeyboardInterrupt too.
    """
    with Session(policy, progress) as session:
        return fetch_in(session, transfer)


def fetch_in(session: Session, transfer: Transfer, owners: SharedOwners | None = None) -> Result:
    """`fetch` inside a session, and with owner files, that several transfers share."""
    refuse_impossible(transfer.path)
    label, total = transfer.name, transfer.size
    session.progress.begin(label, total)
    outcome = "failed"
    try:
        result = _reuse_or_fetch(session, transfer, owners)
        outcome = result.outcome
        return result
    except Stopped:
        outcome = "stopped"
        raise
    except KeyboardInterrupt:
        outcome = "stopped"
        session.halt()
        raise
    except OSError as error:
        raise disk_error(error, transfer.path) from error
    finally:
        session.progress.end(label, outcome)


def refuse_impossible(path: Path) -> None:
    """Raise ConfigError for a path that no file system takes: a name of more than 255 bytes, NUL, a lone surrogate."""
    text = str(path)
    if len(text) <= LONGEST_NAME and text.isascii() and "\0" not in text:
        return
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise ConfigError(ascii(str(path))[:200], "has characters that no file name can have", "name another `storage`")
    if len(encoded) >= LONGEST_PATH or any(len(name) > LONGEST_NAME for name in encoded.split(b"/")):
        what = f"is longer than file systems take ({LONGEST_NAME} bytes a name)"
        raise ConfigError(f"{str(path)[:200]}…", what, "name another `storage`")


def _reuse_or_fetch(session: Session, transfer: Transfer, owners: SharedOwners | None) -> Result:
    found = ExistingFile()
    if os.path.lexists(transfer.path):
        _unname(transfer.path)
        found = check_existing(session, transfer)
    if found.result is not None:
        _sweep(session, transfer.path)
        return found.result
    if session.policy.offline and not any(scheme_of(source.url) == "file" for source in transfer.sources):
        raise NetworkError(str(transfer.path), f"{found.reason or 'missing'}, and offline", OFFLINE)
    if not transfer.path.parent.is_dir():
        transfer.path.parent.mkdir(parents=True, exist_ok=True)
    path, watched = companion(transfer.path, ".part.owner"), partial(_part_of, transfer.path)
    shared = owners.of(transfer.path) if owners is not None else None
    with Ownership(path, watched, session.policy, session.pause, shared) as owner:
        if owner.replaced:  # at once, since only a process that has taken over looks for what was left
            Part(transfer.path, session.policy.checkpoint_bytes, owner).close()
        found = check_existing(session, transfer)  # again: another process may have finished since
        if found.result is not None:
            if owner.replaced:
                PartNames.of(transfer.path).remove()
            return found.result
        try:
            if found.reason:
                owner.require()
            notes = quarantine(transfer.path, found) if found.reason else ()
            result = _Fetching(session, transfer, owner).run()
        except (OwnedError, OSError) as error:
            held = owner.holds()
            if held and not isinstance(error, FileExistsError):
                raise
            found = check_existing(session, transfer)  # another process has taken over, or made the file meanwhile
            if found.result is None and held:
                what = f"a file has appeared there while it was fetched: {found.reason}"
                raise OwnedError(str(transfer.path), what, "see what made it, then run again") from error
            if found.result is None:
                raise owner.lost() from error
            if held:
                PartNames.of(transfer.path).remove()
            return found.result
    return replace(result, notes=notes + result.notes) if notes else result


def _part_of(target: Path, token: str) -> Path:
    return PartNames.of(target, token).path


def _unname(path: Path) -> None:
    """Remove the part that is the file itself, of a process that was killed between its two names.

    Before the file is looked at: the ctime that the ledger records changes with it.
    """
    try:
        if companion(path, ".part.owner").exists():
            for names in leftovers(path).values():
                if names.path.exists() and names.path.samefile(path):
                    names.path.unlink()
    except OSError as error:
        log.debug("%s: a second name stays: %s", path.name, error)


def _sweep(session: Session, path: Path) -> None:
    """Remove what a process left when it was killed just after publishing the file, or in here.

    The owner file goes last: it is by what the rest is found.
    """
    owner = companion(path, ".part.owner")
    try:
        tokens = left_tokens(owner)
        if owner.exists():
            # before the look at the owner: of a later one nothing is among them
            left = [PartNames.of(path), *leftovers(path).values()]
            Ownership(owner, path, session.policy).sweep(lambda: [names.remove() for names in left])
        else:
            for token in tokens:
                PartNames.of(path, token).remove()
    except (OSError, DiskError) as error:
        log.debug("%s: stays: %s", owner.name, error)


@dataclass
class _Attempts:
    """Failed attempts at one source, counted by what they led to."""

    best: int
    """Bytes that were there at most."""
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
        """Fetch and publish; raises one error with every source's failure where none delivers."""
        summed = not all(self._transfer.figures(source).hashed for source in self._transfer.sources)
        self._part = Part(self._transfer.path, self._policy.checkpoint_bytes, self._owner, summed)
        try:
            self._check_space()
            kept = self._part.ranges.covered
            if kept:
                self._session.progress.advance(self._transfer.name, kept)
            for source in self._transfer.sources:
                result = self._try(source, last=source is self._transfer.sources[-1])
                if result is not None:
                    return result
        except OwnedError:
            self._part.reset()  # the file, or all that it is fetched for, is another's
            raise
        finally:
            self._part.close()
        raise to_error(self._transfer.name, self._failures)

    def _check_space(self) -> None:
        """Refuse before the first byte what does not fit; of many files that was asked for all of them together."""
        small = self._session.many and (self._transfer.size or 0) < self._policy.checkpoint_bytes
        if self._transfer.size is None or small:
            return
        need = self._transfer.size - self._part.ranges.covered
        free = shutil.disk_usage(self._transfer.path.parent).free
        if need > free:
            raise no_space(self._transfer.path.parent, need, free)

    def _try(self, source: Source, last: bool) -> Result | None:
        """All attempts at one source; None where it did not deliver, which is added to the failures."""
        figures = self._transfer.figures(source)
        count = _Attempts(self._part.ranges.covered)
        while True:
            self._owner.require(now=False)
            download = Download(self._session, source, figures, self._part, self._transfer.name)
            try:
                download.run()
                return self._publish(source, figures, download)
            except Failure as failure:
                if self._session.stop.is_set():  # what was cut off by us is no failure of the source
                    raise Stopped from failure
                self._moved += download.moved
                if self._give_up(failure, count, download, last):
                    self._failures.append((redact_url(source.url), failure))
                    log.warning("%s: %s: %s", self._transfer.name, redact_url(source.url), failure.reason)
                    return None

    def _give_up(self, failure: Failure, count: _Attempts, download: Download, last: bool) -> bool:
        """Count a failure and wait for the next attempt; True where this source gets no other."""
        if failure.kind in ("integrity", "replaced"):
            download.reset()
            count.discards += failure.kind == "integrity"
            count.restarts += failure.kind == "replaced"
            return count.discards > 1 or count.restarts > RESTARTS
        if failure.kind != "transient":
            return True
        gained = self._part.ranges.covered - count.best
        further = gained >= PROGRESS_THAT_COUNTS and gained * WASTE >= download.moved
        count.attempts = 1 if further else count.attempts + 1
        count.best += max(0, gained) if further else 0
        too_long = (failure.retry_after or 0.0) > self._policy.retry_after_cap and not last
        if count.attempts > self._policy.retries or too_long:
            return True
        delay = backoff(count.attempts - 1, self._policy, failure.retry_after)
        log.info("%s: %s; again in %.1f s", self._transfer.name, failure.reason, delay)
        self._session.pause(delay)
        return False

    def _publish(self, source: Source, figures: Figures, download: Download) -> Result:
        """Flush, verify what lies on the disk, give it its name, record it, in this order.

        Raises Failure where the bytes do not match, OwnedError where another process has taken over.
        """
        part, path, flusher = self._part, self._transfer.path, self._session.flusher
        if flusher is not None:
            os.fsync(part.fd)  # before it is read back: on NFS mtimes are final only then
        before = os.fstat(part.fd)
        size = before.st_size
        sha256, md5 = part.digests(size, self._tick) or hash_open(part.fd, size, figures, self._tick)
        after = os.fstat(part.fd)
        wrong = mismatch(figures, size, sha256, md5)
        touched = after.st_mtime_ns != before.st_mtime_ns  # or a server that was slow to say the time of our own writes
        changed = touched and not wrong and hash_open(part.fd, size, figures, self._tick)[0] != sha256
        if not wrong and (size != part.ranges.covered or changed or part.altered()):
            wrong = "another process changed the partial file while it was fetched"
        if wrong:
            raise Failure("integrity", wrong)
        self._owner.require()
        # Names change the ctime, by which the file is known to be ours; killed in between, it is hashed once more.
        if self._transfer.temporary:
            announce(self._session, path, sha256, after)
        part.publish(flusher, partial(note, self._session, path, sha256, md5, figures, source.equivalence), after)
        validator = part.validators.etag or part.validators.last_modified or ""
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

    def _tick(self) -> None:
        """While a large file is hashed: stop if the run does, and let waiting processes see that this one moves."""
        if self._session.stop.is_set():
            raise Stopped
        self._owner.require(now=False)
        with suppress(OSError):
            os.utime(self._part.sidecar)


def no_space(folder: Path, need: int, free: int) -> DiskError:
    """The error, before the first byte, that the declared bytes do not fit."""
    return DiskError(
        str(folder), f"{need} bytes are needed, {free} are free", "free space or choose another cache_root"
    )
