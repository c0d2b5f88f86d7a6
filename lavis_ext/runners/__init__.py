"""Training and evaluation of one run: the loop, its hooks, checkpoints with exact resume, and jobs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.common.config.schema import Config

if TYPE_CHECKING:
    from lavis_ext.runners.display import Display
    from lavis_ext.runners.runner_base import RunnerBase
    from lavis_ext.runners.runner_iter import RunnerIter


def train(config: Config, data: Mapping[str, Any] | None = None, display: Display | None = None) -> Path:
    """Train as `config` says, or go on where the job of that name stopped; returns the job folder."""
    from lavis_ext.runners import run

    return run.train(config, data, display=display)


def evaluate(config: Config, data: Mapping[str, Any] | None = None, display: Display | None = None) -> Path:
    """Evaluate the splits of `config` without training; returns the job folder."""
    from lavis_ext.runners import run

    return run.evaluate(config, data, display=display)


__all__ = ["RunnerBase", "RunnerIter", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    """Import the loop on first use: it needs torch."""
    homes = {"RunnerBase": "runner_base", "RunnerIter": "runner_iter"}
    if name not in homes:
        raise AttributeError(f"module 'lavis_ext.runners' has no attribute '{name}'")
    return getattr(import_module(f"lavis_ext.runners.{homes[name]}"), name)
