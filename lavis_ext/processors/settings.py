"""The arguments of image processors and of instructions, under LAVIS' names and with its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lavis_ext.common.config.decode import Count, Positive, Share
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.lavis import WAY_OUT

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's statistics, LAVIS' default for every image processor."""


@dataclass(frozen=True)
class ImageProcessorKeys:
    """A square picture; `clip_image_eval`."""

    image_size: Count = 224
    mean: Any = MEAN
    std: Any = STD

    def __post_init__(self) -> None:
        for key, default in (("mean", MEAN), ("std", STD)):
            given = getattr(self, key)
            three = list(
                default if given is None or given == "" else [given] if isinstance(given, int | float) else given
            )
            if len(three) != 3 or not all(isinstance(number, int | float) for number in three):
                raise ConfigError(key, f"{given!r} is not three numbers", "give one a channel, or null for CLIP's")
            object.__setattr__(self, key, tuple(three))
        if not isinstance(self.image_size, int) or self.image_size < 1:
            raise ConfigError("image_size", f"{self.image_size!r} is not a size", "give a whole number of pixels")


@dataclass(frozen=True)
class CropKeys(ImageProcessorKeys):
    """A random crop; smallest and largest share of the area."""

    min_scale: Positive = 0.5
    max_scale: Share = 1.0


@dataclass(frozen=True)
class Blip2TrainKeys(CropKeys):
    """`blip2_image_train`."""

    image_size: Count = 364


@dataclass(frozen=True)
class BlipTrainKeys(CropKeys):
    """`blip_image_train`."""

    image_size: Count = 384


@dataclass(frozen=True)
class BlipEvalKeys(ImageProcessorKeys):
    """`blip_image_eval`."""

    image_size: Count = 384


@dataclass(frozen=True)
class ClipTrainKeys(CropKeys):
    """`clip_image_train`."""

    min_scale: Positive = 0.9


ELSEWHERE = {
    "modality": {"video": "videos", "audio": "sound", "pc": "point clouds"},
    "task": {"classification": "classes"},
}
"""What LAVIS has instructions for that no data set here needs."""


@dataclass(frozen=True)
class InstructionKeys:
    """`blip_instruction`: `modality` image, `task` caption, qa or eval."""

    prompt: str = ""
    max_words: Count = 50
    modality: str = "image"
    task: str = "caption"
    cmu_dict_path: str | None = None
    """Of LAVIS' instructions of classes; not read here."""

    def __post_init__(self) -> None:
        for key, known in (("modality", ("image",)), ("task", ("caption", "qa", "eval"))):
            given = getattr(self, key)
            if what := ELSEWHERE[key].get(given):
                raise ConfigError(key, f"'{given}' is LAVIS' processor of {what}, not served here", WAY_OUT)
            if given not in known:
                raise ConfigError(key, f"'{given}' is not a choice", f"one of {', '.join(known)}")
