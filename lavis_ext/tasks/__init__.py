"""Tasks: model + loss + metric."""

from lavis_ext.tasks.base import Task, setup_task

__all__ = ["Task", "setup_task"]
