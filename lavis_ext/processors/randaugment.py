"""LAVIS' `RandomAugment`: fourteen operations by name, on arrays; a processor of ours draws from ten (`augment.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.errors import ConfigError, nearest
from lavis_ext.common.lavis import refusing
from lavis_ext.processors import augment, current_rng
from lavis_ext.processors.augment import MAX_STRENGTH, Sign, enhance_factor, look_up
from lavis_ext.processors.image import as_rgb, to_tensor

LUMA = (0.114, 0.587, 0.299)
"""Weights of the grey of a picture: OpenCV's for blue, green, red, which upstream gives to red, green, blue."""


def solarize(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Turn values from strength / 10 × 256 on into their negative."""
    values, least = torch.arange(256), int(strength / MAX_STRENGTH * 256)
    return look_up(image, torch.where(values < least, values, 255 - values))


def color(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Blend with its grey by 0.1 … 1.9."""
    factor, pixels = enhance_factor(strength), image.double()
    grey = (pixels * torch.tensor(LUMA, dtype=torch.float64).view(3, 1, 1)).sum(0)
    return (grey + factor * (pixels - grey)).clamp(0, 255).to(torch.uint8)


def contrast(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Blend with its mean grey by 0.1 … 1.9."""
    mean = (image.double().mean((1, 2)) * torch.tensor(LUMA, dtype=torch.float64)).sum()
    return look_up(image, ((torch.arange(256) - mean) * enhance_factor(strength) + mean).clamp(0, 255))


def posterize(image: Tensor, strength: float, sign: Sign) -> Tensor:
    """Keep the highest strength / 10 × 4 bits."""
    return image & ((255 << (8 - int(strength / MAX_STRENGTH * 4))) & 255)


OPERATIONS: dict[str, Callable[[Tensor, float, Sign], Tensor]] = {
    "Identity": augment.identity,
    "AutoContrast": augment.auto_contrast,
    "Equalize": augment.equalize,
    "Rotate": augment.rotate,
    "Solarize": solarize,
    "Color": color,
    "Contrast": contrast,
    "Brightness": augment.brightness,
    "Sharpness": augment.sharpness,
    "ShearX": augment.shear_x,
    "TranslateX": augment.translate_x,
    "TranslateY": augment.translate_y,
    "Posterize": posterize,
    "ShearY": augment.shear_y,
}


class RandomAugment:
    """uint8 [H,W,3], or a PIL image → uint8 [H,W,3]: `N` of the operations `augs`, each applied with probability 0.5.

    `M` is their strength, up to 10. Draws from the generator of the sample, else torch's (LAVIS': numpy's). Raises
    ConfigError for an unknown name, or another picture.
    """

    def __init__(self, N: int = 2, M: float = 10, isPIL: bool = False, augs: Sequence[str] = ()) -> None:  # noqa: N803
        self.N, self.M, self.isPIL, self.augs = N, M, isPIL, list(augs) or list(OPERATIONS)
        for name in self.augs:
            if name not in OPERATIONS:
                raise ConfigError("RandomAugment augs", f"'{name}' is not known", nearest(name, OPERATIONS))

    def get_random_ops(self) -> list[tuple[str, float, float]]:
        """Name, probability and strength of `N` operations, drawn with replacement."""
        drawn = torch.randint(len(self.augs), (self.N,), generator=current_rng()).tolist()
        return [(self.augs[number], 0.5, self.M) for number in drawn]

    def __call__(self, img: Any) -> np.ndarray:
        """As the class says; the picture given is not changed."""
        image = to_tensor(as_rgb(img))
        for name, share, strength in self.get_random_ops():
            draw, side = torch.rand(2, generator=current_rng()).tolist()
            if draw <= share:
                image = OPERATIONS[name](image, strength, -1.0 if side < 0.5 else 1.0)
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


__getattr__ = refusing(__name__, VideoRandomAugment="videos are LAVIS'")
