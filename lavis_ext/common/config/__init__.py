"""YAML → plain values with places → dataclasses: run files, cards of data sets, and every mistake of them at once.

`Config(args)` is LAVIS' class for scripts; the dataclass of a run file is `schema.Config`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lavis_ext.common.config.script import Config, ConfigValidator, create_runner_config_validator, node_to_dict

__all__ = ["Config", "ConfigValidator", "create_runner_config_validator", "node_to_dict"]


def __getattr__(name: str) -> Any:
    """Import what reads every section only on use."""
    if name not in __all__:
        raise AttributeError(f"module 'lavis_ext.common.config' has no attribute '{name}'")
    return getattr(import_module("lavis_ext.common.config.script"), name)
