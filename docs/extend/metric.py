"""A metric of captions: the share of pictures whose caption names one of some words that people named too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lavis_ext.common.registry import registry
from lavis_ext.metrics.settings import MetricKeys


@dataclass(frozen=True, kw_only=True)
class NamingKeys(MetricKeys):
    """Its keys beside `name`."""

    words: list[str] = field(default_factory=lambda: ["bird"])


@registry.register_metric("naming", config=NamingKeys)
def naming(
    predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]], keys: NamingKeys
) -> dict[str, float]:
    """`naming` in [0, 1], of the pictures of which some reference names a word; 1 where there is none."""
    wanted = set(keys.words)
    asked = [name for name in predictions if any(wanted & set(text.lower().split()) for text in references[name])]
    named = [bool(wanted & set(predictions[name].lower().split())) for name in asked]
    return {"naming": sum(named) / len(named) if named else 1.0}
