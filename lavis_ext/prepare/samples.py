"""Samples counted: which pictures the annotations of each split name, and how many of those are on the disk."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.cards import Artifact, Cards
from lavis_ext.errors import AccessError, ConfigError, IntegrityError, LavisExtError, PartialError
from lavis_ext.files import write_atomic
from lavis_ext.imagelists.account import Account
from lavis_ext.imagelists.listing import list_account
from lavis_ext.prepare.plan import OnDisk
from lavis_ext.prepare.records import BOOKKEEPING, MemberTable, family_folder
from lavis_ext.prepare.report import SplitState
from lavis_ext.prepare.selection import ArtifactRequest, Chosen
from lavis_ext.schema import DatasetConfig, SplitCounts

if TYPE_CHECKING:
    from lavis_ext.readers.annotations import Annotations

MISSING_FILE = "missing.tsv"
PATTERN = "{image_id}.jpg"


def open_rows(paths: Sequence[Path], limit: int | None = None) -> Annotations:
    """The records of a split, converted to Arrow once; files that only an evaluation reads are left out.

    Raises ConfigError, IntegrityError, DiskError.
    """
    from lavis_ext.readers.annotations import Annotations
    from lavis_ext.readers.forms import sort_files

    return Annotations(sort_files(paths).rows, limit)


def image_names(rows: Annotations, dataset: DatasetConfig, there: Names | None = None) -> list[str]:
    """The distinct names of pictures in rows, in order of appearance; empty where rows name none.

    They stand under `image_key`, else follow the first of `image_patterns` that is `there`, else `image_pattern`, else
    are `<image_id>.jpg`, as the builders read them.
    """
    keys = rows.keys()
    used = next(
        (name for name in (dataset.args.get("image_key", "image"), "images", "file_name") if name in keys), None
    )
    if used is not None:
        return list(dict.fromkeys(_flat(rows.column(str(used)))))
    single = dataset.args.get("image_pattern") or (PATTERN if "image_id" in keys else None)
    patterns = dataset.args.get("image_patterns") or ([single] if single else [])
    return list(dict.fromkeys(_formatted(rows, patterns, there))) if patterns else []


def _flat(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield from map(str, value)
        elif value is not None:
            yield str(value)


def _formatted(rows: Annotations, patterns: Sequence[str], there: Names | None) -> Iterator[str]:
    for row in rows:
        names = [str(pattern).format_map({**row, "image_id": row.get("image_id", "")}) for pattern in patterns]
        yield next((name for name in names if there and there.find(name) is not None), names[0])


class Names:
    """Relative names below the folder of images, sought as the image store does: as written, then by their tails."""

    def __init__(self, names: Collection[str], layouts: Sequence[str] | None = None) -> None:
        self._names = names
        self._folders = {name.rpartition("/")[0] for name in names} - {""}
        first = {name.partition("/")[0] for name in names if "/" in name} if layouts is None else set(layouts)
        self._layouts = ["", *sorted(name for name in first if not name.startswith("."))]

    def find(self, name: str) -> str | None:
        """The name that serves `name`, or None; in a folder that is there as written only the file as written does."""
        if name in self._names:
            return name
        if name.rpartition("/")[0] in self._folders:
            return None
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts:
            return None
        return next((found for found in self._candidates(parts) if found in self._names), None)

    def _candidates(self, parts: list[str]) -> Iterator[str]:
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            yield from (f"{layout}/{tail}" if layout else tail for layout in self._layouts)


def relative_name(artifact: Artifact, member: str, storage: str) -> str | None:
    """A member's name below the folder of images `storage`; None where it lies elsewhere."""
    base = artifact.storage.strip("/")
    whole = member if base in ("", ".") else f"{base}/{member}"
    prefix = f"{storage.strip('/')}/" if storage.strip("/") else ""
    return whole[len(prefix) :] if whole.startswith(prefix) else None


class SplitCounter:
    """Counts the splits of a selection; folders are listed and annotations opened once each.

    `disks` is what was found of each artifact, by its file.
    """

    def __init__(
        self,
        root: Path,
        cards: Cards,
        requests: Sequence[ArtifactRequest],
        disks: Mapping[str, OnDisk],
        limit: int | None = None,
    ) -> None:
        self._root, self._cards, self._requests, self._disks, self._limit = root, cards, requests, disks, limit
        self._listed: dict[tuple[str, tuple[str, ...] | None], Names] = {}
        self._opened: dict[tuple[Path, ...], Annotations] = {}
        self.errors: list[LavisExtError] = []

    def states(self, chosen: Iterable[Chosen]) -> list[SplitState]:
        """The state of every chosen split; annotations that cannot be read are added to `errors`."""
        return [self._state(one, split) for one in chosen for split in one.splits]

    def _state(self, one: Chosen, split: str) -> SplitState:
        used = [request.artifact for request in self._requests if (one.dataset, split) in request.users]
        disks = [self._disks.get(artifact.file, OnDisk("missing")) for artifact in used]
        counts = one.dataset.counts.get(split, SplitCounts())
        subset = any(disk.record is not None and disk.record.subset for disk in disks)
        verified = bool(disks) and all(disk.verified for disk in disks)
        state = SplitState(dataset=one.title, split=split, verified=verified, subset=subset, expected=counts.images)
        listed = self._list_of(one.dataset, split)
        if listed is not None:
            state = replace(state, samples=listed.samples, expected=listed.expected, present=listed.present)
            return replace(state, verified=listed.error is None)
        if one.dataset.data_type == "features":
            return replace(state, samples=self._counted(one.dataset, split, SplitCounts() if subset else counts))
        rows = self._rows(one.dataset, split)
        if rows is None:
            return state if one.dataset.build_info.annotations else replace(state, samples=counts.samples)
        there = self.names_of(one.dataset)
        names = image_names(rows, one.dataset, there) if one.dataset.build_info.images.storage else []
        lost = tuple(name for name in names if there.find(name) is None)
        # As many samples as pictures: one of each, though an official list has a row for every caption.
        single = bool(names) and counts.samples is not None and counts.samples == counts.images
        declared = None if subset or self._limit else counts.samples
        state = replace(state, samples=len(names) if single else len(rows), declared=declared)
        return replace(state, expected=len(names), present=len(names) - len(lost), names=lost)

    def _counted(self, dataset: DatasetConfig, split: str, counts: SplitCounts) -> int | None:
        """The samples of a split on region features: its records where they are JSON, else what the card counts."""
        paths = [self._root / path for path in self._cards.annotation_paths(dataset, split)]
        if not all(path.is_file() for path in paths):
            return None
        rows = self._rows(dataset, split) if all(path.suffix in (".json", ".jsonl") for path in paths) else None
        return counts.samples if rows is None else len(rows)

    def _list_of(self, dataset: DatasetConfig, split: str) -> Account | None:
        """What is told of shards that were made from a list, None where the split has none (yet)."""
        used = [request.artifact for request in self._requests if (dataset, split) in request.users]
        lists = [artifact for artifact in used if artifact.lists and artifact.lists.output == "shards"]
        return list_account(self._root, lists[0]) if lists else None

    def _rows(self, dataset: DatasetConfig, split: str) -> Annotations | None:
        """The rows of a split up to the limit, None where its files are not there (or cannot be read)."""
        paths = tuple(self._root / path for path in self._cards.annotation_paths(dataset, split))
        if not paths or not all(path.is_file() for path in paths):
            return None
        if paths not in self._opened:
            try:
                self._opened[paths] = open_rows(paths, self._limit)
            except (IntegrityError, ConfigError) as error:
                self.errors.append(error)
                return None
        return self._opened[paths]

    def names_of(self, dataset: DatasetConfig) -> Names:
        """The pictures below a data set's folder: files, and members of archives that were left packed."""
        storage, layouts = dataset.build_info.images.storage, dataset.args.get("layouts")
        key = (storage, tuple(layouts) if layouts is not None else None)
        if key not in self._listed:
            names = set(walk(self._root / storage)) | set(self._packed(storage))
            self._listed[key] = Names(names, layouts)
        return self._listed[key]

    def _packed(self, storage: str) -> Iterator[str]:
        for artifact in (request.artifact for request in self._requests if request.images):
            disk = self._disks.get(artifact.file)
            record = disk.record if disk else None
            table = MemberTable.read(self._root, artifact) if record and record.state == "packed" else None
            for member in table.members if table else ():
                name = relative_name(artifact, member.name, storage)
                if name is not None:
                    yield name


def walk(root: Path) -> Iterator[str]:
    """Relative names of all files below a folder, hidden folders left out; links to folders are followed."""
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        base = os.path.relpath(folder, root)
        prefix = "" if base == "." else f"{base}/"
        yield from (prefix + name for name in files)


def shortage_errors(
    states: Iterable[SplitState], chosen: dict[str, Chosen], cards: Cards, root: Path
) -> list[LavisExtError]:
    """An error for each split that is short of pictures.

    A family that must be complete (threshold 1) is damaged without one (IntegrityError, exit code 5); another is
    partial below its threshold (PartialError, exit code 8), as sets of dead links are expected to be. Pictures that
    come by hand are told with the steps (AccessError, exit code 7), and so are those that nothing on the card brings,
    because the list names files and no addresses.
    """
    errors: list[LavisExtError] = []
    for state in states:
        if not state.missing or not state.expected:
            continue
        one = chosen[state.dataset]
        threshold = one.card.success_threshold
        where, what = f"{state.dataset}/{state.split}", f"{state.missing} of {state.expected} images are missing"
        if one.dataset.manual:
            errors.append(AccessError(where, what, one.dataset.manual))
        elif threshold < 1 and state.present / state.expected >= threshold:
            continue
        elif not _brings(cards, one.dataset, state.split):
            folder = root / one.dataset.build_info.images.storage
            told = f"{what}, and the list does not say where they come from"
            errors.append(AccessError(where, told, f"lay them below {folder}"))
        elif threshold >= 1:
            way_out = "run `lavis-ext prepare` again; `.lavis_ext/missing.tsv` names them"
            errors.append(IntegrityError(where, what, way_out))
        else:
            what = f"{what}, {threshold:.0%} must be there"
            errors.append(
                PartialError(where, what, "run `lavis-ext prepare` again later; `.lavis_ext/missing.tsv` names them")
            )
    return errors


def _brings(cards: Cards, dataset: DatasetConfig, split: str) -> bool:
    """Whether a card says where the pictures of a split come from: archives of them, or a list of addresses."""
    listed = any(artifact.lists for artifact in cards.artifacts_of(dataset, [split]))
    return listed or bool(cards.image_artifacts(dataset, split))


def home_of(one: Chosen, requests: Iterable[ArtifactRequest]) -> str:
    """The folder below the cache root in which a data set keeps its records."""
    used = [request.artifact for request in requests if any(dataset is one.dataset for dataset, _ in request.users)]
    return family_folder(used[0]) if used else one.card.family


def write_missing(root: Path, states: Iterable[SplitState], homes: dict[str, str]) -> None:
    """Per family, `.lavis_ext/missing.tsv`: data set, split, picture; removed where nothing is. Raises OSError."""
    lines: dict[str, list[str]] = {folder: [] for folder in homes.values()}
    for state in states:
        lines[homes[state.dataset]] += [f"{state.dataset}\t{state.split}\t{_plain(name)}\n" for name in state.names]
    for folder, missing in lines.items():
        path = root / folder / BOOKKEEPING / MISSING_FILE
        if missing:
            write_atomic(path, "".join(["dataset\tsplit\timage\n", *missing]))
        else:
            path.unlink(missing_ok=True)


def _plain(name: str) -> str:
    return name.encode("unicode_escape").decode() if not name.isprintable() else name
