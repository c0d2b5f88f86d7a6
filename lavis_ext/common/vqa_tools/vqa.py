"""VQA's questions and annotations by their ids, after the official interface (Agrawal et al., visualqa.org)."""
# ruff: noqa: N802, N803 - the official names

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import read_errors
from lavis_ext.common.utils import load_json

Record = dict[str, Any]
INFO = ("info", "task_type", "data_type", "data_subtype", "license")


class VQA:
    """Annotations `qa` and questions `qqa` by `question_id`, and annotations `imgToQA` by `image_id`.

    Raises DiskError or ConfigError for files that are not VQA's.
    """

    def __init__(self, annotation_file: str | Path | None = None, question_file: str | Path | None = None) -> None:
        self.dataset: Record = {}
        self.questions: Record = {}
        self.qa: dict[Any, Record] = {}
        self.qqa: dict[Any, Record] = {}
        self.imgToQA: dict[Any, list[Record]] = {}
        if annotation_file is not None and question_file is not None:
            self.dataset = read_records(annotation_file, "annotations", ("question_id", "image_id"))
            self.questions = read_records(question_file, "questions", ("question_id",))
            self.createIndex()

    def createIndex(self) -> None:
        """Sort `dataset` and `questions` by ids again, after they were changed."""
        rows = self.dataset["annotations"]
        self.qa = {row["question_id"]: row for row in rows}
        self.qqa = {row["question_id"]: row for row in self.questions["questions"]}
        self.imgToQA = {}
        for row in rows:
            self.imgToQA.setdefault(row["image_id"], []).append(row)

    def info(self) -> Record:
        """What the annotations say of themselves (LAVIS' prints it)."""
        return dict(self.dataset.get("info") or {})

    def getQuesIds(self, imgIds: Any = (), quesTypes: Any = (), ansTypes: Any = ()) -> list[Any]:
        """The questions of some pictures, of some types, with answers of some types; an empty filter lets all pass."""
        pictures = several(imgIds)
        rows = (
            [row for picture in pictures for row in self.imgToQA.get(picture, ())]
            if pictures
            else self.dataset["annotations"]
        )
        return [row["question_id"] for row in of_types(rows, quesTypes, ansTypes)]

    def getImgIds(self, quesIds: Any = (), quesTypes: Any = (), ansTypes: Any = ()) -> list[Any]:
        """The picture of each question that the filters let pass."""
        asked = several(quesIds)
        rows = [self.qa[one] for one in asked if one in self.qa] if asked else self.dataset["annotations"]
        return [row["image_id"] for row in of_types(rows, quesTypes, ansTypes)]

    def loadQA(self, ids: Any = ()) -> list[Record]:
        """The annotations of some questions."""
        return [self.qa[one] for one in several(ids)]

    def showQA(self, anns: Iterable[Mapping[str, Any]]) -> None:
        """Print questions with their answers."""
        for row in anns:
            print(f"Question: {self.qqa[row['question_id']]['question']}")  # noqa: T201
            for answer in row["answers"]:
                print(f"Answer {answer['answer_id']}: {answer['answer']}")  # noqa: T201

    def loadRes(self, resFile: str | Path, quesFile: str | Path) -> VQA:
        """A result file, `[{question_id, answer}, …]`, with picture and types of each question.

        Raises ConfigError unless exactly the annotated questions are answered, of multiple choice with one of theirs.
        """
        where, found = str(resFile), VQA()
        rows = records(read_json(resFile), where, ("question_id", "answer"))
        answered = {row["question_id"] for row in rows}
        if answered != set(self.qa):
            more, fewer = len(answered - set(self.qa)), len(set(self.qa) - answered)
            what = f"answers {more} questions that are not annotated, and lacks {fewer} that are"
            raise ConfigError(where, what, "give the result of the split that the annotations belong to")
        chosen = self.questions.get("task_type", self.dataset.get("task_type")) == "Multiple Choice"
        for row in rows:
            one = self.qa[row["question_id"]]
            choices = self.qqa[row["question_id"]].get("multiple_choices") if chosen else None
            if choices is not None and row["answer"] not in choices:
                what = f"'{row['answer']}' is no choice of question {row['question_id']}"
                raise ConfigError(where, what, "answer with one of its multiple_choices")
            row.update({key: one.get(key) for key in ("image_id", "question_type", "answer_type")})
        found.questions = read_records(quesFile, "questions", ("question_id",))
        found.dataset = {**{key: self.questions.get(key) for key in INFO}, "annotations": rows}
        found.createIndex()
        return found


def of_types(rows: Iterable[Record], questions: Any, answers: Any) -> list[Record]:
    """The rows of some types of questions and of answers; an empty filter lets all pass."""
    kept = list(rows)
    for key, wanted in (("question_type", several(questions)), ("answer_type", several(answers))):
        kept = [row for row in kept if not wanted or row.get(key) in wanted]
    return kept


def several(given: Any) -> list[Any]:
    """One id or type, or several, as a list."""
    return list(given) if isinstance(given, list | tuple | set) else [given]


def read_records(path: str | Path, key: str, needs: tuple[str, ...]) -> Record:
    """The object of a VQA file with its list `key`; raises DiskError, ConfigError."""
    tree = read_json(path)
    if not isinstance(tree, dict) or key not in tree:
        raise ConfigError(str(path), f"has no list `{key}`", f"give VQA's file of {key}")
    records(tree[key], str(path), needs)
    found: Record = tree
    return found


def read_json(path: str | Path) -> Any:
    """The value of a JSON file; raises DiskError, ConfigError."""
    try:
        with read_errors(Path(path)):
            return load_json(path)
    except ValueError as error:
        raise ConfigError(str(path), f"is no JSON: {error}", "give a file of VQA's form") from error


def records(rows: Any, where: str, needs: tuple[str, ...]) -> list[Record]:
    """The rows; raises ConfigError where they are no list of objects with these keys."""
    whole = isinstance(rows, list) and all(isinstance(row, dict) and set(needs) <= set(row) for row in rows)
    if not whole:
        raise ConfigError(where, f"holds no list of objects with {', '.join(needs)}", "give a file of VQA's form")
    found: list[Record] = rows
    return found
