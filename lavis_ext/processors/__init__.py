"""Processors by LAVIS' names, with LAVIS' results: picture → tensor, text → text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from lavis_ext.common.config.schema import ProcessorConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.names import imported_on_use
from lavis_ext.common.registry import processors

if TYPE_CHECKING:
    import torch

    from lavis_ext.processors.base_processor import BaseProcessor
    from lavis_ext.processors.blip_processors import (
        Blip2ImageTrainProcessor,
        BlipCaptionProcessor,
        BlipImageEvalProcessor,
        BlipImageTrainProcessor,
        BlipQuestionProcessor,
    )
    from lavis_ext.processors.clip_processors import ClipImageEvalProcessor, ClipImageTrainProcessor
    from lavis_ext.processors.instruction_text_processors import BlipInstructionProcessor

_drawing: ContextVar[torch.Generator | None] = ContextVar("drawing", default=None)


@contextmanager
def drawing_from(rng: torch.Generator | None) -> Iterator[None]:
    """Processors of ours that are called without a generator in this block, and thread, draw from `rng`."""
    token = _drawing.set(rng)
    try:
        yield
    finally:
        _drawing.reset(token)


def current_rng() -> torch.Generator | None:
    """The generator of the block that this is called in; None outside of one: torch's global."""
    return _drawing.get()


def uint8_of(processor: Any) -> Callable[..., Any] | None:
    """What makes a picture uint8 [3,S,S], with a generator; None for a processor that only a call describes.

    A class that defines a call of its own, or holds a `transform`, over one of ours is of the second kind.
    """
    if "transform" in getattr(processor, "__dict__", {}):
        return None
    for kind in type(processor).__mro__:
        if "uint8" in vars(kind):
            found: Callable[..., Any] = processor.uint8
            return found
        if "__call__" in vars(kind) and kind.__name__ != "BaseProcessor":
            return None
    return getattr(processor, "uint8", None)


def load_processor(name: str, cfg: Mapping[str, Any] | ProcessorConfig | None = None) -> Any:
    """A registered processor from its arguments (LAVIS' function); raises ConfigError for an unknown name or key.

    One without LAVIS' `from_config` is called with the arguments by keyword.
    """
    factory: Any = processors.get(name)
    arguments = dict(cfg.args if isinstance(cfg, ProcessorConfig) else cfg or {})
    if is_dataclass(factory) and hasattr(factory, "from_config"):
        return factory.from_config(arguments)
    if hasattr(factory, "from_config"):
        from omegaconf import OmegaConf  # a tenth of a second, which `list` need not wait

        # a node: classes in LAVIS' manner read `cfg.image_size` and `cfg.get("mean")`
        node = OmegaConf.create({"name": name, **arguments}, flags={"allow_objects": True})
        return factory.from_config(None if cfg is None else node)
    arguments.pop("name", None)
    try:
        return factory(**arguments)
    except TypeError as error:
        raise ConfigError(f"processor '{name}'", str(error), "correct its arguments") from error


def build_processor(config: ProcessorConfig | None) -> Any:
    """The processor that a data set's YAML names, or None where it names none."""
    return None if config is None else load_processor(config.name, config)


_HOME = {
    "BaseProcessor": "base_processor",
    "Blip2ImageTrainProcessor": "blip_processors",
    "BlipCaptionProcessor": "blip_processors",
    "BlipImageEvalProcessor": "blip_processors",
    "BlipImageTrainProcessor": "blip_processors",
    "BlipInstructionProcessor": "instruction_text_processors",
    "BlipQuestionProcessor": "blip_processors",
    "ClipImageEvalProcessor": "clip_processors",
    "ClipImageTrainProcessor": "clip_processors",
}
__all__ = [
    "BaseProcessor",
    "Blip2ImageTrainProcessor",
    "BlipCaptionProcessor",
    "BlipImageEvalProcessor",
    "BlipImageTrainProcessor",
    "BlipInstructionProcessor",
    "BlipQuestionProcessor",
    "ClipImageEvalProcessor",
    "ClipImageTrainProcessor",
    "build_processor",
    "current_rng",
    "drawing_from",
    "load_processor",
    "uint8_of",
]
__getattr__ = imported_on_use(__name__, _HOME)
