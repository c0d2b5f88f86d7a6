"""What LAVIS registers and this package does not serve, so that a YAML of it is refused by its cause."""

from __future__ import annotations

import re

WAY_OUT = "run it in LAVIS"
SERVED = "BLIP-2 and VPGTrans are served: blip2, blip2_opt, blip2_t5, blip2_llama, blip2_vicuna"
OUTSIDE: dict[str, dict[str, str]] = {
    "model": {
        "ALBEF": "albef_.*",
        "ALPRO, for videos": "alpro_.*",
        "BLIP-Diffusion": "blip_diffusion.*",
        "BLIP": "blip_.*",
        "X-InstructBLIP, for sound, videos and point clouds": "blip2_vicuna_xinstruct",
        "InstructBLIP": "blip2_(t5|vicuna)_instruct|instruct_vicuna.*",
        "CLIP": "clip|clip_feature_extractor",
        "GPT for dialogues": "gpt_dialogue",
        "Img2Prompt-VQA": "img2prompt_vqa",
        "PNP-VQA": "pnp_.*",
    },
    "task": {
        "dialogues": "dialogue",
        "discriminative reasoning over sound and point clouds": "discrn_qa",
        "PNP-VQA": "(gqa|vqa)_reading_comprehension",
        "BLIP-Diffusion": "text-to-image-generation",
    },
    "processor": {
        "videos": "alpro_video_.*|gpt_video_ft",
        "sound": "beats_audio",
        "point clouds": "ulip_pc",
        "BLIP-Diffusion": "blip_diffusion_.*",
        "dialogues": "gpt_dialogue",
    },
    "dataset": {
        "sound": "(audiocaps|audioset|clotho|esc50|wavcaps)\\w*",
        "sound and videos": "(audio_video_discrn|avsd\\w*|musicavqa\\w*|valor\\w*)",
        "point clouds": "(image_pc_discrn|modelnet40\\w*|objaverse\\w*|shapenet\\w*)",
        "videos": "(charade|coin|didemo|msrvtt|msvd|vatex|violin|vlep|webvid2m|youcook|yt8m)\\w*",
        "dialogues": "(llava150k|visdial)\\w*",
        "BLIP-Diffusion": "blip_diffusion_finetune",
        "classes of pictures": "imagenet",
    },
}
"""Kind → what it is → the names, a regular expression. The first that matches is taken."""
WHOSE = {"model": "", "task": "task of ", "processor": "processor of ", "dataset": "data set of "}


def out_of_scope(kind: str, name: str) -> str:
    """`is LAVIS' BLIP, not served here` for a name that LAVIS registers and this package does not; "" for any other."""
    found = next((what for what, names in OUTSIDE.get(kind, {}).items() if re.fullmatch(names, name)), "")
    return f"is LAVIS' {WHOSE[kind]}{found}, not served here" if found else ""
