"""Range bookkeeping against sets of byte positions."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.fetch.ranges import Ranges, cut
from lavis_ext.fetch.remote import merge_near

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def positions(ranges: list[tuple[int, int]]) -> set[int]:
    return {at for start, stop in ranges for at in range(start, stop)}


@given(RANGES, st.integers(0, 80))
def test_ranges_are_the_set_of_their_bytes(ranges: list[tuple[int, int]], size: int) -> None:
    found = Ranges(ranges)
    expected = positions(ranges)
    assert positions(list(found)) == expected
    assert found.covered == len(expected)
    assert all(a[1] < b[0] for a, b in pairwise(found))
    assert found.stop == max(expected, default=-1) + 1
    assert found.prefix == next(n for n in range(100) if n not in expected)
    assert positions(found.gaps(size)) == set(range(size)) - expected
    assert found == Ranges(reversed(ranges))


@given(RANGES, st.integers(0, 80))
def test_clip_forgets_the_rest(ranges: list[tuple[int, int]], size: int) -> None:
    found = Ranges(ranges)
    found.clip(size)
    assert positions(list(found)) == {at for at in positions(ranges) if at < size}


@given(RANGES, st.integers(1, 20))
def test_cut_keeps_every_byte_once(ranges: list[tuple[int, int]], length: int) -> None:
    gaps = list(Ranges(ranges))
    pieces = cut(gaps, length)
    assert sum(stop - start for start, stop in pieces) == len(positions(gaps))
    assert positions(pieces) == positions(gaps) and all(0 < stop - start <= length for start, stop in pieces)


@given(RANGES, st.integers(0, 10))
def test_merge_near_covers_all(ranges: list[tuple[int, int]], near: int) -> None:
    spans = merge_near(ranges, near)
    assert positions(ranges) <= positions(spans)
    assert all(b[0] - a[1] > near for a, b in pairwise(spans))


@pytest.mark.parametrize("pair", [(-1, 2), (3, 2)])
def test_what_is_no_range_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not a range"):
        Ranges([pair])
    with pytest.raises(ValueError, match="pieces"):
        cut([(0, 3)], 0)
