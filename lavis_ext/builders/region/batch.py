"""Samples on region features become one batch: ids padded to the longest text, regions read into their places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.builders.region.regions import Place, Regions
from lavis_ext.types import Batch, Sample

Part = tuple[list[int], list[int], Place | Tensor]
"""One input: ids, types, and where its regions lie (or they themselves)."""


def inputs(samples: Sequence[Sample], regions: Regions, pad: int) -> Batch:
    """`input_ids`, `token_type_ids` int64 [N,T], `attention_mask` int64 [N,T+R], `img_feats` float32 [N,R,D].

    N inputs of B samples: a sample of two inputs (lists under the same keys) gives two. T and R are the longest that
    there are; R is 1 at least.
    """
    parts = [part for sample in samples for part in parts_of(sample)]
    ids, types = pad_rows((part[0] for part in parts), pad), pad_rows((part[1] for part in parts), 0)
    text = mask_rows([len(part[0]) for part in parts])
    feats, seen = region_rows([part[2] for part in parts], regions)
    mask = torch.cat([text, seen], 1)
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask, "img_feats": feats}


def parts_of(sample: Sample) -> Iterable[Part]:
    """The one input of a sample, or its two."""
    ids, types = sample["input_ids"], sample["token_type_ids"]
    place: Any = sample.get("regions", sample.get("img_feats"))
    if ids and isinstance(ids[0], list):
        return list(zip(ids, types, place, strict=True))
    return [(ids, types, place)]


def pad_rows(rows: Iterable[Sequence[int]], pad: int) -> Tensor:
    """Lists of numbers as int64 [N, longest], filled up with `pad`."""
    known = list(rows)
    columns = list(zip_longest(*known, fillvalue=pad))
    return torch.tensor(columns, dtype=torch.int64).view(-1, len(known)).T.contiguous()


def mask_rows(counts: Sequence[int], least: int = 0) -> Tensor:
    """int64 [N, largest count]: ones, then zeros."""
    width = max([least, *counts])
    return (torch.arange(width) < torch.tensor(counts)[:, None]).long()


def region_rows(places: Sequence[Place | Tensor], regions: Regions) -> tuple[Tensor, Tensor]:
    """Features float32 [N,R,D] and their mask int64 [N,R]; each image is copied once, from its store to its place."""
    counts = [place.size if isinstance(place, Place) else len(place) for place in places]
    mask = mask_rows(counts, least=1)
    out = np.empty((len(places), mask.shape[1], regions.columns), np.float32)
    for place, rows in zip(places, out, strict=True):
        if isinstance(place, Place):
            regions.read_into(place, rows)
        else:
            rows[: len(place)] = place.numpy()
            rows[len(place) :] = 0
    return torch.from_numpy(out), mask


def listed(samples: Sequence[Sample], keys: Iterable[str]) -> dict[str, list[Any]]:
    """Those of the keys that all samples have, as lists of length B."""
    return {key: [one[key] for one in samples] for key in keys if all(key in one for one in samples)}  # type: ignore[literal-required]


def soft_targets(samples: Sequence[Sample], classes: int) -> Tensor:
    """float32 [B, classes]: the scores of each sample's `targets` at its classes, else 0."""
    out = torch.zeros(len(samples), classes)
    for row, sample in zip(out, samples, strict=True):
        places, scores = sample["targets"]
        row[places] = torch.tensor(scores)
    return out
