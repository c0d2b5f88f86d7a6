"""Batches of samples of like length: the same samples, in step, resumable, with less padding."""

from __future__ import annotations

import json
import logging
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import ConfigError
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.datasets.order import WINDOW, BatchPlan, MixtureSource, grouped, lengths_of
from lavis_ext.datasets.readers import FaultLog
from tests.support.mixing import Numbers, Shards, seen

relaxed = settings(max_examples=60, deadline=None)
sizes = st.lists(st.integers(1, 90), min_size=1, max_size=3)


class Long(Numbers):
    """Samples with two lengths; the first data set's tell nothing of the second's."""

    @property
    def lengths(self) -> np.ndarray:
        return measures(self.size, 2, len(self.name))


class OneByOne(Numbers):
    """Samples that are asked one at a time."""

    def length(self, index: int) -> int:
        return index % 7


def measures(count: int, axes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, count]).integers(1, 40, (count, axes))


def source(count: int, name: str = "a", axes: int = 2) -> MixtureSource:
    return MixtureSource(name, count, lengths=measures(count, axes))


def epoch_of(order: BatchPlan, epoch: int = 0) -> list[int]:
    return [index for spec in order.specs(epoch) for index in spec.indices]


def padded(order: BatchPlan, lengths: np.ndarray, epochs: int = 1) -> float:
    """The mean width of a batch of which each part is padded to its longest."""
    specs = [spec for epoch in range(epochs) for spec in order.specs(epoch)]
    return float(np.mean([lengths[list(spec.indices)].max(0).sum() for spec in specs]))


# --- what an epoch holds -------------------------------------------------------------------------------------------


@relaxed
@given(st.integers(0, 300), st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.integers(0, 3))
def test_windows_keep_their_samples(count: int, axes: int, span: int, window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    order, lengths = rng.permutation(count), measures(count, axes)
    found = grouped(order, lengths, span, window, np.random.default_rng(seed))
    whole = count // span * span
    assert found[whole:].tolist() == order[whole:].tolist()
    window = max(min(window, count // span // 4), 1)
    for begin in range(0, whole, span * window):
        end = min(begin + span * window, whole)
        assert sorted(found[begin:end]) == sorted(order[begin:end])
    assert found.tolist() == grouped(order, lengths, span, window, np.random.default_rng(seed)).tolist()


@relaxed
@given(sizes, st.integers(1, 7), st.integers(1, 3), st.booleans(), st.integers(0, 3), st.integers(1, 6))
def test_an_epoch_holds_what_it_held(
    counts: list[int], size: int, world: int, drop: bool, epoch: int, window: int
) -> None:
    """Every sample once over all ranks, and what is left over is what would be left over without."""
    if min(counts) < world:
        return

    def held(sources: tuple[MixtureSource, ...]) -> list[list[tuple[int, int]]]:
        orders = [
            BatchPlan(sources, size, 5, rank=rank, world=world, drop_last=drop, window=window) for rank in range(world)
        ]
        rows = [list(one.specs(epoch)) for one in orders]
        assert {len(row) for row in rows} == {len(orders[0])}
        assert len({tuple(spec.source for spec in row) for row in rows}) == 1
        return [[(spec.source, index) for spec in row for index in spec.indices] for row in rows]

    with_lengths = held(tuple(source(n, "abc"[i]) for i, n in enumerate(counts)))
    without = held(tuple(MixtureSource("abc"[i], n) for i, n in enumerate(counts)))
    assert sorted(chain(*with_lengths)) == sorted(chain(*without))
    assert len(set(chain(*with_lengths))) == sum(map(len, with_lengths))


@relaxed
@given(st.integers(4, 60), st.integers(1, 5), st.integers(1, 2), st.integers(0, 5))
def test_weighted_passes_are_whole(count: int, size: int, world: int, seed: int) -> None:
    sources = (source(count), source(count // 2, "b", 1))
    passes: dict[tuple[int, int], list[int]] = {}
    for rank in range(world):
        order = BatchPlan(sources, size, seed, weights=(3, 1), rank=rank, world=world, window=3)
        for spec in (spec for epoch in range(3) for spec in order.specs(epoch)):
            passes.setdefault((spec.source, spec.pass_index), []).extend(spec.indices)
    last = {number: max(index for one, index in passes if one == number) for number, _ in passes}
    for (number, index), indices in passes.items():
        assert len(set(indices)) == len(indices)
        if index < last[number]:
            assert sources[number].size - len(indices) < world


def test_seed_and_epoch_alone_decide() -> None:
    order = BatchPlan((source(200),), 4, 3)
    assert epoch_of(order) == epoch_of(BatchPlan((source(200),), 4, 3))
    assert epoch_of(order, 1) == epoch_of(BatchPlan((source(200),), 4, 3), 1)
    assert epoch_of(order) != epoch_of(order, 1)
    assert epoch_of(order) != epoch_of(BatchPlan((source(200),), 4, 4))
    batches = [{tuple(sorted(spec.indices)) for spec in order.specs(epoch)} for epoch in range(2)]
    assert len(batches[0] & batches[1]) < 5


def test_a_data_set_without_lengths_is_left_as_it_is() -> None:
    beside = BatchPlan((source(60), MixtureSource("b", 50)), 4, 3)
    alone = BatchPlan((MixtureSource("a", 60), MixtureSource("b", 50)), 4, 3)
    batches = [[spec.indices for spec in order.specs(0) if spec.source == 1] for order in (beside, alone)]
    assert batches[0] == batches[1]
    assert epoch_of(beside) != epoch_of(alone)


def test_fewer_ranks_go_on_with_the_same_batches() -> None:
    two = [list(BatchPlan((source(90),), 3, 5, rank=rank, world=2, drop_last=True).specs(0)) for rank in range(2)]
    one = list(BatchPlan((source(90),), 3, 5, parts_per_rank=2, drop_last=True).specs(0))
    assert [spec.indices for spec in one] == [spec.indices for pair in zip(*two, strict=True) for spec in pair]


# --- padding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axes", "most"), [(1, 0.65), (2, 0.75), (3, 0.8)])
def test_there_is_less_padding(axes: int, most: float) -> None:
    """Uniform lengths 1 to 39: a batch of 16 reaches 37 of 39, one of a sorted window the mean and little more."""
    count = 16 * 4 * WINDOW
    one = MixtureSource("a", count, lengths=measures(count, axes))
    lengths = measures(count, axes)
    loose = padded(BatchPlan((MixtureSource("a", count),), 16), lengths, 2)
    assert loose > 36 * axes
    assert padded(BatchPlan((one,), 16), lengths, 2) < most * loose


@relaxed
@given(st.integers(4, 6), st.integers(2, 8), st.integers(4, 20), st.integers(0, 9))
def test_one_axis_sorted_is_as_narrow_as_can_be(windows: int, span: int, window: int, seed: int) -> None:
    """In each window the batches are those of the sorted window: no others have a smaller sum of longest samples."""
    count = span * window * windows
    rng = np.random.default_rng(seed)
    order, lengths = rng.permutation(count), rng.integers(0, 50, (count, 1))
    found = lengths[grouped(order, lengths, span, window, rng), 0].reshape(windows, window, span)
    best = np.sort(lengths[order, 0].reshape(windows, -1)).reshape(windows, window, span)
    assert np.sort(found.max(2)).tolist() == np.sort(best.max(2)).tolist()


def test_ranks_get_alike_batches_and_none_the_longer() -> None:
    count, size = 4000, 8
    lengths = measures(count, 1)
    ranks = [list(BatchPlan((source(count, axes=1),), size, rank=rank, world=2).specs(0)) for rank in range(2)]
    widths = np.array([[lengths[list(spec.indices)].max() for spec in row] for row in ranks])
    assert np.abs(widths[0] - widths[1]).mean() < 1
    assert abs((widths[0] > widths[1]).mean() - (widths[0] < widths[1]).mean()) < 0.15
    assert np.corrcoef(widths[0][:-1], widths[0][1:])[0, 1] < 0.2  # long batches do not follow one another


# --- the mixture ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(sizes, st.booleans(), st.integers(1, 2), st.sampled_from([0, 0, 2]), st.integers(0, 40), st.integers(1, 5))
def test_a_resume_anywhere_goes_on_the_same(
    counts: list[int], weighted: bool, world: int, workers: int, cut: int, size: int
) -> None:
    if min(counts) < world:
        return

    def make() -> Mixture:
        kinds = (Long, OneByOne, Numbers)
        sets: dict[str, Any] = {"abc"[i]: kinds[i](n, "abc"[i]) for i, n in enumerate(counts)}
        weights = [1.0 + i for i in range(len(sets))] if weighted else None
        policy: dict[str, Any] = {"batch_size": size, "rank": world - 1, "world": world, "num_workers": workers}
        return Mixture(sets, weights, repeat=True, group_by_length=True, faults=FaultLog(tolerance=1.0), **policy)

    straight, with_cut = make(), make()
    expected = [seen(batch) for batch in islice(straight, cut + 20)]
    head = [seen(batch) for batch in islice(with_cut, cut)]
    state = json.loads(json.dumps(with_cut.state_dict()))
    with_cut.close()
    resumed = make()
    resumed.load_state_dict(state)
    assert head + [seen(batch) for batch in islice(resumed, 20)] == expected
    for mix in (resumed, straight):
        mix.close()


def mixture(*datasets: Any, group_by_length: bool = True, **policy: Any) -> Mixture:
    named = {dataset.name: dataset for dataset in datasets}
    return Mixture(named, batch_size=4, num_workers=0, group_by_length=group_by_length, **policy)


def test_a_resume_with_other_lengths_is_refused() -> None:
    class Longer(Long):
        @property
        def lengths(self) -> np.ndarray:
            return super().lengths + np.arange(self.size)[:, None] % 2

    state = mixture(Long(40, "a")).state_dict()
    for other in (mixture(Longer(40, "a")), mixture(Long(40, "a"), group_by_length=False)):
        with pytest.raises(ConfigError, match="group_by_length of the mixture"):
            other.load_state_dict(state)
    plain = mixture(Long(40, "a"), group_by_length=False).state_dict()
    with pytest.raises(ConfigError, match="group_by_length of the mixture"):
        mixture(Long(40, "a")).load_state_dict(plain)


def test_a_state_of_before_there_were_lengths_is_taken() -> None:
    state = mixture(Numbers(40, "a")).state_dict()
    del state["of"]["group_by_length"]
    mixture(Numbers(40, "a"), group_by_length=False).load_state_dict(state)


def test_only_shuffled_data_sets_with_lengths_are_grouped(caplog: pytest.LogCaptureFixture) -> None:
    assert mixture(Long(9, "a"), shuffle=False).order.sources[0].lengths is None
    assert mixture(Long(9, "a"), group_by_length=False).order.sources[0].lengths is None
    with caplog.at_level(logging.WARNING):
        mixed = mixture(Long(9, "a"), Numbers(9, "b"), Shards(9, "s"))
        assert not caplog.records
        mixture(Numbers(9, "b"))
    assert [one.lengths is None for one in mixed.order.sources] == [False, True, True]
    assert "group_by_length: b:" in caplog.text


def test_lengths_are_taken_as_a_whole_or_one_by_one() -> None:
    whole = lengths_of("a", Long(9, "a"))
    assert whole is not None
    assert np.array_equal(whole, measures(9, 2, 1))
    single = lengths_of("a", OneByOne(9))
    assert single is not None
    assert single.tolist() == [[i % 7] for i in range(9)]


def test_parts_that_are_all_alike_are_left_out() -> None:
    class Flat(Numbers):
        lengths = np.array([[36, 5], [36, 6]], np.int16)

    class Alike(Numbers):
        lengths = np.full((2, 2), 36)

    class Unknown(Numbers):
        lengths = None

    flat = lengths_of("a", Flat(2))
    assert flat is not None
    assert flat.tolist() == [[5], [6]]
    assert lengths_of("a", Alike(2)) is None
    assert lengths_of("a", Unknown(2)) is None
    assert lengths_of("a", type("Empty", (Numbers,), {"lengths": np.zeros((0, 2), int)})(0)) is None


@pytest.mark.parametrize("wrong", [[1], [1, -1], [0.5, 1.0], [[[1]], [[2]]], [[], []], [1, 1 << 31]])
def test_lengths_that_are_none(wrong: Any) -> None:
    class Wrong(Numbers):
        lengths = np.array(wrong)

    with pytest.raises(ConfigError, match="lengths of data set 'a'"):
        lengths_of("a", Wrong(2))
