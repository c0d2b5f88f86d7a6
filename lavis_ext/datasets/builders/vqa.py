"""The shape `vqa`: a picture, a question and its weighted answers; VQAv2, OK-VQA, A-OKVQA, GQA and Visual Genome."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Batch, Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext, SplitParts, build_splits
from lavis_ext.datasets.builders.settings import VqaKeys
from lavis_ext.datasets.collate import Rule, collate, long_or_list
from lavis_ext.datasets.datasets.base_dataset import ImageTextDataset, draw_below, from_parts, two_ways
from lavis_ext.datasets.readers.parse import Row, parse_json
from lavis_ext.datasets.readers.tables import read_text

log = logging.getLogger(__name__)


@builders.register("vqa", config=VqaKeys)
def vqa(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """`train` gives questions with all their answers, every other split questions to be answered.

    Annotations may be LAVIS' rows, official questions and answers, or both (LAVIS' list of four), in any order.
    """
    return build_splits(config, context, _make)


def _make(parts: SplitParts) -> Dataset:
    return VqaDataset(parts) if parts.training else VqaEvalDataset(parts)


@two_ways
@dataclass(frozen=True, eq=False)
class QuestionDataset(ImageTextDataset):
    """Rows with a `question`."""

    Keys = VqaKeys

    def image_name(self, row: Row) -> str:
        """The name of a row's picture, or the first of `image_patterns` that exists."""
        patterns: Sequence[str] = self.parts.args["image_patterns"]
        if not patterns or row.get(self.parts.args["image_key"]) is not None:
            return super().image_name(row)
        names = [str(pattern).format(image_id=row.get("image_id", 0)) for pattern in patterns]
        return next(filter(self.images.exists, names), names[0])

    def question(self, row: Row, index: int) -> Sample:
        """`text_input` (the processed question), `question_id` where the row has one, `instance_id`."""
        named: Sample = {"question_id": row["question_id"]} if "question_id" in row else {}
        asked = self.row_text({**row, "question": self.asked(row)}, "question", index)
        return {"text_input": asked, **named, "instance_id": row["instance_id"]}

    def asked(self, row: Row) -> Any:
        """The question of a row as it is written: under `question_key`, else the one that all rows have."""
        return row.get(self.parts.args["question_key"], self.parts.args["question"])

    def given(self, row: Row) -> list[str] | None:
        """The answers of a row as texts; None where there are none, or something else stands there.

        A number is the answer that it spells; of records, as VQA's and VizWiz' files have them, `answer` counts.
        """
        value = row.get(self.parts.args["answer_key"])
        found = [
            one.get("answer") if isinstance(one, dict) else one
            for one in (value if isinstance(value, list) else [value])
        ]
        fine = all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in found)
        return [str(one) for one in found] if found and fine else None

    def displ_item(self, index: int) -> OrderedDict[str, Any]:
        """What a browser shows of a sample: file, question, its id, answers, image (LAVIS' method)."""
        row = self.row(index)
        key, choices = self.parts.args["answer_key"], row.get("choices")
        shown = {"file": self.image_name(row), "question": self.asked(row), "question_id": row.get("question_id")}
        if choices is None:
            answers: dict[str, Any] = {"answers": row.get(key)}
        else:  # A-OKVQA's, whose test has no answers
            right = row.get("correct_choice_idx")
            answers = {key: "; ".join(row.get(key) or ()), "choices": "; ".join(choices)}
            answers["correct_choice"] = None if right is None else choices[right]
        return OrderedDict({**shown, **answers, "image": self[index]["image"]})


@two_ways
@dataclass(frozen=True, eq=False)
class VqaDataset(QuestionDataset):
    """A question with its answers: `image`, `text_input`, `answers`, `weights`, `question_id`, `instance_id`."""

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """Each different answer once, in the order in which they were given, with the share of those who gave it."""
        key, answers = self.parts.args["answer_key"], self.given(row)
        if answers is None:
            raise self.fault(index, f"{key} is missing or no text")
        single = not isinstance(row[key], list)
        share = (self.parts.args["answer_weight"] if single else 1.0) / len(answers)
        counts = Counter(answers)
        weights = [count * share for count in counts.values()]
        one: Sample = {}
        if self.parts.args["instruct"]:
            one = {"text_output": list(counts)[draw_below(len(counts), rng)]}  # each as likely, as in LAVIS
        return {**self.question(row, index), "answers": list(counts), "weights": weights, **one}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """LAVIS' batch: `answer` all answers in a row, `weight` float32 of the same length, `n_answers` int64 [B]."""
        return collate(samples, RULES)


@two_ways
@dataclass(frozen=True, eq=False)
class VqaEvalDataset(QuestionDataset):
    """A question to be answered: `image`, `text_input`, `question_id`, `instance_id` and the `eval_keys`."""

    derived = ("_own_ids",)

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """The question, and None for each of the `eval_keys` that the row lacks."""
        more = {key: row.get(key) for key in self.parts.args["eval_keys"]}
        named: Sample = {**self.question(row, index), "question_id": self.question_id(row, index)}
        return {**named, **more}  # type: ignore[typeddict-item]  # `VqaKeys` allows only these keys

    @cached_property
    def _own_ids(self) -> bool:
        """Whether each question has an id of its own; says so where that is not so."""
        ids = self.rows.column("question_id")
        if all(one is not None for one in ids) and len(set(map(str, ids))) == len(ids):
            return True
        if any(one is not None for one in ids):
            log.warning(
                "%s/%s: question ids stand twice or are missing: the running number serves", self.name, self.split
            )
        return False

    def question_id(self, row: Row, index: int) -> Any:
        """The id of a question in results: its own, else the running number where ids are missing or stand twice."""
        return row["question_id"] if self._own_ids else self.position(index)

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch: pictures stacked, `question_id` int64 [B] where they are integers, all else lists."""
        return collate(samples, EVAL_RULES)

    @cached_property
    def answer_list(self) -> list[str] | None:
        """The answers to choose from, if the split has such a list. Raises IntegrityError for a damaged file."""
        path = self.parts.files.answer_list
        return None if path is None else [str(answer) for answer in parse_json(read_text(path), path)]

    @from_parts
    def coco_fmt_qust_file(self) -> str | None:
        """The official file of questions, where there is one (LAVIS' name)."""
        return _first(self.parts.files.questions)

    @from_parts
    def coco_fmt_anno_file(self) -> str | None:
        """The official file of answers, where there is one (LAVIS' name)."""
        return _first(self.parts.files.answers)

    def result_ids(self) -> list[Any]:
        """What the questions in use are called in result files, in their order."""
        return [self.question_id(self.row(index), index) for index in range(len(self))]

    def references(self) -> dict[int | str, list[str]]:
        """Answers by question id for the questions in use, as annotated; questions without any are left out."""
        rows = ((index, self.row(index)) for index in range(len(self)))
        found = {self.question_id(row, index): self.given(row) for index, row in rows}
        return {key: answers for key, answers in found.items() if answers}


def flat_answers(key: str, values: list[Any]) -> dict[str, Any]:
    """All answers in a row, and how many are of each sample."""
    numbers = torch.tensor([len(answers) for answers in values], dtype=torch.int64)
    return {"answer": [answer for answers in values for answer in answers], "n_answers": numbers}


def flat_weights(key: str, values: list[Any]) -> dict[str, Any]:
    """All weights in a row."""
    return {"weight": torch.tensor([weight for weights in values for weight in weights], dtype=torch.float32)}


def _first(paths: Sequence[Any]) -> str | None:
    return str(paths[0]) if paths else None


EVAL_RULES: dict[str, Rule] = {"question_id": long_or_list}
RULES: dict[str, Rule] = {**EVAL_RULES, "answers": flat_answers, "weights": flat_weights}
