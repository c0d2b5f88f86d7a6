"""The annotation files of a split in any order, told apart by what they hold: rows, questions, answers, answer list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lavis_ext.errors import ConfigError
from lavis_ext.readers.joined import HEAD, Joined, subtype_of

Kind = Literal["rows", "questions", "answers", "answer_list"]
_SCALARS = re.compile(rb'\s*\[\s*(?:"|-?\d|\])')
_QUESTIONS = re.compile(rb'"questions"\s*:\s*\[')
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[')


@dataclass(frozen=True)
class SplitFiles:
    """What the rows of a split are made from, and the files that only an evaluation reads."""

    rows: tuple[Path | Joined, ...]
    answer_list: Path | None = None
    questions: tuple[Path, ...] = ()
    answers: tuple[Path, ...] = ()


def sort_files(paths: Iterable[Path]) -> SplitFiles:
    """Sort the files of a split: LAVIS' four of a VQA split, official questions and answers, or plain rows.

    Where rows are given, official files serve the evaluation only; else the rows are made from them. Raises ConfigError
    where there is nothing to make rows from.
    """
    kinds: dict[Kind, list[Path]] = {"rows": [], "questions": [], "answers": [], "answer_list": []}
    for path in paths:
        kinds[kind_of(path)].append(path)
    rows: list[Path | Joined] = [*kinds["rows"]] or [*_joined(kinds["questions"], kinds["answers"])]
    if not rows:
        found = ", ".join(f"{path} ({kind})" for kind, some in kinds.items() for path in some) or "no file"
        raise ConfigError(found, "no rows and no questions among the annotations", "name the file of questions too")
    lists = kinds["answer_list"]
    return SplitFiles(tuple(rows), lists[0] if lists else None, tuple(kinds["questions"]), tuple(kinds["answers"]))


def kind_of(path: Path) -> Kind:
    """What a file holds, by its first 64 KiB; what is not known for something else, or not there, is rows."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return "rows"
    with path.open("rb") as file:
        head = file.read(HEAD).removeprefix(b"\xef\xbb\xbf")
    if _SCALARS.match(head):
        return "answer_list" if path.stat().st_size > len(b"[ ]\n") else "rows"
    if not head.lstrip().startswith(b"{"):
        return "rows"
    if _QUESTIONS.search(head):
        return "questions"
    return "answers" if _ANNOTATIONS.search(head) and b'"question_id"' in head else "rows"


def _joined(questions: Sequence[Path], answers: Sequence[Path]) -> list[Joined]:
    """Each file of questions with the answers to the same images; without such, one pair is taken as it stands."""
    if len(questions) == len(answers) == 1:
        return [Joined(questions[0], answers[0])]
    by_subtype = {subtype_of(path): path for path in answers}
    return [Joined(path, by_subtype.get(subtype_of(path))) for path in questions]
