"""Models by name: BLIP-2's first stage, its second stage with a language model, and VPGTrans' projector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_ext.common.names import imported_on_use
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
        Blip2Base,
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
    "Blip2Base",
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

_HOME = {
    "BaseModel": "base_model",
    **dict.fromkeys((name for name in __all__ if name.startswith("Blip2")), "blip2_models"),
}
__getattr__ = imported_on_use(__name__, _HOME)
