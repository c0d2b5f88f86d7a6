"""Run files and `--options` → one typed Config (default YAML < user YAML < options); folders of YAML; cache root."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_ext.common.config.decode import ConfigDecoder, read_yaml
from lavis_ext.common.config.schema import BuildInfo, Config, DatasetConfig, ModelConfig, RunConfig
from lavis_ext.common.errors import ConfigError, Problem, UsageError, nearest
from lavis_ext.common.names import NAMES
from lavis_ext.common.registry import builders, load_plugin_file, models, plugin_sources, registry

log = logging.getLogger(__name__)
Tree = dict[str, Any]
PACKAGE = Path(__file__).parents[2]
SECTIONS = ("env", "plugins", "model", "datasets", "run", "preprocess")
STUDENT_ONLY = ("num_hidden_layers", "layers", "load_finetuned", "finetuned")
"""Keys of a student's model section that its teacher does not take over."""


def config_roots() -> list[Path]:
    """Folders of YAML, first wins: those of `LAVIS_EXT_CONFIGS` (`:`-separated), then the shipped one."""
    own = [Path(p).expanduser() for p in os.environ.get("LAVIS_EXT_CONFIGS", "").split(os.pathsep) if p]
    inside = PACKAGE / "configs"
    return [*own, inside if inside.is_dir() else PACKAGE.parent / "configs"]


def from_checkout(name: str, where: str) -> ModuleType:
    """The package `name` beside ours in a checkout; raises UsageError at `where` in a wheel, which lacks it."""
    checkout = PACKAGE.parent
    if not ((checkout / "setup.cfg").is_file() and (checkout / name).is_dir()):
        raise UsageError(where, f"{name} run from a checkout", f"git clone it, and there: python -m {name} NAME")
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return import_module(name)


def cache_root(option: str | Path | None = None) -> Path:
    """Where data is; absolute, `~` expanded.

    Option > path registered by a script > `LAVIS_EXT_CACHE_ROOT` > user file > `configs/default.yaml`.
    """
    return Path(cache_root_origin(option)[0])


def named_folders() -> dict[str, Path]:
    """The folders that LAVIS registers as paths: `configs/` lies in `library_root`."""
    return {"cache_root": cache_root(), "library_root": config_roots()[-1].parent, "repo_root": PACKAGE.parent}


def cache_root_origin(option: str | Path | None = None) -> tuple[str, str]:
    """The cache root and where the value came from."""
    user_file = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "lavis_ext" / "config.yaml"
    shipped = config_roots()[-1] / "default.yaml"
    candidates = [
        (str(option) if option else "", "option"),
        (dict.get(registry.paths, "cache_root", ""), "registry.register_path"),
        (os.environ.get("LAVIS_EXT_CACHE_ROOT", ""), "LAVIS_EXT_CACHE_ROOT"),
        (_env_key(user_file) if user_file.is_file() else "", str(user_file)),
        (_env_key(shipped), str(shipped)),
    ]
    value, origin = next((value, origin) for value, origin in candidates if value)
    return str(Path(value).expanduser().absolute()), origin


def _env_key(path: Path) -> str:
    tree, places = read_yaml(path)
    env = tree.get("env") or {}
    if not isinstance(env, dict) or set(env) - {"cache_root"}:
        raise ConfigError(places.get("env", str(path)), "`env` takes only `cache_root`", "remove the other keys")
    return str(env.get("cache_root") or "")


def find_config(path: str | Path) -> Path:
    """A run file: as given, else below a configs folder (with or without the leading `configs/`)."""
    given = Path(path).expanduser()
    if given.is_file():
        return given
    below = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    for root in config_roots():
        if not given.is_absolute() and (root / below).is_file():
            return root / below
    known = [f"configs/{p.relative_to(root)}" for root in config_roots() for p in root.glob("projects/**/*.yaml")]
    raise UsageError(str(path), "no such run file", nearest(str(path), known))


def dataset_files() -> Iterable[tuple[Path, Tree, dict[str, str]]]:
    """Each YAML below `datasets/` of every configs folder: path, content, places."""
    for root in config_roots():
        for path in sorted(root.glob("datasets/**/*.yaml")):
            yield path, *_read_cached(path, path.stat().st_mtime_ns)


@cache
def _read_cached(path: Path, _mtime_ns: int) -> tuple[Tree, dict[str, str]]:
    return read_yaml(path)


def dataset_defaults() -> dict[str, dict[str, tuple[Tree, Path, dict[str, str]]]]:
    """Data set → config type → (its keys, file, places), from all `datasets:` sections that are found."""
    found: dict[str, dict[str, tuple[Tree, Path, dict[str, str]]]] = {}
    for path, tree, places in dataset_files():
        for name, body in (tree.get("datasets") or {}).items():
            kind = str((body or {}).get("type", "default"))
            types = found.setdefault(name, {})
            if kind in types and types[kind][1].is_relative_to(path.parents[2]):
                raise ConfigError(
                    places[f"datasets.{name}"],
                    f"type '{kind}' of '{name}' is declared in {types[kind][1]} too",
                    "keep one",
                )
            types.setdefault(kind, (body or {}, path, places))
    return found


def model_defaults(arch: str, model_type: str) -> tuple[Tree, Tree]:
    """The `model:` and `preprocess:` sections of `models/<arch>/<model_type>.yaml`; an unknown one is a ConfigError."""
    archs = model_files()
    path = archs.get(arch, {}).get(model_type)
    if path is None and arch not in archs and arch in models:
        return class_model_defaults(arch, model_type)  # a plug-in's, which need not have a file for each type
    if path is None:
        if arch not in archs:
            raise ConfigError("model.arch", f"no architecture '{arch}'", nearest(arch, archs))
        raise ConfigError("model.model_type", f"'{arch}' has no type '{model_type}'", nearest(model_type, archs[arch]))
    tree, _ = _read_cached(path, path.stat().st_mtime_ns)
    return tree.get("model") or {}, tree.get("preprocess") or {}


def class_model_defaults(arch: str, model_type: str) -> tuple[Tree, Tree]:
    """The sections of the YAML that a class in LAVIS' manner names for a type; none for other plug-ins.

    Raises ConfigError with the nearest names for an unknown type.
    """
    types = dict(getattr(models.get(arch), "PRETRAINED_MODEL_CONFIG_DICT", None) or {})
    if not types:
        return {}, {}
    if model_type not in types:
        raise ConfigError("model.model_type", f"'{arch}' has no type '{model_type}'", nearest(model_type, types))
    tree, _ = read_yaml(Path(models.get(arch).default_config_path(model_type)))
    return tree.get("model") or {}, tree.get("preprocess") or {}


def class_dataset_defaults(name: str) -> dict[str, tuple[Tree, Path, dict[str, str]]]:
    """Config type → (keys, file, places) of a data set that a class in LAVIS' manner builds, else nothing."""
    kind = builders.get(name) if name in builders and name not in NAMES["builder"] else None
    if not isinstance(kind, type):
        return {}
    found: dict[str, tuple[Tree, Path, dict[str, str]]] = {}
    for label in getattr(kind, "DATASET_CONFIG_DICT", None) or {}:
        path = Path(getattr(kind, "default_config_path")(label))  # noqa: B009 (any class has it that has the table)
        tree, places = read_yaml(path)
        first = next(iter(tree.get("datasets") or {}), "")
        body = (tree.get("datasets") or {}).get(first) or {}
        moved = {key.replace(f"datasets.{first}", f"datasets.{name}", 1): at for key, at in places.items()}
        found[label] = ({**body, "builder": name}, path, moved)
    return found or {"default": ({"builder": name}, Path(), {})}


def shapeless(types: Mapping[str, tuple[Tree, Path, dict[str, str]]] | None) -> bool:
    """Whether no card says by which shape a data set is built."""
    return not any(body.get("builder") for body, *_ in (types or {}).values())


def keep_unknown(body: Tree) -> Tree:
    """The section of a data set that a class in LAVIS' manner builds: keys that no data set has become its `args`."""
    known = {one.name for one in fields(DatasetConfig)} | set(DatasetConfig.ignored)
    info = body.get("build_info") or {}
    listed = {*(one.name for one in fields(BuildInfo)), "videos", "features"}
    args = {key: value for key, value in body.items() if key not in known}
    if more := {key: value for key, value in info.items() if key not in listed}:
        args["build_info"] = more
    kept = {key: value for key, value in body.items() if key in known}
    kept["build_info"] = {key: value for key, value in info.items() if key in listed}
    return {**kept, "args": {**(body.get("args") or {}), **args}}


def model_files() -> dict[str, dict[str, Path]]:
    """Architecture → model type → its YAML."""
    found: dict[str, dict[str, Path]] = {}
    for root in config_roots():
        for path in sorted(root.glob("models/*/*.yaml")):
            found.setdefault(path.parent.name, {}).setdefault(path.stem, path)
    return found


def parse_options(options: Sequence[str]) -> Tree:
    """`a.b=c …`, or LAVIS' alternating `a.b c …`, as a tree; values are YAML (`1e-4`, `[val]`, `null`)."""
    items = list(options)
    if items and "=" not in items[0]:
        if len(items) % 2:
            raise UsageError(f"--options {items[-1]}", "has no value", "write key=value")
        items = [f"{key}={value}" for key, value in zip(items[::2], items[1::2], strict=True)]
    bad = [item for item in items if "=" not in item or not item.split("=", 1)[0].strip()]
    if bad:
        raise UsageError.of(
            [Problem(f"--options {item}", "is not key=value", "write for example run.seed=1") for item in bad]
        )
    try:
        return plain(OmegaConf.from_dotlist(items))
    except (OmegaConfBaseException, ValueError) as error:
        raise UsageError("--options", str(error).splitlines()[0], "quote the value") from error


def plain(node: Any) -> Tree:
    """An OmegaConf node as plain containers, interpolations resolved."""
    value: Tree = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    return value


def merge(*trees: Mapping[str, Any]) -> Tree:
    """Deep merge, later wins; lists are replaced, as in LAVIS."""
    return plain(OmegaConf.merge(*(OmegaConf.create(dict(tree)) for tree in trees)))


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Read, merge and type a run file; raises ConfigError with every mistake and its place."""
    config, decoder = draft(path, options)
    decoder.close()
    assert config is not None
    return config


def draft(path: str | Path, options: Sequence[str] = ()) -> tuple[Config | None, ConfigDecoder]:
    """A run file as far as it can be typed, and the decoder with its mistakes; None where the run itself is not there.

    The `config.yaml` beside a `run.json` is a run's own record: keys that were accepted when it was written are skipped
    with a notice where what the run names does not read them. Raises ConfigError for a file that is no YAML.
    """
    file = find_config(path)
    user, places = read_yaml(file)
    given = parse_options(options)
    for key in _leaves(given):
        places[key] = "--options"
    decoder = ConfigDecoder(places, lenient=(file.parent / "run.json").is_file())
    wanted = modernise(mappings_only(merge(user, given), decoder), file)
    wanted["plugins"] = import_plugins(wanted.get("plugins"), file, places.get("plugins", str(file)))
    for section in wanted:
        if section not in SECTIONS:
            decoder.note(section, "unknown section", nearest(section, SECTIONS))
    tree, defaults = _with_defaults(wanted, decoder)
    for key, place in defaults.items():
        places.setdefault(key, place)
    return typed(tree, decoder, file), decoder


def mappings_only(tree: Tree, decoder: ConfigDecoder) -> Tree:
    """The sections of a tree, and its data sets, that are mappings; the others are noted as mistakes."""

    def keep(section: Mapping[str, Any], prefix: str, names: Iterable[str]) -> Tree:
        wrong = [name for name in names if not isinstance(section.get(name) or {}, Mapping)]
        for name in wrong:
            decoder.note(f"{prefix}{name}", f"{section[name]!r} is not a mapping", "write `key: value` lines under it")
        return {name: value for name, value in section.items() if name not in wrong}

    kept = keep(tree, "", ("env", "model", "datasets", "run"))
    datasets = kept.get("datasets") or {}
    return {**kept, "datasets": keep(datasets, "datasets.", list(datasets))} if datasets else kept


def import_plugins(named: Any, file: Path, where: str) -> list[str]:
    """Import the files that `plugins:` of a YAML names, relative to it; returns their absolute paths.

    Raises ConfigError at `where` for one that is not there or does not load.
    """
    names = [named] if isinstance(named, str) else named or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where} plugins", f"{names!r} is no list of files", "write `plugins: [birds.py]`")
    base = Path() if where == "--options" else file.parent
    paths = [(base / Path(name).expanduser()).absolute() for name in names]
    for path in paths:
        load_plugin_file(path, f"{where} plugins")
    return [str(path) for path in paths]


def folder_plugins() -> Iterator[tuple[Path, str]]:
    """The files that YAMLs of the user's own folders name under `plugins:`, and where each is named."""
    for root in config_roots()[:-1]:
        for path in sorted([*root.glob("*.yaml"), *root.glob("datasets/**/*.yaml"), *root.glob("models/*/*.yaml")]):
            tree, places = _read_cached(path, path.stat().st_mtime_ns)
            named = tree.get("plugins") or []
            for name in [named] if isinstance(named, str) else named:
                yield path.parent / Path(str(name)).expanduser(), f"{places['plugins']} plugins"


plugin_sources.append(folder_plugins)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def modernise(tree: Tree, file: Path | str) -> Tree:
    """Old keys of LAVIS and VPGTrans under their present names; each is logged."""
    run, datasets = dict(tree.get("run") or {}), {k: dict(v or {}) for k, v in (tree.get("datasets") or {}).items()}
    ratios = run.pop("train_dataset_ratios", None)
    for name, weight in ratios.items() if isinstance(ratios, Mapping) else ():
        log.warning("%s: run.train_dataset_ratios.%s is now datasets.%s.weight", file, name, name)
        datasets.setdefault(name, {}).setdefault("weight", weight)
    changed = {"run": run, "datasets": datasets}
    return {**tree, **{key: value for key, value in changed.items() if key in tree or value}}


def _with_defaults(tree: Tree, decoder: ConfigDecoder) -> tuple[Tree, dict[str, str]]:
    """The tree over the default YAMLs that it asks for by `arch`, `model_type` and each data set's `type`."""
    places: dict[str, str] = {}
    model = _full_model(tree.get("model") or {}, decoder, "model")
    tree = _with_teacher(tree, model, decoder)
    known = dataset_defaults()
    datasets = {}
    for name, body in (tree.get("datasets") or {}).items():
        kind = str(body.get("type", "default"))
        own = class_dataset_defaults(name) if shapeless(known.get(name)) and not body.get("builder") else {}
        types = own or known.get(name, {})
        if not types and not body.get("builder"):
            decoder.note(f"datasets.{name}", "no card declares it", nearest(name, known))
            continue
        if types and kind not in types:
            decoder.note(f"datasets.{name}.type", f"'{name}' has no type '{kind}'", nearest(kind, types))
            continue
        default, _, where = types.get(kind, ({}, None, {}))
        whole = {"name": name, **merge(default, body)}
        datasets[name] = keep_unknown(whole) if own else whole
        places |= where
    return {**tree, "model": model, "datasets": datasets}, places


def _full_model(model: Tree, decoder: ConfigDecoder, where: str) -> Tree:
    """A model section over the defaults of its type; an unknown type is noted at `where`."""
    if not (model.get("arch") and model.get("model_type")):
        return model
    try:
        return merge(model_defaults(str(model["arch"]), str(model["model_type"]))[0], model)
    except ConfigError as error:
        for problem in error.problems:
            decoder.note(problem.where.replace("model", where, 1), problem.what, problem.way_out)
        return model


def _with_teacher(tree: Tree, model: Tree, decoder: ConfigDecoder) -> Tree:
    """The tree with the teacher's section made whole: over the student's where both are of one type, else over its own.

    The student's depth and fine-tuned weights are not the teacher's.
    """
    run = tree.get("run") or {}
    distill = run.get("distill") if isinstance(run, Mapping) else None
    teacher = distill.get("teacher") if isinstance(distill, Mapping) else None
    if not isinstance(distill, Mapping) or not isinstance(teacher, Mapping):
        return tree
    kind: Tree = {key: model[key] for key in ("arch", "model_type") if key in model}
    if all(teacher.get(key, value) == value for key, value in kind.items()):
        whole = merge({key: value for key, value in model.items() if key not in STUDENT_ONLY}, teacher)
    else:
        whole = _full_model({**kind, **teacher}, decoder, "run.distill.teacher")
    return {**tree, "run": {**run, "distill": {**distill, "teacher": whole}}}


def _below(model: ModelConfig, root: Path) -> ModelConfig:
    """The section with the weights that lie below the cache root that this run names."""
    named = {key: root / value for key in ("pretrained", "tokenizer") if (value := getattr(model, key))}
    there: dict[str, Any] = {key: str(path) for key, path in named.items() if path.exists()}
    return replace(model, **there)


def _teacher_below(run: RunConfig, root: Path) -> RunConfig:
    """The same for the teacher's section."""
    distill = getattr(run, "distill", None)
    if distill is None or not isinstance(distill.teacher, ModelConfig):
        return run
    below: dict[str, Any] = {"distill": replace(distill, teacher=_below(distill.teacher, root))}
    return replace(run, **below)


def typed(tree: Tree, decoder: ConfigDecoder, file: Path) -> Config | None:
    """A whole tree as dataclasses, its mistakes noted; None where the run itself is not there."""
    run = decoder.build(RunConfig, tree.get("run") or {}, "run")
    model = decoder.build(ModelConfig, tree["model"], "model") if tree.get("model") else None
    datasets = {n: decoder.build(DatasetConfig, body, f"datasets.{n}") for n, body in tree["datasets"].items()}
    env = tree.get("env") or {}
    for key in set(env) - {"cache_root"}:
        decoder.note(f"env.{key}", "unknown key", nearest(key, ["cache_root"]))
    if run is None:
        return None
    root = str(cache_root(env.get("cache_root")))
    if model is not None and env.get("cache_root"):
        model, run = _below(model, Path(root)), _teacher_below(run, Path(root))
    typed_sets = {name: dataset for name, dataset in datasets.items() if dataset is not None}
    return Config(
        run=run,
        model=model,
        datasets=typed_sets,
        cache_root=root,
        path=str(file),
        resolved=tree,
        places=dict(decoder.places),
        faulty=tuple(sorted(decoder.faulty)),
    )
