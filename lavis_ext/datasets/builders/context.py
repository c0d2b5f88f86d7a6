"""From the declaration of a data set to its opened parts: rows, pictures and processors of each split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.schema import AnnotationConfig, DatasetConfig, own_keys
from lavis_ext.common.errors import ConfigError, PartialError, Problem
from lavis_ext.common.files import expanded
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Dataset
from lavis_ext.datasets.builders.settings import ImageKeys
from lavis_ext.datasets.readers.annotations import Annotations
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.datasets.readers.parse import SplitFiles, row_options, sort_files
from lavis_ext.processors import build_processor

log = logging.getLogger(__name__)
NO_FILES = SplitFiles(())


class NotPreparedError(PartialError):
    """A file or folder that a data set needs is not there yet (exit code 8)."""


@dataclass(frozen=True)
class BuildContext:
    """Where data lie and which splits are wanted (None: all that exist); the rest is in the declaration."""

    cache_root: Path
    splits: Sequence[str] | None = None
    check_shards: bool = False
    """Compare each sample of a shard with its manifest when it is read."""

    def path(self, storage: str) -> Path:
        """Where a declared path is: below the cache root unless it is absolute; `~` is the home folder."""
        return self.cache_root / expanded(storage)

    def wants(self, split: str) -> bool:
        """Whether a split is wanted."""
        return self.splits is None or split in self.splits


@dataclass(frozen=True)
class Parts:
    """The parts that every split has: its declaration and its records."""

    config: DatasetConfig
    split: str
    rows: Any

    @property
    def training(self) -> bool:
        """Whether this is the split named `train`."""
        return self.split == "train"

    @property
    def limit(self) -> int | None:
        """How many samples may be used; None: all."""
        return self.config.max_samples.get(self.split)

    @property
    def files_read(self) -> Sequence[Path]:
        """The files that the records come from."""
        found: Sequence[Path] = self.rows.paths
        return found


@dataclass(frozen=True)
class SplitParts(Parts):
    """The opened parts of one split, from which a shape makes its data set."""

    rows: Annotations
    images: ImageStore
    vis_processor: Any
    text_processor: Any
    args: Mapping[str, Any]
    files: SplitFiles = NO_FILES


def build_splits(
    config: DatasetConfig, context: BuildContext, make: Callable[[SplitParts], Dataset]
) -> dict[str, Dataset]:
    """Each wanted split that the data set declares, made by `make`.

    With `context.splits` None, splits whose files are missing are left out with a warning, unless all are missing.
    """
    args = {**vars(ImageKeys()), **args_of(config)}
    config = with_storage_root(config)

    def build(split: str) -> Dataset:
        return make(open_split(config, split, context, args))

    return build_each(config, context, build)


def build_each(config: DatasetConfig, context: BuildContext, build: Callable[[str], Dataset]) -> dict[str, Dataset]:
    """Each wanted split that the data set declares, made by `build`; see `build_splits` for those that are missing."""
    built: dict[str, Dataset] = {}
    missing: list[NotPreparedError] = []
    for split in config.build_info.annotations:
        if context.splits is not None and split not in context.splits:
            continue
        try:
            built[split] = build(split)
        except NotPreparedError as error:
            missing.append(error)
    if missing and (context.splits is not None or not built):
        # the splits of one data set often lack the same file or folder
        raise NotPreparedError.of(dict.fromkeys(problem for error in missing for problem in error.problems))
    for absent in missing:
        log.warning("left out: %s", absent)
    return built


def with_storage_root(config: DatasetConfig) -> DatasetConfig:
    """Apply `build_info.storage`, VPGTrans' key for the folder with annotations and images.

    It replaces the first folder of each declared path. Without it the declaration is unchanged.
    """
    info = config.build_info
    if not info.storage:
        return config
    base, cards = expanded(info.storage[0]), load_cards()
    paths = {split: cards.annotation_paths(config, split) for split in info.annotations}
    files = {split: AnnotationConfig(storage=[rebase(base, path) for path in some]) for split, some in paths.items()}
    images = replace(info.images, storage=rebase(base, info.images.storage))
    return replace(config, build_info=replace(info, annotations=files, images=images, storage=[]))


def rebase(base: Path, path: str) -> str:
    """A declared path with `base` in the place of its first folder."""
    return str(base.joinpath(*Path(path).parts[1:]))


def args_of(config: DatasetConfig) -> dict[str, Any]:
    """The arguments of a data set over the defaults of its shape; raises ConfigError for one that does not fit."""
    keys = own_keys(builders, config.builder, config.args, f"datasets.{config.name}.args")
    return dict(config.args if keys is None else vars(keys))


def open_split(config: DatasetConfig, split: str, context: BuildContext, args: Mapping[str, Any]) -> SplitParts:
    """Rows, pictures and processors of one split.

    Raises NotPreparedError naming what is missing and the command, ConfigError for columns that rows do not have.
    """
    folder = context.path(config.build_info.images.storage)
    images = ImageStore(folder, layouts=args["layouts"])
    if not images.ready:
        what = "is a file where a folder of images belongs" if folder.is_file() else "no such image folder"
        raise not_prepared(config, images.root, what)
    paths = annotation_paths(config, split, context)
    for path in paths:
        if not path.exists():
            raise not_prepared(config, path, "no such annotation file")
    vis, text = (build_processor(pair.of(split)) for pair in (config.vis_processor, config.text_processor))
    files = sort_files(paths, row_options(config, split, context.cache_root))
    rows = Annotations(files.rows, home=context.cache_root)
    if problems := column_problems(config, split, rows):
        raise ConfigError.of(problems)
    return SplitParts(config, split, rows, images, vis, text, args, files)


def read_columns(config: DatasetConfig, split: str, known: Sequence[str]) -> dict[str, str]:
    """The columns that the shape of a data set reads of rows with the columns `known`, by the argument of each."""
    keys = own_keys(builders, config.builder, config.args, f"datasets.{config.name}.args")
    return dict(keys.columns(split, known)) if hasattr(keys, "columns") else {}


def column_problems(config: DatasetConfig, split: str, rows: Annotations) -> list[Problem]:
    """What the shape of a data set reads and none of its rows has, each with the column that may be meant."""
    known = rows.keys()
    wanted = read_columns(config, split, known) if len(rows) else {}
    if set(wanted.values()) <= set(known):
        return []
    from lavis_ext.datasets.readers.columns import LOOKED_AT, missing_columns

    where = ", ".join(map(str, rows.paths))
    return missing_columns(f"{where} ({config.name}/{split})", wanted, rows[:LOOKED_AT], known)


def annotation_paths(config: DatasetConfig, split: str, context: BuildContext) -> list[Path]:
    """The annotation files of a split in order; a `url` that is a local file replaces a copy that does not exist.

    The files of `instead` are used where only they are complete, or where they include the first ones and more.
    """
    annotation = config.build_info.annotations.get(split, AnnotationConfig())
    cards = load_cards()
    plain = replace(annotation, storage=[], url=[])
    without = replace(config, build_info=replace(config.build_info, annotations={split: plain}))
    declared = {path for form in (False, True) for path in cards.annotation_paths(without, split, instead=form)}
    given = [context.path(path) for path in annotation.storage]
    if annotation.storage and declared.issuperset(annotation.storage) and not all(map(Path.is_file, given)):
        # a YAML of LAVIS repeats where LAVIS puts its own form of the split: the other form is as good
        annotation, config = plain, without
    stored = annotation.storage or cards.annotation_paths(config, split)
    paths = [context.path(storage) for storage in stored]
    if annotation.instead and not annotation.storage:
        others = [context.cache_root / path for path in cards.annotation_paths(config, split, instead=True)]
        paths = others if _prefers(others, paths) else paths
    locals_ = [expanded(url) if "://" not in url else None for url in annotation.url]
    for i, local in enumerate(locals_[: len(paths)]):
        if local is not None and local.is_file() and not paths[i].is_file():
            paths[i] = local
    return paths


def _prefers(others: Sequence[Path], paths: Sequence[Path]) -> bool:
    """Whether `others` are all on the disk, and `paths` are not or are only some of them."""
    whole = all(map(Path.is_file, others))
    return whole and (set(paths) < set(others) or not all(map(Path.is_file, paths)))


def not_prepared(config: DatasetConfig, path: Path, what: str) -> NotPreparedError:
    """The error for a missing file or folder of a data set; where no command fetches it, to correct the path.

    A person's own path for the pictures (`vis_path`) leaves the rest to `prepare`.
    """
    named = [config.build_info.images.storage, *config.build_info.storage]
    named += [one for annotation in config.build_info.annotations.values() for one in annotation.storage]
    given = [own for own in map(expanded, named) if own.is_absolute()]
    cards = load_cards()
    types = cards.card_of(config.name).datasets[config.name] if config.name in cards.names() else {}
    fetched = any(cards.artifacts_of(one) for one in types.values())
    own = any(not fetched or path.is_relative_to(one) or one.is_relative_to(path) for one in given)
    command = "correct the path, or put it there" if own else f"run `lavis-ext prepare {config.name}`"
    return NotPreparedError(str(path), f"{what} ({config.name})", config.manual or command)
