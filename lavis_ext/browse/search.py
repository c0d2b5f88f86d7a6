"""What a served page is asked for: words, filters and an order over the samples of a split, a page at a time.

Words are looked for in the columns of the mapped annotations. Held in memory are an array of numbers a query, of the
last few, and of each split the words and the order of its samples once they are asked for.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from threading import Lock
from urllib.parse import urlencode

import numpy as np

from lavis_ext.browse.html import Link
from lavis_ext.browse.pictures import CORRUPT, MISSING, PictureScan
from lavis_ext.browse.views import View

PER_PAGE = 48
KEPT = 24
MAX_WORDS = 12
STATES = {
    "": "any",
    "missing": "picture is missing",
    "corrupt": "picture is damaged",
    "duplicate": "picture occurs again",
    "leak": "picture is in another split too",
    "textless": "without a text",
}
SORTS = {
    "": "as in the file",
    "text": "by text, A to Z",
    "shortest": "shortest text first",
    "longest": "longest text first",
    "largest": "largest picture first",
}
_WORDS = re.compile(r'"([^"]+)"|(\S+)')


@dataclass(frozen=True)
class Query:
    """A question to a served page; `page` counts from 1, `least` and `most` are words of the text, 0: any."""

    q: str = ""
    split: str = ""
    answer: str = ""
    least: int = 0
    most: int = 0
    state: str = ""
    sort: str = ""
    augment: int = 0
    page: int = 1

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Query:
        """From the fields of a form; what is none of ours, or no number, is as if it were not given."""
        found = {one.name: given[one.name] for one in fields(cls) if given.get(one.name)}
        numbers = {name for name, kind in cls.__annotations__.items() if kind == "int"}
        whole = {k: int(v) for k, v in found.items() if k in numbers and v.isascii() and v.isdigit() and len(v) < 10}
        query = cls(**{**{k: v for k, v in found.items() if k not in numbers}, **whole})  # type: ignore[arg-type]
        known = query.state if query.state in STATES else "", query.sort if query.sort in SORTS else ""
        return replace(query, state=known[0], sort=known[1], page=max(query.page, 1))

    @property
    def words(self) -> list[str]:
        """The words that a sample must hold; what stands between quotes is one."""
        return [quoted or word for quoted, word in _WORDS.findall(self.q)][:MAX_WORDS]

    @property
    def asks(self) -> bool:
        """Whether it leaves any sample out."""
        return bool(self.words or self.answer or self.least or self.most or self.state)

    def link(self, **changes: object) -> Link:
        """The address of this page with some fields changed; another question begins at the first page."""
        asked = {**asdict(self), "page": 1, **changes}
        defaults = asdict(Query())
        return Link("?" + urlencode({k: v for k, v in asked.items() if v != defaults[k]}))


class Searcher:
    """Finds samples of splits; `views` by split."""

    def __init__(self, views: Mapping[str, View], scan: PictureScan) -> None:
        self.views, self.scan = views, scan
        self._found: OrderedDict[tuple[object, ...], np.ndarray] = OrderedDict()
        self._made: dict[tuple[str, str], np.ndarray] = {}
        self._lock = Lock()

    def find(self, split: str, query: Query) -> np.ndarray:
        """int64 [found]: the numbers of the samples that a question asks for, in its order."""
        looked = self.scan.known if query.state or query.sort == "largest" else 0
        key = (split, replace(query, page=1, split="", augment=0), looked)
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        found = self._ordered(split, query, self._mask(split, query))
        with self._lock:
            self._found[key] = found
            while len(self._found) > KEPT:
                self._found.popitem(last=False)
        return found

    def _mask(self, split: str, query: Query) -> np.ndarray:
        view = self.views[split]
        found = np.ones(view.reach, bool)
        if query.words or query.answer:
            found &= view.matches(query.words, query.answer)
        if query.least or query.most:
            counts = self._kept(split, "words")
            found &= (counts >= query.least) & (counts <= (query.most or np.inf))
        if query.state == "textless":
            found &= self._kept(split, "words") == 0
        elif query.state:
            look = self.scan.look(split)
            if query.state in ("missing", "corrupt"):
                pictures = look.state == (MISSING if query.state == "missing" else CORRUPT)
            else:
                pictures = self.scan.repeated(split, query.state == "leak")
            found &= look.samples(pictures)
        return found

    def _ordered(self, split: str, query: Query, mask: np.ndarray) -> np.ndarray:
        numbers: np.ndarray = np.flatnonzero(mask)
        if query.sort == "text":
            order = self._kept(split, "alphabetical")
            ordered: np.ndarray = order[mask[order]]
            return ordered
        if query.sort in ("shortest", "longest"):
            counts = self._kept(split, "words")[numbers]
            return numbers[np.argsort(counts if query.sort == "shortest" else -counts, kind="stable")]
        if query.sort == "largest" and (look := self.scan.look(split)).codes.size:
            area = look.size.astype(np.int64).prod(1)
            return numbers[np.argsort(-area[look.codes[numbers, 0]], kind="stable")]
        return numbers

    def _kept(self, split: str, what: str) -> np.ndarray:
        """An array over all samples of a split that is made once: their words, or their order."""
        with self._lock:
            if (split, what) not in self._made:
                self._made[split, what] = getattr(self.views[split], what)()
            return self._made[split, what]
