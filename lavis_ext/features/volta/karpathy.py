"""Karpathy's `dataset_coco.json`: read as it is, or made from the caption files that family coco declares.

The original host is gone (cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip). What is made has the
same images, splits and captions. It differs in the order of the images (train2014 by id, then val2014 by id) and in the
running numbers `imgid` and `sentid` that follow from it; `restval` is what is trained on and lies in val2014.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from lavis_ext.errors import IntegrityError, UsageError
from lavis_ext.features.files import disk_errors, read_errors, write_atomic
from lavis_ext.features.ids import key_of

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
        for place, captions in _captions(path):
            image = images.setdefault(place, {"split": split, "captions": []})
            image["captions"] += captions
    made = _numbered([(place, images[place]) for place in sorted(images)])
    text = json.dumps({"images": made, "dataset": "coco"}, ensure_ascii=True)
    with disk_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(destination, text.encode())
    return len(made)


def _captions(path: Path) -> Iterable[tuple[tuple[str, int], list[str]]]:
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
        text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:
        raise IntegrityError(str(path), f"is no JSON: {error}", "fetch it again") from error
