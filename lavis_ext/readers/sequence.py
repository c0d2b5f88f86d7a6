"""What every sequence of rows does with an index: slices are lists, negative numbers count from the end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from lavis_ext.readers.parse import Row


class Rows(Sequence[Row]):
    """Rows by number; a kind of them says how many there are, and what row `position` is."""

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.at(position) for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.at(position)

    @abstractmethod
    def at(self, position: int) -> Row:
        """The row of a number from 0 on, below the length."""
