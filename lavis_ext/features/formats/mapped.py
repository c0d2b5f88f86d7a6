"""A table of features read through its offset map: the rows that the map names, as Oscar's VQA reads them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lavis_ext.errors import UsageError
from lavis_ext.features.files import read_errors
from lavis_ext.features.formats.base import guard
from lavis_ext.features.formats.lines import LONGEST
from lavis_ext.features.formats.offsets import MAPPED, begins, load_places, table_of
from lavis_ext.features.formats.oscar import Sides, parse_row
from lavis_ext.features.row import BadRow, ReadOptions, Row, Rows, Start
from lavis_ext.features.store import FeatureStore


class OffsetMap:
    """The rows of a table that a map names, in the order in which they stand there; other rows are left out."""

    name = "oscar-offsets"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """A row that does not begin where the map says, or is another image's, is a Fault; raises IntegrityError."""
        table = table_of(path)
        places = load_places(path)
        sides = Sides(table, options)
        with read_errors(table), table.open("rb") as file:
            for number, (image_id, at) in enumerate(places, 1):
                if number > start.line:
                    yield guard(number, number, image_id, partial(_row, file, image_id, at, sides, options))

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """A map is nothing without its table: raises UsageError."""
        raise UsageError(self.name, "is read, not written", f"export to oscar-tsv as x{MAPPED}: its map is written too")


def _row(file: BinaryIO, image_id: str, at: int, sides: Sides, options: ReadOptions) -> Row:
    if not begins(file, image_id, at):
        raise BadRow(f"no row of this image begins at byte {at}, where the offset map has it")
    file.seek(at)
    return parse_row(file.readline(LONGEST).rstrip(b"\n"), sides, options)
