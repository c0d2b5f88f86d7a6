"""Captions by image, one JSON a line, as volta's readers want them: `{"sentences": […], "id": …}`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.errors import IntegrityError, UsageError
from lavis_ext.features.files import disk_errors, read_errors, write_atomic
from lavis_ext.features.ids import key_of
from lavis_ext.features.volta.karpathy import read_karpathy
from lavis_ext.features.volta.names import FAMILY

SPLITS = {"train": ("train", "restval"), "valid": ("val",), "test": ("test",)}
"""volta's names of Karpathy's splits; `test1k` is a list of ids of its own."""
IDS = (
    f"{FAMILY}/test1k_ids.txt",
    "oscar/datasets/coco_ir/test_img_keys_1k.tsv",
    "vinvl/datasets/coco_ir/test_img_keys_1k.tsv",
)
"""Where the thousand images of test1k are listed: volta's file, and Oscar's with the same ids."""


@dataclass(frozen=True)
class Captions:
    """What was written: images, captions, and ids of the list that no image has."""

    path: Path
    images: int
    captions: int
    unknown: tuple[int, ...] = ()


def extract_captions(infile: Path, outdir: Path, split: str, root: Path, ids: Path | None = None) -> Captions:
    """Write `{split}_ann.jsonl` from `dataset_coco.json`, in the order of its images, train before restval.

    `ids` lists the images of test1k; without it the file is sought below `root`. Raises UsageError, IntegrityError,
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
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(_line(image, infile) for image in chosen).encode())
    return Captions(path, len(chosen), sum(len(image["sentences"]) for image in chosen), unknown)


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
        lines = path.read_text("utf-8").splitlines()
    try:
        return {int(key_of(line.split("\t")[0].strip())) for line in lines if line.strip()}
    except ValueError as error:
        raise IntegrityError(str(path), f"is no list of COCO's numbers ({error})", "one number a line") from error
