"""Records as their authors publish them become LAVIS' records: GQA, Visual Genome, NLVR2 and lists of COCO images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]
Form = Callable[[Row], Iterator[Row]]


def canonical_rows(rows: list[Row]) -> list[Row]:
    """The rows in LAVIS' form; those of a form that is not known here, or that are so already, as they are."""
    form = next((form for keys, form in FORMS if rows and keys <= rows[0].keys()), None)
    return rows if form is None else [made for row in rows for made in form(row)]


def image_rows(images: list[Any]) -> list[Row]:
    """One row a picture from the `images` of a COCO file without annotations (NoCaps' test split)."""
    return [image_fields(image) for image in images if isinstance(image, dict) and "file_name" in image]


def image_fields(image: Row) -> Row:
    """What a row takes over from its record in `images`: the name, and NoCaps' `img_id`, `domain` and `coco_url`."""
    more = {"img_id": image["id"]} if "open_images_id" in image else {}
    return {"image": image["file_name"], **more, **{key: image[key] for key in ("domain", "coco_url") if key in image}}


def _gqa(row: Row) -> Iterator[Row]:
    """GQA's record by question id (https://cs.stanford.edu/people/dorarad/gqa/download.html)."""
    kept: Row = {key: row[key] for key in ("question", "answer") if key in row}
    yield {"question_id": row.get("question_id", row.get("sample_id")), "image": f"{row['imageId']}.jpg", **kept}


def _genome_questions(row: Row) -> Iterator[Row]:
    """Visual Genome's `question_answers.json`: all questions of a picture in one record."""
    for qa in row["qas"]:
        image = f"{qa.get('image_id', row.get('id'))}.jpg"
        yield {"question_id": qa["qa_id"], "image": image, "question": qa["question"], "answer": qa["answer"]}


def _genome_regions(row: Row) -> Iterator[Row]:
    """Visual Genome's `region_descriptions.json`: all phrases of a picture in one record."""
    for region in row["regions"]:
        number = region.get("image_id", row.get("id"))
        yield {"image": f"{number}.jpg", "caption": region["phrase"], "image_id": f"vg_{number}"}


def _nlvr2(row: Row) -> Iterator[Row]:
    """NLVR2's record (https://github.com/lil-lab/nlvr): `dev-850-0-1` is a sentence about `dev-850-0-img{0,1}.png`."""
    pair = row["identifier"].rpartition("-")[0]
    folder = row["identifier"].partition("-")[0] + (f"/{row['directory']}" if "directory" in row else "")
    images = [f"{folder}/{pair}-img{side}.png" for side in (0, 1)]
    label = {"label": str(row["label"])} if "label" in row else {}
    yield {"images": images, "sentence": row["sentence"], **label, "identifier": row["identifier"]}


FORMS: list[tuple[frozenset[str], Form]] = [
    (frozenset({"imageId", "question"}), _gqa),
    (frozenset({"qas"}), _genome_questions),
    (frozenset({"regions"}), _genome_regions),
    (frozenset({"identifier", "sentence", "left_url"}), _nlvr2),
]
"""Keys by which the first record tells its form, and what makes LAVIS' rows of one record."""
