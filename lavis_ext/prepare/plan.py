"""What will be done, decided once: an item per artifact, with what is on disk, its source, the action and its cost.

The plan that `--dry-run` prints is the plan that runs: executing an item looks at nothing again to decide the same.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lavis_ext.common.config.cards import Artifact, Card, Cards, load_cards
from lavis_ext.common.config.resolve import cache_root
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import DiskError, LavisExtError
from lavis_ext.common.wording import columns, human
from lavis_ext.fetch.ledger import Ledger
from lavis_ext.fetch.mirrors import MirrorMap
from lavis_ext.fetch.safety import redact_url, split_url
from lavis_ext.fetch.transfer import Policy, Progress, Silent, Source, Transfer
from lavis_ext.prepare.records import ArtifactRecord, MemberTable, OnDisk, Origin, bookkeeping, inspect, open_table
from lavis_ext.prepare.selection import ArtifactRequest, PrepareOptions, Selection, user_key

log = logging.getLogger(__name__)
GIB = 1 << 30
SLACK = 0.02
"""Of the bytes needed, for what is not counted (folders, records)."""
RESERVE_SHARE = 0.1
Action = Literal["keep", "check", "unpack", "ranges", "fetch", "refuse"]
TEXT_GROWTH, IMAGE_GROWTH = 8.0, 1.05
"""What archives of annotations and of images unpack to, as multiples, where the card does not say."""
MANY_FILES = 1000
"""An archive of more files than these is one of images, also where it is named for itself."""
PICTURE_BYTES = 150_000
"""About what a photograph takes, where the card does not say how many there are."""
DIRECTORY_BYTES = 120
"""About what one member costs in a zip's directory."""


@dataclass(frozen=True)
class PrepareContext:
    """What every step of a run needs: cache root, options, mirror, cards, and where progress and notices go."""

    root: Path
    options: PrepareOptions
    policy: Policy
    mirrors: MirrorMap
    cards: Cards
    progress: Progress
    notice: Callable[[str], None]
    require: Callable[[], None] = lambda: None
    """Raises OwnedError where another process has taken over: called before a name that others use is touched."""
    requests: tuple[ArtifactRequest, ...] = ()
    """What this run prepares: files of remote folders are in no card."""

    def require_own(self, artifact: Artifact, paths: Sequence[Path] = ()) -> None:
        """`require`, and ConfigError where one of these paths, which are to be set aside, is of another artifact."""
        self.require()
        if paths:
            from lavis_ext.prepare.claims import refuse_claimed

            refuse_claimed(self, artifact, paths)

    def artifacts(self) -> list[Artifact]:
        """Every artifact that has a place below the cache root: those of all cards, and of this run."""
        declared = [artifact for card in self.cards.families.values() for artifact in card.named_artifacts()]
        return [*declared, *(request.artifact for request in self.requests)]


def make_context(options: PrepareOptions | None, cards: Cards | None) -> PrepareContext:
    """The cache root, options with their policy filled in, cards and the mirror; raises UsageError, ConfigError."""
    options = options or PrepareOptions()
    options.check()
    root = cache_root(options.cache_root)
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if not there.is_dir():
        raise DiskError(
            str(there), "is a file, not a folder", "name a folder in LAVIS_EXT_CACHE_ROOT or env.cache_root"
        )
    policy = options.policy if options.jobs is None else replace(options.policy, jobs=options.jobs)
    policy = policy if options.offline is None else replace(policy, offline=options.offline)
    mirrors = MirrorMap.from_environment(options.mirror, policy)
    if policy.offline and not mirrors.is_folder:  # what is recorded counts as it is, and the rest is named as missing
        mirrors = MirrorMap()
    options = replace(options, policy=policy)
    return PrepareContext(root, options, policy, mirrors, cards or load_cards(), Silent(), log.info)


@dataclass(frozen=True, kw_only=True)
class PlanItem:
    """One artifact: what is done about it, and its cost in bytes; `download` is None where no size is declared."""

    title: str
    file: str
    action: Action
    state: str
    download: int | None = 0
    unpacked: int = 0
    archive: int = 0
    files: int | None = None
    source: str = ""
    equivalence: str = "byte_exact"
    estimated: bool = False
    note: str = ""
    request: ArtifactRequest | None = field(default=None, repr=False)
    disk: OnDisk = field(default=OnDisk("missing"), repr=False)
    listed: bool = field(default=False, repr=False)
    """Whether it is the images that an artifact lists by URL."""
    adopt: bool = field(default=False, repr=False)
    """Whether the user may have unpacked the archive already: what is there is compared before it is fetched."""
    transfer: Transfer | LavisExtError | None = field(default=None, repr=False)
    leftover: bool = field(default=False, repr=False)
    """Whether an archive lies there that an earlier run would have removed next, had it not been killed."""

    @property
    def remote(self) -> bool:
        """Whether bytes are still to come from another machine."""
        sources = self.transfer.sources if isinstance(self.transfer, Transfer) else ()
        local = any(split_url(source.url).scheme in ("", "file") for source in sources)
        return self.action in ("fetch", "ranges") and not local

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        inner = ("request", "disk", "listed", "adopt", "transfer", "leftover")
        return {key: value for key, value in vars(self).items() if key not in inner}

    def row(self) -> tuple[str, str, str, str, str, str]:
        """A line of the plan's table."""
        about = "~" if self.estimated else ""
        download = "?" if self.download is None else about + human(self.download)
        # of a URL only scheme and host, so that the table stays narrow; `--json` has all of it
        source = "/".join(self.source.split("/")[:3]) if "://" in self.source else self.source
        source += " (subset)" if self.equivalence == "subset" else ""
        unpacked = about + human(self.unpacked) if self.unpacked else "–"
        return self.title, self.state, self.action, download, unpacked, source


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All items, and the free space that they must fit in; `context` and `selection` are what it was made from."""

    root: str
    items: tuple[PlanItem, ...]
    free: int
    free_files: int | None
    writable: bool = True
    keep_archives: bool = False
    reserve_option: int | None = None
    passed_over: tuple[str, ...] = ()
    context: PrepareContext | None = field(default=None, repr=False)
    selection: Selection | None = field(default=None, repr=False)

    @property
    def download(self) -> int:
        """Declared bytes that are still to come."""
        return sum(item.download or 0 for item in self.items)

    @property
    def unpacked(self) -> int:
        """Bytes that unpacking adds."""
        return sum(item.unpacked for item in self.items)

    @property
    def kept(self) -> int:
        """The largest archive, where archives are kept beside what comes out of them."""
        return max((item.archive for item in self.items), default=0) if self.keep_archives else 0

    @property
    def bare(self) -> int:
        """Download + unpacked + the largest kept archive + 2 %."""
        return int((self.download + self.unpacked + self.kept) * (1 + SLACK))

    @property
    def reserve(self) -> int:
        """What must stay free: the option, else 10 % of what is needed, at most 1 GiB."""
        return min(GIB, int(self.bare * RESERVE_SHARE)) if self.reserve_option is None else self.reserve_option

    @property
    def need(self) -> int:
        """Bytes that must be free before the first one moves; 0 where nothing moves."""
        return self.bare + self.reserve if self.bare else 0

    @property
    def unknown(self) -> int:
        """Number of items without a declared size."""
        return sum(item.download is None for item in self.items)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return all(item.action == "keep" for item in self.items)

    @property
    def restricted(self) -> list[Card]:
        """The cards, of those that bytes are fetched of, whose licence a person accepts before (`licences.py`)."""
        fetched = {item.title.partition("/")[0] for item in self.items if item.action in ("fetch", "ranges")}
        known = self.context.cards.families if self.context else {}
        return [card for family, card in sorted(known.items()) if family in fetched and card.terms != "open"]

    def check_disk(self) -> None:
        """Raise DiskError (exit code 6) with both numbers where it does not fit, or where nothing can be written."""
        if not self.writable and not self.done:
            raise DiskError(self.root, "cannot be written to", "choose a cache_root that you may write to")
        ways = "free space, choose another cache_root, or take less with --split or --max-samples"
        if self.keep_archives:
            ways += ", or leave out --keep-archives"
        if self.need > self.free:
            what = f"{self.need:,} bytes ({human(self.need)}) are needed, {self.free:,} ({human(self.free)}) are free"
            raise DiskError(self.root, what, ways)
        files = sum(item.files or 0 for item in self.items if item.action != "keep")
        if self.free_files is not None and files > self.free_files:
            raise DiskError(self.root, f"{files:,} files are to be made, {self.free_files:,} inodes are free", ways)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        totals = {name: getattr(self, name) for name in ("download", "unpacked", "need", "reserve", "free", "unknown")}
        items = [item.as_dict() for item in self.items]
        return {"root": self.root, **totals, "passed_over": list(self.passed_over), "items": items}

    def table(self) -> str:
        """The table that is printed: a line per artifact, then the totals."""
        lines = columns([("artifact", "have", "do", "download", "unpacked", "from"), *(i.row() for i in self.items)])
        unknown = f" + {self.unknown} of undeclared size" if self.unknown else ""
        lines.append(f"download {human(self.download)}{unknown} · unpacked {human(self.unpacked)}")
        lines.append(f"needs {human(self.need)} in {self.root} · free {human(self.free)}")
        notes = [f"{item.title}: {item.note}" for item in self.items if item.note]
        return "\n".join([*lines, *notes, *self.passed_over])


def offered(root: Path, artifact: Artifact, mirrors: MirrorMap, title: str = "") -> Transfer | LavisExtError:
    """How to fetch an artifact's file: its URL, then its mirrors, or what the user's mirror has of them.

    A NetworkError where that mirror lists none of them.
    """
    others = (Source(m.url, m.equivalence, m.size, m.sha256, m.md5) for m in artifact.mirrors)
    sources = (Source(artifact.url), *others)
    path, title = root / artifact.file, title or artifact.name
    figures = artifact.size, artifact.sha256, artifact.md5
    try:
        return mirrors.apply(Transfer(path, sources, *figures, title, temporary=artifact.unpack is not None))
    except LavisExtError as error:
        return error


def make_plan(context: PrepareContext, selection: Selection) -> Plan:
    """Look at the disk and the declarations, once; opens no socket and writes nothing."""
    items, renewed = [], set[str]()
    for request in selection.requests:  # annotations first
        if request.parted:
            continue
        item = plan_item(context, request, renewed)
        if not request.images and item.action in ("fetch", "ranges", "unpack"):
            renewed |= {user_key(*user) for user in request.users}
        items.append(item)
    return _plan_of(context, items, selection)


def _plan_of(context: PrepareContext, items: Sequence[PlanItem], selection: Selection | None) -> Plan:
    root = context.root
    folder = next(folder for folder in (root, *root.parents) if folder.is_dir())
    inodes, usage = os.statvfs(folder), shutil.disk_usage(folder)
    return Plan(
        root=str(root),
        items=tuple(items),
        free=usage.free,
        free_files=inodes.f_favail if inodes.f_files else None,
        # /proc and /sys let root write, and hold no files: their size is 0
        writable=usage.total > 0 and os.access(folder, os.W_OK) and (folder == root or not root.exists()),
        keep_archives=context.options.keep_archives,
        reserve_option=context.options.reserve,
        passed_over=selection.passed_over if selection else (),
        context=context,
        selection=selection,
    )


def plan_item(context: PrepareContext, request: ArtifactRequest, renewed: Collection[str] = ()) -> PlanItem:
    """What is done about one artifact; `renewed` are splits whose annotations this run changes."""
    artifact, options, root = request.artifact, context.options, context.root
    if request.refusal is not None:
        note = str(request.refusal).partition(": ")[2]
        return PlanItem(
            title=request.title,
            file=artifact.file,
            action="refuse",
            state="missing",
            download=None,
            note=note,
            request=request,
            transfer=request.refusal,
        )
    transfer = offered(root, artifact, context.mirrors, request.title)
    if context.policy.offline and isinstance(transfer, LavisExtError):  # a file that lies there needs no mirror
        transfer = offered(root, artifact, MirrorMap(), request.title)
    disk = inspect(root, artifact, transfer, context.policy.offline)
    named: dict[str, Any] = {"title": request.title, "file": artifact.file, "request": request, "disk": disk}
    if _finished(disk, request, options, renewed):
        equivalence = disk.record.equivalence if disk.record else "byte_exact"
        word = "verified" if disk.verified else "present"
        named |= {"state": word, "equivalence": equivalence, "transfer": transfer}
        left = artifact.unpack is not None and disk.size is not None and is_leaving(root, artifact)
        note = "its archive is removed, which a killed run has left" if left and not options.keeps_archives else ""
        return PlanItem(**named, action="keep", leftover=left, note=note)
    if isinstance(transfer, LavisExtError):
        return PlanItem(**named, action="refuse", state=disk.word, note=transfer.problems[0].what, transfer=transfer)
    if artifact.unpack is None or options.no_unpack:
        return _plan_file(request, disk, transfer)
    if options.max_samples is not None and request.images:
        return _plan_samples(request, disk, transfer, options.max_samples)
    return _plan_archive(root, request, disk, transfer)


def ledger_of(root: Path, artifact: Artifact) -> Ledger:
    """Which files of an artifact's family were verified, and which of them were fetched."""
    return Ledger(bookkeeping(root, artifact) / "ledger.jsonl")


def is_leaving(root: Path, artifact: Artifact) -> bool:
    """Whether the ledger says of the archive that lies there that it was fetched, and is to be removed."""
    try:
        entry = ledger_of(root, artifact).find(root / artifact.file, (root / artifact.file).stat())
    except OSError:
        return False
    return entry is not None and entry.is_ours and entry.leaving


def _finished(disk: OnDisk, request: ArtifactRequest, options: PrepareOptions, renewed: Collection[str]) -> bool:
    """Whether nothing is left to do: complete, packed where that is wanted, or enough for the samples asked for."""
    if disk.state != "recorded" or disk.record is None:
        return False
    if disk.record.state == "packed":
        return options.no_unpack
    if disk.record.state == "complete":
        return True
    changed = any(user_key(*user) in renewed for user in request.users)
    return not changed and covers(disk.record, request, options.max_samples)


def covers(record: ArtifactRecord | None, request: ArtifactRequest, max_samples: int | None) -> bool:
    """Whether a partial record was made for at least these samples of all splits that need the artifact."""
    if record is None or max_samples is None or not request.images:
        return False
    return min((record.wanted.get(user_key(*user), 0) for user in request.users), default=0) >= max_samples


def _item(request: ArtifactRequest, disk: OnDisk, transfer: Transfer, action: Action, **more: Any) -> PlanItem:
    source = transfer.sources[0]
    named: dict[str, Any] = {"title": request.title, "file": request.artifact.file, "state": disk.word}
    named |= {"source": redact_url(source.url), "equivalence": source.equivalence, **more}
    return PlanItem(action=action, request=request, disk=disk, transfer=transfer, **named)


def _may_be_it(disk: OnDisk, transfer: Transfer) -> bool:
    """Whether the file or archive on disk may be what is offered: by its size, and not known to be older."""
    sizes = {transfer.size, *(transfer.figures(source).size for source in transfer.sources)}
    known_old = disk.other is not None and disk.other.size == disk.size and not transfer.figures().hashed
    return disk.size is not None and not known_old and (None in sizes or disk.size in sizes)


def _plan_file(request: ArtifactRequest, disk: OnDisk, transfer: Transfer) -> PlanItem:
    if _may_be_it(disk, transfer):
        note = "is compared with what is declared" if transfer.figures().declared else "is taken as it is"
        return _item(request, disk, transfer, "check", note=note)
    size = request.artifact.about if transfer.size is None else transfer.size
    left = None if size is None else max(0, size - disk.part)
    note = "another file is there, which is kept as *.bad-*" if disk.size is not None else ""
    return _item(request, disk, transfer, "fetch", download=left, files=1, estimated=transfer.size is None, note=note)


def unpacked_bytes(request: ArtifactRequest, transfer: Transfer) -> int:
    """What an archive unpacks to: declared, else a guess from its size."""
    subset = transfer.sources[0].equivalence == "subset"
    if request.artifact.unpacked_bytes is not None and not subset:
        return request.artifact.unpacked_bytes
    pictures = request.images or (request.artifact.unpacked_files or 0) > MANY_FILES
    return int((transfer.size or 0) * (IMAGE_GROWTH if pictures else TEXT_GROWTH))


def _plan_archive(root: Path, request: ArtifactRequest, disk: OnDisk, transfer: Transfer) -> PlanItem:
    unpacked, size = unpacked_bytes(request, transfer), transfer.size
    more: dict[str, Any] = {"files": request.artifact.unpacked_files, "archive": size or 0}
    more |= {"unpacked": unpacked, "estimated": request.artifact.unpacked_bytes is None}
    if _may_be_it(disk, transfer):
        return _item(request, disk, transfer, "unpack", **more)
    table = known_table(root, request.artifact, transfer, disk)
    if table is not None and request.artifact.unpack != "tar.gz":
        whole = disk.record is not None and disk.record.state == "complete"
        lost = [table.members[n] for n in (disk.lost if whole else table.lost(root / request.artifact.storage))]
        packed = sum(member.packed for member in lost)
        if prefer_ranges(packed, size, disk.part):
            unpacked = sum(member.size for member in lost)
            return _item(request, disk, transfer, "ranges", download=packed, unpacked=unpacked, files=len(lost))
    left = None if size is None else max(0, size - disk.part)
    unpacked_there = (root / request.artifact.storage / Path(request.artifact.file).stem).is_dir()
    # Members of another version are not adopted: only the whole archive, by its declared hash, says which are right.
    adopt = request.artifact.unpack == "zip" and unpacked_there and table is None
    adopt = adopt and (disk.other is None or disk.other.subset)
    return _item(request, disk, transfer, "fetch", download=left, adopt=adopt, **more)


def check_whole_fits(context: PrepareContext, item: PlanItem) -> None:
    """Raise DiskError where the whole archive of an item, of which only members were planned, does not fit."""
    if isinstance(item.request, ArtifactRequest) and isinstance(item.transfer, Transfer):
        size, unpacked = item.transfer.size, unpacked_bytes(item.request, item.transfer)
        parts = (item.request, item.disk, item.transfer)
        whole = _item(*parts, "fetch", download=size, unpacked=unpacked, archive=size or 0)
        _plan_of(context, [whole], None).check_disk()


def known_table(root: Path, artifact: Artifact, transfer: Transfer, disk: OnDisk) -> MemberTable | None:
    """The kept table of members, if it is of the version that is offered now."""
    table = disk.table or (open_table(root, artifact, disk.record) if disk.record else MemberTable.read(root, artifact))
    if table is None or table.about.get("equivalence") != transfer.sources[0].equivalence:
        return None
    if disk.record is None and table.about.get("origin") != asdict(Origin.of(artifact)):
        return None
    return table if transfer.size in (None, table.about.get("archive_bytes")) else None


def prefer_ranges(missing: int, size: int | None, part: int) -> bool:
    """Whether members of `missing` bytes are fetched singly: if that is less than half of what is left of the archive.

    The archive is verified by one hash and comes in one request, so it is better where much is missing.
    """
    return size is None or missing < (size - part) / 2


def _plan_samples(request: ArtifactRequest, disk: OnDisk, transfer: Transfer, count: int) -> PlanItem:
    """An estimate for the first samples of each split: images of average size, evenly from the split's archives."""
    artifact = request.artifact
    if _may_be_it(disk, transfer):
        unpacked = unpacked_bytes(request, transfer)
        return _item(request, disk, transfer, "unpack", unpacked=unpacked, estimated=True)
    if artifact.unpack != "zip":
        left = None if transfer.size is None else max(0, transfer.size - disk.part)
        note = f"a {artifact.unpack} gives no single files: the whole archive is needed"
        cost = {"download": left, "unpacked": unpacked_bytes(request, transfer), "archive": transfer.size or 0}
        return _item(request, disk, transfer, "fetch", estimated=True, note=note, **cost)
    share = sum(count / len(dataset.build_info.images.artifacts[split]) for dataset, split in _splits(request))
    subset = transfer.sources[0].equivalence == "subset"
    declared = None if subset else artifact.unpacked_files
    total = declared or max(1, (transfer.size or 0) // PICTURE_BYTES)
    files = min(total, int(share) + 1)
    packed = (transfer.size or 0) * files // total
    download = packed + (DIRECTORY_BYTES * total if disk.record is None else 0)
    return _item(request, disk, transfer, "ranges", download=download, unpacked=packed, files=files, estimated=True)


def _splits(request: ArtifactRequest) -> Sequence[tuple[DatasetConfig, str]]:
    """The splits that use an artifact; data sets with the same annotations count once."""
    seen: dict[tuple[tuple[str, ...], str], tuple[DatasetConfig, str]] = {}
    for dataset, split in request.users:
        annotation = dataset.build_info.annotations.get(split)
        named = tuple(annotation.artifact or annotation.storage) if annotation else ()
        seen.setdefault((named, split), (dataset, split))
    return list(seen.values())
