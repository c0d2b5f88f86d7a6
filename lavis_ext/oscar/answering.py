"""oscar_vqa, oscar_gqa: a class an input, told as the answer of that class, written for the servers and scored."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import disk_errors, write_atomic
from lavis_ext.common.registry import tasks
from lavis_ext.common.types import Batch
from lavis_ext.metrics.vqa import percent, vqa_accuracy
from lavis_ext.models.losses import IGNORED
from lavis_ext.oscar.config import OscarClassConfig, OscarPairConfig, OscarPretrainConfig, OscarVqaConfig
from lavis_ext.tasks.answering import find_truth, plain_value
from lavis_ext.tasks.base_task import BaseTask, Row, plain_id, write_result, write_rows

log = logging.getLogger(__name__)
UNKNOWN = -100
"""A label that stands for none, as in torch's cross-entropy."""


class Classification(BaseTask):
    """The class with the highest logit of each input; rows are counted once, by their `instance_id`."""

    evaluates = True
    needs = ("outputs",)

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
        """Per input `score`, 1 where int64 [B] `chosen` is its label, else 0; empty without a label (UNKNOWN)."""
        if "labels" not in batch:
            yield from ({} for _ in chosen)
            return
        for label, found in zip(batch["labels"].tolist(), chosen.tolist(), strict=True):
            yield {} if label == UNKNOWN else {"score": float(label == found)}

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write the submission and, where answers are known, what each input scored; `agg_metrics` is the accuracy."""
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
        metrics = self.metrics(scored, answers, split, datasets)
        write_rows(out_dir / f"{split}_epoch{epoch}_answers.json", (self.told(row, answers) for row in scored))
        write_result(out_dir / f"{split}_epoch{epoch}_metrics.json", {"inputs": len(scored), "metrics": metrics})
        return metrics

    def answers(self, split: str, datasets: Sequence[Any]) -> Sequence[str]:
        """What each class says, by its number; nothing where classes are not named."""
        return ()

    def metrics(
        self, rows: Sequence[Row], answers: Sequence[str], split: str, datasets: Sequence[Any]
    ) -> dict[str, float]:
        """The accuracy in per cent, as `overall` and as `agg_metrics`."""
        overall = percent([row["score"] for row in rows])
        return {"overall": overall, "agg_metrics": overall}

    def told(self, row: Row, answers: Sequence[str]) -> Row:
        """A row as a person reads it."""
        return row

    def submit(self, rows: Sequence[Row], answers: Sequence[str], out_dir: Path, split: str) -> None:
        """Write what the server of the task takes."""
        raise NotImplementedError


@tasks.register("oscar_gqa", config=OscarClassConfig)
class OscarGqa(Classification):
    """GQA as classification: accuracy of the class; `{split}_results.json` is `[{questionId, prediction}]`."""

    keys = ("questionId", "prediction")

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """See that there is one vocabulary of answers; raises ConfigError."""
        self.answers(split, datasets)

    def answers(self, split: str, datasets: Sequence[Any]) -> Sequence[str]:
        """The answers of the vocabulary in the order of its classes."""
        found: Sequence[str] = one_vocabulary(split, datasets).answers
        return found

    def told(self, row: Row, answers: Sequence[str]) -> Row:
        """The row with its answer for its class."""
        return {**{key: value for key, value in row.items() if key != "class"}, "answer": answers[row["class"]]}

    def submit(self, rows: Sequence[Row], answers: Sequence[str], out_dir: Path, split: str) -> None:
        """`{split}_results.json`, in the order of the questions; none where the questions have no ids of their own."""
        if shared := repeated(row["question_id"] for row in rows):
            what = "%d questions of split '%s' share the id %r, as upstream's training files have it: no submission"
            log.warning(what, shared[1], split, shared[0])
            return
        id_key, answer_key = self.keys
        told = ({id_key: self.id_of(row["question_id"]), answer_key: answers[row["class"]]} for row in rows)
        write_rows(out_dir / f"{split}_results.json", told)

    def id_of(self, value: int | str) -> int | str:
        """GQA's ids are text whose zeros in front count."""
        return str(value)


@tasks.register("oscar_vqa", config=OscarVqaConfig)
class OscarVqa(OscarGqa):
    """VQA as classification: the soft target of the class; `{split}_results.json` is `[{question_id, answer}]`.

    Where official answers are there (`run.anno_files`, or the data set's references), `official` is the leave-one-out
    accuracy of VQA's evaluation. `upper_bound` is what the best class of each question would score.
    """

    keys = ("question_id", "answer")

    def scores(self, chosen: Tensor, batch: Batch) -> Iterator[dict[str, float]]:
        """Per input `score`, its target [L] at `chosen`, and `most`, its highest target.

        Empty where no class has a score: upstream leaves such questions out of its validation, and so is it of tests.
        """
        if "targets" not in batch:
            yield from ({} for _ in chosen)
            return
        targets: Tensor = batch["targets"]
        own = targets.gather(1, chosen.to(targets.device)[:, None])[:, 0].tolist()
        for score, most in zip(own, targets.amax(1).tolist(), strict=True):
            yield {"score": score, "most": most} if most > 0 else {}

    def metrics(
        self, rows: Sequence[Row], answers: Sequence[str], split: str, datasets: Sequence[Any]
    ) -> dict[str, float]:
        """Per cent: `overall` (which picks the best), `upper_bound`, and `official` with its answer types."""
        overall = percent([row["score"] for row in rows])
        found = {"overall": overall, "upper_bound": percent([row["most"] for row in rows])}
        truth = find_truth([one for one in datasets if hasattr(one, "references")], self.run.anno_files.get(split))
        said = {self.id_of(row["question_id"]): answers[row["class"]] for row in rows}
        if any(name in truth.answers for name in said):
            official = vqa_accuracy(said, truth.answers, truth.types)
            found |= {("official" if name == "overall" else f"official_{name}"): n for name, n in official.items()}
        return {**found, "agg_metrics": overall}

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


# oscar_nlvr2: whether a sentence is true of two images, its accuracy, and its consistency over a sentence's pairs.


OFFICIAL = re.compile(r"(?P<split>[a-z0-9]+)-(?P<set>\d+)-(?P<pair>\d+)-(?P<sentence>\d+)")
"""NLVR2's identifiers: a set of images, one pair of it, one sentence about it."""
IMAGE = re.compile(r"(?:nlvr2_)?(?P<set>[a-z0-9]+-\d+)-\d+-img[01]")
"""Its images, under upstream's names: a set, a pair, left or right."""


@tasks.register("oscar_nlvr2", config=OscarPairConfig)
class OscarNlvr2(Classification):
    """NLVR2: class 1 is True; `{split}_results.csv` has a line `identifier,True|False` for each pair.

    `consistency` is the share of sentences that are judged rightly of all their pairs: where the identifiers are
    NLVR2's own, which name the sentence, or else the images are, and with their set the sentence itself.
    """

    sentences: Mapping[str, str] = {}
    """The sentence of each `instance_id`, as a name of its own."""

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Find which pairs are about one sentence."""
        self.sentences = {name: group for dataset in datasets for name, group in sentences_of(dataset)}

    def metrics(
        self, rows: Sequence[Row], answers: Sequence[str], split: str, datasets: Sequence[Any]
    ) -> dict[str, float]:
        """Per cent: `overall` (which picks the best), and `consistency` where the sentences are known."""
        found = super().metrics(rows, answers, split, datasets)
        groups: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            named = sentence_of(str(row["question_id"])) or self.sentences.get(row["instance_id"], "")
            groups[named].append(row["score"])
        return found if "" in groups else {**found, "consistency": percent([min(group) for group in groups.values()])}

    def told(self, row: Row, answers: Sequence[str]) -> Row:
        """The row with what was said of the pair."""
        return {"identifier": row["question_id"], "said": bool(row["class"]), "score": row["score"]}

    def submit(self, rows: Sequence[Row], answers: Sequence[str], out_dir: Path, split: str) -> None:
        """The csv of NLVR2's evaluation; raises ConfigError for an identifier that a line cannot hold."""
        names = [str(row["question_id"]) for row in rows]
        if broken := [name for name in names if set(name) & set(",\r\n")]:
            raise ConfigError("datasets", f"the identifier {broken[0]!r} has a comma or a line break", "rename it")
        path = out_dir / f"{split}_results.csv"
        lines = [f"{name},{bool(row['class'])}\n" for name, row in zip(names, rows, strict=True)]
        with disk_errors(path, "free some space, or set run.output_dir elsewhere"):
            write_atomic(path, "".join(lines))


def sentence_of(identifier: str) -> str:
    """What the pairs of one sentence share; "" where the identifier does not tell."""
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


# oscar_pretrain: Oscar+ learns hidden words and whether text and tags match, validated by how often it is right.


@tasks.register("oscar_pretrain", config=OscarPretrainConfig)
class OscarPretrain(BaseTask):
    """The loss of words and of matching (Zhang et al., arXiv:2101.00529 §3); `agg_metrics` is the mean of both."""

    evaluates = True
    needs = ("outputs",)

    def valid_step(self, batch: Batch) -> list[Row]:
        """`lm_labels` [B, T] and `labels` [B] → per input its hidden words, the right ones, and whether it was told."""
        found = self.network.outputs(batch)
        labels: Tensor = batch["lm_labels"].to(found.logits.device)
        hidden = labels != IGNORED
        right = hidden.clone()
        right[hidden] = found.logits.argmax(-1) == labels[hidden]
        told = found.extra["matching"].argmax(-1) == batch["labels"].to(found.logits.device)
        counts = zip(hidden.sum(1).tolist(), right.sum(1).tolist(), told.tolist(), strict=True)
        named = zip(batch["instance_id"], counts, strict=True)
        return [{"instance_id": name, "hidden": n, "right": k, "told": float(t)} for name, (n, k, t) in named]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Per cent: `words` of the hidden words, `matching` of the inputs; written as `{split}_epoch{epoch}.json`."""
        known = {row["instance_id"]: row for row in reversed(rows)}.values()
        if not known:
            return {}
        hidden = sum(row["hidden"] for row in known)
        words = 100.0 * sum(row["right"] for row in known) / max(1, hidden)
        matching = percent([row["told"] for row in known])
        metrics = {"words": words, "matching": matching, "agg_metrics": (words + matching) / 2}
        write_result(out_dir / f"{split}_epoch{epoch}.json", {"inputs": len(known), "hidden": hidden, **metrics})
        return metrics
