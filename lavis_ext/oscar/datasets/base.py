"""The base of data sets on region features, and what they share: batches, lengths of samples, masking of words.

A sample holds the place of an image's regions; the features are read into the batch by `collater`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.errors import UsageError
from lavis_ext.common.types import Batch, Sample
from lavis_ext.datasets.datasets.base_dataset import BaseDataset
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.parse import Row
from lavis_ext.features.vocabulary import LabelVocabulary
from lavis_ext.oscar.datasets.opening import RegionParts
from lavis_ext.oscar.datasets.regions import RegionPlace, RegionStores
from lavis_ext.oscar.wordpiece import WordPiece

if TYPE_CHECKING:
    from lavis_ext.oscar.datasets.regions import TagTable

Part = tuple[list[int], list[int], RegionPlace | Tensor]
"""One input: ids, types, and the place of its regions, or the regions themselves."""


def inputs(samples: Sequence[Sample], regions: RegionStores, pad: int) -> Batch:
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


def region_rows(places: Sequence[RegionPlace | Tensor], regions: RegionStores) -> tuple[Tensor, Tensor]:
    """Features float32 [N,R,D] and their mask int64 [N,R]; each image is copied once, from its store to its place."""
    counts = [place.size if isinstance(place, RegionPlace) else len(place) for place in places]
    mask = mask_rows(counts, least=1)
    out = np.empty((len(places), mask.shape[1], regions.columns), np.float32)
    for place, rows in zip(places, out, strict=True):
        if isinstance(place, RegionPlace):
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


@dataclass(frozen=True, eq=False)
class RegionDataset(BaseDataset):
    """Rows of one split with regions; a shape says in `fields` what a sample holds. Picklable."""

    parts: RegionParts
    ids: ClassVar[tuple[str, ...]] = ("question_id", "image_id", "instance_id")
    """Keys of a sample that a batch has as lists."""

    @property
    def labels(self) -> LabelVocabulary | None:
        """The vocabulary of answers in the order of the classes; None where there is none."""
        return self.parts.labels

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """int32 [len, axes]: regions and about how many tokens, a column for each part that is padded alone; or None.

        No features are read, and nothing is tokenised; shapes with random samples have none.
        """
        found = self.measured()
        return None if found is None else found[: len(self)]

    def length(self, index: int) -> int:
        """Regions and tokens of a sample together, about; 0 where that is not known."""
        return 0 if self.lengths is None else int(self.lengths[self.position(index)].sum())

    def measured(self) -> np.ndarray | None:
        """`lengths` before `max_samples` cuts them; None where a shape does not know them."""
        return None

    @property
    def pad(self) -> int:
        """What texts are filled up with."""
        return self.parts.encoder.words.pad

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """A sample: `input_ids`, `token_type_ids` (lists), `regions` (one RegionPlace or two), keys of the shape."""
        raise NotImplementedError

    def page_view(self) -> Any:
        """How `browse` shows a split: texts and tags, boxes drawn on the picture or on grey."""
        # pages.py imports this module, and only `browse` needs it (and Pillow)
        from lavis_ext.oscar.datasets.pages import RegionView

        return RegionView(self)

    def load(self, index: int, rng: torch.Generator) -> Sample:
        """The sample with `regions`, the place of its features, all randomness from `rng`. Raises SampleError.

        No features are copied: the kernel is advised to fetch the rows, and `collater` reads them into the batch.
        """
        sample = self.fields(self.row(index), index, rng)
        for place in _places(sample):
            self.parts.regions.will_need(place)
        return sample

    def __getitem__(self, index: int) -> Sample:
        """The sample with `img_feats` float32 [n,D] (or two of them) instead of `regions`. Raises SampleError."""
        sample = self.fields(self.row(index), index, None)
        feats = [torch.from_numpy(self.parts.regions.array(place)) for place in _places(sample)]
        several = "regions" in sample and not isinstance(sample.pop("regions"), RegionPlace)
        if feats:
            sample["img_feats"] = feats if several else feats[0]
        return sample

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch: inputs padded to the longest, ids as lists; see `inputs`."""
        return {**inputs(samples, self.parts.regions, self.pad), **listed(samples, self.ids)}

    def place(self, image_id: Any, index: int, among: Sequence[int] | None = None) -> RegionPlace:
        """The place of an image's regions (in the stores `among`); raises SampleError where there are none."""
        if not isinstance(image_id, (str, int)):
            raise self.fault(index, f"image id is missing: {image_id!r}")
        try:
            return self.parts.regions.find(image_id, among)
        except UsageError as error:
            problem = error.problems[0]
            raise SampleError(self.sample_id(index), problem.where, f"no features: {problem.what}") from error

    def text(self, row: Row, key: str, index: int) -> str:
        """A text of a row; raises SampleError where there is none."""
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(index, f"{key} is missing or empty")
        return value

    def image_id(self, row: Row) -> Any:
        """The id of a row's image (of a pair, the left one's)."""
        return row.get("img_id", row.get("image_id"))

    def images_of(self, row: Row, index: int) -> list[tuple[Any, RegionPlace]]:
        """The image ids of a sample, and the places of their regions; raises SampleError."""
        named = self.image_id(row)
        return [(image_id, self.place(image_id, index)) for image_id in (named if isinstance(named, list) else [named])]

    def displ_item(self, index: int) -> OrderedDict[str, Any]:
        """What a browser shows of a sample: its record (LAVIS' method)."""
        return OrderedDict(self.row(index))


def _places(sample: Sample) -> list[RegionPlace]:
    found = sample.get("regions", ())
    return [found] if isinstance(found, RegionPlace) else list(found)


def stacked(tensor: Tensor, count: int) -> Tensor:
    """[N·count, …] as [N, count, …]: the inputs of each sample together."""
    return tensor.view(-1, count, *tensor.shape[1:])


SIGNS = 3
"""[CLS] and two [SEP]."""
IMAGE_KEYS = ("img_id", "image_id")


def input_lengths(data: RegionDataset, words: np.ndarray) -> np.ndarray:
    """int32 [rows, 2]: regions of a record's images, and about how many tokens its `words` (int64 [rows]) become.

    A word counts as a token: nothing is tokenised.
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
    """`count` of each record, called once for each image."""
    rows = data.rows
    key = next((key for key in IMAGE_KEYS if rows.has(key)), None)
    if key is None:
        return np.zeros(len(rows), np.int64)
    codes = rows.codes(key)
    _, firsts = np.unique(codes, return_index=True)
    counts = np.array([count(rows[int(first)]) for first in firsts], np.int64)
    found: np.ndarray = counts[codes]
    return found


KEEP, REPLACE = 0.9, 0.8
"""BERT's 80 % [MASK], 10 % any word, 10 % unchanged: a draw below 0.8 masks a word, one below 0.9 replaces it."""


def choose_positions(candidates: Sequence[int], count: int, rng: torch.Generator | None) -> list[int]:
    """`count` of the candidates, uniformly sampled, in ascending order."""
    order = torch.randperm(len(candidates), generator=rng)[:count].tolist()
    return sorted(candidates[number] for number in order)


def hide(ids: Sequence[int], positions: Sequence[int], words: WordPiece, rng: torch.Generator | None) -> list[int]:
    """The ids with those at `positions` hidden (Devlin et al., arXiv:1810.04805, §3.1)."""
    hidden = list(ids)
    kinds = torch.rand(len(positions), generator=rng).tolist()
    others = torch.randint(len(words), (len(positions),), generator=rng).tolist()
    for position, kind, other in zip(positions, kinds, others, strict=True):
        if kind < KEEP:
            hidden[position] = words.mask if kind < REPLACE else other
    return hidden
