"""Charts: scales with round ticks, lines and bars that stay inside their frame, shares that add up."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.browse.html import (
    BINS,
    HEIGHT,
    MAX_POINTS,
    WIDTH,
    LineStyle,
    Series,
    bin_edges,
    bin_shares,
    figure,
    figures,
    histogram,
    line_chart,
    ranked_list,
    scale,
    shown,
    thinned,
    with_code,
)
from lavis_ext.common.wording import measured

COUNTS = st.lists(st.integers(0, 100_000), min_size=1, max_size=60)
VALUES = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)
FLOATS = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=60)


@settings(deadline=None)  # a loaded machine takes longer than 200 ms
@given(COUNTS | FLOATS, st.booleans())
def test_every_value_is_in_one_bin(values: list[float], whole: bool) -> None:
    edges = bin_edges(values, whole and all(value == int(value) for value in values))
    assert edges == sorted(edges)
    assert 1 <= len(edges) - 1 <= BINS + 3
    assert sum(bin_shares(values, edges)) == pytest.approx(1)


@settings(deadline=None)  # a loaded machine takes longer than 200 ms
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


@settings(deadline=None)  # a loaded machine takes longer than 200 ms
@given(st.lists(VALUES, min_size=1, max_size=20))
def test_a_scale_holds_its_values_between_round_ticks(values: list[float]) -> None:
    of = scale(values, 200, 10)
    span = of.high - of.low
    assert of.low <= min(values) + 1e-6 * span
    assert of.high >= max(values) - 1e-6 * span
    assert 2 <= len(of.ticks) <= 12
    assert all(9.9 <= of(value) <= 200.1 for value in values)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        *[([0.0, 0.0], 0.0, 0.01), ([0.0, 7e-4], 0.0, 0.01), ([9e-5], 0.0, 0.01), ([0.0, 0.3], 0.0, 0.3)],
        *[([0.5, 0.5], 0.44, 0.56), ([0.8, 0.8005], 0.795, 0.806), ([-1.0, -1.0005], -1.006, -0.995)],
    ],
)
def test_a_scale_spans_the_least_that_it_should(values: list[float], low: float, high: float) -> None:
    of = scale(values, 200, 10, least=0.01)
    assert (of.low, of.high) == pytest.approx((low, high), abs=0.0021)
    assert (of.low == 0.0) == (low == 0.0) and of.high - of.low >= 0.01 - 1e-9
    assert of.low <= min(values) and max(values) <= of.high + 1e-12


def test_no_two_of_many_lines_look_alike() -> None:
    assert len({LineStyle.of(number) for number in range(120)}) == 120
    svg = line_chart("Loss", [Series(f"run{number}", [(1, 2.0), (2, 1.0 * number)], number) for number in range(12)])
    for run, name in ((0, "s0 few"), (5, "s5 few"), (6, "s0 d1"), (11, "s5 d1")):
        assert f'<g class="{name}" data-run="{run}">' in svg
        assert f'<svg class="swatch {name}"' in svg, "the legend has what the chart has"
    assert svg.count("<path") == 2 * 6, "a shape at each point of those beyond the colours, and in the legend"
    many = line_chart("Loss", [Series(f"run{n}", [(float(x), x * n) for x in range(300)], n) for n in range(13)])
    assert "13 lines, as marked in the table" in many and "swatch" not in many
    assert all(1 < path.count("M") < 20 for path in re.findall(r'<path d="(.+?)"', many))
    bars = histogram("x", {f"split{n}": [1, 2, n] for n in range(8)}, "n", whole=True)
    assert '<g class="s0 d1">' in bars and '<svg class="swatch bar s0 d1' in bars


def test_whole_ticks_are_whole() -> None:
    assert scale([1, 2, 3], 0, 100, whole=True).ticks == (1, 2, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (3e-5, "3e-5"), (12500, "12.5k"), (2_000_000, "2e6"), (1234.5, "1234"), (-0.5, "-0.5")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("value", "text", "result"),
    [
        *[(4.348e-17, "0", "0"), (-2e-12, "0", "0"), (0.62234, "0.6223", "0.622"), (3e-5, "3e-5", "3e-5")],
        *[(12345.6, "12,346", "12,346"), (math.nan, "nan", "nan"), (2, "2", "2.00")],
    ],
)
def test_figures_are_those_of_a_person(value: float, text: str, result: str) -> None:
    assert (measured(value), figure(value)) == (text, result)
    assert figures([4.348e-17, None, 0.5]) == ["0.000", "–", "0.500"] and figures([4.348e-17]) == ["0"]


def test_many_points_are_thinned_and_the_last_one_stays() -> None:
    points = thinned([(i, i) for i in range(5000)])
    assert len(points) <= MAX_POINTS
    assert points[-1] == (4999, 4999)


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("Loss", [Series("loss", [(1, math.nan), (math.inf, 2)])]) == ""


@settings(deadline=None)  # a loaded machine takes longer than 200 ms
@given(st.lists(st.tuples(st.integers(0, 10**7), VALUES), min_size=1, max_size=30))
def test_lines_stay_in_the_frame(points: list[tuple[int, float]]) -> None:
    svg = line_chart("x", [Series("a", [(float(x), y) for x, y in points])])
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', svg):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_a_sentence_keeps_its_code_and_nothing_else_of_html() -> None:
    assert with_code("`a<b>` and <i> `c") == "<code>a&lt;b&gt;</code> and &lt;i&gt; `c"
