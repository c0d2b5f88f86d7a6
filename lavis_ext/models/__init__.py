"""Models by name: BLIP-2's first stage, its second stage with a language model, and VPGTrans' projector."""

from lavis_ext.models.zoo import (
    build_model,
    default_config,
    load_model,
    load_model_and_preprocess,
    load_preprocess,
    model_zoo,
)

__all__ = ["build_model", "default_config", "load_model", "load_model_and_preprocess", "load_preprocess", "model_zoo"]
