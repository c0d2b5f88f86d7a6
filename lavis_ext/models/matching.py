"""blip2_image_text_matching: does this text say what this image shows?"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.errors import ConfigError
from lavis_ext.models.settings import Blip2Config
from lavis_ext.models.stage1 import Blip2
from lavis_ext.objectives.blip2 import similarities
from lavis_ext.registry import models
from lavis_ext.types import Batch


@models.register("blip2_image_text_matching", config=Blip2Config)
class Blip2Matching(Blip2):
    """BLIP-2's first stage that scores pairs instead of learning from them (LAVIS' Blip2ITM)."""

    @torch.no_grad()
    def forward(self, batch: Batch, match_head: Literal["itm", "itc"] = "itm") -> Tensor:  # type: ignore[override]
        """`image` [B,3,S,S], `text_input` → `itm`: logits [B, 2] (no match, match); `itc`: cosines [B, B].

        Raises ConfigError for another head.
        """
        texts = self.encode(batch["text_input"])
        if match_head == "itm":
            return self.match(self.see(batch), texts)
        if match_head != "itc":
            raise ConfigError("match_head", f"'{match_head}' is not offered", "choose itm or itc")
        images = F.normalize(self.net.vision_projection(self.ask(self.see(batch))), dim=-1)
        return similarities(images, self.project_text(self.read(texts)[:, 0]))

    def predict(self, samples: Batch) -> dict[str, Tensor]:
        """`predictions` [B, 2] (no match, match) and `targets`, the `label` of the samples: classification by match.

        Raises ConfigError for pictures in pairs and for classes beyond these two.
        """
        if "image" not in samples:
            raise ConfigError("model.arch", "matches one picture with a text, the samples have pairs", "name another")
        labels = samples.get("label")
        if labels is not None and any(int(label) > 1 for label in labels if label is not None):
            raise ConfigError("model.arch", "knows two classes, the samples have more", "name another")
        found = {"predictions": self(samples, match_head="itm")}
        return found if labels is None else {**found, "targets": labels}
