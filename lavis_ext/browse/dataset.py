"""What a data set's page is made of: its declarations, the state of each split, and views of those that are there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lavis_ext.browse.rows import View, view_of
from lavis_ext.builders import BuildContext, NotPreparedError, build_datasets
from lavis_ext.cards import Artifact, Card, Cards, load_cards
from lavis_ext.errors import UsageError
from lavis_ext.prepare import PrepareOptions, SplitState, status
from lavis_ext.prepare.on_disk import OnDisk, inspect
from lavis_ext.schema import DatasetConfig


@dataclass(frozen=True)
class Chapter:
    """One data set of a page; `views` are those of its splits that can be read, `fault` why there are none."""

    config: DatasetConfig
    title: str
    states: tuple[SplitState, ...] = ()
    views: dict[str, View] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    """Its other config types."""
    fault: str = ""


@dataclass(frozen=True)
class File:
    """An artifact, and what is there of it by the record that `prepare` left."""

    artifact: Artifact
    disk: OnDisk


@dataclass(frozen=True)
class Subject:
    """Everything that the page of a family or a data set is about."""

    name: str
    card: Card
    root: Path
    chapters: tuple[Chapter, ...]
    files: tuple[File, ...]

    @property
    def states(self) -> list[SplitState]:
        """The splits of all chapters."""
        return [state for chapter in self.chapters for state in chapter.states]


def read_subject(name: str, cache_root: Path) -> Subject:
    """The declarations, states and opened splits of a family or a data set.

    Raises UsageError for an unknown name, or one that holds files only; NotPreparedError where nothing is there.
    """
    cards = load_cards()
    card, datasets = cards.resolve(name)
    kept = _one_of_each(datasets)
    if not kept:
        raise UsageError(name, "holds files, and no data set to look at", f"see `lavis-ext show {name}`")
    chapters, errors = [], []
    for config in kept:
        types = tuple(d.type for d in datasets if d.name == config.name and d.type != config.type)
        chapter, error = read_chapter(config, types, cache_root, cards)
        chapters.append(chapter)
        errors += [error] if error else []
    if len(errors) == len(chapters):
        way_out = f"run `lavis-ext prepare {name}`"
        raise errors[0] if len(errors) == 1 else NotPreparedError(name, "no data set of it is prepared", way_out)
    used = {artifact.file: artifact for chapter in chapters for artifact in cards.artifacts_of(chapter.config)}
    files = tuple(File(artifact, inspect(cache_root, artifact)) for artifact in used.values())
    return Subject(name, card, cache_root, tuple(chapters), files)


def read_chapter(
    config: DatasetConfig, types: tuple[str, ...], root: Path, cards: Cards
) -> tuple[Chapter, NotPreparedError | None]:
    """One data set with its splits opened; without views, and the error, where nothing of it is there."""
    title = config.name if config.type == "default" else f"{config.name}[{config.type}]"
    states = tuple(s for s in status([title], PrepareOptions(cache_root=root), cards) if s.dataset == title)
    try:
        built = build_datasets(config, BuildContext(root))
    except NotPreparedError as error:
        return Chapter(config, title, states, types=types, fault=str(error.problems[0])), error
    views = {split: view for split, dataset in built.items() if (view := view_of(dataset))}
    fault = "" if views else "its shape keeps no rows that could be shown"
    return Chapter(config, title, states, views, types, fault), None


def _one_of_each(datasets: list[DatasetConfig]) -> list[DatasetConfig]:
    """The default type of each data set, else its first; those without a shape are left out."""
    found: dict[str, DatasetConfig] = {}
    for config in datasets:
        if config.builder and (config.name not in found or config.type == "default"):
            found[config.name] = config
    return list(found.values())
