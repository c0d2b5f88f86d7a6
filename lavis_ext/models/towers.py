"""Any vision tower of transformers' before a Q-Former: CLIP, SigLIP, SigLIP 2, DINOv2 and their like."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lavis_ext.common.errors import ConfigError

ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit", "siglip2_vision_model")
"""Kinds that fit their positions to a picture without being asked."""
POOLING = ("head", "pooler", "attention_pooling")
"""What some towers compute from their output. The Q-Former does not see it, so it is left out: in a trained tower its
weights would have no gradient, which DDP refuses."""
NORM_EPS = 1e-6
TRIED = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model", "dinov2", "dinov2_with_registers",
         "dinov3_vit", "vit", "deit", "beit", "convnext")  # fmt: skip
"""Kinds that are known to see pictures as a Q-Former needs them; of others two are shown to a tower first."""


class Unused(nn.Module):
    """In the place of a part whose output nobody reads."""

    def forward(self, hidden: Tensor, *_: Any) -> Tensor:
        """What it is given."""
        return hidden


class VisionTower(nn.Module):
    """A tower with BLIP-2's norm behind it, in the place of transformers' Blip2VisionModel.

    `tower` is transformers' model; its output [B, P, W] (of a convolutional one [B, W, h, w]) is what the Q-Former
    attends to, or one of its hidden states, by `layer`. Raises ConfigError for pictures of a size that it has no
    positions for, unless they are to be interpolated.
    """

    def __init__(self, tower: Any, size: int, layer: int = -1, interpolate: bool = False) -> None:
        super().__init__()
        settings = tower.config
        self.tower, self.layer, self.config = tower, layer, settings
        self.post_layernorm = nn.LayerNorm(width_of(settings), eps=NORM_EPS)
        for name in unused_parts(settings):
            inner = getattr(tower, "vision_model", tower)
            if isinstance(getattr(inner, name, None), nn.Module):
                setattr(inner, name, Unused())
        takes = inspect.signature(type(tower).forward).parameters
        own, kind = side_of(getattr(settings, "image_size", size)), settings.model_type
        self.fits: dict[str, Any] = {}
        if own != size and kind not in ANY_SIZE:
            if "interpolate_pos_encoding" in takes and interpolate:
                self.fits["interpolate_pos_encoding"] = True
            elif hasattr(settings, "patch_size"):
                way_out = f"set it to {own}" + (", or model.vision_interpolate: True" if takes else "")
                raise ConfigError("model.image_size", f"{size} for a tower of {own}", way_out)
        patch = side_of(getattr(settings, "patch_size", None))
        if isinstance(patch, int) and size % patch:
            raise ConfigError("model.image_size", f"{size} is no multiple of the patch size {patch}", "round it")
        self.patches = patch if "spatial_shapes" in takes else None

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """[B,3,S,S] → `last_hidden_state` [B, P, W], normed."""
        return BaseModelOutputWithPooling(last_hidden_state=self.post_layernorm(self.see(pixel_values)))

    def see(self, pixel_values: Tensor) -> Tensor:
        """[B,3,S,S] → what the tower itself gives, [B, P, W]."""
        images = pixel_values.to(next(self.tower.parameters()).dtype)
        inputs = {"pixel_values": images, **self.fits}
        if self.patches:
            inputs = {**inputs, **as_patches(images, self.patches)}
        hidden = {} if self.layer == -1 else {"output_hidden_states": True}
        out = self.tower(**inputs, **hidden, return_dict=True)
        seen: Tensor = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        return seen.flatten(2).transpose(1, 2) if seen.dim() == 4 else seen


def require_pictures(tower: VisionTower, size: int) -> None:
    """Raise ConfigError for a tower that does not give [B, P, W] of pictures of `size`, or that masks parts of them.

    Two are shown to it, as some towers join those of a batch. What a model of another kind raises is not caught here.
    """
    learning, kind = tower.training, f"a '{tower.config.model_type}'"
    pictures = torch.zeros(2, 3, size, size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        seen = tower.eval().see(pictures)
    tower.train(learning)
    width = tower.post_layernorm.normalized_shape[0]
    if seen.dim() != 3 or len(seen) != 2 or seen.shape[-1] != width:
        what = f"{kind} gives {list(seen.shape)} of two pictures, where a Q-Former reads [2, P, {width}]"
        raise ConfigError("model.vision", what, "name another tower")
    if hasattr(tower.config, "mask_ratio"):
        what = f"{kind} sees a random part of each picture"
        raise ConfigError("model.vision", what, "name another tower, or write vit as model_type of its config.json")


def side_of(given: Any) -> Any:
    """Pixels a side, where a configuration has them as [S, S] too."""
    square = isinstance(given, list | tuple) and len(set(given)) == 1
    return given[0] if square else given


def unused_parts(settings: Any) -> tuple[str, ...]:
    """The parts of a tower behind its output; CLIP's last norm is one, as it sees the pooled output alone."""
    return (*POOLING, *(("post_layernorm",) if settings.model_type == "clip_vision_model" else ()))


def as_patches(images: Tensor, side: int) -> dict[str, Tensor]:
    """Square pictures [B,3,S,S] as SigLIP 2 takes them: patches [B, P, side·side·3], their mask and their grid."""
    count, channels, size, _ = images.shape
    grid = size // side
    cut = images.reshape(count, channels, grid, side, grid, side).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": cut.reshape(count, grid * grid, -1),
        "pixel_attention_mask": torch.ones(count, grid * grid, dtype=torch.long, device=images.device),
        "spatial_shapes": torch.full((count, 2), grid, device=images.device),
    }


def width_of(settings: Any) -> int:
    """How wide a tower's output is."""
    widths = getattr(settings, "hidden_sizes", None)
    return int(widths[-1] if widths else settings.hidden_size)


def stub_of(settings: Any, size: int) -> dict[str, Any]:
    """transformers' `vision_config` that stands in for a tower in a BLIP-2: its width and pictures, no layers."""
    width = width_of(settings)
    return {
        "hidden_size": width,
        "intermediate_size": 8,
        "num_hidden_layers": 0,
        "num_attention_heads": 1,
        "image_size": size,
        "patch_size": size,
        "initializer_range": 0.02,
    }
