"""Crops and resizing of uint8 RGB: torch's antialiased bicubic, and where torchvision's random crop would fall."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle of pixels: first row, first column, height, width."""

    top: int
    left: int
    height: int
    width: int


def to_tensor(array: np.ndarray) -> Tensor:
    """uint8 [H,W,3] → uint8 [3,H,W] over the same memory, channels last."""
    return torch.from_numpy(array if array.flags.writeable else array.copy()).permute(2, 0, 1)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 [3,H,W] → uint8 [3,height,width] by torch's antialiased bicubic.

    Equal to Pillow's to rounding (0.005 of 255 on average). Both take the horizontal pass first; the newest Pillow
    takes whichever is cheaper, which moves its own results by 0.2 of 255 where that is the vertical one.
    """
    if image.shape[-2:] == (height, width):
        return image.contiguous()
    return F.interpolate(image[None], size=(height, width), mode="bicubic", antialias=True)[0].contiguous()


def crop(image: Tensor, box: Box) -> Tensor:
    """The pixels of `image` [3,H,W] inside `box`, not copied."""
    return image[:, box.top : box.top + box.height, box.left : box.left + box.width]


def centre_crop(image: Tensor, size: int) -> Tensor:
    """The middle `size` × `size` pixels, rounded as torchvision does; `image` must be at least that large."""
    height, width = image.shape[-2:]
    return crop(image, Box(round((height - size) / 2.0), round((width - size) / 2.0), size, size)).contiguous()


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the shorter side is `size`, the longer rounded down (torchvision's Resize(int))."""
    long = int(size * max(height, width) / min(height, width))
    return (size, long) if height <= width else (long, size)


def random_box(height: int, width: int, scale: tuple[float, float], rng: torch.Generator | None) -> Box:
    """Where torchvision's RandomResizedCrop would cut, drawn in the same order.

    An area share uniform in `scale` and an aspect ratio log-uniform in 3/4 … 4/3, up to ten times until it fits; else
    the largest central box of an allowed ratio. With `rng` None torch's global generator is used, and the same seed
    gives the box that torchvision gives.
    """
    low, high = torch.log(torch.tensor(RATIO)).tolist()  # in single precision throughout, as torchvision does
    for _ in range(ATTEMPTS):
        area = height * width * _uniform(*scale, rng).item()
        ratio = torch.exp(_uniform(low, high, rng)).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(_below(height - h + 1, rng), _below(width - w + 1, rng), h, w)
    return central_box(height, width)


def central_box(height: int, width: int) -> Box:
    """The largest box in the middle whose ratio is allowed."""
    h, w = height, width
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def flip_half(image: Tensor, rng: torch.Generator | None) -> Tensor:
    """The image, mirrored left to right in half of all draws."""
    return image.flip(-1) if torch.rand(1, generator=rng).item() < 0.5 else image


def _uniform(low: float, high: float, rng: torch.Generator | None) -> Tensor:
    return torch.empty(1).uniform_(low, high, generator=rng)


def _below(stop: int, rng: torch.Generator | None) -> int:
    return int(torch.randint(0, stop, (1,), generator=rng).item())
