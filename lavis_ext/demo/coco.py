"""Photos with captions in the forms in which COCO 2014 and the Karpathy split are published."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.errors import IntegrityError, UsageError

IMAGES_URL = "http://images.cocodataset.org/zips"
KARPATHY_URL = "https://storage.googleapis.com/sfr-vision-language-research/datasets"
FOLDERS = ("train2014", "val2014", "test2014", "test2015")
RESTVAL_EVERY = 4
"""Every so manieth training photo lies in val2014: Karpathy's split trains on what it does not test on there."""


@dataclass(frozen=True)
class Photo:
    """One picture: its COCO id, its split (train, val, test, or hidden for one without captions) and its JPEG bytes."""

    id: int
    split: str
    captions: tuple[str, ...]
    read: Callable[[], bytes]


def export_photos(photos: Sequence[Photo], mirror: MirrorWriter) -> None:
    """Write the four image archives, the three Karpathy files and the two ground-truth files of COCOEvalCap."""
    folders = assign_folders(photos)
    for folder in FOLDERS:
        mirror.add_zip(f"{IMAGES_URL}/{folder}.zip", zip_members(folder, folders[folder]))
    home = {photo.id: folder for folder in ("train2014", "val2014") for photo in folders[folder]}
    records = {split: karpathy_records(photos, split, home) for split in ("train", "val", "test")}
    for split, rows in records.items():
        mirror.add_json(f"{KARPATHY_URL}/coco_karpathy_{split}.json", rows)
    for split in ("val", "test"):
        mirror.add_json(f"{KARPATHY_URL}/coco_karpathy_{split}_gt.json", ground_truth(photos, split))


def assign_folders(photos: Iterable[Photo]) -> dict[str, list[Photo]]:
    """Which photos lie in which of COCO's folders; test2015 holds the photos of test2014 again, as upstream."""
    folders: dict[str, list[Photo]] = defaultdict(list)
    trained = count(1)
    for photo in photos:
        if photo.split == "hidden":
            folders["test2014"].append(photo)
            folders["test2015"].append(photo)
        elif photo.split == "train" and next(trained) % RESTVAL_EVERY:
            folders["train2014"].append(photo)
        else:
            folders["val2014"].append(photo)
    return folders


def image_path(folder: str, photo_id: int) -> str:
    """`val2014/COCO_val2014_000000522418.jpg`."""
    return f"{folder}/COCO_{folder}_{photo_id:012d}.jpg"


def zip_members(folder: str, photos: Iterable[Photo]) -> Iterator[tuple[str, bytes]]:
    """The folder's own entry, then its photos, each read when its turn comes."""
    yield f"{folder}/", b""
    for photo in photos:
        yield image_path(folder, photo.id), photo.read()


def karpathy_records(photos: Iterable[Photo], split: str, home: dict[int, str]) -> list[dict[str, Any]]:
    """For train one record a caption (caption, image, image_id); else one an image with all its captions."""
    chosen = [photo for photo in photos if photo.split == split]
    if split == "train":
        return [
            {"caption": caption, "image": image_path(home[photo.id], photo.id), "image_id": f"coco_{photo.id}"}
            for photo in chosen
            for caption in photo.captions
        ]
    return [{"image": image_path(home[photo.id], photo.id), "caption": list(photo.captions)} for photo in chosen]


def ground_truth(photos: Iterable[Photo], split: str) -> dict[str, list[dict[str, Any]]]:
    """The form that COCOEvalCap reads: `annotations` (image_id, caption, id) and `images` (id)."""
    chosen = [photo for photo in photos if photo.split == split]
    pairs = [(photo.id, caption) for photo in chosen for caption in photo.captions]
    annotations = [{"image_id": owner, "caption": caption, "id": i} for i, (owner, caption) in enumerate(pairs, 1)]
    return {"annotations": annotations, "images": [{"id": photo.id} for photo in chosen]}


def export_coco_folder(folder: Path, mirror: MirrorWriter, splits: Sequence[float] = (0.7, 0.15, 0.15)) -> None:
    """Write a folder in COCO form (`images/`, `captions.json`) as a small COCO 2014 with a Karpathy split.

    `splits`: shares of train, val and test, in the order of the image ids. The photographs of test also stand in for
    COCO's hidden test images. Raises UsageError or IntegrityError where the folder is not in that form.
    """
    if len(splits) != 3 or min(splits) < 0 or not 0 < sum(splits) <= 1.0001:
        raise UsageError(
            "splits", f"{tuple(splits)} are not three shares", "give three numbers that add up to at most 1"
        )
    captions = read_captions(folder / "captions.json")
    names = sorted(captions)
    first, second = (round(len(names) * share) for share in (splits[0], splits[0] + splits[1]))
    last = round(len(names) * sum(splits))
    parts = {"train": names[:first], "val": names[first:second], "test": names[second:last]}
    photos = [folder_photo(folder, split, *key, captions[key]) for split, keys in parts.items() for key in keys]
    hidden = [Photo(p.id, "hidden", (), p.read) for p in photos if p.split == "test"]
    export_photos(photos + hidden, mirror)


def read_captions(path: Path) -> dict[tuple[int, str], list[str]]:
    """(image id, file name) → captions, from a file in COCO's captions form; images without captions are left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: (int(image["id"]), str(image["file_name"])) for image in content["images"]}
        found: dict[tuple[int, str], list[str]] = defaultdict(list)
        for annotation in content["annotations"]:
            found[names[annotation["image_id"]]].append(str(annotation["caption"]))
    except OSError as error:
        raise UsageError(
            str(path), error.strerror or "cannot be read", "name a folder with images/ and captions.json"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(str(path), f"not in COCO's captions form ({error!r})", "export it again") from error
    return dict(found)


def folder_photo(folder: Path, split: str, photo_id: int, name: str, captions: Sequence[str]) -> Photo:
    """A photo whose bytes are read from the folder; raises IntegrityError where the file is missing."""
    path = folder / "images" / Path(name).name
    if not path.is_file():
        raise IntegrityError(str(path), "captions.json names it, but it is not there", "complete the folder")
    return Photo(photo_id, split, tuple(captions), partial(path.read_bytes))
