"""Where answers go wrong: accuracy by kind of answer and of question, what is said for what, the frequent mistakes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavis_ext.metrics.answers import Id, percent
from lavis_ext.metrics.vqa import normalize_vqa_answer

KINDS = ("yes/no", "number", "other")
"""VQA's answer types."""
MISTAKES, OPENINGS = 10, 12
_NUMBER = re.compile(r"\d+([.,:]\d+)*")
_OPENERS = frozenset("what how is are was were does do did can could which has have".split())  # noqa: SIM905


@dataclass(frozen=True)
class Judged:
    """One question that was answered and can be judged; `score` in [0, 1]."""

    said: str
    truth: str
    kind: str
    opening: str
    score: float


def kind_of(answer: str) -> str:
    """`yes/no`, `number` or `other`, by what the normalised answer says."""
    plain = normalize_vqa_answer(answer)
    if plain in ("yes", "no"):
        return "yes/no"
    return "number" if _NUMBER.fullmatch(plain) else "other"


def opening_of(question: str) -> str:
    """The first words of a question, by which VQA sorts them: `how many`, `is the`, `where`; "" of none."""
    words = re.findall(r"[\w']+", question.lower())[:2]
    return " ".join(words if words and words[0] in _OPENERS else words[:1])


def judge(
    answers: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    types: Mapping[Id, str],
    openings: Mapping[Id, str],
    score: Callable[[str, Sequence[str]], float],
) -> list[Judged]:
    """The answers to questions that have references; the truth is what most people said, its kind that of `types`."""
    found = []
    for name, said in answers.items():
        if given := references.get(name):
            truth = Counter(given).most_common(1)[0][0]
            kind = types.get(name) or kind_of(truth)
            found.append(Judged(said, truth, kind, openings.get(name, ""), score(said, given)))
    return found


def breakdown(judged: Sequence[Judged]) -> dict[str, Any]:
    """What a report shows, as plain values; accuracies are per cent.

    `answer_types` and `question_types`: {name, questions, accuracy}, the most frequent first; `confusion`: {kind of the
    truth: {kind of what was said: questions}}; `mistakes`: {type, truth, said, questions} of answers that score 0.
    """
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: Counter[tuple[str, str, str]] = Counter()
    for one in judged:
        confusion[one.kind][kind_of(one.said)] += 1
        if not one.score:
            wrong[one.kind, one.truth, one.said] += 1
    asked = [(one.opening, one.score) for one in judged if one.opening]
    return {
        "questions": len(judged),
        "answer_types": grouped((one.kind, one.score) for one in judged),
        "question_types": grouped(asked)[:OPENINGS],
        "confusion": {name: dict(counts.most_common()) for name, counts in sorted(confusion.items(), key=_place)},
        "mistakes": [
            {"type": kind, "truth": truth, "said": said, "questions": count}
            for (kind, truth, said), count in wrong.most_common(MISTAKES)
        ],
    }


def grouped(scores: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    """Accuracy in per cent of each group, the largest first."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, score in scores:
        groups[name].append(score)
    ranked = sorted(groups.items(), key=_size)
    return [{"name": name, "questions": len(some), "accuracy": percent(some)} for name, some in ranked]


def _size(item: tuple[str, list[float]]) -> tuple[int, str]:
    return (-len(item[1]), item[0])


def _place(item: tuple[str, Any]) -> tuple[int, str]:
    return (KINDS.index(item[0]) if item[0] in KINDS else len(KINDS), item[0])
