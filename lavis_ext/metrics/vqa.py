"""Scores of answers: VQA's official accuracy (Antol et al., arXiv:1505.00468), GQA, A-OKVQA, classes; a breakdown by
kind of question; lemmas."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import metrics
from lavis_ext.metrics.settings import GqaKeys, MetricKeys, Normalised

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""The official code passes `re.UNICODE` (32) where `count` belongs, so that it removes at most 32 periods."""
_ARTICLES = frozenset(("a", "an", "the"))
_WORDS = "none zero one two three four five six seven eight nine ten".split()  # noqa: SIM905
_NUMBERS = dict(zip(_WORDS, (str(max(0, i - 1)) for i in range(len(_WORDS))), strict=True))
_APOSTROPHISED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at
""".split()  # noqa: SIM905


def _spellings() -> dict[str, str]:
    """Each contraction under the spellings that lack one apostrophe; capitalised keys, which never match, left out."""
    found = {"somebody'd": "somebodyd"}  # reversed in the official table; kept for equal scores
    for word in _APOSTROPHISED:
        places = [i for i, letter in enumerate(word) if letter == "'"]
        found |= {word[:i] + word[i + 1 :]: word for i in places}
    return found


_CONTRACTIONS = _spellings()


def normalize_vqa_answer(text: str) -> str:
    """A predicted answer in the form that is compared: `"1,000" → "1000"`, `"ten o'clock" → "10 o'clock"`."""
    return plain_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def plain_words(text: str) -> str:
    """In small letters: numbers as digits, no articles, apostrophes where contractions have them."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def strip_punctuation(text: str) -> str:
    """Each mark is removed if it is beside a space anywhere, or if a number has a comma; else it becomes a space."""
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or has_number else " ")
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS)


AGREEING = 3
"""Annotators who must agree for an answer to score 1."""


def vqa_score(prediction: str, answers: Sequence[str]) -> float:
    """`official_score`; with at most three annotators, of whom no three others can agree, 1 if any gave the answer."""
    if 0 < len(answers) <= AGREEING:
        predicted = normalize_vqa_answer(prediction)
        return float(any(normalize_vqa_answer(answer) == predicted for answer in answers))
    return official_score(prediction, answers)


def official_score(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy in [0, 1]: for each annotator, min(1, matches among the others / 3); the mean over annotators.

    The annotators' answers lose their punctuation only where they differ, as in the official evaluation.
    """
    if not answers:
        return 0.0
    predicted = normalize_vqa_answer(prediction)
    given = [strip_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)
    matches = sum(answer == predicted for answer in given)
    return sum(min(1.0, (matches - (answer == predicted)) / 3) for answer in given) / len(given)


# Scores of a whole split.

Id = int | str
Predictions = Mapping[Id, str]
References = Mapping[Id, Sequence[str]]


def vqa_accuracy(
    predictions: Predictions, references: References, types: Mapping[Id, str] | None = None
) -> dict[str, float]:
    """Official VQA accuracy in per cent of the questions that were answered, as `overall` and by answer type.

    `types` gives the kind of some questions ("yes/no", "number", "other"). Rounded to two decimals, as the official
    evaluation does. Raises ConfigError if no predicted question has references.
    """
    scores = {key: vqa_score(predictions[key], references[key]) for key in answered(predictions, references)}
    groups: dict[str, list[float]] = defaultdict(list)
    for key, score in scores.items():
        groups["overall"].append(score)
        if types and key in types:
            groups[types[key]].append(score)
    return {name: percent(group) for name, group in groups.items()}


@metrics.register("vqa", config=MetricKeys)
def vqa(predictions: Predictions, references: References, keys: MetricKeys) -> dict[str, float]:
    """`vqa_accuracy` of all kinds of questions together."""
    return vqa_accuracy(predictions, references)


@metrics.register("gqa", config=GqaKeys)
def gqa(predictions: Predictions, references: References, keys: MetricKeys) -> dict[str, float]:
    """GQA's accuracy in per cent: answers equal to the one given, normalised as for VQA."""
    asked = answered(predictions, references)
    normalize: Normalised = keys.normalize if isinstance(keys, GqaKeys) else "both"
    right = [matches_exactly(predictions[key], references[key], normalize) for key in asked]
    return {"overall": percent([float(one) for one in right])}


@metrics.register("aok_vqa", config=MetricKeys)
def aok_vqa(predictions: Predictions, references: References, keys: MetricKeys) -> dict[str, float]:
    """A-OKVQA's direct-answer accuracy in per cent."""
    asked = answered(predictions, references)
    return {"overall": percent([direct_answer_score(predictions[key], references[key]) for key in asked])}


@metrics.register("class_accuracy", config=MetricKeys)
def class_accuracy(
    predictions: Sequence[int], targets: Sequence[int], classes: Sequence[str], keys: MetricKeys
) -> dict[str, float]:
    """`acc`, `agg_metrics` and the recall of each class, all in [0, 1]."""
    hits = Counter(target for target, found in zip(targets, predictions, strict=True) if target == found)
    totals = Counter(targets)
    overall = percent([float(one == other) for one, other in zip(targets, predictions, strict=True)]) / 100
    named = {number: classes[number] if number < len(classes) else str(number) for number in sorted(totals)}
    shares = {f"{name}_acc": round(hits[number] / totals[number], 4) for number, name in named.items()}
    return {"acc": overall, **shares, "agg_metrics": overall}


def matches_exactly(prediction: str, answers: Sequence[str], normalize: Normalised = "both") -> bool:
    """Whether a prediction is one of the answers, it alone or both normalised as for VQA."""
    given = {normalize_vqa_answer(answer) if normalize == "both" else answer for answer in answers}
    return normalize_vqa_answer(prediction) in given


def direct_answer_score(prediction: str, answers: Sequence[str]) -> float:
    """min(1, n / 3) for the n annotators who gave exactly this answer (A-OKVQA's evaluation; nothing is normalised)."""
    return min(1.0, sum(answer == prediction for answer in answers) / AGREEING)


def answered(predictions: Predictions, references: References) -> list[Id]:
    """The questions that can be scored; raises ConfigError if there are none."""
    keys = [key for key in predictions if references.get(key)]
    if not keys:
        shown = ", ".join(repr(key) for key in list(predictions)[:3]) or "none"
        what = f"none of the {len(predictions)} predicted questions has an answer to compare with ({shown})"
        raise ConfigError("answers", what, "evaluate the split that the answers belong to")
    return keys


def percent(scores: Sequence[float]) -> float:
    """The mean in per cent, to two decimals."""
    return round(100 * sum(scores) / len(scores), 2)


# Breakdown: accuracy by kind of answer and of question, confusions, frequent mistakes.

KINDS = ("yes/no", "number", "other")
"""VQA's answer types."""
MISTAKES, OPENINGS = 10, 12
_NUMBER = re.compile(r"\d+([.,:]\d+)*")
_OPENERS = frozenset("what how is are was were does do did can could which has have".split())  # noqa: SIM905


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer to a question with references; `truth` is the most frequent reference, `score` is in [0, 1]."""

    said: str
    truth: str
    kind: str
    opening: str
    score: float


def kind_of(answer: str) -> str:
    """`yes/no`, `number` or `other`, by the normalised answer."""
    plain = normalize_vqa_answer(answer)
    if plain in ("yes", "no"):
        return "yes/no"
    return "number" if _NUMBER.fullmatch(plain) else "other"


def opening_of(question: str) -> str:
    """The first words of a question, by which VQA sorts them: `how many`, `is the`, `where`; "" of none."""
    words = re.findall(r"[\w']+", question.lower())[:2]
    return " ".join(words if words and words[0] in _OPENERS else words[:1])


def score_answers(
    answers: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    types: Mapping[Id, str],
    openings: Mapping[Id, str],
    score: Callable[[str, Sequence[str]], float],
) -> list[ScoredAnswer]:
    """The answers whose question has references; the kind is that of `types`, else of the most frequent reference."""
    found = []
    for name, said in answers.items():
        if given := references.get(name):
            truth = Counter(given).most_common(1)[0][0]
            kind = types.get(name) or kind_of(truth)
            found.append(ScoredAnswer(said, truth, kind, openings.get(name, ""), score(said, given)))
    return found


def breakdown(answers: Sequence[ScoredAnswer]) -> dict[str, Any]:
    """The tables of a report, as plain values; accuracies are in per cent.

    `answer_types` and `question_types`: {name, questions, accuracy}, the most frequent first; `confusion`: {kind of the
    truth: {kind of the answer: questions}}; `mistakes`: {type, truth, said, questions} of answers that score 0.
    """
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: Counter[tuple[str, str, str]] = Counter()
    for one in answers:
        confusion[one.kind][kind_of(one.said)] += 1
        if not one.score:
            wrong[one.kind, one.truth, one.said] += 1
    asked = [(one.opening, one.score) for one in answers if one.opening]
    return {
        "questions": len(answers),
        "answer_types": grouped((one.kind, one.score) for one in answers),
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
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [{"name": name, "questions": len(some), "accuracy": percent(some)} for name, some in ranked]


def _place(item: tuple[str, Any]) -> tuple[int, str]:
    return (KINDS.index(item[0]) if item[0] in KINDS else len(KINDS), item[0])


# Lemmas, LAVIS' rule for published OK-VQA and A-OKVQA scores.

SPACY_MODEL = "en_core_web_sm"
LEMMATIZED = ("NOUN", "VERB")
WAY_OUT = f"pip install spacy && python -m spacy download {SPACY_MODEL}, or set model.apply_lemmatizer: False"


@cache
def load_lemmatizer() -> Any:
    """spaCy's small English pipeline; raises ConfigError where spaCy or the pipeline is not installed."""
    try:
        spacy = import_module("spacy")
    except ImportError as error:
        raise ConfigError("model.apply_lemmatizer", "needs spaCy, which is not installed", WAY_OUT) from error
    try:
        return spacy.load(SPACY_MODEL)
    except OSError as error:
        what = f"needs spaCy's {SPACY_MODEL}, which is not installed"
        raise ConfigError("model.apply_lemmatizer", what, WAY_OUT) from error


def lemmatize(answers: Sequence[str]) -> list[str]:
    """Each answer with its nouns and verbs replaced by their lemmas; other words stay, one space between words."""
    pipeline = load_lemmatizer()
    return [
        " ".join(str(token.lemma_ if token.pos_ in LEMMATIZED else token.text) for token in pipeline(answer))
        for answer in answers
    ]
