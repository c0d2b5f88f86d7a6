"""A run that goes on under another number of ranks: same samples, same steps, same numbers but for summation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import ConfigError
from lavis_ext.runners import checkpoint
from lavis_ext.runners.distributed import ACCUM, ShardedSteps, find_layout, remap_rank_state, require_windows
from lavis_ext.runners.schedule import RunLength
from tests.runners.test_ranks import launch, losses, newest
from tests.support.ranks import trained
from tests.support.runs import LINEAR, require_close_weights, toy_runner

KEYS: dict[str, Any] = {
    "mixed": True, "size": 26, "batch_size_train": 2, "max_epoch": 3, "save_steps": 1, "keep_checkpoints": 99,
    "clip_grad_norm": 1.0, "warmup_steps": 4, "warmup_lr": 0.01, "lr_granularity": "iter", **LINEAR,
}  # fmt: skip


def saved_by(world: int, accum: int, **more: Any) -> dict[str, Any]:
    return {"ranks": [{}] * world, "config": {ACCUM: accum}, **more}


@pytest.mark.parametrize(
    ("begun", "now", "parts", "concurrent"),
    [((2, 1), (1, 2), 2, 1), ((4, 2), (2, 4), 2, 1), ((1, 4), (2, 2), 1, 2), ((2, 3), (2, 3), 1, 1)],
)
def test_the_same_sum_of_micro_batches_goes_on(
    begun: tuple[int, int], now: tuple[int, int], parts: int, concurrent: int
) -> None:
    layout = find_layout(saved_by(*begun), *now, "checkpoint_1")
    assert (layout.world, layout.accum, layout.parts_per_rank, layout.concurrent) == (*begun, parts, concurrent)
    assert layout.taken(begun[1]) == now[1]


def test_a_third_start_goes_by_the_first() -> None:
    state = saved_by(1, 2, layout={"world": 2, "accum": 1})
    assert find_layout(state, 2, 1, "here") == ShardedSteps(2, 1)
    assert find_layout(state, 1, 2, "here").parts_per_rank == 2


@pytest.mark.parametrize(
    ("begun", "now", "way_out"),
    [
        ((2, 1), (1, 1), "start 2, or set run.accum_grad_iters=2"),
        ((3, 2), (2, 3), "start 3"),
        ((2, 1), (4, 1), "start 2"),
    ],
)
@pytest.mark.fault("K12")
def test_another_sum_is_refused(begun: tuple[int, int], now: tuple[int, int], way_out: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_layout(saved_by(*begun), *now, "checkpoint_1")
    assert caught.value.problems[0].way_out == way_out


@pytest.mark.fault("K12")
def test_a_step_that_cannot_be_shared_is_refused() -> None:
    require_windows(RunLength(6, 12, 2), ShardedSteps(1, 2, concurrent=2), "here")
    for plan in (RunLength(5, 10, 2), RunLength(6, 9, 2)):
        with pytest.raises(ConfigError, match="over 2 ranks"):
            require_windows(plan, ShardedSteps(1, 2, concurrent=2), "here")


def test_a_rank_that_stands_in_for_two_has_the_faults_of_both() -> None:
    def of(bad: int) -> dict[str, Any]:
        faults = {"a/train": {"seen": 10, "bad": bad, "reasons": {"torn": bad}, "first": [{"id": str(bad)}]}}
        return {"random": f"generators {bad}", "batches": {"epoch": 1, "faults": faults}, "task": {}}

    mine = remap_rank_state([of(1), of(2)], 0, 1, ShardedSteps(2, 1, parts_per_rank=2))
    assert mine["random"] == ["generators 1", "generators 2"]
    assert mine["batches"]["faults"]["a/train"] == {
        "seen": 20, "bad": 3, "reasons": {"torn": 3}, "first": [{"id": "1"}, {"id": "2"}],
    }  # fmt: skip
    new = remap_rank_state([of(1)], 1, 2, ShardedSteps(1, 2, concurrent=2))
    assert new["random"] == []
    assert new["batches"] == {"epoch": 1, "faults": {}}


def test_a_task_with_a_state_for_each_rank_is_refused() -> None:
    ranks = [{"random": 0, "batches": {"faults": {}}, "task": {"seen": 3}}]
    with pytest.raises(ConfigError, match="each process"):
        remap_rank_state(ranks, 0, 2, ShardedSteps(1, 2, concurrent=2))
    assert remap_rank_state(ranks, 0, 1, ShardedSteps(1, 2))["task"] == {"seen": 3}


@pytest.mark.fault("K12")
def test_a_model_that_compares_samples_is_refused(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, **KEYS)
    runner.model.compares_samples = True
    with pytest.raises(ConfigError, match="compares the samples"):
        runner.reshard(ShardedSteps(2, 1, parts_per_rank=2), "here")


def test_a_length_of_which_the_last_step_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    """Seven micro-batches in steps of two."""
    for total, refused in ((8, False), (7, True)):
        runner = toy_runner(tmp_path / str(total), max_epoch=None, max_iters=total, accum_grad_iters=1)
        runner.batches.reshard = lambda parts, concurrent: None
        if refused:
            with pytest.raises(ConfigError, match="over 2 ranks"):
                runner.reshard(ShardedSteps(1, 2, concurrent=2), "here")
        else:
            runner.reshard(ShardedSteps(1, 2, concurrent=2), "here")
            assert (runner.plan.per_epoch, runner.plan.total, runner.plan.window) == (12, 8, 2)


@pytest.mark.slow
@pytest.mark.fault("K12")
def test_two_ranks_become_one_and_two_again(tmp_path: Path) -> None:
    """Step by step as if nothing had changed, dropout included, but for the order of sums."""
    keys = {**KEYS, "dropout": 0.3}
    straight = tmp_path / "straight"
    done = launch(straight, 2, **keys)
    assert done.returncode == 0, done.stderr[-6000:]
    whole = losses(straight)
    assert len(whole) == 18
    trained(continued(straight, tmp_path / "one", 3), **{**keys, "accum_grad_iters": 2})
    assert losses(tmp_path / "one") == pytest.approx(whole[3:], rel=1e-5)
    same_weights(newest(straight), newest(tmp_path / "one"))
    done = launch(continued(tmp_path / "one", tmp_path / "again", 8), 2, **keys)
    assert done.returncode == 0, done.stderr[-6000:]
    assert losses(tmp_path / "again") == pytest.approx(whole[8:], rel=1e-5)


@pytest.mark.slow
@pytest.mark.fault("K12")
def test_one_rank_becomes_two(tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    trained(straight, **{**KEYS, "accum_grad_iters": 2, "size": 24})
    whole = losses(straight)
    done = launch(continued(straight, tmp_path / "two", 4), 2, **{**KEYS, "size": 24})
    assert done.returncode == 0, done.stderr[-6000:]
    assert losses(tmp_path / "two") == pytest.approx(whole[4:], rel=1e-5)
    same_weights(newest(straight), newest(tmp_path / "two"))


def continued(begun: Path, folder: Path, step: int) -> Path:
    """A job that has but one checkpoint of another."""
    name = f"checkpoint_{step}"
    shutil.copytree(begun / "job" / name, folder / "job" / name)
    return folder


def same_weights(one: checkpoint.Checkpoint, other: checkpoint.Checkpoint) -> None:
    require_close_weights(one.model, other.model)
    assert one.state["progress"] == other.state["progress"]
