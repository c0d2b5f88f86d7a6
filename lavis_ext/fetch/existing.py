"""Whether the file that is there already is the right one; a wrong one is renamed, never deleted."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from lavis_ext.fetch.digest import hash_file, mismatch
from lavis_ext.fetch.ledger import Entry
from lavis_ext.fetch.model import Figures, Result, Transfer
from lavis_ext.fetch.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What is at the target: `result` if it is right, `reason` if something wrong is there, neither if nothing is."""

    result: Result | None = None
    reason: str = ""
    sha256: str = ""


def judge(session: Session, transfer: Transfer) -> Verdict:
    """Look at the target: size first, then the ledger, then the hash; raises OSError where it cannot be read."""
    try:
        stat = transfer.path.stat()
    except FileNotFoundError:
        return Verdict()
    if not transfer.path.is_file():
        return Verdict(reason="not a regular file")
    entry = None if session.policy.deep else session.ledger_for(transfer.path).find(transfer.path, stat)
    expected = _acceptable(transfer)
    if not expected:
        return _unknown(session, transfer, stat, entry)
    fitting = {e: f for e, f in expected.items() if f.size in (None, stat.st_size)}
    if not fitting:
        size = next(iter(expected.values())).size
        return Verdict(reason=f"expected {size} bytes, got {stat.st_size}")
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


def _own_delivery(transfer: Transfer, entry: Entry) -> bool:
    """Whether a source of other bytes, for which nothing is declared, delivered this file earlier."""
    kinds = {source.equivalence for source in transfer.sources if not transfer.figures(source).declared}
    return not entry.verified and entry.equivalence in kinds


def _unknown(session: Session, transfer: Transfer, stat: os.stat_result, entry: Entry | None) -> Verdict:
    """Nothing is declared: a file with bytes in it is taken, and called unverified."""
    if stat.st_size == 0:
        return Verdict(reason="the file is empty")
    if entry is not None:
        return _reuse(transfer.path, entry.sha256, entry.equivalence, verified=False)
    sha256, _ = hash_file(transfer.path, Figures())
    note(session, transfer.path, sha256, None, Figures(), "byte_exact")
    return _reuse(transfer.path, sha256, "byte_exact", verified=False)


def _compare(session: Session, path: Path, stat: os.stat_result, fitting: dict[str, Figures]) -> Verdict:
    needs_md5 = next((f for f in fitting.values() if f.md5), Figures())
    sha256, md5 = hash_file(path, needs_md5)
    wrong = ""
    for equivalence, figures in fitting.items():
        difference = mismatch(figures, stat.st_size, sha256, md5)
        if difference is None:
            note(session, path, sha256, md5, figures, equivalence)
            return _reuse(path, sha256, equivalence)
        wrong = wrong or difference
    return Verdict(reason=wrong, sha256=sha256)


def _reuse(path: Path, sha256: str, equivalence: str, verified: bool = True) -> Verdict:
    return Verdict(Result(path, sha256=sha256, reused=True, verified=verified, equivalence=equivalence))


def note(
    session: Session,
    path: Path,
    sha256: str,
    md5: str | None,
    figures: Figures,
    equivalence: str,
    fetched: os.stat_result | None = None,
) -> None:
    """Record a verified file in its ledger: as it lies there, or as it was `fetched` and is about to be renamed.

    A ledger that cannot be written costs a hash next time, nothing else.
    """
    try:
        session.ledger_for(path).record(path, sha256, md5, figures.declared, equivalence, fetched)
    except OSError as error:
        log.warning("%s: not recorded: %s", path.name, error.strerror)


def quarantine(path: Path, found: Verdict) -> tuple[str, ...]:
    """Rename a wrong file to `name.bad-<first 8 digits of its sha256>` (numbered if taken); returns a note of it."""
    sha256 = found.sha256 or (hash_file(path, Figures())[0] if path.is_file() else "00000000")
    aside = path.with_name(f"{path.name}.bad-{sha256[:8]}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.bad-{sha256[:8]}-{number}")
    path.rename(aside)
    log.warning("%s: %s; kept as %s", path.name, found.reason, aside.name)
    return (f"{found.reason}; kept as {aside.name}",)
