"""Cards: what each family of data sets declares about its bytes, and the data sets that stand on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from lavis_ext.config import Tree, dataset_defaults, dataset_files, merge
from lavis_ext.errors import ConfigError, UsageError, nearest
from lavis_ext.schema import AnnotationConfig, DatasetConfig
from lavis_ext.typed import Door
from lavis_ext.yamlio import read_yaml

CARD_FILE = "artifacts.yaml"


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """Another place of the same artifact, and how equal its bytes are."""

    url: str
    equivalence: Literal["byte_exact", "repacked", "reencoded", "subset"]
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One remote file: where it is, what it must hash to, and where it lies below cache_root.

    `storage` is the file itself or, where `unpack` is set, the folder that it is extracted into; members keep their
    paths. The archive then lies at `storage/<last part of url>`.
    """

    url: str
    storage: str
    name: str = ""
    mirrors: list[Mirror] = field(default_factory=list)
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    unpack: Literal["zip", "tar", "tar.gz"] | None = None
    unpacked_files: int | None = None
    unpacked_bytes: int | None = None
    note: str = ""

    @property
    def file(self) -> str:
        """Path of the fetched file, relative to cache_root."""
        return (
            str(PurePosixPath(self.storage) / PurePosixPath(urlsplit(self.url).path).name)
            if self.unpack
            else self.storage
        )


@dataclass(frozen=True, kw_only=True)
class Card:
    """A family of data sets: its artifacts, its licence and citation, and its data sets by name and config type."""

    family: str
    title: str = ""
    homepage: str = ""
    licence: str = ""
    citation: str = ""
    success_threshold: float = 1.0
    """Share of the expected images below which `prepare` ends with exit code 8; 1: the family must be complete."""
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    datasets: dict[str, dict[str, DatasetConfig]] = field(default_factory=dict)
    path: str = ""


@dataclass(frozen=True)
class Cards:
    """All cards that are found, by family."""

    families: dict[str, Card]

    def names(self) -> list[str]:
        """The names of all data sets, sorted."""
        return sorted(name for card in self.families.values() for name in card.datasets)

    def card_of(self, dataset: str) -> Card:
        """The card on which a data set stands; raises UsageError with the nearest names."""
        for card in self.families.values():
            if dataset in card.datasets:
                return card
        raise UsageError(f"data set '{dataset}'", "not known", nearest(dataset, self.names()))

    def dataset(self, name: str, type: str = "default") -> DatasetConfig:
        """The declaration of a data set under one of its config types; raises UsageError with the nearest names."""
        types = self.card_of(name).datasets[name]
        if type not in types:
            raise UsageError(f"data set '{name}'", f"has no type '{type}'", nearest(type, types))
        return types[type]

    def resolve(self, name: str) -> tuple[Card, list[DatasetConfig]]:
        """A family or a data set by name: its card, and the data sets (every config type) that are meant."""
        if name in self.families:
            card = self.families[name]
            return card, [dataset for types in card.datasets.values() for dataset in types.values()]
        known = [*self.families, *self.names()]
        if name not in known:
            raise UsageError(name, "neither a family nor a data set", nearest(name, known))
        card = self.card_of(name)
        return card, list(card.datasets[name].values())

    def artifacts_of(self, dataset: DatasetConfig, splits: Iterable[str] | None = None) -> list[Artifact]:
        """What the chosen splits need, annotations first; each artifact once; an unknown name is a ConfigError."""
        card = self.families.get(dataset.family)
        chosen = split_names(dataset) if splits is None else list(splits)
        found: dict[str, Artifact] = {}
        for split in chosen:
            for artifact in _annotation_artifacts(dataset, split, card):
                found.setdefault(artifact.storage, artifact)
        for split in chosen:
            for name in dataset.build_info.images.artifacts.get(split, []):
                artifact = _declared(card, name, dataset)
                found.setdefault(f"{artifact.storage}\0{artifact.url}", artifact)
        return list(found.values())

    def annotation_paths(self, dataset: DatasetConfig, split: str) -> list[str]:
        """The annotation files of a split in order, relative to cache_root or absolute."""
        annotation = dataset.build_info.annotations.get(split, AnnotationConfig())
        if annotation.storage:
            return annotation.storage
        return [a.storage for a in _annotation_artifacts(dataset, split, self.families.get(dataset.family))]


def split_names(dataset: DatasetConfig) -> list[str]:
    """The splits that a data set declares, in order."""
    return list(dict.fromkeys([*dataset.build_info.annotations, *dataset.build_info.images.artifacts]))


def _declared(card: Card | None, name: str, dataset: DatasetConfig) -> Artifact:
    known = card.artifacts if card else {}
    if name not in known:
        raise ConfigError(
            f"datasets.{dataset.name}", f"the card '{dataset.family}' has no artifact '{name}'", nearest(name, known)
        )
    return known[name]


def _annotation_artifacts(dataset: DatasetConfig, split: str, card: Card | None) -> list[Artifact]:
    """Files of one split: by name from the card, else from LAVIS' `url` and `storage` lists.

    A file that the card declares under the same storage keeps the card's hashes and mirrors.
    """
    annotation = dataset.build_info.annotations.get(split, AnnotationConfig())
    if not annotation.url and not annotation.storage:
        return [_declared(card, name, dataset) for name in annotation.artifact]
    declared = {a.storage: a for a in card.artifacts.values()} if card else {}
    if not annotation.url:
        return [declared[storage] for storage in annotation.storage if storage in declared]
    if len(annotation.url) != len(annotation.storage):
        where = f"datasets.{dataset.name}.build_info.annotations.{split}"
        what = f"{len(annotation.url)} url but {len(annotation.storage)} storage"
        raise ConfigError(where, what, "give one storage for each url")
    sums: Sequence[str | None] = [*annotation.md5, *[None] * (len(annotation.url) - len(annotation.md5))]
    return [
        declared.get(storage) or Artifact(name=PurePosixPath(storage).name, url=url, storage=storage, md5=md5)
        for url, storage, md5 in zip(annotation.url, annotation.storage, sums, strict=False)
    ]


def load_cards() -> Cards:
    """Every card below the configs folders; raises ConfigError with all mistakes of all of them."""
    door = Door()
    families: dict[str, Card] = {}
    folders: dict[Path, str] = {}
    for path, tree, places in dataset_files():
        if path.name != CARD_FILE:
            continue
        family = str(tree.get("family", path.parent.name))
        card = _build_card(tree | {"family": family, "path": str(path)}, places, door)
        if card and families.setdefault(family, card) is card:
            folders[path.parent] = family
    _add_datasets(families, folders, door)
    door.close()
    return Cards(families)


def _build_card(tree: Tree, places: dict[str, str], door: Door) -> Card | None:
    door.places = places
    named = {name: {"name": name, **(body or {})} for name, body in (tree.get("artifacts") or {}).items()}
    return door.build(Card, {**tree, "artifacts": named})


def _add_datasets(families: dict[str, Card], folders: dict[Path, str], door: Door) -> None:
    """Enter each `datasets:` section under the family of its folder; one without a card makes its own."""
    for name, types in dataset_defaults().items():
        for body, path, places in types.values():
            door.places = places
            family = folders.get(path.parent) or name
            dataset = door.build(DatasetConfig, {"name": name, "family": family, **body}, f"datasets.{name}")
            if dataset is not None:
                card = families.setdefault(family, Card(family=family, path=str(path)))
                card.datasets.setdefault(name, {})[dataset.type] = dataset


def load_dataset_config(path: str | Path, name: str | None = None) -> DatasetConfig:
    """A data set from a YAML with a `datasets:` section (LAVIS' form too), over the card of that name."""
    file = Path(path)
    tree, places = read_yaml(file)
    sections: dict[str, Any] = tree.get("datasets") or {}
    chosen = name if name in sections else next(iter(sections), None)
    if chosen is None:
        raise ConfigError(str(file), "declares no data set", "write `datasets:` and the name of one under it")
    body = sections[chosen] or {}
    kind = str(body.get("type", "default"))
    default = dataset_defaults().get(chosen, {}).get(kind, ({}, file, {}))[0]
    door = Door(places)
    family = next((c.family for c in load_cards().families.values() if chosen in c.datasets), chosen)
    dataset = door.build(
        DatasetConfig, {"family": family, **merge(default, body), "name": chosen}, f"datasets.{chosen}"
    )
    door.close()
    if dataset is None or not dataset.builder:
        raise ConfigError(
            f"{file} datasets.{chosen}", "names no shape", "write `builder: image_caption` or another shape under it"
        )
    return replace(dataset, family=family)
