"""What processors share: they are dataclasses built from a mapping, and an unknown argument is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from typing_extensions import Self

from lavis_ext.errors import ConfigError, nearest
from lavis_ext.registry import origin
from lavis_ext.schema import ProcessorConfig


class Processor:
    """Base of dataclasses that are registered as processors."""

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | ProcessorConfig | None = None) -> Self:
        """Build from a mapping (its `name` passed over) or ProcessorConfig; raises ConfigError for an unknown key."""
        given = dict(cfg.args if isinstance(cfg, ProcessorConfig) else cfg or {})
        given.pop("name", None)
        known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
        for key in given:
            if key not in known:
                raise ConfigError(f"{origin(cls)} '{key}'", "unknown argument", nearest(key, known))
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()})

    @classmethod
    def build(cls, **kwargs: Any) -> Self:
        """`from_config` by keywords (LAVIS' spelling)."""
        return cls.from_config(kwargs)
