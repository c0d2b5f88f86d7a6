"""The COCO side of volta's pipeline: Karpathy's `dataset_coco.json`, volta's folders, its caption files, the download.

Karpathy's original host is gone (cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip), so that the file
is read where it is there, and else made from the caption files of family coco. What is made has the same images, splits
and captions. It differs in the order of the images (train2014 by id, then val2014 by id) and in the running numbers
`imgid` and `sentid` that follow from it; `restval` are training images out of val2014.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lavis_ext.common.config.cards import Cards, load_cards
from lavis_ext.common.errors import IntegrityError, NetworkError, UsageError
from lavis_ext.common.files import decode_json, disk_errors, read_errors, read_file, write_atomic
from lavis_ext.features.layout import key_of
from lavis_ext.fetch.transfer import Progress
from lavis_ext.prepare import PrepareOptions, prepare
from lavis_ext.prepare.records import read_record
from lavis_ext.prepare.report import Report, worst

SOURCES = {"train": "train", "val": "val", "test": "test"}
KARPATHY = "coco/annotations/coco_karpathy_{}.json"
_WORD = re.compile(r"[^\W_]+")


def tokens_of(caption: str) -> list[str]:
    """Runs of letters and digits in lower case: `cloud-wreathed` is two words, as in the original's first image.

    What the original makes of an apostrophe is not known here; `man's` becomes `man`, `s`.
    """
    return _WORD.findall(caption.lower())


def read_karpathy(path: Path) -> list[dict[str, Any]]:
    """The images of a `dataset_coco.json`; raises UsageError where there is none, IntegrityError for another file."""
    if not path.is_file():
        raise UsageError(str(path), "is not there", "run download_data.py, or `lavis-ext volta captions --infile FILE`")
    images = _load(path)
    images = images.get("images") if isinstance(images, dict) else None
    needed = {"cocoid", "split", "sentences"}
    if not isinstance(images, list) or not all(isinstance(one, dict) and needed <= one.keys() for one in images):
        what = "is no dataset_coco.json: it holds no images with cocoid, split and sentences"
        raise IntegrityError(str(path), what, "name the file out of caption_datasets.zip")
    return images


def build_karpathy(root: Path, destination: Path) -> int:
    """Write `dataset_coco.json` from the three caption files of family coco; the same files give the same bytes.

    Returns how many images it holds. Raises UsageError where one of the files is not there, IntegrityError where one
    is of another form, DiskError.
    """
    images: dict[tuple[str, int], dict[str, Any]] = {}
    for split in SOURCES:
        path = root / KARPATHY.format(split)
        if not path.is_file():
            raise UsageError(str(path), "is not there", "run `lavis-ext prepare 'coco/karpathy_*'`")
        for place, captions in _karpathy_captions(path):
            image = images.setdefault(place, {"split": split, "captions": []})
            image["captions"] += captions
    made = _numbered([(place, images[place]) for place in sorted(images)])
    text = json.dumps({"images": made, "dataset": "coco"}, ensure_ascii=True)
    with disk_errors(destination):
        write_atomic(destination, text)
    return len(made)


def _karpathy_captions(path: Path) -> Iterable[tuple[tuple[str, int], list[str]]]:
    """(folder, id) of each record's image, and its captions: one in the file of train, a list in the others."""
    records = _load(path)
    try:
        for record in records:
            image = PurePosixPath(record["image"])
            captions = record["caption"]
            place = (image.parent.name, int(key_of(image.name)))
            yield place, [captions] if isinstance(captions, str) else [str(one) for one in captions]
    except (KeyError, TypeError, ValueError) as error:
        what = f"has a record without image, caption or COCO's number ({error!r})"
        raise IntegrityError(str(path), what, "fetch it again with `lavis-ext prepare 'coco/karpathy_*'`") from error


def _numbered(images: Iterable[tuple[tuple[str, int], dict[str, Any]]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    sentid = 0
    for imgid, ((folder, cocoid), image) in enumerate(images):
        split = "restval" if image["split"] == "train" and folder.startswith("val") else image["split"]
        sentences = [
            {"tokens": tokens_of(raw), "raw": raw, "imgid": imgid, "sentid": sentid + number}
            for number, raw in enumerate(image["captions"])
        ]
        sentids = [sentence["sentid"] for sentence in sentences]
        sentid += len(sentences)
        name = f"COCO_{folder}_{cocoid:012d}.jpg"
        head = {"filepath": folder, "sentids": sentids, "filename": name, "imgid": imgid, "split": split}
        made.append({**head, "sentences": sentences, "cocoid": cocoid})
    return made


def _load(path: Path) -> Any:
    with read_errors(path):
        text = read_file(path)
    try:
        return decode_json(text)
    except ValueError as error:
        raise IntegrityError(str(path), f"is no JSON: {error}", "fetch it again") from error


# Names of folders and files are looked for in two forms (github.com/e-bug/volta, data/mscoco): volta's document has
# `train_obj36-36.tsv` in `resnet101_faster_rcnn_genome_imgfeats/`, its scripts `train2014_obj36-36.tsv` in `imgfeats/`.

FAMILY = "mscoco"
FOLDERS = {"train": "train2014", "valid": "val2014", "test": "test2015"}
"""The folder of pictures of each split of features."""
TOGETHER = {"trainval": ("train", "valid"), "test": ("test",)}
"""The splits that each LMDB holds."""
FEATURES = ("resnet101_faster_rcnn_genome_imgfeats", "imgfeats")
BOXES = (36, 36)


def feature_folder(root: Path) -> Path:
    """`mscoco/resnet101_faster_rcnn_genome_imgfeats` below the cache root, or `mscoco/imgfeats` where that is there."""
    folders = [root / FAMILY / name for name in FEATURES]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def rows_name(split: str, boxes: tuple[int, int] = BOXES) -> str:
    """`train2014_obj36-36.tsv`, as the scripts call it."""
    return f"{FOLDERS[split]}_obj{boxes[0]}-{boxes[1]}.tsv"


def link_rows(path: Path, split: str) -> str:
    """Link the document's name of merged rows (`train_obj36-36.tsv`) to the scripts'; a line to print, "" for none."""
    name = path.with_name(path.name.replace(FOLDERS[split], split, 1))
    if name == path or name.exists() or name.is_symlink():
        return ""
    try:
        name.symlink_to(path.name)
    except OSError as error:
        return f"{name}: no link to {path.name} could be made ({error.strerror}); both names are found"
    return f"{name} is a link to {path.name}"


def find_rows(folder: Path, split: str, boxes: tuple[int, int] = BOXES) -> Path:
    """The merged rows of a split under either of their names; raises UsageError that names both."""
    names = [rows_name(split, boxes), f"{split}_obj{boxes[0]}-{boxes[1]}.tsv"]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        what = f"holds neither {names[0]} nor {names[1]}"
        raise UsageError(str(folder), what, f"run merge_coco_image.py --split {split}, or name its folder")
    return found


def find_serialised(root: Path, split: str) -> Path | None:
    """What `convert_coco_lmdb.py` made of `trainval` or `test`: the store, else the LMDB; None without either."""
    for folder in (root / FAMILY / name / "volta" for name in FEATURES):
        for name in (f"{split}_feat.store", f"{split}_feat.lmdb"):
            if (folder / name).is_dir():
                return folder / name
    return None


SPLITS = {"train": ("train", "restval"), "valid": ("val",), "test": ("test",)}
"""volta's names of Karpathy's splits; `test1k` is a list of ids of its own."""
IDS = (
    f"{FAMILY}/test1k_ids.txt",
    "oscar/datasets/coco_ir/test_img_keys_1k.tsv",
    "vinvl/datasets/coco_ir/test_img_keys_1k.tsv",
)
"""Where the thousand images of test1k are listed: volta's file, and Oscar's with the same ids."""


@dataclass(frozen=True)
class CaptionSummary:
    """The file that was written: its images and captions, and the listed ids that no image has."""

    path: Path
    images: int
    captions: int
    unknown: tuple[int, ...] = ()


def extract_captions(infile: Path, outdir: Path, split: str, root: Path, ids: Path | None = None) -> CaptionSummary:
    """Write `{split}_ann.jsonl`, `{"sentences", "id"}` a line, from `dataset_coco.json`, train before restval.

    `ids` lists the images of test1k; without it the list is looked for below `root`. Raises UsageError, IntegrityError,
    DiskError.
    """
    images = read_karpathy(infile)
    unknown: tuple[int, ...] = ()
    if split == "test1k":
        wanted = read_ids(ids or find_ids(root, infile.parent))
        chosen = [image for image in images if int(image["cocoid"]) in wanted]
        unknown = tuple(sorted(wanted - {int(image["cocoid"]) for image in chosen}))
    else:
        chosen = [image for name in SPLITS[split] for image in images if image["split"] == name]
    path = outdir / f"{split}_ann.jsonl"
    lines = "".join(_line(image, infile) for image in chosen)
    with disk_errors(path):
        write_atomic(path, lines)
    return CaptionSummary(path, len(chosen), sum(len(image["sentences"]) for image in chosen), unknown)


def _line(image: dict[str, Any], infile: Path) -> str:
    try:
        record = {"sentences": [sentence["raw"] for sentence in image["sentences"]], "id": image["cocoid"]}
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{infile}, image {image['cocoid']}", f"has a sentence without {error}", "") from error
    return json.dumps(record, ensure_ascii=False) + "\n"


def find_ids(root: Path, near: Path) -> Path:
    """The list of test1k: `test1k_ids.txt` here or beside the annotations, else Oscar's; raises UsageError."""
    places = [Path("test1k_ids.txt"), near / "test1k_ids.txt", *(root / place for place in IDS)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        way_out = "run `lavis-ext prepare mscoco/test1k_ids`, or name a list with --ids"
        raise UsageError("test1k", f"its ids are in none of {', '.join(map(str, places[1:]))}", way_out)
    return found


def read_ids(path: Path) -> set[int]:
    """COCO's numbers, one a line, first column; raises IntegrityError."""
    with read_errors(path):
        lines = read_file(path).decode("utf-8").splitlines()
    try:
        return {int(key_of(line.split("\t")[0].strip())) for line in lines if line.strip()}
    except ValueError as error:
        raise IntegrityError(str(path), f"is no list of COCO's numbers ({error})", "one number a line") from error


PUBLISHED = 123_287
"""Images of the published `dataset_coco.json`."""
CAPTIONS = f"{FAMILY}/caption_datasets"
INSTEAD = "coco/karpathy_*"
"""Fetched where Karpathy's archive cannot be."""
LISTS = (f"{FAMILY}/test1k_ids", f"{FAMILY}/hard_negative")
Outcome = tuple[list[str], list[dict[str, Any]], int]
"""Lines to print, reports as plain values, exit code."""


def download(options: PrepareOptions, root: Path, progress: Progress) -> Outcome:
    """Fetch what volta's pipeline begins with, link COCO's pictures into its tree, and make what cannot be fetched.

    `dataset_coco.json` comes out of Karpathy's archive, else it is made from the caption files of family coco. Raises
    what `prepare` raises; the exit code is that of its worst failure, without the archive's where its file was made.
    """
    cards = load_cards()
    if options.dry_run:
        captions = [] if _is_users(root, cards) else [CAPTIONS]
        wanted, kept = missing_pictures(root, cards)
        report, why = _fetched([*captions, *LISTS, *wanted], options, cards, progress)
        if report is None:
            return [*kept, why], [], 0
        return [*kept, *report.plan.table().splitlines(), report.line()], [report.as_dict()], report.exit_code
    reports, lines = _fetch_captions(root, replace(options, no_unpack=False), cards, progress)
    wanted, kept = missing_pictures(root, cards)
    rest, why = _fetched([*LISTS, *wanted], options, cards, progress)
    reports += [rest] if rest else []
    lines += [
        *kept,
        *([] if rest else [why]),
        *(line for report in reports for line in report.lines()),
        *link_pictures(root),
    ]
    failures = [error for report in reports for error in report.failures]
    return lines, [report.as_dict() for report in reports], worst(failures)


def _fetch_captions(
    root: Path, options: PrepareOptions, cards: Cards, progress: Progress
) -> tuple[list[Report], list[str]]:
    """`dataset_coco.json`: kept, fetched, else made; the reports that count, and lines to print."""
    path = root / FAMILY / "dataset_coco.json"
    if _is_users(root, cards):
        return [], [f"{path} is kept"]
    fetched, why = _fetched([CAPTIONS], options, cards, progress)
    if fetched and not fetched.failures:
        return [fetched], []
    instead = prepare([INSTEAD], options, progress, cards=cards)
    if instead.failures:
        return [*([fetched] if fetched else []), instead], []
    made = build_karpathy(root, path)
    return [instead], [f"{path} is made from coco's caption files, {made:,} images, because of {CAPTIONS}: {why}"]


def _is_users(root: Path, cards: Cards) -> bool:
    """Whether `dataset_coco.json` is there without a record of ours: it was put there, or made."""
    path = root / FAMILY / "dataset_coco.json"
    return path.is_file() and read_record(root, cards.named_artifacts(CAPTIONS)[0]) is None


def missing_pictures(root: Path, cards: Cards) -> tuple[list[str], list[str]]:
    """The folders of pictures that are to be fetched, as artifacts, and a line about each that somebody put there.

    A folder is whole by the pictures that `dataset_coco.json` lists of it; test2015, of which it lists none, by their
    published number, or where the list is not the published one (a part of COCO) as it is.
    """
    listed: dict[str, set[str]] = {}
    if (root / FAMILY / "dataset_coco.json").is_file():
        for image in read_karpathy(root / FAMILY / "dataset_coco.json"):
            name = str(image.get("filename") or f"COCO_{image.get('filepath')}_{int(image['cocoid']):012d}.jpg")
            listed.setdefault(str(image.get("filepath")), set()).add(name)
    part = 0 < sum(map(len, listed.values())) < PUBLISHED
    wanted, lines = [], []
    for folder in FOLDERS.values():
        artifact = cards.named_artifacts(f"coco/{folder}")[0]
        place = _put_there(root, folder)
        if place is None or read_record(root, artifact) is not None:
            wanted.append(f"coco/{folder}")
            continue
        if place.is_file():
            lines.append(f"{place} is kept, and read as it is")
            continue
        there = {entry.name for entry in os.scandir(place)}
        known = listed.get(folder, set())
        expected = len(known) or (len(there) if part else artifact.unpacked_files or 0)
        found = len(known & there) if known else len(there)
        if found < expected:
            wanted.append(f"coco/{folder}")
            lines.append(f"{place} has {found:,} of {expected:,} pictures; the archive is fetched")
        else:
            lines.append(f"{place} is kept, {len(there):,} pictures")
    return wanted, lines


def _put_there(root: Path, folder: str) -> Path | None:
    """A folder of pictures, or a zip of them below mscoco (coco's own are known to `prepare`); None without any."""
    for family in (FAMILY, "coco"):
        place = root / family / "images" / folder
        if place.is_dir() and any(os.scandir(place)):
            return place
    archive = root / FAMILY / "images" / f"{folder}.zip"
    own = (root / FAMILY / "images").is_symlink()
    return archive if archive.is_file() and not own else None


def _fetched(names: list[str], options: PrepareOptions, cards: Cards, progress: Progress) -> tuple[Report | None, str]:
    """The report of what is fetched, None where a mirror lists nothing of it, and why there is nothing."""
    try:
        report = prepare(names, options, progress, cards=cards)
    except NetworkError as error:
        if any(name.startswith("coco/") for name in names):
            raise  # pictures cannot be done without
        return None, error.problems[0].what
    return report, report.failures[0].problems[0].what if report.failures else ""


def link_pictures(root: Path) -> list[str]:
    """Link `mscoco/images` to `coco/images`, so that pictures are on the disk once; nothing where the former exists."""
    place, pictures = root / FAMILY / "images", root / "coco" / "images"
    if place.exists() or place.is_symlink() or not pictures.is_dir():
        return []
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(Path("..", "coco", "images"), target_is_directory=True)
    except OSError as error:
        return [f"{place}: no link to {pictures} could be made ({error.strerror}); the steps find the pictures there"]
    return [f"{place} is a link to {pictures}"]
