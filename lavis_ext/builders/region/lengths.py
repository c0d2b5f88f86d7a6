"""How long samples on region features are, all of a split at once: from annotation columns and the stores' indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lavis_ext.readers.parse import Row

if TYPE_CHECKING:
    from lavis_ext.builders.region.base import RegionDataset
    from lavis_ext.builders.region.tables import TagTable

SIGNS = 3
"""[CLS] and two [SEP]."""
IMAGE_KEYS = ("img_id", "image_id")


def input_lengths(data: RegionDataset, words: np.ndarray) -> np.ndarray:
    """int32 [rows, 2]: regions of a record's images, and about how many tokens its `words` (int64 [rows]) become.

    A word is taken for a token: nothing is tokenised.
    """
    tokens = np.minimum(words + SIGNS, data.parts.encoder.max_seq_length)
    return np.stack([region_counts(data), tokens], 1).astype(np.int32)


def region_counts(data: RegionDataset) -> np.ndarray:
    """int64 [rows]: how many regions of a record's image are used, of two the larger number; 0 where there are none."""

    def most(row: Row) -> int:
        named = data.image_id(row)
        return max(data.parts.regions.count(one) for one in (named if isinstance(named, list) else [named]))

    return _by_image(data, most)


def tag_counts(data: RegionDataset, tags: TagTable) -> np.ndarray:
    """int64 [rows]: how many words the tags of a record's image have."""

    def words(row: Row) -> int:
        return len((tags.find(row["image_id"]) or "").split())

    return _by_image(data, words)


def _by_image(data: RegionDataset, count: Callable[[Row], int]) -> np.ndarray:
    """What `count` says of each record, asked once for each image."""
    rows = data.rows
    key = next((key for key in IMAGE_KEYS if rows.has(key)), None)
    if key is None:
        return np.zeros(len(rows), np.int64)
    codes = rows.codes(key)
    _, firsts = np.unique(codes, return_index=True)
    counts = np.array([count(rows[int(first)]) for first in firsts], np.int64)
    found: np.ndarray = counts[codes]
    return found
