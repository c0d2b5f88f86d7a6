"""What the report counts, and that docs/guarantees.md tells of the faults and tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults import control, report
from tests.faults.report import Collector, Entry, Outcome, Run

ENTRIES = [Entry(name, "Group", f"fault {name}", "must") for name in ("T01", "T02", "T03", "T04", "T05", "H01")]
TESTS = """
import pytest

@pytest.mark.fault("T01", "T02")
def test_passes(): pass

@pytest.mark.fault("T02")
def test_fails(): assert False

@pytest.mark.parametrize("value", [pytest.param(1, marks=pytest.mark.fault("T03")), 2])
def test_skips(value): pytest.skip("no tmpfs here")

@pytest.mark.fault("T03", "H01")
def test_passes_too(): pass

@pytest.mark.xfail
@pytest.mark.fault("T05")
def test_known_to_fail(): assert False

def test_unmarked(): assert False
"""


def test_every_outcome_of_a_fault_counts(tmp_path: Path) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(TESTS)
    collector = Collector()
    pytest.main(["-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-q", str(path)], plugins=[collector])
    outcomes = collector.outcomes(ENTRIES)
    states = {name: outcome.state for name, outcome in outcomes.items()}
    assert states == {
        "T01": "survived",
        "T02": "lost",
        "T03": "not run",
        "T04": "not run",
        "T05": "lost",
        "H01": "survived",
    }
    assert (outcomes["T03"].reason, outcomes["T04"].reason) == ("no tmpfs here", "no test injects it")
    text = report.lines(ENTRIES, Run(outcomes))
    assert text[0] == "6 listed · 4 run · 2 survived · 2 lost · 2 not run"
    assert "1 listed · 1 run · 1 survived · 0 lost · 0 not run" in text[2]
    assert [line.split()[1] for line in text if line.startswith("lost:")] == ["T02", "T05"]


def test_marks_are_read_from_the_source(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_some.py").write_text(TESTS)
    (folder / "test_more.py").write_text("import pytest\nNAME = 'T04'\npytestmark = pytest.mark.fault(NAME)\n")
    found, made = report.marks(folder)
    assert sorted(found) == ["H01", "T01", "T02", "T03", "T05"] and found["T01"] == ["tests/test_some.py"]
    assert made == {"tests/test_more.py"}


def test_the_catalogue_is_whole_and_every_mark_is_of_it() -> None:
    entries = report.catalogue()
    sizes = {"T": 20, "R": 14, "F": 14, "A": 13, "I": 10, "D": 13, "S": 13, "W": 14, "K": 16, "P": 9, "U": 10, "H": 52}
    assert [entry.id for entry in entries] == [f"{c}{n:02}" for c, size in sizes.items() for n in range(1, size + 1)]
    assert all(entry.group and entry.fault and entry.must for entry in entries)
    assert set(report.marks()[0]) <= {entry.id for entry in entries}


def test_the_page_is_what_the_last_run_gave_and_no_mark_has_changed_since() -> None:
    """Where this fails: `python -m tests.faults.report --write`."""
    ran = Run.load()
    page = report.PAGE.read_text(encoding="utf-8")
    assert page == report.with_part(page, report.page_part(report.catalogue(), ran))
    written, made = report.marks()
    for name, outcome in ran.outcomes.items():
        assert set(written.get(name, [])) <= set(outcome.tests) <= {*written.get(name, []), *made}, name
    assert not [name for name, outcome in ran.outcomes.items() if outcome.state == report.LOST]
    assert re.search(r"\*\*198 listed · \d+ run", page)


def test_the_page_tells_of_as_many_controls_as_there_are() -> None:
    ids = {case.id for case in [*control.DOWNLOADS, *control.ARCHIVES]}
    known = {entry.id for entry in report.catalogue()}
    assert f"injects {len(ids)} of these faults" in report.PAGE.read_text(encoding="utf-8") and ids <= known


def test_a_page_without_its_place_is_refused() -> None:
    with pytest.raises(SystemExit):
        report.with_part("# Nothing here\n", report.page_part(ENTRIES, Run({"T01": Outcome("survived")})))
