"""A folder of region features as VinVL publishes it: features, predictions, and what a row of either is found by."""

from __future__ import annotations

from collections.abc import Iterable

from tests.world.oscar.forms import Images, Members, as_json, below, offsets, prediction_rows, table, wide_rows
from tests.world.regions import X152C4


def feature_folder(images: Images, numbered: bool = True) -> Members:
    """`features.tsv` and `predictions.tsv` with their `.lineidx`; `imageid2idx.json` with row numbers if `numbered`."""
    yield from table("features", wide_rows(images, X152C4))
    yield from table("predictions", prediction_rows(images, X152C4))
    if numbered:
        yield "imageid2idx.json", row_numbers(images)


def row_numbers(ids: Iterable[str]) -> bytes:
    """`imageid2idx.json` or `QA_qaid2idx.json`: id → number of its row, from 0."""
    return as_json({name: number for number, name in enumerate(ids)})


def chunked_folder(images: Images, chunks: int) -> Members:
    """The images shared out among folders `0`, `1` … of features."""
    for number, part in enumerate(shared(images, chunks)):
        yield from below(str(number), feature_folder(part))


def shared(images: Images, chunks: int) -> list[Images]:
    """Parts of the images, each a run of their order."""
    names = list(images)
    size = -(-len(names) // chunks)
    return [{name: images[name] for name in names[at * size : (at + 1) * size]} for at in range(chunks)]


def offset_table(stem: str, images: Images) -> Members:
    """`STEM.tsv` of features, and `STEM_offset_map.json`: image id → byte offset of its row."""
    rows = list(wide_rows(images, X152C4))
    yield f"{stem}.tsv", b"".join(rows)
    yield f"{stem}_offset_map.json", as_json(dict(zip(images, offsets(rows), strict=True)))
