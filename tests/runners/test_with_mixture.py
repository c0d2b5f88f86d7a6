"""The loop over the real mixture: threads load ahead, some samples are broken, and a resume is still exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lavis_ext.common.config.schema import Config, DatasetConfig
from lavis_ext.common.errors import ConfigError, PartialError
from lavis_ext.common.types import Sample
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.datasets.readers.faults import FaultLog, SampleError
from lavis_ext.runners import checkpoint
from lavis_ext.runners import data as feeds
from lavis_ext.runners.device import build_accelerator
from lavis_ext.runners.runner_base import Hook, RunnerBase
from tests.support.runs import log_lines, toy_runner, weights
from tests.support.toys import ToyDataset, toy_run


class Noisy(ToyDataset):
    """Pixels with noise from the given generator; one sample in ten is broken."""

    def load(self, index: int, rng: torch.Generator) -> Sample:
        if index % 10 == 3:
            raise SampleError(f"{self.name}#{index}", f"{index}.jpg", "truncated")
        sample = super().load(index, rng)
        noise = torch.randint(0, 9, (3, 4, 4), generator=rng, dtype=torch.uint8)
        return {**sample, "image": (sample["image"] // 2 + noise).to(torch.uint8)}


class Cut(Hook):
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def after_step(self, runner: RunnerBase, step: Any) -> None:
        if runner.progress.step == self.at:
            raise RuntimeError("cut")


def mixed(folder: Path, tolerance: float = 0.5, **keys: Any) -> RunnerBase:
    """A toy runner over two noisy data sets, three parts to one."""
    runner = toy_runner(folder, **keys)
    datasets = {"a": Noisy(30, name="a"), "b": Noisy(20, name="b")}
    faults = FaultLog(tolerance=tolerance)
    weights = {"a": 3.0, "b": 1.0}
    mixture = Mixture(datasets, weights, batch_size=4, seed=5, num_workers=2, drop_last=True, faults=faults)
    return RunnerBase.of(runner.run, runner.task, mixture, runner.evaluator, runner.hooks, runner.accelerator)


@pytest.mark.parametrize("cut", [1, 4, 8, 11, 12, 17])
@pytest.mark.fault("K06")
def test_resume_is_exact(cut: int, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"accum_grad_iters": 2, "save_steps": 1, "max_epoch": 3, "keep_checkpoints": 1}
    straight = mixed(tmp_path / "straight", **keys)
    straight.train()
    broken = mixed(tmp_path / "hit", **keys)
    broken.hooks = (*broken.hooks, Cut(cut))
    with pytest.raises(RuntimeError, match="cut"):
        broken.train()
    again = mixed(tmp_path / "hit", **keys)
    saved = checkpoint.load_newest(tmp_path / "hit" / "job")
    assert saved is not None
    again.restore(saved)
    again.train()
    assert weights(again) == weights(straight)
    assert log_lines(tmp_path / "hit") == log_lines(tmp_path / "straight")
    assert again.batches.faults.summary() == straight.batches.faults.summary()
    assert again.batches.faults.summary()["a/train"]["bad"] > 0


def test_too_many_faults_end_the_run_with_exit_8(tmp_path: Path) -> None:
    with pytest.raises(PartialError) as caught:
        mixed(tmp_path, tolerance=0.01).train()
    assert caught.value.exit_code == 8


def test_the_end_of_a_short_run_is_judged_too(tmp_path: Path) -> None:
    runner = mixed(tmp_path, max_epoch=1)
    runner.batches.faults.tolerance, runner.batches.faults.at_least = 0.01, 10_000
    with pytest.raises(PartialError):
        runner.train()
    assert checkpoint.load_newest(tmp_path / "job") is not None


def config(**keys: Any) -> Config:
    datasets = {name: DatasetConfig(name=name, weight=weight) for name, weight in (("a", 2.0), ("b", 1.0))}
    return Config(run=toy_run(Path("out"), num_workers=0, **keys), model=None, datasets=datasets, cache_root="cache")


@pytest.fixture
def cpu() -> Accelerator:
    return build_accelerator(toy_run(Path("out")))


def opened(*splits: str) -> feeds.Opened:
    return {name: {split: ToyDataset(9, name=name, split=split) for split in splits} for name in ("a", "b")}


def test_training_mixes_by_weight(cpu: Accelerator) -> None:
    feed = feeds.train_feed(config(), opened("train"), cpu)
    assert feed.order.weights == (2.0, 1.0)
    assert {batch["dataset"] for batch in feed} <= {"a", "b"}
    assert all(len(batch["image"]) == 2 for batch in feed)


class Lengthy(ToyDataset):
    """Knows how long its samples are."""

    def length(self, index: int) -> int:
        return index % 5


@pytest.mark.parametrize("group", [False, True])
def test_a_run_says_whether_lengths_count(group: bool, cpu: Accelerator) -> None:
    sets: feeds.Opened = {name: {"train": Lengthy(40, name=name), "val": Lengthy(9, split="val")} for name in "ab"}
    named = config(group_by_length=group, valid_splits=["val"])
    feed = feeds.train_feed(named, sets, cpu)
    assert [source.lengths is not None for source in feed.order.sources] == [group, group]
    assert feeds.eval_feeds(named, sets, ["val"], cpu)["val"].order.sources[0].lengths is None


def test_several_training_splits_are_told_apart(cpu: Accelerator) -> None:
    feed = feeds.train_feed(config(train_splits=["train", "val"]), opened("train", "val"), cpu)
    assert list(feed.datasets) == ["a/train", "b/train", "a/val", "b/val"]
    assert feed.order.weights == (2.0, 1.0, 2.0, 1.0)


def test_evaluation_gives_each_sample_once(cpu: Accelerator) -> None:
    feed = feeds.eval_feeds(config(batch_size_eval=4), opened("val"), ["val"], cpu)["val"]
    names = [f"{batch['dataset']}{name}" for batch in feed for name in batch["instance_id"]]
    assert names == [f"{d}{i}" for d in "ab" for i in range(9)], "and in order"


@pytest.mark.parametrize(("splits", "named"), [([], "names no split"), (["trian"], "did you mean 'train'")])
def test_training_on_nothing_is_refused(splits: list[str], named: str, cpu: Accelerator) -> None:
    with pytest.raises(ConfigError, match=named):
        feeds.train_feed(config(train_splits=splits), opened("train"), cpu)


@pytest.mark.fault("K14")
def test_an_empty_data_set_is_refused(cpu: Accelerator) -> None:
    empty: feeds.Opened = {"a": {"train": ToyDataset(0, name="a")}}
    with pytest.raises(ConfigError):
        feeds.train_feed(config(), empty, cpu)
