"""Every mistake of a run, a data set or a model YAML at once, before a byte is fetched or a weight is read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lavis_ext.cards import Cards, load_cards, load_dataset_config, split_names
from lavis_ext.config import from_checkout, load_config, model_defaults
from lavis_ext.errors import ConfigError, LavisExtError, Problem, nearest
from lavis_ext.registry import Registry, builders, lr_schedulers, models, processors, runners, tasks
from lavis_ext.schema import Config, DatasetConfig, ModelConfig, ProcessorConfig, RunConfig
from lavis_ext.typed import Door
from lavis_ext.yamlio import read_yaml


def check_file(path: str | Path) -> list[Problem]:
    """All problems of one YAML; what it is (run, data sets, card, model, settings) is told from its sections."""
    try:
        tree, _ = read_yaml(Path(path))
        if "run" in tree:
            return list(problems(load_config(path), load_cards()))
        if "datasets" in tree or "artifacts" in tree:
            return _check_datasets(Path(path), list(tree.get("datasets") or {}))
        if "model" in tree:
            return _check_model(Path(path))
        if "legs" in tree:
            return list(from_checkout("studies", str(path)).study_problems(Path(path)))
        unknown = [key for key in tree if key not in ("env", "model", "datasets", "run", "artifacts")]
        return [
            Problem(f"{path} {key}", "unknown section", nearest(key, ["run", "datasets", "model", "env"]))
            for key in unknown
        ]
    except LavisExtError as error:
        return list(error.problems)


def check(config: Config) -> None:
    """Raise ConfigError with every problem of a run, if there is any."""
    found = list(problems(config, load_cards()))
    if found:
        raise ConfigError.of(found)


def problems(config: Config, cards: Cards) -> Iterator[Problem]:
    """Each thing that would stop this run with its place, data that is not there excepted (`prepare` says that)."""
    door = Door(config.places)
    for problem in _run_problems(config, cards):
        yield Problem(door.place(problem.where), problem.what, problem.way_out)


def _run_problems(config: Config, cards: Cards) -> Iterator[Problem]:
    run = config.run
    yield from _task_problems(config)
    yield from _named(runners, run.runner, "run.runner")
    yield from _named(lr_schedulers, run.lr_sched, "run.lr_sched")
    yield from _length_problems(run)
    if config.model is None:
        yield Problem("model", "is missing", "name `arch` and `model_type` under `model:`")
    else:
        yield from _model_problems(config.model)
    if not config.datasets:
        yield Problem("datasets", "none is named", f"known: {', '.join(cards.names())}")
    for name, dataset in config.datasets.items():
        yield from dataset_problems(dataset, cards, f"datasets.{name}")
    yield from _split_problems(config)


def _task_problems(config: Config) -> Iterator[Problem]:
    run = config.run
    yield from _named(tasks, run.task, "run.task")
    if run.task in tasks:
        yield from tasks.get(run.task).problems(config)
    if run.distill is not None and run.task != "distill":
        yield Problem("run.distill", f"task '{run.task}' does not read it", "set run.task: distill, or remove it")


def dataset_problems(dataset: DatasetConfig, cards: Cards, where: str) -> Iterator[Problem]:
    """What is wrong with one data set: its shape, processors, artifacts, weight."""
    if dataset.builder:
        yield from _named(builders, dataset.builder, f"{where}.builder")
    else:
        yield Problem(f"{where}.builder", "is missing", f"known: {', '.join(builders.names())}")
    for kind in ("vis_processor", "text_processor"):
        pair = getattr(dataset, kind)
        for side in ("train", "eval"):
            yield from _processor_problems(getattr(pair, side), f"{where}.{kind}.{side}")
    if dataset.weight is not None and dataset.weight <= 0:
        yield Problem(
            f"{where}.weight", f"{dataset.weight} is not positive", "give a share such as 0.5, or remove the data set"
        )
    for split, count in dataset.max_samples.items():
        if count <= 0:
            yield Problem(f"{where}.max_samples.{split}", f"{count} is not positive", "give a number of samples")
    try:
        cards.artifacts_of(dataset)
    except LavisExtError as error:
        yield from error.problems


def _named(registry: Registry[Any], name: str, where: str) -> Iterator[Problem]:
    if name not in registry:
        yield Problem(where, f"no {registry.kind} named '{name}'", nearest(name, registry.names()))


def _processor_problems(config: ProcessorConfig | None, where: str) -> Iterator[Problem]:
    if config is None:
        return
    if config.name not in processors:
        yield from _named(processors, config.name, f"{where}.name")
        return
    known = [name for name in inspect.signature(processors.get(config.name)).parameters if name != "self"]
    for name in config.args:
        if name not in known:
            yield Problem(f"{where}.{name}", f"'{config.name}' takes no such argument", nearest(name, known))


def _model_problems(model: ModelConfig) -> Iterator[Problem]:
    if model.arch not in models:
        yield from _named(models, model.arch, "model.arch")
        return
    try:
        model_defaults(model.arch, model.model_type)
    except LavisExtError as error:
        yield from error.problems
    if model.vit_precision == "fp16" and not model.freeze_vit:
        yield Problem(
            "model.vit_precision", "fp16 weights cannot be trained", "set vit_precision: fp32 or freeze_vit: true"
        )


def _length_problems(run: RunConfig) -> Iterator[Problem]:
    if run.train_splits and not run.evaluate and run.max_epoch is None and run.max_iters is None:
        yield Problem("run", "neither max_epoch nor max_iters is given", "say how long to train")
    for key in ("batch_size_train", "batch_size_eval", "accum_grad_iters", "log_freq", "save_freq", "val_freq"):
        if getattr(run, key) < 1:
            yield Problem(f"run.{key}", f"{getattr(run, key)} is below 1", "give a whole number from 1 on")
    if run.wandb and find_spec("wandb") is None:
        yield Problem("run.wandb", "wandb is not installed", "pip install 'lavis_ext[wandb]' or set run.wandb: false")


def _split_problems(config: Config) -> Iterator[Problem]:
    for key in ("train_splits", "valid_splits", "test_splits"):
        for split in getattr(config.run, key):
            having = [name for name, dataset in config.datasets.items() if split in split_names(dataset)]
            known = {split for dataset in config.datasets.values() for split in split_names(dataset)}
            if not having and known:
                yield Problem(f"run.{key}", f"no data set of this run has a split '{split}'", nearest(split, known))


def _check_datasets(path: Path, names: list[str]) -> list[Problem]:
    cards = load_cards()
    found = [load_dataset_config(path, name) for name in names]
    return [problem for d in found for problem in dataset_problems(d, cards, f"{path} datasets.{d.name}")]


def _check_model(path: Path) -> list[Problem]:
    tree, places = read_yaml(path)
    door = Door(places)
    model = door.build(ModelConfig, tree["model"] or {}, "model")
    found = list(door.problems)
    for kind in ("vis_processor", "text_processor"):
        for side, body in ((tree.get("preprocess") or {}).get(kind) or {}).items():
            processor = door.build(ProcessorConfig, body, f"preprocess.{kind}.{side}")
            found += _processor_problems(processor, f"{path} preprocess.{kind}.{side}")
    return (
        found if model is None or model.arch in models else [*found, *_named(models, model.arch, f"{path} model.arch")]
    )
