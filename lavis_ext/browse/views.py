"""The samples of a split as texts and pictures, whatever its shape and the keys of its rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lavis_ext.browse.boxes import boxes_of, draw_boxes
from lavis_ext.datasets.builders.image_text_shards import ImageTextStream, best_caption
from lavis_ext.datasets.readers.annotations import Annotations, ListRows
from lavis_ext.datasets.readers.conversations import FAULT
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.shards import RawSample
from lavis_ext.processors import uint8_of

TEXTS = {"caption": "caption", "question": "question", "sentence": "sentence", "text_input": "text"}
"""Keys that hold what is said about a picture → what it is called."""
NAMED = {"caption_key": "caption", "text_key": "sentence", "question_key": "question"}
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
    turns: tuple[tuple[str, str], ...] = ()
    """Role and text of each turn of a conversation."""


@dataclass(frozen=True)
class Item:
    """A sample before its pictures are read; `files` are the names of its pictures, `ids` what its row calls it."""

    name: str
    text: SampleText
    handle: Any
    files: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    index: int = 0


def choose(total: int, wanted: int, seed: int | None = None) -> list[int]:
    """Numbers below `total` in order: evenly spread, or drawn by a seed."""
    if wanted >= total:
        return list(range(total))
    if seed is not None:
        return sorted(random.Random(seed).sample(range(total), wanted))
    return [i * total // wanted for i in range(wanted)]


class View:
    """A split that can be looked at; `scope` is what a survey counts in, `total` how many, `chosen` how samples are.

    A shape gives one by `page_view()`, with `__len__`, `at` and `pictures`; the rest it may do better.
    """

    scope = "samples"
    total = 0
    chosen = "evenly chosen"
    edge = 0
    """The longer edge of its pictures on a page, where it draws them itself."""
    pictured = True
    """Whether its samples have encoded pictures of their own."""

    def __len__(self) -> int:
        """How many samples."""
        return self.total

    @property
    def reach(self) -> int:
        """How many of them can be asked for by number."""
        return len(self)

    def at(self, index: int) -> Item:
        """A sample by its number, below `reach`. A row that cannot be read is an item without texts."""
        raise NotImplementedError

    def items(self, wanted: int, seed: int | None) -> list[Item]:
        """Some samples, evenly or by a seed."""
        return [self.at(index) for index in choose(self.reach, wanted, seed)]

    def survey(self, most: int) -> Iterator[SampleText]:
        """The texts of at most `most` rows, evenly chosen."""
        return (self.at(index).text for index in choose(len(self), most))

    def pictures(self, item: Item) -> list[Pixels]:
        """The pictures of a sample, uint8 [H,W,3]; raises SampleError."""
        raise NotImplementedError

    def data(self, item: Item, number: int = 0) -> bytes:
        """The encoded bytes of one of its pictures; raises SampleError."""
        raise SampleError(item.name, "", "no picture belongs to the sample")

    def lost(self, item: Item, number: int = 0) -> str:
        """Why a picture is not there, as far as a look without reading tells; "" where it may be."""
        return ""

    @property
    def draws(self) -> bool:
        """Whether training draws its pictures, so that `augmented` has any."""
        return False

    def augmented(self, index: int, seed: int) -> list[Pixels]:
        """The pictures as training would draw them by a seed, uint8 [h,w,3]; none where nothing is drawn."""
        return []

    def picture_codes(self) -> np.ndarray:
        """int32 [reach, k]: numbers of the distinct pictures of each sample, from 0; -1 for none."""
        if not self.pictured:
            return np.zeros((self.reach, 0), np.int32)
        known: dict[str, int] = {}
        rows = [[known.setdefault(name, len(known)) for name in self.at(i).files] for i in range(self.reach)]
        width = max(map(len, rows), default=0)
        return np.array([[*row, *[-1] * (width - len(row))] for row in rows], np.int32).reshape(len(rows), width)

    def matches(self, words: Sequence[str], answer: str = "") -> np.ndarray:
        """bool [reach]: whether a sample holds all words, in any case, and has the answer or label `answer`."""
        wanted = [word.casefold() for word in words]
        said = [all(word in text for word in wanted) and (not answer or answer in given) for text, given in self._said]
        return np.array(said, bool)

    def words(self) -> np.ndarray:
        """float [reach]: words of a text of each sample, of several texts in the mean."""
        texts = (self.at(index).text.texts for index in range(self.reach))
        return np.array([sum(len(one.split()) for one in some) / max(len(some), 1) for some in texts], float)

    def alphabetical(self) -> np.ndarray:
        """int64 [reach]: the samples in the order of their first texts."""
        firsts = [next(iter(self.at(index).text.texts), "") for index in range(self.reach)]
        return np.array(sorted(range(len(firsts)), key=firsts.__getitem__), np.int64)

    @cached_property
    def _said(self) -> list[tuple[str, tuple[str, ...]]]:
        """All that can be looked for in each sample, and its answers; read once."""
        found = []
        for index in range(self.reach):
            item = self.at(index)
            given = (*item.text.answers, item.text.label)
            parts = (*item.text.texts, *given, *item.text.more, *item.files, *item.ids)
            found.append(("\n".join(parts).casefold(), given))
        return found


def view_of(dataset: Any) -> View | None:
    """How a built split is looked at; None for a data set of someone else's that keeps no rows."""
    if isinstance(dataset, ImageTextStream):
        return StreamView(dataset)
    if hasattr(dataset, "page_view"):  # a shape that draws its own samples, as those on region features
        view: View = dataset.page_view()
        return view
    return RowsView(dataset) if hasattr(dataset, "rows") and hasattr(dataset, "image_name") else None


ID_KEYS = ("question_id", "image_id", "img_id", "id")
AUGMENTED = ("image", "image0", "image1")


class RowsView(View):
    """Annotation rows and an image store."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.scope, self.total = "rows", len(dataset.rows)

    def __len__(self) -> int:
        return len(self.dataset)

    def at(self, index: int) -> Item:
        """A sample as the data set numbers it: of a caption's evaluation split, a picture."""
        row = self.dataset.row(index)
        ids = dict.fromkeys(f"{key} {row[key]}" for key in ID_KEYS if isinstance(row.get(key), (int, str)))
        try:
            files = tuple(name for name, _ in self._named(index, row) if name)
        except SampleError:
            files = ()  # the place of its picture says why
        return Item(str(index), self._text(index), (index, row), files, tuple(ids), index)

    def survey(self, most: int) -> Iterator[SampleText]:
        """All rows count, also those that share a picture."""
        rows, args = self.dataset.rows, self.dataset.parts.args
        return (text_of(rows[index], args) for index in choose(len(rows), most))

    def pictures(self, item: Item) -> list[Pixels]:
        """One picture with the boxes of its row, or the two of a pair."""
        index, row = item.handle
        if FAULT in row:
            raise self.dataset.fault(index, str(row[FAULT]))
        found = [self.dataset.pixels(one, index) for _, one in self._named(index, row)]
        boxes = boxes_of(row) if len(found) == 1 else []
        return [draw_boxes(found[0], boxes)] if boxes else found

    def data(self, item: Item, number: int = 0) -> bytes:
        """The encoded bytes, from the image store."""
        found: bytes = self.dataset.images.read(self._name(item, number))
        return found

    def _name(self, item: Item, number: int) -> str:
        """The name of a picture; raises SampleError for a sample without one, as a conversation of texts alone."""
        named = self._named(*item.handle)
        if number >= len(named):
            raise self.dataset.fault(item.handle[0], "the sample has no picture")
        return named[number][0]

    def lost(self, item: Item, number: int = 0) -> str:
        """Asks the image store, which opens no file."""
        try:
            self.dataset.images.find(self._name(item, number))
        except SampleError as error:
            return error.why
        return ""

    @property
    def draws(self) -> bool:
        """Of a training split whose vis_processor is one of ours."""
        data = self.dataset
        return bool(getattr(data.parts, "training", False)) and uint8_of(data.vis_processor) is not None

    def augmented(self, index: int, seed: int) -> list[Pixels]:
        """What the vis_processor of training makes of the sample."""
        if not self.draws:
            return []
        sample = self.dataset.load(index, torch.Generator().manual_seed(seed))
        drawn = [sample[key] for key in AUGMENTED if key in sample]
        return [one.permute(1, 2, 0).numpy() for one in drawn if one.dtype == torch.uint8 and one.ndim == 3]

    def picture_codes(self) -> np.ndarray:
        """By the column that names them, where there is one; a pair has two."""
        data = self.dataset
        key = self._picture_key
        if hasattr(data, "pair") or not data.rows.has(key) or isinstance(data.rows, ListRows):
            return super().picture_codes()
        codes = data.rows.codes(key)
        first = getattr(data, "first_rows", None)
        codes = codes if first is None else codes[first]
        found: np.ndarray = codes[: len(self)].astype(np.int32)[:, None]
        return found

    def matches(self, words: Sequence[str], answer: str = "") -> np.ndarray:
        """By columns of the mapped table; nothing of it is copied."""
        rows, args = self.dataset.rows, self.dataset.parts.args
        if not isinstance(rows, Annotations):
            return super().matches(words, answer)
        keys = [str(args.get("answer_key", "answer")), "direct_answers", str(args.get("label_key", "label"))]
        parts = [batch_matches(batch, marks, words, keys, answer) for batch, marks in rows.batches()]
        return self._by_sample(np.concatenate([np.zeros(0, bool), *parts])[: len(rows)])

    def words(self) -> np.ndarray:
        """By the column of the text, of a list in the mean."""
        rows, key = self.dataset.rows, self._text_key
        if not isinstance(rows, Annotations) or not key:
            return super().words()
        parts = [
            word_counts(batch.column(key)) if key in marks else np.zeros(batch.num_rows)
            for batch, marks in rows.batches()
        ]
        counts = np.concatenate([np.zeros(0), *parts])[: len(rows)]
        if self._codes is None:
            return counts[: len(self)]
        shared: np.ndarray = np.bincount(self._codes, counts) / np.bincount(self._codes).clip(1)
        return shared[: len(self)]

    def alphabetical(self) -> np.ndarray:
        """By the column of the text, where it holds one a row."""
        rows, key = self.dataset.rows, self._text_key
        found = (
            [batch.column(key) for batch, marks in rows.batches() if key in marks] if hasattr(rows, "batches") else []
        )
        plain = found and all(pa.types.is_string(one.type) for one in found) and self._codes is None
        if not plain or sum(map(len, found)) < len(rows):
            return super().alphabetical()
        order = pc.sort_indices(pa.chunked_array(found)).to_numpy().astype(np.int64)
        kept: np.ndarray = order[order < len(self)]
        return kept

    def _by_sample(self, rows: np.ndarray) -> np.ndarray:
        """A mask of rows as one of samples: of a picture, whether any of its rows."""
        if self._codes is None:
            return rows[: len(self)]
        found = np.zeros(int(self._codes.max(initial=-1)) + 1, bool)
        found[self._codes[rows]] = True
        return found[: len(self)]

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
    def _text_key(self) -> str:
        """The column that holds what is said; "" without one."""
        kinds = text_kinds(self.dataset.parts.args)
        return next((key for key in kinds if self.dataset.rows.has(key)), "")

    @cached_property
    def _picture_key(self) -> str:
        key = str(self.dataset.parts.args["image_key"])
        return key if self.dataset.rows.has(key) else "image_id"

    @cached_property
    def _codes(self) -> Any:
        """int64 [rows]: the number of each row's picture, in a split whose samples are pictures of several rows."""
        data = self.dataset
        if not hasattr(data, "first_rows") or len(data.first_rows) == len(data.rows):
            return None
        return data.rows.codes(self._picture_key)

    def _named(self, index: int, row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
        """The name and the row of each of its pictures; raises SampleError."""
        pair = getattr(self.dataset, "pair", None)
        try:
            if pair:
                key = str(self.dataset.parts.args["image_key"])
                return [(name, {**row, key: name, "image": name}) for name in pair(row, index)]
            return [(self.dataset.image_name(row), row)]
        except (KeyError, ValueError, IndexError, AttributeError) as error:  # of a pattern that does not fit the row
            raise self.dataset.fault(index, f"image_pattern does not fit the row: {error}") from error


def batch_matches(
    batch: pa.RecordBatch, marks: Mapping[str, str], words: Sequence[str], answer_keys: Sequence[str], answer: str
) -> np.ndarray:
    """bool [rows of the batch]: whether any column holds each word, and one of `answer_keys` is or has `answer`."""
    rows = batch.num_rows
    asked = [(word, list(marks), False) for word in sorted(words, key=len, reverse=True)]
    asked += [(answer, [key for key in answer_keys if key in marks], True)] if answer else []
    left = np.arange(rows)
    for word, keys, whole in asked:  # the longest first: the rest is looked for in what it has left
        columns = [_holds(batch.column(key), marks[key], word, whole) for key in keys]
        mask = np.any(columns, axis=0) if columns else np.zeros(len(left), bool)
        left, batch = left[mask], batch.filter(pa.array(mask))
    found = np.zeros(rows, bool)
    found[left] = True
    return found


def word_counts(column: pa.Array) -> np.ndarray:
    """float [rows]: the words of a text, of a list of texts in the mean, of what is none 0."""
    if pa.types.is_list(column.type):
        sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        upto, ends = np.concatenate([[0], np.cumsum(word_counts(pc.list_flatten(column)))]), np.cumsum(sizes)
        means: np.ndarray = (upto[ends] - upto[ends - sizes]) / sizes.clip(1)
        return means
    if not pa.types.is_string(column.type):
        return np.zeros(len(column))
    counts: np.ndarray = pc.fill_null(pc.count_substring_regex(column, r"\S+"), 0).to_numpy(zero_copy_only=False)
    return counts.astype(float)


def _holds(column: pa.Array, mark: str, word: str, whole: bool = False) -> np.ndarray:
    """bool [rows]: whether a value holds a word in any case, or (`whole`) is it; of a list, whether any item does."""
    kind = column.type
    if pa.types.is_list(kind):
        inner = np.concatenate([[0], np.cumsum(_holds(pc.list_flatten(column), mark, word, whole))])
        ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False))
        any_item: np.ndarray = np.diff(inner[np.concatenate([[0], ends])]) > 0
        return any_item
    if pa.types.is_integer(kind):
        given = pc.equal(column, int(word)) if word.isascii() and word.isdigit() and len(word) < 19 else None
    elif not pa.types.is_string(kind):
        given = None
    elif mark == "json":  # JSON text: a value between quotes, with escapes for what is not ASCII
        forms = {json.dumps(word), json.dumps(word, ensure_ascii=False)}
        tests = [pc.match_substring(column, form if whole else form[1:-1], ignore_case=not whole) for form in forms]
        given = reduce(pc.or_kleene, tests)
    else:
        given = pc.equal(column, word) if whole else pc.match_substring(column, word, ignore_case=True)
    if given is None:
        return np.zeros(len(column), bool)
    found: np.ndarray = pc.fill_null(given, False).to_numpy(zero_copy_only=False)
    return found


class StreamView(View):
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

    def at(self, index: int) -> Item:
        """A sample of the first shard."""
        sample = self.samples[index]
        return Item(sample.entry.key, self._text(sample), sample, (sample.entry.key,), index=index)

    @property
    def reach(self) -> int:
        """Those of the first shard."""
        return len(self.samples)

    def items(self, wanted: int, seed: int | None) -> list[Item]:
        """The first samples, or some of the shard by a seed."""
        return [
            self.at(i) for i in (range(min(wanted, self.reach)) if seed is None else choose(self.reach, wanted, seed))
        ]

    def survey(self, most: int) -> Iterator[SampleText]:
        """The texts of the shard's samples."""
        return map(self._text, self._at(choose(len(self.samples), min(most, STREAM_SURVEY))))

    def pictures(self, item: Item) -> list[Pixels]:
        """The picture of a sample."""
        return [item.handle.pixels()]

    def data(self, item: Item, number: int = 0) -> bytes:
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


def text_kinds(args: Mapping[str, Any]) -> dict[str, str]:
    """Keys of a row that hold what is said about its picture → what it is called, the shape's own first."""
    return {str(args[key]): kind for key, kind in NAMED.items() if args.get(key)} | TEXTS


def text_of(row: Mapping[str, Any], args: Mapping[str, Any]) -> SampleText:
    """The texts of a row, by the arguments of its shape: caption(s), question and answers, sentence and label."""
    turns = tuple((turn["role"], turn["content"]) for turn in row.get("conversations") or [] if isinstance(turn, dict))
    if turns:
        return SampleText("conversation", ("\n".join(text for _, text in turns),), turns=turns)
    kinds = text_kinds(args)
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
