"""Epochs and iterations as two ways to say how many steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.runners.hooks import due
from lavis_ext.runners.schedule import RunLength, RunProgress


def plan(batches: int = 10, **keys: Any) -> RunLength:
    return RunLength.of(RunConfig(task="toy", **keys), batches)


def windows(of: RunLength) -> list[list[int]]:
    """Sizes of the optimizer steps, epoch by epoch."""
    found: list[list[int]] = []
    progress = RunProgress()
    while progress.epoch < of.epochs:
        found.append([])
        while size := of.next_window(progress):
            found[-1].append(size)
            progress.batch += size
        progress = progress.next_epoch()
    return found


def test_the_last_window_of_an_epoch_holds_the_remainder() -> None:
    assert windows(plan(max_epoch=2, accum_grad_iters=4)) == [[4, 4, 2], [4, 4, 2]]


def test_iterations_count_micro_batches() -> None:
    assert windows(plan(max_iters=7, iters_per_inner_epoch=3, accum_grad_iters=2)) == [[2, 1], [2, 1], [1]]


def test_lavis_divides_by_whole_inner_epochs() -> None:
    assert plan(max_iters=7, iters_per_inner_epoch=3).max_epoch == 2
    assert plan(max_iters=2, iters_per_inner_epoch=3).max_epoch == 1


def test_an_inner_epoch_may_be_longer_than_the_data() -> None:
    assert windows(plan(batches=2, max_epoch=1, iters_per_inner_epoch=5)) == [[1] * 5]


@pytest.mark.parametrize(
    ("batches", "keys", "named"),
    [
        (0, {"max_epoch": 1}, "no batch"),
        (3, {}, "max_epoch"),
        (3, {"max_epoch": 0}, "max_epoch"),
        (3, {"max_epoch": 1, "accum_grad_iters": 0}, "accum_grad_iters"),
    ],
)
def test_what_cannot_be_meant_is_refused(batches: int, keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        plan(batches, **keys)


@given(st.integers(1, 30), st.integers(1, 60), st.integers(1, 8))
def test_every_micro_batch_is_in_one_window(per_epoch: int, total: int, window: int) -> None:
    found = windows(RunLength(per_epoch, total, window))
    assert sum(map(sum, found)) == total
    assert all(0 < size <= window for epoch in found for size in epoch)


@pytest.mark.parametrize(("every", "epochs"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (3, [2, 4]), (9, [4])])
def test_something_of_every_few_epochs_happens_at_their_ends_and_at_the_last(every: int, epochs: list[int]) -> None:
    length = plan(max_epoch=5)
    assert [epoch for epoch in range(5) if due(epoch, every, length)] == epochs
