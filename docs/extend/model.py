"""A model: which of some words a picture's colours ask for, by two layers over its mean colour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.common.config.decode import Count
from lavis_ext.common.config.schema import ModelConfig
from lavis_ext.common.registry import registry
from lavis_ext.common.types import Batch
from lavis_ext.models.base_model import BaseModel


@dataclass(frozen=True, kw_only=True)
class ColourConfig(ModelConfig):
    """The keys of `model:` beside those of all models."""

    width: Count = 16
    words: list[str] = field(default_factory=lambda: ["red", "green", "blue"])


@registry.register_model("colour_words", config=ColourConfig)
class ColourWords(BaseModel):
    """Learns from captions which words go with a colour, and writes those that do."""

    def __init__(self, config: ColourConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Linear(3, config.width), nn.ReLU(), nn.Linear(config.width, len(config.words)))

    @classmethod
    def from_config(cls, config: ModelConfig) -> ColourWords:
        """From scratch."""
        assert isinstance(config, ColourConfig)
        return cls(config)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`image` [B,3,S,S], `text_input` → `loss`: whether each word is in the caption."""
        said = [[float(word in text.split()) for word in self.config.words] for text in batch["text_input"]]
        return {"loss": F.binary_cross_entropy_with_logits(self.scores(batch), torch.tensor(said, device=self.device))}

    def scores(self, batch: Batch) -> Tensor:
        """[B, words]"""
        found: Tensor = self.layers(batch["image"].to(self.device).mean((2, 3)))
        return found

    @torch.no_grad()
    def generate(self, samples: Batch, **search: Any) -> list[str]:
        """The words that are likelier than not, at least the likeliest."""
        rows = self.scores(samples)
        chosen = [(row > 0).nonzero()[:, 0].tolist() or [int(row.argmax())] for row in rows]
        return [" ".join(self.config.words[index] for index in words) for words in chosen]
