"""The shape `region_pretrain`: Oscar+'s corpora of texts, tags or answers, and regions, for masked words and matching.

A corpus is a YAML and a long TSV, whose rows are found by an array of offsets that is written once.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis_ext.common.config.decode import read_yaml
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import ConfigError, IntegrityError, UsageError
from lavis_ext.common.files import decode_json, disk_errors, read_errors, write_atomic, write_json
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Batch, Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext, not_prepared
from lavis_ext.datasets.datasets.base_dataset import draw_below
from lavis_ext.datasets.readers.annotations import Rows
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.parse import Row
from lavis_ext.features.formats.lines import lines_of
from lavis_ext.features.imports import place_of, stamp_of
from lavis_ext.models.losses import IGNORED
from lavis_ext.oscar.datasets.base import RegionDataset, hide, pad_rows
from lavis_ext.oscar.datasets.opening import Opening, RegionParts, region_splits
from lavis_ext.oscar.datasets.regions import Ids, RegionPlace, TagTable, tag_table, tag_text
from lavis_ext.oscar.datasets.settings import RegionPretrainKeys

log = logging.getLogger(__name__)
FOLDER = ".lavis_ext/corpora"
QA = "qa"
RENAMED = {"cc": "googlecc"}
CHUNKED = ("googlecc", "sbu", "oi", "objects365", "tagoi")
"""Sets of images whose features come in several folders; the image's key names the folder before its id."""
_ANSWER = np.uint64(1) << np.uint64(63)


@dataclass(frozen=True)
class Corpus:
    """The YAML of a corpus: its TSV, and for each set of images the folders of features and of labels."""

    home: Path
    rows: Path
    names: tuple[str, ...]
    features: Mapping[str, Path]
    labels: Mapping[str, Path]


def read_corpus(home: Path) -> Corpus:
    """The YAML of a corpus; paths are below its folder, or below VinVL's beside it. Raises ConfigError."""
    tree, _ = read_yaml(home)
    lacking = [key for key in ("corpus", "corpus_file", "image_feature_path") if not tree.get(key)]
    if lacking:
        raise ConfigError(str(home), f"has no {', '.join(lacking)}", "name the YAML of a corpus")
    names = tuple(RENAMED.get(name, name) for name in str(tree["corpus"]).split("_"))
    found = [
        {RENAMED.get(str(k), str(k)): below(home, str(v)) for k, v in (tree.get(key) or {}).items()}
        for key in ("image_feature_path", "image_label_path")
    ]
    return Corpus(home, below(home, str(tree["corpus_file"])), names, *found)


def below(home: Path, name: str) -> Path:
    """A path of a corpus' YAML: in its folder, in that around it, in `image_features` there; else as in its folder."""
    around = (home.parent, home.parent.parent, home.parent.parent / "image_features")
    return next((folder / name for folder in around if (folder / name).exists()), home.parent / name)


def image_place(key: str) -> tuple[str, str | None, str]:
    """Set of images, chunk (or None) and image id of a key: `coco_train_42`, `cc_img_003_77`; raises ValueError."""
    parts = key.split("_")
    if len(parts) < 2 or not parts[-1]:
        raise ValueError(f"no set and id in the key {key!r}")
    name = RENAMED.get(parts[0], parts[0])
    return name, parts[-2] if name in CHUNKED and len(parts) > 2 else None, parts[-1]


def is_answer(label_key: str) -> bool:
    """Whether a row's second text is an answer: its label key has the part `qa`, and ends in the id of a question."""
    return QA in label_key.split("_")


@dataclass(frozen=True, eq=False)
class CorpusRows(Rows):
    """The rows `image key, label key, text` of a TSV, read one at a time from the mapped file. Picklable.

    `marks` is a folder of two arrays, made once: where each row begins, and whether its second text is an answer.
    """

    path: Path
    marks: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [rows + 1]: where each row begins, and where the last one ends; mapped."""
        found: np.ndarray = np.load(self.marks / "offsets.npy", mmap_mode="r")
        return found

    @cached_property
    def answers(self) -> np.ndarray:
        """bool [rows]: whether the second text of a row is an answer; mapped."""
        found: np.ndarray = np.load(self.marks / "answers.npy", mmap_mode="r")
        return found

    @cached_property
    def _map(self) -> mmap.mmap:
        with read_errors(self.path), self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[Any, ...]:
        return CorpusRows, (self.path, self.marks)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def at(self, position: int) -> Row:
        """The row of a number from 0 on."""
        line = self._map[int(self.offsets[position]) : int(self.offsets[position + 1])].rstrip(b"\r\n")
        columns = line.decode("utf-8", "replace").split("\t")
        names = ("image_key", "label_key", "caption")
        return {**dict(zip(names, columns, strict=False)), "instance_id": str(position)}


def open_corpus(path: Path, marks: Path) -> CorpusRows:
    """The rows of a corpus; the arrays that find them are written first where they are missing or of another file.

    Raises IntegrityError for an empty file, DiskError.
    """
    source = stamp_of(path)
    if _recorded(marks) != source:
        log.info("finding the rows of %s once", path)
        with disk_errors(marks):
            _write_marks(path, marks)
            write_json(marks / "stamp.json", source)
    rows = CorpusRows(path, marks)
    if not len(rows):
        raise IntegrityError(str(path), "holds no rows", "fetch it again")
    return rows


def _recorded(marks: Path) -> Any:
    try:
        return decode_json((marks / "stamp.json").read_bytes())
    except (OSError, ValueError):
        return None


def _write_marks(path: Path, marks: Path) -> None:
    found = np.fromiter(_row_ends(path), np.uint64)
    ends, answers = (found & ~_ANSWER).astype(np.int64), found >= _ANSWER
    for name, array in (("offsets", np.concatenate([np.zeros(1, np.int64), ends])), ("answers", answers)):
        buffer = BytesIO()
        np.save(buffer, array)
        write_atomic(marks / f"{name}.npy", buffer.getvalue())


def _row_ends(path: Path) -> Iterator[int]:
    """The end of each row; its highest bit says that the row has an answer. Raises IntegrityError for a short row."""
    for number, line, end in lines_of(path):
        columns = line.split(b"\t", 2)
        if len(columns) < 3:
            raise IntegrityError(f"{path}:{number}", "has no three columns", "fetch it again")
        yield end | (int(_ANSWER) if QA.encode() in columns[1].split(b"_") else 0)


MATCH, FALSE_TAGS = 0, 1
TRIES = 16
"""Draws after which any other text is taken, even one that does not differ."""
Shelf = tuple[str, str | None]
"""A set of images, and the chunk of it."""


@builders.register("region_pretrain", config=RegionPretrainKeys)
def region_pretrain(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """The YAML of a corpus of Oscar+, which names rows, features and labels."""
    return region_splits(config, context, _make)


def _make(opening: Opening) -> Dataset:
    homes = [path for path in opening.files() if path.suffix in (".yaml", ".yml")]
    if len(homes) != 1:
        where = f"datasets.{opening.config.name}.build_info.annotations.{opening.split}"
        raise ConfigError(where, f"names {len(homes)} YAML files", "name the one of the corpus")
    corpus = read_corpus(homes[0])
    if not corpus.rows.is_file():
        raise not_prepared(opening.config, corpus.rows, "no such corpus")
    root, family = opening.context.cache_root, opening.config.family or opening.config.name
    rows = open_corpus(corpus.rows, place_of(corpus.rows, root, family, FOLDER))
    shelves = feature_shelves(opening, corpus)
    regions = opening.regions([path for paths in shelves.values() for path in paths])
    numbers = iter(range(len(regions.stores)))
    places = {shelf: [next(numbers) for _ in paths] for shelf, paths in shelves.items()}
    parts = RegionParts(opening.config, opening.split, rows, opening.args, regions, opening.encoder())
    return RegionPretrainDataset(parts, places, label_tables(corpus))


def feature_shelves(opening: Opening, corpus: Corpus) -> dict[Shelf, list[Path]]:
    """The files (or stores) of features of each set of images of a corpus, by chunk where they come in several.

    Raises NotPreparedError for a set of which there is nothing.
    """
    given = opening.args["features"]
    given = given if isinstance(given, Mapping) else {}
    found: dict[Shelf, list[Path]] = {}
    for name in corpus.names:
        if name in given:
            some = [given[name]] if isinstance(given[name], str) else given[name]
            found[name, None] = [opening.path(one) for one in some]
            continue
        folder = corpus.features.get(name)
        if folder is None:
            raise ConfigError(str(corpus.home), f"names no features of '{name}'", f"set args.features.{name}")
        chunks = (
            [] if not folder.is_dir() else [one for one in sorted(folder.iterdir()) if one.is_dir() and _holds(one)]
        )
        if not _holds(folder) and not chunks:
            raise not_prepared(opening.config, folder, f"no features of '{name}'")
        found |= {(name, None): [folder]} if _holds(folder) else {(name, one.name): [one] for one in chunks}
    return found


def _holds(folder: Path) -> bool:
    return folder.is_file() or (folder / "features.tsv").is_file() or (folder / "store.json").is_file()


def label_tables(corpus: Corpus) -> dict[Shelf | tuple[str, str, str], TagTable]:
    """Answers by question for each set of images, and tags where the folder of labels has them, also by chunk."""
    found: dict[Any, TagTable] = {}
    for name in corpus.names:
        folder = corpus.labels.get(name)
        if folder is None or not folder.is_dir():
            continue
        if (folder / "QA_fileB.tsv").is_file():
            found[name, None, "qa"] = tag_table(folder / "QA_fileB.tsv")
        for inner in (folder, *sorted(one for one in folder.iterdir() if one.is_dir())):
            files = (inner / "predictions_gt.tsv", inner / "predictions.tsv")
            if path := next((file for file in files if file.is_file()), None):
                found[name, None if inner == folder else inner.name] = tag_table(path)
    return found


@dataclass(frozen=True, eq=False)
class RegionPretrainDataset(RegionDataset):
    """A row of a corpus a sample. `places` are the stores of each set of images, `tables` its tags and answers."""

    places: Mapping[Shelf, Sequence[int]]
    tables: Mapping[Any, TagTable]

    @property
    def corpus(self) -> CorpusRows:
        """The rows."""
        rows: CorpusRows = self.parts.rows
        return rows

    @property
    def num_contrast_classes(self) -> int:
        """2 (matches or not), or 3 where texts are replaced too."""
        return 3 if 0 < self.parts.args["texta_false_prob"] < 0.5 else 2

    @cached_property
    def givers(self) -> np.ndarray | None:
        """int64: the rows that may give another row its second text; None: all."""
        mode = self.parts.args["textb_sample_mode"]
        if mode == 0:
            return None
        found: np.ndarray = np.flatnonzero(self.corpus.answers == (mode == 2))
        if not len(found):
            what = f"textb_sample_mode {mode}, but no row has {'an answer' if mode == 2 else 'tags'}"
            raise ConfigError(f"datasets.{self.name}.args", what, "choose another mode")
        return found

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """`input_ids` with masked words, `lm_labels` (those words, else -100), `labels` (the class), ids.

        With r uniform in [0, 1): above 0.5 the row is kept as it is (0); below `texta_false_prob` its text is another
        row's (the last class); else its tags or answer are (1). Upstream's rule (oscar/datasets/oscar_tsv.py).
        """
        [(image_id, place)] = self.images_of(row, index)
        row, label = self.contrast(row, rng)
        ids, types = self.parts.encoder.pair(self.text(row, "caption", index), self.second(row, index))
        hidden, labels = self.mask(ids, rng)
        found: Sample = {"input_ids": hidden, "token_type_ids": types, "lm_labels": labels, "labels": label}
        return {**found, "regions": place, "image_id": image_id, "instance_id": row["instance_id"]}

    def images_of(self, row: Row, index: int) -> list[tuple[Any, RegionPlace]]:
        """The image of a row, in the stores of its set and chunk; raises SampleError."""
        name, chunk, image_id = self.key(row, "image_key", index)
        return [(image_id, self.place(image_id, index, self.stores(name, chunk, index)))]

    def key(self, row: Row, name: str, index: int) -> tuple[str, str | None, str]:
        """What a key of a row says; raises SampleError."""
        try:
            return image_place(str(row.get(name, "")))
        except ValueError as error:
            raise self.fault(index, f"{name} is none: {error}") from error

    def stores(self, name: str, chunk: str | None, index: int) -> Sequence[int]:
        """The stores that may hold an image; raises SampleError where there are none."""
        found = self.places.get((name, chunk), self.places.get((name, None)))
        if found is None:
            raise self.fault(index, f"no features of this set of images: {name}{f'/{chunk}' if chunk else ''}")
        return found

    def contrast(self, row: Row, rng: torch.Generator | None) -> tuple[Row, int]:
        """A row as it is or with one text of another, and its class."""
        r, share = float(torch.rand(1, generator=rng)), self.parts.args["texta_false_prob"]
        if r > 0.5:
            return row, MATCH
        if r < share:
            other = self.another(row, "image_key", None, rng)
            return {**row, "caption": other["caption"]}, self.num_contrast_classes - 1
        other = self.another(row, "label_key", self.givers, rng)
        return {**row, "label_key": other["label_key"]}, FALSE_TAGS

    def another(self, row: Row, key: str, among: np.ndarray | None, rng: torch.Generator | None) -> Row:
        """A random row of `among` (None: all) that differs in a key; after TRIES draws, any."""
        count = len(self.corpus) if among is None else len(among)
        other = row
        for _ in range(TRIES):
            drawn = draw_below(count, rng)
            other = self.corpus[drawn if among is None else int(among[drawn])]
            if other.get(key) != row.get(key):
                break
        return other

    def second(self, row: Row, index: int) -> str:
        """Tags of the image, or the answer, that a row's label key names; raises SampleError where there is none."""
        name, chunk, label_id = self.key(row, "label_key", index)
        if is_answer(row["label_key"]):
            table = self.tables.get((name, None, "qa"))
            found = table.find(label_id) if table else None
            if found is None:
                raise self.fault(index, f"answer is not in QA_fileB.tsv of {name}: {label_id}")
            return found
        if not self.parts.args["add_od_labels"]:
            return ""
        table = self.tables.get((name, chunk), self.tables.get((name, None)))
        found = table.find(label_id) if table else None
        return self._stored_tags(name, chunk, label_id, index) if found is None else found

    def _stored_tags(self, name: str, chunk: str | None, image_id: str, index: int) -> str:
        """The tags that the store has of an image; raises SampleError where it does not know it."""
        regions = self.parts.regions
        try:
            place = regions.find(image_id, self.stores(name, chunk, index))
        except UsageError as error:
            problem = error.problems[0]
            raise SampleError(self.sample_id(index), problem.where, f"no tags: {problem.what}") from error
        return tag_text(regions.record(place).labels)

    def mask(self, ids: Ids, rng: torch.Generator | None) -> tuple[Ids, Ids]:
        """The ids with words masked with `mask_prob` (not [CLS], [SEP]), and the labels (those words, else -100)."""
        words = self.parts.encoder.words
        drawn = (torch.rand(len(ids), generator=rng) < self.parts.args["mask_prob"]).tolist()
        marks = (words.cls, words.sep)
        places = [at for at, (take, number) in enumerate(zip(drawn, ids, strict=True)) if take and number not in marks]
        labels = [IGNORED] * len(ids)
        for at in places:
            labels[at] = ids[at]
        return hide(ids, places, words, rng), labels

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """The inputs, `lm_labels` int64 [B,T] (-100: not predicted), `labels` int64 [B] (the class), ids as lists."""
        asked = pad_rows((sample["lm_labels"] for sample in samples), IGNORED)
        labels = torch.tensor([sample["labels"] for sample in samples])
        return {**super().collater(samples), "lm_labels": asked, "labels": labels}
