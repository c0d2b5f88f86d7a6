"""Processors by LAVIS' names, with LAVIS' results: picture → tensor, text → text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavis_ext.common.config.schema import ProcessorConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import processors


def load_processor(name: str, cfg: Mapping[str, Any] | ProcessorConfig | None = None) -> Any:
    """A registered processor from its arguments (LAVIS' function); raises ConfigError for an unknown name or key.

    One without LAVIS' `from_config` is called with the arguments by keyword.
    """
    factory: Any = processors.get(name)
    if hasattr(factory, "from_config"):
        return factory.from_config(cfg)
    arguments = dict(cfg.args if isinstance(cfg, ProcessorConfig) else cfg or {})
    arguments.pop("name", None)
    try:
        return factory(**arguments)
    except TypeError as error:
        raise ConfigError(f"processor '{name}'", str(error), "correct its arguments") from error


def build_processor(config: ProcessorConfig | None) -> Any:
    """The processor that a data set's YAML names, or None where it names none."""
    return None if config is None else load_processor(config.name, config)


__all__ = ["build_processor", "load_processor"]
