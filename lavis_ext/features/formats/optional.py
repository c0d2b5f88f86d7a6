"""Libraries that only some formats need: imported at the first use, named where they are absent."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lavis_ext.errors import ConfigError


def need(module: str, form: str) -> Any:
    """A module of the extra `features`; raises ConfigError where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        way_out = "pip install 'lavis_ext[features]'"
        raise ConfigError(form, f"needs {module}, which cannot be imported ({error})", way_out) from error
