"""Histograms whose bars add up and stay inside their frame."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.browse.bars import BINS, bin_edges, bin_shares, histogram, ranked_list
from lavis_ext.browse.chart import HEIGHT, WIDTH

COUNTS = st.lists(st.integers(0, 100_000), min_size=1, max_size=60)
FLOATS = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=60)


@given(COUNTS | FLOATS, st.booleans())
def test_every_value_is_in_one_bin(values: list[float], whole: bool) -> None:
    edges = bin_edges(values, whole and all(value == int(value) for value in values))
    assert edges == sorted(edges)
    assert 1 <= len(edges) - 1 <= BINS + 3
    assert sum(bin_shares(values, edges)) == pytest.approx(1)


@given(COUNTS, COUNTS)
def test_bars_stay_in_the_frame(one: list[int], other: list[int]) -> None:
    svg = histogram("x", {"a": one, "b": other}, "n", whole=True)
    for x, y, width, height in re.findall(r'<rect x="(.+?)" y="(.+?)" width="(.+?)" height="(.+?)"', svg):
        assert 0 <= float(x) <= float(x) + float(width) <= WIDTH
        assert 0 <= float(y) <= float(y) + float(height) <= HEIGHT
    assert bool(svg) == (len({*one, *other}) > 1)


def test_whole_numbers_have_bins_of_their_own() -> None:
    edges = bin_edges([3, 4, 4, 5], whole=True)
    assert edges[:4] == [2.5, 3.5, 4.5, 5.5]
    assert bin_shares([3, 4, 4, 5], edges)[:3] == [0.25, 0.5, 0.25]


def test_one_long_text_does_not_flatten_the_rest() -> None:
    edges = bin_edges([10] * 990 + [12] * 9 + [5000], whole=True)
    assert edges[-1] < 20
    assert bin_shares([12, 5000], edges)[-1] > 0


def test_what_is_the_same_everywhere_is_no_chart() -> None:
    assert histogram("x", {"a": [640, 640], "b": [640]}, "pixels") == ""
    assert histogram("x", {"a": [], "b": [float("nan")]}, "pixels") == ""


def test_ranks_are_escaped_and_add_up() -> None:
    html = ranked_list("Answers", {"<b>": 3, "no": 1}, 4)
    assert "&lt;b&gt;" in html and "<b>" not in html
    assert "75.0% · 3" in html and "25.0% · 1" in html
    assert ranked_list("Answers", {}, 0) == ""
