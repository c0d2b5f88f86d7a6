"""The samples of a split as texts and pictures, whatever its shape and the keys of its rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

from lavis_ext.datasets.builders.image_text_shards import ImageTextStream, best_caption
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.shards import RawSample

TEXTS = {"caption": "caption", "question": "question", "sentence": "sentence", "text_input": "text"}
"""Keys that hold what is said about a picture → what it is called."""
NAMED = {"caption_key": "caption", "text_key": "sentence"}
"""Arguments of shapes that name such a key."""
STREAM_SURVEY = 2_000
MAX_GATHERED = 20
"""Rows of one picture whose captions are shown together."""
Pixels = Any
"""uint8 [H,W,3]."""


@dataclass(frozen=True)
class SampleText:
    """The texts of a row under one name, the answers that people gave, and further lines."""

    kind: str = "text"
    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    label: str = ""
    choices: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    """Lines that are shown and not counted: object tags."""


@dataclass(frozen=True)
class Item:
    """A sample before its pictures are read."""

    name: str
    text: SampleText
    handle: Any


def choose(total: int, wanted: int, seed: int | None = None) -> list[int]:
    """Numbers below `total` in order: evenly spread, or drawn by a seed."""
    if wanted >= total:
        return list(range(total))
    if seed is not None:
        return sorted(random.Random(seed).sample(range(total), wanted))
    return [i * total // wanted for i in range(wanted)]


class View(Protocol):
    """A split that can be looked at; `scope` is what a survey counts in, `total` how many, `chosen` how samples are."""

    scope: str
    total: int
    chosen: str

    def __len__(self) -> int:
        """How many samples."""

    def items(self, wanted: int, seed: int | None) -> list[Item]:
        """Some samples, evenly or by a seed. A row that cannot be read is an item without texts."""

    def survey(self, most: int) -> Iterator[SampleText]:
        """The texts of at most `most` rows, evenly chosen."""

    def pictures(self, item: Item) -> list[Pixels]:
        """The pictures of a sample, uint8 [H,W,3]; raises SampleError."""

    def data(self, item: Item) -> bytes:
        """The encoded bytes of its (first) picture; raises SampleError."""


def view_of(dataset: Any) -> View | None:
    """How a built split is looked at; None for a data set of someone else's that keeps no rows."""
    if isinstance(dataset, ImageTextStream):
        return StreamView(dataset)
    if hasattr(dataset, "page_view"):  # a shape that draws its own samples, as those on region features
        view: View = dataset.page_view()
        return view
    return RowsView(dataset) if hasattr(dataset, "rows") and hasattr(dataset, "image_name") else None


class RowsView:
    """Annotation rows and an image store."""

    chosen = "evenly chosen"

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.scope, self.total = "rows", len(dataset.rows)

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self, wanted: int, seed: int | None) -> list[Item]:
        """Samples as the data set numbers them: of a caption's evaluation split, pictures."""
        data = self.dataset
        return [Item(str(i), self._text(i), (i, data.row(i))) for i in choose(len(data), wanted, seed)]

    def survey(self, most: int) -> Iterator[SampleText]:
        """All rows count, also those that share a picture."""
        rows, args = self.dataset.rows, self.dataset.parts.args
        return (text_of(rows[index], args) for index in choose(len(rows), most))

    def pictures(self, item: Item) -> list[Pixels]:
        """One picture, or the two of a pair."""
        index, row = item.handle
        return [self.dataset.pixels(one, index) for one in self._rows_of(index, row)]

    def data(self, item: Item) -> bytes:
        """The encoded bytes, from the image store."""
        index, row = item.handle
        found: bytes = self.dataset.images.read(self.dataset.image_name(self._rows_of(index, row)[0]))
        return found

    def _text(self, index: int) -> SampleText:
        """The texts of a sample's row; where each row of a picture has one caption, those of all its rows."""
        data, args = self.dataset, self.dataset.parts.args
        text = text_of(data.row(index), args)
        if self._codes is None:
            return text
        first = int(data.first_rows[data.position(index)])
        others = (self._codes == self._codes[first]).nonzero()[0][:MAX_GATHERED]
        texts = (said for number in others for said in text_of(data.rows[int(number)], args).texts)
        return replace(text, texts=tuple(texts))

    @cached_property
    def _codes(self) -> Any:
        """int64 [rows]: the number of each row's picture, in a split whose samples are pictures of several rows."""
        data = self.dataset
        if not hasattr(data, "first_rows") or len(data.first_rows) == len(data.rows):
            return None
        key = data.parts.args["image_key"]
        return data.rows.codes(key if data.rows.has(key) else "image_id")

    def _rows_of(self, index: int, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        pair = getattr(self.dataset, "pair", None)
        return [{**row, "image": name} for name in pair(row, index)] if pair else [row]


class StreamView:
    """The first samples of the first shard that holds any; no other is read."""

    chosen = "the first of a shard"

    def __init__(self, stream: ImageTextStream) -> None:
        self.stream = stream
        shard, self.samples = self._first()
        self.scope, self.total = f"samples of the shard {shard}", len(self.samples)

    def __len__(self) -> int:
        """What the shards' manifests promise; where one has none, only the first shard counts."""
        promised = [shard.promised for shard in self.stream.reader.shards]
        known = [count for count in promised if count is not None]
        total = sum(known) if len(known) == len(promised) else len(self.samples)
        limit = self.stream.reader.limit
        return total if limit is None else min(total, limit)

    def items(self, wanted: int, seed: int | None) -> list[Item]:
        """The first samples, or some of the shard by a seed."""
        chosen = self.samples[:wanted] if seed is None else self._at(choose(len(self.samples), wanted, seed))
        return [Item(sample.entry.key, self._text(sample), sample) for sample in chosen]

    def survey(self, most: int) -> Iterator[SampleText]:
        """The texts of the shard's samples."""
        return map(self._text, self._at(choose(len(self.samples), min(most, STREAM_SURVEY))))

    def pictures(self, item: Item) -> list[Pixels]:
        """The picture of a sample."""
        return [item.handle.pixels()]

    def data(self, item: Item) -> bytes:
        """The encoded bytes, from the shard."""
        found: bytes = item.handle.read("image")
        return found

    def _first(self) -> tuple[str, list[RawSample]]:
        reader = self.stream.reader
        for shard in reader.shards:
            samples = [RawSample(shard, entry) for entry in shard.entries(reader.needs)[1] if not entry.fault]
            if samples:
                return shard.path.name, samples[: reader.limit]
        return "", []

    def _at(self, numbers: Sequence[int]) -> list[RawSample]:
        return [self.samples[number] for number in numbers]

    def _text(self, sample: RawSample) -> SampleText:
        """The caption that training takes, then the others; none where the JSON has none."""
        args = self.stream.args
        try:
            if args["caption_key"] == ".txt":
                return SampleText("caption", (sample.text(),))
            record = sample.record()
            if args["captions_key"] is None:
                return SampleText("caption", _as_texts(record.get(args["caption_key"])))
            every = record.get(args["captions_key"])
            best = best_caption(every, record.get(args["scores_key"]))
        except (SampleError, ValueError):
            return SampleText("caption")
        return SampleText("caption", tuple(dict.fromkeys((str(best), *_as_texts(every)))))


def text_of(row: Mapping[str, Any], args: Mapping[str, Any]) -> SampleText:
    """The texts of a row, by the arguments of its shape: caption(s), question and answers, sentence and label."""
    kinds = {str(args.get(key)): kind for key, kind in NAMED.items()} | TEXTS
    key = next((key for key in kinds if row.get(key)), "")
    answers = row.get(args.get("answer_key", "answer")) or row.get("direct_answers")
    label = _as_texts(row.get(args.get("label_key", "label")))
    choices = marked(_as_texts(row.get("choices")), row.get("correct_choice_idx"))
    return SampleText(kinds.get(key, "text"), _as_texts(row.get(key)), _as_texts(answers), ", ".join(label), choices)


def marked(choices: Sequence[str], right: Any) -> tuple[str, ...]:
    """The choices, the right one ticked."""
    return tuple(f"{text} ✓" if number == right else text for number, text in enumerate(choices))


def _as_texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(str(text) for text in values if isinstance(text, (str, int, float)))


def counted(answers: Sequence[str], most: int = 4) -> list[str]:
    """Answers by how many gave them: `net ×8`, the rest as `and 3 more`."""
    counts = Counter(answers).most_common()
    shown = [f"{text} ×{count}" if count > 1 else text for text, count in counts[:most]]
    return shown + ([f"and {len(counts) - most} more"] if len(counts) > most else [])


def first(texts: Sequence[str], most: int) -> list[str]:
    """The first texts, and how many there are beside them."""
    return [*islice(texts, most), *([f"and {len(texts) - most} more"] if len(texts) > most else [])]
