"""uint8 pixels become normalised float32 in one pass, wherever the batch lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lavis_ext.processors.settings import MEAN, STD


def normalize(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """uint8 [...,3,H,W] → float32: `(x / 255 - mean) / std` as a multiply-add on the tensor's device.

    An accelerator does it in one pass; on a CPU converting first is twice as fast, as mixed types are not vectorised.
    """
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    shape = (-1, 1, 1)
    bias, factor = (value.float().view(shape).to(images.device) for value in (shift, scale))
    if images.device.type == "cpu":
        return images.float().mul_(factor).add_(bias)
    return torch.addcmul(bias, images, factor)


@dataclass(frozen=True)
class Normalizer:
    """`normalize` with the statistics that all data sets of a mixture share."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [...,3,H,W] → float32; anything but uint8 is returned as it is."""
        return normalize(images, self.mean, self.std) if images.dtype == torch.uint8 else images
