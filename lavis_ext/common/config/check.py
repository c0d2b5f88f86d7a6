"""Every mistake of a run, a data set or a model YAML at once, before a byte is fetched or a weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lavis_ext.common.config.cards import Cards, load_cards, load_dataset_config, split_names
from lavis_ext.common.config.decode import ConfigDecoder, read_sections
from lavis_ext.common.config.resolve import Tree, draft, from_checkout, import_plugins, model_defaults, typed
from lavis_ext.common.config.schema import Config, DatasetConfig, ModelConfig, ProcessorConfig, examine_url
from lavis_ext.common.errors import ConfigError, LavisExtError, Problem, nearest
from lavis_ext.common.lavis import SERVED, WAY_OUT, out_of_scope
from lavis_ext.common.registry import builders, models, processors


def check_file(path: str | Path) -> list[Problem]:
    """All problems of one YAML; its sections say what it is (run, data sets, card, model, study, settings)."""
    try:
        tree, places = read_sections(Path(path))
        if not tree:
            return [Problem(str(path), "holds nothing", "write the sections of a run file or a card, or remove it")]
        if "run" in tree:
            return check_run(path)
        if "datasets" in tree or "artifacts" in tree:
            known = tree if "artifacts" in tree else ("plugins", "model", "datasets", "env")  # `rum:` is no data set
            return [*_unknown(places, tree, known), *_check_datasets(Path(path), list(tree.get("datasets") or {}))]
        if "model" in tree:
            return _check_model(Path(path))
        if "legs" in tree:
            return list(from_checkout("studies", str(path)).study_problems(Path(path)))
        return _unknown(places, tree, ("env", "plugins", "model", "datasets", "run", "artifacts"))
    except LavisExtError as error:
        return list(error.problems)


def _unknown(places: Mapping[str, str], tree: Iterable[str], known: Iterable[str]) -> list[Problem]:
    sections, unknown = ["run", "datasets", "model", "env"], [key for key in tree if key not in known]
    return [Problem(f"{places[key]} {key}", "unknown section", nearest(key, sections)) for key in unknown]


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
    if config.model is None and "model.arch" not in config.faulty:
        yield Problem("model", "is missing", "name `arch` and `model_type` under `model:`")
    elif config.model is not None:
        yield from config.model.problems()
        if config.model.arch in models:
            try:
                model_defaults(config.model.arch, config.model.model_type)
            except LavisExtError as error:
                yield from error.problems
    if not config.datasets and not any(key.startswith("datasets.") for key in config.faulty):
        yield Problem("datasets", "none is named", f"known: {', '.join(cards.names())}")
    for name, dataset in config.datasets.items():
        yield from dataset_problems(dataset, cards, f"datasets.{name}")
    yield from _split_problems(config)
    yield from _tower_problems(config)


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
                way_out = f"write {key}=[{split}]" if set(split.split(",")) <= known else nearest(split, known)
                yield Problem(f"run.{key}", f"no data set of this run has a split '{split}'", way_out)


def _check_datasets(path: Path, names: list[str]) -> list[Problem]:
    tree, places = read_sections(path)
    import_plugins(tree.get("plugins"), path, places.get("plugins", str(path)))
    cards = load_cards()
    decoder = ConfigDecoder(places)
    for name, body in (tree.get("artifacts") or {}).items():
        for key, source in {f"artifacts.{name}": body, **_mirrors(name, body)}.items():
            if isinstance(url := source.get("url"), str):
                examine_url(decoder, url, f"{key}.url")
    found = [load_dataset_config(path, name) for name in names]
    return decoder.problems + [
        Problem(decoder.place(p.where), p.what, p.way_out)
        for dataset in found
        for p in dataset_problems(dataset, cards, f"datasets.{dataset.name}")
    ]


def _mirrors(name: str, body: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    mirrors = body.get("mirrors")
    listed = enumerate(mirrors if isinstance(mirrors, list) else [])
    return {f"artifacts.{name}.mirrors[{n}]": one for n, one in listed if isinstance(one, Mapping)}


def _check_model(path: Path) -> list[Problem]:
    tree, places = read_sections(path)
    import_plugins(tree.get("plugins"), path, places.get("plugins", str(path)))
    decoder = ConfigDecoder(places)
    section = of_lavis(tree["model"] or {}, path)
    arch = str(section["arch"])
    if arch not in models and (outside := out_of_scope("model", arch)):
        what = f"architecture '{arch}' {outside}"
        return [Problem(decoder.place("model"), what, f"{WAY_OUT}; {SERVED}")]
    model = decoder.build(ModelConfig, section, "model")
    for kind in ("vis_processor", "text_processor"):
        for side, body in ((tree.get("preprocess") or {}).get(kind) or {}).items():
            decoder.build(ProcessorConfig, body, f"preprocess.{kind}.{side}")
    found = model.problems() if model else ()
    return [*decoder.problems, *(Problem(decoder.place(p.where), p.what, p.way_out) for p in found)]


LANGUAGES = {"t5_model": "blip2_t5", "opt_model": "blip2_opt", "llama_model": "blip2_llama", "llm_model": "blip2_llama"}


def of_lavis(section: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The `model:` section of a model YAML, of LAVIS' form too: that has the type as its `arch`, and no `model_type`.

    What it is then follows from the language model that it names, from its file's name else.
    """
    arch = str(section.get("arch", ""))
    if arch in models and section.get("model_type"):
        return dict(section)
    named = str(section.get("model_name", arch))  # BLIP-Diffusion's files have no arch
    if "xinstruct" in path.stem:
        named = "blip2_vicuna_xinstruct"
    elif "instruct" in path.stem:
        named = f"blip2_{'t5' if 't5_model' in section else 'vicuna'}_instruct"
    elif "diffusion" in path.stem:
        named = "blip_diffusion"
    elif not out_of_scope("model", arch) and "num_query_token" in section:
        named = next((found for key, found in LANGUAGES.items() if key in section), "blip2")
        if "vicuna" in path.stem:
            named = "blip2_vicuna"
    kept = {key: value for key, value in section.items() if key not in _unread(named, section)}
    return {**kept, "arch": named or arch, "model_type": section.get("model_type") or arch or path.stem}


def _unread(arch: str, section: Mapping[str, Any]) -> set[str]:
    """Keys by which LAVIS names a language model under another name than this architecture's: it reads them nowhere."""
    own = getattr(models.config(arch), "language_key", "") if arch in models else ""
    return {key for key in LANGUAGES if key in section and key != own}


def require_sizes(config: Config) -> None:
    """Raise ConfigError, by data set and line, for pictures in used splits that are not as the model takes them.

    That is their size; and their mean and std where `model.vision` comes with a processor.
    """
    wanted = getattr(config.model, "image_size", None) if hasattr(config.model, "vit_model") else None
    decoder, found = ConfigDecoder(config.places), []
    for key, processor in _used_processors(config):
        given = _argument(processor, "image_size")
        if wanted is not None and isinstance(given, int) and given != wanted:
            what = f"pictures of {given} pixels for a model of {wanted} (model.image_size)"
            way_out = f"set it to {wanted}, or model.image_size to {given}"
            found.append(Problem(decoder.place(f"{key}.image_size"), what, way_out))
    found += [Problem(decoder.place(p.where), p.what, p.way_out) for p in _tower_problems(config, fetch=True)]
    if found:
        raise ConfigError.of(found)


def _used_processors(config: Config) -> Iterator[tuple[str, ProcessorConfig]]:
    """The image processors of the splits that a run uses, each with its key."""
    run = config.run
    sides = (("train", run.train_splits), ("eval", run.valid_splits or run.test_splits))
    used = [side for side, splits in sides if splits]
    for name, dataset in config.datasets.items():
        for side in used[-1:] if run.evaluate else used:
            processor = getattr(dataset.vis_processor, side)
            if processor is not None and processor.name in processors:
                yield f"datasets.{name}.vis_processor.{side}", processor


def _argument(processor: ProcessorConfig, key: str) -> Any:
    given = processor.args.get(key)
    return getattr(processors.config(processor.name), key, None) if given is None or given == "" else given


def _tower_problems(config: Config, fetch: bool = False) -> Iterator[Problem]:
    """Pictures that are not given to the tower of `model.vision` as its own processor gives them."""
    model: Any = config.model
    form = model.tower_pictures(fetch) if hasattr(model, "tower_pictures") else None
    if form is None:
        return
    size = form.image_size
    if size and model.image_size != size and not model.vision_interpolate:
        what = f"{model.image_size}, and the tower's own processor makes pictures of {size}"
        yield Problem("model.image_size", what, f"set it to {size}, or model.vision_interpolate: True")
    for where, processor in _used_processors(config):
        for key in ("mean", "std"):
            wanted, given = getattr(form, key), _argument(processor, key)
            three = given if isinstance(given, list | tuple) else []
            whole = len(three) == 3 and all(isinstance(one, int | float) for one in three)
            if wanted and whole and any(abs(a - b) > CLOSE for a, b in zip(three, wanted, strict=True)):
                what = f"{list(three)}, and the tower's own processor has {list(wanted)}"
                yield Problem(f"{where}.{key}", what, f"set it to {list(wanted)}")


CLOSE = 1e-3
"""Means and stds are published with three to eight places."""
