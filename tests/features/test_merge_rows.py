"""Parts joined into one file: each image once, nothing twice on a second run, every row that is none named."""

from pathlib import Path

import pytest

from lavis_ext.common.errors import OwnedError, UsageError
from lavis_ext.features.extraction.merging import Merged, merge_rows
from lavis_ext.features.extraction.rows import ExtractionLog, owned
from lavis_ext.features.files import part_of
from tests.support.features import BUTD, LXMERT, VOLTA, Image, csv_tsv, make_image, oscar_tsv


def images(*names: str) -> list[Image]:
    return [make_image(name, 2, seed=len(name) + ord(name[0])) for name in names]


def parts(folder: Path, *groups: list[Image]) -> list[Path]:
    return [csv_tsv(folder / f"out.tsv.{number}", group, VOLTA) for number, group in enumerate(groups)]


def ids(path: Path) -> list[str]:
    return [line.split(b"\t")[0].decode() for line in path.read_bytes().splitlines()]


def told(merged: Merged) -> tuple[int, int, int]:
    return merged.rows, merged.added, merged.repeated


@pytest.mark.parametrize("columns", [BUTD, LXMERT, VOLTA], ids=["butd", "lxmert", "volta"])
def test_rows_are_copied_as_they_are(tmp_path: Path, columns: list[str]) -> None:
    sources = [csv_tsv(tmp_path / f"p{i}.tsv", images(*group), columns) for i, group in enumerate(("ab", "c"))]
    assert told(merge_rows(sources, tmp_path / "out.tsv")) == (3, 3, 0)
    assert (tmp_path / "out.tsv").read_bytes() == b"".join(source.read_bytes() for source in sources)


def test_again_adds_nothing_and_more_parts_add_what_is_new(tmp_path: Path) -> None:
    sources, out = parts(tmp_path, images("a", "b"), images("c", "b")), tmp_path / "out.tsv"
    assert told(merge_rows(sources[:1], out)) == (2, 2, 0)
    before = out.stat()
    assert told(merge_rows(sources[:1], out)) == (2, 0, 2)
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert told(merge_rows(sources, out)) == (3, 1, 3) and ids(out) == ["a", "b", "c"]
    assert out.stat().st_ino == before.st_ino and not part_of(out).exists()


def test_literals_of_python_3_become_base64(tmp_path: Path) -> None:
    plain = csv_tsv(tmp_path / "plain.tsv", images("a", "b"), VOLTA)
    quoted = csv_tsv(tmp_path / "p.tsv", images("a", "b"), VOLTA, literals=True)
    assert b"b'" in quoted.read_bytes()
    merge_rows([quoted], tmp_path / "out.tsv")
    assert (tmp_path / "out.tsv").read_bytes() == plain.read_bytes()
    assert told(merge_rows([quoted, plain], tmp_path / "out.tsv")) == (2, 0, 4)


def test_an_image_with_other_numbers_is_named_and_the_first_counts(tmp_path: Path) -> None:
    sources = parts(tmp_path, images("a"), [make_image("a", 3, seed=99)])
    merged = merge_rows(sources, tmp_path / "out.tsv")
    assert merged.differing == ["a"] and (tmp_path / "out.tsv").read_bytes() == sources[0].read_bytes()


def test_damaged_rows_are_named_and_left_out(tmp_path: Path) -> None:
    first, second = parts(tmp_path, images("a", "b"), images("c", "d"))
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2 - 100] + second.read_bytes())  # appended to half a row, as upstream does
    second.write_bytes(second.read_bytes()[:-30])
    merged = merge_rows([first, second], tmp_path / "out.tsv")
    assert [(path.name, fault.line, fault.image_id) for path, fault in merged.faults] == [
        ("out.tsv.0", 1, "a"),
        ("out.tsv.1", 2, "d"),
    ]
    assert "expected 13 columns" in merged.faults[0][1].what and "does not end" in merged.faults[1][1].what
    assert ids(tmp_path / "out.tsv") == ["d", "c"]


def test_a_row_whose_numbers_do_not_fit_is_left_out(tmp_path: Path) -> None:
    source = parts(tmp_path, images("a", "b"))[0]
    first, rest = source.read_bytes().split(b"\r\n", 1)
    cells = first.split(b"\t")
    cells[7] = b"5"
    source.write_bytes(b"\t".join(cells) + b"\r\n" + rest)
    merged = merge_rows([source], tmp_path / "out.tsv")
    assert ids(tmp_path / "out.tsv") == ["b"] and "truncated" in merged.faults[0][1].what


def test_what_a_kill_left_is_gone_on_with(tmp_path: Path) -> None:
    sources, out = parts(tmp_path, images("a", "b"), images("c")), tmp_path / "out.tsv"
    whole = b"".join(source.read_bytes() for source in sources)
    for size in (0, 5, len(sources[0].read_bytes()) - 1, len(whole) - 1, len(whole)):
        out.unlink(missing_ok=True)
        part_of(out).write_bytes(whole[:size])
        assert merge_rows(sources, out).rows == 3
        assert out.read_bytes() == whole and not part_of(out).exists()


def test_half_a_row_at_the_end_of_a_file_is_cut_off_even_if_nothing_comes(tmp_path: Path) -> None:
    sources, out = parts(tmp_path, images("a")), tmp_path / "out.tsv"
    out.write_bytes(sources[0].read_bytes() + b"half\t1")
    assert told(merge_rows(sources, out)) == (1, 0, 1)
    assert out.read_bytes() == sources[0].read_bytes()


def test_a_file_and_its_part_are_not_both_used(tmp_path: Path) -> None:
    sources, out = parts(tmp_path, images("a")), tmp_path / "out.tsv"
    merge_rows(sources, out)
    part_of(out).write_bytes(b"")
    with pytest.raises(UsageError, match="move one of them away"):
        merge_rows(sources, out)


def test_the_account_tells_what_is_missing_and_why(tmp_path: Path) -> None:
    sources, out = parts(tmp_path, images("a"), images("c")), tmp_path / "out.tsv"
    ExtractionLog({"detector": "x"}, ["a", "b"], {"b": "image is damaged"}).write(sources[0])
    merged = merge_rows(sources, out)
    assert not merged.accounted and merged.missing == {"b": "image is damaged"}
    ExtractionLog({"detector": "x"}, ["c", "d"]).write(sources[1])
    merged = merge_rows(sources, out)
    assert merged.accounted and merged.missing == {"b": "image is damaged", "d": "not extracted yet"}
    kept = ExtractionLog.read(out)
    assert kept is not None and kept.expected == ["a", "b", "c", "d"] and kept.made == {"detector": "x"}
    late = csv_tsv(tmp_path / "late.tsv", images("b", "d"), VOLTA)
    assert merge_rows([late], out).missing == {}


def test_expected_images_of_rows_without_an_account(tmp_path: Path) -> None:
    merged = merge_rows(parts(tmp_path, images("a")), tmp_path / "out.tsv", expected=["a", "z"])
    assert merged.accounted and merged.missing == {"z": "not extracted yet"}


def test_parts_of_two_kinds_or_of_none(tmp_path: Path) -> None:
    ours, other = parts(tmp_path, images("a"))[0], oscar_tsv(tmp_path / "o.tsv", images("a"))
    with pytest.raises(UsageError, match="features import"):
        merge_rows([ours, other], tmp_path / "out.tsv")
    with pytest.raises(UsageError, match="features import"):
        merge_rows([other], tmp_path / "out.tsv")
    with pytest.raises(UsageError, match="is not there"):
        merge_rows([tmp_path / "gone.tsv"], tmp_path / "out.tsv")
    empty = tmp_path / "empty.tsv.0"
    empty.touch()
    assert told(merge_rows([empty, ours], tmp_path / "out.tsv")) == (1, 1, 0)


def test_the_order_of_a_glob_is_not_taken_for_parts_and_whole(tmp_path: Path) -> None:
    first, second = parts(tmp_path, images("a"), images("b"))
    whole = tmp_path / "out.tsv"
    merge_rows([first, second], whole)
    before = second.read_bytes()
    for given in ([whole, first], [first, second]):
        with pytest.raises(UsageError, match="name the merged file last"):
            merge_rows(given, second)
    assert second.read_bytes() == before


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with owned(tmp_path / "out.tsv"), pytest.raises(OwnedError):
        merge_rows(parts(tmp_path, images("a")), tmp_path / "out.tsv")
