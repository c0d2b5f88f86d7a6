"""Evaluates splits: batches → rows of all ranks → the task's files and metrics; training does not notice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from lavis_ext.collate import to_device
from lavis_ext.errors import PartialError, UsageError, nearest
from lavis_ext.runner.gallery import write_gallery
from lavis_ext.runner.state import random_state, restore_random_state, seed_everything
from lavis_ext.runner.steps import memory_errors
from lavis_ext.runner.waiting import from_main

log = logging.getLogger(__name__)
SMALLER = "lower run.batch_size_eval, or run.num_beams"


class EvaluationStopped(Exception):
    """A signal came between two batches; its number is the argument. Everything is as it was before the evaluation."""


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

    def evaluate(self, split: str, label: str, stop: Callable[[], int]) -> dict[str, Any]:
        """Metrics of `split`; raises EvaluationStopped as soon as `stop`, asked before each batch, names a signal.

        Generators are seeded for the evaluation and put back after it, so that training gives the same numbers whether
        and whenever it is evaluated. Raises PartialError if no sample of the split could be used.
        """
        if split not in self.feeds:
            raise UsageError(f"split '{split}'", "no data set of the run has it", nearest(split, self.feeds))
        generators, training = random_state(), self.task.model.training
        seed_everything(self.seed)
        self.task.model.eval()
        try:
            rows = self._rows(split, stop)
            rows = gather_object(rows) if self.feeds[split].order.world > 1 else rows
        finally:
            restore_random_state(generators)
            self.task.model.train(training)
        if not rows:
            raise PartialError(
                f"split '{split}'", "none of its samples could be used", "look at faults.json of the run"
            )
        return self._metrics(rows, split, label)

    def faults(self) -> dict[str, Any]:
        """What could not be read, per split."""
        return {split: feed.faults.summary() for split, feed in self.feeds.items()}

    def _rows(self, split: str, stop: Callable[[], int]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        with torch.no_grad():
            feed = self.feeds[split]
            self.task.before_evaluation(split, list(feed.datasets.values()))
            feed.set_epoch(0)  # the same samples, drawn the same way, every time
            for batch in feed:
                if number := stop():
                    raise EvaluationStopped(number)
                moved = to_device(batch, self.accelerator.device, feed.normalizer)
                with memory_errors(f"split '{split}'", SMALLER), self.accelerator.autocast():
                    rows += self.task.valid_step(moved)
        return rows

    def _metrics(self, rows: list[dict[str, Any]], split: str, label: str) -> dict[str, Any]:
        """All ranks do their share of the work, then rank 0 writes and judges; the others wait for what it found."""
        if (world := self.accelerator.num_processes) > 1:
            datasets, rank = list(self.feeds[split].datasets.values()), self.accelerator.process_index
            with self.accelerator.autocast():
                self.task.receive(gather_object([self.task.share(rows, split, datasets, rank, world)]))
        judge = partial(self._judge, rows, split, label)
        return dict(from_main(self.accelerator, judge, self.task.run.wait_minutes) or {})

    def _judge(self, rows: list[dict[str, Any]], split: str, label: str) -> dict[str, Any]:
        result_dir = self.job_dir / "result"
        result_dir.mkdir(exist_ok=True)
        datasets, run = list(self.feeds[split].datasets.values()), self.task.run
        found: dict[str, Any] = self.task.after_evaluation(rows, split, datasets, result_dir, label)
        if self.gallery:
            official = getattr(run, "anno_files", {}).get(split)
            write_gallery(rows, datasets, result_dir / "gallery" / split, split, official)
        return found
