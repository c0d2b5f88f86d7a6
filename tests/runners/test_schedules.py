"""Learning rates against LAVIS' formulas, written out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import lr_schedulers
from lavis_ext.runners.schedule import Position
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


def test_one_step_of_warm_up_and_epochs_of_one_batch() -> None:
    assert rate("constant_lr", 0, 1, warmup_lr=0, warmup_steps=1) == 1e-4
    expected = rate("linear_warmup_cosine_lr", 2, 0)
    assert rate("linear_warmup_cosine_lr", 2, 0, per_epoch=1, lr_granularity="iter") == expected


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


@pytest.mark.fault("K15")
def test_the_loop_asks_at_the_last_micro_batch_of_a_step(tmp_path: Path) -> None:
    toy_runner(tmp_path, accum_grad_iters=2, warmup_lr=0.0, warmup_steps=6, max_epoch=2, init_lr=0.01).train()
    rates = [line["lr"] for line in log_lines(tmp_path)]
    assert rates == pytest.approx([0.01 / 6, 0.03 / 6, 0.05 / 6, 0.005, 0.005, 0.005])


def linear(seen: int, total: int, **keys: object) -> float:
    """The rate after `seen` micro-batches of a run that has epochs of ten."""
    run = RunConfig(task="toy", init_lr=5e-5, **keys)  # type: ignore[arg-type]
    at = Position(seen // 10, seen % 10, 10, max(total // 10, 1), total)
    return lr_schedulers.get("linear_warmup_linear_lr")(run, at.max_epoch)(at)


@pytest.mark.parametrize(("warmup", "total"), [(0, 40), (7, 40), (10, 25), (40, 40), (100, 40)])
@pytest.mark.fault("K15")
def test_the_line_is_that_of_transformers(warmup: int, total: int) -> None:
    """get_linear_schedule_with_warmup: step/warmup, then (total - step)/(total - warmup)."""
    for step in range(total):
        share = step / warmup if step < warmup else (total - step) / max(1, total - warmup)
        assert linear(step, total, warmup_lr=0, warmup_steps=warmup) == pytest.approx(5e-5 * share, abs=1e-18)


@pytest.mark.parametrize("granularity", ["epoch", "iter"])
def test_the_line_moves_with_every_batch(granularity: str) -> None:
    assert linear(11, 40, lr_granularity=granularity) == pytest.approx(5e-5 * 29 / 40)
    assert linear(39, 40, min_lr=1e-5, lr_granularity=granularity) == pytest.approx(1e-5 + 4e-5 / 40)


@pytest.mark.fault("K15")
def test_a_run_s_first_rate_is_the_schedule_s_first(tmp_path: Path) -> None:
    """Oscar advances its schedule before the optimizer moves, and so skips the first rate."""
    runner = toy_runner(tmp_path, lr_sched="linear_warmup_linear_lr", init_lr=0.01, max_epoch=1)
    runner.train()
    rates = [line["lr"] for line in log_lines(tmp_path) if line["kind"] == "train"]
    assert rates == pytest.approx([0.01 * (6 - step) / 6 for step in range(6)])


def test_accumulated_steps_have_the_rates_of_steps_that_are_not(tmp_path: Path) -> None:
    """Two micro-batches a step, and twice the warm-up: the schedule counts optimizer steps, as upstream's does."""
    keys = {"lr_sched": "linear_warmup_linear_lr", "init_lr": 0.01, "warmup_lr": 0.0, "max_epoch": 2}
    toy_runner(tmp_path / "one", size=12, batch_size_train=4, warmup_steps=2, **keys).train()
    toy_runner(tmp_path / "two", size=12, batch_size_train=2, warmup_steps=4, accum_grad_iters=2, **keys).train()
    rates = [[line["lr"] for line in log_lines(tmp_path / name) if line["kind"] == "train"] for name in ("one", "two")]
    assert rates[0] == pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025])
    assert rates[1] == pytest.approx(rates[0])


def test_iterations_that_are_no_whole_epochs_end_at_zero(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, lr_sched="linear_warmup_linear_lr", init_lr=0.01, max_epoch=None, max_iters=8)
    runner.train()
    rates = [line["lr"] for line in log_lines(tmp_path) if line["kind"] == "train"]
    assert rates == pytest.approx([0.01 * (8 - step) / 8 for step in range(8)])


def test_a_rate_that_cannot_be_at_the_end_of_an_epoch_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr_schedulers.names()
    falling = lambda run, epochs: lambda at: 0.1 - 0.1 * at.batch  # noqa: E731 - below zero after a batch
    monkeypatch.setitem(lr_schedulers._items, "falling", falling)
    runner = toy_runner(tmp_path, max_epoch=1, lr_sched="falling")
    with pytest.raises(ConfigError) as caught:
        runner.train()
    assert caught.value.problems[0].where == "run.lr_sched" and runner.progress.step == 0
