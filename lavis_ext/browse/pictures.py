"""Looks at each distinct picture of splits once: is it there, is it whole, how large is it, and which are the same.

Two pictures count as the same where their difference hashes agree but for `BITS` of 64, and their 12 × 12 miniatures in
each cell and colour but for `LEVELS` of 255: another compression or size of a picture is found, a crop is not, nor is a
mirrored one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from lavis_ext.browse.views import Item, View, choose
from lavis_ext.datasets.readers.decode import decode_rgb
from lavis_ext.datasets.readers.faults import SampleError

UNKNOWN, WHOLE, MISSING, CORRUPT = range(4)
BITS, LEVELS = 6, 20
"""Of 80 photographs beside themselves at quality 60 and half the size, and at quality 75 and 0.37 of it, the worst
differed by 3 bits and 11 levels; of two different ones the nearest by 15 bits and 105 levels."""
EDGE = 12
MINI = 3 * EDGE * EDGE
FLAT = 3
"""Neighbours in a row of the miniature that differ by less than this have the bit 0: noise decides nothing."""
WINDOW = 32
"""Pictures that share a quarter of their hash are compared with this many neighbours by brightness."""
KEPT_REASONS = 1_000


@dataclass
class Look:
    """The distinct pictures of one split, and what was found of each; arrays are by the picture's number."""

    view: View
    codes: np.ndarray
    """int32 [samples, k], see `View.picture_codes`."""
    first: np.ndarray
    """int64 [pictures]: where each stands first in `codes`, flat."""
    state: np.ndarray
    size: np.ndarray
    """int32 [pictures, 2]: width and height, 0 where not known."""
    mark: np.ndarray
    """uint64 [pictures]: the difference hash."""
    mini: np.ndarray
    """uint8 [pictures, 432]: the miniature."""
    reasons: dict[int, str] = field(default_factory=dict)
    why: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, view: View) -> Look:
        """Nothing looked at yet."""
        codes = view.picture_codes()
        flat = codes.reshape(-1)
        known, first = np.unique(flat, return_index=True)
        first = first[known >= 0]
        count = len(first)
        arrays = (np.zeros(count, np.uint8), np.zeros((count, 2), np.int32), np.zeros(count, np.uint64))
        return cls(view, codes, first, *arrays, np.zeros((count, MINI), np.uint8))

    def __len__(self) -> int:
        return len(self.first)

    @property
    def known(self) -> int:
        """How many were looked at."""
        return int((self.state != UNKNOWN).sum())

    def item(self, number: int) -> tuple[Item, int]:
        """A sample that has the picture, and which of its pictures it is."""
        sample, which = divmod(int(self.first[number]), self.codes.shape[1])
        return self.view.at(sample), which

    def name(self, number: int) -> str:
        """The name of the picture's file."""
        item, which = self.item(number)
        return item.files[which] if which < len(item.files) else item.name

    def samples(self, pictures: np.ndarray) -> np.ndarray:
        """bool [samples]: which have one of the pictures of a mask."""
        if not self.codes.size:
            return np.zeros(len(self.codes), bool)
        found: np.ndarray = (np.append(pictures, False)[self.codes]).any(1)
        return found

    def find_missing(self, numbers: Sequence[int]) -> None:
        """Look only whether the files are there, which is cheap."""
        for number in numbers:
            item, which = self.item(number)
            if self.state[number] == UNKNOWN and (why := self.view.lost(item, which)):
                self._lost(number, why)

    def look_at(self, number: int) -> None:
        """Read and decode a picture."""
        if self.state[number] != UNKNOWN:
            return
        item, which = self.item(number)
        try:
            pixels = decode_rgb(self.view.data(item, which), item.name, self.name(number))
        except SampleError as error:
            self._lost(number, error.why)
            return
        self.size[number] = pixels.shape[1], pixels.shape[0]
        self.mark[number], self.mini[number] = fingerprint(pixels)
        self.state[number] = WHOLE

    def _lost(self, number: int, why: str) -> None:
        reason = why.partition(":")[0]
        self.why[reason] += 1
        if len(self.reasons) < KEPT_REASONS:
            self.reasons[number] = why
        self.state[number] = MISSING if "missing" in reason else CORRUPT


def fingerprint(pixels: Any) -> tuple[np.uint64, np.ndarray]:
    """uint8 [H,W,3] → the difference hash of its 9 × 8 grey miniature, and its 12 × 12 colour miniature [MINI]."""
    image = Image.fromarray(pixels)
    grey = np.asarray(image.resize((9, 8), Image.Resampling.HAMMING, reducing_gap=3.0).convert("L"), np.int16)
    rises = (grey[:, 1:] - grey[:, :-1] > FLAT).reshape(-1)
    mark = np.packbits(rises).view(">u8")[0].astype(np.uint64)
    mini = np.asarray(image.resize((EDGE, EDGE), Image.Resampling.HAMMING, reducing_gap=3.0)).reshape(-1)
    return mark, mini


def same_pictures(mark: np.ndarray, mini: np.ndarray) -> np.ndarray:
    """int32 [n]: the number of the group of each picture; pictures of one group are the same, by one or more steps."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(mark)
    pairs = [np.zeros((2, 0), np.int64), *_near(mark, mini)]
    a, b = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count))
    groups: np.ndarray = connected_components(graph, directed=False)[1]
    return groups


def _near(mark: np.ndarray, mini: np.ndarray) -> Iterator[np.ndarray]:
    """[2, pairs] of pictures that are the same, found by each quarter of the hash; a pair may come several times."""
    bright = mini.mean(1, dtype=np.float32)
    for quarter in range(4):
        key = (mark >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = np.lexsort((bright, key))
        key = key[order]
        for step in range(1, WINDOW + 1):
            near = np.flatnonzero(key[step:] == key[:-step])
            if not len(near):
                break
            a, b = order[near], order[near + step]
            other = mark[a] ^ mark[b]
            close = np.bitwise_count(other) <= BITS
            for earlier in range(quarter):  # those that share an earlier quarter were found by it
                close &= (other >> np.uint64(16 * earlier)) & np.uint64(0xFFFF) != 0
            a, b = a[close], b[close]
            apart = np.abs(mini[a].astype(np.int16) - mini[b]).max(1, initial=0)
            yield np.stack([a[apart <= LEVELS], b[apart <= LEVELS]])


@dataclass(frozen=True)
class Twins:
    """Pictures that are the same: (split, number of the picture) each; `leak` where they are of several splits."""

    members: tuple[tuple[str, int], ...]

    @property
    def leak(self) -> bool:
        """Whether they are of several splits."""
        return len({split for split, _ in self.members}) > 1


class PictureScan:
    """The pictures of several splits; `looks` by split. Threads may read while one goes on."""

    def __init__(self, views: Mapping[str, View]) -> None:
        self.views = views
        self._looks: dict[str, Look] = {}
        self._lock = Lock()
        self._found: list[Twins] = []
        self._masks: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._compared = 0

    def look(self, split: str) -> Look:
        """The pictures of a split; numbered on first use."""
        with self._lock:
            if split not in self._looks:
                self._looks[split] = Look.of(self.views[split])
            return self._looks[split]

    def some(self, most: int) -> None:
        """Look at most at `most` pictures of each split, evenly chosen."""
        for split in self.views:
            look = self.look(split)
            look.find_missing(choose(len(look), most))
            for number in choose(len(look), most):
                look.look_at(number)
        self.compare()

    def go_on(self) -> Iterator[None]:
        """Look at all of them, first whether they are there; compare them now and then, as more is known."""
        for split in self.views:
            look = self.look(split)
            for start, stop in pairwise([*range(0, len(look), 500), len(look)]):
                look.find_missing(range(start, stop))
                yield
        seen = 0
        for split in self.views:
            look = self.look(split)
            for number in range(len(look)):
                look.look_at(number)
                yield
                seen += 1
                if seen > 1.2 * self._compared + 200:
                    self.compare()
        self.compare()

    @property
    def ready(self) -> bool:
        """Whether the pictures of all splits are numbered, which takes a second for some kinds of rows."""
        return len(self._looks) == len(self.views)

    @property
    def known(self) -> int:
        """How many pictures were looked at, of all splits."""
        return sum(self.look(split).known for split in self.views)

    @property
    def total(self) -> int:
        """How many pictures there are, each split for itself."""
        return sum(len(self.look(split)) for split in self.views)

    def twins(self) -> list[Twins]:
        """Groups of the same picture among those that were compared, across splits first."""
        return self._found

    def repeated(self, split: str, leaks: bool) -> np.ndarray:
        """bool [pictures of the split]: which have a twin, of another split where `leaks`."""
        masks = self._masks.get(split)
        return np.zeros(len(self.look(split)), bool) if masks is None else masks[leaks]

    def compare(self) -> None:
        """Find what occurs twice among the pictures that were looked at; a second or two for 100,000 of them."""
        looks = dict(self._looks)
        usable = {split: np.flatnonzero(look.state == WHOLE) for split, look in looks.items()}
        names = [split for split, numbers in usable.items() for _ in range(len(numbers))]
        numbers = np.concatenate([np.zeros(0, np.int64), *usable.values()])
        mark = np.concatenate([np.zeros(0, np.uint64), *(looks[split].mark[some] for split, some in usable.items())])
        mini = np.concatenate([np.zeros((0, MINI), np.uint8), *(looks[s].mini[some] for s, some in usable.items())])
        groups = same_pictures(mark, mini)
        order = np.argsort(groups, kind="stable")
        edges = np.flatnonzero(np.diff(groups[order], prepend=-1, append=-1))
        found = [
            Twins(tuple((names[i], int(numbers[i])) for i in order[start:stop]))
            for start, stop in pairwise(edges.tolist())
            if stop - start > 1
        ]
        masks = {split: (np.zeros(len(look), bool), np.zeros(len(look), bool)) for split, look in looks.items()}
        for group in found:
            for split, number in group.members:
                masks[split][0][number] = True
                masks[split][1][number] |= group.leak
        self._found = sorted(found, key=lambda one: (not one.leak, -len(one.members)))
        self._masks, self._compared = masks, len(numbers)
