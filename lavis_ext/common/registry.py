"""The registries, one a kind: a name in YAML → an object in code, whose module is imported when it is looked up.

Plug-ins register in the same way: packages by an entry point, single files by `load_plugin_file`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import is_dataclass, make_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from lavis_ext.common.errors import DATASETS, ConfigError, UsageError, near, nearest
from lavis_ext.common.files import checked_path, expanded
from lavis_ext.common.lavis import WAY_OUT as IN_LAVIS
from lavis_ext.common.lavis import out_of_scope
from lavis_ext.common.names import NAMES, Home

log = logging.getLogger(__name__)
T = TypeVar("T")
Item = TypeVar("Item")
PLUGIN_GROUP = "lavis_ext.plugins"
WAY_OUT = "mend the file, or take it out of `plugins`"


class RegistryError(ConfigError, KeyError):
    """A name that is registered twice, or not at all; a KeyError too, which is what LAVIS raises for the first."""


class Registry(Generic[T]):
    """Maps names to objects of one kind, and to the dataclass of the keys that each of them reads.

    A name of ours is looked up in `names.py`, so that one module is imported for it; a name that is not there may be a
    plug-in's, and all plug-ins are imported.
    """

    def __init__(self, kind: str, homes: dict[str, Home] | None = None) -> None:
        self.kind = kind
        self._homes = NAMES.get(kind, {}) if homes is None else homes
        self._items: dict[str, T] = {}
        self._keys: dict[str, Any] = {}

    def register(self, name: str, config: type | None = None) -> Callable[[Item], Item]:
        """Decorator that enters an object under `name`; a name taken by another object is an error.

        `config` is the dataclass of its own keys. It may extend the common one of its kind, and does for a model
        (ModelConfig) and for a task (RunConfig). Without it an object has the keys of its base class, a dataclass its
        fields, and anything else the arguments that it is called with.
        """

        def add(item: Item) -> Item:
            home = self._homes.get(name)
            held: Any = self._items.get(name)
            # a plug-in that takes a name of ours: import ours first, so that the clash is found whatever the order
            if held is None and home is not None and inspect.getmodule(item) is not sys.modules.get(home.module):
                held = self.get(name)
            if held is not None and held is not item:
                where, both = f"{self.kind} '{name}'", f"{origin(held)}, and now by {origin(item)}"
                raise RegistryError(where, f"already registered by {both}", "choose another name")
            self._items[name] = item  # type: ignore[assignment]
            self._keys[name] = config or keys_of(item)
            return item

        return add

    def get(self, name: str) -> T:
        """The object of that name; raises RegistryError with the nearest names."""
        if name not in self._items and name in self._homes:
            import_module(self._homes[name].module)
        if name not in self._items:
            load_all_plugins()
        if name not in self._items:
            if outside := out_of_scope(self.kind, name):
                raise RegistryError(f"{self.kind} '{name}'", outside, IN_LAVIS)
            raise RegistryError(f"{self.kind} '{name}'", "not registered", nearest(name, self.names()))
        return self._items[name]

    def config(self, name: str) -> Any:
        """The dataclass of the keys that an object reads, None where it declares none; imports nothing heavy of ours.

        Raises RegistryError with the nearest names.
        """
        home = self._homes.get(name)
        if home is None:
            item = self.get(name)
            return self._keys[name] if name in self._keys else keys_of(item)
        module, _, kind = home.keys.rpartition(".")
        return getattr(import_module(module), kind) if home.keys else None

    def names(self) -> list[str]:
        """All names, sorted."""
        load_all_plugins()
        return sorted({*self._homes, *self._items})

    def __contains__(self, name: object) -> bool:
        if name not in self._homes and name not in self._items:
            load_all_plugins()
        return name in self._homes or name in self._items

    def find(self, name: str) -> str:
        """Where an object comes from, as `module.qualified_name`."""
        return origin(self.get(name))

    def readers(self, key: str) -> list[str]:
        """The names of those who read a key."""
        return [name for name in self.names() if key in getattr(self.config(name), "__dataclass_fields__", ())]

    def inherited(self, item: type, itself: bool = False) -> Any:
        """The dataclass of the keys of the nearest registered base class, or of the class `itself`, else None."""
        named = {id(held): self._keys[name] for name, held in self._items.items()}
        return next((named[id(base)] for base in item.__mro__[not itself :] if id(base) in named), None)

    def drop(self, name: str) -> None:
        """Remove a plug-in's name, so that it can be registered again; raises RegistryError for one of ours."""
        if name in self._homes or name not in self._items:
            what = "is ours, and stays" if name in self._homes else "not registered"
            raise RegistryError(f"{self.kind} '{name}'", what, "register another name")
        del self._items[name], self._keys[name]

    def forget(self, module: str) -> None:
        """Remove what a module registered, after its import failed."""
        for name in [name for name, item in self._items.items() if origin(item).startswith(f"{module}.")]:
            del self._items[name]


def keys_of(item: Any) -> Any:
    """The dataclass of the keys of what was registered without one; None where it takes any."""
    if hasattr(item, "Keys"):
        return item.Keys
    if hasattr(item, "default_config_path"):
        return None  # a data set's builder in LAVIS' manner: its own YAML says what it reads
    if is_dataclass(item):
        return item
    if hasattr(item, "from_config") or not callable(item):
        return None
    parameters = [one for one in inspect.signature(item).parameters.values() if one.name != "self"]
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return make_dataclass(
        "Arguments", [(one.name, Any, one.default) for one in parameters if one.default is not one.empty]
    )


def origin(item: object) -> str:
    """`module.qualified_name` of a registered object."""
    named = item if hasattr(item, "__qualname__") else type(item)
    return f"{named.__module__}.{named.__qualname__}"


plugin_sources: list[Callable[[], Iterable[tuple[Path, str]]]] = []
"""Functions that yield (plug-in file, the place that names it); `common.config.resolve` adds its own."""


@cache
def load_plugins() -> tuple[str, ...]:
    """Import every entry point of `lavis_ext.plugins` once; one that fails is a warning that names it."""
    from importlib.metadata import entry_points  # 12 ms, and most commands name nothing but what is ours

    loaded = []
    for point in entry_points(group=PLUGIN_GROUP):
        try:
            point.load()
        except Exception as error:
            log.warning("plugin %s (%s) does not load: %s", point.name, point.value, error)
        else:
            loaded.append(point.name)
    return tuple(loaded)


def load_all_plugins() -> None:
    """Entry points, and the files that folders of settings name; one of these that fails raises ConfigError."""
    load_plugins()
    for source in plugin_sources:
        for path, where in source():
            load_plugin_file(path, where)


def load_plugin_file(path: Path, where: str) -> None:
    """Import one file that registers something, once however it is named; raises ConfigError at `where`."""
    try:
        file = checked_path(expanded(path).resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(where, f"a plug-in cannot be at this path ({error})", "name a Python file") from error
    # its own place in sys.modules: two folders may each have a `birds.py`
    name = f"lavis_ext_plugin_{file.stem}_{hashlib.blake2b(os.fsencode(file), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return
    if not file.is_file():
        raise ConfigError(
            where, f"there is no plug-in {file}", "name a Python file, relative to the YAML that names it"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(where, f"{file} is no Python file", "name one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        for kind in Facade._kinds.values():
            kind.forget(name)
        if isinstance(error, RegistryError):
            problem = error.problems[0]
            raise ConfigError(where, f"{file}: {problem.where} is {problem.what}", problem.way_out) from error
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(where, f"{file} does not load: {type(error).__name__}: {error}", WAY_OUT) from error


builders: Registry[Callable[..., Any]] = Registry("builder")
processors: Registry[Callable[..., Any]] = Registry("processor")
models: Registry[Any] = Registry("model")
objectives: Registry[Callable[..., Any]] = Registry("objective")
tasks: Registry[Any] = Registry("task")
metrics: Registry[Callable[..., Any]] = Registry("metric")
runners: Registry[Any] = Registry("runner")
lr_schedulers: Registry[Any] = Registry("lr_scheduler")
detectors: Registry[Callable[..., Any]] = Registry("detector")


class NameMapping(MutableMapping[str, Any]):
    """One kind under LAVIS' `registry.mapping["…_name_mapping"]`: name → object, live; a new name is registered."""

    def __init__(self, facade: Facade, kind: str) -> None:
        self._facade, self._kind = facade, kind

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._facade, f"get_{self._kind}_class")(name)
        except UsageError as error:  # a data set that no card declares
            raise RegistryError.of(error.problems) from error

    def __setitem__(self, name: str, item: Any) -> None:
        if Facade._kinds[self._kind]._items.get(name) not in (None, item):
            del self[name]
        getattr(self._facade, f"register_{self._kind}")(name)(item)

    def __delitem__(self, name: str) -> None:
        Facade._kinds[self._kind].drop(name)

    def __iter__(self) -> Iterator[str]:
        listed = self._facade.list_datasets() if self._kind == "builder" else Facade._kinds[self._kind].names()
        return iter(listed)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class PathMapping(dict[str, str]):
    """LAVIS' `registry.mapping["paths"]`: what was registered, and the folders that the settings name."""

    def __missing__(self, name: str) -> str:
        found = import_module("lavis_ext.common.config.resolve").named_folders()
        if name not in found:
            raise KeyError(name)
        return str(found[name])

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in ("cache_root", "library_root", "repo_root")

    def get(self, name: str, default: Any = None) -> Any:
        """The path, `default` for a name that is not known."""
        try:
            return self[name]
        except KeyError:
            return default


class Facade:
    """LAVIS' names over the registries: `register_builder`, `get_task_class`, `list_datasets` and their like.

    Unlike LAVIS', a getter never returns None: an unknown name raises RegistryError with the nearest names.
    """

    _kinds: ClassVar[dict[str, Registry[Any]]] = {
        "builder": builders,
        "processor": processors,
        "model": models,
        "objective": objectives,
        "task": tasks,
        "metric": metrics,
        "runner": runners,
        "lr_scheduler": lr_schedulers,
        "detector": detectors,
    }

    LAVIS_KINDS: ClassVar[tuple[str, ...]] = ("builder", "task", "processor", "model", "lr_scheduler", "runner")

    def __init__(self) -> None:
        self.paths = PathMapping()
        self.state: dict[str, Any] = dict(_FIRST_STATE)
        named = {f"{kind}_name_mapping": NameMapping(self, kind) for kind in self.LAVIS_KINDS}
        self.mapping: dict[str, Any] = {**named, "state": self.state, "paths": self.paths}

    def __getattr__(self, name: str) -> Any:
        verb, _, rest = name.partition("_")
        kind = rest.removesuffix("_class") if verb == "get" else rest.removesuffix("s") if verb == "list" else rest
        if kind not in self._kinds or verb not in ("register", "get", "list"):
            raise AttributeError(f"registry has no attribute '{name}'; {nearest(name, dir(self))}")
        registry_of_kind = self._kinds[kind]
        return {"register": registry_of_kind.register, "get": registry_of_kind.get, "list": registry_of_kind.names}[
            verb
        ]

    def __dir__(self) -> list[str]:
        verbs = [(f"register_{k}", f"get_{k}_class", f"list_{k}s") for k in self._kinds]
        own = ("list_datasets", "mapping", "register_path", "get_path", "register", "get", "unregister")
        return sorted([*(name for three in verbs for name in three), *own])

    def register_builder(self, name: str, config: type | None = None) -> Callable[[Item], Item]:
        """Enter a shape, a function, or LAVIS' class of one data set; the name of a card is taken."""

        def add(item: Item) -> Item:
            cards = (
                import_module("lavis_ext.common.config.resolve").dataset_defaults() if isinstance(item, type) else {}
            )
            # a YAML without a shape in a folder of the user's is the class's own
            if any(body.get("builder", name) != name for body, *_ in cards.get(name, {}).values()):
                raise RegistryError(f"builder '{name}'", "a card declares this data set", "choose another name")
            return builders.register(name, config)(item)

        return add

    def get_lr_scheduler_class(self, name: str) -> Any:
        """LAVIS' form of a schedule, `cls(optimizer, max_epoch, …).step(cur_epoch, cur_step)`, ours or a plug-in's."""
        return import_module("lavis_ext.common.optims").stepping(name)

    def register_path(self, name: str, path: str | Path) -> None:
        """Name a folder; `cache_root` is then used as that of an option is. Raises RegistryError for a taken name.

        `mapping["paths"][name] = path` changes one that is taken.
        """
        if dict.get(self.paths, name, str(path)) != str(path):
            way_out = f'registry.mapping["paths"]["{name}"] = … changes it'
            raise RegistryError(f"path '{name}'", f"is {self.paths[name]}", way_out)
        self.paths[name] = str(path)

    def get_path(self, name: str) -> str:
        """`cache_root`, `library_root` (where `configs/` lies), `repo_root`, what a run or a script registered.

        Raises RegistryError for another name, where LAVIS gives None.
        """
        try:
            return self.paths[name]
        except KeyError as error:
            known = {*self.paths, "cache_root", "library_root", "repo_root"}
            raise RegistryError(f"path '{name}'", "not registered", nearest(name, known)) from error

    def register(self, name: str, value: Any) -> None:
        """Keep a value under a dotted name, over one that is there."""
        *sections, last = name.split(".")
        place: dict[str, Any] = self.state
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value

    def get(self, name: str, default: Any = None, no_warning: bool = False) -> Any:
        """The value under a dotted name, else `default` with a warning."""
        value: Any = self.state
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                if not no_warning:
                    log.warning("registry has no '%s'; %r is taken", name, default)
                return default
            value = value[part]
        return value

    def unregister(self, name: str) -> Any:
        """Take a value out, and return it; None where there is none."""
        return self.state.pop(name, None)

    def get_builder_class(self, name: str) -> Callable[..., Any]:
        """The builder of a data set (`coco_caption`) or of a shape (`image_caption`); call it as LAVIS' class."""
        datasets = import_module("lavis_ext.datasets.builders")
        if name in datasets.names() and name not in builders._items:
            builder: Callable[..., Any] = datasets.builder_class(name)
            return builder
        try:
            return builders.get(name)
        except RegistryError as error:
            if outside := out_of_scope("dataset", name):
                raise UsageError(f"data set '{name}'", outside, IN_LAVIS) from error
            known = [*datasets.names(), *builders.names()]
            raise UsageError(f"data set '{name}'", "not known", near(name, known) or DATASETS) from error

    def list_datasets(self) -> list[str]:
        """The names of all data sets that a card declares or a class of LAVIS' kind builds."""
        found: list[str] = import_module("lavis_ext.datasets.builders").names()
        return sorted({*found, *(name for name, item in builders._items.items() if isinstance(item, type))})


_FIRST_STATE = {"MAX_INT": sys.maxsize, "SPLIT_NAMES": ["train", "val", "test"]}
registry = Facade()


__all__ = [
    "Facade",
    "Registry",
    "RegistryError",
    "builders",
    "detectors",
    "load_plugin_file",
    "load_plugins",
    "lr_schedulers",
    "metrics",
    "models",
    "objectives",
    "origin",
    "processors",
    "registry",
    "runners",
    "tasks",
]
