"""Accounts add up, tell their error, and come back from disk as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import NetworkError, PartialError
from lavis_ext.prepare.urls.job import ListAccount, LostImage, is_of_origin, read_account


def account(
    present: int, reasons: list[str], folder: Path, threshold: float = 1.0, corrupt: bool = False
) -> ListAccount:
    made = ListAccount(name="sbu", expected=present + len(reasons), present=present, threshold=threshold)
    made.save(folder, [LostImage(str(n), f"http://h/{n}", reason, corrupt) for n, reason in enumerate(reasons)])
    return made


def test_saved_and_read_again(tmp_path: Path) -> None:
    made = account(2, ["HTTP 404", "a\ttab\nand line"], tmp_path)
    assert read_account(tmp_path) == made and (made.missing, made.corrupt) == (2, 0)
    assert (tmp_path / "missing.tsv").read_text().splitlines()[2] == "1\thttp://h/1\ta tab and line\t"
    assert not list(tmp_path.glob("*.part"))
    assert read_account(tmp_path / "other") is None
    (tmp_path / "account.json").write_text('{"name": "x", "what": 1}')
    assert read_account(tmp_path) is None


@pytest.mark.parametrize(
    ("present", "reasons", "threshold", "kind"),
    [
        (10, [], 1.0, None),
        (0, [], 1.0, None),
        (9, ["HTTP 404"], 0.9, None),
        (9, ["HTTP 404"], 0.91, PartialError),
        (0, ["timeout", "connection"], 0.0, NetworkError),
        (0, ["timeout", "HTTP 404"], 0.0, PartialError),
    ],
)
def test_error(present: int, reasons: list[str], threshold: float, kind: type | None, tmp_path: Path) -> None:
    error = account(present, reasons, tmp_path, threshold).error
    assert error is None if kind is None else type(error) is kind


def test_line_tells_the_commonest_reasons(tmp_path: Path) -> None:
    made = account(1, ["a", "a", "b", "c", "d", "e"], tmp_path, corrupt=True)
    assert made.line() == "sbu: 1 of 7 images (14.3%), 0 missing, 6 corrupt: a ×2, b ×1, c ×1, d ×1, 1 other reasons"


def test_what_may_pass_and_what_it_covers(tmp_path: Path) -> None:
    assert account(1, ["HTTP 503"], tmp_path).passing and not account(1, ["HTTP 404"], tmp_path).passing
    some, every = ListAccount(name="x", asked=10), ListAccount(name="x")
    assert some.covers(10) and not some.covers(11) and not some.covers(None)
    assert every.covers(None) and every.covers(5)


def test_a_list_of_nothing_is_all_there() -> None:
    assert ListAccount(name="x").share == 1.0 and ListAccount(name="x", expected=4, present=3).share == 0.75


def test_parts_that_are_no_longer_needed_do_not_change_what_a_list_is_of(tmp_path: Path) -> None:
    """A fetched part may be removed; a file of the user's own that is one too few is another list."""
    parts = [tmp_path / f"{n}.parquet" for n in range(2)]
    for path in parts:
        path.write_bytes(b"PAR1")
    stamps = {path.name: [f"https://h/{path.name}", 4, path.stat().st_mtime_ns, ""] for path in parts}
    assert is_of_origin({"files": stamps}, {parts[0]: "https://h/0.parquet"}, tmp_path)
    assert not is_of_origin({"files": stamps}, {parts[0]: "https://h/other.parquet"}, tmp_path)
    own = {name: ["", *stamp[1:]] for name, stamp in stamps.items()}
    assert is_of_origin({"files": own}, dict.fromkeys(parts, ""), tmp_path)
    assert not is_of_origin({"files": own}, {parts[0]: ""}, tmp_path)


@settings(deadline=None)
@given(st.integers(0, 50), st.lists(st.booleans(), max_size=30))
def test_everything_adds_up(present: int, corrupt: list[bool]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = ListAccount(name="x", expected=present + len(corrupt), present=present)
        made.save(Path(folder), [LostImage("1", "u", "why", flag) for flag in corrupt])
    assert made.expected == made.present + made.missing + made.corrupt and sum(made.reasons.values()) == len(corrupt)
