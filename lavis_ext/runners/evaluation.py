"""Evaluates splits (batches → rows of all ranks → the task's files and metrics) and keeps thumbnails for the report."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from lavis_ext.browse.run_report import MAX_SHOTS, choose, overlap
from lavis_ext.common.errors import ConfigError, LavisExtError, PartialError, UsageError, nearest
from lavis_ext.datasets.collate import to_device
from lavis_ext.metrics.vqa import vqa_score
from lavis_ext.runners.checkpoint import random_state, restore_random_state, seed_everything
from lavis_ext.runners.distributed import broadcast_from_main
from lavis_ext.runners.files import write_json
from lavis_ext.runners.microbatch import memory_errors
from lavis_ext.tasks.answering import find_truth, plain_value
from lavis_ext.tasks.base_task import BaseTask, first_by_id, merged_references, plain_id

log = logging.getLogger(__name__)


class EvaluationStopped(Exception):
    """A signal came between two batches; its number is the argument. Generators and train mode are restored."""


class Batches:
    """The batches of a split on their device, with LAVIS' `dataset` and length."""

    def __init__(self, batches: Iterator[dict[str, Any]], feed: Any) -> None:
        self._batches, self._feed = batches, feed
        self.dataset = next(iter(feed.datasets.values()))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._batches

    def __len__(self) -> int:
        return len(self._feed)


OOM_HINT = "lower run.batch_size_eval, or run.num_beams"


class Evaluator:
    """Evaluates `task` on the splits of `feeds` (split → batches in order); results go to `job_dir/result/`."""

    def __init__(
        self,
        task: Any,
        feeds: Mapping[str, Any],
        job_dir: Path,
        accelerator: Accelerator,
        seed: int,
        gallery: bool = False,
    ) -> None:
        self.task, self.feeds, self.job_dir, self.accelerator, self.seed = task, feeds, job_dir, accelerator, seed
        self.gallery = gallery
        self.watch: Callable[[str, int, int], None] = lambda split, done, total: None
        """Called after each batch, with how many there are."""

    def evaluate(self, split: str, label: str, stop: Callable[[], int]) -> dict[str, Any]:
        """Metrics of `split`; raises EvaluationStopped as soon as `stop`, asked before each batch, names a signal.

        Generators are seeded for the evaluation and restored after it, so that training gives the same numbers however
        often it is evaluated. Raises PartialError if no sample of the split could be used.
        """
        if split not in self.feeds:
            raise UsageError(f"split '{split}'", "no data set of the run has it", nearest(split, self.feeds))
        generators, training = random_state(), self.task.model.training
        seed_everything(self.seed)
        self.task.model.eval()
        try:
            rows = self._rows(split, stop)
            rows = gather_object(rows) if self.feeds[split].order.world > 1 and rows is not None else rows
        finally:
            restore_random_state(generators)
            self.task.model.train(training)
        if rows is None:  # a task in LAVIS' manner whose `evaluation` does nothing
            return {}
        if isinstance(rows, list) and not rows and not getattr(self.task, "lavis", False):
            raise PartialError(
                f"split '{split}'", "none of its samples could be used", "look at faults.json of the run"
            )
        return self._metrics(rows, split, label)

    def faults(self) -> dict[str, Any]:
        """Samples that could not be read, per split."""
        return {split: feed.faults.summary() for split, feed in self.feeds.items()}

    def _rows(self, split: str, stop: Callable[[], int]) -> Any:
        rows: list[dict[str, Any]] = []
        with torch.no_grad():
            feed = self.feeds[split]
            self.task.before_evaluation(split, list(feed.datasets.values()))
            feed.set_epoch(0)  # every evaluation sees the same samples in the same order
            if getattr(type(self.task), "evaluation", BaseTask.evaluation) is not BaseTask.evaluation:
                return self._by_task(split, stop)
            for number, moved in enumerate(self._moved(feed, stop)):
                self.watch(split, number, len(feed))
                with memory_errors(f"split '{split}'", OOM_HINT), self.accelerator.autocast():
                    rows += self.task.valid_step(moved)
        return rows

    def _moved(self, feed: Any, stop: Callable[[], int]) -> Iterator[dict[str, Any]]:
        for batch in feed:
            if number := stop():
                raise EvaluationStopped(number)
            yield to_device(batch, self.accelerator.device, feed.normalizer)

    def _by_task(self, split: str, stop: Callable[[], int]) -> Any:
        """What a task in LAVIS' manner gives that defines `evaluation`, the loop over the batches of this process.

        Raises ConfigError where several processes run and it gives no rows, which alone can be joined.
        """
        feed = self.feeds[split]
        loader = Batches(self._moved(feed, stop), feed)
        with memory_errors(f"split '{split}'", OOM_HINT), self.accelerator.autocast():
            found = self.task.evaluation(model=self.task.network, data_loader=loader, cuda_enabled=False)
        if self.accelerator.num_processes > 1 and not isinstance(found, list | None):
            what = f"evaluation of {type(self.task).__name__} gives a {type(found).__name__}, not a list of rows"
            raise ConfigError("run.task", f"{what} that processes can join", "start one process, or give the rows")
        return found

    def _metrics(self, rows: list[dict[str, Any]], split: str, label: str) -> dict[str, Any]:
        """All ranks do their share of the work, then rank 0 writes the files and computes the metrics for all."""
        if (world := self.accelerator.num_processes) > 1:
            datasets, rank = list(self.feeds[split].datasets.values()), self.accelerator.process_index
            with self.accelerator.autocast():
                self.task.receive(gather_object([self.task.share(rows, split, datasets, rank, world)]))
        write = partial(self._write_results, rows, split, label)
        return dict(broadcast_from_main(self.accelerator, write, self.task.run.wait_minutes) or {})

    def _write_results(self, rows: list[dict[str, Any]], split: str, label: str) -> dict[str, Any]:
        result_dir = self.job_dir / "result"
        result_dir.mkdir(exist_ok=True)
        datasets, run = list(self.feeds[split].datasets.values()), self.task.run
        metrics: dict[str, Any] = self.task.after_evaluation(rows, split, datasets, result_dir, label)
        if self.gallery and isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
            official = getattr(run, "anno_files", {}).get(split)
            write_gallery(rows, datasets, result_dir / "gallery" / split, split, official)
        return metrics


# The gallery of a run's report: thumbnails with the model's and people's captions or answers.

EDGE_PIXELS = 320
QUALITY = 78
Shot = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """A model's caption or answer, the references, and its score; the fields are keys of `index.json`."""

    said: str
    truths: Sequence[str]
    score: float


def write_gallery(
    rows: Sequence[Mapping[str, Any]], datasets: Sequence[Any], folder: Path, split: str, named: str | None = None
) -> None:
    """Write `folder/index.json` and JPEGs of the best, the worst and other samples; an older gallery is replaced.

    Only for rows with captions or answers and data sets that have pictures and references (`named` is a file of
    answers); a picture that cannot be read is left out.
    """
    if any("conversations" in row for row in rows):
        write_shots(talked(rows, datasets, fresh(folder)), folder, split)
        return
    answered = all("answer" in row and "question_id" in row for row in rows)
    needed = ("pixels", "row", "references", *(() if answered else ("image_id",)))
    known = [dataset for dataset in datasets if all(hasattr(dataset, name) for name in needed)]
    described = all("caption" in row and "image_id" in row for row in rows)
    if not known or not (answered or described) or not rows:
        return
    said = answers_said(rows, known, named) if answered else captions_said(rows, known)
    names = sorted(said, key=str)
    groups = choose([said[name].score for name in names])
    wanted = {names[index]: group for index, group in groups.items()}
    shots = [
        {"id": name, "group": wanted[name], "image": file, **asked, **asdict(said[name])}
        for name, asked, file in pictures(known, wanted, fresh(folder), answered)
    ]
    write_shots(sorted(shots, key=rank), folder, split)


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_shots(shots: Sequence[Shot], folder: Path, split: str) -> None:
    """The index that the report reads."""
    write_json(folder / "index.json", {"split": split, "shots": list(shots)})


def talked(rows: Sequence[Mapping[str, Any]], datasets: Sequence[Any], folder: Path) -> list[Shot]:
    """Conversations that were answered, in order: their turns, pictures, what the model said and the reference."""
    said = {row["sample_id"]: row for row in reversed(rows) if "conversations" in row}
    shots: list[Shot] = []
    for dataset in datasets:
        for index in range(len(dataset)):
            if len(shots) == MAX_SHOTS or not said:
                return shots
            if (row := said.pop(dataset.sample_id(index), None)) is None:
                continue
            held, key = dataset.row(index), dataset.parts.args["image_key"]
            named = [{**held, key: name} for name in dataset.pair(held, index)]
            files = [thumbnail(dataset, one, index, folder, f"_{n}") for n, one in enumerate(named)]
            texts = {"said": row["answer"], "truths": [row["reference"]] if row["reference"] else [], "score": None}
            turns = {"turns": row["conversations"], "images": [file for file in files if file]}
            shots.append({"id": row["sample_id"], "group": "others", **turns, **texts})
    return shots


def captions_said(rows: Sequence[Mapping[str, Any]], datasets: Sequence[Any]) -> dict[Any, Said]:
    """Captions by image id, with the references and the share of words in common with them."""
    truths = merged_references(datasets)
    found = {row["image_id"]: str(row["caption"]) for row in first_by_id(map(dict, rows), "image_id")}
    return {name: Said(text, truths.get(name, []), overlap(text, truths.get(name, []))) for name, text in found.items()}


def answers_said(rows: Sequence[Mapping[str, Any]], datasets: Sequence[Any], named: str | None) -> dict[Any, Said]:
    """Answers by question id, with people's answers (the most frequent first) and the VQA score."""
    truth = find_truth(datasets, named).answers
    found: dict[Any, Said] = {}
    for row in rows:
        given = truth.get(row["question_id"], [])
        often = [answer for answer, _ in Counter(given).most_common()]
        found.setdefault(row["question_id"], Said(str(row["answer"]), often, vqa_score(str(row["answer"]), given)))
    return found


def rank(shot: Shot) -> tuple[float, str]:
    """Sort key: highest score first, but in the group "worst" lowest first."""
    return (shot["score"] if shot["group"] == "worst" else -shot["score"], str(shot["id"]))


def pictures(
    datasets: Sequence[Any], wanted: Mapping[Any, str], folder: Path, answered: bool
) -> Iterator[tuple[Any, Shot, str]]:
    """Thumbnails of the wanted ids, written into `folder`: (id, what was asked, file name)."""
    for dataset in datasets:
        for index in range(len(dataset)):
            row = dataset.row(index)
            name = plain_value(row.get("question_id", "")) if answered else plain_id(dataset.image_id(row))
            if name in wanted and (file := thumbnail(dataset, row, index, folder)):
                yield name, {"asked": str(row.get("question", ""))} if answered else {}, file


def thumbnail(dataset: Any, row: Mapping[str, Any], index: int, folder: Path, more: str = "") -> str:
    """The file name of a small JPEG of a sample; "" if the picture cannot be read."""
    file = f"{dataset.name}_{index}{more}.jpg"
    try:
        pixels: np.ndarray = dataset.pixels(row, index)
        image = Image.fromarray(pixels)
        image.thumbnail((EDGE_PIXELS, EDGE_PIXELS))
        image.save(folder / file, quality=QUALITY)
    except (OSError, ValueError, LavisExtError) as error:
        log.warning("no picture of %s in the report: %s", index, error)
        return ""
    return file
