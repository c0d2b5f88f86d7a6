"""Tasks: model + loss + metric. Read `base_task.py` first; keys are in `settings.py`, which imports nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lavis_ext.tasks.base_task import BaseTask, setup_task
    from lavis_ext.tasks.captioning import CaptionTask
    from lavis_ext.tasks.image_text_pretrain import ImageTextPretrainTask
    from lavis_ext.tasks.multimodal_classification import MultimodalClassificationTask
    from lavis_ext.tasks.retrieval import RetrievalTask
    from lavis_ext.tasks.vqa import AOKVQATask, GQATask, VQATask

_HOME = {
    "AOKVQATask": "vqa",
    "BaseTask": "base_task",
    "CaptionTask": "captioning",
    "GQATask": "vqa",
    "ImageTextPretrainTask": "image_text_pretrain",
    "MultimodalClassificationTask": "multimodal_classification",
    "RetrievalTask": "retrieval",
    "VQATask": "vqa",
    "setup_task": "base_task",
}
__all__ = [
    "AOKVQATask",
    "BaseTask",
    "CaptionTask",
    "GQATask",
    "ImageTextPretrainTask",
    "MultimodalClassificationTask",
    "RetrievalTask",
    "VQATask",
    "setup_task",
]


def __getattr__(name: str) -> Any:
    """Import the task classes on first use: they need torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'lavis_ext.tasks' has no attribute '{name}'")
    return getattr(import_module(f"lavis_ext.tasks.{_HOME[name]}"), name)
