"""The keys of metrics, beside `name`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MetricKeys:
    """A metric without keys."""


Normalised = Literal["both", "prediction"]


@dataclass(frozen=True, kw_only=True)
class GqaKeys(MetricKeys):
    """GQA's exact match."""

    normalize: Normalised = "both"
    """What is normalised before it is compared; VPGTrans leaves the given answer as it is."""


@dataclass(frozen=True, kw_only=True)
class CocoCaptionKeys(MetricKeys):
    """COCO's caption scores."""

    extra: list[Literal["METEOR", "SPICE"]] = field(default_factory=list)
    """Scores that need Java, beside those of run.extra_metrics."""
