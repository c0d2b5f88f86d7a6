"""The mixture: nothing lost, nothing twice, the same after a resume, in step on every rank, and quick to stop."""

import gc
import json
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.config.schema import ProcessorConfig, ProcessorPair
from lavis_ext.common.errors import ConfigError, PartialError, TrainingError
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.collate import to_device
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.datasets.order import BatchPlan, MixtureSource
from lavis_ext.datasets.readers import FaultLog
from lavis_ext.processors.image import Normalizer
from tests.support.mixing import Numbers, RawShards, Shards, seen
from tests.support.pictures import caption_config, write_captions

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=3)
relaxed = settings(max_examples=60, deadline=None)


def mixture(*counts: int, weights: Any = None, **policy: Any) -> Mixture:
    """Data sets a, b, c … of these sizes, loaded in the calling thread unless said otherwise."""
    given_ = {"batch_size": 4, "num_workers": 0, "seed": 3, **policy}
    return Mixture({"abc"[i]: Numbers(n, "abc"[i]) for i, n in enumerate(counts)}, weights, **given_)


def keys(batches: Any) -> Counter[tuple[str, int]]:
    return Counter((batch["dataset"], key) for batch in batches for key in batch["key"])


# --- what an epoch holds -------------------------------------------------------------------------------------------


@relaxed
@given(sizes, st.integers(1, 7), st.integers(1, 4), st.integers(0, 3))
def test_evaluation_gives_each_sample_once_over_all_ranks(counts: list[int], size: int, world: int, epoch: int) -> None:
    total: Counter[tuple[str, int]] = Counter()
    for rank in range(world):
        part = mixture(*counts, batch_size=size, rank=rank, world=world, shuffle=False)
        part.set_epoch(epoch)
        batches = list(part)
        assert len(batches) == len(part)
        assert all(0 < len(batch["key"]) <= size for batch in batches)
        total += keys(batches)
    assert total == Counter({("abc"[d], i): 1 for d, n in enumerate(counts) for i in range(n)})


@relaxed
@given(sizes, st.integers(1, 7), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_training_keeps_ranks_in_step_and_repeats_nothing(
    counts: list[int], size: int, world: int, drop: bool, epoch: int
) -> None:
    if min(counts) < world:
        return
    ranks = [mixture(*counts, batch_size=size, rank=r, world=world, drop_last=drop) for r in range(world)]
    for part in ranks:
        part.set_epoch(epoch)
    batches = [list(part) for part in ranks]
    assert {len(b) for b in batches} == {len(ranks[0])}
    assert len({tuple(batch["dataset"] for batch in b) for b in batches}) == 1
    total = keys(batch for b in batches for batch in b)
    assert max(total.values()) == 1
    for d, count in enumerate(counts):
        lost = count - sum(name == "abc"[d] for name, _ in total)
        assert lost < world if not drop or count < size * world else lost == count % (size * world)


def test_one_rank_without_drop_last_loses_nothing() -> None:
    assert keys(mixture(13, 1)) == Counter({("a", i): 1 for i in range(13)} | {("b", 0): 1})


def test_batches_are_of_one_data_set() -> None:
    for batch in mixture(9, 9):
        assert batch["dataset"] in "ab"
        assert len(set(batch["thread"])) == 1


@pytest.mark.fault("K16")
def test_epochs_differ_and_seeds_differ() -> None:
    mix = mixture(30)
    first, second = ([tuple(b["key"]) for b in mix] for _ in range(2))
    assert mix.epoch == 2
    assert first != second
    assert first == [tuple(b["key"]) for b in mixture(30)]
    assert first != [tuple(b["key"]) for b in mixture(30, seed=4)]
    again = mixture(30)
    again.set_epoch(1)
    assert second == [tuple(b["key"]) for b in again]


def test_one_source_more_does_not_change_the_others() -> None:
    alone = [b["key"] for b in mixture(30)]
    beside = [b["key"] for b in mixture(30, 20) if b["dataset"] == "a"]
    assert sorted(map(tuple, alone)) == sorted(map(tuple, beside))


def test_a_sample_is_the_same_on_whatever_rank_it_lands() -> None:
    def pictures(world: int) -> dict[int, bytes]:
        parts = [mixture(32, rank=r, world=world) for r in range(world)]
        pairs = ((k, i) for part in parts for b in part for k, i in zip(b["key"], b["image"], strict=True))
        return {key: image.numpy().tobytes() for key, image in pairs}

    assert pictures(1) == pictures(2) == pictures(4)


@pytest.mark.fault("K16")
def test_augmentation_differs_between_epochs() -> None:
    mix = mixture(8, shuffle=False, repeat=True)
    batches = list(islice(mix, 4))
    assert batches[0]["key"] == batches[2]["key"]
    assert not torch.equal(batches[0]["image"], batches[2]["image"])


# --- weights -------------------------------------------------------------------------------------------------------


def test_weights_set_the_shares() -> None:
    order = BatchPlan(
        (MixtureSource("a", 400), MixtureSource("b", 4000), MixtureSource("c", 40)), 4, 0, weights=(0.1, 0.2, 0.7)
    )
    drawn = Counter(spec.source for epoch in range(6) for spec in order.specs(epoch))
    total = sum(drawn.values())
    assert total == 6 * len(order)
    for source, share in enumerate((0.1, 0.2, 0.7)):
        assert abs(drawn[source] / total - share) < 4 * (share * (1 - share) / total) ** 0.5


@relaxed
@given(sizes, st.integers(1, 5), st.integers(1, 3), st.integers(0, 5))
def test_weighted_passes_are_whole(counts: list[int], size: int, world: int, seed: int) -> None:
    if min(counts) < world:
        return
    sources = tuple(MixtureSource("abc"[i], n) for i, n in enumerate(counts))
    weights = tuple(range(1, len(counts) + 1))
    passes: dict[tuple[int, int], list[int]] = {}
    for rank in range(world):
        order = BatchPlan(sources, size, seed, weights=weights, rank=rank, world=world)
        for spec in (spec for epoch in range(4) for spec in order.specs(epoch)):
            passes.setdefault((spec.source, spec.pass_index), []).extend(spec.indices)
    last = {source: max(number for s, number in passes if s == source) for source, _ in passes}
    for (source, number), indices in passes.items():
        assert len(set(indices)) == len(indices)
        if number < last[source]:
            assert counts[source] - len(indices) < world


def test_weights_by_name() -> None:
    weighted = mixture(8, 8, weights={"b": 0.0, "a": 1})
    assert {batch["dataset"] for batch in weighted} == {"a"}
    assert mixture(8, 8, weights={"a": None, "b": None}).order.weights is None
    assert mixture(8, 8, weights=[1, 2]).order.weights == (1, 2)


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ({"a": 1.0}, "none for b"),
        ({"a": 1.0, "bb": 1.0}, "did you mean 'b'"),
        ([1.0], "for 2 data sets"),
        ([1.0, -1.0], "at least 0"),
        ([0.0, 0.0], "not all 0"),
        ([1.0, float("nan")], "at least 0"),
    ],
)
def test_weights_that_cannot_be(weights: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        mixture(8, 8, weights=weights)


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"world": 9}, "8 samples for 9 ranks"),
        ({"shuffle": False, "weights": [1.0]}, "evaluation"),
    ],
)
def test_policies_that_cannot_be(policy: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        next(iter(mixture(8, **policy)))


def test_no_data_sets_and_empty_data_sets() -> None:
    with pytest.raises(ConfigError, match="0 data sets"):
        mixture()
    with pytest.raises(ConfigError, match="has 0 samples"):
        mixture(0)


# --- resume --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Shards, RawShards])
def test_a_batch_that_failed_is_made_up_for_in_the_order_of_the_stream(kind: type[Shards], workers: int) -> None:
    """Whatever is drawn ahead: rank 1 of 2 has the odd numbers, and a resume after any batch goes on with the next."""

    def make() -> Mixture:
        stream: Any = kind(17, bad=frozenset({5, 7, 11}))
        return Mixture({"s": stream}, batch_size=1, rank=1, world=2, num_workers=workers, repeat=True)

    assert [batch["key"] for batch in islice(make(), 8)] == [[1], [3], [9], [13], [15], [1], [3], [9]]
    for cut in range(1, 8):
        begun, resumed = make(), make()
        list(islice(begun, cut))
        resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
        begun.close()
        assert [batch["key"] for batch in islice(resumed, 8 - cut)] == [[1], [3], [9], [13], [15], [1], [3], [9]][cut:]


@settings(max_examples=40, deadline=None)
@given(
    sizes,
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([0, 0, 2]),
    st.integers(0, 40),
    st.integers(1, 5),
)
@pytest.mark.fault("W12")
def test_a_resume_anywhere_goes_on_the_same(
    counts: list[int], weighted: bool, stream: bool, world: int, workers: int, cut: int, size: int
) -> None:
    if min(counts) < world:
        return

    def make() -> Mixture:
        sets: dict[str, Any] = {"abc"[i]: Numbers(n, "abc"[i]) for i, n in enumerate(counts)}
        if stream:
            sets["s"] = (RawShards if weighted else Shards)(17, bad=frozenset({5}))
        weights = [1.0 + i for i in range(len(sets))] if weighted else None
        faults = FaultLog(tolerance=1.0)
        policy = {"batch_size": size, "rank": world - 1, "world": world, "num_workers": workers, "faults": faults}
        return Mixture(sets, weights, repeat=True, **policy)

    with_cut, straight = make(), make()
    expected = [seen(batch) for batch in islice(straight, cut + 25)]
    head = [seen(batch) for batch in islice(with_cut, cut)]
    state = json.loads(json.dumps(with_cut.state_dict()))
    with_cut.close()
    resumed = make()
    resumed.load_state_dict(state)
    tail = [seen(batch) for batch in islice(resumed, 25)]
    assert head + tail == expected
    assert resumed.faults.summary() == straight.faults.summary()
    for mix in (resumed, straight):
        mix.close()


def test_the_end_of_an_epoch_is_resumed_as_its_end() -> None:
    mix = mixture(8)
    list(islice(mix, 2))
    state = mix.state_dict()
    assert (state["epoch"], state["slot"]) == (0, 2)
    resumed = mixture(8)
    resumed.load_state_dict(state)
    assert list(resumed) == []
    assert resumed.epoch == 1
    assert [b["key"] for b in resumed] == [b["key"] for b in islice(mixture(8, repeat=True), 2, 4)]


def test_set_epoch_to_where_it_stands_stays() -> None:
    mix = mixture(16)
    list(islice(mix, 2))
    mix.set_epoch(0)
    assert len(list(mix)) == 2
    mix.set_epoch(0)
    assert len(list(mix)) == 4


@pytest.mark.parametrize(
    "change", [{"seed": 9}, {"batch_size": 5}, {"world": 2}, {"shuffle": False, "drop_last": True}]
)
def test_a_resume_of_something_else_is_refused(change: dict[str, Any]) -> None:
    state = mixture(8).state_dict()
    with pytest.raises(ConfigError, match="resume"):
        mixture(8, **change).load_state_dict(state)
    with pytest.raises(ConfigError, match="sizes"):
        mixture(9).load_state_dict(state)


def test_the_state_counts_what_was_handed_out_not_what_was_loaded() -> None:
    mix = mixture(40, num_workers=2, prefetch=8)
    running = iter(mix)
    next(running)
    time.sleep(0.05)
    assert mix.state_dict()["slot"] == 1
    assert sum(t["seen"] for t in mix.state_dict()["faults"].values()) == 4
    mix.close()


# --- workers -------------------------------------------------------------------------------------------------------


def test_threads_give_what_the_calling_thread_gives() -> None:
    inline = [seen(batch) for batch in mixture(50, 30, batch_size=12)]
    assert inline == [seen(batch) for batch in mixture(50, 30, batch_size=12, num_workers=3)]
    assert {name for b in mixture(50, num_workers=3) for name in b["thread"]} != {"MainThread"}
    assert {name for b in mixture(50) for name in b["thread"]} == {"MainThread"}


def test_threads_report_what_the_calling_thread_reports() -> None:
    def run(**policy: Any) -> tuple[list[Any], dict[str, Any]]:
        sets = {"a": Numbers(30, "a", bad=frozenset({3})), "s": RawShards(20, bad=frozenset({2}))}
        mix = Mixture(sets, batch_size=8, faults=FaultLog(tolerance=1.0), **policy)
        return [seen(batch) for batch in mix], mix.faults.summary()

    assert run(num_workers=2) == run(num_workers=0)


def test_threads_overlap() -> None:
    """The first to load waits for a second one."""

    class Paired(Numbers):
        inside, two = 0, threading.Condition()

        def load(self, index: int, rng: torch.Generator) -> dict[str, Any]:
            with self.two:
                Paired.inside += 1
                self.two.notify_all()
                assert self.two.wait_for(lambda: Paired.inside > 1, 60)
            return super().load(index, rng)

    list(Mixture({"a": Paired(48)}, batch_size=8, num_workers=8))


def test_loading_does_not_take_cores_from_training() -> None:
    before = torch.get_num_threads()
    list(mixture(20, num_workers=2))
    assert torch.get_num_threads() == before


def test_an_iterator_that_is_let_go_stops_its_workers_without_the_collector() -> None:
    """The collector runs in any thread, one that is just starting too, and may not wait for other threads there."""
    threads = threading.active_count()
    stream: Any = Shards(40)
    mix = Mixture({"a": Numbers(40), "s": stream}, batch_size=4, num_workers=2)
    gc.disable()
    try:
        assert len(list(islice(mix, 3))) == 3
        assert threading.active_count() <= threads
        assert len(list(mix)) == len(mix) - 3, "the next one goes on where it stood"
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_the_sample_and_stops_the_threads(workers: int) -> None:
    threads = threading.active_count()
    mix = Mixture({"a": Numbers(40, "a", broken=17)}, batch_size=4, num_workers=workers)
    with pytest.raises(TrainingError, match=r"sample a/train#17: loading failed with ZeroDivisionError: a bug"):
        list(mix)
    assert threading.active_count() <= threads


@pytest.mark.parametrize("end", ["close", "drop", "again"])
def test_stopping_early_is_quick(end: str) -> None:
    threads = threading.active_count()
    mix = Mixture({"a": Numbers(40_000, delay_s=0.02)}, batch_size=16, num_workers=2, prefetch=8)
    running = iter(mix)
    next(running)
    loaded = time.perf_counter()
    if end == "close":
        mix.close()
    elif end == "drop":
        del running
        mix.close()
    else:
        iter(mix)
    assert time.perf_counter() - loaded < 60  # all of it would take four hundred seconds
    mix.close()
    assert threading.active_count() <= threads


def test_the_queue_is_bounded() -> None:
    class Counted(Numbers):
        loads = 0

        def load(self, index: int, rng: torch.Generator) -> dict[str, Any]:
            Counted.loads += 1
            return super().load(index, rng)

    mix = Mixture({"a": Counted(4000)}, batch_size=10, num_workers=2, prefetch=3)
    next(iter(mix))
    time.sleep(0.1)
    assert Counted.loads <= 30
    mix.close()


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_failed_samples_are_left_out_and_counted(workers: int) -> None:
    data = Numbers(40, "a", bad=frozenset({3, 9}))
    mix = Mixture({"a": data}, batch_size=4, num_workers=workers, faults=FaultLog(tolerance=0.1))
    assert keys(mix) == Counter({("a", i): 1 for i in range(40) if i not in (3, 9)})
    summary = mix.faults.summary()["a/train"]
    assert (summary["seen"], summary["bad"]) == (40, 2)
    assert {first["id"] for first in summary["first"]} == {"a/train#3", "a/train#9"}


def test_a_batch_of_which_nothing_is_left_is_passed_over() -> None:
    data = Numbers(12, bad=frozenset(range(4, 8)))
    mix = Mixture({"a": data}, batch_size=4, num_workers=0, shuffle=False, faults=FaultLog(tolerance=0.5))
    assert [batch["key"] for batch in mix] == [[0, 1, 2, 3], [8, 9, 10, 11]]


def test_ranks_stay_in_step_when_a_whole_batch_fails() -> None:
    counts = []
    for rank in range(2):
        data = Numbers(40, "a", bad=frozenset(range(0, 40, 2)) | frozenset(range(10)))
        faults = FaultLog(tolerance=0.99)
        mix = Mixture({"a": data}, batch_size=1, rank=rank, world=2, num_workers=0, faults=faults)
        batches = list(mix)
        counts.append(len(batches))
        assert not {key for b in batches for key in b["key"]} & data.bad
    assert counts == [20, 20]
    nothing = Numbers(40, "a", bad=frozenset(range(40)))
    with pytest.raises(PartialError):
        list(Mixture({"a": nothing}, batch_size=1, world=2, num_workers=0, faults=FaultLog(tolerance=1.0)))


def test_too_many_faults_stop_the_run_with_their_path() -> None:
    data = Numbers(4000, "a", bad=frozenset(range(0, 4000, 3)))
    mix = Mixture({"a": data}, batch_size=16, num_workers=2)
    with pytest.raises(PartialError, match=r"a/train: \d+ of \d+ samples failed .*/x/\d+\.jpg") as error:
        list(mix)
    assert error.value.exit_code == 8
    assert mix.faults.summary()["a/train"]["seen"] < 200


def test_the_plain_share_counts_at_the_end_of_an_epoch() -> None:
    mix = Mixture({"a": Numbers(50, "a", bad=frozenset({7}))}, batch_size=4, num_workers=0)
    taken = []
    with pytest.raises(PartialError, match="1 of 50"):
        taken.extend(mix)
    assert len(taken) == 13


def test_the_tolerance_of_a_data_set_is_its_own() -> None:
    data = Numbers(50, "a", bad=frozenset({7}))
    data.tolerance = 0.5  # type: ignore[attr-defined]
    assert len(list(Mixture({"a": data}, batch_size=4, num_workers=0))) == 13


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Shards, RawShards])
def test_streams_run_pass_after_pass(workers: int, kind: type[Shards]) -> None:
    mix = Mixture({"s": kind(10)}, batch_size=4, num_workers=workers, repeat=True)
    got = [key for batch in islice(mix, 10) for key in batch["key"]]
    assert got == list(range(10)) * 4
    mix.close()


def test_streams_share_ranks() -> None:
    parts = [Mixture({"s": Shards(12)}, batch_size=3, rank=r, world=2, num_workers=0) for r in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    assert sorted(key for part in parts for b in part for key in b["key"]) == list(range(12))


def test_a_stream_is_evaluated_once() -> None:
    mix = Mixture({"s": Shards(10, bad=frozenset({4}))}, batch_size=4, shuffle=False, faults=FaultLog(tolerance=0.2))
    assert [batch["key"] for batch in mix] == [[0, 1, 2, 3], [5, 6, 7], [8, 9]]


def test_streams_and_data_sets_mix_by_weight() -> None:
    mix = Mixture({"a": Numbers(40, "a"), "s": Shards(40)}, {"a": 1, "s": 3}, batch_size=2, num_workers=2, repeat=True)
    drawn = Counter(batch["dataset"] for batch in islice(mix, 400))
    assert 250 < drawn["s"] < 350
    mix.close()


def test_streams_that_hold_nothing_or_break() -> None:
    class Broken(Shards):
        def item(self, number: int, lap: int) -> Any:
            raise OSError("shard is gone")

    class Empty(Shards):
        def iterate(self, rank: int, world: int, state: Any) -> Any:
            return iter(())

    with pytest.raises(ConfigError, match="no samples for this rank"):
        list(Mixture({"s": Empty(8)}, batch_size=4, num_workers=0))
    for workers in (0, 2):
        with pytest.raises(TrainingError, match="stream 'shards': reading failed with OSError: shard is gone"):
            list(Mixture({"s": Broken(8)}, batch_size=4, num_workers=workers))


# --- real data sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_captions_end_to_end(tmp_path: Path, workers: int) -> None:
    write_captions(tmp_path, pictures=10)
    built = build_datasets(caption_config(tolerance=0.5), BuildContext(tmp_path))
    (tmp_path / "coco" / "images" / "val2014" / "COCO_val2014_000000000004.jpg").write_bytes(b"")
    mix = Mixture({"little": built["train"]}, batch_size=4, num_workers=workers)
    batches = list(mix)
    assert sum(len(b["text_input"]) for b in batches) == 18
    assert mix.faults.summary()["little/train"]["reasons"] == {"image file is empty": 2}
    ready = to_device(batches[0], "cpu", mix.normalizer)
    assert ready["image"].dtype == torch.float32
    assert ready["image"].shape[1:] == (3, 32, 32)
    assert batches[0]["image_id"].dtype == torch.int64


def test_a_seed_gives_the_order_that_it_gave_in_earlier_versions() -> None:
    """Written as numbers: another order would change every run, and break the resume of every checkpoint."""
    sources = (MixtureSource("a", 6), MixtureSource("b", 5))
    weighted = BatchPlan(sources, batch_size=2, seed=3, weights=(2.0, 1.0), drop_last=True)
    assert [(spec.source, spec.pass_index, spec.indices) for spec in weighted.specs(1)] == [
        (0, 1, (2, 3)), (1, 0, (2, 0)), (0, 1, (1, 4)), (0, 2, (3, 2)), (1, 1, (1, 0)),
    ]  # fmt: skip
    first = next(iter(weighted.specs(0)))
    assert weighted.seeds(first) == [8828114066495822045, 8223091564656325421]
    assert weighted.spares(first) == (3, 0, 0, 5, 3, 5, 2, 3, 3, 3, 3, 0, 5, 1, 0, 2)
    lengths = np.array([[(7 * i) % 10, (3 * i) % 8] for i in range(24)], np.int32)
    two = (MixtureSource("a", 24, lengths=lengths), MixtureSource("b", 5))
    assert [spec.indices for spec in BatchPlan(two, batch_size=2, seed=3, window=3).specs(1)] == [
        (13, 10), (20, 2), (17, 14), (1, 0), (12, 23), (6, 19), (16, 0), (5, 22), (4,), (4, 21), (9, 18), (15, 1),
        (11, 7), (2, 3), (8, 3),
    ]  # fmt: skip
    one = (MixtureSource("a", 24, lengths=lengths[:, :1]),)
    assert [spec.indices for spec in BatchPlan(one, batch_size=2, seed=3, window=3).specs(0)] == [
        (1, 11), (21, 17), (16, 10), (8, 4), (5, 15), (14, 7), (23, 3), (6, 0), (9, 19), (20, 13), (18, 22), (12, 2),
    ]  # fmt: skip


def test_every_sample_of_a_stream_is_augmented_by_a_draw_of_its_own() -> None:
    seen_at = set()
    for rank in (0, 1):
        mix = Mixture({"s": RawShards(8)}, batch_size=2, rank=rank, world=2, num_workers=0)
        batches = [batch for _ in range(2) for batch in mix]
        seen_at |= {image.numpy().tobytes() for batch in batches for image in batch["image"]}
    assert len(seen_at) == 16, "over batches, epochs and ranks"


def test_what_is_not_asked_for_is_a_shuffled_epoch_of_seed_0_on_one_rank() -> None:
    plain = Mixture({"a": Numbers(10)}, batch_size=3)
    same = Mixture({"a": Numbers(10)}, batch_size=3, seed=0, shuffle=True, repeat=False, rank=0, world=1)
    keys = [batch["key"] for batch in plain]
    assert keys == [batch["key"] for batch in same]
    assert sorted(key for some in keys for key in some) == list(range(10)) != [key for some in keys for key in some]


def test_pictures_are_normalised_as_their_processors_say(tmp_path: Path) -> None:
    write_captions(tmp_path)
    keys = {"image_size": 32, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    own = caption_config(vis_processor=ProcessorPair(train=ProcessorConfig(name="blip_image_train", args=keys)))
    sets = {"one": build_datasets(own, BuildContext(tmp_path, ["train"]))["train"]}
    assert Mixture(sets, batch_size=2).normalizer == Normalizer((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Mixture({"a": Numbers(4)}, batch_size=2).normalizer == Normalizer()


def test_image_processors_must_agree(tmp_path: Path) -> None:
    write_captions(tmp_path)
    other = ProcessorConfig(name="blip_image_train", args={"image_size": 48})
    configs = {
        "one": caption_config(name="one"),
        "two": caption_config(name="two", vis_processor=ProcessorPair(train=other)),
    }
    sets = {name: build_datasets(c, BuildContext(tmp_path, ["train"]))["train"] for name, c in configs.items()}
    with pytest.raises(ConfigError, match=r"one: image_size 32.*two: image_size 48"):
        Mixture(sets, batch_size=2)
