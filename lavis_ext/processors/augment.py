"""BLIP's RandomAugment on uint8 tensors: the ten operations of `blip_image_train`, after their published definitions.

BLIP (Li et al. 2022) draws two of ten operations, applies each with probability one half, and scales them by
strength/10. Upstream runs them in OpenCV and draws from numpy's global generator; here they are torch operations with
one generator. Lookup tables and sums give equal pixels; warps interpolate at full precision, where OpenCV rounds to
1/32 pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FILL = 128.0
MAX_STRENGTH = 10
Sign = float


def identity(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """No change."""
    return image


def auto_contrast(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Stretch each channel to 0 … 255."""
    return torch.stack([look_up(channel, _stretch_table(channel)) for channel in image])


def equalize(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Flatten each channel's histogram (Pillow's ImageOps.equalize)."""
    return torch.stack([_equalize_channel(channel) for channel in image])


def brightness(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Multiply by 0.1 … 1.9."""
    table = torch.arange(256, dtype=torch.float32) * enhance_factor(strength)
    return look_up(image, table.clamp(0, 255))


def sharpness(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Blend with a smoothed copy (centre 5, neighbours 1, over 13) by 0.1 … 1.9; the outermost pixels stay."""
    kernel = torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 5
    pixels = image.float()
    smooth = (F.conv2d(pixels[:, None], kernel)[:, 0] / 13).round()
    inner = pixels[:, 1:-1, 1:-1]
    pixels[:, 1:-1, 1:-1] = (smooth + enhance_factor(strength) * (inner - smooth)).clamp(0, 255)
    return pixels.to(torch.uint8)


def shear_x(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Shift each row by up to 0.3 of its index."""
    return _warp(image, [[1.0, sign * strength / MAX_STRENGTH * 0.3, 0.0], [0.0, 1.0, 0.0]])


def shear_y(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Shift each column by up to 0.3 of its index."""
    return _warp(image, [[1.0, 0.0, 0.0], [sign * strength / MAX_STRENGTH * 0.3, 1.0, 0.0]])


def translate_x(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Shift left or right by up to 10 pixels."""
    return _warp(image, [[1.0, 0.0, -sign * strength / MAX_STRENGTH * 10], [0.0, 1.0, 0.0]])


def translate_y(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Shift up or down by up to 10 pixels."""
    return _warp(image, [[1.0, 0.0, 0.0], [0.0, 1.0, -sign * strength / MAX_STRENGTH * 10]])


def rotate(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Turn about the centre by up to 30 degrees (OpenCV's getRotationMatrix2D)."""
    height, width = image.shape[-2:]
    angle = math.radians(sign * strength / MAX_STRENGTH * 30)
    cos, sin, x, y = math.cos(angle), math.sin(angle), width / 2, height / 2
    return _warp(image, [[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]])


OPERATIONS: tuple[Callable[[Tensor, float, Sign], Tensor], ...] = (
    identity,
    auto_contrast,
    brightness,
    sharpness,
    equalize,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
)


def random_augment(image: Tensor, count: int, strength: float, rng: torch.Generator | None) -> Tensor:
    """uint8 [3,H,W] → uint8 [3,H,W]: `count` operations drawn with replacement, each applied with probability 0.5."""
    for number in torch.randint(len(OPERATIONS), (count,), generator=rng).tolist():
        applies, negative = (torch.rand(2, generator=rng) < 0.5).tolist()
        if applies:
            image = OPERATIONS[number](image, strength, -1.0 if negative else 1.0)
    return image


def enhance_factor(strength: float) -> float:
    """The weight of the picture against what it is blended with."""
    return strength / MAX_STRENGTH * 1.8 + 0.1


def look_up(image: Tensor, table: Tensor) -> Tensor:
    """Each value replaced by that of a table of 256, cut to whole numbers."""
    return table.to(torch.uint8)[image.long()]


def _stretch_table(channel: Tensor) -> Tensor:
    table = torch.arange(256, dtype=torch.float64)
    low, high = channel.min().item(), channel.max().item()
    if high <= low:
        return table
    scale = 255 / (high - low)
    return (table * scale - low * scale).clamp(0, 255)


def _equalize_channel(channel: Tensor) -> Tensor:
    counts = torch.bincount(channel.flatten().long(), minlength=256)
    used = counts[counts > 0]
    step = int(used[:-1].sum()) // 255
    if step == 0:
        return channel
    before = torch.cat([torch.tensor([step // 2]), counts[:-1]])
    return look_up(channel, (before.cumsum(0) // step).clamp(0, 255))


def _warp(image: Tensor, forward: list[list[float]]) -> Tensor:
    """Move pixels by a 2 × 3 matrix of pixel positions (source → target), bilinearly; pixels from outside are FILL."""
    height, width = image.shape[-2:]
    back = torch.linalg.inv(torch.tensor([*forward, [0.0, 0.0, 1.0]], dtype=torch.float64)).float()
    rows, columns = torch.arange(height, dtype=torch.float32)[:, None], torch.arange(width, dtype=torch.float32)[None]
    x = back[0, 0] * columns + back[0, 1] * rows + back[0, 2]
    y = back[1, 0] * columns + back[1, 1] * rows + back[1, 2]
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    moved = F.grid_sample((image.float() - FILL)[None], grid[None], mode="bilinear", align_corners=True)[0]
    return (moved + FILL).round().clamp(0, 255).to(torch.uint8)
