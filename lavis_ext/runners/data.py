"""The data of a run: data sets opened, mixed for training, in order for evaluation; the classes of a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from lavis_ext.common.config.resolve import cache_root
from lavis_ext.common.config.schema import Config, DatasetConfig, ModelConfig
from lavis_ext.common.errors import ConfigError, Problem, nearest
from lavis_ext.common.files import expanded
from lavis_ext.common.types import Dataset
from lavis_ext.datasets.builders import BuildContext, NotPreparedError, build_datasets
from lavis_ext.datasets.datasets.base_dataset import BaseDataset, ItemDataset
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.features.vocabulary import LabelVocabulary, read_labels

Opened = dict[str, dict[str, Dataset]]
"""data set name → split → data set"""


def open_datasets(config: Config, splits: Sequence[str]) -> Opened:
    """The wanted splits of every data set of the run; nothing is fetched here.

    Raises NotPreparedError that names what is missing and the command that fetches it, ConfigError where the run itself
    says that it is elsewhere.
    """
    context = BuildContext(Path(config.cache_root), tuple(splits), config.run.check_shards)
    opened: Opened = {}
    for name, dataset in config.datasets.items() if splits else ():
        try:
            opened[name] = build_datasets(dataset, context)
        except NotPreparedError as error:
            if found := own_storage(config, name, error):
                raise ConfigError.of(found) from error
            raise
    return opened


def own_storage(config: Config, name: str, error: NotPreparedError) -> list[Problem]:
    """What is missing below a `storage` that the run file or an option gives, by that key; no `prepare` helps there."""
    info = config.datasets[name].build_info
    key = f"datasets.{name}.build_info"
    given = {f"{key}.images.storage": [info.images.storage], f"{key}.storage": info.storage}
    given |= {f"{key}.annotations.{split}.storage": one.storage for split, one in info.annotations.items()}
    mine = {key: paths for key, paths in given.items() if is_own(config, key)}
    found = []
    for problem in error.problems:
        for key, paths in mine.items():
            roots = [str(Path(config.cache_root) / expanded(path)) for path in paths]
            if any(problem.where.startswith(root.rstrip("/")) for root in roots):
                way_out = f"correct it, or remove it where `lavis-ext prepare {name}` put the files"
                found.append(Problem(f"{config.places[key]} {key}", f"{problem.where}: {problem.what}", way_out))
    return found


def is_own(config: Config, key: str) -> bool:
    """Whether a key stands in the run file or an option, not in a YAML that was shipped."""
    place = config.places.get(key, "")
    return place == "--options" or place.startswith(f"{config.path}:")


def adopted(given: Mapping[str, Mapping[str, Any]]) -> Opened:
    """A script's {data set: {split: rows}} under these names; rows with `__getitem__` alone can be loaded too."""
    found: Opened = {}
    for name, splits in given.items():
        for split, rows in splits.items():
            found.setdefault(name, {})[split] = rows if hasattr(rows, "load") else ItemDataset(rows)
            if isinstance(rows := found[name][split], BaseDataset) and not rows.declared:
                rows.parts_named(DatasetConfig(name=name), split)
    return found


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
    given = {name: dataset.weight for name, dataset in config.datasets.items()}
    weights = {key: given.get(key.split("/")[0]) for key in datasets}
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
    """Each split in order, every sample once: divided over the ranks, or whole on each rank without
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


# Classes of a classifier: the data decide how many there are, and weights must have them in the same order.

FILE = "labels.json"
"""Beside the weights in every checkpoint of a classifier: `[{"id", "answer"}]` in the order of the classes."""
PICKLES = "*ans2label.pkl"
"""What a folder of LAVIS or Oscar may hold instead."""
WAY_OUT = "name the label_file that the weights were trained with, or other weights"


def vocabulary(opened: Opened) -> LabelVocabulary | None:
    """The answers that the opened data sets share; None where none has any.

    Raises ConfigError that names the first class that differs.
    """
    first: tuple[str, LabelVocabulary] | None = None
    for name, splits in opened.items():
        for split, dataset in splits.items():
            labels = getattr(dataset, "labels", None)
            if not isinstance(labels, LabelVocabulary):
                continue
            if first is not None:
                require_same(first[1], labels, f"datasets.{name} {split}", f"datasets.{first[0]}")
            first = first or (f"{name} {split}", labels)
    return first[1] if first else None


def with_num_labels(config: Config, labels: LabelVocabulary | None) -> Config:
    """The configuration with `num_labels` of the model, and of its teacher, where the data have labels.

    Raises ConfigError where the configuration asks for another number, and for weights whose label file (see FILE)
    lists other answers.
    """
    if labels is None or config.model is None:
        return config
    model, run = _with_count(config.model, labels, "model"), config.run
    distill = getattr(run, "distill", None)
    if distill and isinstance(distill.teacher, ModelConfig):
        teacher = _with_count(distill.teacher, labels, "run.distill.teacher")
        run = replace(run, **{"distill": replace(distill, teacher=teacher)})
    for name, key in weights_of(config):
        if folder := find_folder(name):
            require_order(labels, folder, f"{key} {name}")
    return replace(config, model=model, run=run, resolved=_recorded(config.resolved, model, run))


def _recorded(tree: dict[str, Any], model: ModelConfig, run: Any) -> dict[str, Any]:
    """The tree that becomes the run's `config.yaml`, with the classes that the data filled in.

    Without them nobody could build the model again from the folder of the run alone.
    """
    labels = getattr(model, "num_labels", None)
    if not tree or labels is None:
        return tree
    found = {**tree, "model": {**(tree.get("model") or {}), "num_labels": labels}}
    teacher = getattr(getattr(run, "distill", None), "teacher", None)
    if isinstance(teacher, ModelConfig) and hasattr(teacher, "num_labels"):
        distill = tree["run"]["distill"]
        taught = {**distill["teacher"], "num_labels": labels}
        found["run"] = {**tree["run"], "distill": {**distill, "teacher": taught}}
    return found


def _with_count(model: ModelConfig, labels: LabelVocabulary, key: str) -> ModelConfig:
    """The section with the number of classes; raises ConfigError where it asks for another."""
    asked = getattr(model, "num_labels", len(labels))
    if asked not in (None, len(labels)):
        what = f"is {asked}, the answers of the data sets are {len(labels)}"
        raise ConfigError(f"{key}.num_labels", what, "leave it out, or name the label_file that is meant")
    num_labels: dict[str, Any] = {"num_labels": len(labels)}
    return replace(model, **num_labels) if hasattr(model, "num_labels") else model


def weights_of(config: Config) -> Iterator[tuple[str, str]]:
    """Every folder or file of trained weights that a run starts from, with the key that names it."""
    distill = getattr(config.run, "distill", None)
    teacher = distill.teacher if distill else None
    if isinstance(teacher, str):
        yield teacher, "run.distill.teacher"
    for model, key in ((config.model, "model"), (teacher, "run.distill.teacher")):
        if not isinstance(model, ModelConfig):
            continue
        for kind in ("pretrained", "finetuned"):
            name = getattr(model, kind)
            if name and getattr(model, f"load_{kind}"):
                yield name, f"{key}.{kind}"


def find_folder(name: str) -> Path | None:
    """The folder of weights below cache_root, or as given; None where it is elsewhere (a hub's name)."""
    given = expanded(name)
    for place in (cache_root() / given, given):
        if place.exists():
            return place if place.is_dir() else place.parent
    return None


def require_order(labels: LabelVocabulary, folder: Path, where: str) -> None:
    """Raise ConfigError where a label file in a folder of weights, or of a run, has other answers or another order."""
    places = (FILE, f"checkpoint_*/{FILE}", PICKLES)
    if files := [file for place in places for file in sorted(folder.glob(place))]:
        require_same(labels, read_labels(files[0]), where, "the data set")


def require_same(labels: LabelVocabulary, others: LabelVocabulary, where: str, known: str) -> None:
    """Raise ConfigError that names the first class of `others` whose answer is another than that of `labels`."""
    pairs = zip(labels.answers, others.answers, strict=False)
    first = next((number for number, (mine, its) in enumerate(pairs) if mine != its), None)
    if first is not None:
        what = f"class {first} is '{others.answers[first]}', in {known} it is '{labels.answers[first]}'"
        raise ConfigError(where, what, WAY_OUT)
    if len(labels) != len(others):
        raise ConfigError(where, f"has {len(others)} classes, {known} has {len(labels)}", WAY_OUT)


def require_beside(mine: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError where a checkpoint that is to be resumed has other answers than those of `beside(labels)`."""
    if FILE in mine:
        records = mine[FILE]
        own = LabelVocabulary([row["id"] for row in records], [row["answer"] for row in records])
        require_order(own, folder, str(folder))


def beside(labels: LabelVocabulary | None) -> dict[str, Any]:
    """The label file that goes beside the weights of a checkpoint: file name → JSON value."""
    return {} if labels is None else {FILE: labels.records()}
