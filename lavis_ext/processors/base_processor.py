"""The base of processors: dataclasses that are built from a mapping; an unknown argument is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import Self

from lavis_ext.common.config.decode import ConfigDecoder
from lavis_ext.common.config.schema import ProcessorConfig
from lavis_ext.common.registry import origin


class BaseProcessor:
    """Base of dataclasses that are registered as processors."""

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | ProcessorConfig | None = None) -> Self:
        """Build from a mapping (`name` is ignored) or ProcessorConfig; raises ConfigError for an unknown key."""
        given = dict(cfg.args if isinstance(cfg, ProcessorConfig) else cfg or {})
        given.pop("name", None)
        decoder = ConfigDecoder()
        built = decoder.build(cls, given, origin(cls))
        decoder.close()
        assert built is not None  # all fields of our processors have defaults
        return built

    @classmethod
    def build(cls, **kwargs: Any) -> Self:
        """`from_config` by keywords (LAVIS' spelling)."""
        return cls.from_config(kwargs)
