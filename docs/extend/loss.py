"""A fourth loss of BLIP-2's first stage: pictures of a batch are pushed apart (Wang and Isola, arXiv:2005.10242)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_ext.common.config.decode import Positive
from lavis_ext.common.registry import registry
from lavis_ext.models.losses import Loss
from lavis_ext.models.settings import LossKeys


@dataclass(frozen=True, kw_only=True)
class SpreadKeys(LossKeys):
    """Its keys beside `name` and `weight`."""

    sharpness: Positive = 2.0


@registry.register_objective("spread", config=SpreadKeys)
class Spread(Loss):
    """log of the mean of exp(-sharpness · squared distance) over pairs of different pictures."""

    def __call__(self, seen: Any) -> Tensor:
        """`seen.images` are the projected queries [B, Q, D]; those of a picture are averaged."""
        points = seen.images.mean(1)
        pairs = torch.pdist(points).square() if len(points) > 1 else points.new_zeros(1)
        return pairs.mul(-self.keys.sharpness).exp().mean().log()
