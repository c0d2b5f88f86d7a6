"""Our names in the registry of a real LAVIS (salesforce-lavis): the data sets and processors that it lacks.

`register()` is all that a program needs: `lavis.datasets.builders.load_dataset("laion_coco")` and a LAVIS run YAML then
find them, with the files that `lavis-ext prepare` has fetched. LAVIS is imported when `register` is called.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.decode import read_yaml
from lavis_ext.common.config.resolve import cache_root as our_cache_root
from lavis_ext.common.config.resolve import merge
from lavis_ext.common.errors import DATASETS, UsageError, near
from lavis_ext.common.registry import processors

log = logging.getLogger(__name__)
BROKEN = ("conceptual_caption_3m", "conceptual_caption_12m", "gqa", "laion2B_multi", "nlvr", "snli_ve", "vg_caption")
"""What salesforce-lavis 1.0.2 registers, but with paths of its authors' machines: `register(override=BROKEN)`."""


@dataclass(frozen=True)
class Registered:
    """What `register` has entered; `whole` says whether LAVIS' models could be imported too."""

    builders: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    processors: list[str] = field(default_factory=list)
    whole: bool = True


def register(override: Iterable[str] = (), cache_root: str | Path | None = None) -> Registered:
    """Enter what LAVIS lacks of our data sets and processors; `override` names data sets of its to replace by ours.

    `cache_root` is the folder of our data (default: as everywhere in this package); LAVIS' own data sets keep theirs. A
    second call changes nothing but what `override` adds. Raises UsageError where LAVIS is not installed, or an
    overridden name is not ours.
    """
    wanted = [override] if isinstance(override, str) else list(override)
    names = load_cards().names()
    for name in wanted:
        if name not in names:
            raise UsageError(f"register(override=['{name}'])", "not a data set of ours", near(name, names) or DATASETS)
    whole = open_lavis()
    registry = import_module("lavis.common.registry").registry
    root = our_cache_root(cache_root)
    known = registry.mapping["builder_name_mapping"]
    done = Registered(processors=_register_processors(registry), whole=whole)
    make = import_module("lavis_ext.adapters.lavis_data").builder_class
    for name in names:
        if name in known and name not in wanted:
            continue
        (done.replaced if name in known else done.builders).append(name)
        known.pop(name, None)
        registry.register_builder(name)(make(name, root))
    refresh_zoo()
    return done


def open_lavis() -> bool:
    """Import LAVIS; False where it comes without its models, which do not import with a transformers of today.

    Then data sets, processors, tasks and runners are there. Raises UsageError where LAVIS is not installed, or misses
    something that those need.
    """
    loaded = sys.modules.get("lavis")
    if loaded is not None:
        return getattr(loaded, "__file__", None) is not None
    if find_spec("lavis") is None:
        raise UsageError(
            "lavis", "not installed", "pip install --no-deps salesforce-lavis==1.0.2; see docs/adapters.md"
        )
    try:
        import_module("lavis")
    except Exception as error:  # its models reach into other libraries' insides, which fail in many ways
        log.warning("LAVIS comes without its models, which do not import here: %s", error)
    else:
        return True
    try:
        _open_without_models()
    except Exception as error:
        sys.modules.pop("lavis", None)
        what = f"cannot be imported, not even without its models: {type(error).__name__}: {error}"
        raise UsageError("lavis", what, "docs/adapters.md lists what it needs") from error
    return False


def _open_without_models() -> None:
    """Make a package `lavis` without running its `__init__`, and register the paths that this would have set."""
    spec = find_spec("lavis")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("lavis is no package")
    folder = Path(next(iter(spec.submodule_search_locations)))
    package = ModuleType("lavis")
    package.__path__, package.__spec__ = [str(folder)], spec
    sys.modules["lavis"] = package
    registry: Any = import_module("lavis.common.registry").registry
    settings = read_yaml(folder / "configs" / "default.yaml")[0]
    root = os.path.join(folder, "..")  # noqa: PTH118 (as LAVIS writes it)
    paths = {"library_root": str(folder), "repo_root": root}
    paths["cache_root"] = os.path.join(root, settings["env"]["cache_root"])  # noqa: PTH118
    for name, path in paths.items():
        if registry.get_path(name) is None:
            registry.register_path(name, path)
    registry.register("MAX_INT", sys.maxsize)
    registry.register("SPLIT_NAMES", ["train", "val", "test"])
    for part in ("common", "datasets.builders", "processors", "tasks"):
        import_module(f"lavis.{part}")
    for name, module in list(sys.modules.items()):
        if name.startswith("lavis.") and name.count(".") == 1 and name != "lavis.models":
            setattr(package, name.removeprefix("lavis."), module)


def refresh_zoo() -> None:
    """LAVIS lists its data sets once, when it is imported: list them again."""
    zoo = import_module("lavis.datasets.builders").dataset_zoo
    zoo.dataset_zoo = type(zoo)().dataset_zoo


def _register_processors(registry: Any) -> list[str]:
    """Enter the processors that LAVIS lacks, as classes of its kind."""
    base = import_module("lavis.processors.base_processor").BaseProcessor
    lacking = [name for name in processors.names() if registry.get_processor_class(name) is None]
    entered = []
    for name in lacking:
        ours: Any = processors.get(name)
        if not isinstance(ours, type):
            log.warning("processor '%s' (%s) is no class, LAVIS cannot take it", name, processors.find(name))
            continue
        registry.register_processor(name)(type(ours.__name__, (_FromLavis, ours, base), {"__doc__": ours.__doc__}))
        entered.append(name)
    return entered


class _FromLavis:
    """Takes LAVIS' DictConfig where ours take plain mappings."""

    @classmethod
    def from_config(cls, cfg: Any = None) -> Any:
        """The processor with the arguments of a config."""
        return super().from_config(merge(cfg) if cfg else None)  # type: ignore[misc]
