"""oscar_vqa, oscar_gqa, oscar_nlvr2 (a class of each input) and oscar_pretrain: the tasks and their metrics."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lavis_ext.common.config.schema import MetricConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import disk_errors, write_atomic
from lavis_ext.common.registry import metrics, tasks
from lavis_ext.common.types import Batch
from lavis_ext.metrics import measure
from lavis_ext.metrics.settings import MetricKeys
from lavis_ext.metrics.vqa import percent, vqa_accuracy
from lavis_ext.models.losses import IGNORED
from lavis_ext.oscar.config import OscarClassConfig, OscarPairConfig, OscarPretrainConfig, OscarVqaConfig
from lavis_ext.tasks.answering import Truth, find_truth, plain_value
from lavis_ext.tasks.base_task import BaseTask, Row, plain_id, write_result, write_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredInputs:
    """The inputs of a split whose class is known; the lists have an entry for each input."""

    scores: Sequence[float]
    """What the predicted class is worth, in [0, 1]."""
    best_scores: Sequence[float] = ()
    """What the best class is worth, where classes have soft scores."""
    sentences: Sequence[str] = ()
    """The sentence that a pair of images is about, "" where it is not known."""
    said: Mapping[int | str, str] = field(default_factory=dict)
    """The predicted answers by question."""
    truth: Truth = field(default_factory=Truth)
    """Official answers, where they are there."""


@metrics.register("oscar_gqa", config=MetricKeys)
def class_score(found: ScoredInputs, keys: MetricKeys) -> dict[str, float]:
    """`overall`: the mean score in per cent; `agg_metrics` is the same."""
    overall = percent(found.scores)
    return {"overall": overall, "agg_metrics": overall}


@metrics.register("oscar_vqa", config=MetricKeys)
def vqa_scores(found: ScoredInputs, keys: MetricKeys) -> dict[str, float]:
    """Per cent: `overall`, `upper_bound` (what the best class of each question scores), and `official`.

    `official` and `official_<answer type>` are the leave-one-out accuracy of VQA's evaluation, of the questions that
    have official answers.
    """
    scores = class_score(found, keys)
    if found.best_scores:
        scores["upper_bound"] = percent(found.best_scores)
    if any(name in found.truth.answers for name in found.said):
        official = vqa_accuracy(found.said, found.truth.answers, found.truth.types)
        scores |= {("official" if name == "overall" else f"official_{name}"): n for name, n in official.items()}
    return scores


@metrics.register("oscar_nlvr2", config=MetricKeys)
def pair_scores(found: ScoredInputs, keys: MetricKeys) -> dict[str, float]:
    """Per cent: `overall`, and `consistency` (sentences right for all of their pairs) where all sentences are known."""
    scores = class_score(found, keys)
    if found.sentences and "" not in found.sentences:
        groups: dict[str, list[float]] = defaultdict(list)
        for sentence, score in zip(found.sentences, found.scores, strict=True):
            groups[sentence].append(score)
        scores["consistency"] = percent([min(group) for group in groups.values()])
    return scores


class Classification(BaseTask):
    """The class with the highest logit of each input; rows are counted once, by their `instance_id`."""

    evaluates = True
    needs = ("outputs",)
    metric: ClassVar[str]
    """The metric where `run.metrics` names none."""

    def valid_step(self, batch: Batch) -> list[Row]:
        """A batch → per input {instance_id, question_id, class}, and `score` (and `most`) where its answer is known."""
        logits: Tensor = self.network.outputs(batch).logits
        chosen = logits.float().argmax(-1)
        classes = chosen.tolist()
        owns = [own_name(batch.get("dataset"), name) for name in batch["instance_id"]]
        named = zip(owns, map(plain_value, batch["question_id"]), classes, strict=True)
        rows = [{"instance_id": own, "question_id": asked, "class": number} for own, asked, number in named]
        return [{**row, **score} for row, score in zip(rows, self.scores(chosen, batch), strict=True)]

    def scores(self, chosen: Tensor, batch: Batch) -> Iterator[dict[str, float]]:
        """Per input `score`, 1 where int64 [B] `chosen` is its label, else 0; empty without a label (IGNORED)."""
        if "labels" not in batch:
            yield from ({} for _ in chosen)
            return
        for label, found in zip(batch["labels"].tolist(), chosen.tolist(), strict=True):
            yield {} if label == IGNORED else {"score": float(label == found)}

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write the submission and, where answers are known, the score of each input; return the metrics of the run."""
        by_id: dict[str, Row] = {}
        for row in rows:
            by_id.setdefault(row["instance_id"], row)
        known = list(by_id.values())
        answers = self.answers(split, datasets)
        self.submit(known, answers, out_dir, split)
        scored = [row for row in known if "score" in row]
        if not scored or not self.run.report_metric:
            log.warning("split '%s' is not scored: the submission is written", split)
            return {}
        if len(scored) < len(known):
            log.warning(
                "%d of %d inputs of '%s' have an answer; the metrics are theirs", len(scored), len(known), split
            )
        named = self.run.metrics or [MetricConfig(name=self.metric)]
        values = measure(named, self.scored_inputs(scored, answers, split, datasets))
        write_rows(out_dir / f"{split}_epoch{epoch}_answers.json", (self.result_row(row, answers) for row in scored))
        write_result(out_dir / f"{split}_epoch{epoch}_metrics.json", {"inputs": len(scored), "metrics": values})
        return values

    def answers(self, split: str, datasets: Sequence[Any]) -> Sequence[str]:
        """The answer of each class, by its number; none where classes have no names."""
        return ()

    def scored_inputs(
        self, rows: Sequence[Row], answers: Sequence[str], split: str, datasets: Sequence[Any]
    ) -> ScoredInputs:
        """What the metrics take, from rows that have a score."""
        return ScoredInputs([row["score"] for row in rows])

    def result_row(self, row: Row, answers: Sequence[str]) -> Row:
        """A row of `{split}_epoch{epoch}_answers.json`."""
        return row

    def submit(self, rows: Sequence[Row], answers: Sequence[str], out_dir: Path, split: str) -> None:
        """Write the file that the task's evaluation server takes."""
        raise NotImplementedError


@tasks.register("oscar_gqa", config=OscarClassConfig)
class OscarGqa(Classification):
    """GQA as classification: accuracy of the class; `{split}_results.json` is `[{questionId, prediction}]`."""

    metric = "oscar_gqa"
    keys = ("questionId", "prediction")

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Check that there is one vocabulary of answers; raises ConfigError."""
        self.answers(split, datasets)

    def answers(self, split: str, datasets: Sequence[Any]) -> Sequence[str]:
        """The answers of the vocabulary in the order of its classes."""
        found: Sequence[str] = one_vocabulary(split, datasets).answers
        return found

    def result_row(self, row: Row, answers: Sequence[str]) -> Row:
        """The row with the answer in place of the class."""
        return {**{key: value for key, value in row.items() if key != "class"}, "answer": answers[row["class"]]}

    def submit(self, rows: Sequence[Row], answers: Sequence[str], out_dir: Path, split: str) -> None:
        """`{split}_results.json`, in the order of the questions; none where the questions have no ids of their own."""
        if shared := repeated(row["question_id"] for row in rows):
            what = "%d questions of split '%s' share the id %r, as upstream's training files have it: no submission"
            log.warning(what, shared[1], split, shared[0])
            return
        id_key, answer_key = self.keys
        lines = ({id_key: self.id_of(row["question_id"]), answer_key: answers[row["class"]]} for row in rows)
        write_rows(out_dir / f"{split}_results.json", lines)

    def id_of(self, value: int | str) -> int | str:
        """GQA's ids are text whose zeros in front count."""
        return str(value)


@tasks.register("oscar_vqa", config=OscarVqaConfig)
class OscarVqa(OscarGqa):
    """VQA as classification: the soft target of the class; `{split}_results.json` is `[{question_id, answer}]`.

    Official answers come from `run.anno_files`, or are the data set's references.
    """

    metric = "oscar_vqa"
    keys = ("question_id", "answer")

    def scores(self, chosen: Tensor, batch: Batch) -> Iterator[dict[str, float]]:
        """Per input `score`, its target [L] at `chosen`, and `most`, its highest target.

        Empty where no class has a score: upstream leaves such questions out of its validation, and tests have none.
        """
        if "targets" not in batch:
            yield from ({} for _ in chosen)
            return
        targets: Tensor = batch["targets"]
        own = targets.gather(1, chosen.to(targets.device)[:, None])[:, 0].tolist()
        for score, most in zip(own, targets.amax(1).tolist(), strict=True):
            yield {"score": score, "most": most} if most > 0 else {}

    def scored_inputs(
        self, rows: Sequence[Row], answers: Sequence[str], split: str, datasets: Sequence[Any]
    ) -> ScoredInputs:
        """With the best scores, what was answered, and the official answers."""
        truth = find_truth([one for one in datasets if hasattr(one, "references")], self.run.anno_files.get(split))
        said = {self.id_of(row["question_id"]): answers[row["class"]] for row in rows}
        found = super().scored_inputs(rows, answers, split, datasets)
        return replace(found, best_scores=[row["most"] for row in rows], said=said, truth=truth)

    def id_of(self, value: int | str) -> int | str:
        """VQA's ids are numbers."""
        return plain_id(value)


def own_name(dataset: Any, instance_id: str) -> str:
    """A name that a sample shares with none of another data set of its split."""
    return f"{dataset}/{instance_id}" if isinstance(dataset, str) else instance_id


def one_vocabulary(split: str, datasets: Sequence[Any]) -> Any:
    """The vocabulary of answers that all data sets of a split share; raises ConfigError where there is none."""
    found: list[Any] = [getattr(dataset, "labels", None) for dataset in datasets]
    if not found or any(labels is None for labels in found):
        what = f"split '{split}' has a data set without a vocabulary of answers"
        raise ConfigError("datasets", what, "set its args.label_file")
    if len({labels.digest() for labels in found}) > 1:
        what = f"the data sets of split '{split}' have different vocabularies of answers"
        raise ConfigError("datasets", what, "evaluate them in separate runs")
    return found[0]


def repeated(ids: Iterator[Any]) -> tuple[Any, int] | None:
    """The most frequent id that more than one input has, and how many have it."""
    (most, count), *_ = Counter(ids).most_common(1) or [(None, 0)]
    return (most, count) if count > 1 else None


OFFICIAL = re.compile(r"(?P<split>[a-z0-9]+)-(?P<set>\d+)-(?P<pair>\d+)-(?P<sentence>\d+)")
"""NLVR2's identifiers: a set of images, one pair of it, one sentence about it."""
IMAGE = re.compile(r"(?:nlvr2_)?(?P<set>[a-z0-9]+-\d+)-\d+-img[01]")
"""Its images, under upstream's names: a set, a pair, left or right."""


@tasks.register("oscar_nlvr2", config=OscarPairConfig)
class OscarNlvr2(Classification):
    """NLVR2: class 1 is True; `{split}_results.csv` has a line `identifier,True|False` for each pair.

    The sentence of a pair follows from NLVR2's own identifiers, or else from the names of its images and the text.
    """

    metric = "oscar_nlvr2"
    sentences: Mapping[str, str] = {}
    """The sentence of each `instance_id`, as a name of its own."""

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Find the pairs that share a sentence."""
        self.sentences = {name: group for dataset in datasets for name, group in sentences_of(dataset)}

    def scored_inputs(
        self, rows: Sequence[Row], answers: Sequence[str], split: str, datasets: Sequence[Any]
    ) -> ScoredInputs:
        """With the sentence of each pair."""
        sentences = [sentence_of(str(row["question_id"])) or self.sentences.get(row["instance_id"], "") for row in rows]
        return replace(super().scored_inputs(rows, answers, split, datasets), sentences=sentences)

    def result_row(self, row: Row, answers: Sequence[str]) -> Row:
        """The row with `said`, True or False, in place of the class."""
        return {"identifier": row["question_id"], "said": bool(row["class"]), "score": row["score"]}

    def submit(self, rows: Sequence[Row], answers: Sequence[str], out_dir: Path, split: str) -> None:
        """The csv of NLVR2's evaluation; raises ConfigError for an identifier that a line cannot hold."""
        names = [str(row["question_id"]) for row in rows]
        if broken := [name for name in names if set(name) & set(",\r\n")]:
            raise ConfigError("datasets", f"the identifier {broken[0]!r} has a comma or a line break", "rename it")
        path = out_dir / f"{split}_results.csv"
        lines = [f"{name},{bool(row['class'])}\n" for name, row in zip(names, rows, strict=True)]
        with disk_errors(path, "set run.output_dir elsewhere"):
            write_atomic(path, "".join(lines))


def sentence_of(identifier: str) -> str:
    """A name of the sentence in one of NLVR2's identifiers; "" in any other."""
    found = OFFICIAL.fullmatch(identifier)
    return f"{found['split']}-{found['set']}-{found['sentence']}" if found else ""


def sentences_of(dataset: Any) -> Iterator[tuple[str, str]]:
    """(instance id, set and sentence) of the pairs of a data set whose rows name NLVR2's images."""
    for index in range(len(dataset)) if hasattr(dataset, "row") else ():
        row = dataset.row(index)
        images = row.get("img_id")
        found = IMAGE.fullmatch(str(images.get("left"))) if isinstance(images, Mapping) else None
        if found:
            yield own_name(dataset.name, row["instance_id"]), f"{found['set']} {row.get('q')}"


@metrics.register("oscar_pretrain", config=MetricKeys)
def pretrain_accuracy(hidden: int, right: int, matched: Sequence[float], keys: MetricKeys) -> dict[str, float]:
    """Per cent: `words` (`right` of `hidden`), `matching` (mean of `matched`), and their mean as `agg_metrics`."""
    words = 100.0 * right / max(1, hidden)
    matching = percent(matched)
    return {"words": words, "matching": matching, "agg_metrics": (words + matching) / 2}


@tasks.register("oscar_pretrain", config=OscarPretrainConfig)
class OscarPretrain(BaseTask):
    """Oscar+: the loss of hidden words and of matching (Zhang et al., arXiv:2101.00529 §3), validated by accuracy."""

    evaluates = True
    needs = ("outputs",)

    def valid_step(self, batch: Batch) -> list[Row]:
        """`lm_labels` [B, T] and `labels` [B] → per input {instance_id, hidden, right, matched} (1.0 or 0.0)."""
        found = self.network.outputs(batch)
        labels: Tensor = batch["lm_labels"].to(found.logits.device)
        hidden = labels != IGNORED
        right = hidden.clone()
        right[hidden] = found.logits.argmax(-1) == labels[hidden]
        matched = found.extra["matching"].argmax(-1) == batch["labels"].to(found.logits.device)
        counts = zip(hidden.sum(1).tolist(), right.sum(1).tolist(), matched.tolist(), strict=True)
        named = zip(batch["instance_id"], counts, strict=True)
        return [{"instance_id": name, "hidden": n, "right": k, "matched": float(m)} for name, (n, k, m) in named]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """The metrics of the run, written to `{split}_epoch{epoch}.json` with how many inputs and hidden words."""
        known = {row["instance_id"]: row for row in reversed(rows)}.values()
        if not known:
            return {}
        hidden = sum(row["hidden"] for row in known)
        right = sum(row["right"] for row in known)
        named = self.run.metrics or [MetricConfig(name="oscar_pretrain")]
        values = measure(named, hidden, right, [row["matched"] for row in known])
        write_result(out_dir / f"{split}_epoch{epoch}.json", {"inputs": len(known), "hidden": hidden, **values})
        return values
