"""LAVIS' module name: what a model of one's own gives, by attribute, by name, or as a tuple."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.utils import ModelOutput


@dataclass
class BlipOutput(ModelOutput):  # type: ignore[misc]
    """Losses of a forward pass; `loss` is the one to minimise."""

    loss: Any = None
    loss_itc: Any = None
    loss_itm: Any = None
    loss_lm: Any = None
    sims: Any = None
    intermediate_output: Any = None


@dataclass
class BlipOutputFeatures(ModelOutput):  # type: ignore[misc]
    """Features [B, Q, C], [B, L, C] and, projected and normalised, [B, Q, D], [B, L, D]."""

    image_embeds: Any = None
    image_embeds_proj: Any = None
    text_embeds: Any = None
    text_embeds_proj: Any = None
    multimodal_embeds: Any = None
