"""A toy run for `torchrun`: `python -m torch.distributed.run … ranks.py FOLDER JSON` trains and leaves its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from lavis_ext.runners import checkpoint
from lavis_ext.runners.runner_base import RunnerBase
from lavis_ext.runners.task_loop import run_epoch_of_task
from tests.support.runs import toy_runner, weights
from tests.support.toys import ToyTask


def trained(folder: Path, **keys: Any) -> RunnerBase:
    """Train, or go on, with this `dropout`; `poisoned` names a sample whose loss is not finite.

    With `loop_of_task` the epochs are LAVIS' loop, the task's own.
    """
    poisoned, dropout, loop = keys.pop("poisoned", None), keys.pop("dropout", 0.0), keys.pop("loop_of_task", False)
    runner = toy_runner(folder, **keys)
    runner.epoch_of_task = run_epoch_of_task if loop else None
    for part in runner.model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = dropout
    runner.model.poisoned = poisoned
    saved = checkpoint.load_newest(folder / "job")
    if saved is not None:
        runner.restore(saved)
    runner.train()
    return runner


def leave_weights(folder: str, keys: dict[str, Any]) -> None:
    """Train; rank 0 writes the weights."""
    runner = trained(Path(folder), **keys)
    found = weights(runner)
    if runner.is_main:
        (Path(folder) / "weights.json").write_text(json.dumps(found))


def leave_shares(folder: str) -> None:
    """Evaluate with a task that divides its work; each rank writes what it was handed of all."""
    runner = toy_runner(Path(folder), valid_splits=["val"])
    handed: list[Any] = []
    runner.task.share = lambda rows, split, datasets, rank, world: (split, rank, world, len(rows))
    runner.task.receive = handed.extend
    runner.evaluate_split("val", "0")
    (Path(folder) / f"handed_{runner.accelerator.process_index}.json").write_text(json.dumps(handed))


class LoopOverSplit(ToyTask):
    """A task that defines LAVIS' `evaluation`: rows, or what no process can join."""

    joined = True

    def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> Any:
        rows = [row for batch in data_loader for row in self.valid_step(batch)]
        return rows if self.joined else {"count": len(rows)}


def leave_rows(folder: str, by_task: bool, joined: bool = True) -> None:
    """Evaluate, by the runner's loop or by one of the task's own; rank 0 writes the rows of all."""
    runner = toy_runner(Path(folder), valid_splits=["val"])
    if by_task:
        runner.task.__class__ = LoopOverSplit
        LoopOverSplit.joined = joined
    runner.evaluate_split("val", "0")


if __name__ == "__main__":
    leave_weights(sys.argv[1], json.loads(sys.argv[2]))
