"""The base of processors: dataclasses that are built from a mapping; an unknown argument is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lavis_ext.common.config.decode import ConfigDecoder
from lavis_ext.common.config.schema import ProcessorConfig
from lavis_ext.common.config.yamlio import plain_of
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import origin

if TYPE_CHECKING:
    from typing_extensions import Self

K = TypeVar("K", bound=type)


def settable(kind: K) -> K:
    """A frozen dataclass whose objects, and those of plain subclasses, take assignments, as LAVIS' do."""
    kind.__setattr__, kind.__delattr__ = object.__setattr__, object.__delattr__  # type: ignore[assignment]
    return kind


class BaseProcessor:
    """Base of processors: dataclasses, or classes in LAVIS' manner with `__call__` or `transform`.

    `BaseProcessor()` itself gives each item back.
    """

    transform: Callable[[Any], Any] = staticmethod(lambda item: item)

    def __call__(self, item: Any) -> Any:
        """`transform` of the item."""
        return self.transform(item)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | ProcessorConfig | None = None) -> Self:
        """Build from a mapping (`name` is ignored) or ProcessorConfig; raises ConfigError for an unknown key.

        A class that is no dataclass and does not define this takes no arguments, as in LAVIS.
        """
        plain: Any = plain_of(cfg)
        given = dict(plain.args if isinstance(plain, ProcessorConfig) else plain or {})
        given.pop("name", None)
        if not is_dataclass(cls):
            if given:
                raise ConfigError(origin(cls), f"takes no {', '.join(given)}", "define from_config(cls, cfg) in it")
            return cls()
        decoder = ConfigDecoder()
        built = decoder.build(cls, given, origin(cls))
        decoder.close()
        assert built is not None  # all fields of our processors have defaults
        return built

    @classmethod
    def build(cls, **kwargs: Any) -> Self:
        """`from_config` by keywords (LAVIS' spelling)."""
        from omegaconf import OmegaConf

        return cls.from_config(OmegaConf.create(kwargs))
