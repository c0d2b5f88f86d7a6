"""vqa, gqa and aok_vqa: answer questions about images, write the official result files, score the answers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lavis_ext.common.config.schema import MetricConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import decode_json, expanded
from lavis_ext.common.registry import tasks
from lavis_ext.common.types import Batch
from lavis_ext.metrics import measure
from lavis_ext.metrics.vqa import (
    AGREEING,
    breakdown,
    direct_answer_score,
    lemmatize,
    matches_exactly,
    opening_of,
    score_answers,
    vqa_accuracy,
    vqa_score,
)
from lavis_ext.models.text import filled
from lavis_ext.tasks.base_task import BaseTask, Row, as_metrics, require_distinct, write_result
from lavis_ext.tasks.settings import GqaConfig, VqaConfig

log = logging.getLogger(__name__)
RECIPE = ("prompt", "num_beams", "max_len", "min_len", "inference_method", "num_ans_candidates")
ANSWER_LENGTH_PENALTY = -1.0
"""Shorter answers are preferred: LAVIS' value for most models, and ours for one that says nothing."""
Id = int | str
Answers = dict[Id, str]
References = dict[Id, list[str]]


@dataclass
class Truth:
    """People's answers by question, and the kind of question where it is known."""

    answers: References = field(default_factory=dict)
    types: dict[Id, str] = field(default_factory=dict)
    openings: dict[Id, str] = field(default_factory=dict)
    """The first words of the question, VQA's question type: `how many`, `what color`."""


@tasks.register("vqa", config=VqaConfig)
class VqaTask(BaseTask):
    """Answer with the `run:` section's prompt, beams and lengths; `agg_metrics` is the overall accuracy in per cent.

    With `model.apply_lemmatizer` the lemmatised answers are scored, and the raw ones as `*_raw`.
    """

    evaluates = True
    reports = True
    needs = ("predict_answers",)
    answer_list: list[str] | None = None
    """The candidates of `inference_method: rank`."""
    metric: ClassVar[str] = "vqa"

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Questions with all their answers → the loss of one answer each, drawn by its weight unless it is given."""
        draws = "n_answers" in batch and "text_output" not in batch
        return super().step(one_answer_each(batch, self.run.prompt) if draws else batch)

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Refuse data sets whose questions have the same ids, and take the answers to choose from by `rank`.

        Raises ConfigError for those, and where there are no such answers.
        """
        require_distinct(split, datasets)
        if self.run.inference_method == "rank":
            self.answer_list = merged_answers(split, datasets)

    def valid_step(self, batch: Batch) -> list[Row]:
        """`image` [B,3,H,W], `text_input`, `question_id` → one {question_id, answer} a question."""
        run = self.run
        answers = self.network.predict_answers(
            {**batch, "apply_lemmatizer": False},
            num_beams=run.num_beams,
            inference_method=run.inference_method,
            max_len=run.max_len,
            min_len=run.min_len,
            num_ans_candidates=run.num_ans_candidates,
            answer_list=self.answer_list,
            prompt=run.prompt,
            length_penalty=self.length_penalty,
        )
        ids = [plain_value(name) for name in batch["question_id"]]
        return [{"question_id": name, "answer": answer} for name, answer in zip(ids, answers, strict=True)]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write the result files and the recipe; score, unless `report_metric` is off or the split has no answers."""
        raw: Answers = {}
        for row in rows:
            raw.setdefault(row["question_id"], row["answer"])
        truth = find_truth(datasets, self.run.anno_files.get(split))
        answers = raw
        if self.lemmatizes:
            answers = dict(zip(raw, lemmatize(list(raw.values())), strict=True))
            self._write(raw, truth.answers, out_dir / f"{split}_vqa_result_raw.json")
        file = out_dir / f"{split}_vqa_result.json"
        self._write(answers, truth.answers, file)
        if not truth.answers:
            log.warning("split '%s' has no answers: the submission is written, nothing is scored", split)
            self._submit(answers, out_dir, split)
        self._written = answers, raw, truth
        scored = self.run.report_metric and (truth.answers or type(self)._report_metrics is not VqaTask._report_metrics)
        metrics = as_metrics(self._report_metrics(result_file=str(file), split=split)) if scored else {}
        if scored and truth.answers:
            openings = truth.openings or asked_openings(datasets)
            scored_answers = score_answers(answers, truth.answers, truth.types, openings, self._answer_score)
            write_result(breakdown_file(out_dir, split), {"split": split, **breakdown(scored_answers)})
        recipe = {key: getattr(self.run, key) for key in RECIPE} | {"length_penalty": self.length_penalty}
        more = {"apply_lemmatizer": self.lemmatizes, "questions": len(answers), "metrics": metrics}
        write_result(out_dir / f"{split}_epoch{epoch}_recipe.json", recipe | more)
        return metrics

    @property
    def length_penalty(self) -> float:
        """`run.length_penalty`, else the model's own for answers."""
        given, own = self.run.length_penalty, getattr(self.network, "answer_penalty", ANSWER_LENGTH_PENALTY)
        return float(own if given is None else given)

    @property
    def lemmatizes(self) -> bool:
        """Whether `model.apply_lemmatizer` is set."""
        return bool(getattr(getattr(self.network, "config", None), "apply_lemmatizer", False))

    def _report_metrics(self, result_file: str, split: str) -> dict[str, float]:
        """The scores of a result file that was just written (LAVIS' method)."""
        return self._metrics(*self._written)

    def _metrics(self, answers: Answers, raw: Answers, truth: Truth) -> dict[str, float]:
        if len(answers) < len(truth.answers):
            log.warning("%d of %d questions were answered; the metrics are theirs", len(answers), len(truth.answers))
        few = sum(len(given) <= AGREEING for given in truth.answers.values())
        if few and self.metric == "vqa" and not self.run.metrics:
            what = (
                "have at most three answers: they score by exact match, where VQA's rule asks that three people agree"
            )
            log.warning("%d of %d questions %s", few, len(truth.answers), what)
        found = self._score(answers, truth)
        if self.lemmatizes:
            found |= {f"{name}_raw": value for name, value in self._score(raw, truth).items()}
        return {**found, "agg_metrics": found.get("overall", next(iter(found.values())))}

    def _score(self, answers: Answers, truth: Truth) -> dict[str, float]:
        """The metrics of the run; with VQA's own also the accuracy of each kind of question."""
        named = self.run.metrics or [MetricConfig(name=self.metric, args=self.metric_keys)]
        found = measure(named, answers, truth.answers)
        if truth.types and any(one.name == "vqa" for one in named):
            found |= vqa_accuracy(answers, truth.answers, truth.types)
        return found

    @property
    def metric_keys(self) -> dict[str, Any]:
        """The keys of the task's own metric."""
        return {}

    def _answer_score(self, answer: str, given: Sequence[str]) -> float:
        """The score of one answer, in [0, 1]."""
        return vqa_score(answer, given)

    def _write(self, answers: Answers, references: References, path: Path) -> None:
        """The official form: a list of {question_id, answer}."""
        write_result(path, [{"question_id": name, "answer": answer} for name, answer in answers.items()])

    def _submit(self, answers: Answers, out_dir: Path, split: str) -> None:
        """Write a submission file, where an evaluation server needs another than the result file."""


@tasks.register("gqa", config=GqaConfig)
class GqaTask(VqaTask):
    """GQA: exact match; the result file shows predicted and given answers, `{split}_submission.json` is for the server.

    Questions whose answers are not published (`answer: null`) are answered and not scored.
    """

    metric: ClassVar[str] = "gqa"

    @property
    def metric_keys(self) -> dict[str, Any]:
        """`run.gqa_normalize`; the subclass has another metric."""
        return {"normalize": self.run.gqa_normalize} if self.metric == "gqa" else {}

    def _answer_score(self, answer: str, given: Sequence[str]) -> float:
        return float(matches_exactly(answer, given, self.run.gqa_normalize))

    def _write(self, answers: Answers, references: References, path: Path) -> None:
        rows = [(name, answer, references.get(name, [None])) for name, answer in answers.items()]
        write_result(path, [{"question_id": name, "pred_ans": a, "gt_ans": given[0]} for name, a, given in rows])

    def _submit(self, answers: Answers, out_dir: Path, split: str) -> None:
        rows = [{"questionId": str(name), "prediction": answer} for name, answer in answers.items()]
        write_result(out_dir / f"{split}_submission.json", rows)


@tasks.register("aok_vqa", config=VqaConfig)
class AokvqaTask(GqaTask):
    """A-OKVQA's direct answers: min(1, matches / 3); `{split}_leaderboard.json` is what its leaderboard takes."""

    metric: ClassVar[str] = "aok_vqa"

    def _answer_score(self, answer: str, given: Sequence[str]) -> float:
        return direct_answer_score(answer, given)

    def _write(self, answers: Answers, references: References, path: Path) -> None:
        rows = [(name, answer, references.get(name)) for name, answer in answers.items()]
        write_result(path, [{"question_id": name, "pred_ans": a, "gt_ans": given} for name, a, given in rows])

    def _submit(self, answers: Answers, out_dir: Path, split: str) -> None:
        forms = {str(name): {"direct_answer": answer, "multiple_choice": ""} for name, answer in answers.items()}
        write_result(out_dir / f"{split}_leaderboard.json", forms)


def find_truth(datasets: Sequence[Any], named: str | None = None) -> Truth:
    """Answers of the samples in use, and of official files for those that lack them; `named` is such a file.

    Raises ConfigError for a file in another form.
    """
    truth = Truth()
    known = [getattr(dataset, "coco_fmt_anno_file", None) for dataset in datasets]
    for path in [named] if named else [path for path in known if path]:
        for row in read_official(expanded(path)):
            # interned: VQAv2 has two million answers, but only few thousand different ones
            truth.answers[row["question_id"]] = [sys.intern(str(one["answer"])) for one in row["answers"]]
            if "answer_type" in row:
                truth.types[row["question_id"]] = row["answer_type"]
            if row.get("question_type"):
                truth.openings[row["question_id"]] = str(row["question_type"])
    for dataset in [] if named else datasets:
        truth.answers |= {plain_value(name): list(given) for name, given in dataset.references().items()}
    return truth


def asked_openings(datasets: Sequence[Any]) -> dict[Id, str]:
    """The first words of each question, for data sets with rows."""
    known = [dataset for dataset in datasets if hasattr(dataset, "row") and hasattr(dataset, "__len__")]
    rows = (dataset.row(index) for dataset in known for index in range(len(dataset)))
    asked = ((row.get("question_id"), row.get("question")) for row in rows)
    return {plain_value(name): opening_of(text) for name, text in asked if name is not None and isinstance(text, str)}


def breakdown_file(out_dir: Path, split: str) -> Path:
    """The file of a split's breakdown, which the report reads; the folder is created."""
    folder = out_dir / "breakdown"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{split}.json"


def merged_answers(split: str, datasets: Sequence[Any]) -> list[str]:
    """The answer lists of the data sets of a split, each answer once; raises ConfigError where one has no list."""
    lists = [getattr(dataset, "answer_list", None) for dataset in datasets]
    if not lists or not all(lists):
        what = f"split '{split}' has no answer_list to choose from"
        raise ConfigError("run.inference_method", what, "add one to its annotations, or write generate")
    return list(dict.fromkeys(answer for one in lists for answer in one or ()))


def plain_value(name: Any) -> Id:
    """A question's id as it is annotated; GQA's ids are texts, in which leading zeros matter."""
    value = name.item() if isinstance(name, Tensor) else name
    return value if isinstance(value, int) else str(value)


def one_answer_each(batch: Batch, prompt: str) -> Batch:
    """LAVIS' VQA batch (`answer`, `weight` in a row, `n_answers` [B]) → `text_input` (question), `text_output`.

    One answer a question is drawn by its weight from torch's generator; `learn: text_output` excludes the question from
    the loss.
    """
    counts = batch["n_answers"].tolist()
    stops = torch.tensor(counts).cumsum(0).tolist()
    spans = [(stop - count, stop) for count, stop in zip(counts, stops, strict=True)]
    weights = batch["weight"].float().cpu()
    chosen = [a + int(torch.multinomial(weights[a:b], 1)) for a, b in spans]
    asked = [filled(prompt, question) if prompt else question for question in batch["text_input"]]
    kept = {key: value for key, value in batch.items() if key not in ("answer", "weight", "n_answers")}
    answers = [batch["answer"][index] for index in chosen]
    return {**kept, "text_input": asked, "text_output": answers, "learn": "text_output"}


def read_official(path: Path) -> list[Mapping[str, Any]]:
    """The `annotations` of an official VQA file; raises ConfigError for another form."""
    try:
        rows: list[Mapping[str, Any]] = decode_json(path.read_text(encoding="utf-8"))["annotations"]
        if not all("question_id" in row and "answers" in row for row in rows):
            raise KeyError("question_id and answers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"is not an official VQA annotation file ({type(error).__name__}: {error})"
        raise ConfigError(f"run.anno_files {path}", what, "name a file with `annotations`, or leave it out") from error
    return rows
