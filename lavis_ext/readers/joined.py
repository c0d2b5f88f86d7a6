"""Official VQA files (https://visualqa.org/download.html) as rows: questions in one file, their answers in another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lavis_ext.errors import IntegrityError
from lavis_ext.readers.parse import REFETCH, Row, parse_rows

HEAD = 1 << 16
_SUBTYPE = re.compile(rb'"data_subtype"\s*:\s*"([\w-]+)"')
_NAMED = re.compile(r"(?:train|val)20\d\d|test(?:-dev)?20\d\d")


class Source(Protocol):
    """What rows are made from where one file alone does not tell them; picklable."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, that which names the rows first."""

    @property
    def name(self) -> str:
        """One name for all."""

    def parse(self) -> list[Row]:
        """All rows; raises IntegrityError."""


@dataclass(frozen=True)
class OneFile:
    """What a source of a single file has in common; `KIND` is what its rows are, beside others of the same file."""

    path: Path
    KIND: ClassVar[str] = "rows"

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def name(self) -> str:
        """A name of its own: the file may be read as other rows too."""
        return f"{self.path.name}.{self.KIND}"


@dataclass(frozen=True)
class Joined:
    """A file of questions and, where it is published, that of their answers: one table of rows in LAVIS' form."""

    questions: Path
    answers: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Both files, the questions first."""
        return (self.questions,) if self.answers is None else (self.questions, self.answers)

    @property
    def name(self) -> str:
        """Both names in one."""
        return "+".join(file.name for file in self.files)

    def __str__(self) -> str:
        return " + ".join(map(str, self.files))

    def parse(self) -> list[Row]:
        """`question_id`, `question`, `image` and, with answers, `answer` (10 texts); raises IntegrityError.

        Every question needs its answers: files of different splits are refused.
        """
        where, subtype = str(self.questions), subtype_of(self.questions)
        rows = [_question(row, subtype, f"{where} record {i}") for i, row in enumerate(parse_rows(self.questions))]
        if self.answers is None:
            return rows
        answers = {row.get("question_id"): row for row in parse_rows(self.answers)}
        lacking = [row["question_id"] for row in rows if row["question_id"] not in answers]
        if lacking:
            what = f"{len(lacking)} of {len(rows)} questions have no answers in {self.answers}, first {lacking[0]}"
            raise IntegrityError(where, what, "give questions and answers of the same split")
        return [{**row, **_answers(answers[row["question_id"]], self.answers)} for row in rows]


def files_of(source: Path | Source) -> tuple[Path, ...]:
    """The files that rows are made from."""
    return (source,) if isinstance(source, Path) else source.files


def subtype_of(path: Path) -> str | None:
    """Which COCO images an official file is about (`val2014`), by what it says, else by its name; None: not known."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, size - HEAD))
        found = _SUBTYPE.search(head) or _SUBTYPE.search(file.read())
    if found:
        return found[1].decode()
    named = _NAMED.search(path.name)
    return named[0] if named else None


def coco_image(subtype: str, image_id: int) -> str:
    """`val2014/COCO_val2014_000000000042.jpg`; test-dev is part of test, images of 2017 have no prefix."""
    folder = subtype.replace("-dev", "")
    prefix = "" if folder.endswith("2017") else f"COCO_{folder}_"
    return f"{folder}/{prefix}{image_id:012d}.jpg"


def _question(row: Row, subtype: str | None, where: str) -> Row:
    if not {"question_id", "question", "image_id"} <= row.keys() or type(row["image_id"]) is not int:
        raise IntegrityError(where, "is no question with `question_id`, `question` and `image_id`", REFETCH)
    image = {"image": coco_image(subtype, row["image_id"])} if subtype else {"image_id": row["image_id"]}
    return {"question_id": row["question_id"], "question": row["question"], **image}


def _answers(row: Row, path: Path) -> Row:
    given: Any = row.get("answers")
    if not isinstance(given, list) or not all(isinstance(one, dict) and "answer" in one for one in given):
        raise IntegrityError(f"{path} question {row.get('question_id')}", "has no list of answers", REFETCH)
    return {"answer": [str(one["answer"]) for one in given]}
