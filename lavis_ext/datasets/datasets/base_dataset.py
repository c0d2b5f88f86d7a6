"""Bases of data sets: rows with ids and faults, and rows with a picture that is found, decoded and processed.

A data set is made from the parts that its builder opened, or in LAVIS' manner from processors, a folder of pictures and
annotation files (`two_ways`); a subclass may then use LAVIS' attributes, and define `__getitem__` alone.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.types import Batch, Sample
from lavis_ext.datasets.builders.context import NO_FILES, Parts, SplitParts
from lavis_ext.datasets.builders.settings import ImageKeys
from lavis_ext.datasets.collate import collate
from lavis_ext.datasets.readers.annotations import Annotations, ListRows
from lavis_ext.datasets.readers.decode import decode_rgb
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.datasets.readers.parse import Row, RowOptions, sort_files
from lavis_ext.datasets.view import Shown, sliced
from lavis_ext.processors import current_rng, drawing_from, uint8_of
from lavis_ext.processors.base_processor import settable

C = TypeVar("C", bound=type)


def two_ways(kind: C) -> C:
    """Let a data set be made from its parts, or by LAVIS' arguments, and let LAVIS' attributes be set.

    The dataclasses are frozen, and what plug-ins derive from them stays so; a plain subclass is open.
    """
    from_parts: Any = kind.__init__  # type: ignore[misc]

    @wraps(from_parts)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        given = args[0] if args else kwargs.get("parts")
        from_parts(self, given if isinstance(given, Parts) else opened_parts(type(self), *args, **kwargs))

    kind.__init__ = make  # type: ignore[misc]
    kind.two_ways = True  # type: ignore[attr-defined]
    return settable(kind)


class from_parts:  # noqa: N801 (used as `property` is)
    """A property that an assignment replaces: LAVIS' subclasses hold lists and names of their own under such names."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __get__(self, dataset: Any, kind: Any = None) -> Any:
        return self if dataset is None else self.make(dataset)


def opened_parts(
    kind: Any,
    vis_processor: Any = None,
    text_processor: Any = None,
    vis_root: str | Path | None = None,
    ann_paths: Iterable[str | Path] = (),
    **args: Any,
) -> SplitParts:
    """The parts of a data set that LAVIS' arguments describe; `args` are those of its shape.

    Raises ConfigError for a file that is missing, IntegrityError for one that cannot be parsed.
    """
    paths = [Path(path) for path in ([ann_paths] if isinstance(ann_paths, str | Path) else ann_paths)]
    files = sort_files(paths, RowOptions(conversations=kind.conversations)) if paths else NO_FILES
    known = load_cards().dataset(kind.card).args if kind.card else {}
    shape = {**vars(ImageKeys()), **vars(kind.Keys()), **known, **args}
    images = ImageStore("" if vis_root is None else vis_root, layouts=shape["layouts"])
    config = DatasetConfig(name=kind.__name__, args=shape)
    rows: Any = Annotations(files.rows) if paths else ListRows([])
    return SplitParts(config, "train", rows, images, vis_processor, text_processor, shape, files)


@two_ways
@dataclass(frozen=True, eq=False)
class BaseDataset(Shown):
    """Rows of one split. Picklable.

    `BaseDataset(vis_processor, text_processor, vis_root, ann_paths)` is LAVIS' form, for subclasses in its manner.
    """

    Keys: ClassVar[type] = ImageKeys
    """The arguments of the shape, for their defaults."""
    card: ClassVar[str] = ""
    """The declared data set whose arguments a class of LAVIS' name has; "": those of the shape."""
    conversations: ClassVar[Literal["", "turns", "whole"]] = ""
    """How files of conversations are read by LAVIS' four arguments (`RowOptions`)."""
    parts: Parts
    __repr__ = Shown.__repr__

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass with its own `__getitem__` and no `load` is read through it."""
        super().__init_subclass__(**kwargs)
        own: Any = cls
        if "__repr__" not in vars(cls):  # else `dataclass` would write one with all parts
            own.__repr__ = Shown.__repr__
        if "__getitem__" in vars(cls):
            own.__getitem__ = sliced(vars(cls)["__getitem__"])
        definer = next(base for base in cls.__mro__ if "load" in vars(base))
        # a shape without LAVIS' manner gives the other form of a sample by each of the two
        if "__getitem__" in vars(cls) and definer is not cls and "two_ways" in vars(definer):
            cls.load = BaseDataset.load  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        """Parts of nothing for a subclass that does not call `super().__init__`, as LAVIS' need not."""
        if name != "parts":
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        vars(self)["parts"] = opened_parts(type(self))
        return vars(self)["parts"]

    def _change(self, **parts: Any) -> None:
        held: Any = self.parts
        vars(self)["parts"] = replace(held, **parts)

    @from_parts
    def name(self) -> str:
        """The name of the data set."""
        return self.parts.config.name

    @from_parts
    def split(self) -> str:
        """The split."""
        return self.parts.split

    @from_parts
    def rows(self) -> Any:
        """The annotation records, in the order of the files."""
        return self.parts.rows

    @property
    def annotation(self) -> list[Row]:
        """The rows as LAVIS' list: what is changed in it, or assigned, is what the data set then has.

        Asking for it reads all rows into memory; until then they are mapped.
        """
        if not isinstance(self.parts.rows, ListRows):
            self.annotation = [dict(row) for row in self.parts.rows]
        held: list[Row] = self.parts.rows.rows
        return held

    @annotation.setter
    def annotation(self, rows: Any) -> None:
        self.remember()
        held = ListRows(rows if hasattr(rows, "__len__") else list(rows), self.parts.files_read)
        for number, row in enumerate(held.rows if isinstance(held.rows, list) else ()):
            if isinstance(row, dict):
                row.setdefault("instance_id", str(number))
        self._change(rows=held)
        for name in [name for name in vars(self) if name in self.derived]:
            delattr(self, name)

    derived: ClassVar[tuple[str, ...]] = ()
    """Cached attributes that are made from the rows."""

    def remember(self) -> None:
        """Called before the rows are exchanged: what must be kept of them."""

    def _add_instance_ids(self, key: str = "instance_id") -> None:
        for number, row in enumerate(self.annotation):
            row[key] = str(number)

    @property
    def declared(self) -> bool:
        """Whether a builder gave it its name."""
        return bool(self.parts.config.builder or self.parts.config.family)

    def parts_named(self, config: DatasetConfig, split: str) -> None:
        """Take name, split and limits from a declaration, for a data set that LAVIS' arguments made."""
        own = replace(config, args=dict(self.parts.config.args))
        self._change(config=own, split=split)

    def set_processors(self, vis_processor: Any, text_processor: Any) -> None:
        """Use these from now on; None leaves the item as it is read."""
        self._change(vis_processor=vis_processor, text_processor=text_processor)

    @property
    def vis_root(self) -> str:
        """The folder of the pictures."""
        parts: Any = self.parts
        return str(parts.images.root)

    @vis_root.setter
    def vis_root(self, folder: str | Path) -> None:
        parts: Any = self.parts
        self._change(images=ImageStore(folder, layouts=parts.args["layouts"]))

    @property
    def vis_processor(self) -> Any:
        """The image processor, or None."""
        return getattr(self.parts, "vis_processor", None)

    @vis_processor.setter
    def vis_processor(self, processor: Any) -> None:
        self._change(vis_processor=processor)

    @property
    def text_processor(self) -> Any:
        """The text processor, or None."""
        return getattr(self.parts, "text_processor", None)

    @text_processor.setter
    def text_processor(self, processor: Any) -> None:
        self._change(text_processor=processor)

    @from_parts
    def tolerance(self) -> float:
        """Share of samples that may fail."""
        return self.parts.config.tolerance

    def __len__(self) -> int:
        count = self.count()
        return count if self.parts.limit is None else min(count, self.parts.limit)

    def count(self) -> int:
        """How many samples there are before `max_samples` cuts them."""
        return len(self.rows)

    def row(self, index: int) -> Row:
        """The annotation record of a sample; raises IndexError beyond the end."""
        row: Row = self.rows[self.position(index)]
        return row

    def position(self, index: int) -> int:
        """The number of a sample's row, counted from the first file's first; negative indices count from the end."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)} of {self.name}/{self.split}")
        return position

    def load(self, index: int, rng: torch.Generator) -> Sample:
        """`self[index]`, for classes that define only `__getitem__`; processors of ours draw from `rng`.

        Raises SampleError for a file that cannot be read, and where `__getitem__` gives None (LAVIS' way to skip).
        """
        try:
            with drawing_from(rng):
                sample: Sample | None = self[index]  # type: ignore[index]
        except OSError as error:
            path = str(getattr(error, "filename", None) or ", ".join(map(str, self.parts.files_read)))
            why = f"{type(error).__name__}: {error.strerror or error}"
            raise SampleError(self.sample_id(index), path, why) from error
        if sample is None:
            raise self.fault(index, "__getitem__ gives None")
        return sample

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch; those that are None are left out, as LAVIS does."""
        return collate([sample for sample in samples if sample is not None])

    def sample_id(self, index: int) -> str:
        """The name of a sample in fault reports: `coco_caption/train#17`."""
        return f"{self.name}/{self.split}#{index}"

    def fault(self, index: int, why: str) -> SampleError:
        """The error for a sample whose row cannot be used."""
        return SampleError(self.sample_id(index), ", ".join(map(str, self.parts.files_read)), why)


MAX_TEXT = 100_000
UNWANTED = re.compile("[\0\ud800-\udfff]")


@two_ways
@dataclass(frozen=True, eq=False)
class ImageTextDataset(BaseDataset):
    """Rows of one split with their pictures; a shape adds the other keys of a sample in `fields`. Picklable."""

    parts: SplitParts

    @from_parts
    def rows(self) -> Any:
        """The annotation records, in the order of the files."""
        return self.parts.rows

    @from_parts
    def images(self) -> ImageStore:
        """Where the pictures come from."""
        return self.parts.images

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """The keys of a sample beside `image`; without `rng` torch's global generator is drawn from."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        """LAVIS' sample: `image` float32 [3,H,W], or a PIL image where no vis_processor is set. Raises SampleError."""
        row = self.row(index)
        pixels = self.pixels(row, index)
        image = self._other(pixels) if uint8_of(self.vis_processor) is None else self.vis_processor(pixels)
        return {"image": image, **self.texts(row, index, None)}

    def load(self, index: int, rng: torch.Generator) -> Sample:
        """The sample with `image` uint8 [3,H,W] and all randomness from `rng`. Raises SampleError.

        A processor without `uint8` is called as it is, with its own randomness.
        """
        row = self.row(index)
        pixels = self.pixels(row, index)
        uint8 = uint8_of(self.vis_processor)
        with drawing_from(rng):
            image = self._other(pixels) if uint8 is None else uint8(pixels, rng)
            return {"image": image, **self.texts(row, index, rng)}

    def texts(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """`fields`, and the keys of the row that `args: {keep: […]}` names, None where it lacks one."""
        kept: Any = {key: row.get(key) for key in self.parts.args["keep"]}
        return {**self.fields(row, index, rng), **kept}

    def displ_item(self, index: int) -> OrderedDict[str, Any]:
        """What a browser shows of a sample: file, caption, image (LAVIS' method)."""
        row = self.row(index)
        shown = {"file": self.image_name(row), "caption": row.get("caption"), "image": self[index]["image"]}
        return OrderedDict(shown)

    def pixels(self, row: Row, index: int) -> np.ndarray:
        """The picture of a row, uint8 [H,W,3]; raises SampleError under the id of the sample."""
        name = self.image_name(row)
        if not name:
            key = self.parts.args["image_key"]
            raise self.fault(index, f"image has no name: neither `{key}` nor what `image_pattern` needs is in the row")
        try:
            place, member = self.images.find(name)
            return decode_rgb(place.read(member), path=place.where(member))
        except SampleError as error:
            raise SampleError(self.sample_id(index), error.path, error.why) from error

    def image_name(self, row: Row) -> str:
        """The name of a row's picture: its `image_key`, else its `image_pattern`, else its `image_id` with `.jpg`.

        A pattern that is made of the `image_key` comes first: `{image:0>12}.jpg`.
        """
        key, pattern = self.parts.args["image_key"], self.parts.args["image_pattern"]
        name = None if re.search(rf"\{{{re.escape(key)}[:}}]", pattern or "") else row.get(key)
        if isinstance(name, list) and len(name) == 1:
            name = name[0]
        if name is not None:
            return str(name)
        if pattern is None and "image_id" not in row:
            return ""
        try:
            return str(pattern or "{image_id}.jpg").format_map(row)
        except (KeyError, ValueError, IndexError, TypeError):
            return ""

    def row_text(self, row: Row, key: str, index: int) -> str:
        """A text of a row through the text processor; raises SampleError where there is none."""
        return self.processed(row.get(key), key, index)

    def processed(self, value: Any, key: str, index: int) -> str:
        """A text, rid of NUL and lone surrogates, through the text processor.

        Raises SampleError for what is no text, empty, or longer than `MAX_TEXT` characters.
        """
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            value = str(value)  # digits are text too
        if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
            fault = "is missing or empty" if not isinstance(value, str) or not value.strip() else "is too long"
            raise self.fault(index, f"{key} {fault}")
        text = UNWANTED.sub("", value)
        return text if self.text_processor is None else str(self.text_processor(text))

    def _other(self, pixels: np.ndarray) -> Any:
        from PIL import Image

        image = Image.fromarray(pixels)
        return image if self.vis_processor is None else self.vis_processor(image)


@two_ways
@dataclass(frozen=True, eq=False)
class PictureDataset(ImageTextDataset):
    """One picture a sample, of rows that hold all texts of a picture (LAVIS) or one each (official COCO, tables)."""

    @property
    def first_rows(self) -> np.ndarray:
        """int64 [samples]: the first row of each picture."""
        first: np.ndarray = self._pictures[0]
        return first

    @property
    def _pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [samples], int64 [rows]: the first row of each picture, and the sample that each row belongs to."""
        # a list may be changed in place: its rows are compared by identity, 1 ms for 25,000 of them
        now = tuple(map(id, self.rows)) if isinstance(self.rows, ListRows) else ()
        seen, found = vars(self).get("_by_picture", (None, None))
        if found is None or seen != now:
            key = self.parts.args["image_key"]
            key = key if self.rows.has(key) else "image_id"
            _, first, codes = np.unique(self.rows.codes(key), return_index=True, return_inverse=True)
            found = (first, codes)
            vars(self)["_by_picture"] = (now, found)
        pictures: tuple[np.ndarray, np.ndarray] = found
        return pictures

    def count(self) -> int:
        """How many pictures."""
        return len(self.first_rows)

    def row(self, index: int) -> Row:
        """The first record of a picture."""
        row: Row = self.rows[int(self.first_rows[self.position(index)])]
        return row


class ItemDataset(BaseDataset):
    """A data set of another library, with `__len__` and `__getitem__` giving dicts; its collater, if it has one."""

    def __init__(self, items: Any) -> None:
        if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
            what = f"is a {type(items).__name__}, without __len__ or __getitem__"
            raise ConfigError("data set", what, "give it both; shards are the shape image_text_shards")
        super().__init__()  # type: ignore[call-arg]  # see two_ways
        self.items = items
        self.parts_named(DatasetConfig(name=type(items).__name__), self.split)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        """What the other gives."""
        return self.items[index]

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch."""
        batch: Batch = getattr(self.items, "collater", super().collater)(samples)
        return batch


class ConcatDataset(torch.utils.data.ConcatDataset[Sample]):
    """Several data sets one after the other, with the collater of the first; keys that not all have are left out."""

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch."""
        shared = set.intersection(*(set(sample) for sample in samples))
        kept: Any = [{key: value for key, value in sample.items() if key in shared} for sample in samples]
        first: Any = self.datasets[0]
        batch: Batch = first.collater(kept)
        return batch


def instruction(text_processor: Any) -> str:
    """What a text processor makes of an empty text: an instruction of InstructBLIP's; "" without one."""
    return "" if text_processor is None else str(text_processor(""))


def draw_below(stop: int, rng: torch.Generator | None) -> int:
    """A uniform integer in 0 … stop - 1."""
    rng = current_rng() if rng is None else rng
    return int(torch.randint(stop, (1,), generator=rng).item())
