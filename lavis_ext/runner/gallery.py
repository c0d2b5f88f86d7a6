"""Keeps small pictures of what was described, with what was said and what people say, for the report of a run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis_ext.browse.gallery import choose, overlap
from lavis_ext.errors import LavisExtError
from lavis_ext.runner.files import write_json
from lavis_ext.tasks.base import first_by_id, merged_references, plain_id

log = logging.getLogger(__name__)
EDGE_PIXELS = 320
QUALITY = 78
Shot = dict[str, Any]


def write_gallery(rows: Sequence[Mapping[str, Any]], datasets: Sequence[Any], folder: Path, split: str) -> None:
    """Write `folder/index.json` and JPEGs of the best, the worst and other captions, in place of an older gallery.

    Only for rows of captions and data sets that know pictures and references; a picture that fails is left out.
    """
    known = [d for d in datasets if all(hasattr(d, name) for name in ("pixels", "row", "image_id", "references"))]
    if not known or not all("caption" in row and "image_id" in row for row in rows):
        return
    said = {row["image_id"]: str(row["caption"]) for row in first_by_id(map(dict, rows), "image_id")}
    truths = merged_references(known)
    names = sorted(said, key=str)
    groups = choose([overlap(said[name], truths.get(name, [])) for name in names])
    wanted = {names[index]: group for index, group in groups.items()}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shots = [
        {"id": name, "group": wanted[name], "said": said[name], "truths": truths.get(name, []), "image": file}
        | {"score": overlap(said[name], truths.get(name, []))}
        for name, file in pictures(known, wanted, folder)
    ]
    write_json(folder / "index.json", {"split": split, "shots": sorted(shots, key=rank)})


def rank(shot: Shot) -> tuple[float, str]:
    """Best first, but the worst of its group first."""
    return (shot["score"] if shot["group"] == "worst" else -shot["score"], str(shot["id"]))


def pictures(datasets: Sequence[Any], wanted: Mapping[Any, str], folder: Path) -> Iterator[tuple[Any, str]]:
    """Thumbnails of the wanted ids, written into `folder`: (id, file name)."""
    for dataset in datasets:
        for index in range(len(dataset)):
            row = dataset.row(index)
            name = plain_id(dataset.image_id(row))
            if name in wanted and (file := thumbnail(dataset, row, index, folder)):
                yield name, file


def thumbnail(dataset: Any, row: Mapping[str, Any], index: int, folder: Path) -> str:
    """The file name of a small JPEG of a sample; "" if the picture cannot be read."""
    file = f"{dataset.name}_{index}.jpg"
    try:
        pixels: np.ndarray = dataset.pixels(row, index)
        image = Image.fromarray(pixels)
        image.thumbnail((EDGE_PIXELS, EDGE_PIXELS))
        image.save(folder / file, quality=QUALITY)
    except (OSError, ValueError, LavisExtError) as error:
        log.warning("no picture of %s in the report: %s", index, error)
        return ""
    return file
