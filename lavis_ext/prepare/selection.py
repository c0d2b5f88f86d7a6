"""Names and splits of a command → data sets and the artifacts that they need; unknown names raise UsageError."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from lavis_ext.common.config.cards import Artifact, Blob, Card, Cards, split_names, storage_fault
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.config.yamlio import shown
from lavis_ext.common.errors import ConfigError, LavisExtError, NetworkError, Problem, UsageError, nearest
from lavis_ext.common.files import folded, is_encodable
from lavis_ext.fetch.mirrors import MirrorMap, mirror_path
from lavis_ext.fetch.transfer import Policy
from lavis_ext.prepare.records import BOOKKEEPING, family_folder

LONGEST = 255
"""Bytes of a name, of a card that is made in Python: our own files beside one of them have shorter names."""
Preference = Callable[[DatasetConfig, DatasetConfig, str], bool]
"""(data set in its other form, in the first form, split) → whether the other form is to be used."""
DEPTH = 32
"""Folders below each other that a member of an archive, or a file of a remote folder, may lie in."""
# absolute, drive letter, backslash, control character (a tab or newline would break our lists), `.`, `..` or empty part
_BAD_NAME = re.compile(r"^/|^[A-Za-z]:|\\|[\x00-\x1f\x7f]|(?:^|/)\.{0,2}(?:/|$)")
ContentsOrigin = Literal["mirror", "listing", "card", "disk"]


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `lavis-ext prepare` takes; None is the default of the environment."""

    splits: Sequence[str] | None = None
    """None: every split that a data set declares."""
    max_samples: int | None = None
    """Only the first N samples of each split, and only their images."""
    dry_run: bool = False
    jobs: int | None = None
    """Files that are fetched at a time."""
    keep_archives: bool = False
    no_unpack: bool = False
    """Leave archives as they are; images are then read out of zips."""
    offline: bool | None = None
    mirror: str | None = None
    """Base URL or folder; None: `LAVIS_EXT_MIRROR`."""
    cache_root: str | Path | None = None
    reserve: int | None = None
    """Bytes that stay free on the disk; None: 10 % of what is needed, at most 1 GiB."""
    policy: Policy = field(default_factory=Policy)
    source: str = ""
    """Another place of a list in parts (Laion-COCO's metadata): a folder, a file of URLs, `hf:datasets/owner/name` …"""
    metadata_only: bool = False
    """Fetch lists of images, but not the images."""
    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    """How img2dataset distributes the download of a list of the open web."""
    processes: int = 0
    """Processes that download such a list; 0: one per core, at most 16."""
    include: Sequence[str] = ()
    """Patterns of the files to prepare (`features.*`, `coco_ir/*`); none: all."""
    exclude: Sequence[str] = ()
    """Patterns of files that are left out."""
    listing: bool = False
    """Ask hosts to list folders, and keep the answer as their manifest, also where one is declared."""

    locked: bool = False
    """Take only what `lavis-ext.lock` of the working directory pins, by its figures."""

    @property
    def keeps_archives(self) -> bool:
        """Whether archives are to lie there when it is done."""
        return self.keep_archives or self.no_unpack

    def check(self) -> None:
        """Raise UsageError for values that are out of range or exclude each other."""
        if self.max_samples is not None and self.max_samples <= 0:
            raise UsageError(f"--max-samples {self.max_samples}", "must be at least 1", "leave it out for everything")
        if self.max_samples is not None and self.no_unpack:
            raise UsageError(
                "--no-unpack", "does not go with --max-samples, which fetches single files", "leave one out"
            )
        if self.jobs is not None and self.jobs <= 0:
            raise UsageError(f"--jobs {self.jobs}", "must be at least 1", "leave it out for the default")


@dataclass(frozen=True)
class Chosen:
    """A data set and the chosen splits of it."""

    card: Card
    dataset: DatasetConfig
    splits: tuple[str, ...]

    @property
    def title(self) -> str:
        """Its name, with the config type where that is not the default."""
        return self.dataset.name if self.dataset.type == "default" else f"{self.dataset.name}[{self.dataset.type}]"


@dataclass
class ArtifactRequest:
    """An artifact, whether it holds images, and the splits that need it."""

    artifact: Artifact
    card: Card
    images: bool
    users: list[tuple[DatasetConfig, str]] = field(default_factory=list)
    folder: str = ""
    """The title of the remote folder that this is a file of, "" for none."""
    refusal: LavisExtError | None = None
    """Why it cannot be prepared: the files of a folder are not known."""

    @property
    def title(self) -> str:
        """What messages call it: `coco/train2014`."""
        return f"{self.artifact.family or self.card.family}/{self.artifact.name or self.artifact.file}"

    @property
    def parted(self) -> bool:
        """Whether it is a list of images in several files: those are fetched with the images."""
        return self.artifact.lists is not None and self.artifact.lists.parts > 1


@dataclass(frozen=True)
class Contents:
    """The files of a folder by relative name, and where this is known from."""

    files: dict[str, Blob]
    origin: ContentsOrigin


@dataclass(frozen=True)
class Selection:
    """The chosen data sets, what they need (each file once, annotations first), and a line for each one skipped."""

    chosen: tuple[Chosen, ...]
    requests: tuple[ArtifactRequest, ...]
    passed_over: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    """Titles of the artifacts that the user named."""
    contents: tuple[tuple[Artifact, Contents], ...] = ()
    """What each folder among them holds."""

    @property
    def families(self) -> list[str]:
        """The folders below the cache root that this writes to, sorted."""
        return sorted({family_folder(request.artifact) for request in self.requests})


def user_key(dataset: DatasetConfig, split: str) -> str:
    """The key of a split of a data set in records: `coco_vqa[eval]/val`."""
    return f"{dataset.name}/{split}" if dataset.type == "default" else f"{dataset.name}[{dataset.type}]/{split}"


def select(
    cards: Cards,
    names: Iterable[str],
    splits: Sequence[str] | None,
    mirrors: MirrorMap | None = None,
    root: Path | None = None,
) -> Selection:
    """Families, data sets and artifacts by name; with a subset mirror, those of which it lists nothing are skipped.

    Of annotations that are published in two forms, the one that such a mirror has is used, else the one that is below
    `root`. Raises UsageError for an unknown name or split, NetworkError where the mirror lists nothing of them all,
    ConfigError where two different files have one place.
    """
    wanted = list(names)
    chosen, named = _chosen(cards, wanted, splits), _named(cards, wanted)
    skipped: list[str] = []
    if mirrors is not None and mirrors.is_subset:
        listed = [_in_form(cards, one, _listed_only(cards, mirrors)) for one in chosen]
        chosen, named, skipped = _offered(cards, listed, named, mirrors)
    elif root is not None:
        chosen = [_in_form(cards, one, _on_disk(cards, root)) for one in chosen]
    requests = _requests(cards, chosen)
    there = {request.artifact.file for request in requests}
    requests = [*(request for request in named if request.artifact.file not in there), *requests]
    refuse_places(requests, (artifact for card in cards.families.values() for artifact in card.named_artifacts()))
    return Selection(tuple(chosen), tuple(requests), tuple(skipped), tuple(request.title for request in named))


@dataclass(frozen=True)
class _Place:
    """A path below the cache root that an artifact takes: its file, or a folder that things are put into."""

    artifact: Artifact
    parts: tuple[str, ...]
    is_file: bool = False
    is_own: bool = False
    """Whether it is a folder of shards, which are numbered: another list's would have the same names."""

    @classmethod
    def of(cls, artifact: Artifact) -> Iterator[_Place]:
        """The file of an artifact, the folder of its members, and the one of the images that it lists."""
        single = artifact.folder is None and (artifact.lists is None or artifact.lists.parts == 1)
        yield cls(artifact, PurePosixPath(artifact.file).parts, is_file=single)
        if artifact.lists is not None:
            shards = artifact.lists.output == "shards"
            yield cls(artifact, PurePosixPath(artifact.lists.storage).parts, is_own=shards)

    def folded_names(self) -> Iterator[tuple[str, ...]]:
        """The name of each folder on the way, and of the place itself, where neither case nor Unicode form counts."""
        names = tuple(folded(part) for part in self.parts)
        return (names[:depth] for depth in range(1, len(names) + 1))

    def step(self, depth: int) -> _Place:
        """The folder on the way that has so many parts, or the place itself."""
        return self if depth == len(self.parts) else _Place(self.artifact, self.parts[:depth])

    def conflict(self, other: _Place) -> str | None:
        """Why two places that are one where case does not count cannot both be."""
        path, what = "/".join(self.parts), f"'{other.artifact.family}/{other.artifact.name}'"
        if self.parts != other.parts:
            return f"'{path}' differs only in case or Unicode form from '{'/'.join(other.parts)}' of {what}"
        if self.is_file != other.is_file:
            return f"'{path}' is a file here and a folder of {what}, or the other way round"
        if self.is_file and _differ(self.artifact, other.artifact):
            return f"'{path}' is the place of {what} too, which is another file"
        if self.is_own and other.is_own and self.artifact != other.artifact:
            return f"'{path}' is the folder of the shards of {what} too"
        return None


def _differ(one: Artifact, other: Artifact) -> bool:
    """Whether two declarations cannot be of one file."""
    pairs: list[tuple[object, object]] = [(one.size, other.size)]
    pairs += [(a.lower(), b.lower()) for a, b in ((one.sha256, other.sha256), (one.md5, other.md5)) if a and b]
    unlike = any(None not in pair and pair[0] != pair[1] for pair in pairs)
    return unlike or (len(pairs) == 1 and one.url != other.url)


def refuse_places(requests: Iterable[ArtifactRequest], declared: Iterable[Artifact] = ()) -> None:
    """Raise ConfigError, with all mistakes, where what is asked for has no place of its own below the cache root.

    A path leads out of it, or nothing may lie there; two files have one place (one would be fetched, and count as
    verified for both), or one lies where another of those `declared` needs a folder; two paths differ only in case or
    in Unicode form. The last is refused on every disk: cache roots are shared and copied, and some know no difference.
    """
    problems: dict[Problem, None] = {}
    taken: dict[tuple[str, ...], _Place] = {}

    def note(artifact: Artifact, what: str | None) -> None:
        if what:
            where = f"artifact '{artifact.family}/{artifact.name}'"
            problems[Problem(where, what, "name another `storage` below cache_root")] = None

    for artifact in (request.artifact for request in requests):
        family_folder(artifact)
        for place in _Place.of(artifact):
            if fault := storage_fault("/".join(place.parts), LONGEST):
                note(artifact, f"{shown('/'.join(place.parts)[:100])} {fault}")
            for key in place.folded_names():
                if key in taken:
                    note(artifact, place.step(len(key)).conflict(taken[key]))
                else:
                    taken[key] = place.step(len(key))
    for artifact in declared:
        for place in _Place.of(artifact):
            for key in place.folded_names():
                if key in taken:
                    note(artifact, place.step(len(key)).conflict(taken[key]))
    if problems:
        raise ConfigError.of(problems)


def name_fault(name: str, depth: int = DEPTH) -> str | None:
    """Why the name of a file in an archive or a remote folder is refused, or None."""
    if _BAD_NAME.search(name):
        return f"member {name!r} has a name that could leave the folder"
    if name.count("/") >= depth:
        return f"member {name[:80]!r}… lies more than {depth} folders deep"
    if not name.isascii() and not is_encodable(name):
        return f"member {name!r} has a name that is not UTF-8"
    if len(name) > 63 and any(len(part.encode()) > 255 for part in name.split("/")):
        return f"member {name[:80]!r}… has a name of more than 255 bytes"
    if BOOKKEEPING in name and BOOKKEEPING in name.split("/"):
        return f"member {name!r} would write into {BOOKKEEPING}"
    return None


def _named(cards: Cards, names: Iterable[str]) -> list[ArtifactRequest]:
    """The artifacts that the user named, or all of a family without data sets; each once."""
    found = [artifact for name in names for artifact in cards.named_artifacts(name)]
    return [
        ArtifactRequest(artifact, cards.families[artifact.family], False)
        for artifact in {a.file: a for a in found}.values()
    ]


def _chosen(cards: Cards, names: list[str], splits: Sequence[str] | None) -> list[Chosen]:
    if not names:
        raise UsageError("prepare", "names no data set", nearest("", [*cards.families, *cards.names()]))
    resolved = [(name, *cards.resolve(name)) for name in names]
    datasets = {(d.name, d.type): (card, d) for name, card, found in resolved for d in found if _is_meant(d, name)}
    known = dict.fromkeys(split for _, dataset in datasets.values() for split in split_names(dataset))
    for split in splits or ():
        if split not in known:
            raise UsageError(f"--split {split}", f"no split of {', '.join(names)}", nearest(split, known))
    wanted = known if splits is None else dict.fromkeys(splits)
    every = [Chosen(card, d, tuple(s for s in split_names(d) if s in wanted)) for card, d in datasets.values()]
    return [chosen for chosen in every if chosen.splits]


def _is_meant(dataset: DatasetConfig, name: str) -> bool:
    """Whether a name selects this config type: one that is prepared on request only must be named itself."""
    named = (f"{dataset.name}[{dataset.type}]", dataset.name if dataset.type == "default" else None)
    return not dataset.on_request or name in named


def _in_form(cards: Cards, one: Chosen, prefers: Preference) -> Chosen:
    """The data set with each split in its other form where `prefers` says so."""
    dataset = one.dataset
    for split in one.splits:
        other = cards.in_other_form(dataset, split)
        if other and prefers(other, dataset, split):
            dataset = other
    return replace(one, dataset=dataset)


def _listed_only(cards: Cards, mirrors: MirrorMap) -> Preference:
    """Prefers the other form of a split where a mirror lists all of it, and not all of the first form."""

    def lists_all(dataset: DatasetConfig, split: str) -> bool:
        return all(_any_listed(artifact, mirrors) for artifact in cards.annotation_artifacts(dataset, split))

    def prefers(other: DatasetConfig, first: DatasetConfig, split: str) -> bool:
        return lists_all(other, split) and not lists_all(first, split)

    return prefers


def _on_disk(cards: Cards, root: Path) -> Preference:
    """Prefers the other form where all of it is on disk and the first form is not, or contains it (as builders do)."""

    def prefers(other: DatasetConfig, first: DatasetConfig, split: str) -> bool:
        others, paths = ({root / path for path in cards.annotation_paths(form, split)} for form in (other, first))
        return all(map(Path.is_file, others)) and (paths < others or not all(map(Path.is_file, paths)))

    return prefers


def _requests(cards: Cards, chosen: Iterable[Chosen]) -> list[ArtifactRequest]:
    requests: dict[str, ArtifactRequest] = {}
    for one in chosen:
        for split in one.splits:
            images = {artifact.file for artifact in cards.image_artifacts(one.dataset, split)}
            # An archive that holds the annotations too is fetched whole, before pictures are chosen by them.
            images -= {artifact.file for artifact in cards.annotation_artifacts(one.dataset, split)}
            for artifact in cards.artifacts_of(one.dataset, [split]):
                request = requests.setdefault(
                    artifact.file, ArtifactRequest(artifact, one.card, artifact.file in images)
                )
                request.users.append((one.dataset, split))
    return sorted(requests.values(), key=lambda request: request.images)


def _offered(
    cards: Cards, chosen: list[Chosen], named: list[ArtifactRequest], mirrors: MirrorMap
) -> tuple[list[Chosen], list[ArtifactRequest], list[str]]:
    """What a subset mirror has of what is asked for; a data set whose annotations it does not list is skipped.

    Images alone do not count: several data sets use the same ones. A data set that is listed in part is kept, and what
    is missing is an error later.
    """
    kept = [one for one in chosen if _listed(cards, one, mirrors)]
    offered = [request for request in named if _any_listed(request.artifact, mirrors)]
    skipped = [one.title for one in chosen if one not in kept]
    skipped += [request.title for request in named if request not in offered]
    lines = [f"{title}: skipped, the mirror (a subset) lists nothing of it" for title in skipped]
    if not kept and not offered:
        raise NetworkError(
            mirrors.base, "the mirror (a subset) lists nothing of what is asked for", "name another mirror"
        )
    return kept, offered, lines


def _listed(cards: Cards, one: Chosen, mirrors: MirrorMap) -> bool:
    """Whether the mirror lists any of its annotations, or any of its images where it has no annotations."""
    requests = _requests(cards, [one])
    annotations = [request for request in requests if not request.images]
    return any(_any_listed(request.artifact, mirrors) for request in annotations or requests)


def _any_listed(artifact: Artifact, mirrors: MirrorMap) -> bool:
    urls = [artifact.url, *(mirror.url for mirror in artifact.mirrors)]
    if artifact.lists and artifact.lists.parts > 1:
        urls = [url.format(part=0) for url in urls]  # a list in parts is there if its first part is
    if artifact.folder is not None and mirrors.manifest is not None:
        return any(name.startswith(f"{mirror_path(artifact.url).rstrip('/')}/") for name in mirrors.manifest.files)
    return any(mirrors.lists(url) for url in urls)
