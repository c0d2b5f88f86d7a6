"""LAVIS' image processors: uint8 RGB in, a square out; what is random comes from the generator handed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.errors import ConfigError
from lavis_ext.processors import geometry
from lavis_ext.processors.augment import random_augment
from lavis_ext.processors.base import Processor
from lavis_ext.processors.normalize import MEAN, STD, normalize
from lavis_ext.registry import processors


@dataclass(frozen=True)
class SquareImage(Processor):
    """Base: `uint8` is what a subclass says, calling it normalises the result."""

    image_size: int = 224
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __post_init__(self) -> None:
        for key in ("mean", "std"):  # LAVIS writes null for the default
            object.__setattr__(self, key, getattr(self, key) or {"mean": MEAN, "std": STD}[key])
        if not isinstance(self.image_size, int) or self.image_size < 1 or len(self.mean) != 3 or len(self.std) != 3:
            raise ConfigError(
                type(self).__name__, "image_size must be a positive number, mean and std three numbers each"
            )

    def __call__(self, image: Any, rng: torch.Generator | None = None) -> Tensor:
        """A PIL image or uint8 [H,W,3] array → normalised float32 [3,S,S]; without `rng` torch's global one serves."""
        return normalize(self.uint8(as_rgb(image), rng), self.mean, self.std)

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S], not normalised."""
        raise NotImplementedError


@dataclass(frozen=True)
class RandomCropImage(SquareImage):
    """A random crop, resized bicubically."""

    min_scale: float = 0.5
    max_scale: float = 1.0

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]."""
        box = geometry.random_box(image.shape[0], image.shape[1], (self.min_scale, self.max_scale), rng)
        return geometry.resize(geometry.crop(geometry.to_tensor(image), box), self.image_size, self.image_size)


@processors.register("blip2_image_train")
@dataclass(frozen=True)
class Blip2ImageTrain(RandomCropImage):
    """Random resized crop, random flip."""

    image_size: int = 364

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]."""
        return geometry.flip_half(super().uint8(image, rng), rng)


@processors.register("blip_image_train")
@dataclass(frozen=True)
class BlipImageTrain(RandomCropImage):
    """Random resized crop, random flip, then two of BLIP's ten augmentations at strength 5."""

    image_size: int = 384

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]."""
        flipped = geometry.flip_half(super().uint8(image, rng), rng)
        return random_augment(flipped, count=2, strength=5, rng=rng)


@processors.register("blip_image_eval")
@dataclass(frozen=True)
class BlipImageEval(SquareImage):
    """The whole image resized to a square, its shape not kept."""

    image_size: int = 384

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]; nothing is random."""
        return geometry.resize(geometry.to_tensor(image), self.image_size, self.image_size)


@processors.register("clip_image_train")
@dataclass(frozen=True)
class ClipImageTrain(RandomCropImage):
    """Random resized crop of nearly the whole image, no flip."""

    min_scale: float = 0.9


@processors.register("clip_image_eval")
@dataclass(frozen=True)
class ClipImageEval(SquareImage):
    """The shorter side resized, then the middle square."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]; nothing is random."""
        size = geometry.short_side(image.shape[0], image.shape[1], self.image_size)
        return geometry.centre_crop(geometry.resize(geometry.to_tensor(image), *size), self.image_size)


def as_rgb(image: Any) -> np.ndarray:
    """A PIL image in any mode, or an array uint8 [H,W,3], as uint8 [H,W,3]; raises ConfigError for anything else."""
    array = (
        image
        if isinstance(image, np.ndarray)
        else np.array(image.convert("RGB"))
        if hasattr(image, "convert")
        else None
    )
    if array is None or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        found = type(image).__name__ if array is None else f"{array.dtype} {array.shape}"
        raise ConfigError("image processor", f"got {found}", "hand in a PIL image or a uint8 array [H,W,3]")
    return array
