"""Names and sums by which an archive is refused before a byte is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.common.errors import UnsafeError
from lavis_ext.prepare.archive_formats import Limits, check_members, clean_name
from lavis_ext.prepare.records import Member
from lavis_ext.prepare.selection import name_fault


def member(name: str, size: int = 10, offset: int = 0, packed: int | None = None) -> Member:
    return Member(name, size, 0, offset, size if packed is None else packed, 0)


def row(*names: str) -> list[Member]:
    return [member(name, 10, 100 * n) for n, name in enumerate(names)]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "a/../../evil.jpg",
        "/etc/passwd",
        "C:/evil.jpg",
        "c:evil.jpg",
        "a\\..\\evil.jpg",
        "a//b.jpg",
        "a/./b.jpg",
        "",
        "a/",
        "..",
        "a\0b.jpg",
        "a\nb.jpg",
        "a\x1b[31m.jpg",
        "coco/.lavis_ext/stamps/x.json",
        "x" * 256 + ".jpg",
        "x" * 256,
        "é" * 130,
        "bad\udcff.jpg",
        "/".join("d" * 32) + "/x.jpg",
    ],
)
def test_names_that_could_do_harm_are_refused(name: str) -> None:
    assert name_fault(name)
    with pytest.raises(UnsafeError) as caught:
        check_members(row("good.jpg", name), Limits(), "toy.zip")
    assert caught.value.exit_code == 10


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "val2014/COCO_val2014_000000522418.jpg", "ä/ö.jpg", "a..b/c...jpg", "x" * 255, "d/" * 31 + "x.jpg"],
)
def test_names_of_real_archives_pass(name: str) -> None:
    assert name_fault(name) is None


@given(st.text(min_size=1, max_size=40))
def test_a_name_that_passes_stays_below_its_folder(name: str) -> None:
    if name_fault(name) is None:
        parts = name.split("/")
        assert ".." not in parts and "." not in parts and "" not in parts and "\\" not in name


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (("a.jpg", "a.jpg"), "twice"),
        (("a.jpg", "A.JPG"), "twice"),
        (("é.jpg", "e\u0301.jpg"), "twice"),
        (("a", "a/b.jpg"), "file and a folder"),
        (("a/b", "a/b/c/d.jpg"), "file and a folder"),
        (("toy.zip",), "archive itself"),
    ],
)
def test_names_that_collide_are_refused(names: tuple[str, ...], word: str) -> None:
    with pytest.raises(UnsafeError, match=word):
        check_members(row(*names), Limits(), "here", "toy.zip")


def test_all_reasons_are_reported_at_once_up_to_five() -> None:
    with pytest.raises(UnsafeError) as caught:
        check_members(row(*(f"../{n}" for n in range(9))), Limits(), "toy.zip")
    assert len(caught.value.problems) == 5


def test_the_card_bounds_count_and_bytes_with_five_percent() -> None:
    limits = Limits.declared(1000, files=20, total=1000)
    check_members([member(str(n), 50, 100 * n) for n in range(21)], limits, "toy.zip")
    with pytest.raises(UnsafeError, match="files"):
        check_members([member(str(n), 1, 100 * n) for n in range(23)], limits, "toy.zip")
    with pytest.raises(UnsafeError, match="bytes"):
        check_members([member("a", 1051)], limits, "toy.zip")


def test_without_a_card_a_bomb_is_bounded_by_the_archive() -> None:
    limits = Limits.declared(1 << 20)
    check_members([member("a", 150 << 20)], limits, "toy.zip")
    with pytest.raises(UnsafeError, match="unpack"):
        check_members([member("a", 1 << 30)], limits, "toy.zip")


def test_members_that_share_bytes_are_refused() -> None:
    with pytest.raises(UnsafeError, match="shares bytes"):
        check_members([member("a", 10, 0, 100), member("b", 10, 50, 100)], Limits(), "toy.zip")


def test_leading_dots_of_tars_are_taken_off() -> None:
    assert clean_name("./a/b.jpg") == "a/b.jpg"
    assert clean_name("././a") == "a"
