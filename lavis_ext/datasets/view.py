"""How data sets look in a notebook, and parts of them: tables, `ds[:3]`, `select`, `filter`, `to_pandas`, `show`."""

from __future__ import annotations

import base64
import io
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from html import escape
from typing import Any

from lavis_ext.common.errors import LavisExtError, UsageError, nearest
from lavis_ext.common.secrets import printable

FIRST, COLUMNS, WIDTH, EDGE = 3, 5, 40, 160
"""Rows, columns and characters of a cell in a short table; pixels of a small picture's longer side."""
STYLE = "border-collapse:collapse;text-align:left"


class NoSplit(UsageError, KeyError):
    """A split that a data set does not have, with the nearest names; a KeyError too."""

    __str__ = UsageError.__str__


class Splits(dict[str, Any]):
    """Split → data set, as a dict; it prints as a table, and names the nearest split for one that is not there."""

    def __init__(self, name: str, splits: Mapping[str, Any]) -> None:
        super().__init__(splits)
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return Splits, (self.name, dict(self))

    def __missing__(self, split: str) -> Any:
        raise NoSplit(f"{self.name}['{split}']", "there is no such split", nearest(str(split), self))

    def _rows(self) -> list[list[str]]:
        counted = [
            (split, getattr(one, "epoch_size", None) if not sized(one) else len(one)) for split, one in self.items()
        ]
        rows = [[split, "?" if n is None else f"{n:,}", ", ".join(keys_of(self[split]))] for split, n in counted]
        return [["split", "samples", "a row has"], *rows]

    def __repr__(self) -> str:
        return text_table(self.name, self._rows())

    def _repr_html_(self) -> str:
        return f"<b>{escape(self.name)}</b>{html_table(self._rows())}"


class Shown:
    """What every data set with rows has, for a person at a prompt. It needs `len(self)`, `self.row(i)`, `self[i]`."""

    def select(self, numbers: Iterable[int]) -> Subset:
        """These samples, in this order; negative numbers count from the end. Raises IndexError."""
        size = len(self)  # type: ignore[arg-type]
        return Subset(self, [number_in(operator.index(number), size, self) for number in numbers])

    def filter(self, wanted: Callable[[dict[str, Any]], Any]) -> Subset:
        """The samples whose row is `wanted`: `ds.filter(lambda row: "dog" in row["caption"])`; no picture is read."""
        held: Any = self
        return Subset(self, [number for number in range(len(held)) if wanted(held.row(number))])

    def to_pandas(self) -> Any:
        """The rows as a DataFrame, without pictures; raises UsageError where pandas is not installed."""
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise UsageError("to_pandas", "pandas is not installed", "pip install pandas") from error
        held: Any = self
        return DataFrame([held.row(number) for number in range(len(held))])

    def show(self, count: int = 6) -> Gallery:
        """The first samples with their pictures: in a notebook as HTML, else `print` writes their texts."""
        return Gallery(self, count)

    def __repr__(self) -> str:
        return text_table(title_of(self), table_of(self, FIRST))

    def _repr_html_(self) -> str:
        return f"<b>{escape(title_of(self))}</b>{html_table(table_of(self, FIRST))}"


class Subset(Shown):
    """Some samples of a data set, by number; everything else is that of the data set."""

    whole: Any
    numbers: list[int]

    def __init__(self, whole: Any, numbers: Sequence[int]) -> None:
        if isinstance(whole, Subset):
            whole, numbers = whole.whole, [whole.numbers[number] for number in numbers]
        self.whole, self.numbers = whole, list(numbers)

    def __getattr__(self, name: str) -> Any:
        if name in ("whole", "numbers") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole, name)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int | slice) -> Any:
        """A sample, or with a slice a part."""
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return self.whole[self._number(index)]

    def load(self, index: int, rng: Any) -> Any:
        """The sample as the loader takes it; raises SampleError."""
        return self.whole.load(self._number(index), rng)

    def row(self, index: int) -> dict[str, Any]:
        """The annotation record of a sample."""
        found: dict[str, Any] = self.whole.row(self._number(index))
        return found

    @property
    def annotation(self) -> list[dict[str, Any]]:
        """The rows as a list."""
        return [self.row(number) for number in range(len(self))]

    def _number(self, index: int) -> int:
        return self.numbers[number_in(index, len(self), self)]


class Gallery:
    """The first samples of a data set, each with its picture where it has one."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset, self.count = dataset, min(count, len(dataset))

    def __repr__(self) -> str:
        return text_table(title_of(self.dataset), table_of(self.dataset, self.count))

    def _repr_html_(self) -> str:
        cards = []
        for number in range(self.count):
            texts = [f"<b>{escape(key)}</b> {escape(cell(value))}" for key, value in self.dataset.row(number).items()]
            cards.append(
                f'<div style="display:inline-block;vertical-align:top;width:{EDGE + 20}px;margin:4px;font-size:12px">'
                f"{small_picture(self.dataset, number)}<br>{'<br>'.join(texts)}</div>"
            )
        return f"<b>{escape(title_of(self.dataset))}</b><div>{''.join(cards)}</div>"


def small_picture(dataset: Any, number: int) -> str:
    """A sample's picture as HTML with the JPEG in it; why there is none, where it cannot be read."""
    if not hasattr(dataset, "pixels"):
        return ""
    from PIL import Image

    try:
        image = Image.fromarray(dataset.pixels(dataset.row(number), number))
        image.thumbnail((EDGE, EDGE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
    except (LavisExtError, OSError, ValueError) as error:
        return f"<i>{escape(str(error)[:200])}</i>"
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="sample {number}" src="data:image/jpeg;base64,{data}">'


def sliced(get: Callable[[Any, int], Any]) -> Callable[[Any, Any], Any]:
    """A `__getitem__` that takes slices too, and says of a text that samples have numbers."""

    @wraps(get)
    def getitem(self: Any, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        if isinstance(index, str):
            raise TypeError(
                f"{title_of(self)}: a sample has a number, not '{index}'; a column is in ds.row(0) or to_pandas()"
            )
        return get(self, index)

    return getitem


def number_in(index: int, size: int, dataset: Any) -> int:
    """The number of a sample from 0 on; raises IndexError beyond the end."""
    if not -size <= index < size:
        raise IndexError(f"sample {index} of {title_of(dataset)}")
    return index % size


def sized(dataset: Any) -> bool:
    """Whether the number of samples is known without reading them."""
    return hasattr(dataset, "__len__")


def keys_of(dataset: Any) -> list[str]:
    """The keys of the first row; none where there are no rows."""
    return [printable(str(key), kept="") for row in first_rows(dataset, 1) for key in row if key != "instance_id"]


def first_rows(dataset: Any, count: int) -> list[Mapping[str, Any]]:
    """The first rows; none of a data set that holds its samples in another way (a class in LAVIS' manner may)."""
    try:
        found = [dataset.row(number) for number in range(min(count, len(dataset)))]
    except (AttributeError, LookupError, TypeError, ValueError, OSError, LavisExtError):
        return []
    return [row for row in found if isinstance(row, Mapping)]


def title_of(dataset: Any) -> str:
    """`coco_caption/val: 5,000 samples`."""
    return f"{dataset.name}/{dataset.split}: {len(dataset):,} sample{'' if len(dataset) == 1 else 's'}"


def table_of(dataset: Any, count: int) -> list[list[str]]:
    """The first rows, some columns of them, as short texts; the first line holds the keys."""
    rows = first_rows(dataset, count)
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "instance_id"))[:COLUMNS]
    if not keys:
        return []
    return [["", *(printable(str(key), kept="") for key in keys)]] + [
        [str(number), *(cell(row.get(key)) for key in keys)] for number, row in enumerate(rows)
    ]


def cell(value: Any) -> str:
    """A value on one line, short and without control characters."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    from lavis_ext.common.wording import shorten

    text = "" if value is None else value if isinstance(value, str) else repr(value)
    return shorten(printable(" ".join(text[:1000].split()), kept=""), WIDTH)


def text_table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A title and aligned columns below it."""
    from lavis_ext.common.wording import columns  # who only loads samples needs no tables

    return "\n".join([title, *(f"  {line}" for line in columns(rows))])


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """A plain table, its first line as the head."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(one)}</td>' for one in row)}</tr>" for row in rows[1:])
    return f'<table style="{STYLE}"><tr>{head}</tr>{body}</table>'
