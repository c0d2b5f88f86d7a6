"""The first place of `setup_task` and the base class, for scripts that import them from here: `base_task`."""

from lavis_ext.tasks.base_task import BaseTask, setup_task

__all__ = ["BaseTask", "setup_task"]
