"""The section of a report that shows how answers fared by kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.browse import write_run_report
from lavis_ext.browse.answers import answers_section

FOUND: dict[str, Any] = {
    "split": "val",
    "answer_types": [{"name": "yes/no", "questions": 3000, "accuracy": 33.333}],
    "question_types": [{"name": "<how many>", "questions": 2, "accuracy": 150}],
    "confusion": {"yes/no": {"yes/no": 3, "colour": 1}},
    "mistakes": [{"type": "yes/no", "truth": "yes", "said": "", "questions": 2}],
}


def test_tables_are_shown_and_escaped() -> None:
    page = answers_section(FOUND)
    assert "Answers on val" in page
    assert "3,000" in page
    assert "33.33" in page
    assert "&lt;how many&gt;" in page
    assert "--h:100%" in page  # no bar leaves its cell
    assert '3 <span class="share">75%</span>' in page
    assert "colour" in page
    assert "(nothing)" in page


@pytest.mark.parametrize("found", [{}, {"confusion": 3}, {"answer_types": ["x"], "mistakes": None}])
def test_a_torn_file_is_an_empty_section(found: dict[str, Any]) -> None:
    assert answers_section(found) == ""


def test_the_report_has_the_section(tmp_path: Path) -> None:
    folder = tmp_path / "result" / "breakdown"
    folder.mkdir(parents=True)
    (folder / "val.json").write_text(json.dumps(FOUND))
    assert "Answers on val" in write_run_report(tmp_path).read_text()
