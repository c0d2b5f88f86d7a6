"""Names in YAML, objects in code: one registry a kind, filled on first need, and LAVIS' facade over them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, ClassVar, Generic, TypeVar

from lavis_ext.errors import ConfigError, LavisExtError, UsageError, nearest

log = logging.getLogger(__name__)
T = TypeVar("T")
Item = TypeVar("Item")
PLUGIN_GROUP = "lavis_ext.plugins"


class RegistryError(ConfigError):
    """A name that is registered twice, or not at all."""


class Registry(Generic[T]):
    """Maps names to objects of one kind; the modules of `package` are imported on first need."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Item], Item]:
        """Decorator that enters an object under `name`; a name taken by another object is an error."""

        def add(item: Item) -> Item:
            held: Any = self._items.setdefault(name, item)  # type: ignore[arg-type]
            if held is not item:
                raise RegistryError(
                    f"{self.kind} '{name}'", f"already registered by {origin(held)}", "choose another name"
                )
            return item

        return add

    def get(self, name: str) -> T:
        """The object of that name; raises RegistryError with the nearest names."""
        self._load()
        if name not in self._items:
            raise RegistryError(f"{self.kind} '{name}'", "not registered", nearest(name, self._items))
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._items)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def find(self, name: str) -> str:
        """Where an object comes from, as `module.qualified_name`."""
        return origin(self.get(name))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        try:
            package = import_module(self.package)
            for module in iter_modules(getattr(package, "__path__", [])):
                import_module(f"{self.package}.{module.name}")
        except Exception:
            self._loaded = False  # the next call says the cause again, not that a name is unknown
            raise
        load_plugins()


def origin(item: object) -> str:
    """`module.qualified_name` of a registered object."""
    named = item if hasattr(item, "__qualname__") else type(item)
    return f"{named.__module__}.{named.__qualname__}"


@cache
def load_plugins() -> tuple[str, ...]:
    """Import every entry point of `lavis_ext.plugins` once; one that fails is a warning that names it."""
    loaded = []
    for point in entry_points(group=PLUGIN_GROUP):
        try:
            point.load()
        except Exception as error:
            log.warning("plugin %s (%s) does not load: %s", point.name, point.value, error)
        else:
            loaded.append(point.name)
    return tuple(loaded)


builders: Registry[Callable[..., Any]] = Registry("builder", "lavis_ext.builders")
processors: Registry[Callable[..., Any]] = Registry("processor", "lavis_ext.processors")
models: Registry[Any] = Registry("model", "lavis_ext.models")
objectives: Registry[Callable[..., Any]] = Registry("objective", "lavis_ext.objectives")
tasks: Registry[Any] = Registry("task", "lavis_ext.tasks")
runners: Registry[Any] = Registry("runner", "lavis_ext.runner")
lr_schedulers: Registry[Any] = Registry("lr_scheduler", "lavis_ext.runner")
detectors: Registry[Callable[..., Any]] = Registry("detector", "lavis_ext.features.detectors")


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
        "runner": runners,
        "lr_scheduler": lr_schedulers,
        "detector": detectors,
    }

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
        return sorted([*(name for three in verbs for name in three), "list_datasets"])

    def get_builder_class(self, name: str) -> Callable[..., Any]:
        """The builder of a data set (`coco_caption`) or of a shape (`image_caption`); call it as LAVIS' class."""
        datasets = import_module("lavis_ext.builders")
        if name in datasets.names():
            builder: Callable[..., Any] = datasets.builder_class(name)
            return builder
        try:
            return builders.get(name)
        except RegistryError as error:
            known = [*datasets.names(), *builders.names()]
            raise UsageError(f"data set '{name}'", "not known", nearest(name, known)) from error

    def list_datasets(self) -> list[str]:
        """The names of all data sets that a card declares."""
        found: list[str] = import_module("lavis_ext.builders").names()
        return found


registry = Facade()


def __getattr__(name: str) -> Any:
    """The facade's names on the module itself: `from lavis_ext import registry` is this module."""
    return getattr(registry, name)


__all__ = [
    "Facade",
    "LavisExtError",
    "Registry",
    "RegistryError",
    "builders",
    "detectors",
    "load_plugins",
    "lr_schedulers",
    "models",
]
__all__ += ["objectives", "origin", "processors", "registry", "runners", "tasks"]
