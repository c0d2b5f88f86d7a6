"""Data that a person has, as a declaration: what a path holds, which shape that is, and in words what was guessed."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from lavis_ext.common.config.cards import declared_in, load_cards, load_dataset_config, settings_of
from lavis_ext.common.config.decode import ConfigDecoder, read_sections
from lavis_ext.common.config.resolve import cache_root
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import IntegrityError, LavisExtError, Problem, UsageError
from lavis_ext.common.files import expanded, not_there, read_errors, size_of
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Dataset
from lavis_ext.common.wording import shorten
from lavis_ext.datasets.builders.base_dataset_builder import build_datasets
from lavis_ext.datasets.builders.context import (
    BuildContext,
    annotation_paths,
    column_problems,
    read_columns,
    with_storage_root,
)
from lavis_ext.datasets.readers.annotations import Annotations
from lavis_ext.datasets.readers.bundled import holds_pictures
from lavis_ext.datasets.readers.columns import LOOKED_AT, PROMPTS, Row, find_column
from lavis_ext.datasets.readers.conversations import HELD
from lavis_ext.datasets.readers.folders import BOX, SPLITS, TEXTS, split_named
from lavis_ext.datasets.readers.images import ImageStore, spellings
from lavis_ext.datasets.readers.packed import arrow_files
from lavis_ext.datasets.readers.parse import RowOptions, kind_of, row_options, sort_files
from lavis_ext.datasets.readers.tables import PICTURE, TABLES, kind_of_name, open_head, other_encoding, sign_of
from lavis_ext.prepare.samples import image_names

log = logging.getLogger(__name__)
ROWS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".token")
TARS = (".tar", ".tar.gz", ".tgz")
DEPTH, MOST, ALIKE = 3, 20_000, 1_000
"""How deep files of rows are looked for; among how many entries, of which so many may differ in digits only."""
NOT_ROWS = re.compile(
    r"cache-|dataset_infos?|state|dataset_dict|config|package|licen[cs]e|readme|requirements|_stats|manifest"
)
UNREAD: Mapping[str, str] = {
    **dict.fromkeys(
        (".heic", ".heif", ".avif", ".tif", ".tiff", ".svg", ".raw", ".cr2", ".nef", ".dng"), "save as JPEG or PNG"
    ),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), "save as CSV, in UTF-8"),
    **dict.fromkeys((".xml", ".pkl", ".pickle", ".npz", ".sqlite", ".db"), "save as JSON, CSV or COCO's form"),
    **dict.fromkeys((".rar", ".7z"), "unpack, or save as zip"),
    ".feather": "save as Parquet",
}
"""Files that people have beside or as their data and that are not read here, and the way out."""
QUESTION = "What is this?"
"""What is asked about pictures that only have a class: the class is the answer, so that accuracy is measured."""


@dataclass(frozen=True)
class Guess:
    """What a path was taken for: a declaration, ready to be built, and in sentences what was guessed."""

    config: DatasetConfig
    section: Mapping[str, Any]
    """The declaration as it stands in a YAML, below `datasets.<name>`."""
    sentences: tuple[str, ...]
    task: str
    """The task that trains on it."""
    rows: int | None = None
    """How many rows the first split has; None for shards, which are not counted."""
    told: bool = True
    """Whether rows say what is to be learnt, a caption or an answer: else nothing can be trained on or scored."""
    file: Path | None = None
    """The YAML that declares it, where nothing had to be guessed."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.config.name

    @property
    def otherwise(self) -> str:
        """How to say it where a guess is wrong."""
        if self.file:
            return f"where that is wrong, mend {self.file}"
        if self.task == "instruct":
            return "if that is wrong: `lavis-ext new NAME PATH` writes it as a YAML, where `builder:` names the shape"
        keys = "{question_key: …, answer_key: …}" if self.task == "vqa" else "{image_key: …, caption_key: …}"
        return f"if that is wrong: `lavis-ext new NAME PATH` writes it as a YAML, where `args: {keys}` says it"


def guess(path: str | Path, name: str | None = None) -> Guess:
    """What a file, a folder or a name in the cache of `datasets` holds, with all paths absolute.

    Raises UsageError for a path that is not there or holds nothing of the kind, IntegrityError for files of it that
    cannot be read.
    """
    place = place_of(path)
    if place is None:
        what, way_out = not_there(path)
        other = "" if expanded(path).suffix else ", and no data set of that name in the cache of `datasets`"
        raise UsageError(str(path), what + other, way_out)
    found = _look(place)
    if found is None:
        if PICTURE.search(place.name) and place.is_file():
            raise UsageError(str(path), "is one picture", f"name its folder: {place.parent}")
        if place.suffix.lower() in (".html", ".ipynb"):
            raise UsageError(str(path), "is a page, not data", "open it in a browser, or name the folder of the data")
        if declared := declared_in(place):
            if len(declared) == 1 and name is None:
                return _declared(*next(iter(declared.items())))
            raise Declares(str(path), declared)
        if any(
            one.suffix in (".yaml", ".yml") for one in ([place] if place.is_file() else islice(_below(place), MOST))
        ):
            way_out = "name a data set that a YAML declares: `lavis-ext browse NAME --configs FOLDER`"
            raise UsageError(str(path), "is a YAML or holds some, and no pictures and rows", way_out)
        what = "holds no pictures, no rows of a known form and no shards"
        raise UsageError(str(path), *(_unread([place]) or (what, "docs/own-data.md lists the forms")))
    chosen = name or re.sub(r"[^A-Za-z0-9_]+", "_", place.name.partition(".")[0]).strip("_").lower() or "mine"
    section, sentences, count, told = found
    if place.is_dir() and (left := _unread([place])):
        sentences = [*sentences, ": ".join(left)]
    if place.is_dir() and (label := _first_labels(place)):
        what = f"{label.name} and its like are YOLO's boxes, which are not read: write them as COCO's JSON to see them"
        sentences = [*sentences, what]
    decoder = ConfigDecoder()
    config = decoder.build(DatasetConfig, {"name": chosen, "family": chosen, **section}, f"datasets.{chosen}")
    decoder.close()
    assert config is not None
    return Guess(config, section, tuple(sentences), _task(config), count, told)


class Declares(UsageError):
    """A path that holds no data of its own, but YAMLs which declare some."""

    def __init__(self, path: str, declared: Mapping[str, Path]) -> None:
        what = f"holds no pictures and rows; its YAML declares {shorten(', '.join(declared), 200)}"
        name, file = next(iter(declared.items()))
        super().__init__(path, what, f"`lavis-ext browse {name} --configs {settings_of(file)}` shows one")
        self.path, self.what, self.declared = path, what, declared

    def __reduce__(self) -> tuple[Any, ...]:
        return Declares, (self.path, self.declared)


def _declared(name: str, file: Path) -> Guess:
    """The one data set that a YAML declares, or those of a folder, as `new` writes it."""
    config = load_dataset_config(file, name)
    return Guess(config, {}, (f"`{name}` as {file} declares it",), _task(config), file=file)


def _task(config: DatasetConfig) -> str:
    return {"vqa": "vqa", "conversation": "instruct"}.get(config.builder, "captioning")


def load_own(path: str | Path, vis_path: str | Path | None = None) -> dict[str, Dataset]:
    """The data sets of a path by split, after what was guessed is logged; pictures are PIL images and texts raw."""
    try:
        found = guess(path)
    except Declares as error:
        name, file = next(iter(error.declared.items()))
        way_out = f"write load_dataset({name!r}, cfg_path={str(file)!r}), or set LAVIS_EXT_CONFIGS to the folder"
        raise UsageError(f"load_dataset({str(path)!r})", error.what, way_out) from error
    for sentence in (*found.sentences, found.otherwise):
        log.info("%s: %s", path, sentence)
    config = found.config
    if vis_path is not None:
        images = replace(config.build_info.images, storage=str(expanded(vis_path).absolute()))
        config = replace(config, build_info=replace(config.build_info, images=images))
    return build_datasets(config, BuildContext(cache_root()))


def place_of(path: str | Path) -> Path | None:
    """Where a path is, or the data set of that name in the local cache of `datasets` or of the hub; None for neither.

    Raises DiskError for what may not be looked at.
    """
    place, name = expanded(path).absolute(), str(path)
    with read_errors(place):
        if place.exists():
            return place
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return None
    home = expanded(os.environ.get("HF_HOME") or "~/.cache/huggingface")
    arrows = expanded(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / name.replace("/", "___")
    hub = expanded(os.environ.get("HF_HUB_CACHE") or home / "hub")
    made = {file.parent for file in arrows.glob("**/*.arrow") if not file.name.startswith("cache-")}
    fetched = set((hub / f"datasets--{name.replace('/', '--')}" / "snapshots").glob("*"))
    return max(made or fetched, key=lambda one: one.stat().st_mtime_ns, default=None)


Found = tuple[dict[str, Any], list[str], int | None, bool]
"""A declaration, what is to be said of it, how many rows there are, and whether they say what is to be learnt."""


def _look(place: Path) -> Found | None:
    """The declaration of a path and what is said of it, by what is there."""
    if place.is_file():
        if place.name.lower().endswith(TARS):
            return _shards([place], place)
        rows = kind_of_name(place) in (*ROWS, ".txt") or (kind_of_name(place) == ".zip" and holds_pictures(place))
        return _of_files({"train": [place]}, place.parent, []) if rows else None
    if (place / "dataset_dict.json").is_file():
        parts = {split_named(one.name) or one.name: [one] for one in sorted(place.iterdir()) if arrow_files(one)}
        return _of_files(parts, place, ["folders of `datasets.save_to_disk`"]) if parts else None
    if arrow_files(place):
        return _of_files({"train": [place]}, place, ["a folder of `datasets.save_to_disk`"])
    entries = list(islice(_below(place), MOST))
    if tars := [path for path in entries if path.name.lower().endswith(TARS)]:
        return _shards(tars, place)
    pictures = [path for path in entries if PICTURE.search(path.name)]
    beside = {path.with_suffix("") for path in pictures}
    upper = (path for path in entries if len(path.relative_to(place).parts) <= DEPTH + 1)
    files = [path for path in upper if _may_hold_rows(path) and path.with_suffix("") not in beside]
    files = [path for path in files if not PICTURE.search(path.stem)]  # `x.jpg.json`, what a camera's cloud says of x
    if files:
        files, notes = _chosen(files)
        chosen: dict[str, list[Path]] = {}
        for split, some in _by_split(files, place).items():
            chosen[split], left = _alike(some)
            notes += [f"left out beside {chosen[split][0].name}: {', '.join(one.name for one in left)}"] if left else []
        texts = {path.with_suffix("") for path in entries if path.suffix.lower() in TEXTS}
        kept = ", ".join(one.name for some in chosen.values() for one in some)
        found = _of_files(chosen, place, notes)
        if found and texts & beside and not _finds_some(found[0]):  # as img2dataset leaves tables of addresses
            return _folder(place, pictures, [f"no picture of {kept} is here: the texts beside pictures are read"])
        if found:
            return found
        unread = [f"no column of {kept} is a picture or what is said of one: they are left out"]
    if pictures:
        return _folder(place, pictures, unread if files else [])
    zips = [path for path in entries if kind_of_name(path) == ".zip" and holds_pictures(path)]
    return _of_files({"train": zips}, place, []) if len(zips) == 1 else None


def _finds_some(section: Mapping[str, Any]) -> bool:
    """Whether any picture of the first rows of a declaration is there."""
    config = ConfigDecoder().build(DatasetConfig, {"name": "some", "family": "some", **section}, "datasets.some")
    if config is None:
        return False
    split, context = next(iter(config.build_info.annotations)), BuildContext(cache_root())
    paths = annotation_paths(config, split, context)
    rows = Annotations(sort_files(paths, row_options(config, split, context.cache_root)).rows, LOOKED_AT, cache_root())
    return any(map(ImageStore(config.build_info.images.storage).exists, image_names(rows, config)))


def _unread(places: Iterable[Path]) -> tuple[str, str] | None:
    """What is not read of a path, and the way out; None where there is nothing of the kind."""
    files = [one for place in places for one in (islice(_below(place), MOST) if place.is_dir() else [place])]
    found: dict[str, list[Path]] = {}
    for one in files:
        if one.suffix.lower() in UNREAD and one.name.lower() != "thumbs.db":
            found.setdefault(one.suffix.lower(), []).append(one)
    if not found:
        return None
    kinds = dict.fromkeys(UNREAD[kind] for kind in found)
    names = ", ".join(f"{len(some)} {kind} (first {some[0].name})" for kind, some in sorted(found.items()))
    return f"holds files that are not read here: {names}", "; ".join(kinds)


def _first_labels(place: Path) -> Path | None:
    """The first of YOLO's files of boxes among the first texts below a folder."""
    texts = islice((one for one in islice(_below(place), MOST) if one.suffix.lower() == ".txt"), LOOKED_AT)
    lines = ((one, open_head(one, 400).decode("utf-8", "replace").strip().partition("\n")[0]) for one in texts)
    return next((one for one, line in lines if BOX.fullmatch(line.strip())), None)


def _below(folder: Path) -> Iterator[Path]:
    """The files below a folder, the upper ones first; hidden ones are left out.

    Of those in one folder that differ in digits only, as photographs do, the first: others would not be come to.
    """
    level, seen = [folder], set[tuple[int, int]]()
    while level:
        inner: list[Path] = []
        for one in level:
            with read_errors(one), os.scandir(one) as listed:
                entries = sorted((e for e in listed if not e.name.startswith(".")), key=lambda e: e.name)
                place = one.stat()
            if (place.st_dev, place.st_ino) in seen or len(seen) > MOST:  # a loop of links, or a whole disk
                continue
            seen.add((place.st_dev, place.st_ino))
            alike = Counter[str]()
            for entry in entries:
                alike[form := DIGITS.sub("", entry.name)] += 1
                if (alike[form] <= ALIKE or kind_of_name(Path(entry.name)) in WHOLE) and size_of(entry) is not None:
                    yield Path(entry.path)
            inner += [Path(e.path) for e in entries if os.path.isdir(e.path)]  # noqa: PTH112 - False of a loop of links
        level = inner


DIGITS, WHOLE = re.compile(r"\d+"), (".tar", ".parquet", ".arrow")


def _may_hold_rows(path: Path) -> bool:
    """Whether a file is a table or a list of records; of a `.txt` its first line must be one of a list of captions."""
    kind = kind_of_name(path)
    if kind in ROWS:
        return not NOT_ROWS.match(path.name.lower())
    if kind != ".txt":
        return False
    first = open_head(path, 4096).decode("utf-8", "ignore").lstrip("\ufeff\n").partition("\n")[0].lower()
    names = [name.strip() for name in re.split(r"[\t,;|]", first)]
    return bool(re.search(r"\.(jpe?g|png|webp|gif|bmp)\b", first)) or bool(
        {"image", "file_name", "filename"} & set(names)
    )


def _words(path: Path, place: Path | None = None) -> list[str]:
    """The words of a file's name and of its folder's below `place`: captions, train of `captions_train2017.json`."""
    words = re.findall(r"[a-z]+", path.name.lower().partition(".")[0])
    inside = place is not None and path.parent != place
    return [*words, *(re.findall(r"[a-z]+", path.parent.name.lower()) if inside else ())]


def _chosen(files: list[Path]) -> tuple[list[Path], list[str]]:
    """Of COCO's several files about the same pictures the captions, else the boxes; and what was left out."""
    for wanted, others in (
        ("captions", ("instances", "person", "panoptic", "stuff")),
        ("instances", ("person", "stuff")),
    ):
        if any(wanted in _words(path) for path in files):
            out = [path for path in files if set(others) & set(_words(path))]
            kept = [path for path in files if path not in out]
            named = ", ".join(path.name for path in out)
            return kept, [f"left out beside the {wanted}: {named}"] if out else []
    return files, []


def _by_split(files: Iterable[Path], place: Path) -> dict[str, list[Path]]:
    """The files by the split that their name says, else their folder's; `train` for those that say none."""
    found: dict[str, list[Path]] = {}
    for path in files:
        split = next((split for word in _words(path, place) if (split := split_named(word))), "train")
        found.setdefault(split, []).append(path)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _alike(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files of one split that go together, as official questions and answers, or parts by number; and the others."""
    official = [path for path in files if kind_of(path) in ("questions", "answers")]
    if official and len({kind_of(path) for path in official}) == 2:
        return official, [path for path in files if path not in official]
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        groups.setdefault((path.suffix, re.sub(r"[\d_-]+", "", path.name)), []).append(path)
    first = max(groups.values(), key=lambda some: (bool(TELLING & set(_words(some[0]))), len(some)))
    return first, [path for path in files if path not in first]


TELLING = {"metadata", "captions", "caption", "annotations", "train", "val", "test", "labels", "data", "dataset"}
"""Words in the names of files that hold rows."""


def _shards(tars: Sequence[Path], place: Path) -> Found:
    """Tars in webdataset's form; which member holds the caption is seen in the first."""
    from lavis_ext.datasets.readers.shard_index import first_object, kinds_in

    splits = _by_split(tars, place)
    split, used = next(iter(splits.items()))
    if place.is_dir() and used[0].suffix.lower() in (".gz", ".tgz"):
        raise UsageError(str(place), f"{used[0].name} is packed, and a stream is of plain tars", "unpack it: `gunzip`")
    kinds = kinds_in(used[0])
    if kinds and not {"json", "txt"} & kinds:
        what = f"{used[0].name} holds {', '.join(sorted(kinds))}, and no text beside a picture"
        raise UsageError(str(place), what, "unpack it: a folder of pictures can be looked at; or add `KEY.txt` to each")
    args = {"caption_key": ".txt"} if "json" not in kinds else {}
    said = "its `.txt`"
    if "json" in kinds:
        key = find_column("caption_key", [first_object(used[0])])
        said = f"`{key or 'caption'}` of its `.json`"
        args = {} if key in ("caption", None) else {"caption_key": key}
        args = {"caption_key": ".txt"} if key is None and "txt" in kinds else args
    storage: Any = [str(path) for path in used]
    if len(splits) == 1:
        folders = list(dict.fromkeys(str(path.parent) for path in used))
        storage = str(place) if place.is_file() else folders[0] if len(folders) == 1 else folders
    count = f"{len(used)} tar{'s' if len(used) > 1 else ''} of samples"
    told = [f"{count}, read as a stream: the shape `image_text_shards`"]
    told += [f"only {split} is a stream to train on; left out: {', '.join(list(splits)[1:])}"] * (len(splits) > 1)
    told += [f"the caption of a sample is {said} (otherwise: `args: {{caption_key: …}}`)"]
    return {"builder": "image_text_shards", "build_info": {"storage": storage}, "args": args}, told, None, True


def _folder(place: Path, pictures: Sequence[Path], notes: list[str]) -> Found | None:
    """A folder of pictures without a file of rows, or folders of pictures by split."""
    top = Path(os.path.commonpath([path.parent for path in pictures]))
    top = top.parent if top != place and split_named(top.name) else top
    splits = {split: one for one in _folders(top) if (split := split_named(one.name))}
    whole = all(path.relative_to(top).parts[0] in {one.name for one in splits.values()} for path in pictures)
    parts: dict[str, list[Path]] = {}
    if whole:
        parts = {split: [splits[split]] for split in ("train", "val", "test") if split in splits}
    return _of_files(parts or {"train": [place]}, place, notes)


def _of_files(parts: Mapping[str, list[Path]], place: Path, notes: list[str]) -> Found | None:
    """Files or folders of rows by split: shape, columns and the folder of pictures are seen in the first split."""
    first = next(iter(parts.values()))
    delimiter, encoding = _sign(first[0]), _encoding(parts)
    how = RowOptions(base=place, delimiter=delimiter, encoding=encoding)
    table = Annotations(sort_files(first, how).rows, home=cache_root())
    rows, known, count = table[:LOOKED_AT], table.keys(), len(table)
    if not rows:
        if first[0].is_dir():
            return None
        raise IntegrityError(str(first[0]), "holds no rows", "write a row for each picture, or name other data")
    shape, args, said = _shape(rows, known)
    args |= {"delimiter": delimiter} if delimiter else {}
    args |= {"encoding": encoding} if encoding else {}
    said += [f"the texts are not UTF-8, and read as {encoding} (otherwise: `args: {{encoding: …}}`)"] * bool(encoding)
    if not shape:
        return None
    whole = shape == "conversation"
    how = replace(how, image_key=str(args.get("image_key", "image")), conversations="whole" if whole else "")
    heads = [Annotations(sort_files(some, how).rows, home=cache_root())[:LOOKED_AT] for some in parts.values()]
    rows = [row for head in heads for row in head]
    if not whole and any(isinstance(row.get(how.image_key), list) and len(row[how.image_key]) > 1 for row in rows):
        what = f"`{how.image_key}` holds several pictures a row, which only conversations have"
        raise UsageError(str(first[0]), what, "write one picture a row, or `conversations`: docs/datasets.md")
    images, found = _images(rows, args, first[0], place)
    if pattern := found.pop("image_pattern", None):
        args["image_pattern"] = pattern
    key = find_column("split_key", rows)
    if len(parts) == 1 and key and {split_named(str(row.get(key))) for row in rows} - {None}:
        values = {split_named(str(value)) for value in table.column(key)}
        parts = {split: first for split in ("train", "val", "test") if split in values}
        args["split_key"] = key
        notes = [*notes, f"`{key}` says to which split a row belongs: {', '.join(parts)}"]
    said_in = {"image_caption": "caption_key", "vqa": "answer_key"}.get(shape)
    silent = said_in and "question" not in args and "conversations" not in known and not _says(said_in, rows, args)
    if silent:
        notes = [*notes, "there is nothing to learn: all of it is the split `test`"]
        parts = {"test": [path for some in parts.values() for path in some]}
    paths = {split: [str(one) for one in some] for split, some in parts.items()}
    listed = {split: {"storage": some[0] if len(some) == 1 else some} for split, some in paths.items()}
    section = {
        "builder": shape,
        "build_info": {"annotations": listed, "images": {"storage": str(images)}},
        "args": args,
    }
    kinds = ", ".join(f"{split}: {', '.join(one.name for one in some)}" for split, some in parts.items())
    told = [*notes, f"rows of {kinds}", *said, f"the pictures lie below {images}{found.get('note', '')}"]
    read = {*READ, *HELD, *map(str, args.values())}
    if rest := [f"`{name}`" for name in known if name and name not in read]:
        told.append(f"not read: {', '.join(rest[:12])}{' …' if len(rest) > 12 else ''}")
    return section, told, count, not silent


def _sign(path: Path) -> str | None:
    """The sign that splits a CSV where that is no comma."""
    if kind_of_name(path) not in TABLES or path.is_dir():
        return None
    head = open_head(path, 1 << 16).decode("utf-8", "ignore").lstrip("\ufeff").partition("\n")[0].rstrip("\r")
    usual = "\t" if kind_of_name(path) == ".tsv" else ","
    sign = sign_of(head)
    return sign if sign and usual not in head and kind_of_name(path) not in (".txt", ".token") else None


def _encoding(parts: Mapping[str, Sequence[Path]]) -> str | None:
    """The encoding of texts that are not UTF-8: of the files of rows, or of the first texts beside pictures."""
    paths = [path for some in parts.values() for path in some]
    texts = (text for path in paths for text in (islice(_below(path), MOST) if path.is_dir() else [path]))
    small = (text for text in texts if kind_of_name(text) in (*TABLES, ".caption", ".json", ".jsonl", ".ndjson"))
    return next((found for text in islice(small, LOOKED_AT) if (found := other_encoding(text))), None)


def _shape(rows: Sequence[Row], known: Sequence[str]) -> tuple[str, dict[str, Any], list[str]]:
    """The shape that rows have, its arguments where they differ from the usual, and what to say of it."""
    image = find_column("image_key", rows)
    args: dict[str, Any] = {} if image in (None, "image") else {"image_key": image}
    said = [f"the picture is `{image}`"] if image else []
    held = next((key for key in HELD if key in known and any(isinstance(row.get(key), list) for row in rows)), None)
    if held:
        if held == "conversations" and not any(_goes_on(row, row.get(image or "image")) for row in rows):
            said.append("conversations of one question and its answer: the shape `vqa`")
            return "vqa", args, said
        return "conversation", args, [*said, f"`{held}` are turns: the shape `conversation`"]
    used = [image] if image else []
    question = find_column("question_key", rows, used)
    answer = find_column("answer_key", rows, [*used, question or ""])
    if question and answer is None and question.lower() in PROMPTS:
        question = None
    caption = find_column("caption_key", rows, [*used, question or ""])
    if question:
        args |= {} if question == "question" else {"question_key": question}
        args |= {} if answer in (None, "answer") else {"answer_key": answer}
        given = f"`{answer}` is the answer" if answer else "no column is a text that could be the answer"
        said.append(f"`{question}` is asked and {given}: the shape `vqa`")
        return "vqa", args, said
    label = find_column("label_key", rows, used)
    if caption:
        args |= {} if caption == "caption" else {"caption_key": caption}
        said.append(f"`{caption}` is what is said of it: the shape `image_caption`")
        return "image_caption", args, said
    if label:
        args |= {"question": QUESTION, "answer_key": label}
        said.append(f"`{label}` is its class, the answer to '{QUESTION}': the shape `vqa`")
        return "vqa", args, said
    if image or "image_id" in known:
        said += [
            "there are no captions: it can be looked at and described",
            "to train on it, write `x.txt` beside each `x.jpg`, or a `captions.csv` of `image,caption`",
        ]
        return "image_caption", args, said
    return "", {}, []


def _says(argument: str, rows: Sequence[Row], args: Mapping[str, Any]) -> bool:
    """Whether rows have what is to be learnt of them: a caption, or an answer."""
    asked = [str(args.get("image_key", "image")), str(args.get("question_key", "question"))]
    return find_column(argument, rows, asked) is not None


def _goes_on(row: Row, pictures: Any) -> bool:
    """Whether a conversation has more than a question and its answer about one picture."""
    turns = row.get("conversations")
    several = isinstance(pictures, list) and len(pictures) > 1
    return several or not pictures or not isinstance(turns, list) or len(turns) > 2


READ = ("image", "caption", "question", "answer", "image_id", "question_id", "split", "conversations", "id")
"""Columns that are read without being named."""
IDS = ("image_id", "id", "sample_id", "img_id", "key", "name")
"""Columns that may name a picture without its suffix, where none is a picture."""
PLACES = ("images", "image", "img", "imgs", "photos", "pictures", "pics", "data", "files")


def _images(rows: Sequence[Row], args: Mapping[str, Any], file: Path, place: Path) -> tuple[Path, dict[str, str]]:
    """The folder below which most of the first pictures are found, and how they are named where rows only have ids."""
    if kind_of_name(file) == ".zip":
        return file, {"note": ", which is read without unpacking it"}
    if file.is_dir() and not arrow_files(file):
        return place, {}
    key = str(args.get("image_key", "image"))
    values = [row[key] for row in rows if row.get(key) not in (None, "", [])]
    named = [str(one) for value in values for one in (value if isinstance(value, list) else [value])]
    there = [name for name in named if Path(name).is_absolute() and os.path.isfile(name)]  # noqa: PTH113
    if there:
        return Path(os.path.commonpath([str(Path(name).parent) for name in there])), {}
    if any("://" in name and not name.startswith("file:") for name in named[:1]):
        return file.parent, {"note": " (rows name addresses, which are not fetched: docs/image-lists.md)"}
    ids: list[Row] = []
    if not named or all(name.isdigit() for name in named):
        key = key if named else next((one for one in IDS if any(one in row for row in rows)), "image_id")
        ids = [{key: row[key]} for row in rows if row.get(key) is not None]
    folder = file.parent
    own = place if place.is_dir() else folder
    best = _best_folder([own, folder], named, ids, key)
    note = ""
    if not best[0] and not any(PICTURE.search(path.name) for path in islice(_below(own), MOST)):
        best = _best_folder([folder.parent], named, ids, key)  # else these may be others' pictures of the same names
        note = f", beside {folder.name}" if best[0] else ""
    hits, base, pattern = best
    if not hits:
        base, note = folder, " (none of the first was found there: `build_info: {images: {storage: …}}` says where)"
    elif hits < (wanted := len(ids or named)):
        note += f" ({hits} of the first {wanted} were found there)"
    return base, {"note": note, **({} if pattern in (None, "{image_id}.jpg") else {"image_pattern": pattern})}


def _best_folder(
    bases: Sequence[Path], names: Sequence[str], ids: Sequence[Row], key: str
) -> tuple[int, Path, str | None]:
    """How many pictures are found below which folder, and by which pattern where they are named after ids."""
    inner = [one for base in bases for one in _folders(base)]
    candidates = list(dict.fromkeys([*bases, *inner, *(deep for one in inner for deep in _folders(one))]))[:200]
    best: tuple[int, Path, str | None] = (0, bases[0], None)
    for base in candidates:
        for pattern in _patterns(base, key, isinstance(ids[0][key], float)) if ids else [None]:
            wanted = names if pattern is None else [pattern.format_map(one) for one in ids]
            hits = sum(_is_below(base, name.partition("!")[0]) for name in wanted if name)
            best = max(best, (hits, base, pattern), key=lambda one: one[0])
    if best[0] < len(names) and not ids:  # in several folders, or by the ends of names from another machine
        for base in dict.fromkeys(bases):
            hits = sum(map(ImageStore(base).exists, names))
            best = max(best, (hits, base, None), key=lambda one: one[0])
    return best


def _patterns(folder: Path, key: str, floating: bool) -> list[str]:
    """How the first pictures of a folder may be named after a number: `COCO_val2014_{image_id:0>12}.jpg`."""
    plain, padded = (f"{{{key}:.0f}}", f"{{{key}:0%d.0f}}") if floating else (f"{{{key}}}", f"{{{key}:0>%d}}")
    try:
        with os.scandir(folder) as listed:
            names = list(islice((one.name for one in listed if PICTURE.search(one.name)), LOOKED_AT))
    except OSError:
        return []
    found = []
    for stem, suffix in map(os.path.splitext, names):
        before = re.sub(r"\d+\Z", "", stem).replace("{", "{{").replace("}", "}}")
        width = len(stem) - len(re.sub(r"\d+\Z", "", stem))
        found += [f"{plain}{suffix}", f"{before}{plain}{suffix}", f"{before}{padded % width}{suffix}"]
    return list(dict.fromkeys(found))


def _is_below(base: Path, name: str) -> bool:
    return any(os.path.isfile(f"{base}/{one}") for one in (name, *spellings(name)))  # noqa: PTH113


def _folders(base: Path) -> list[Path]:
    """The folders in a folder, those with usual names for pictures first."""
    try:
        found = sorted(one for one in base.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError:
        return []
    return sorted(found, key=lambda one: one.name.lower() not in PLACES)[:50]


NAMED = 1_000
"""How many pictures of a split `check` looks for; `verify` looks for all."""


def data_problems(path: Path) -> tuple[list[Problem], list[str]]:
    """What is wrong with the data that a YAML declares and that no command fetches, each with its place; their names.

    Files that are not there, folders in their place, columns and pictures that rows lack, words that name no split.
    """
    from lavis_ext.common.config.check import load_checked
    from lavis_ext.common.config.resolve import config_roots

    tree, places = read_sections(path)
    if not tree.get("datasets") or path.resolve().is_relative_to(config_roots()[-1].resolve()):
        return [], []
    if "run" in tree:
        config = load_checked(path)
        configs, root = list(config.datasets.values()), Path(config.cache_root)
        decoder = ConfigDecoder(config.places)
    else:
        configs, root = [load_dataset_config(path, name) for name in tree["datasets"]], cache_root()
        decoder = ConfigDecoder(places)
    cards = load_cards()
    own = [config for config in configs if config.build_info.annotations and not cards.artifacts_of(config)]
    found = [problem for config in own for problem in _data_problems(config, BuildContext(root))]
    placed = [
        Problem(decoder.place(p.where), p.what, p.way_out) if p.where.startswith("datasets.") else p for p in found
    ]
    return placed, [config.name for config in own if config.data_type == "images"]


def _data_problems(config: DatasetConfig, context: BuildContext) -> Iterator[Problem]:
    where = f"datasets.{config.name}.build_info"
    config = with_storage_root(config)
    images = context.path(config.build_info.images.storage)
    store = ImageStore(images, layouts=config.args.get("layouts"))
    needs_folder = config.data_type == "images" and hasattr(builders.config(config.builder), "columns")
    if needs_folder and not store.ready:
        what = "is a file where a folder of pictures belongs" if images.is_file() else "is no folder"
        yield Problem(f"{where}.images.storage", f"{images} {what}", SOUGHT)
    for split in config.build_info.annotations:
        place = f"{where}.annotations.{split}"
        if meant := _meant_split(split):
            yield Problem(place, f"'{split}' is no split that is trained on", f"did you mean '{meant}'?")
        paths = annotation_paths(config, split, context)
        lost = [path for path in paths if not path.exists()]
        yield from (Problem(f"{place}.storage", f"{path} is not there", SOUGHT) for path in lost)
        if lost or not paths or not needs_folder:
            continue
        try:
            rows = Annotations(
                sort_files(paths, row_options(config, split, context.cache_root)).rows, home=context.cache_root
            )
        except LavisExtError as error:
            yield from error.problems
            continue
        if not len(rows):
            what = f"{', '.join(map(str, paths))} holds no rows" + (" and no pictures" if paths[0].is_dir() else "")
            yield Problem(f"{place}.storage", what, "name a file of rows, or a folder of pictures")
            continue
        problems = column_problems(config, split, rows)
        yield from problems
        if not problems and store.ready:
            yield from _row_problems(config, split, rows.head(NAMED), store)


SOUGHT = "correct the path: it is sought beside this YAML, then below the cache root; `~` and `${oc.env:NAME}` are read"


def _meant_split(word: str) -> str | None:
    """`train` for another word for it, or for a slip of the pen; None for every word that may be a split's name."""
    if word.lower() != "restval" and word != "train" and split_named(word) == "train":
        return "train"
    known = [split for split in SPLITS if sorted(split) == sorted(word) or get_close_matches(word, [split], cutoff=0.8)]
    return known[0] if known and word not in SPLITS and split_named(word) is None else None


def _row_problems(config: DatasetConfig, split: str, rows: Annotations, store: ImageStore) -> Iterator[Problem]:
    """A problem each for all pictures of rows that are lost or of no kind that is read, and for texts that are none.

    Empty texts count in training, and where they are more than the data set tolerates.
    """
    where = f"{', '.join(map(str, rows.paths))} ({config.name}/{split})"
    names = image_names(rows, config)
    of = f"of the first {len(names)} pictures of `{config.args.get('image_key', 'image')}`"
    if lost := [name for name in names if not store.exists(name)]:
        what = f"{len(lost)} {of} are not below {store.root}, first {lost[0]}"
        yield Problem(where, what, "correct `build_info: {images: {storage: …}}`, or leave these rows out")
    kinds = {name: Path(name).suffix.lower() for name in set(names).difference(lost)}
    if unread := sorted(name for name, kind in kinds.items() if kind in UNREAD):
        what = f"{len(unread)} {of} are of a kind that is not read here, first {unread[0]}"
        yield Problem(where, what, f"{UNREAD[kinds[unread[0]]]}, or leave these rows out")
    known = rows.keys()
    for argument, column in read_columns(config, split, known).items() if split == "train" else ():
        if argument == "image_key" or column not in known:
            continue
        empty = sum(not str("" if value is None else value).strip() or value == [] for value in rows.column(column))
        if empty > config.tolerance * len(rows):
            what = f"{empty} of the first {len(rows)} rows have no `{column}`; {config.tolerance:.2%} may fail"
            yield Problem(where, what, f"leave them out, or raise `datasets.{config.name}.tolerance`")
