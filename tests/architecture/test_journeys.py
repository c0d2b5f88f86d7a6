"""The journeys of docs/architecture.md name files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
ROWS = re.findall(r"^\| \d+ \| `(lavis_ext/\S+)` \| (.*) \|$", TEXT.partition("## 2.")[0], flags=re.MULTILINE)


@pytest.mark.parametrize(("file", "text"), ROWS, ids=[file for file, _ in ROWS])
def test_every_file_of_a_journey_is_there(file: str, text: str) -> None:
    """A file named in passing lies beside the row's, in the package, or anywhere below it by its folder."""
    home = (ROOT / file).parent
    assert (ROOT / file).is_file()
    for name in re.findall(r"`([a-z_0-9/]+\.py)`", text):
        places = [home / name, home.parent / name, ROOT / "lavis_ext" / name, home / "builders" / name]
        assert any(place.is_file() for place in places), name


def test_there_are_three_journeys() -> None:
    assert len(ROWS) >= 25
