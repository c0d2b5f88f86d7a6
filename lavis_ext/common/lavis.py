"""What LAVIS registers and this package does not serve, so that a YAML of it is refused by its cause."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

WAY_OUT = "run it in LAVIS"
SERVED = (
    "BLIP-2, InstructBLIP and VPGTrans are served: blip2, blip2_opt, blip2_t5, blip2_llama, blip2_vicuna, "
    "blip2_t5_instruct, blip2_vicuna_instruct"
)
OUTSIDE: dict[str, dict[str, str]] = {
    "model": {
        "ALBEF": "albef_(classification|feature_extractor|nlvr|pretrain|retrieval|vqa)",
        "ALPRO, for videos": "alpro_(qa|retrieval)",
        "BLIP-Diffusion": "blip_diffusion",
        "BLIP": "blip_(caption|classification|feature_extractor|image_text_matching|nlvr|pretrain|retrieval|vqa)",
        "X-InstructBLIP, for sound, videos and point clouds": "blip2_vicuna_xinstruct",
        "CLIP": "clip(_feature_extractor)?",
        "GPT for dialogues": "gpt_dialogue",
        "Img2Prompt-VQA": "img2prompt_vqa",
        "PNP-VQA": "pnp_(vqa|unifiedqav2_fid)",
    },
    "task": {
        "dialogues": "dialogue",
        "discriminative reasoning over sound and point clouds": "discrn_qa",
        "PNP-VQA": "(gqa|vqa)_reading_comprehension",
        "BLIP-Diffusion": "text-to-image-generation",
    },
    "processor": {
        "videos": "alpro_video_(train|eval)|gpt_video_ft",
        "sound": "beats_audio",
        "point clouds": "ulip_pc",
        "BLIP-Diffusion": "blip_diffusion_(inp|tgt)_image_(train|eval)",
        "dialogues": "gpt_dialogue",
    },
    "dataset": {
        "sound": r"(audiocaps|audioset)_mm_(caption|qa)(_instruct)?|clotho_qa|clothov2(_instruct)?|esc50_cls|"
        r"wavcaps_mm_caption(_instruct)?",
        "sound and videos": r"audio_video_discrn|avsd_(mm_)?dialogue(_instruct)?|musicavqa_mm(_instruct)?|"
        r"valor_mm_caption(_instruct)?",
        "point clouds": r"image_pc_discrn|modelnet40_cls|(objaverse|shapenet)_mm_(caption|qa)(_instruct)?",
        "videos": r"(charade|coin|msrvtt|msvd|vatex|violin|vlep|webvid2m|youcook)_"
        r"(cap|caption|entailment|qa)(_instruct)?|"
        r"(didemo|msrvtt)_retrieval|yt8m_mm_dialogue",
        "dialogues": r"llava150k_dialogue_instruct|visdial(_instruct)?",
        "BLIP-Diffusion": "blip_diffusion_finetune",
        "classes of pictures": "imagenet",
        "pictures that has no card": r"(capfilt14m|iconqa|ocr_vqa|scienceqa|textcaps_caption|vizwiz_vqa)(_instruct)?|"
        r"vsr_(caption|classification)(_instruct)?",
    },
}
"""Kind → what it is → the names, a regular expression. The first that matches is taken."""
WHOSE = {"model": "", "task": "task of ", "processor": "processor of ", "dataset": "data set of "}


def refusing(module: str, **reasons: str) -> Callable[[str], Any]:
    """A module's `__getattr__`: importing a name that LAVIS' module has, and ours has not, fails by its reason."""

    def find(name: str) -> Any:
        if name in reasons:
            raise ImportError(f"{module}.{name}: is not served here; {reasons[name]}", name=module)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


def out_of_scope(kind: str, name: str) -> str:
    """`is LAVIS' BLIP, not served here` for a name that LAVIS registers and this package does not; "" for any other."""
    found = next((what for what, names in OUTSIDE.get(kind, {}).items() if re.fullmatch(names, name)), "")
    return f"is LAVIS' {WHOSE[kind]}{found}, not served here" if found else ""
