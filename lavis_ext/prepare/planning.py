"""The bytes named before they move: per artifact and in all, against the disk, as a table and as JSON."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lavis_ext.errors import DiskError, LavisExtError
from lavis_ext.fetch import MirrorMap, Transfer, redact_url
from lavis_ext.prepare.found import Found, inspect, lost_members, offered
from lavis_ext.prepare.inventory import Inventory
from lavis_ext.prepare.selection import Need, PrepareOptions, Selection, user_key
from lavis_ext.prepare.stamps import Stamp
from lavis_ext.schema import DatasetConfig
from lavis_ext.wording import columns, human

GIB = 1 << 30
SLACK = 0.02
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All items, and the disk that they must fit on."""

    root: str
    items: tuple[PlanItem, ...]
    free: int
    free_files: int | None
    keep_archives: bool = False
    reserve_option: int | None = None
    passed_over: tuple[str, ...] = ()

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
        """Items whose size nobody declares."""
        return sum(item.download is None for item in self.items)

    def check_disk(self) -> None:
        """Raise DiskError (exit code 6) with both numbers where it does not fit, or where nothing can be written."""
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
        items = [asdict(item) for item in self.items]
        return {"root": self.root, **totals, "passed_over": list(self.passed_over), "items": items}

    def table(self) -> str:
        """What a person reads: a line per artifact, then the totals."""
        rows = [("artifact", "have", "do", "download", "unpacked", "from")]
        rows += [_row(item) for item in self.items]
        lines = columns(rows)
        unknown = f" + {self.unknown} of undeclared size" if self.unknown else ""
        lines.append(f"download {human(self.download)}{unknown} · unpacked {human(self.unpacked)}")
        lines.append(f"needs {human(self.need)} in {self.root} · free {human(self.free)}")
        notes = [f"{item.title}: {item.note}" for item in self.items if item.note]
        return "\n".join([*lines, *notes, *self.passed_over])


def _row(item: PlanItem) -> tuple[str, str, str, str, str, str]:
    about = "~" if item.estimated else ""
    download = "?" if item.download is None else about + human(item.download)
    source = f"{_short(item.source)} (subset)" if item.equivalence == "subset" else _short(item.source)
    unpacked = about + human(item.unpacked) if item.unpacked else "–"
    return item.title, item.state, item.action, download, unpacked, source


def _short(source: str) -> str:
    """An address as a table holds it: scheme and host; `--json` has it whole."""
    return "/".join(source.split("/")[:3]) if "://" in source else source


def make_plan(root: Path, selection: Selection, options: PrepareOptions, mirrors: MirrorMap) -> Plan:
    """Look at the disk and the declarations; opens no socket (beyond the mirror's manifest) and writes nothing."""
    items = [plan_item(root, need, options, mirrors) for need in selection.needs]
    folder = next(folder for folder in (root, *root.parents) if folder.is_dir())
    if (folder != root and root.exists()) or not os.access(folder, os.W_OK):
        raise DiskError(str(root), "cannot be written to", "choose a cache_root that you may write to")
    inodes = os.statvfs(folder)
    return Plan(
        root=str(root),
        items=tuple(items),
        free=shutil.disk_usage(folder).free,
        free_files=inodes.f_favail if inodes.f_files else None,
        keep_archives=options.keep_archives,
        reserve_option=options.reserve,
        passed_over=selection.passed_over,
    )


def plan_item(root: Path, need: Need, options: PrepareOptions, mirrors: MirrorMap) -> PlanItem:
    """What is done about one artifact."""
    artifact = need.artifact
    if need.refusal is not None:
        told: dict[str, Any] = {"download": None, "note": str(need.refusal).partition(": ")[2]}
        return PlanItem(title=need.title, file=artifact.file, action="refuse", state="missing", **told)
    transfer = offered(root, artifact, mirrors, need.title)
    offline = options.policy.offline
    found = inspect(root, artifact, transfer, offline)
    if finished(found, need, options):
        stamp = found.stamp
        equivalence = stamp.equivalence if stamp else "byte_exact"
        return PlanItem(title=need.title, file=artifact.file, action="keep", state="verified", equivalence=equivalence)
    if isinstance(transfer, LavisExtError):
        note = transfer.problems[0].what
        return PlanItem(title=need.title, file=artifact.file, action="refuse", state=found.state, note=note)
    if artifact.unpack is None or options.no_unpack:
        return _plan_file(need, found, transfer)
    if options.max_samples is not None and need.images:
        return _plan_samples(need, found, transfer, options.max_samples)
    return _plan_archive(root, need, found, transfer)


def finished(found: Found, need: Need, options: PrepareOptions) -> bool:
    """Whether nothing is left to do: complete, packed where that is wanted, or enough for the samples asked for."""
    if found.state != "verified" or found.stamp is None:
        return False
    if found.stamp.state == "packed":
        return options.no_unpack
    return found.stamp.state == "complete" or covers(found.stamp, need, options.max_samples)


def covers(stamp: Stamp | None, need: Need, max_samples: int | None) -> bool:
    """Whether a partial stamp was made for at least these samples of all splits that need the artifact."""
    if stamp is None or max_samples is None or not need.images:
        return False
    counts = [stamp.wanted.get(user_key(*user), 0) for user in need.users]
    return min(counts, default=0) >= max_samples


def _item(need: Need, found: Found, transfer: Transfer, action: Action, **more: Any) -> PlanItem:
    source = transfer.sources[0]
    shown = {"source": redact_url(source.url), "equivalence": source.equivalence, **more}
    some = found.stamp is not None and found.stamp.state == "partial"
    state = "partial" if some else found.state
    return PlanItem(title=need.title, file=need.artifact.file, action=action, state=state, **shown)


def _plan_file(need: Need, found: Found, transfer: Transfer) -> PlanItem:
    if found.state in ("present", "archive"):
        return _item(need, found, transfer, "check", note="is compared with its declared hash")
    size = need.artifact.about if transfer.size is None else transfer.size
    left = None if size is None else max(0, size - found.part)
    return _item(need, found, transfer, "fetch", download=left, files=1, estimated=transfer.size is None)


def unpacked_bytes(need: Need, transfer: Transfer) -> int:
    """What an archive unpacks to: declared, else a guess from its size."""
    subset = transfer.sources[0].equivalence == "subset"
    if need.artifact.unpacked_bytes is not None and not subset:
        return need.artifact.unpacked_bytes
    pictures = need.images or (need.artifact.unpacked_files or 0) > MANY_FILES
    return int((transfer.size or 0) * (IMAGE_GROWTH if pictures else TEXT_GROWTH))


def _plan_archive(root: Path, need: Need, found: Found, transfer: Transfer) -> PlanItem:
    unpacked, size = unpacked_bytes(need, transfer), transfer.size
    more: dict[str, Any] = {"files": need.artifact.unpacked_files, "archive": size or 0}
    more |= {"unpacked": unpacked, "estimated": need.artifact.unpacked_bytes is None}
    if found.state == "archive" or (root / need.artifact.file).is_file():
        return _item(need, found, transfer, "unpack", **more)
    missing = missing_bytes(root, need, found, transfer)
    if missing is not None and prefer_ranges(missing[0], size, found.part):
        return _item(need, found, transfer, "ranges", download=missing[0], unpacked=missing[1], files=missing[2])
    left = None if size is None else max(0, size - found.part)
    return _item(need, found, transfer, "fetch", download=left, **more)


def missing_bytes(root: Path, need: Need, found: Found, transfer: Transfer) -> tuple[int, int, int] | None:
    """(packed bytes, unpacked bytes, files) that are not in place, by the list of members; None without one."""
    inventory = known_inventory(root, need, transfer)
    if inventory is None or need.artifact.unpack == "tar.gz":
        return None
    whole = found.stamp is not None and found.stamp.state == "complete"
    numbers = found.lost if whole else lost_members(root / need.artifact.storage, inventory)
    members = [inventory.members[number] for number in numbers]
    return sum(m.packed for m in members), sum(m.size for m in members), len(members)


def known_inventory(root: Path, need: Need, transfer: Transfer) -> Inventory | None:
    """The kept list of members, if it is of the archive that is offered now."""
    inventory = Inventory.read(root, need.artifact)
    if inventory is None or inventory.about.get("equivalence") != transfer.sources[0].equivalence:
        return None
    same = transfer.size is None or transfer.size == inventory.about.get("archive_bytes")
    return inventory if same else None


def prefer_ranges(missing: int, size: int | None, part: int) -> bool:
    """Whether single members are fetched rather than the archive: when they are less than half of what it still costs.

    The archive is checked by its hash as a whole and comes in one go, so it wins when much is missing.
    """
    return size is None or missing < (size - part) / 2


def _plan_samples(need: Need, found: Found, transfer: Transfer, count: int) -> PlanItem:
    """About what the first samples of each split cost: images of average size, evenly from a split's archives."""
    artifact = need.artifact
    if found.state == "archive":
        return _item(need, found, transfer, "unpack", unpacked=unpacked_bytes(need, transfer), estimated=True)
    if artifact.unpack != "zip":
        left = None if transfer.size is None else max(0, transfer.size - found.part)
        note = f"a {artifact.unpack} gives no single files: the whole archive is needed"
        shown = {
            "download": left,
            "unpacked": unpacked_bytes(need, transfer),
            "archive": transfer.size or 0,
            "note": note,
        }
        return _item(need, found, transfer, "fetch", estimated=True, **shown)
    share = sum(count / len(dataset.build_info.images.artifacts[split]) for dataset, split in _splits(need))
    subset = transfer.sources[0].equivalence == "subset"
    declared = None if subset else artifact.unpacked_files
    total = declared or max(1, (transfer.size or 0) // PICTURE_BYTES)
    files = min(total, int(share) + 1)
    packed = (transfer.size or 0) * files // total
    download = packed + (DIRECTORY_BYTES * total if found.stamp is None else 0)
    return _item(need, found, transfer, "ranges", download=download, unpacked=packed, files=files, estimated=True)


def _splits(need: Need) -> Sequence[tuple[DatasetConfig, str]]:
    """The users of an artifact, data sets on the same annotations counted once."""
    seen: dict[tuple[tuple[str, ...], str], tuple[DatasetConfig, str]] = {}
    for dataset, split in need.users:
        annotation = dataset.build_info.annotations.get(split)
        seen.setdefault(
            (tuple(annotation.artifact or annotation.storage) if annotation else (), split), (dataset, split)
        )
    return list(seen.values())
