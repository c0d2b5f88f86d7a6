"""Learning rates against LAVIS' formulas, written out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lavis_ext.errors import ConfigError
from lavis_ext.registry import lr_schedulers
from lavis_ext.runner.schedules import Position
from lavis_ext.schema import RunConfig
from tests.support.runs import log_lines, toy_runner


def rate(name: str, epoch: int, batch: int, per_epoch: int = 10, max_epoch: int = 4, **keys: object) -> float:
    run = RunConfig(task="toy", init_lr=1e-4, min_lr=1e-5, **keys)  # type: ignore[arg-type]
    return lr_schedulers.get(name)(run, max_epoch)(Position(epoch, batch, per_epoch, max_epoch))


@pytest.mark.parametrize(
    ("batch", "expected"), [(0, 1e-6), (1, 1e-6 + 99e-6 / 5), (4, 1e-6 + 99e-6 * 4 / 5), (5, 1e-4), (9, 1e-4)]
)
@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr", "constant_lr"])
def test_epoch_zero_warms_up_by_micro_batch(name: str, batch: int, expected: float) -> None:
    assert rate(name, 0, batch, warmup_lr=1e-6, warmup_steps=5, lr_decay_rate=0.5) == pytest.approx(expected, rel=1e-12)


def test_no_warm_up_rate_means_the_full_rate() -> None:
    assert rate("linear_warmup_cosine_lr", 0, 0, warmup_steps=5) == 1e-4


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_cosine_falls_once_an_epoch(epoch: int) -> None:
    expected = (1e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * epoch / 4)) + 1e-5
    assert rate("linear_warmup_cosine_lr", epoch, 0) == expected
    assert rate("linear_warmup_cosine_lr", epoch, 9) == expected


def test_a_warm_up_longer_than_an_epoch_ends_with_it_as_in_lavis() -> None:
    assert rate("linear_warmup_cosine_lr", 1, 0, warmup_lr=0, warmup_steps=1000) > 8e-5


@pytest.mark.parametrize(("epoch", "expected"), [(1, 5e-5), (2, 2.5e-5), (3, 1.25e-5), (4, 1e-5), (9, 1e-5)])
def test_step_decay_stops_at_the_minimum(epoch: int, expected: float) -> None:
    assert rate("linear_warmup_step_lr", epoch, 3, lr_decay_rate=0.5) == pytest.approx(expected, rel=1e-12)


def test_step_decay_needs_its_rate() -> None:
    with pytest.raises(ConfigError, match="lr_decay_rate"):
        rate("linear_warmup_step_lr", 0, 0)


def test_constant_stays() -> None:
    assert rate("constant_lr", 3, 7) == 1e-4


@pytest.mark.parametrize(("epoch", "batch"), [(1, 4), (2, 0), (3, 9)])
def test_by_iteration_the_rate_moves_with_every_batch(epoch: int, batch: int) -> None:
    elapsed = epoch + batch / 10
    expected = (1e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * elapsed / 4)) + 1e-5
    assert rate("linear_warmup_cosine_lr", epoch, batch, lr_granularity="iter") == expected


def test_by_iteration_a_warm_up_may_last_several_epochs() -> None:
    assert rate("constant_lr", 1, 5, warmup_lr=0, warmup_steps=30, lr_granularity="iter") == pytest.approx(5e-5)


def test_the_loop_asks_at_the_last_micro_batch_of_a_step(tmp_path: Path) -> None:
    toy_runner(tmp_path, accum_grad_iters=2, warmup_lr=0.0, warmup_steps=6, max_epoch=2, init_lr=0.01).train()
    rates = [line["lr"] for line in log_lines(tmp_path)]
    assert rates == pytest.approx([0.01 / 6, 0.03 / 6, 0.05 / 6, 0.005, 0.005, 0.005])
