"""What answers to questions are worth over a whole split: VQA by answer type, GQA's exact match, A-OKVQA's thirds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from lavis_ext.errors import ConfigError
from lavis_ext.metrics.settings import MetricKeys
from lavis_ext.metrics.vqa import normalize_vqa_answer, vqa_score
from lavis_ext.registry import metrics

Id = int | str
Predictions = Mapping[Id, str]
References = Mapping[Id, Sequence[str]]
AGREEING = 3
"""Annotators who must have given an answer for it to count in full."""


def vqa_accuracy(
    predictions: Predictions, references: References, types: Mapping[Id, str] | None = None
) -> dict[str, float]:
    """Official VQA accuracy in per cent of the questions that were answered, as `overall` and by answer type.

    `types` tells the kind of some questions ("yes/no", "number", "other"). Rounded to two decimals, as the official
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


@metrics.register("gqa", config=MetricKeys)
def gqa(predictions: Predictions, references: References, keys: MetricKeys) -> dict[str, float]:
    """GQA's accuracy in per cent: answers equal to the one given, both normalised as for VQA."""
    asked = answered(predictions, references)
    return {"overall": percent([float(matches_exactly(predictions[key], references[key])) for key in asked])}


@metrics.register("aok_vqa", config=MetricKeys)
def aok_vqa(predictions: Predictions, references: References, keys: MetricKeys) -> dict[str, float]:
    """A-OKVQA's direct-answer accuracy in per cent."""
    asked = answered(predictions, references)
    return {"overall": percent([direct_answer_score(predictions[key], references[key]) for key in asked])}


@metrics.register("class_accuracy", config=MetricKeys)
def class_accuracy(
    predictions: Sequence[int], targets: Sequence[int], classes: Sequence[str], keys: MetricKeys
) -> dict[str, float]:
    """`acc`, `agg_metrics` and the share of each class that was found, all in [0, 1]."""
    hits = Counter(target for target, found in zip(targets, predictions, strict=True) if target == found)
    totals = Counter(targets)
    overall = percent([float(one == other) for one, other in zip(targets, predictions, strict=True)]) / 100
    named = {number: classes[number] if number < len(classes) else str(number) for number in sorted(totals)}
    shares = {f"{name}_acc": round(hits[number] / totals[number], 4) for number, name in named.items()}
    return {"acc": overall, **shares, "agg_metrics": overall}


def matches_exactly(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a prediction is one of the answers, all normalised as for VQA."""
    return normalize_vqa_answer(prediction) in {normalize_vqa_answer(answer) for answer in answers}


def direct_answer_score(prediction: str, answers: Sequence[str]) -> float:
    """min(1, n / 3) for the n annotators who gave just this answer (A-OKVQA's evaluation; nothing is normalised)."""
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
