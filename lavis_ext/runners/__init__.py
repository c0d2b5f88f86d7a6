"""Training and evaluation of one run: the loop, its hooks, checkpoints with exact resume, and jobs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.common.config.schema import Config
from lavis_ext.common.names import imported_on_use

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

__getattr__ = imported_on_use(__name__, {"RunnerBase": "runner_base", "RunnerIter": "runner_iter"})
