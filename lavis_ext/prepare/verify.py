"""`status`: what is on the disk by the records. `verify`: every byte of it checked, and with `deep` every picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.common.config.cards import Artifact, Cards
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, PartialError
from lavis_ext.common.files import expanded, read_file
from lavis_ext.common.wording import counted, human
from lavis_ext.fetch.ledger import hash_file, mismatch
from lavis_ext.fetch.transfer import Figures, Progress, Silent
from lavis_ext.prepare.plan import PrepareContext, make_context, make_plan
from lavis_ext.prepare.records import (
    ArtifactRecord,
    Member,
    MemberTable,
    OnDisk,
    disk_errors,
    drop_record,
    inspect,
    open_table,
    read_record,
)
from lavis_ext.prepare.report import Outcome, SplitState, worst
from lavis_ext.prepare.run import opened, owned
from lavis_ext.prepare.samples import SplitCounter, artifact_states, image_names, open_rows, own_shards
from lavis_ext.prepare.selection import ArtifactRequest, Chosen, PrepareOptions, select

if TYPE_CHECKING:
    from lavis_ext.prepare.lists import ListCheck

log = logging.getLogger(__name__)
EXISTENCE = "existence only; --deep decodes the pictures"
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One file that is not as it should be, or one artifact that cannot be checked."""

    title: str
    path: str
    fault: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found: how much it checked, every fault, and the repair where one was asked for.

    `unknown` are artifacts that are not prepared; `subset` are those from a mirror that offers only a part.
    """

    files: int = 0
    bytes: int = 0
    findings: tuple[Finding, ...] = ()
    unknown: tuple[str, ...] = ()
    subset: tuple[str, ...] = ()
    repaired: tuple[Outcome, ...] | None = None
    existence: bool = False
    """Whether of pictures of one's own, which have no hashes, it is only known that they are there."""
    errors: tuple[LavisExtError, ...] = field(default=(), repr=False)

    @property
    def exit_code(self) -> int:
        """0 if all that is prepared is sound (or was repaired), 5 for damage, 8 where nothing is prepared at all."""
        if self.repaired is not None:
            return worst([outcome.error for outcome in self.repaired if outcome.error is not None])
        return worst(self.errors) if self.errors or self.files else PartialError.exit_code

    def line(self) -> str:
        """`checked 40512 files · 6.6 GB · 1 damaged · exit 5`."""
        shown = f"checked {counted(self.files, 'file')} · {human(self.bytes)} · {len(self.findings)} damaged or missing"
        if self.repaired is not None:
            failed = sum(outcome.error is not None for outcome in self.repaired)
            shown += f", {failed} of {len(self.repaired)} artifacts not repaired" if failed else ", all repaired"
        shown += f" · {len(self.unknown)} not prepared" if self.unknown else ""
        shown += f" · own pictures: {EXISTENCE}" if self.existence else ""
        return f"{shown}{' · subset' if self.subset else ''} · exit {self.exit_code}"

    def lines(self) -> list[str]:
        """Everything for a person, the line last."""
        lines = [f"{one.path}: {one.fault}" for one in self.findings]
        lines += [f"{title}: not prepared" for title in self.unknown]
        lines += [f"{title}: a subset" for title in self.subset]
        for outcome in self.repaired or ():
            lines.append(f"{outcome.title}: {outcome.error or f'repaired, {human(outcome.bytes)} fetched'}")
        return [*lines, self.line()]

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
    names: Iterable[str] = (),
    options: PrepareOptions | None = None,
    cards: Cards | None = None,
    lost: bool = True,
    disks: dict[str, OnDisk] | None = None,
) -> list[SplitState]:
    """The state of every split of some families or data sets (default: all); nothing is hashed or fetched.

    Without `lost`, the names of missing pictures are not listed, which is quicker. `disks` is given what is on the disk
    of each artifact, by its file. Raises UsageError for an unknown name.
    """
    context = make_context(replace(options or PrepareOptions(), offline=True, mirror=""), cards)
    root, options = context.root, context.options
    wanted = list(names) or list(context.cards.families)
    selection = opened(context, select(context.cards, wanted, options.splits, root=root))
    disks = {} if disks is None else disks
    disks |= {request.artifact.file: inspect(root, request.artifact) for request in selection.requests}
    counter = SplitCounter(root, context.cards, selection.requests, disks, options.max_samples, lost)
    return [*counter.states(selection.chosen), *artifact_states(selection, disks)]


def bytes_on_disk(root: Path, artifacts: Iterable[Artifact], disks: dict[str, OnDisk]) -> int:
    """Bytes of what is there of some artifacts: by their records, else of files and parts of downloads.

    Each is inspected once for all calls, as `disks` has it: that can be a look at a hundred thousand files.
    """
    total = 0
    for artifact in {artifact.file: artifact for artifact in artifacts}.values():
        if (disk := disks.get(artifact.file)) is None:
            disk = disks[artifact.file] = inspect(root, artifact)
        total += disk.record.bytes if disk.record is not None else disk.size or disk.part
    return total


def own_bytes(dataset: DatasetConfig, cards: Cards, root: Path) -> int:
    """Bytes of the files of rows, shards and pictures of a data set that no command fetches, each counted once.

    Rows that cannot be read, and what is not there, count nothing.
    """
    from lavis_ext.datasets.readers import ImageStore, SampleError

    info = dataset.build_info
    store = ImageStore(root / expanded(info.images.storage), layouts=dataset.args.get("layouts"))
    files = set[str]()
    with suppress(LavisExtError):
        files |= set() if info.annotations else {str(path) for path, *_ in own_shards(dataset, root)}
    for split in info.annotations:
        paths = [root / expanded(path) for path in cards.annotation_paths(dataset, split)]
        files |= {str(path) for path in paths}
        if not info.images.storage or dataset.data_type == "features" or not store.ready:
            continue
        with suppress(LavisExtError):
            for name in image_names(open_rows(paths, dataset, split, root), dataset):
                with suppress(SampleError):
                    place, member = store.find(name)
                    files.add(place.where(member).partition("!")[0])
    return sum(path.stat().st_size for path in map(Path, files) if path.is_file())


def verify(
    names: Iterable[str],
    deep: bool = False,
    repair: bool = False,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    cards: Cards | None = None,
) -> VerifyReport:
    """Check what is prepared: files by their hashes, members by size and CRC-32; `deep` decodes every picture too.

    Archives that were fetched whole and those of which single members were fetched are checked in the same way.
    `repair` sets aside what fails and fetches it again, as single members where the archive allows it. Raises
    UsageError.
    """
    from lavis_ext.prepare.execute import repair_items  # imported here: `status` needs no reader of archives
    from lavis_ext.prepare.lists import check_list, execute_lists, list_title, plan_lists

    chosen, names = options or PrepareOptions(), list(names)
    offline = make_context(replace(chosen, offline=True, mirror=""), cards)
    root = offline.root
    selection = opened(offline, select(offline.cards, names, offline.options.splits, root=root))
    report = VerifyReport()
    checks = [_Check(root, one, deep, progress or Silent()) for one in selection.requests if not one.parted]
    found: dict[str, list[Finding]] = {}
    for check in checks:
        report = _add(report, check, found)
    lists = [request for request in selection.requests if request.artifact.lists is not None]
    for request in lists:
        report = _add_list(report, check_list(root, request.artifact, deep), list_title(request), found)
    for one in selection.chosen:
        if not offline.cards.artifacts_of(one.dataset):
            for split in one.splits:
                report = _add_own(report, root, offline.cards, one, split, deep)
    damaged = [check for check in checks if found.get(check.request.title)]
    damaged_lists = [request for request in lists if found.get(list_title(request))]
    if not repair or not (damaged or damaged_lists):
        return report
    context = replace(make_context(chosen, cards), progress=progress or Silent(), notice=notice or log.info)
    with owned(context, selection) as (pulse, _):
        pulse.require()
        context = replace(context, progress=pulse, require=pulse.require, requests=selection.requests)
        lost, outcomes = [], []
        for check in damaged:
            try:
                lost.append((check.request, check.set_aside(context, found[check.request.title])))
            except ConfigError as error:  # the file there is another artifact's
                title, file = check.request.title, check.request.artifact.file
                outcomes.append(Outcome(title=title, file=file, outcome="failed", error=error))
        outcomes += repair_items(context, lost) if lost else []
        replanned = plan_lists(make_plan(context, replace(selection, requests=())), damaged_lists, context.options)
        wrong = {list_title(one): [Path(f.path) for f in found[list_title(one)]] for one in damaged_lists}
        wrong = {title: [path for path in paths if path.is_file()] for title, paths in wrong.items()}
        listed = execute_lists(context, replanned.items, {}, wrong)
    return replace(report, repaired=(*outcomes, *listed.values()))


def _add_own(report: VerifyReport, root: Path, cards: Cards, one: Chosen, split: str, deep: bool) -> VerifyReport:
    """The report with a split of one's own, which no command fetches: its files are read, its pictures looked for."""
    title, dataset = f"{one.title}/{split}", one.dataset
    paths = [root / expanded(path) for path in cards.annotation_paths(dataset, split)]
    column = dataset.args.get("image_key", "image")
    way_out = f"put it there, or leave out the rows whose `{column}` names it"
    try:
        if not paths:
            files, size, faults = _own_shards(dataset, root, deep)
            way_out = "make this shard again"
        elif absent := [(str(path), "missing") for path in paths if not path.exists()]:
            files, size, faults = len(paths), 0, absent
        else:
            files, size, faults = _own_pictures(dataset, split, paths, root, deep)
    except LavisExtError as error:
        files, size, faults = len(paths) or 1, 0, [(problem.where, problem.what) for problem in error.problems]
    findings = [Finding(title=title, path=path, fault=fault) for path, fault in faults]
    return replace(
        report,
        files=report.files + files,
        bytes=report.bytes + size,
        existence=report.existence or not (deep or dataset.data_type == "features"),
        findings=(*report.findings, *findings),
        errors=(*report.errors, *(IntegrityError(one.path, one.fault, way_out) for one in findings)),
    )


Checked = tuple[int, int, list[tuple[str, str]]]
"""How many files, how many bytes of them were read, and paths with their faults."""


def _own_pictures(dataset: DatasetConfig, split: str, paths: Sequence[Path], root: Path, deep: bool) -> Checked:
    """The pictures that the rows of a split name, each looked for, with `deep` decoded; raises for rows."""
    from concurrent.futures import ThreadPoolExecutor

    from lavis_ext.datasets.readers import ImageStore, SampleError, decode_rgb
    from lavis_ext.prepare.extract import thread_count

    size = sum(path.stat().st_size for path in paths if path.is_file())
    folder = dataset.build_info.images.storage
    rows = open_rows(paths, dataset, split, root)
    if dataset.data_type == "features" or not folder:
        return len(paths), size, []
    store = ImageStore(root / expanded(folder), layouts=dataset.args.get("layouts"))
    if not store.ready:
        return len(paths), size, [(str(store.root), "is no folder of pictures")]

    def look(name: str) -> tuple[int, str, str]:
        where = ""
        try:
            place, member = store.find(name)
            where = place.where(member)
            data = place.read(member) if deep else b""
            if deep:
                decode_rgb(data, path=where)
        except SampleError as error:
            return 0, where or error.path, str(error.why)
        return len(data), where, ""

    with ThreadPoolExecutor(thread_count()) as pool:
        looked = list(pool.map(look, names := image_names(rows, dataset)))
    faults = [(path, fault) for _, path, fault in looked if fault]
    return len(paths) + len(names), size + sum(count for count, *_ in looked), faults


def _own_shards(dataset: DatasetConfig, root: Path, deep: bool) -> Checked:
    """The samples of tar shards, by their headers, with `deep` decoded; raises for what cannot be listed."""
    from lavis_ext.datasets.readers import SampleError
    from lavis_ext.datasets.readers.shard_index import Shard
    from lavis_ext.datasets.readers.shards import RawSample

    files, size, faults = 0, 0, []
    for path, good, bad in own_shards(dataset, root):
        files, size = files + 1, size + path.stat().st_size
        faults += [(f"{path}!{one.key}", one.fault) for one in bad]
        for one in good if deep else ():
            try:
                RawSample(Shard.open(path), one).pixels()
            except SampleError as error:
                faults.append((f"{path}!{one.key}", error.why))
    return files, size, faults


def _set_aside(paths: Iterable[Path]) -> None:
    from lavis_ext.prepare.extract import set_aside

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
    """The report with one more artifact, whose findings are added to `found` by its title."""
    title, record = check.request.title, read_record(check.root, check.request.artifact)
    if record is None:
        return replace(report, unknown=(*report.unknown, title))
    findings = found.setdefault(title, check.findings(record))
    errors = [IntegrityError(one.path, one.fault, "run `lavis-ext verify --repair`") for one in findings]
    return replace(
        report,
        files=report.files + record.files,
        bytes=report.bytes + record.bytes,
        findings=(*report.findings, *findings),
        subset=(*report.subset, *([title] if record.subset else [])),
        errors=(*report.errors, *errors),
    )


@dataclass
class _Check:
    """One artifact, checked against its record."""

    root: Path
    request: ArtifactRequest
    deep: bool
    progress: Progress
    old: bool = False
    """Whether what is there is of another version than the card declares: it is not damaged, and is not set aside."""

    def findings(self, record: ArtifactRecord) -> list[Finding]:
        """Every file that is not as it was declared or recorded."""
        artifact = self.request.artifact
        self.old = not record.is_of(artifact)
        if self.old:
            return [self._finding(self.root / artifact.file, "is of another version than the card declares")]
        if artifact.unpack is None or record.state == "packed":
            fault = self._file_fault(record)
            return [] if fault is None else [self._finding(self.root / artifact.file, fault)]
        table = open_table(self.root, artifact, record)
        if table is None:
            return [self._finding(self.root / artifact.storage, "the table of its members is gone")]
        return list(self._member_findings(table, sorted(table.held)))

    def _finding(self, path: Path, fault: str) -> Finding:
        return Finding(title=self.request.title, path=str(path), fault=fault)

    def _file_fault(self, record: ArtifactRecord) -> str | None:
        path, artifact = self.root / self.request.artifact.file, self.request.artifact
        own = Figures(record.bytes, record.sha256)
        declared = Figures(artifact.size, artifact.sha256 or record.sha256, artifact.md5)
        declared = own if record.equivalence != "byte_exact" else declared
        try:
            sha256, md5 = hash_file(path, declared)
            return mismatch(declared, path.stat().st_size, sha256, md5)
        except OSError as error:
            return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"

    def _member_findings(self, table: MemberTable, numbers: Sequence[int]) -> Iterator[Finding]:
        from concurrent.futures import ThreadPoolExecutor

        from lavis_ext.prepare.extract import BATCH_FILES, thread_count

        label, members = f"{self.request.title} checked", table.members
        target = self.root / self.request.artifact.storage
        self.progress.begin(label, sum(members[n].size for n in numbers))

        def faults(start: int) -> list[Finding]:
            """Of some members: a task for each of a hundred thousand costs as much as its file."""
            batch = [members[n] for n in numbers[start : start + BATCH_FILES]]
            found = [(one.name, check_member(f"{target}/{one.name}", one, self.deep)) for one in batch]
            self.progress.advance(label, sum(one.size for one in batch))
            return [self._finding(target / name, fault) for name, fault in found if fault is not None]

        with ThreadPoolExecutor(thread_count()) as pool:
            for found in pool.map(faults, range(0, len(numbers), BATCH_FILES)):
                yield from found
        self.progress.end(label, "reused")

    def set_aside(self, context: PrepareContext, findings: Sequence[Finding]) -> list[int]:
        """Set aside what failed, so that it is fetched again; raises DiskError, ConfigError where it is another's.

        Returns the numbers of the members that should be there where only some were fetched, else nothing.
        """
        artifact = self.request.artifact
        record = read_record(self.root, artifact)
        if record is None or self.old:
            return []
        table = None if artifact.unpack is None else open_table(self.root, artifact, record)
        paths = [path for path in (Path(finding.path) for finding in findings) if path.is_file()]
        context.require_own(artifact, paths)
        _set_aside(paths)
        # Setting members aside changes the mtime of their folder, so that `inspect` finds them lost. Nothing else is
        # found lost so: there the record is dropped.
        if table is None:
            with disk_errors(self.root):
                drop_record(self.root, artifact)
        return sorted(table.held) if table is not None and record.state == "partial" else []


def check_member(path: str, member: Member, deep: bool) -> str | None:
    """What is wrong with a file that should be this member, or None; `deep` decodes it if it is a picture."""
    from lavis_ext.prepare.extract import member_fault

    try:
        found = member_fault(path, member)
        if found is None and deep and path.lower().endswith(PICTURES):
            found = picture_fault(Path(path))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return found


def picture_fault(path: Path) -> str | None:
    """Why a picture cannot be decoded, or None; raises OSError where it cannot be read."""
    from lavis_ext.datasets.readers import SampleError, decode_rgb

    try:
        decode_rgb(read_file(path), path=str(path))
    except SampleError as error:
        return str(error.why)
    return None
