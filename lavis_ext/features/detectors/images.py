"""Images on their way into a detector: checked, resized as its frame resizes, BGR with the mean taken off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavis_ext.errors import UsageError
from lavis_ext.features.layout import Array


@dataclass(frozen=True)
class Prepared:
    """An image as the network takes it: `pixels` [1, 3, h, w] float32; `scale` (y, x): its pixels per given pixel."""

    pixels: Tensor
    scale: tuple[float, float]

    @property
    def height(self) -> int:
        """Rows of `pixels`."""
        return self.pixels.shape[2]

    @property
    def width(self) -> int:
        """Columns of `pixels`."""
        return self.pixels.shape[3]


def checked(image: Array) -> Array:
    """The image, if it is uint8 [H, W, 3] with at least one pixel; raises UsageError for everything else."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UsageError("image", f"expected uint8 [H, W, 3], got {found}", "convert it to RGB first")
    if not image.size:
        raise UsageError("image", f"has no pixels: {list(image.shape)}", "leave it out")
    return image


def prepare_caffe(image: Array, mean: Sequence[float], short: int, long: int) -> Prepared:
    """As bottom-up-attention's `_get_image_blob`: mean off, then OpenCV's bilinear resize of float32 by one factor.

    The shorter side becomes `short`, unless the longer one would pass `long`.
    """
    height, width = image.shape[:2]
    scale = short / min(height, width)
    if round(scale * max(height, width)) > long:
        scale = long / max(height, width)
    pixels = resize_bilinear(_centred(image, mean), scale)
    return Prepared(pixels[None], (scale, scale))


def prepare_maskrcnn(image: Array, mean: Sequence[float], short: int, long: int) -> Prepared:
    """As maskrcnn-benchmark's `Resize` and `Normalize`: Pillow's bilinear resize of uint8, then the mean off.

    The shorter side becomes `short`, unless the longer one would pass `long`; the other side is rounded down.
    """
    height, width = image.shape[:2]
    size = short
    if max(height, width) / min(height, width) * size > long:
        size = max(round(long * min(height, width) / max(height, width)), 1)
    tall, wide = (int(size * height / width), size) if width < height else (size, int(size * width / height))
    if (height, width) != (tall, wide):
        image = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR))
    return Prepared(_centred(image, mean)[None], (tall / height, wide / width))


def _centred(image: Array, mean: Sequence[float]) -> Tensor:
    """uint8 [H, W, 3] RGB → float32 [3, H, W] BGR without its mean."""
    pixels = torch.from_numpy(image[:, :, ::-1].astype(np.float32)).permute(2, 0, 1)
    return pixels - torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)


def resize_bilinear(pixels: Tensor, scale: float) -> Tensor:
    """[C, H, W] resized by `scale` as OpenCV's `INTER_LINEAR` with `fx` and `fy`: no smoothing, edges repeated.

    The size is rounded; positions follow the factor itself, not the quotient of the rounded sizes.
    """
    for axis in (1, 2):
        size = pixels.shape[axis]
        at = (torch.arange(max(round(size * scale), 1), dtype=torch.float64) + 0.5) / scale - 0.5
        low = at.floor().long().clamp(0, size - 1)
        high = (low + 1).clamp(max=size - 1)
        share = (at - low).clamp(0, 1).to(pixels.dtype).view((-1, 1) if axis == 1 else (-1,))
        pixels = pixels.index_select(axis, low) * (1 - share) + pixels.index_select(axis, high) * share
    return pixels
