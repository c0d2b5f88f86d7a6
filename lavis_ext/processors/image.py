"""LAVIS' image processors: uint8 RGB → a square, random only through the given generator; crops, resize, normalise."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import processors
from lavis_ext.processors import current_rng
from lavis_ext.processors.augment import random_augment
from lavis_ext.processors.base_processor import BaseProcessor, settable
from lavis_ext.processors.settings import (
    MEAN,
    STD,
    Blip2TrainKeys,
    BlipEvalKeys,
    BlipTrainKeys,
    ClipTrainKeys,
    CropKeys,
    ImageProcessorKeys,
)

RATIO = (3 / 4, 4 / 3)
_low, _high = torch.log(torch.tensor(RATIO)).tolist()
LOG_RATIO = (_low, _high)
"""In single precision throughout, as torchvision does."""
ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle of pixels: first row, first column, height, width."""

    top: int
    left: int
    height: int
    width: int


class _Drawn(threading.local):
    """The numbers that torch draws, each into the same tensor of its thread and read by numpy.

    After a picture was decoded each call of torch takes 10 us, since what it needs is no longer in the processor's
    cache: `torch.rand(1).item()` is three.
    """

    def __init__(self) -> None:
        with torch.inference_mode(False):  # else they could be drawn into nowhere else
            self._real = torch.empty(1, dtype=torch.float32, device="cpu")
            self._whole = torch.empty(1, dtype=torch.int64, device="cpu")
        self._as_float, self._as_int = self._real.numpy(), self._whole.numpy()

    def uniform(self, low: float, high: float, rng: torch.Generator | None) -> float:
        """As `torch.empty(1).uniform_(low, high)` draws."""
        self._real.uniform_(low, high, generator=rng)
        return float(self._as_float[0])

    def exp_uniform(self, low: float, high: float, rng: torch.Generator | None) -> float:
        """Torch's `exp` of `uniform`, in single precision."""
        self._real.uniform_(low, high, generator=rng).exp_()
        return float(self._as_float[0])

    def below(self, stop: int, rng: torch.Generator | None) -> int:
        """As `torch.randint(stop, (1,))` draws."""
        self._whole.random_(0, stop, generator=rng)
        return int(self._as_int[0])


_drawn = _Drawn()


def to_tensor(array: np.ndarray) -> Tensor:
    """uint8 [H,W,3] → uint8 [3,H,W] over the same memory, channels last."""
    return torch.from_numpy(array if array.flags.writeable else array.copy()).permute(2, 0, 1)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 [3,H,W] → uint8 [3,height,width] by torch's antialiased bicubic.

    Equal to Pillow's up to rounding (0.005 of 255 on average). Both do the horizontal pass first; the newest Pillow
    does the cheaper one first, which changes its own results by 0.2 of 255 where that is the vertical one.
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
    """The box of torchvision's RandomResizedCrop, drawn in the same order.

    An area share uniform in `scale` and an aspect ratio log-uniform in 3/4 … 4/3, up to ten times until it fits; else
    the largest central box of an allowed ratio. With `rng` None torch's global generator is used, and the same seed
    gives the box that torchvision gives.
    """
    for _ in range(ATTEMPTS):
        area = height * width * _drawn.uniform(*scale, rng)
        ratio = _drawn.exp_uniform(*LOG_RATIO, rng)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(_drawn.below(height - h + 1, rng), _drawn.below(width - w + 1, rng), h, w)
    return central_box(height, width)


def central_box(height: int, width: int) -> Box:
    """The largest central box of an allowed ratio."""
    h, w = height, width
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def flip_half(image: Tensor, rng: torch.Generator | None) -> Tensor:
    """The image, mirrored left to right with probability 0.5."""
    return image.flip(-1) if _drawn.uniform(0, 1, rng) < 0.5 else image


def normalize(
    images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD, fused: bool | None = None
) -> Tensor:
    """uint8 [...,3,H,W] → float32: `(x / 255 - mean) / std` as a multiply-add on the tensor's device.

    `fused`, by default on an accelerator, is one operation; on a CPU converting first is twice as fast, since mixed
    types are not vectorised.
    """
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    shape = (-1, 1, 1)
    bias, factor = (value.float().view(shape).to(images.device) for value in (shift, scale))
    if fused or (fused is None and images.device.type != "cpu"):
        return torch.addcmul(bias, images, factor)
    return images.float().mul_(factor).add_(bias)


@dataclass(frozen=True)
class Normalizer:
    """`normalize` with the statistics that all data sets of a mixture share."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [...,3,H,W] → float32; other dtypes are returned unchanged."""
        return normalize(images, self.mean, self.std) if images.dtype == torch.uint8 else images


@settable
@dataclass(frozen=True)
class SquareImage(ImageProcessorKeys, BaseProcessor):
    """Base: a subclass defines `uint8`; a call normalises its result."""

    def __call__(self, image: Any, rng: torch.Generator | None = None) -> Tensor:
        """A PIL image or uint8 [H,W,3] array → normalised float32 [3,S,S]; without `rng` torch's global one is used."""
        return normalize(self.uint8(as_rgb(image), current_rng() if rng is None else rng), self.mean, self.std)

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S], not normalised."""
        raise NotImplementedError

    def transform(self, item: Any) -> Tensor:
        """The same as a call (LAVIS' attribute, which a subclass may set)."""
        return self(item)

    def normalize(self, image: Tensor) -> Tensor:
        """float [3,H,W] from 0 to 1 → `(x - mean) / std`, for transforms in LAVIS' manner."""
        mean, std = (torch.tensor(value, dtype=image.dtype).view(-1, 1, 1) for value in (self.mean, self.std))
        return (image - mean.to(image.device)) / std.to(image.device)


@settable
@dataclass(frozen=True)
class RandomCropImage(CropKeys, SquareImage):
    """A random crop, resized bicubically."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]."""
        box = random_box(image.shape[0], image.shape[1], (self.min_scale, self.max_scale), rng)
        # cut by numpy, not copied: a contiguous crop is resized faster by less than its memory costs
        part = image[box.top : box.top + box.height, box.left : box.left + box.width]
        return resize(to_tensor(part), self.image_size, self.image_size)


@processors.register("blip2_image_train", config=Blip2TrainKeys)
@settable
@dataclass(frozen=True)
class Blip2ImageTrain(Blip2TrainKeys, RandomCropImage):
    """Random resized crop, random flip."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]."""
        return flip_half(super().uint8(image, rng), rng)


@processors.register("blip_image_train", config=BlipTrainKeys)
@settable
@dataclass(frozen=True)
class BlipImageTrain(BlipTrainKeys, RandomCropImage):
    """Random resized crop, random flip, then two of BLIP's ten augmentations at strength 5."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]."""
        flipped = flip_half(super().uint8(image, rng), rng)
        return random_augment(flipped, count=2, strength=5, rng=rng)


@processors.register("blip_image_eval", config=BlipEvalKeys)
@settable
@dataclass(frozen=True)
class BlipImageEval(BlipEvalKeys, SquareImage):
    """The whole image resized to a square; the aspect ratio is not kept."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]; nothing is random."""
        return resize(to_tensor(image), self.image_size, self.image_size)


@processors.register("clip_image_train", config=ClipTrainKeys)
@settable
@dataclass(frozen=True)
class ClipImageTrain(ClipTrainKeys, RandomCropImage):
    """Random resized crop of nearly the whole image, no flip."""


@processors.register("clip_image_eval", config=ImageProcessorKeys)
@settable
@dataclass(frozen=True)
class ClipImageEval(SquareImage):
    """The shorter side resized, then the middle square."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """uint8 [H,W,3] RGB → uint8 [3,S,S]; nothing is random."""
        size = short_side(image.shape[0], image.shape[1], self.image_size)
        return centre_crop(resize(to_tensor(image), *size), self.image_size)


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
        raise ConfigError("image processor", f"got {found}", "give a PIL image or a uint8 array [H,W,3]")
    return array
