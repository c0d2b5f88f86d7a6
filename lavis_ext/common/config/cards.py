"""Cards: the artifacts (remote files) of each family of data sets, and the data sets made from them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from lavis_ext.common.config.decode import ConfigDecoder, Count, Natural, Share, join, read_sections
from lavis_ext.common.config.resolve import (
    DatasetDefaults,
    Tree,
    beside,
    config_roots,
    dataset_defaults,
    dataset_files,
    merge,
)
from lavis_ext.common.config.schema import AnnotationConfig, DatasetConfig, examine_url
from lavis_ext.common.config.yamlio import shown
from lavis_ext.common.errors import DATASETS, ConfigError, Problem, UsageError, near, nearest
from lavis_ext.common.files import expanded, is_pathlike, not_there
from lavis_ext.common.lavis import WAY_OUT, out_of_scope

CARD_FILE = "artifacts.yaml"
BOOKKEEPING = ".lavis_ext"
LONGEST_NAME = 240
"""Bytes: file systems take 255, and our own files beside one have up to 15 more."""


def storage_fault(path: str, longest: int = LONGEST_NAME) -> str | None:
    """Why nothing may be stored at a path below the cache root (bookkeeping, names that no disk takes), or None."""
    parts = path.replace("\\", "/").split("/")
    own = BOOKKEEPING[1:]
    if own in path.casefold() and any(
        part.strip(" .").casefold() == own and part.strip().startswith(".") for part in parts
    ):
        return f"lies in {BOOKKEEPING}, where the bookkeeping is"
    try:
        long = len(path.encode()) > longest and any(len(part.encode()) > longest for part in parts)
    except UnicodeEncodeError:
        return "has characters that no file name can have"
    if "\0" in path:
        return "has characters that no file name can have"
    return f"has a name of more than {longest} bytes" if long else None


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """Another place of the same artifact, and how equal its bytes are."""

    url: str
    equivalence: Literal["byte_exact", "repacked", "reencoded", "subset"]
    size: Natural | None = None
    sha256: str | None = None
    md5: str | None = None

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note digests of another form."""
        examine_digests(decoder, self, key)


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """Images that a fetched file lists by URL: which keys of its records name what, and where the images go.

    Of each list of keys the first that the records have is taken. `path` is a pattern over a record's keys, under
    `storage`; `{image.name}` is the last part of the value, so `{url.name}` is the file name at the end of a URL.
    """

    storage: str
    """Folder of the images, or of the shards, relative to cache_root."""
    engine: Literal["fetch", "img2dataset"] = "fetch"
    """fetch: a few hosts, bytes as they come; img2dataset: the open web, where links die."""
    output: Literal["files", "shards"] = "files"
    records: str = ""
    """The key under which a JSON file holds its records; "" finds `annotations`, `questions`, `data` or a bare list."""
    columns: list[str] = field(default_factory=list)
    """The names of a CSV or TSV file's columns, where its first line does not name them."""
    url_key: list[str] = field(default_factory=lambda: ["url", "URL"])
    path: str = "{url.name}"
    id_key: list[str] = field(default_factory=list)
    caption_key: list[str] = field(default_factory=lambda: ["caption", "TEXT", "text", "top_caption"])
    keep: list[str] = field(default_factory=list)
    """Further keys that a shard's samples keep in their JSON."""
    threshold: Share | None = None
    """Share of the images below which the list counts as failed (exit code 8); None: the card's."""
    expected: Natural | None = None
    """How many images a complete list has."""
    placeholders: list[str] = field(default_factory=list)
    """What hosts send instead of a lost image: sha256 of the bytes, or a part of the URL that it is redirected to."""
    parts: Count = 1
    """Files that the list comes in; `{part:05d}` in the artifact's url is their number from 0."""
    rows_per_part: Count | None = None
    """About how many records a part has: with fewer samples wanted, fewer parts are fetched."""
    image_size: Count = 256
    """Shards only: the shorter side that larger images are made smaller to."""
    samples_per_shard: Count = 10_000


@dataclass(frozen=True, kw_only=True)
class Blob:
    """What is known of one file of a folder; `about` is the publisher's round figure, for plans only."""

    size: Natural | None = None
    sha256: str | None = None
    md5: str | None = None
    about: Natural | None = None

    @staticmethod
    def accept(value: Any) -> Any:
        """`name:` alone, and `name: SIZE`."""
        return {} if value is None else {"size": value} if isinstance(value, int) else value


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """What a remote folder holds, by relative name: a blob store has no folders, and few tokens may list one."""

    files: dict[str, Blob] = field(default_factory=dict)
    complete: bool = False
    """Whether these are known to be all; else a listing is preferred where the token allows one."""
    only: list[str] = field(default_factory=list)
    """Patterns of the names that belong to the artifact (`cc3m-train-*.tar`); none: all."""
    nested: dict[str, str] = field(default_factory=dict)
    """Folders inside it that are artifacts of their own: `coco2014test: features_coco2014test`; they are left out."""

    @staticmethod
    def accept(value: Any) -> Any:
        """An empty `folder:` says that the address is one, and that nothing is known of what it holds."""
        return {} if value is None else value


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One remote file: where it is, what it must hash to, and its path below cache_root.

    `storage` is the file itself or, where `unpack` is set, the folder that it is extracted into; members keep their
    paths. The archive is then at `storage/<last part of url>`. With `folder` set it is a folder of files, and both
    `url` and `storage` are folders.
    """

    url: str
    storage: str
    name: str = ""
    family: str = ""
    mirrors: list[Mirror] = field(default_factory=list)
    size: Natural | None = None
    sha256: str | None = None
    md5: str | None = None
    unpack: Literal["zip", "tar", "tar.gz"] | None = None
    unpacked_files: Natural | None = None
    unpacked_bytes: Natural | None = None
    lists: ImageList | None = None
    """Set where the file lists images by URL: they are fetched too, one by one."""
    folder: RemoteFolder | None = None
    about: Natural | None = None
    """The publisher's round figure for its bytes, where the exact one is not known: for plans only."""
    note: str = ""

    @cached_property
    def file(self) -> str:
        """Path of the fetched file, relative to cache_root."""
        if not self.unpack:
            return self.storage
        try:
            path = urlsplit(self.url).path
        except ValueError:  # no URL, which is told where it is fetched: other artifacts still are
            path = self.url.partition("?")[0]
        return str(PurePosixPath(self.storage) / PurePosixPath(path).name)

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note a path where nothing may be stored, and digests of another form."""
        examine_digests(decoder, self, key)
        for name, path in {"storage": self.file, "lists.storage": self.lists.storage if self.lists else ""}.items():
            if fault := storage_fault(path):
                decoder.note(join(key, name), f"{shown(path[:100])} {fault}", "name another place below cache_root")


def examine_digests(decoder: ConfigDecoder, source: Artifact | Mirror, key: str) -> None:
    """Note digests that are none, at the key of an artifact or a mirror."""
    for name, digits in (("md5", 32), ("sha256", 64)):
        digest = getattr(source, name)
        if digest is not None and not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", digest):
            decoder.note(join(key, name), f"{shown(digest)} is no {name}", f"write its {digits} hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class SourceStatus:
    """What became of a place that offers, or offered, a family's data, as far as it is known."""

    url: str
    now: Literal["ok_seen", "flaky", "dead", "gated", "rehosted", "unknown"]
    """ok_seen: recent references use it; it was not fetched from here."""
    since: str = ""
    """Year and month, `2023-09`; "": not known."""
    why: str = ""
    instead: str = ""
    """What to use: a data set, an address, or what to do."""

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note a date that is none."""
        if self.since and not re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2]))?", self.since):
            decoder.note(join(key, "since"), f"{shown(self.since)} is no month", "write '2023-09', or leave it out")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A family of data sets: its artifacts, its licence and citation, and its data sets by name and config type."""

    family: str
    title: str = ""
    homepage: str = ""
    licence: str = ""
    terms: Literal["open", "non-commercial", "gated"] = "open"
    """Beyond open, `prepare` wants the licence accepted before the first byte."""
    citation: str = ""
    success_threshold: Share = 1.0
    """Share of the expected images below which `prepare` ends with exit code 8; 1: the family must be complete."""
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    datasets: dict[str, dict[str, DatasetConfig]] = field(default_factory=dict)
    sources: list[SourceStatus] = field(default_factory=list)
    """What became of each place; `show` tells it."""
    path: str = ""

    def named_artifacts(self) -> list[Artifact]:
        """The artifacts with their names and the family's: those of a card that is made in Python may lack them."""
        return [
            one if one.family and one.name else replace(one, family=one.family or self.family, name=one.name or name)
            for name, one in self.artifacts.items()
        ]

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note a home page that is none."""
        if "://" in self.homepage:
            examine_url(decoder, self.homepage, join(key, "homepage"))


@dataclass(frozen=True)
class Cards:
    """All cards that are found, by family."""

    families: dict[str, Card]

    def names(self) -> list[str]:
        """The names of all data sets, sorted."""
        return sorted({name for card in self.families.values() for name in card.datasets})

    def card_of(self, dataset: str) -> Card:
        """The card of the family that a data set belongs to; raises UsageError with the nearest names."""
        for card in self.families.values():
            for config in card.datasets.get(dataset, {}).values():
                return self.families[config.family]
        raise UsageError(f"data set '{dataset}'", "not known", near(dataset, self.names()) or DATASETS)

    def own_card(self, dataset: DatasetConfig) -> Card | None:
        """The card of a declaration, by its family, else by its name; None where there is none."""
        known = dataset.family in self.families or dataset.name not in self.names()
        return self.families.get(dataset.family) if known else self.card_of(dataset.name)

    def words_of_own(self, name: str) -> str:
        """How verbs are asked about a data set of one's own, `NAME --configs DIR`; "" for any other, or none."""
        if name not in self.names():
            return ""
        card = self.card_of(name)
        file = Path(card.path)
        fetched = any(self.artifacts_of(one) for one in card.datasets[name].values())
        return "" if fetched or file.is_relative_to(config_roots()[-1]) else f"{name} --configs {settings_of(file)}"

    def dataset(self, name: str, type: str = "default") -> DatasetConfig:
        """The declaration of a data set under one of its config types; raises UsageError with the nearest names."""
        types = self.card_of(name).datasets[name]
        if type not in types:
            raise UsageError(f"data set '{name}'", f"has no type '{type}'", nearest(type, types))
        return types[type]

    def resolve(self, name: str) -> tuple[Card, list[DatasetConfig]]:
        """A family or a data set by name: its card, and the data sets of every config type, or of `name[type]`.

        For `family/artifact` there are no data sets.
        """
        known = [*self.families, *self.names()]
        if name not in known and name.partition("/")[0] not in self.families and os.path.exists(expanded(name)):  # noqa: PTH110
            what = "is a path, and neither a family nor a data set"
            way_out = f"`lavis-ext browse {name}` shows it, `lavis-ext new NAME {name}` makes a data set of it"
            if declared := declared_in(expanded(name)):
                first, file = next(iter(declared.items()))
                more = f" and {len(declared) - 8} more" if len(declared) > 8 else ""
                what = f"is a path, which declares {', '.join(list(declared)[:8])}{more}"
                way_out = f"write `{first} --configs {settings_of(file)}` in its place"
            raise UsageError(name, what, way_out)
        family, slash, _ = name.partition("/")
        artifact = family in self.families or (slash and near(family, self.families))  # or is a misspelt one's
        if name not in known and not artifact and is_pathlike(name):
            raise UsageError(name, *not_there(name))
        if "/" in name and self.named_artifacts(name):
            return self.families[name.partition("/")[0]], []
        if name.endswith("]"):
            dataset, _, kind = name[:-1].partition("[")
            return self.card_of(dataset), [self.dataset(dataset, kind)]
        if name in self.families:
            card = self.families[name]
            return card, [dataset for types in card.datasets.values() for dataset in types.values()]
        if name not in known:
            raise UsageError(name, "neither a family nor a data set", near(name, known) or DATASETS)
        card = self.card_of(name)
        return card, list(card.datasets[name].values())

    def named_artifacts(self, name: str) -> list[Artifact]:
        """What `family/artifact` or a pattern (`vinvl/model_*`) names, or a family without data sets; else nothing.

        Upper and lower case are the same. Raises UsageError for an unknown family or artifact.
        """
        family, slash, pattern = name.partition("/")
        card = self.families.get(family)
        if card is None and slash:
            raise UsageError(name, f"there is no family '{family}'", near(family, self.families) or DATASETS)
        if card is None or not slash:
            return card.named_artifacts() if card and not card.datasets else []
        found = [a for a in card.named_artifacts() if fnmatchcase(a.name.lower(), pattern.lower())]
        if not found and (alone := card.artifacts.get(f"model_{pattern.lower()}")):
            found = [alone]  # `vinvl/od_models`, as the documents name the folder
        if not found:
            splits = {split for types in card.datasets.values() for one in types.values() for split in split_names(one)}
            way_out = "leave the split out; `prepare` takes it by --split" if pattern in splits else ""
            raise UsageError(name, f"'{family}' has no such artifact", way_out or nearest(pattern, card.artifacts))
        return found

    def artifacts_of(self, dataset: DatasetConfig, splits: Iterable[str] | None = None) -> list[Artifact]:
        """What the chosen splits need, annotations first; each artifact once; an unknown name is a ConfigError."""
        chosen = split_names(dataset) if splits is None else list(splits)
        found = [artifact for split in chosen for artifact in self.annotation_artifacts(dataset, split)]
        found += [artifact for split in chosen for artifact in self.image_artifacts(dataset, split)]
        return list({artifact.file: artifact for artifact in found}.values())

    def image_artifacts(self, dataset: DatasetConfig, split: str) -> list[Artifact]:
        """The archives that hold the pictures of a split."""
        names = dataset.build_info.images.artifacts.get(split, [])
        return [self.artifact(name, dataset) for name in names if not is_path(name)]

    def image_paths(self, dataset: DatasetConfig, split: str) -> list[str]:
        """What `build_info.images.artifacts` names of a split (`vqa!vqa/2k/x.pt`, or a path), below cache_root."""
        return [self._path_of(name, dataset) for name in dataset.build_info.images.artifacts.get(split, [])]

    def annotation_paths(self, dataset: DatasetConfig, split: str, instead: bool = False) -> list[str]:
        """The annotation files of a split (`instead`: in its other form), relative to cache_root or absolute."""
        annotation = dataset.build_info.annotations.get(split, AnnotationConfig())
        if annotation.storage and not instead:
            return annotation.storage
        references = annotation.instead if instead else annotation.artifact
        return [self._path_of(reference, dataset) for reference in references]

    def in_other_form(self, dataset: DatasetConfig, split: str) -> DatasetConfig | None:
        """The data set with one split's annotations in the form that `instead` names; None where there is none."""
        info = dataset.build_info
        annotation = info.annotations.get(split, AnnotationConfig())
        if not annotation.instead:
            return None
        changed = {**info.annotations, split: AnnotationConfig(artifact=annotation.instead)}
        return replace(dataset, build_info=replace(info, annotations=changed))

    def artifact(self, reference: str, dataset: DatasetConfig) -> Artifact:
        """What `name`, `name!member` or `family/name` refers to; raises ConfigError with the nearest names."""
        whole = reference.partition("!")[0]
        family, _, name = whole.rpartition("/")
        card = self.families.get(family) if family else self.own_card(dataset)
        known = card.artifacts if card else {}
        if name not in known:
            what = f"the card '{family or dataset.family}' has no artifact '{name}'"
            raise ConfigError(f"datasets.{dataset.name}", what, nearest(name, known))
        return known[name]

    def _path_of(self, reference: str, dataset: DatasetConfig) -> str:
        if is_path(reference):
            return reference
        artifact = self.artifact(reference, dataset)
        member = reference.partition("!")[2]
        return str(PurePosixPath(artifact.storage) / member) if member else artifact.storage

    def annotation_artifacts(self, dataset: DatasetConfig, split: str) -> list[Artifact]:
        """The annotation files of one split: by name from the card, else from LAVIS' `url` and `storage` lists.

        A file that the card declares under the same storage keeps the card's hashes and mirrors.
        """
        annotation = dataset.build_info.annotations.get(split, AnnotationConfig())
        if not annotation.url and not annotation.storage:
            return [self.artifact(name, dataset) for name in annotation.artifact if not is_path(name)]
        card = self.own_card(dataset)
        return _listed_artifacts(annotation, card, f"datasets.{dataset.name}.build_info.annotations.{split}")


def is_path(reference: str) -> bool:
    """Whether a file of a split is named by its path (`mine/rows.tsv`), not by an artifact."""
    return "." in reference and "!" not in reference and PurePosixPath(reference).suffix != ""


def split_names(dataset: DatasetConfig) -> list[str]:
    """The splits that a data set declares, in order; of shards that is `train`."""
    named = [*dataset.build_info.annotations, *dataset.build_info.images.artifacts]
    return list(dict.fromkeys(named)) or (["train"] if dataset.builder == "image_text_shards" else [])


def _listed_artifacts(annotation: AnnotationConfig, card: Card | None, where: str) -> list[Artifact]:
    """LAVIS' parallel lists as artifacts."""
    declared = {a.storage: a for a in card.artifacts.values()} if card else {}
    if not annotation.url:
        return [declared[storage] for storage in annotation.storage if storage in declared]
    if len(annotation.url) != len(annotation.storage):
        what = f"{len(annotation.url)} url but {len(annotation.storage)} storage"
        raise ConfigError(where, what, "give one storage for each url")
    if faults := [
        Problem(where, f"{s[:100]!r} {f}", "name another path") for s in annotation.storage if (f := storage_fault(s))
    ]:
        raise ConfigError.of(faults)
    sums: Sequence[str | None] = [*annotation.md5, *[None] * (len(annotation.url) - len(annotation.md5))]
    return [
        declared.get(storage) or Artifact(name=PurePosixPath(storage).name, url=url, storage=storage, md5=md5)
        for url, storage, md5 in zip(annotation.url, annotation.storage, sums, strict=False)
    ]


def load_cards() -> Cards:
    """Every card below the configs folders; raises ConfigError with all mistakes of all of them.

    They are read and typed once in a process, and again where a file has come, gone or changed: treat them as constant.
    """
    roots = config_roots()
    files = (path for root in roots for path in sorted(root.glob("datasets/**/*.yaml")))
    return _load_cards(tuple(roots), tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=4)
def _load_cards(_roots: tuple[Path, ...], _files: tuple[tuple[Path, int], ...]) -> Cards:
    decoder = ConfigDecoder()
    families: dict[str, Card] = {}
    folders: dict[Path, str] = {}
    files = list(dataset_files())
    for path, tree, places in files:
        if path.name != CARD_FILE:
            continue
        family = str(tree.get("family", path.parent.name))
        card = _build_card(tree | {"family": family, "path": str(path)}, places, decoder)
        if card and families.setdefault(family, card) is card:
            folders[path.parent] = family
    _add_datasets(families, dataset_defaults(files), folders, decoder)
    decoder.close()
    return Cards(families)


def _build_card(tree: Tree, places: dict[str, str], decoder: ConfigDecoder) -> Card | None:
    decoder.places = places
    owner = {"family": tree["family"]}
    named = {name: {"name": name, **owner, **body} for name, body in (tree.get("artifacts") or {}).items()}
    own = {key: value for key, value in tree.items() if key not in ("datasets", "plugins")}  # read from every file
    return decoder.build(Card, {**own, "artifacts": named})


def _add_datasets(
    families: dict[str, Card], defaults: DatasetDefaults, folders: dict[Path, str], decoder: ConfigDecoder
) -> None:
    """Enter each `datasets:` section under the family of its folder, and under its own where it names another.

    One without a card makes its own.
    """
    for name, types in defaults.items():
        for body, path, places in types.values():
            decoder.places = places
            home = folders.get(path.parent) or name
            family = str(body.get("family") or home)
            whole = {"name": name, "family": family, **merge(body, where=f"datasets.{name}")}
            dataset = decoder.build(DatasetConfig, whole, f"datasets.{name}")
            if dataset is None:
                continue
            for owner in dict.fromkeys((family, home)):
                card = families.setdefault(owner, Card(family=owner, path=str(path)))
                card.datasets.setdefault(name, {})[dataset.type] = dataset


def settings_of(file: Path) -> Path:
    """The folder of settings that a YAML of data sets lies in, from the working directory on where it is below that."""
    root = next((one for one in file.parents if one.name == "datasets"), file).parent
    return root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root


def declared_in(place: Path) -> dict[str, Path]:
    """The data sets that a YAML declares, or those below a folder of settings, each with its file; none of run files.

    A folder of settings has `datasets/`, as `new` writes it. Raises ConfigError for a YAML that cannot be read.
    """
    files = sorted(place.glob("datasets/**/*.y*ml")) if place.is_dir() else [place]
    found: dict[str, Path] = {}
    for file in files:
        if file.suffix in (".yaml", ".yml") and "run" not in (tree := read_sections(file)[0]):
            sections = tree.get("datasets")
            found = {**dict.fromkeys(sections if isinstance(sections, dict) else (), file), **found}
    return found


def load_dataset_config(path: str | Path, name: str | None = None) -> DatasetConfig:
    """A data set from a YAML with a `datasets:` section (LAVIS' form too), over the card of that name."""
    file = Path(path)
    tree, places = read_sections(file)
    sections: dict[str, Any] = tree.get("datasets") or {}
    chosen = name if name in sections else next(iter(sections), None)
    if chosen is None:
        raise ConfigError(str(file), "declares no data set", "write `datasets:` and the name of one under it")
    if chosen not in (cards := load_cards()).names() and (outside := out_of_scope("dataset", chosen)):
        raise ConfigError(places.get(f"datasets.{chosen}", str(file)), outside, WAY_OUT)
    body = beside({"datasets": sections}, file.parent)["datasets"][chosen]
    kind = str(body.get("type", "default"))
    default = dataset_defaults().get(chosen, {}).get(kind, ({}, file, {}))[0]
    decoder = ConfigDecoder(places)
    family = str(default.get("family") or (cards.card_of(chosen).family if chosen in cards.names() else chosen))
    dataset = decoder.build(
        DatasetConfig,
        {"family": family, **merge(default, body, where=f"datasets.{chosen}"), "name": chosen},
        f"datasets.{chosen}",
    )
    decoder.close()
    if dataset is None or not dataset.builder:
        raise ConfigError(
            f"{file} datasets.{chosen}", "names no shape", "write `builder: image_caption` or another shape under it"
        )
    return replace(dataset, family=family)
