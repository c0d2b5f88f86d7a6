"""VQA's official accuracy over two `VQA` objects; the formula is that of `lavis_ext.metrics.vqa`."""
# ruff: noqa: N802, N803 - the official names

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.vqa_tools.vqa import VQA

Scores = dict[str, list[float]]


class VQAEval:
    """`accuracy` (`overall`, `perQuestionType`, `perAnswerType`) in per cent to `n` decimals, once `evaluate()` ran.

    `evalQA`, `evalQuesType` and `evalAnsType` have it of each question. Unlike upstream's, the annotations given are
    not changed, so that a second call gives the same.
    """

    def __init__(self, vqa: VQA | None = None, vqaRes: VQA | None = None, n: int = 2) -> None:
        self.n, self.vqa, self.vqaRes = n, vqa, vqaRes
        self.accuracy: dict[str, Any] = {}
        self.evalQA: dict[Any, float] = {}
        self.evalQuesType: dict[str, dict[Any, float]] = {}
        self.evalAnsType: dict[str, dict[Any, float]] = {}
        self.params: dict[str, Any] = {} if vqa is None else {"question_id": vqa.getQuesIds()}

    def evaluate(self, quesIds: Sequence[Any] | None = None) -> None:
        """Score the questions, by default all; raises ConfigError for none, or for one without annotation or answer."""
        asked = self.params.get("question_id", []) if quesIds is None else list(quesIds)
        if self.vqa is None or self.vqaRes is None or not asked:
            raise ConfigError("VQAEval", "has no questions to score", "give annotations, and `VQA.loadRes` of them")
        if lacking := [one for one in asked if one not in self.vqa.qa or one not in self.vqaRes.qa]:
            what = f"{len(lacking)} questions have no annotation or no answer, as {lacking[0]}"
            raise ConfigError("VQAEval", what, "leave them out")
        score = import_module("lavis_ext.metrics.vqa").official_score
        scores: list[float] = []
        by_question: Scores = defaultdict(list)
        by_answer: Scores = defaultdict(list)
        for one in asked:
            row = self.vqa.qa[one]
            found = score(self.vqaRes.qa[one]["answer"], [answer["answer"] for answer in row["answers"]])
            scores.append(found)
            by_question[row["question_type"]].append(found)
            by_answer[row["answer_type"]].append(found)
            self.setEvalQA(one, found)
            self.setEvalQuesType(one, row["question_type"], found)
            self.setEvalAnsType(one, row["answer_type"], found)
        self.setAccuracy(scores, by_question, by_answer)

    def processPunctuation(self, inText: str) -> str:
        """An answer without punctuation."""
        plain: str = import_module("lavis_ext.metrics.vqa").strip_punctuation(inText)
        return plain

    def processDigitArticle(self, inText: str) -> str:
        """An answer in small letters, without articles, with digits, and apostrophes where they belong."""
        plain: str = import_module("lavis_ext.metrics.vqa").plain_words(inText)
        return plain

    def setAccuracy(
        self, accQA: Sequence[float], accQuesType: Mapping[str, Any], accAnsType: Mapping[str, Any]
    ) -> None:
        """The means of scores in [0, 1]."""
        self.accuracy = {
            "overall": self._percent(accQA),
            "perQuestionType": {name: self._percent(scores) for name, scores in accQuesType.items()},
            "perAnswerType": {name: self._percent(scores) for name, scores in accAnsType.items()},
        }

    def setEvalQA(self, quesId: Any, acc: float) -> None:
        """Keep the score of one question."""
        self.evalQA[quesId] = round(100 * acc, self.n)

    def setEvalQuesType(self, quesId: Any, quesType: str, acc: float) -> None:
        """Keep the score of one question under its type."""
        self.evalQuesType.setdefault(quesType, {})[quesId] = round(100 * acc, self.n)

    def setEvalAnsType(self, quesId: Any, ansType: str, acc: float) -> None:
        """Keep the score of one question under the type of its answer."""
        self.evalAnsType.setdefault(ansType, {})[quesId] = round(100 * acc, self.n)

    def _percent(self, scores: Sequence[float]) -> float:
        return round(100 * float(sum(scores)) / len(scores), self.n)
