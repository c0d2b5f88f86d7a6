"""LAVIS' module name: CLIP's ViT-L, BLIP-2's smaller tower, by itself."""

from collections.abc import Mapping
from typing import Any

from lavis_ext.models.parts import VisionTower as VisionTransformer
from lavis_ext.models.parts import build_tower, load_tower


def create_clip_vit_L(  # noqa: N802
    img_size: int = 224,
    use_checkpoint: bool = False,
    precision: str = "fp16",
    *,
    weights: str | None = "",
    sizes: Mapping[str, Any] = {},
) -> VisionTransformer:
    """The tower without its last block, with weights and sizes as `create_eva_vit_g` has them."""
    tower = build_tower("clip_L", img_size, sizes, use_checkpoint, precision)
    if weights is not None:
        load_tower(tower, "clip_L", weights)
    return tower


__all__ = ["VisionTransformer", "create_clip_vit_L"]
