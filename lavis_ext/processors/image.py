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
from lavis_ext.processors.normalize import normalize
from lavis_ext.processors.settings import (
    Blip2TrainKeys,
    BlipEvalKeys,
    BlipTrainKeys,
    ClipTrainKeys,
    CropKeys,
    ImageKeys,
)
from lavis_ext.registry import processors


@dataclass(frozen=True)
class SquareImage(ImageKeys, Processor):
    """Base: `uint8` is what a subclass says, calling it normalises the result."""

    def __call__(self, image: Any, rng: torch.Generator | None = None) -> Tensor:
        """A PIL image or uint8 [H,W,3] array → normalised float32 [3,S,S]; without `rng` torch's global one serves."""
        return normalize(self.uint8(as_rgb(image), rng), self.mean, self.std)

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S], not normalised."""
        raise NotImplementedError


@dataclass(frozen=True)
class RandomCropImage(CropKeys, SquareImage):
    """A random crop, resized bicubically."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]."""
        box = geometry.random_box(image.shape[0], image.shape[1], (self.min_scale, self.max_scale), rng)
        return geometry.resize(geometry.crop(geometry.to_tensor(image), box), self.image_size, self.image_size)


@processors.register("blip2_image_train", config=Blip2TrainKeys)
@dataclass(frozen=True)
class Blip2ImageTrain(Blip2TrainKeys, RandomCropImage):
    """Random resized crop, random flip."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]."""
        return geometry.flip_half(super().uint8(image, rng), rng)


@processors.register("blip_image_train", config=BlipTrainKeys)
@dataclass(frozen=True)
class BlipImageTrain(BlipTrainKeys, RandomCropImage):
    """Random resized crop, random flip, then two of BLIP's ten augmentations at strength 5."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]."""
        flipped = geometry.flip_half(super().uint8(image, rng), rng)
        return random_augment(flipped, count=2, strength=5, rng=rng)


@processors.register("blip_image_eval", config=BlipEvalKeys)
@dataclass(frozen=True)
class BlipImageEval(BlipEvalKeys, SquareImage):
    """The whole image resized to a square, its shape not kept."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]; nothing is random."""
        return geometry.resize(geometry.to_tensor(image), self.image_size, self.image_size)


@processors.register("clip_image_train", config=ClipTrainKeys)
@dataclass(frozen=True)
class ClipImageTrain(ClipTrainKeys, RandomCropImage):
    """Random resized crop of nearly the whole image, no flip."""


@processors.register("clip_image_eval", config=ImageKeys)
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
