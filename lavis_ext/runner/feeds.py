"""The data of a run as batches: its data sets mixed for training, one after the other for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from lavis_ext.builders import BuildContext, build_datasets
from lavis_ext.errors import ConfigError, nearest
from lavis_ext.mixture import Mixture
from lavis_ext.schema import Config
from lavis_ext.types import Dataset

Opened = dict[str, dict[str, Dataset]]
"""data set name → split → data set"""


def open_datasets(config: Config, splits: Sequence[str]) -> Opened:
    """The wanted splits of every data set of the run; nothing is fetched here.

    Raises NotPreparedError that names what is missing and the command that fetches it.
    """
    context = BuildContext(Path(config.cache_root), tuple(splits))
    return {name: build_datasets(dataset, context) for name, dataset in config.datasets.items()} if splits else {}


def joined(opened: Opened, more: Opened) -> Opened:
    """The splits of both, data set by data set."""
    return {name: {**opened.get(name, {}), **more.get(name, {})} for name in {**opened, **more}}


def train_feed(config: Config, opened: Opened, accelerator: Accelerator) -> Mixture:
    """All training splits, mixed by the data sets' weights; as in LAVIS, a last batch that is not full is left out."""
    run = config.run
    if not run.train_splits:
        raise ConfigError("run.train_splits", "names no split to train on", "e.g. train_splits: [train]")
    found = {split: of_split(opened, split) for split in run.train_splits}
    several = len(run.train_splits) > 1
    datasets = {f"{n}/{split}" if several else n: d for split, named in found.items() for n, d in named.items()}
    weights = {key: config.datasets[key.split("/")[0]].weight for key in datasets}
    return Mixture(
        datasets,
        weights,
        batch_size=run.batch_size_train,
        seed=run.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        num_workers=run.num_workers,
        drop_last=True,
        group_by_length=run.group_by_length,
    )


def eval_feeds(config: Config, opened: Opened, splits: Sequence[str], accelerator: Accelerator) -> dict[str, Mixture]:
    """Each split in order, every sample once: shared out over the ranks, or whole on each without
    `run.use_dist_eval_sampler`."""
    run, shared = config.run, config.run.use_dist_eval_sampler
    return {
        split: Mixture(
            of_split(opened, split),
            batch_size=run.batch_size_eval,
            seed=run.seed,
            shuffle=False,
            rank=accelerator.process_index if shared else 0,
            world=accelerator.num_processes if shared else 1,
            num_workers=run.num_workers,
        )
        for split in splits
    }


def of_split(opened: Opened, split: str) -> dict[str, Dataset]:
    """The data sets that have a split, by name; raises ConfigError if none has."""
    found = {name: datasets[split] for name, datasets in opened.items() if split in datasets}
    if not found:
        known = {split for datasets in opened.values() for split in datasets}
        raise ConfigError("run", f"no data set has the split '{split}'", nearest(split, known))
    return found
