"""Figures and tables read well."""

from lavis_ext.common.wording import columns, human, shorten


def test_bytes_have_decimal_units() -> None:
    assert [human(n) for n in (0, 900, 13510573713, 2.1e12)] == ["0 B", "900 B", "13.5 GB", "2.1 TB"]


def test_texts_are_cut_with_an_ellipsis() -> None:
    assert shorten("a long licence text", 8) == "a long…"
    assert shorten("short", 8) == "short"


def test_columns_stand_under_each_other() -> None:
    assert columns([["a", "bb"], ["ccc", ""]]) == ["a    bb", "ccc"]
    assert columns([]) == []
