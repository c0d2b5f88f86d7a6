"""SIGTERM and SIGINT: a step is finished, the state is saved, and the same command goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_ext.common.errors import Preempted
from lavis_ext.runners.runner_base import Hook, RunnerBase
from tests.support.runs import log_lines, resumed, toy_runner, weights


class Send(Hook):
    """Sends a signal to this process in the middle of a step."""

    def __init__(self, number: int, batch: int, times: int = 1) -> None:
        self.number, self.batch, self.times = number, batch, times

    def before_step(self, runner: RunnerBase) -> None:
        if runner.progress.batch == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.fault("K09")
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(
    number: int, error: type[BaseException], tmp_path: Path
) -> None:
    straight = toy_runner(tmp_path / "straight", max_epoch=2)
    straight.train()
    handler = signal.getsignal(number)
    with pytest.raises(error):
        toy_runner(tmp_path / "hit", extra=[Send(number, 3)], max_epoch=2).train()
    assert signal.getsignal(number) is handler
    runner = resumed(tmp_path / "hit", max_epoch=2)
    assert runner.progress.step in (3, 4)
    runner.train()
    assert weights(runner) == weights(straight)
    assert log_lines(tmp_path / "hit") == log_lines(tmp_path / "straight")


@pytest.mark.fault("K09")
def test_preempted_is_exit_75(tmp_path: Path) -> None:
    with pytest.raises(Preempted) as caught:
        toy_runner(tmp_path, extra=[Send(signal.SIGTERM, 2)]).train()
    assert caught.value.exit_code == 75


@pytest.mark.fault("K10")
def test_a_second_sigint_does_not_wait_for_the_step(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, extra=[Send(signal.SIGINT, 2, times=2)])
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert runner.progress.step == 1  # of the step that was hit, nothing is counted
    assert not list((tmp_path / "job").glob("checkpoint_*"))
    assert not list((tmp_path / "job").glob(".checkpoint_*"))


def test_after_a_run_signals_do_what_they_did(tmp_path: Path) -> None:
    mine = [signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)]
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        toy_runner(tmp_path, max_epoch=1).train()
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), mine, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize(("ranks", "stop"), [(1, 15), (2, 0)])
def test_several_ranks_do_not_leave_an_evaluation_one_by_one(ranks: int, stop: int) -> None:
    """Only between steps do all of them learn of a signal: a rank that left would be waited for."""
    runner: Any = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=ranks),
        wrapped=torch.nn.Linear(1, 1),
        evaluator=SimpleNamespace(evaluate=lambda split, label, stop: {"stop": stop()}),
        stop_requested=lambda: 15,
    )
    assert RunnerBase.evaluate_split(runner, "val", "0") == {"stop": stop}


@pytest.mark.fault("K09")
def test_sigterm_during_validation_saves_the_end_of_the_epoch(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"valid_splits": ["val", "more"], "max_epoch": 2}
    straight = toy_runner(tmp_path / "straight", metrics=[0.5, 0.1], **keys)
    straight.train()
    runner = toy_runner(tmp_path / "hit", metrics=[0.5, 0.1], **keys)
    real = runner.task.valid_step

    def hit(batch: Any) -> Any:
        if runner.task.evaluated:  # the first split is done, the second one is under way
            os.kill(os.getpid(), signal.SIGTERM)
        return real(batch)

    runner.task.valid_step = hit
    with pytest.raises(Preempted):
        runner.train()
    again = resumed(tmp_path / "hit", metrics=[0.5, 0.1], **keys)
    again.train()
    assert log_lines(tmp_path / "hit") == log_lines(tmp_path / "straight")
    assert weights(again) == weights(straight)
    assert again.progress.best == straight.progress.best
