"""Scales with round ticks, and lines that stay inside their frame."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.browse.chart import HEIGHT, MAX_POINTS, WIDTH, Series, line_chart, scale, shown, thinned

VALUES = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


@given(st.lists(VALUES, min_size=1, max_size=20))
def test_a_scale_holds_its_values_between_round_ticks(values: list[float]) -> None:
    of = scale(values, 200, 10)
    span = of.high - of.low
    assert of.low <= min(values) + 1e-6 * span
    assert of.high >= max(values) - 1e-6 * span
    assert 2 <= len(of.ticks) <= 12
    assert all(9.9 <= of(value) <= 200.1 for value in values)


def test_whole_ticks_are_whole() -> None:
    assert scale([1, 2, 3], 0, 100, whole=True).ticks == (1, 2, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (3e-5, "3e-5"), (12500, "12.5k"), (2_000_000, "2e6"), (1234.5, "1234"), (-0.5, "-0.5")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert shown(value) == text


def test_many_points_are_thinned_and_the_last_one_stays() -> None:
    points = thinned([(i, i) for i in range(5000)])
    assert len(points) <= MAX_POINTS
    assert points[-1] == (4999, 4999)


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("Loss", [Series("loss", [(1, math.nan), (math.inf, 2)])]) == ""


@given(st.lists(st.tuples(st.integers(0, 10**7), VALUES), min_size=1, max_size=30))
def test_lines_stay_in_the_frame(points: list[tuple[int, float]]) -> None:
    svg = line_chart("x", [Series("a", [(float(x), y) for x, y in points])])
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', svg):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT
