"""A task's own loop is given what the runner's has: the same rates, the same clocks, and the same refusals."""

from __future__ import annotations

import time
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch

from lavis_ext.common.errors import TrainingError
from lavis_ext.runners.hooks import Hook
from lavis_ext.runners.runner_base import RunnerBase
from lavis_ext.runners.task_loop import run_epoch_of_task
from tests.support.runs import toy_runner


class Steps(Hook):
    """Keeps what is reported of each step, and the rate that it was taken with."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.rates: list[float] = []

    def before_step(self, runner: RunnerBase) -> None:
        self.rates.append(runner.rate)

    def after_step(self, runner: RunnerBase, step: Any) -> None:
        self.steps.append(step)


def looped(folder: Path, spoil: float | None = None, **keys: Any) -> tuple[RunnerBase, Steps, list[float]]:
    """A runner whose task has a loop of its own, what is reported of it, and the rates of its iterations."""
    steps, rates = Steps(), list[float]()
    runner = toy_runner(folder, extra=[steps], **keys)

    def train_epoch(self: Any, epoch: int, data_loader: Any, lr_scheduler: Any, optimizer: Any, **_: Any) -> Any:
        for step, batch in enumerate(data_loader):
            lr_scheduler.step(cur_epoch=epoch, cur_step=step)
            rates.append(runner.rate)
            self.step(batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        if spoil is not None:
            with torch.no_grad():
                next(iter(runner.model.parameters())).fill_(spoil)
        return {"loss": "0.5"}

    runner.task.train_epoch = MethodType(train_epoch, runner.task)
    runner.epoch_of_task = run_epoch_of_task
    return runner, steps, rates


def test_its_rates_are_those_of_the_runners_loop(tmp_path: Path) -> None:
    schedule = {"lr_sched": "linear_warmup_cosine_lr", "warmup_steps": 4, "warmup_lr": 1e-4}
    own = Steps()
    toy_runner(tmp_path / "own", extra=[own], **schedule).train()
    runner, _, rates = looped(tmp_path / "looped", **schedule)
    runner.train()
    assert len(set(rates[:4])) == 4 and rates == own.rates


def test_what_it_waits_and_takes_is_measured(tmp_path: Path) -> None:
    runner, steps, _ = looped(tmp_path, max_epoch=1)
    begun = time.perf_counter()
    runner.train()
    (step,) = steps.steps
    assert 0 < step.wait_s <= step.spent_s <= time.perf_counter() - begun
    assert (step.samples, step.losses) == (12, {"loss": 0.5})


def test_weights_that_are_not_finite_afterwards_end_the_run(tmp_path: Path) -> None:
    runner, _, _ = looped(tmp_path, spoil=float("nan"))
    with pytest.raises(TrainingError) as caught:
        runner.train()
    assert caught.value.exit_code == 11 and not list((tmp_path / "job").glob("checkpoint_*"))
