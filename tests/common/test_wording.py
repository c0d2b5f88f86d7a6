"""Figures and tables read well."""

from lavis_ext.common.wording import columns, fitted, human, shorten


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
