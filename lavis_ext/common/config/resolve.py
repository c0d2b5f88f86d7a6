"""Run files and `--options` → one typed Config (default YAML < user YAML < options); folders of YAML; cache root."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from lavis_ext.common.config.decode import ConfigDecoder, join, mappings_only, read_sections
from lavis_ext.common.config.schema import BuildInfo, Config, DatasetConfig, ModelConfig, RunConfig
from lavis_ext.common.config.yamlio import MAX_DEPTH, plain_of, read_value, shown
from lavis_ext.common.errors import DATASETS, ConfigError, Problem, UsageError, near, nearest
from lavis_ext.common.files import checked_path, expanded, not_there, read_errors
from lavis_ext.common.lavis import SERVED, out_of_scope
from lavis_ext.common.lavis import WAY_OUT as LAVIS
from lavis_ext.common.names import NAMES
from lavis_ext.common.registry import builders, load_plugin_file, models, plugin_sources, registry, tasks

log = logging.getLogger(__name__)
Tree = dict[str, Any]
DatasetDefaults = dict[str, dict[str, tuple[Tree, Path, dict[str, str]]]]
"""Data set → config type → (its keys, file, places)."""
PACKAGE = Path(__file__).parents[2]
SECTIONS = ("env", "plugins", "model", "datasets", "run", "preprocess")
STUDENT_ONLY = ("num_hidden_layers", "layers", "load_finetuned", "finetuned")
"""Keys of a student's model section that its teacher does not take over."""


def config_roots() -> list[Path]:
    """Folders of YAML, first wins: those of `LAVIS_EXT_CONFIGS` (`:`-separated), then the shipped one.

    Raises ConfigError for one that is no folder.
    """
    own = [expanded(p) for p in os.environ.get("LAVIS_EXT_CONFIGS", "").split(os.pathsep) if p]
    if lost := [path for path in own if not path.is_dir()]:
        raise ConfigError(
            "LAVIS_EXT_CONFIGS", f"{lost[0]} is no folder", "name folders that hold datasets/, models/ or projects/"
        )
    inside = PACKAGE / "configs"
    shipped = inside if inside.is_dir() else PACKAGE.parent / "configs"
    last = {shipped.resolve(): shipped}
    once: dict[Path, Path | None] = {
        path.resolve(): path for path in reversed(own)
    }  # a folder that is named twice counts once
    return [*(path for path in own if path.resolve() not in last and once.pop(path.resolve(), None)), shipped]


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


def user_folder() -> Path:
    """The folder of the user's own settings: `$XDG_CONFIG_HOME/lavis_ext`, else `~/.config/lavis_ext`."""
    return home_of(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "lavis_ext"


def cache_root_origin(option: str | Path | None = None) -> tuple[str, str]:
    """The cache root and where the value came from."""
    user_file = user_folder() / "config.yaml"
    shipped = config_roots()[-1] / "default.yaml"
    candidates = [
        (str(option) if option else "", "option"),
        (dict.get(registry.paths, "cache_root", ""), "registry.register_path"),
        (os.environ.get("LAVIS_EXT_CACHE_ROOT", ""), "LAVIS_EXT_CACHE_ROOT"),
        (_env_key(user_file) if _is_there(user_file) else "", str(user_file)),
        (_env_key(shipped), str(shipped)),
    ]
    value, origin = next((value, origin) for value, origin in candidates if value)
    return str(home_of(value, f"cache_root from {origin}").absolute()), origin


def home_of(path: str | Path, where: str = "") -> Path:
    """A path with `~` expanded; raises ConfigError at `where` for one that no disk can hold, or of an unknown user."""
    try:
        found = checked_path(expanded(path))
        if found.parts and found.parts[0].startswith("~"):
            raise ValueError("there is no such user")
        return found
    except ValueError as error:
        raise ConfigError(
            where or shown(str(path)), f"is no path ({error})", "write a path that can be there"
        ) from error


def _is_there(path: Path) -> bool:
    """Whether the user's file exists; raises ConfigError where its folder may not be read."""
    try:
        return path.is_file()
    except OSError as error:
        raise ConfigError(str(path), error.strerror or str(error), "mend the permissions of its folder") from error


def _env_key(path: Path) -> str:
    tree, places = read_sections(path)
    env = tree.get("env") or {}
    if set(env) - {"cache_root"}:
        raise ConfigError(places.get("env", str(path)), "`env` takes only `cache_root`", "remove the other keys")
    return str(env.get("cache_root") or "")


def find_config(path: str | Path, evaluates: bool = False) -> Path:
    """A run file: as given, else below a configs folder (with or without the leading `configs/`).

    `lavis_ext/projects/…`, as in LAVIS' scripts once `lavis` is replaced, is `lavis/projects/…` where that is
    there, else below a configs folder. Raises UsageError for what is none; for a folder it names the run file in it,
    where `evaluates` the one that evaluates.
    """
    given = home_of(path)
    below = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    theirs = given.parts[:2] in (("lavis", "projects"), ("lavis_ext", "projects"))
    if theirs:
        below = Path(*given.parts[1:])
    with read_errors(given):
        for place in (given, *([Path("lavis", below)] if theirs else [])):
            if place.is_file():
                return place
    for root in config_roots():
        if not given.is_absolute() and (root / below).is_file():
            return root / below
    if given.is_dir():
        whose = [name for name in ("config.yaml",) if (given / "run.json").is_file() and (given / name).is_file()]
        beside = whose or sorted(one.name for one in given.glob("*.y*ml"))
        # `lavis-ext new` writes train.yaml and eval.yaml; a name that says nothing comes before that of the other verb
        wanted, other = ("eval", "train") if evaluates else ("train", "eval")
        beside = sorted(beside, key=lambda name: (wanted not in name, other in name))
        way_out = f"name the run file in it, {given / beside[0]}" if beside else "name a YAML with `run:`"
        raise UsageError(str(path), "is the folder of a run" if whose else "is a folder", way_out)
    known = [f"configs/{p.relative_to(root)}" for root in config_roots() for p in root.glob("projects/**/*.yaml")]
    what, way_out = not_there(path, "file", known, "name a YAML with `run:`")
    raise UsageError(str(path), "is a data set, not a run file" if str(path) in dataset_defaults() else what, way_out)


def dataset_files() -> Iterable[tuple[Path, Tree, dict[str, str]]]:
    """Each YAML below `datasets/` of every configs folder: path, content, places.

    Paths of the user's own that lie beside their YAML are absolute.
    """
    *own, shipped = config_roots()
    for root in (*own, shipped):
        for path in sorted(root.glob("datasets/**/*.yaml")):
            tree, places = _read_cached(path, path.stat().st_mtime_ns)
            yield path, (tree if root == shipped else beside(tree, path.parent)), places


def beside(tree: Tree, folder: Path) -> Tree:
    """A YAML's data sets with absolute paths where what they name lies below `folder`, the YAML's; `~` expanded.

    Everything else stays: LAVIS' paths are below the cache root.
    """
    sections = tree.get("datasets")
    if not isinstance(sections, Mapping):
        return tree
    return {**tree, "datasets": {name: _beside(body, folder) for name, body in sections.items()}}


def _beside(body: Any, folder: Path) -> Any:
    info = body.get("build_info") if isinstance(body, Mapping) else None
    if not isinstance(info, Mapping):
        return body

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(one) for one in value]
        if not isinstance(value, str) or not value or "://" in value or value.startswith(("~", "/", "$")):
            return value
        fixed = re.split(r"[*?\[{]", value)[0]
        known = fixed if fixed == value else fixed.rpartition("/")[0]
        try:
            return str((folder / value).absolute()) if known and (folder / known).exists() else value
        except (OSError, ValueError):  # no path at all: whoever opens it says so
            return value

    def section(value: Any) -> Any:
        held = isinstance(value, Mapping) and "storage" in value
        return {**value, "storage": placed(value["storage"])} if held else value

    changed = {key: section(value) for key, value in info.items() if key in ("images", "videos", "features")}
    if isinstance(info.get("annotations"), Mapping):
        changed["annotations"] = {split: section(one) for split, one in info["annotations"].items()}
    if "storage" in info:
        changed["storage"] = placed(info["storage"])
    return {**body, "build_info": {**info, **changed}}


@cache
def _read_cached(path: Path, _mtime_ns: int) -> tuple[Tree, dict[str, str]]:
    return read_sections(path)


def dataset_defaults(files: Iterable[tuple[Path, Tree, dict[str, str]]] | None = None) -> DatasetDefaults:
    """All `datasets:` sections of some `dataset_files`, or of all that are found."""
    found: DatasetDefaults = {}
    for path, tree, places in dataset_files() if files is None else files:
        for name, body in (tree.get("datasets") or {}).items():
            kind = str(body.get("type", "default"))
            types = found.setdefault(name, {})
            if kind in types and types[kind][1].is_relative_to(path.parents[2]):
                raise ConfigError(
                    places[f"datasets.{name}"],
                    f"type '{kind}' of '{name}' is declared in {types[kind][1]} too",
                    "keep one",
                )
            types.setdefault(kind, (body, path, places))
    return found


def model_defaults(arch: str, model_type: str) -> tuple[Tree, Tree]:
    """The `model:` and `preprocess:` sections of `models/<arch>/<model_type>.yaml`; an unknown one is a ConfigError."""
    archs = model_files()
    path = archs.get(arch, {}).get(model_type)
    if path is None and arch not in archs and arch in models:
        return class_model_defaults(arch, model_type)  # a plug-in's, which need not have a file for each type
    if path is None:
        if arch not in archs and (outside := out_of_scope("model", arch)):
            raise ConfigError("model.arch", f"architecture '{arch}' {outside}", f"{LAVIS}; {SERVED}")
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
    tree, _ = read_sections(Path(models.get(arch).default_config_path(model_type)))
    return tree.get("model") or {}, tree.get("preprocess") or {}


def class_dataset_defaults(name: str) -> dict[str, tuple[Tree, Path, dict[str, str]]]:
    """Config type → (keys, file, places) of a data set that a class in LAVIS' manner builds, else nothing."""
    kind = builders.get(name) if name in builders and name not in NAMES["builder"] else None
    if not isinstance(kind, type):
        return {}
    found: dict[str, tuple[Tree, Path, dict[str, str]]] = {}
    for label in getattr(kind, "DATASET_CONFIG_DICT", None) or {}:
        path = Path(getattr(kind, "default_config_path")(label))  # noqa: B009 (any class has it that has the table)
        tree, places = read_sections(path)
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
    tree: Tree = {}
    for key, text in option_items(options):
        *above, last = key.split(".")
        if len(above) >= MAX_DEPTH:
            raise UsageError(f"--options {shown(key)}", "is nested too deep", f"at most {MAX_DEPTH} levels are read")
        try:
            value = read_value(text, f"--options {key}")
        except ConfigError as error:
            raise UsageError.of(error.problems) from error
        inner = tree
        for part in above:
            if not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        inner[last] = value
    return tree


def option_items(options: Sequence[str]) -> list[tuple[str, str]]:
    """Dotted key and text of each option; raises UsageError for what is no `key=value`."""
    items = list(options)
    for number, (item, after) in enumerate(pairwise(items)):
        spaced = after.startswith("=") or (item.endswith("=") and "=" not in after)
        if spaced or (item.endswith(":") and "=" not in item and number % 2 == 0):
            rest = "".join(items[number + 1 : number + 3]) if after == "=" else after
            what = f"write {item.rstrip(':=')}={rest.lstrip('=')}, without spaces"
            raise UsageError(f"--options {item} {after}", "is not key=value", what)
    if items and "=" not in items[0]:
        if len(items) % 2:
            raise UsageError(f"--options {items[-1]}", "has no value", "write key=value")
        items = [f"{key}={value}" for key, value in zip(items[::2], items[1::2], strict=True)]
    bad = [item for item in items if not all(part.strip() for part in item.partition("=")[0].split("."))]
    bad += [item for item in items if "=" not in item and item not in bad]
    if bad:
        raise UsageError.of(
            [Problem(f"--options {item}", "is not key=value", "write for example run.seed=1") for item in bad]
        )
    split = [item.partition("=") for item in items]
    return [(".".join(part.strip() for part in key.split(".")), text) for key, _, text in split]


def merge(*trees: Mapping[str, Any], where: str = "") -> Tree:
    """Deep merge, later wins; lists are replaced, as in LAVIS, and interpolations resolved.

    Raises ConfigError for an interpolation that cannot be resolved, its key behind `where`.
    """
    merged: Tree = {}
    for tree in trees:
        merged = _over(merged, tree)
    if "${" not in str(merged):
        return merged
    from omegaconf import OmegaConf  # a tenth of a second, and most files have no interpolation
    from omegaconf.errors import OmegaConfBaseException

    try:
        value: Tree = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        key = join(where, error.full_key) if error.full_key else where
        raise ConfigError(key or "settings", str(error).splitlines()[0], WAY_OUT) from error
    except (RecursionError, ValueError, TypeError) as error:
        raise ConfigError(where or "settings", f"a `${{…}}` cannot be resolved ({error})"[:200], WAY_OUT) from error
    return value


WAY_OUT = "mend the `${…}`, or set the variable"


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """`above` over `below`, in containers of its own."""
    found = dict(below)
    for key, given in above.items():
        held: Any = found.get(key)
        value: Any = plain_of(given)
        found[key] = _over(held if isinstance(held, Mapping) else {}, value) if isinstance(value, Mapping) else value
    return found


_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([^\s,}]+)")


def hidden_values(*trees: Any) -> dict[str, str]:
    """Each value that a `${oc.env:NAME}` of these trees takes from the environment, and the text for it in dumps."""
    names = dict.fromkeys(name for tree in trees for name in _FROM_ENVIRONMENT.findall(repr(tree)))
    return {value: f"${{oc.env:{name}}}" for name in names if len(value := os.environ.get(name, "")) > 3}


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
    given = parse_options(options)
    asked = given.get("run")
    file = find_config(path, evaluates=isinstance(asked, Mapping) and bool(asked.get("evaluate")))
    user, places = read_sections(file)
    user = beside(user, file.parent) if not file.is_relative_to(config_roots()[-1]) else user
    for key in (*_leaves(given), *(key for key, _ in option_items(options))):
        places[key] = "--options"
    decoder = ConfigDecoder(places, lenient=(file.parent / "run.json").is_file())
    wanted = modernise(mappings_only(_placed_merge(user, given, decoder), decoder), file)
    _read_named_weights(user, given, wanted, decoder)
    changed = given.get("datasets")
    taken_out = [k for k, body in changed.items() if body is None] if isinstance(changed, Mapping) else []
    wanted["datasets"] = {k: v for k, v in (wanted.get("datasets") or {}).items() if k not in taken_out}
    wanted["plugins"] = import_plugins(wanted.get("plugins"), file, places.get("plugins", str(file)))
    for section in wanted:
        if section not in SECTIONS:
            decoder.note(section, "unknown section", _section_of(section, wanted) or nearest(section, SECTIONS))
    hidden = hidden_values(user, given)
    tree, defaults = _with_defaults(wanted, decoder)
    for key, place in defaults.items():
        places.setdefault(key, place)
    config = typed(tree, decoder, file)
    return config and replace(config, hidden=hidden), decoder


def _read_named_weights(user: Tree, given: Tree, wanted: Tree, decoder: ConfigDecoder) -> None:
    """Load the weights that an option names, though `load_finetuned` is off by default; else they would stay unread."""
    option, file, model = given.get("model"), user.get("model"), wanted.get("model")
    if not (isinstance(option, Mapping) and isinstance(model, dict) and option.get("finetuned")):
        return
    if "load_finetuned" not in model:
        model["load_finetuned"] = True
    elif isinstance(file, Mapping) and "load_finetuned" not in option and not model["load_finetuned"]:
        what = "is named, and model.load_finetuned is false"
        decoder.note("model.finetuned", what, "add model.load_finetuned=true, or leave it out")


def _section_of(key: str, tree: Tree) -> str:
    """The way out for a key that stands beside the sections and belongs into one: `did you mean run.seed?`, or ""."""
    task, arch = str((tree.get("run") or {}).get("task")), str((tree.get("model") or {}).get("arch"))
    homes: dict[str, list[Any]] = {"run": [RunConfig], "model": [ModelConfig]}
    homes["run"] += [tasks.config(task)] if task in tasks else []
    homes["model"] += [models.config(arch)] if arch in models else []
    known = [f"{home}.{name}" for home, kinds in homes.items() for kind in kinds for name in _keys_of(kind)]
    found = [name for name in dict.fromkeys(known) if name.partition(".")[2] == key]
    return f"did you mean {' or '.join(map(repr, found))}?" if found else ""


def _keys_of(kind: Any) -> list[str]:
    return [one.name for one in fields(kind)] if is_dataclass(kind) else []


def _placed_merge(user: Tree, given: Tree, decoder: ConfigDecoder) -> Tree:
    """The merge of a run file and the options, an interpolation that cannot be resolved at the line of its key."""
    try:
        return merge(user, given)
    except ConfigError as error:
        raise ConfigError.of(Problem(decoder.place(p.where), p.what, p.way_out) for p in error.problems) from error


def import_plugins(named: Any, file: Path, where: str) -> list[str]:
    """Import the files that `plugins:` of a YAML names, relative to it; returns their absolute paths.

    Raises ConfigError at `where` for one that is not there or does not load.
    """
    base = Path() if where == "--options" else file.parent
    paths = [(base / home_of(name)).absolute() for name in plugin_names(named, where)]
    for path in paths:
        load_plugin_file(path, f"{where} plugins")
    return [str(path) for path in paths]


def plugin_names(named: Any, where: str) -> list[str]:
    """What `plugins:` names; raises ConfigError at `where` for what is no list of files."""
    names = [named] if isinstance(named, str) else named or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where} plugins", f"{shown(names)} is no list of files", "write `plugins: [birds.py]`")
    return names


def folder_plugins() -> Iterator[tuple[Path, str]]:
    """The files that YAMLs of the user's own folders name under `plugins:`, and where each is named."""
    for root in config_roots()[:-1]:
        for path in sorted([*root.glob("*.yaml"), *root.glob("datasets/**/*.yaml"), *root.glob("models/*/*.yaml")]):
            tree, places = _read_cached(path, path.stat().st_mtime_ns)
            for name in plugin_names(tree.get("plugins"), places.get("plugins", str(path))):
                yield path.parent / home_of(name), f"{places['plugins']} plugins"


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
    tree = _in_scope(tree, decoder)
    model = _full_model(tree.get("model") or {}, decoder, "model")
    tree = _with_teacher(tree, model, decoder)
    known = dataset_defaults()
    datasets = {}
    for name, body in (tree.get("datasets") or {}).items():
        kind = str(body.get("type", "default"))
        own = class_dataset_defaults(name) if shapeless(known.get(name)) and not body.get("builder") else {}
        types = own or known.get(name, {})
        if not types and not body.get("builder"):
            outside = out_of_scope("dataset", name)
            way_out = LAVIS if outside else near(name, known) or DATASETS
            decoder.note(f"datasets.{name}", outside or "no card declares it", way_out)
            continue
        if types and kind not in types:
            decoder.note(f"datasets.{name}.type", f"'{name}' has no type '{kind}'", nearest(kind, types))
            continue
        default, _, where = types.get(kind, ({}, None, {}))
        try:
            whole = {"name": name, **merge(default, body, where=f"datasets.{name}")}
            datasets[name] = keep_unknown(whole) if own else whole
        except ConfigError as error:  # of the card's own
            decoder.problems += error.problems
        places |= where
    return {**tree, "model": model, "datasets": datasets}, places


def _in_scope(tree: Tree, decoder: ConfigDecoder) -> Tree:
    """The tree without the keys of an architecture or task of LAVIS that is not served: that alone is noted."""
    model, run = tree.get("model") or {}, tree.get("run") or {}
    arch, task = str(model.get("arch", "")), str(run.get("task", ""))
    if arch not in models and (outside := out_of_scope("model", arch)):
        decoder.note("model.arch", f"architecture '{arch}' {outside}", f"{LAVIS}; {SERVED}")
        tree = {**tree, "model": {}}
    if task not in tasks and (outside := out_of_scope("task", task)):
        decoder.note("run.task", f"'{task}' {outside}", LAVIS)
        tree = {**tree, "run": {"task": "image_text_pretrain", "evaluate": True}}  # stands in, so that no key is noted
    return tree


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
