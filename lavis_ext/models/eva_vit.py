"""LAVIS' module name: EVA's ViT-g, BLIP-2's tower, by itself."""

from collections.abc import Mapping
from typing import Any

from lavis_ext.models.parts import VisionTower as VisionTransformer
from lavis_ext.models.parts import build_tower, load_tower, require_no_drop_path


def create_eva_vit_g(
    img_size: int = 224,
    drop_path_rate: float = 0.0,
    use_checkpoint: bool = False,
    precision: str = "fp16",
    *,
    weights: str | None = "",
    sizes: Mapping[str, Any] = {},
) -> VisionTransformer:
    """The tower with its published weights, those of the file `weights`, or random ones (None).

    `sizes` are transformers' keys over the published ones. Raises ConfigError for a drop path, 0.4 by default in LAVIS;
    NetworkError where the weights cannot be had.
    """
    require_no_drop_path("create_eva_vit_g", drop_path_rate)
    tower = build_tower("eva_clip_g", img_size, sizes, use_checkpoint, precision)
    if weights is not None:
        load_tower(tower, "eva_clip_g", weights)
    return tower


__all__ = ["VisionTransformer", "create_eva_vit_g"]
