"""Opening a split on region features: annotation files, stores, tokenizer, answer labels, constraints of NoCaps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import decode_json, expanded
from lavis_ext.common.types import Dataset
from lavis_ext.datasets.builders.context import (
    BuildContext,
    NotPreparedError,
    Parts,
    annotation_paths,
    args_of,
    build_each,
    not_prepared,
    rebase,
    with_storage_root,
)
from lavis_ext.datasets.readers.parse import parse_json
from lavis_ext.datasets.readers.tables import read_text
from lavis_ext.features.formats.lines import lines_of
from lavis_ext.features.imports import place_of, store_of
from lavis_ext.features.layout import ABOUT, INDEX, key_of
from lavis_ext.features.store import ReadOptions
from lavis_ext.features.vocabulary import LabelVocabulary, read_labels
from lavis_ext.oscar.constrained import DetectedObject, choose_names, detected, read_forms, read_heights, words_for
from lavis_ext.oscar.datasets.regions import Encoder, RegionStores, labels_in
from lavis_ext.oscar.wordpiece import find_vocab, load_wordpiece

LABELS = ".lavis_ext/labels"
LABEL_FOLDERS = ("cache", "questions1.2", "0.4true")


@dataclass(frozen=True)
class RegionParts(Parts):
    """The opened parts of one split: records, features, tokenizer, and answers where there are any."""

    args: Mapping[str, Any]
    regions: RegionStores
    encoder: Encoder
    labels: LabelVocabulary | None = None


@dataclass(frozen=True)
class Opening:
    """Finds and opens the parts of one split; `args` are checked, `declared` is the declaration as it was written."""

    config: DatasetConfig
    declared: DatasetConfig
    split: str
    context: BuildContext
    args: Mapping[str, Any]

    def files(self, rename: Callable[[str], str] = str) -> list[Path]:
        """The annotation files of the split, under the names that `rename` makes; raises NotPreparedError."""
        paths = annotation_paths(self.config, self.split, self.context)
        return [self._there(path.with_name(rename(path.name)), "annotation file") for path in paths]

    def regions(
        self, files: Sequence[Path] | None = None, options: ReadOptions | None = None, boxed: bool = False
    ) -> RegionStores:
        """The stores of the split, which are made of published files first; raises NotPreparedError, ConfigError.

        `files` replace those that the arguments and the card name, `options` name their side files; `boxed` as in
        `RegionStores`.
        """
        most, columns = (int(self.args[key]) for key in ("max_img_seq_length", "img_feature_dim"))
        family = self.config.family or self.config.name
        found = self.feature_files() if files is None else [self._features(path) for path in files]
        stores = (store_of(path, self.context.cache_root, family, options) for path in found)
        return RegionStores(tuple(stores), columns, most, boxed)

    @property
    def given(self) -> list[str] | None:
        """The files that `args.features` names for the split; None where it names none."""
        value = self.args["features"]
        value = value.get(self.split) if isinstance(value, Mapping) else value
        return [value] if isinstance(value, str) else value

    def feature_files(self) -> list[Path]:
        """The stores or files of features of the split: `args.features`, else those of the card."""
        names = self.given
        if names is None:
            storage, cards = self.declared.build_info.storage, load_cards()
            declared = cards.image_paths(self.declared, self.split)
            names = [rebase(expanded(storage[0]), path) for path in declared] if storage else declared
        if not names:
            where = f"datasets.{self.config.name}.args.features"
            raise ConfigError(where, f"names no features of '{self.split}'", "name a store or a file of them")
        return [self._features(self.path(name)) for name in names]

    def path(self, name: str | Path) -> Path:
        """A file that an argument names: below cache_root, else as given."""
        given = expanded(name)
        inside = self.context.cache_root / given
        return given.absolute() if not inside.exists() and given.exists() else inside

    def beside(self, folder: Path, name: str) -> Path:
        """A file that an argument names: in the folder of the annotations, else as `path`; raises NotPreparedError."""
        inside = folder / name
        return inside if inside.exists() else self._there(self.path(name), "file")

    def encoder(self) -> Encoder:
        """The tokenizer; raises NotPreparedError where its vocabulary is not there."""
        try:
            path = find_vocab(str(self.args["vocab"]), self.context.cache_root)
        except ConfigError as error:
            way_out = "run `lavis-ext prepare oscar/base-vg-labels`, or set args.vocab"
            raise NotPreparedError(f"datasets.{self.config.name}", error.problems[0].what, way_out) from error
        return Encoder(load_wordpiece(path, bool(self.args["do_lower_case"])), self.args["max_seq_length"])

    def labels(self, key: str = "label_file", answers: str = "label2ans_file") -> LabelVocabulary:
        """The vocabulary of answers that two arguments name; raises NotPreparedError, IntegrityError."""
        if not self.args[key]:
            raise ConfigError(f"datasets.{self.config.name}.args.{key}", "names no file", "name the answers' labels")
        path = self._there(find_labels(self.path(self.args[key])), "file of labels")
        named = None if path.suffix == ".json" else self.args[answers]
        beside = path.with_name(path.name.replace("ans2label", "label2ans"))
        texts = beside if beside != path and beside.is_file() else None
        if named:
            texts = self._there(find_labels(self.path(named)), "file of answers")
        family = self.config.family or self.config.name
        keep = place_of(path, self.context.cache_root, family, LABELS)
        return read_labels(path, texts, keep.with_name(f"{keep.name}.json"))

    def _features(self, path: Path) -> Path:
        """The store or file at `path`, `features.tsv` in it, the TSV beside a missing `.pt`, or a kept import of it."""
        family = self.config.family or self.config.name
        if not path.exists() and (place_of(path, self.context.cache_root, family) / INDEX).is_file():
            return place_of(path, self.context.cache_root, family)
        if path.suffix == ".pt" and not path.exists() and path.with_suffix(".tsv").exists():
            path = path.with_suffix(".tsv")
        rows = path / "features.tsv"
        return rows if rows.is_file() and not (path / ABOUT).is_file() else self._there(path, "file of features")

    def _there(self, path: Path, what: str) -> Path:
        """The path; raises NotPreparedError where nothing is there."""
        if not path.exists():
            raise not_prepared(self.config, path, f"no such {what}")
        return path


def region_splits(
    config: DatasetConfig,
    context: BuildContext,
    make: Callable[[Opening], Dataset],
) -> dict[str, Dataset]:
    """Each wanted split, made by `make`."""
    args = args_of(config)
    args["images"] = str(context.cache_root / args["images"]) if args["images"] else None
    inside = with_storage_root(config)

    def build(split: str) -> Dataset:
        return make(Opening(inside, config, split, context, args))

    return build_each(config, context, build)


def find_labels(path: Path) -> Path:
    """The path of a file of labels: as declared, else in another of LABEL_FOLDERS beside.

    Upstream's own commands look for GQA's in `questions1.2/` and in `0.4true/`.
    """
    home = path.parent.parent if path.parent.name in LABEL_FOLDERS else path.parent
    places = [home / path.name, *(home / folder / path.name for folder in LABEL_FOLDERS)]
    return path if path.exists() else next(filter(Path.exists, places), path)


KEYS = ("cbs_box", "cbs_constraint", "cbs_tokenforms", "cbs_hierarchy")


@dataclass(frozen=True, eq=False)
class ImageTags:
    """The constraints of NoCaps by image; `files` (under upstream's keys) are read at the first use."""

    files: Mapping[str, Path]

    def of(self, image_id: str | int) -> list[list[str]]:
        """Up to three things, each as the words that name it; none for an image without detections.

        Raises IntegrityError for files that are broken.
        """
        things = self._things.get(key_of(str(image_id)), [])
        return [words_for(name, self._pieces, self._forms) for name in choose_names(things, self._heights)]

    @cached_property
    def _things(self) -> dict[str, list[DetectedObject]]:
        path = self.files["cbs_box"]
        found: dict[str, list[DetectedObject]] = {}
        for number, line, _ in lines_of(path):
            image_id, _, text = line.partition(b"\t")
            where = f"{path}:{number}"
            try:
                found[key_of(image_id.decode())] = detected(labels_in(decode_json(text)), where)
            except (ValueError, TypeError) as error:
                raise IntegrityError(where, f"has no labels as JSON: {error}", "fetch it again") from error
        return found

    @cached_property
    def _pieces(self) -> dict[str, list[str]]:
        return read_forms(self.files["cbs_constraint"])

    @cached_property
    def _forms(self) -> dict[str, list[str]]:
        return read_forms(self.files["cbs_tokenforms"])

    @cached_property
    def _heights(self) -> dict[str, int]:
        path = self.files["cbs_hierarchy"]
        tree = parse_json(read_text(path), path)
        if not isinstance(tree, dict):
            raise IntegrityError(str(path), "is no tree of classes", "fetch it again")
        return read_heights(tree)


def find_naming(home: Path, tree: Mapping[str, Any]) -> ImageTags | None:
    """The files that a split's YAML names beside it, where it names all of them and they are there."""
    files = {key: home.parent / str(tree[key]) for key in KEYS if tree.get(key)}
    return ImageTags(files) if len(files) == len(KEYS) and all(path.is_file() for path in files.values()) else None
