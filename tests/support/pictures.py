"""Pictures and small data sets for tests: drawn from a seed, written under tmp_path in LAVIS' forms."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_ext.common.config.schema import (
    AnnotationConfig,
    BuildInfo,
    DatasetConfig,
    ImagesConfig,
    ProcessorConfig,
    ProcessorPair,
)

PHOTOS = Path(__file__).parents[3] / "shared" / "real_coco" / "images"
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the folder of real COCO photographs is not here")


def pixels(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth coloured picture with some texture, uint8 [H,W,3]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-12, 13, (height, width, 3))
    return (np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8)


def encoded(array: np.ndarray, form: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """The picture as bytes of a file."""
    buffer = BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def write_captions(root: Path, pictures: int = 6, captions: int = 2, start: int = 0) -> None:
    """`root/coco/…`: a Karpathy-like train.json (a caption a row), val.json (a picture a row) and their pictures."""
    folder = root / "coco" / "images" / "val2014"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "coco" / "annotations").mkdir(parents=True, exist_ok=True)
    train, val = [], []
    for number in range(start, start + pictures):
        name = f"COCO_val2014_{number:012d}.jpg"
        (folder / name).write_bytes(encoded(pixels(number)))
        texts = [f"Picture {number}, caption {k}!" for k in range(captions)]
        train += [{"caption": t, "image": f"val2014/{name}", "image_id": f"coco_{number}"} for t in texts]
        val.append({"image": f"val2014/{name}", "caption": texts})
    write_json(root / "coco" / "annotations" / "train.json", train)
    write_json(root / "coco" / "annotations" / "val.json", val)


def write_json(path: Path, value: Any) -> Path:
    """The value as a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def caption_config(
    builder: str = "image_caption", name: str = "little", size: int = 32, **changes: Any
) -> DatasetConfig:
    """The declaration of what `write_captions` writes."""
    files = {s: AnnotationConfig(storage=[f"coco/annotations/{s}.json"]) for s in ("train", "val")}
    train, other = (
        ProcessorConfig(name=n, args={"image_size": size}) for n in ("blip2_image_train", "blip_image_eval")
    )
    caption = ProcessorConfig(name="blip_caption")
    given: dict[str, Any] = {
        "build_info": BuildInfo(annotations=files, images=ImagesConfig(storage="coco/images")),
        "vis_processor": ProcessorPair(train=train, eval=other),
        "text_processor": ProcessorPair(train=caption, eval=caption),
    }
    return DatasetConfig(name=name, builder=builder, **{**given, **changes})
