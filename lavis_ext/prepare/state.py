"""`status` and `verify`: what is on the disk, told in a moment, or proven byte by byte and picture by picture."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lavis_ext.cards import Cards
from lavis_ext.errors import IntegrityError, LavisExtError, PartialError
from lavis_ext.fetch import Figures, Progress, Silent
from lavis_ext.fetch.digest import hash_file, mismatch
from lavis_ext.prepare.account import Account
from lavis_ext.prepare.archives import Notice, Work
from lavis_ext.prepare.blobs import artifact_states, open_folders
from lavis_ext.prepare.inventory import Inventory, Journal
from lavis_ext.prepare.lists import ListCheck, check_list, is_parted, list_title, settle_lists
from lavis_ext.prepare.members import Member
from lavis_ext.prepare.placing import disk_errors, member_fault, set_aside, thread_count
from lavis_ext.prepare.report import Outcome, SplitState, worst
from lavis_ext.prepare.run import owned, settings
from lavis_ext.prepare.selection import Need, PrepareOptions, select
from lavis_ext.prepare.stamps import Stamp, drop_stamp, read_stamp, record_path
from lavis_ext.prepare.steps import repair as mend
from lavis_ext.wording import human

log = logging.getLogger(__name__)
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One file that is not as it should be, or one artifact that cannot be judged."""

    title: str
    path: str
    fault: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found: how much it proved, every fault, and the repair where one was asked for.

    `unknown` are artifacts that are not prepared; `subset` are those from a mirror that offers only a part.
    """

    files: int = 0
    bytes: int = 0
    findings: tuple[Finding, ...] = ()
    unknown: tuple[str, ...] = ()
    subset: tuple[str, ...] = ()
    repaired: tuple[Outcome, ...] | None = None
    errors: tuple[LavisExtError, ...] = field(default=(), repr=False)

    @property
    def exit_code(self) -> int:
        """0 if all that is prepared is sound (or was repaired), 5 for damage, 8 where nothing is prepared at all."""
        if self.repaired is not None:
            return worst([outcome.error for outcome in self.repaired if outcome.error is not None])
        return worst(self.errors) if self.errors or self.files else PartialError.exit_code

    def line(self) -> str:
        """`checked 40512 files · 6.6 GB · 1 damaged · exit 5`."""
        shown = f"checked {self.files} files · {human(self.bytes)} · {len(self.findings)} damaged or missing"
        shown += f" · {len(self.unknown)} not prepared" if self.unknown else ""
        return f"{shown}{' · subset' if self.subset else ''} · exit {self.exit_code}"

    def lines(self) -> list[str]:
        """Everything for a person, the line last."""
        told = [f"{one.path}: {one.fault}" for one in self.findings]
        told += [f"{title}: not prepared" for title in self.unknown]
        told += [f"{title}: a subset" for title in self.subset]
        for outcome in self.repaired or ():
            told.append(f"{outcome.title}: {outcome.error or f'repaired, {human(outcome.bytes)} fetched'}")
        return [*told, self.line()]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        found = [{"title": one.title, "path": one.path, "fault": one.fault} for one in self.findings]
        repaired = None if self.repaired is None else [outcome.as_dict() for outcome in self.repaired]
        shown = {"files": self.files, "bytes": self.bytes, "findings": found, "unknown": list(self.unknown)}
        return {
            **shown,
            "subset": list(self.subset),
            "repaired": repaired,
            "exit_code": self.exit_code,
            "summary": self.line(),
        }


def status(
    names: Iterable[str] = (), options: PrepareOptions | None = None, cards: Cards | None = None
) -> list[SplitState]:
    """The state of every split of some families or data sets (default: all); quick, nothing is hashed or fetched.

    Raises UsageError for an unknown name.
    """
    root, options, cards, mirrors = settings(replace(options or PrepareOptions(), offline=True), cards)
    wanted = list(names) or list(cards.families)
    selection = open_folders(root, select(cards, wanted, options.splits, root=root), options, mirrors)
    states = Account(root, cards, selection.needs, options.max_samples).states(selection.chosen)
    return [*states, *artifact_states(root, selection)]


def verify(
    names: Iterable[str],
    deep: bool = False,
    repair: bool = False,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
    cards: Cards | None = None,
) -> VerifyReport:
    """Prove what is prepared: files by their hashes, members by size and CRC-32; `deep` decodes every picture too.

    Archives that were taken whole and those of which single members were taken are proven in the same way. `repair`
    sets aside what fails and fetches it again, alone where the archive gives single files. Raises UsageError.
    """
    chosen, names = options or PrepareOptions(), list(names)
    root, offline, cards, none = settings(replace(chosen, offline=True), cards)
    selection = open_folders(root, select(cards, names, offline.splits, root=root), offline, none)
    report = VerifyReport()
    checks = [_Check(root, need, deep, progress or Silent()) for need in selection.needs if not is_parted(need)]
    found: dict[str, list[Finding]] = {}
    for check in checks:
        report = _add(report, check, found)
    lists = [need for need in selection.needs if need.artifact.lists is not None]
    for need in lists:
        report = _add_list(report, check_list(root, need.artifact, deep), list_title(need), found)
    damaged = [check for check in checks if found.get(check.need.title)]
    damaged_lists = [need for need in lists if found.get(list_title(need))]
    if not repair or not (damaged or damaged_lists):
        return report
    root, options, cards, mirrors = settings(chosen, cards)
    work = Work(root, options, options.policy, mirrors, progress or Silent(), notice or log.info)
    with owned(work, selection) as pulse:
        lost = [(check.need, check.take_back(found[check.need.title])) for check in damaged]
        for need in damaged_lists:
            _set_aside([Path(one.path) for one in found[list_title(need)]])
        work = replace(work, progress=pulse)
        outcomes = mend(work, cards, lost) if lost else ()
        listed = settle_lists(work, cards, damaged_lists, {})
    return replace(report, repaired=(*outcomes, *listed.values()))


def _set_aside(paths: Iterable[Path]) -> None:
    for path in paths:
        with disk_errors(path):
            set_aside(path)


def _add_list(
    report: VerifyReport, check: ListCheck | None, title: str, found: dict[str, list[Finding]]
) -> VerifyReport:
    """The report with the images of one more list."""
    if check is None:
        return replace(report, unknown=(*report.unknown, title))
    findings = found[title] = [Finding(title=title, path=str(path), fault=fault) for path, fault in check.faults]
    errors = [IntegrityError(one.path, one.fault, "run `lavis-ext verify --repair`") for one in findings]
    return replace(
        report,
        files=report.files + check.files,
        bytes=report.bytes + check.bytes,
        findings=(*report.findings, *findings),
        errors=(*report.errors, *errors),
    )


def _add(report: VerifyReport, check: _Check, found: dict[str, list[Finding]]) -> VerifyReport:
    """The report with one more artifact, whose findings are noted in `found` by its title."""
    title = check.need.title
    stamp = read_stamp(check.root, check.need.artifact)
    if stamp is None:
        return replace(report, unknown=(*report.unknown, title))
    findings = found.setdefault(title, check.findings(stamp))
    errors = [IntegrityError(one.path, one.fault, "run `lavis-ext verify --repair`") for one in findings]
    return replace(
        report,
        files=report.files + stamp.files,
        bytes=report.bytes + stamp.bytes,
        findings=(*report.findings, *findings),
        subset=(*report.subset, *([title] if stamp.subset else [])),
        errors=(*report.errors, *errors),
    )


@dataclass
class _Check:
    """One artifact under proof."""

    root: Path
    need: Need
    deep: bool
    progress: Progress

    def findings(self, stamp: Stamp) -> list[Finding]:
        """Every file that is not as it was declared or stamped."""
        if self.need.artifact.unpack is None or stamp.state == "packed":
            fault = self._file_fault(stamp)
            return [] if fault is None else [self._finding(self.root / self.need.artifact.file, fault)]
        inventory = Inventory.read(self.root, self.need.artifact)
        if inventory is None:
            return [self._finding(self.root / self.need.artifact.storage, "the list of its members is gone")]
        return list(self._member_findings(inventory, self._expected(stamp, inventory)))

    def _expected(self, stamp: Stamp, inventory: Inventory) -> list[int]:
        if stamp.state == "complete":
            return list(range(len(inventory.members)))
        with disk_errors(self.root), Journal(self.root, self.need.artifact, inventory) as journal:
            return sorted(journal.done)

    def _finding(self, path: Path, fault: str) -> Finding:
        return Finding(title=self.need.title, path=str(path), fault=fault)

    def _file_fault(self, stamp: Stamp) -> str | None:
        path, artifact = self.root / self.need.artifact.file, self.need.artifact
        own = Figures(stamp.bytes, stamp.sha256)
        declared = own if stamp.subset else Figures(artifact.size, artifact.sha256 or stamp.sha256, artifact.md5)
        try:
            sha256, md5 = hash_file(path, declared)
            return mismatch(declared, path.stat().st_size, sha256, md5)
        except OSError as error:
            return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"

    def _member_findings(self, inventory: Inventory, numbers: Sequence[int]) -> Iterator[Finding]:
        label = f"{self.need.title} checked"
        target = self.root / self.need.artifact.storage
        self.progress.begin(label, sum(inventory.members[n].size for n in numbers))

        def fault(number: int) -> tuple[Path, str | None]:
            member = inventory.members[number]
            found = check_member(target / member.name, member, self.deep)
            self.progress.advance(label, member.size)
            return target / member.name, found

        with ThreadPoolExecutor(thread_count()) as pool:
            results = pool.map(fault, numbers)
            yield from (self._finding(path, found) for path, found in results if found is not None)
        self.progress.end(label, "reused")

    def take_back(self, findings: Sequence[Finding]) -> list[int]:
        """Set aside what failed, so that it is fetched again; raises DiskError.

        Returns the members that should be there where only some were taken, else nothing.
        """
        stamp = read_stamp(self.root, self.need.artifact)
        inventory = Inventory.read(self.root, self.need.artifact)
        some = stamp is not None and stamp.state == "partial" and inventory is not None
        numbers = self._expected(stamp, inventory) if some and stamp and inventory else []
        with disk_errors(self.root):
            for path in (Path(finding.path) for finding in findings):
                if path.is_file():
                    set_aside(path)
            # What is set aside changes the time of its folder, so the stamp is doubted; a lost list changes nothing.
            if (
                self.need.artifact.unpack is None
                or not record_path(self.root, self.need.artifact, "members", ".tsv").exists()
            ):
                drop_stamp(self.root, self.need.artifact)
        return numbers


def check_member(path: Path, member: Member, deep: bool) -> str | None:
    """What is wrong with a file that should be this member, or None; `deep` decodes it if it is a picture."""
    try:
        found = member_fault(path, member)
        if found is None and deep and path.suffix.lower() in PICTURES:
            found = picture_fault(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return found


def picture_fault(path: Path) -> str | None:
    """Why a picture cannot be decoded, or None; raises OSError where it cannot be read."""
    from lavis_ext.readers import SampleError, decode_rgb

    try:
        decode_rgb(path.read_bytes(), path=str(path))
    except SampleError as error:
        return str(error.why)
    return None
