"""The order of a run with some ranks, taken by more or fewer of them: the same samples in the same steps."""

from __future__ import annotations

from typing import Any

import pytest

from lavis_ext.common.errors import ConfigError
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.datasets.order import BatchPlan, MixtureSource
from tests.support.toys import ToyDataset

SOURCES = (MixtureSource("a", 50), MixtureSource("b", 23))


def order(rank: int, world: int, **keys: Any) -> BatchPlan:
    return BatchPlan(SOURCES, 3, seed=5, rank=rank, world=world, drop_last=True, **keys)


def steps(orders: list[BatchPlan], window: int, epoch: int = 0) -> list[list[tuple[int, tuple[int, ...]]]]:
    """Per step of `window` batches on each rank, the batches of all ranks, sorted."""
    rows = [list(one.specs(epoch)) for one in orders]
    found = []
    for at in range(0, len(rows[0]), window):
        found.append(sorted((spec.source, spec.indices) for row in rows for spec in row[at : at + window]))
    return found


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
@pytest.mark.parametrize("epoch", [0, 2])
def test_fewer_ranks_take_the_parts_one_after_the_other(weights: Any, epoch: int) -> None:
    four = steps([order(rank, 4, weights=weights) for rank in range(4)], 1, epoch)
    two = [order(rank, 2, parts_per_rank=2, weights=weights) for rank in range(2)]
    one = [order(0, 1, parts_per_rank=4, weights=weights)]
    assert steps(two, 2, epoch) == four
    assert steps(one, 4, epoch) == four
    assert len(one[0]) == 4 * len(order(0, 4, weights=weights))


def test_more_ranks_take_several_at_once() -> None:
    alone = steps([order(0, 1)], 2)
    both = [order(rank, 2, concurrent=2) for rank in range(2)]
    assert order(0, 1).total % 2 == 1  # 16 and 7 global batches
    assert steps(both, 1) == alone[:-1]


def test_augmentation_goes_with_the_sample() -> None:
    before = {index: seed for rank in range(2) for spec in order(rank, 2).specs(0) if spec.source == 0
              for index, seed in zip(spec.indices, order(rank, 2).seeds(spec), strict=True)}  # fmt: skip
    one = order(0, 1, parts_per_rank=2)
    after = {index: seed for spec in one.specs(0) if spec.source == 0
             for index, seed in zip(spec.indices, one.seeds(spec), strict=True)}  # fmt: skip
    assert after == before


def mixture(world: int, rank: int = 0, size: int = 24) -> Mixture:
    datasets = {"toy": ToyDataset(size)}
    return Mixture(datasets, batch_size=3, seed=1, rank=rank, world=world, num_workers=0, drop_last=True)


def drawn(batches: Any, count: int) -> list[list[str]]:
    found = []
    for batch in batches:
        found.append(list(batch["instance_id"]))
        if len(found) == count:
            break
    return found


@pytest.mark.fault("K12")
def test_a_state_goes_over_and_back() -> None:
    two = [mixture(2, rank) for rank in range(2)]
    for one in two:
        drawn(one, 2)
    state = two[0].state_dict()
    alone = mixture(1)
    alone.reshard(2, 1)
    alone.load_state_dict(state)
    parts = drawn(alone, 2)
    assert parts == [drawn(one, 1)[0] for one in two]
    again = mixture(2)
    again.load_state_dict(alone.state_dict())
    assert drawn(again, 1) == [drawn(two[0], 1)[0]]


def test_without_the_layout_a_state_of_other_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="world of the mixture"):
        mixture(1).load_state_dict(mixture(2).state_dict())


def test_what_cannot_change_hands_is_refused() -> None:
    with pytest.raises(ConfigError, match="by 2"):
        mixture(2, size=9).reshard(1, 2)
    streamed = mixture(1)
    streamed.order = BatchPlan((MixtureSource("shards", 9, stream=True),), 3)
    with pytest.raises(ConfigError, match="'shards' is a stream"):
        streamed.reshard(2, 1)
