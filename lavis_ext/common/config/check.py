"""Every mistake of a run, a data set or a model YAML at once, before a byte is fetched or a weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from lavis_ext.common.config.cards import Cards, load_cards, load_dataset_config, split_names
from lavis_ext.common.config.decode import ConfigDecoder, read_yaml
from lavis_ext.common.config.resolve import Tree, draft, from_checkout, import_plugins, model_defaults, typed
from lavis_ext.common.config.schema import Config, DatasetConfig, ModelConfig, ProcessorConfig
from lavis_ext.common.errors import ConfigError, LavisExtError, Problem, nearest
from lavis_ext.common.registry import builders, models


def check_file(path: str | Path) -> list[Problem]:
    """All problems of one YAML; its sections say what it is (run, data sets, card, model, study, settings)."""
    try:
        tree, _ = read_yaml(Path(path))
        if "run" in tree:
            return check_run(path)
        if "datasets" in tree or "artifacts" in tree:
            return _check_datasets(Path(path), list(tree.get("datasets") or {}))
        if "model" in tree:
            return _check_model(Path(path))
        if "legs" in tree:
            return list(from_checkout("studies", str(path)).study_problems(Path(path)))
        unknown = [key for key in tree if key not in ("env", "plugins", "model", "datasets", "run", "artifacts")]
        return [
            Problem(f"{path} {key}", "unknown section", nearest(key, ["run", "datasets", "model", "env"]))
            for key in unknown
        ]
    except LavisExtError as error:
        return list(error.problems)


def check_run(path: str | Path, options: Sequence[str] = ()) -> list[Problem]:
    """All problems of a run file, those of single values first; raises ConfigError for one that is no YAML."""
    return _all_problems(*draft(path, options))


def load_checked(path: str | Path, options: Sequence[str] = ()) -> Config:
    """A run file, typed; raises ConfigError with every problem of it at once."""
    config, decoder = draft(path, options)
    if found := _all_problems(config, decoder):
        raise ConfigError.of(found)
    assert config is not None  # where the run section is not there, the decoder says so
    return config


def rechecked(tree: Tree, config: Config) -> Config:
    """A run file whose values a script has changed, typed again; raises ConfigError as `load_checked` does."""
    decoder = ConfigDecoder(config.places)
    changed = typed(tree, decoder, Path(config.path))
    if found := _all_problems(changed, decoder):
        raise ConfigError.of(found)
    assert changed is not None  # where the run section is not there, the decoder says so
    return changed


def _all_problems(config: Config | None, decoder: ConfigDecoder) -> list[Problem]:
    found = [*decoder.problems, *(problems(config, load_cards()) if config else ())]
    return list(dict.fromkeys(found))


def problems(config: Config, cards: Cards) -> Iterator[Problem]:
    """What would stop this run, each with its place; missing data is not checked (`prepare` does that)."""
    decoder = ConfigDecoder(config.places)
    for problem in _run_problems(config, cards):
        yield Problem(decoder.place(problem.where), problem.what, problem.way_out)


def _run_problems(config: Config, cards: Cards) -> Iterator[Problem]:
    run = config.run
    yield from run.problems(config)
    yield from _length_problems(config)
    if config.model is None:
        yield Problem("model", "is missing", "name `arch` and `model_type` under `model:`")
    else:
        yield from config.model.problems()
        if config.model.arch in models:
            try:
                model_defaults(config.model.arch, config.model.model_type)
            except LavisExtError as error:
                yield from error.problems
    if not config.datasets:
        yield Problem("datasets", "none is named", f"known: {', '.join(cards.names())}")
    for name, dataset in config.datasets.items():
        yield from dataset_problems(dataset, cards, f"datasets.{name}")
    yield from _split_problems(config)


def dataset_problems(dataset: DatasetConfig, cards: Cards, where: str) -> Iterator[Problem]:
    """What is wrong with one data set beside its keys: it has no known shape, or names unknown artifacts."""
    if not dataset.builder:
        yield Problem(f"{where}.builder", "is missing", f"known: {', '.join(builders.names())}")
    elif dataset.builder not in builders:
        what = f"no builder named '{dataset.builder}'"
        yield Problem(f"{where}.builder", what, nearest(dataset.builder, builders.names()))
    try:
        cards.artifacts_of(dataset)
    except LavisExtError as error:
        yield from error.problems


def _length_problems(config: Config) -> Iterator[Problem]:
    run = config.run
    reported = {"run.max_epoch", "run.max_iters"} & set(config.faulty)  # given, with a wrong value
    if run.train_splits and not run.evaluate and run.max_epoch is None and run.max_iters is None and not reported:
        yield Problem("run", "neither max_epoch nor max_iters is given", "say how long to train")
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
    tree, places = read_yaml(path)
    import_plugins(tree.get("plugins"), path, places.get("plugins", str(path)))
    cards = load_cards()
    decoder = ConfigDecoder(places)
    found = [load_dataset_config(path, name) for name in names]
    return [
        Problem(decoder.place(p.where), p.what, p.way_out)
        for dataset in found
        for p in dataset_problems(dataset, cards, f"datasets.{dataset.name}")
    ]


def _check_model(path: Path) -> list[Problem]:
    tree, places = read_yaml(path)
    import_plugins(tree.get("plugins"), path, places.get("plugins", str(path)))
    decoder = ConfigDecoder(places)
    model = decoder.build(ModelConfig, tree["model"] or {}, "model")
    for kind in ("vis_processor", "text_processor"):
        for side, body in ((tree.get("preprocess") or {}).get(kind) or {}).items():
            decoder.build(ProcessorConfig, body, f"preprocess.{kind}.{side}")
    found = model.problems() if model else ()
    return [*decoder.problems, *(Problem(decoder.place(p.where), p.what, p.way_out) for p in found)]
