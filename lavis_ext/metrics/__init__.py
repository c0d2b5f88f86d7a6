"""Metrics by name.

A registered metric is called with the results of its task and with its keys, and returns named numbers. Captions and
answers: `(predictions, references, keys)`, text by id and lists of texts by id; retrieval: `(image_to_text,
text_to_image, captions, keys)`, scores [I, T] and [T, I]; classification: `(predictions, targets, classes, keys)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lavis_ext.common.config.schema import MetricConfig, own_keys
from lavis_ext.common.registry import metrics


def measure(named: Iterable[MetricConfig], *given: Any) -> dict[str, float]:
    """The numbers of all named metrics, later ones over earlier ones of the same name; raises ConfigError."""
    found: dict[str, float] = {}
    for one in named:
        keys = own_keys(metrics, one.name, one.args, f"run.metrics {one.name}")
        found |= metrics.get(one.name)(*given, keys)
    return found
