"""Training and evaluation of one run: the loop, its hooks, checkpoints with exact resume, and jobs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_ext.common.config.schema import Config


def train(config: Config, data: Mapping[str, Any] | None = None) -> Path:
    """Train as `config` says, or go on where the job of that name stopped; returns the job folder."""
    from lavis_ext.runners import run

    return run.train(config, data)


def evaluate(config: Config, data: Mapping[str, Any] | None = None) -> Path:
    """Evaluate the splits of `config` without training; returns the job folder."""
    from lavis_ext.runners import run

    return run.evaluate(config, data)


__all__ = ["evaluate", "train"]
