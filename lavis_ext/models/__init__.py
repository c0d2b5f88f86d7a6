"""Models by name: BLIP-2's first stage, its second stage with a language model, and VPGTrans' projector."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lavis_ext.models.zoo import (
    build_model,
    default_config,
    load_model,
    load_model_and_preprocess,
    load_preprocess,
    model_zoo,
)

if TYPE_CHECKING:
    from lavis_ext.models.base_model import BaseModel
    from lavis_ext.models.blip2_models import (
        Blip2ITM,
        Blip2LLaMA,
        Blip2OPT,
        Blip2Qformer,
        Blip2T5,
        Blip2T5Instruct,
        Blip2Vicuna,
        Blip2VicunaInstruct,
    )

__all__ = [
    "BaseModel",
    "Blip2ITM",
    "Blip2LLaMA",
    "Blip2OPT",
    "Blip2Qformer",
    "Blip2T5",
    "Blip2T5Instruct",
    "Blip2Vicuna",
    "Blip2VicunaInstruct",
    "build_model",
    "default_config",
    "load_model",
    "load_model_and_preprocess",
    "load_preprocess",
    "model_zoo",
]


def __getattr__(name: str) -> Any:
    """Import the classes on first use: they need torch."""
    if name not in __all__:
        raise AttributeError(f"module 'lavis_ext.models' has no attribute '{name}'")
    return getattr(import_module(f"lavis_ext.models.{'base_model' if name == 'BaseModel' else 'blip2_models'}"), name)
