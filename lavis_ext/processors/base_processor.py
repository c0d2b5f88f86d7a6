"""What processors share: they are dataclasses built from a mapping, and an unknown argument is an error."""

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
        """Build from a mapping (its `name` passed over) or ProcessorConfig; raises ConfigError for an unknown key."""
        given = dict(cfg.args if isinstance(cfg, ProcessorConfig) else cfg or {})
        given.pop("name", None)
        door = ConfigDecoder()
        built = door.build(cls, given, origin(cls))
        door.close()
        assert built is not None  # no processor of ours has a field without a default
        return built

    @classmethod
    def build(cls, **kwargs: Any) -> Self:
        """`from_config` by keywords (LAVIS' spelling)."""
        return cls.from_config(kwargs)
