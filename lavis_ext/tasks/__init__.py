"""Tasks: model + loss + metric. Read `base_task.py` first; keys are in `settings.py`, which imports nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lavis_ext.tasks.base_task import BaseTask, setup_task

__all__ = ["BaseTask", "setup_task"]


def __getattr__(name: str) -> Any:
    """Import the task classes on first use: they need torch."""
    if name not in __all__:
        raise AttributeError(f"module 'lavis_ext.tasks' has no attribute '{name}'")
    return getattr(import_module("lavis_ext.tasks.base_task"), name)
