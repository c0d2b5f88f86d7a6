"""Counts of samples: which pictures the annotations of each split name, and how many of them are on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lavis_ext.common.config.cards import Artifact, Cards
from lavis_ext.common.config.schema import DatasetConfig, SplitCounts
from lavis_ext.common.errors import AccessError, ConfigError, IntegrityError, LavisExtError, PartialError
from lavis_ext.common.files import decode_json, expanded, read_file, write_atomic
from lavis_ext.prepare.records import (
    BOOKKEEPING,
    UNREADABLE,
    MemberTable,
    OnDisk,
    bookkeeping,
    family_folder,
    folder_times,
)
from lavis_ext.prepare.report import ArtifactState, SplitState
from lavis_ext.prepare.selection import ArtifactRequest, Chosen, Selection

if TYPE_CHECKING:
    from lavis_ext.datasets.readers.annotations import Annotations
    from lavis_ext.datasets.readers.parse import RowOptions
    from lavis_ext.datasets.readers.shard_index import ShardSample

MISSING_FILE, COUNTS_FILE = "missing.tsv", "counts.json"
CLOCK_STEP_NS = 2_000_000_000
"""File systems keep mtimes in steps of up to two seconds: a second change within one does not show."""
PATTERN = "{image_id}.jpg"


def open_rows(
    paths: Sequence[Path], dataset: DatasetConfig, split: str, root: Path, limit: int | None = None
) -> Annotations:
    """The records of a split, converted to Arrow once; files that only an evaluation reads are left out.

    Raises ConfigError, IntegrityError, DiskError.
    """
    from lavis_ext.datasets.readers.annotations import Annotations
    from lavis_ext.datasets.readers.parse import row_options, sort_files

    return Annotations(sort_files(paths, row_options(dataset, split, root)).rows, limit, root)


def image_names(rows: Annotations, dataset: DatasetConfig, there: ImageNames | None = None) -> list[str]:
    """The distinct names of pictures in rows, in order of appearance; empty where rows name none.

    By `image_key`, else by the first of `image_patterns` that is `there`, else `image_pattern`, else `<image_id>.jpg`,
    as the builders read them.
    """
    keys = rows.keys()
    named = dataset.args.get("image_key", "image")
    made = re.search(rf"\{{{re.escape(named)}[:}}]", dataset.args.get("image_pattern") or "")  # of that very column
    used = next((name for name in (named, "images", "file_name") if name in keys), None)
    if used is not None and not made:
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


def _formatted(rows: Annotations, patterns: Sequence[str], there: ImageNames | None) -> Iterator[str]:
    for row in rows:
        names = [str(pattern).format_map({**row, "image_id": row.get("image_id", "")}) for pattern in patterns]
        yield next((name for name in names if there and there.find(name) is not None), names[0])


class ImageNames:
    """Relative names below the folder of images, found as the image store does: as written, then by their tails.

    `folders` are those that are there beside those of the names: empty ones.
    """

    def __init__(
        self, names: Collection[str], layouts: Sequence[str] | None = None, folders: Collection[str] = ()
    ) -> None:
        self._names, self._declared = names, layouts is not None
        self._folders = {name.rpartition("/")[0] for name in names}.union(folders) - {""}
        first = {name.partition("/")[0] for name in names if "/" in name} if layouts is None else set(layouts)
        self._layouts = ["", *sorted(name for name in first if not name.startswith("."))]

    def find(self, name: str) -> str | None:
        """The name on disk of `name`, or None. Where its folder exists as written, only that very file counts."""
        from lavis_ext.datasets.readers.images import candidates
        from lavis_ext.datasets.readers.packed import PACKED_NAME

        if name in self._names:
            return name
        if packed := PACKED_NAME.match(name):
            return name if packed[1] in self._names else None
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts or not parts:
            return None
        for number, some in enumerate(candidates(parts, lambda: self._layouts, self._declared)):
            found = [one for one in ([some] if isinstance(some, str) else some) if one in self._names]
            if found:
                return found[0] if len(found) == 1 else None
            if number == 1 and name.rpartition("/")[0] in self._folders:
                return None
        return None


def relative_name(artifact: Artifact, member: str, storage: str) -> str | None:
    """A member's name below the folder of images `storage`; None where it is elsewhere."""
    base = artifact.storage.strip("/")
    whole = member if base in ("", ".") else f"{base}/{member}"
    prefix = f"{storage.strip('/')}/" if storage.strip("/") else ""
    return whole[len(prefix) :] if whole.startswith(prefix) else None


@dataclass(frozen=True)
class Counts:
    """Of one split: rows of its annotations, distinct pictures that they name, and how many of these are there."""

    rows: int
    named: int = 0
    present: int = 0
    lost: tuple[str, ...] = ()


class SplitCounter:
    """Counts the splits of a selection; folders are listed and annotations opened once each.

    `disks` is what was found of each artifact, by its file. Counts are kept in `.lavis_ext/counts.json` with the mtimes
    of the files and folders that they were counted in, so that the next time costs a stat per folder: listing COCO's
    123,287 pictures and its 566,435 captions takes a second and 190 MB. With `lost` the names of missing pictures are
    listed, which are not kept.
    """

    def __init__(
        self,
        root: Path,
        cards: Cards,
        requests: Sequence[ArtifactRequest],
        disks: Mapping[str, OnDisk],
        limit: int | None = None,
        lost: bool = True,
    ) -> None:
        self._root, self._cards, self._requests, self._disks = root, cards, requests, disks
        self._limit, self._lost = limit, lost
        self._used: dict[tuple[str, str], list[ArtifactRequest]] = {}
        """What each split of each name needs, of whatever type: declarations are long to compare."""
        for request in requests:
            for name, split in dict.fromkeys((dataset.name, split) for dataset, split in request.users):
                self._used.setdefault((name, split), []).append(request)
        self._listed: dict[str, tuple[set[str], dict[str, int]]] = {}
        self._opened: dict[tuple[tuple[Path, ...], RowOptions], Annotations] = {}
        self._kept: dict[Path, dict[str, Any]] = {}
        self._changed: set[Path] = set()
        self._times: dict[tuple[Path, str], bool] = {}
        self.errors: list[LavisExtError] = []

    def states(self, chosen: Iterable[Chosen]) -> list[SplitState]:
        """The state of every chosen split; annotations that cannot be read are added to `errors`."""
        found = [self._state(one, split) for one in chosen for split in one.splits]
        for path in self._changed:
            with suppress(OSError):  # a root that cannot be written to is counted again
                write_atomic(path, json.dumps(self._kept[path]))
        return found

    def _state(self, one: Chosen, split: str) -> SplitState:
        asked = self._used.get((one.dataset.name, split), ())
        used = [request.artifact for request in asked if (one.dataset, split) in request.users]
        disks = [self._disks.get(artifact.file, OnDisk("missing")) for artifact in used]
        counts = one.dataset.counts.get(split, SplitCounts())
        subset = any(disk.record is not None and disk.record.subset for disk in disks)
        verified = bool(disks) and all(disk.verified for disk in disks)
        state = SplitState(dataset=one.title, split=split, verified=verified, subset=subset, expected=counts.images)
        lists = [artifact for artifact in used if artifact.lists and artifact.lists.output == "shards"]
        if lists and (listed := _list_state(state, self._root, lists[0])):
            return listed
        if one.dataset.builder == "image_text_shards" and not used:
            try:
                whole = [len(good) for _, good, _ in own_shards(one.dataset, self._root)]
            except LavisExtError as error:
                self.errors.append(error)
                return state
            return replace(state, samples=sum(whole))
        paths = [self._root / expanded(path) for path in self._cards.annotation_paths(one.dataset, split)]
        there = all(path.exists() for path in paths)
        if one.dataset.data_type == "features":
            # records where they are JSON, else what the card counts
            readable = there and bool(paths) and all(path.suffix in (".json", ".jsonl") for path in paths)
            found = self._counts(one, split, paths, "", used) if readable else None
            declared = None if subset or not there else counts.samples
            return replace(state, samples=found.rows if found else declared)
        storage = str(expanded(one.dataset.build_info.images.storage))
        found = self._counts(one, split, paths, storage, used) if there and paths else None
        if found is None:
            here = bool(disks) and all(disk.state in ("recorded", "present") for disk in disks)
            alone = here and not one.dataset.build_info.annotations  # shards, which say themselves what they hold
            return replace(state, samples=counts.samples) if alone else state
        # As many samples as pictures: one of each, though an official list has a row for every caption.
        single = bool(found.named) and counts.samples is not None and counts.samples == counts.images
        declared = None if subset or self._limit else counts.samples
        state = replace(state, samples=found.named if single else found.rows, declared=declared)
        return replace(state, expected=found.named, present=found.present, names=found.lost)

    def _counts(
        self, one: Chosen, split: str, paths: Sequence[Path], storage: str, used: Sequence[Artifact]
    ) -> Counts | None:
        """The kept counts, if nothing that they were counted in has changed, else new ones.

        None where the annotations cannot be read.
        """
        packed = [disk.record for a in used if (disk := self._disks.get(a.file)) and disk.record and disk.record.table]
        about = {
            "files": [(str(p.relative_to(self._root)) if p.is_relative_to(self._root) else str(p)) for p in paths],
            "versions": [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in paths)],
            "args": one.dataset.args,
            "storage": storage,
            "packed": [record.table for record in packed if record.state == "packed"],
        }
        home = bookkeeping(self._root, used[0]) / COUNTS_FILE if used else None
        key = f"{one.title}/{split}" + (f"/{self._limit}" if self._limit else "")
        kept = self._keeper(home)["splits"].get(key) if home else None
        if home and isinstance(kept, list) and len(kept) == 4 and (not storage or self._unchanged(home, storage)):
            counts = Counts(*kept[1:])
            fresh = kept[0] == _mark(about, self._keeper(home)["folders"].get(storage))
            if fresh and (counts.present == counts.named or not self._lost):
                return counts
        rows = self._rows(one.dataset, split, tuple(paths))
        if rows is None:
            return None
        counts = Counts(len(rows))
        if storage:
            there = self._names_of(one.dataset)
            names = image_names(rows, one.dataset, there)
            lost = tuple(name for name in names if there.find(name) is None)
            counts = Counts(len(rows), len(names), len(names) - len(lost), lost)
        if home and home.parent.is_dir() and self._unchanged_for_a_step(paths, storage):
            keeper, times = self._keeper(home), self._list(storage)[1] if storage else None
            keeper["splits"][key] = [_mark(about, times), counts.rows, counts.named, counts.present]
            if storage:
                keeper["folders"][storage] = times
                self._times[home, storage] = True
            self._changed.add(home)
        return counts

    def _keeper(self, path: Path) -> dict[str, Any]:
        """What a `counts.json` holds: counts by split, and the times of the folders in which they were counted."""
        if path not in self._kept:
            self._kept[path] = {"format": 1, "splits": {}, "folders": {}}
            with suppress(*UNREADABLE):
                tree = decode_json(read_file(path))
                if tree["format"] == 1 and isinstance(tree["splits"], dict) and isinstance(tree["folders"], dict):
                    self._kept[path] = tree
        return self._kept[path]

    def _unchanged(self, home: Path, storage: str) -> bool:
        """Whether no file was added to or removed from a folder of pictures since its pictures were counted."""
        if (home, storage) not in self._times:
            times = self._keeper(home)["folders"].get(storage)
            same = isinstance(times, dict) and bool(times) and folder_times(self._root / storage, times) == times
            self._times[home, storage] = same
        return self._times[home, storage]

    def _unchanged_for_a_step(self, paths: Sequence[Path], storage: str) -> bool:
        """Whether the last change was long enough ago that a later one will show in the mtimes."""
        times = [path.stat().st_mtime_ns for path in paths]
        times += self._list(storage)[1].values() if storage else []
        return max(times, default=0) < time.time_ns() - CLOCK_STEP_NS

    def _rows(self, dataset: DatasetConfig, split: str, paths: tuple[Path, ...]) -> Annotations | None:
        """The rows of a split up to the limit, None where they cannot be read."""
        from lavis_ext.datasets.readers.parse import row_options

        key = paths, row_options(dataset, split, self._root)
        if key not in self._opened:
            try:
                self._opened[key] = open_rows(paths, dataset, split, self._root, self._limit)
            except (IntegrityError, ConfigError) as error:
                self.errors.append(error)
                return None
        return self._opened[key]

    def _names_of(self, dataset: DatasetConfig) -> ImageNames:
        """The pictures below a data set's folder: files, and members of archives that are left packed."""
        names, times = self._list(str(expanded(dataset.build_info.images.storage)))
        if not self._cards.artifacts_of(dataset):
            from lavis_ext.datasets.readers.images import ImageStore, ZipArchive

            store = ImageStore(self._root / expanded(dataset.build_info.images.storage))
            try:
                names = names.union(*(place.names() for place in store.places if isinstance(place, ZipArchive)))
            except LavisExtError as error:
                self.errors.append(error)
        return ImageNames(names, dataset.args.get("layouts"), times)

    def _list(self, storage: str) -> tuple[set[str], dict[str, int]]:
        if storage not in self._listed:
            names, times = list_tree(self._root / storage)
            names.update(self._packed(storage))
            self._listed[storage] = names, times
        return self._listed[storage]

    def _packed(self, storage: str) -> Iterator[str]:
        for artifact in (request.artifact for request in self._requests if request.images):
            disk = self._disks.get(artifact.file)
            record = disk.record if disk else None
            table = MemberTable.read(self._root, artifact) if record and record.state == "packed" else None
            for member in table.members if table else ():
                name = relative_name(artifact, member.name, storage)
                if name is not None:
                    yield name


def _mark(about: Mapping[str, Any], times: Mapping[str, int] | None) -> str:
    """A digest of all that a count depends on: files, arguments, and the folders' mtimes."""
    return hashlib.sha256(json.dumps([about, times], sort_keys=True, default=str).encode()).hexdigest()


def _list_state(state: SplitState, root: Path, artifact: Artifact) -> SplitState | None:
    """The state of shards that were made from a list, by its account; None where there is none yet."""
    spec = artifact.lists
    if spec is None or not (root / PurePosixPath(spec.storage).parts[0]).is_dir():  # the account's folder is in it too
        return None
    from lavis_ext.prepare.urls.job import list_account

    account = list_account(root, artifact)
    if account is None:  # shards that were copied here: what their manifests promise, not verified
        if not (tars := list((root / spec.storage).glob("*.tar"))):
            return None
        from lavis_ext.prepare.urls.shards import ShardManifest

        manifests = [ShardManifest.read(path) for path in tars]
        count = sum(manifest.samples for manifest in manifests if manifest is not None)
        return replace(state, samples=count, expected=None, verified=False) if any(manifests) else None
    whole = sum(path.stat().st_size > 0 for path in (root / spec.storage).glob("*.tar")) >= account.shards
    state = replace(state, samples=account.samples, expected=account.expected, present=account.present)
    return replace(state, verified=account.error is None and whole)


def own_shards(dataset: DatasetConfig, root: Path) -> Iterator[tuple[Path, list[ShardSample], list[ShardSample]]]:
    """Each shard of one's own with its samples, and those that lack something; raises as the reader of shards does."""
    from lavis_ext.datasets.readers.shard_index import Shard, list_shards

    needs = ("image", "txt" if dataset.args.get("caption_key") == ".txt" else "json")
    for path in list_shards(dataset.build_info.storage, root, f"datasets.{dataset.name}.build_info.storage"):
        entries = Shard.open(path).entries(needs)[1]
        yield path, [one for one in entries if not one.fault], [one for one in entries if one.fault]


def artifact_states(selection: Selection, disks: Mapping[str, OnDisk]) -> list[ArtifactState]:
    """The state of each artifact that the user named, by what was found of its files."""
    states = []
    for title in selection.named:
        requests = [request for request in selection.requests if title in (request.title, request.folder)]
        found = [disks[request.artifact.file] for request in requests if request.artifact.file in disks]
        there = [disk.record for disk in found if disk.record is not None and disk.state == "recorded"]
        known = not any(request.refusal for request in requests)
        states.append(
            ArtifactState(
                dataset=title,
                split="",
                expected=len(requests) if known else None,
                present=len(there),
                verified=known and len(found) == len(requests) and all(disk.verified for disk in found),
                subset=any(record.subset for record in there),
                bytes=sum(record.bytes for record in there),
            )
        )
    return states


def list_tree(root: Path) -> tuple[set[str], dict[str, int]]:
    """Relative names of all files below a folder, and each folder with its mtime in ns from before it was listed.

    Hidden folders are left out; links to folders are followed, each folder once.
    """
    names: set[str] = set()
    times: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    todo = [""]
    while todo:
        folder = todo.pop()
        prefix = f"{folder}/" if folder else ""
        try:
            stat = (root / folder).stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            times[folder] = stat.st_mtime_ns
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110 - a loop is no error
                        continue
                    if not entry.is_dir():
                        names.add(prefix + entry.name)
                    elif not entry.name.startswith("."):
                        todo.append(prefix + entry.name)
        except OSError:
            continue
    return names, times


def shortage_errors(
    states: Iterable[SplitState], chosen: dict[str, Chosen], cards: Cards, root: Path
) -> list[LavisExtError]:
    """An error for each split that is short of pictures.

    In a family that must be complete (threshold 1) a missing picture is damage (IntegrityError, exit code 5); in
    another, some dead links are expected, and fewer than its threshold are an error (PartialError, exit code 8).
    Pictures that come by hand are reported with the steps (AccessError, exit code 7), as are those for which the card
    has no source, because the list names files and no URLs.
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
        elif not _has_source(cards, one.dataset, state.split):
            folder = root / one.dataset.build_info.images.storage
            what = f"{what}, and the list does not say where they come from"
            errors.append(AccessError(where, what, f"put them below {folder}"))
        elif threshold >= 1:
            way_out = "run `lavis-ext prepare` again; `.lavis_ext/missing.tsv` names them"
            errors.append(IntegrityError(where, what, way_out))
        else:
            what = f"{what}, {threshold:.0%} must be there"
            errors.append(
                PartialError(where, what, "run `lavis-ext prepare` again later; `.lavis_ext/missing.tsv` names them")
            )
    return errors


def _has_source(cards: Cards, dataset: DatasetConfig, split: str) -> bool:
    """Whether a card says where the pictures of a split come from: archives of them, or a list of URLs."""
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
