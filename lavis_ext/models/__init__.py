"""Models by name."""

from lavis_ext.models.zoo import (
    build_model,
    default_config,
    load_model,
    load_model_and_preprocess,
    load_preprocess,
    model_zoo,
)

__all__ = ["build_model", "default_config", "load_model", "load_model_and_preprocess", "load_preprocess", "model_zoo"]
