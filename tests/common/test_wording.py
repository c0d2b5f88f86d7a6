"""Figures and tables read well."""

import math

import pytest

from lavis_ext.common.wording import columns, displayed, fitted, human, shorten


def test_bytes_have_decimal_units() -> None:
    assert [human(n) for n in (0, 900, 13510573713, 2.1e12)] == ["0 B", "900 B", "13.5 GB", "2.1 TB"]


def test_texts_are_cut_with_an_ellipsis() -> None:
    assert shorten("a long licence text", 8) == "a long…"
    assert shorten("short", 8) == "short"


def test_columns_stand_under_each_other() -> None:
    assert columns([["a", "bb"], ["ccc", ""]]) == ["a    bb", "ccc"]
    assert columns([]) == []


def test_a_table_keeps_to_the_width_of_the_terminal() -> None:
    rows = [
        ["name", "size", "licence", "shape"],
        ["birds", "1.2 GB", "CC BY-NC-SA 4.0 of the authors", "image_caption"],
    ]
    assert fitted(rows, None) == columns(rows)
    for width in (5, 20, 40, 60, 200):
        assert max(map(len, fitted(rows, width))) <= width
    assert fitted(rows, 30) == ["name   size    licence", "birds  1.2 GB  CC BY-NC-SA 4.…"]


@pytest.mark.parametrize("name", ["Bleu_4", "CIDEr", "overall", "txt_r1", "agg_metrics", "near_Bleu_2", "explored"])
def test_a_score_of_nothing_is_0(name: str) -> None:
    for value in (7.45e-7, 1.575e-9, 9.6e-6, -1e-6, 0.0):
        assert displayed(name, value) == 0.0
    assert displayed(name, 1e-4) == 1e-4 and displayed(name, 33.3) == 33.3 and math.isnan(displayed(name, math.nan))


@pytest.mark.parametrize("name", ["loss", "loss_itc", "teacher_loss", "lr", "lr_vision", "teacher_distance", "NLL"])
def test_a_loss_may_be_small(name: str) -> None:
    assert displayed(name, 1e-6) == 1e-6 and displayed(name, 4e-17) == 0.0
