"""Keeps small pictures of what was described, with what was said and what people say, for the report of a run."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis_ext.browse.run_report import choose, overlap
from lavis_ext.errors import LavisExtError
from lavis_ext.metrics.vqa import vqa_score
from lavis_ext.runner.files import write_json
from lavis_ext.tasks.answering import find_truth, plain_value
from lavis_ext.tasks.base import first_by_id, merged_references, plain_id

log = logging.getLogger(__name__)
EDGE_PIXELS = 320
QUALITY = 78
Shot = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What a model said of one picture, by the id that the data set's rows have under `key`."""

    said: str
    truths: Sequence[str]
    score: float


def write_gallery(
    rows: Sequence[Mapping[str, Any]], datasets: Sequence[Any], folder: Path, split: str, named: str | None = None
) -> None:
    """Write `folder/index.json` and JPEGs of the best, the worst and other samples, in place of an older gallery.

    Only for rows of captions or answers and data sets that know pictures and references (`named` is a file of
    answers); a picture that fails is left out.
    """
    answered = all("answer" in row and "question_id" in row for row in rows)
    needed = ("pixels", "row", "references", *(() if answered else ("image_id",)))
    known = [dataset for dataset in datasets if all(hasattr(dataset, name) for name in needed)]
    described = all("caption" in row and "image_id" in row for row in rows)
    if not known or not (answered or described) or not rows:
        return
    said = answers_said(rows, known, named) if answered else captions_said(rows, known)
    names = sorted(said, key=str)
    groups = choose([said[name].score for name in names])
    wanted = {names[index]: group for index, group in groups.items()}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shots = [
        {"id": name, "group": wanted[name], "image": file, **asked, **asdict(said[name])}
        for name, asked, file in pictures(known, wanted, folder, answered)
    ]
    write_json(folder / "index.json", {"split": split, "shots": sorted(shots, key=rank)})


def captions_said(rows: Sequence[Mapping[str, Any]], datasets: Sequence[Any]) -> dict[Any, Said]:
    """Captions by image id, with the share of words that they have in common with people's."""
    truths = merged_references(datasets)
    found = {row["image_id"]: str(row["caption"]) for row in first_by_id(map(dict, rows), "image_id")}
    return {name: Said(text, truths.get(name, []), overlap(text, truths.get(name, []))) for name, text in found.items()}


def answers_said(rows: Sequence[Mapping[str, Any]], datasets: Sequence[Any], named: str | None) -> dict[Any, Said]:
    """Answers by question id, with what they are worth; people's answers begin with the most frequent."""
    truth = find_truth(datasets, named).answers
    found: dict[Any, Said] = {}
    for row in rows:
        given = truth.get(row["question_id"], [])
        often = [answer for answer, _ in Counter(given).most_common()]
        found.setdefault(row["question_id"], Said(str(row["answer"]), often, vqa_score(str(row["answer"]), given)))
    return found


def rank(shot: Shot) -> tuple[float, str]:
    """Best first, but the worst of its group first."""
    return (shot["score"] if shot["group"] == "worst" else -shot["score"], str(shot["id"]))


def pictures(
    datasets: Sequence[Any], wanted: Mapping[Any, str], folder: Path, answered: bool
) -> Iterator[tuple[Any, Shot, str]]:
    """Thumbnails of the wanted ids, written into `folder`: (id, what was asked, file name)."""
    for dataset in datasets:
        for index in range(len(dataset)):
            row = dataset.row(index)
            name = plain_value(row.get("question_id", "")) if answered else plain_id(dataset.image_id(row))
            if name in wanted and (file := thumbnail(dataset, row, index, folder)):
                yield name, {"asked": str(row.get("question", ""))} if answered else {}, file


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
