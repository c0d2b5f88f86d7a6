"""Tasks: model + loss + metric. Keys are in `settings.py`, which costs nothing to import; begin with `base.py`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lavis_ext.tasks.base_task import BaseTask, setup_task

__all__ = ["BaseTask", "setup_task"]


def __getattr__(name: str) -> Any:
    """The task classes bring torch: they are loaded where they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'lavis_ext.tasks' has no attribute '{name}'")
    return getattr(import_module("lavis_ext.tasks.base_task"), name)
