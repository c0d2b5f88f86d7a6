"""A LAVIS-style, config-driven registry plugin for vision-language data: declare, fetch, check, build, train.

The public names are loaded on first use, so that `import lavis_ext` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lavis_ext.common.config.resolve import load_config
    from lavis_ext.common.registry import registry
    from lavis_ext.datasets.builders import load_dataset
    from lavis_ext.models import load_model, load_model_and_preprocess, model_zoo
    from lavis_ext.processors import load_processor

__version__ = "0.1.0"
_HOME = {
    "load_config": "lavis_ext.common.config.resolve",
    "load_dataset": "lavis_ext.datasets.builders",
    "load_model": "lavis_ext.models",
    "load_model_and_preprocess": "lavis_ext.models",
    "load_processor": "lavis_ext.processors",
    "model_zoo": "lavis_ext.models",
    "registry": "lavis_ext.common.registry",
}
__all__ = [
    "load_config",
    "load_dataset",
    "load_model",
    "load_model_and_preprocess",
    "load_processor",
    "model_zoo",
    "registry",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lavis_ext' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
