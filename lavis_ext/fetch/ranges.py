"""Sets of byte positions: what of a file is there, what is missing, and pieces of it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""`[start, stop)` in bytes."""


class Ranges:
    """A set of byte positions, kept as sorted, disjoint half-open ranges."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def covered(self) -> int:
        """How many bytes are there."""
        return sum(self._stops) - sum(self._starts)

    @property
    def stop(self) -> int:
        """One past the last byte that is there, 0 if none."""
        return self._stops[-1] if self._stops else 0

    @property
    def prefix(self) -> int:
        """How many bytes are there from the beginning without a gap."""
        return self._stops[0] if self._starts and self._starts[0] == 0 else 0

    def add(self, start: int, stop: int) -> None:
        """Bytes `[start, stop)` are there; touching and overlapping ranges merge."""
        if start < 0 or stop < start:
            raise ValueError(f"not a range: [{start}, {stop})")
        if start == stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def clip(self, size: int) -> None:
        """Forget everything from `size` on."""
        kept = [(start, min(stop, size)) for start, stop in self if start < size]
        self._starts = [start for start, _ in kept]
        self._stops = [stop for _, stop in kept]

    def gaps(self, size: int) -> list[Range]:
        """What is missing of a file of `size` bytes."""
        found, at = [], 0
        for start, stop in self:
            if start >= size:
                break
            if start > at:
                found.append((at, start))
            at = stop
        if at < size:
            found.append((at, size))
        return found


def cut(gaps: Iterable[Range], length: int) -> list[Range]:
    """The same gaps in pieces of at most `length` bytes, in order."""
    if length < 1:
        raise ValueError(f"pieces of {length} bytes")
    return [(at, min(at + length, stop)) for start, stop in gaps for at in range(start, stop, length)]
