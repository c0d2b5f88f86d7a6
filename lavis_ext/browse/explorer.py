"""All samples of data sets as served pages: search, filters, order, what occurs twice, what is missing, figures.

Nothing is copied out of the annotations and nothing is written: a page is made when it is asked for. A thread looks at
the pictures meanwhile, so that what is damaged or occurs twice shows after a while; the pages say how far it is.
"""

from __future__ import annotations

import atexit
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from threading import Event, Lock, Thread
from typing import Any

from lavis_ext.browse.dataset_page import (
    about_values,
    figure_values,
    gap_rows,
    head_values,
    marked,
    scans_of,
    twin_values,
)
from lavis_ext.browse.html import Link, rendered
from lavis_ext.browse.pictures import PictureScan
from lavis_ext.browse.samples import EDGE_PIXELS, Shot, counted_answers, shot_of, small_jpeg, texts_of, without_picture
from lavis_ext.browse.search import PER_PAGE, SORTS, STATES, Query, Searcher
from lavis_ext.browse.serve import Reply
from lavis_ext.browse.subject import Subject
from lavis_ext.browse.views import Item, View
from lavis_ext.datasets.readers.faults import SampleError

PARTS = {"": "Samples", "twice": "Twice", "missing": "Missing", "figures": "Figures", "about": "Splits and files"}
LARGE = 1600
SURVEYED = 5_000
ENDING_S = 20.0
REST_S = 0.002
"""Between two pictures that are looked at, so that pages come first."""


class DatasetApp:
    """The pages of data sets. `scan`: whether a thread looks at all pictures."""

    def __init__(self, subject: Subject, seed: int | None = None, scan: bool = True) -> None:
        self.subject, self.seed = subject, seed or 0
        self.name = subject.name
        self.views = subject.views
        self.scans = scans_of(subject)
        self.searchers = {split: Searcher(self.views, one) for one in self.scans for split in one.views}
        self._figures_lock = Lock()
        self._ending = Event()
        if scan:
            thread = Thread(target=self.look_at_all, daemon=True)
            thread.start()
            # a decoder at work while the interpreter is taken apart aborts the process
            atexit.register(self._end, thread)

    def _end(self, thread: Thread) -> None:
        self._ending.set()
        thread.join(ENDING_S)

    def look_at_all(self) -> None:
        """Look at every picture; called by a thread, which ends with the process."""
        for scan in self.scans:
            for _ in scan.go_on():
                if self._ending.wait(REST_S):
                    return

    def answer(self, path: str, asked: Mapping[str, str]) -> Reply | None:
        """A part of the pages at `/`, `/twice`, …; a larger picture at `/picture/SPLIT/SAMPLE/WHICH`, by numbers."""
        part = path.removeprefix("/")
        if part.startswith("picture/"):
            return self._picture(part.split("/")[1:], asked)
        if part not in PARTS:
            return None
        values = {**head_values(self.subject), "served": True, "part": part, "parts": PARTS}
        return Reply(rendered("explorer.html", **values, **self._part(part, asked)))

    def _part(self, part: str, asked: Mapping[str, str]) -> Mapping[str, Any]:
        if part == "":
            return self.page(Query.of(asked))
        if part == "twice":
            return {"twins": twin_values(self.subject, self.scans)}
        if part == "missing":
            found = about_values(self.subject)
            counts = {name: sum(getattr(one, name) for one in self.scans) for name in ("known", "total")}
            kept = {key: found[key] for key in ("missing", "missing_lines")}
            return {
                **kept,
                "gaps": gap_rows(self.subject, self.scans),
                "looked": counts["known"],
                "pictures": counts["total"],
            }
        if part == "figures":
            with self._figures_lock:
                return self._figures
        return about_values(self.subject)

    @cached_property
    def _figures(self) -> Mapping[str, Any]:
        return figure_values(self.subject)

    @cached_property
    def _answers(self) -> list[str]:
        """The answers and labels given most in some rows, to choose from."""
        return [text for text, _ in counted_answers(self.views.values(), SURVEYED).most_common(200)]

    def page(self, query: Query) -> Mapping[str, Any]:
        """The values of a page of samples."""
        query = query if query.split in self.views else replace(query, split=next(iter(self.views), ""))
        if not self.views:
            return {"query": query, "counts": {}, "note": "", "shots": [], "pages": 0, "wide": False, "augment": False}
        counts = {split: len(self.searchers[split].find(split, query)) for split in self.views}
        view, found = self.views[query.split], self.searchers[query.split].find(query.split, query)
        pages = max(math.ceil(len(found) / PER_PAGE), 1)
        query = replace(query, page=min(query.page, pages))
        numbers = found[(query.page - 1) * PER_PAGE : query.page * PER_PAGE]
        augment = self.seed if query.augment else None
        place = list(self.views).index(query.split)
        scan = next(one for one in self.scans if query.split in one.views)
        items = [view.at(number) for number in map(int, numbers)]
        shots = [marked(self._shot(view, item, place, scan, augment), scan, query.split, item.index) for item in items]
        return {
            "query": query,
            "counts": counts,
            "shots": shots,
            "pages": pages,
            "wide": view.edge,
            "augment": view.draws,
            "answers": self._answers,
            "filters": {"states": STATES, "sorts": SORTS},
            "fields": [(key, value) for key, value in asdict(query).items() if value and key != "page"],
            "note": self._note(query, view.reach, len(view), len(found), scan),
        }

    def _note(self, query: Query, reach: int, total: int, found: int, scan: PictureScan) -> str:
        """How many there are, and how far the look at the pictures is."""
        first = (query.page - 1) * PER_PAGE
        where = f"Samples {first + 1:,} to {min(first + PER_PAGE, found):,} of {found:,}" if found else "None"
        parts = [f"{where}{f', of {reach:,} in {query.split}' if query.asks else ''}."]
        parts += (
            [f"Only the first shard can be paged through; there are {total:,} samples in all."] if reach < total else []
        )
        if scan.ready and scan.known < scan.total:
            parts.append(f"{scan.known:,} of {scan.total:,} pictures were looked at so far.")
        return " ".join(parts)

    def _shot(self, view: View, item: Item, place: int, scan: PictureScan, augment: int | None) -> Shot:
        """A sample whose pictures the browser asks for as it shows them; those that a view draws are drawn at once."""
        base = f"picture/{place}/{item.index}"
        if view.edge or not item.files:
            shot = shot_of(view, item, Counter())
            return shot if shot.lost else replace(shot, large=f"{base}/0")
        lost = [view.lost(item, number) for number in range(len(item.files))]
        if scan.ready:
            look = scan.look(list(self.views)[place])
            lost += [look.reasons.get(int(code), "") for code in look.codes[item.index] if code >= 0]
        if why := next(filter(None, lost), ""):
            return without_picture(texts_of(item), why)
        small = [Link(f"{base}/{number}?small=1") for number in range(len(item.files))]
        drawn = augment is not None and view.draws
        more = [Link(f"{base}/{number}?small=1&drawn={augment}") for number in range(len(small))] if drawn else []
        return replace(texts_of(item), sources=small, drawn=more, large=f"{base}/0")

    def _picture(self, numbers: list[str], asked: Mapping[str, str]) -> Reply | None:
        if len(numbers) != 3 or not all(one.isascii() and one.isdigit() and len(one) < 12 for one in numbers):
            return None
        place, index, which = map(int, numbers)
        views = list(self.views.values())
        if place >= len(views) or index >= views[place].reach:
            return None
        view, seed = views[place], asked.get("drawn", "")
        try:
            if seed.isascii() and seed.isdigit() and len(seed) < 10:
                pictures = view.augmented(index, int(seed))
            else:
                pictures = view.pictures(view.at(index))
        except SampleError as error:
            return Reply(error.why.encode("utf-8", "replace"), "text/plain; charset=utf-8", found=False)
        edge = EDGE_PIXELS if asked.get("small") else LARGE
        return Reply(small_jpeg(pictures[which], edge), "image/jpeg", lasting=True) if which < len(pictures) else None
